//! A set of shards: one bit each.

use crate::bus::CoreId;

/// Some of the up to [`crate::limits::SHARD_COUNT_MAX`] shards. 32 bytes, never allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShardSet([u64; 4]);

impl ShardSet {
    /// Nobody.
    pub const EMPTY: Self = Self([0; 4]);

    /// Only `shard`.
    #[must_use]
    pub fn of(shard: CoreId) -> Self {
        let mut set = Self::EMPTY;
        set.insert(shard);
        set
    }

    /// Puts `shard` in; false when it was in already.
    pub fn insert(&mut self, shard: CoreId) -> bool {
        let (word, bit) = Self::place(shard);
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }

    /// Takes `shard` out; false when it was not in.
    pub fn remove(&mut self, shard: CoreId) -> bool {
        let (word, bit) = Self::place(shard);
        let present = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        present
    }

    /// Whether `shard` is in.
    #[must_use]
    pub fn contains(self, shard: CoreId) -> bool {
        let (word, bit) = Self::place(shard);
        self.0[word] & bit != 0
    }

    /// Whether nobody is in.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// How many are in.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The only one in, when there is exactly one.
    #[must_use]
    pub fn only(self) -> Option<CoreId> {
        if self.count() == 1 {
            self.iter().next()
        } else {
            None
        }
    }

    /// Those in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let mut words = self.0;
        for (mine, theirs) in words.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
        Self(words)
    }

    /// Those in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let mut words = self.0;
        for (mine, theirs) in words.iter_mut().zip(other.0) {
            *mine &= theirs;
        }
        Self(words)
    }

    /// Lowest first.
    pub fn iter(self) -> impl Iterator<Item = CoreId> {
        let mut words = self.0;
        let mut index = 0;
        std::iter::from_fn(move || {
            while words[index] == 0 {
                index += 1;
                if index == words.len() {
                    index = words.len() - 1;
                    return None;
                }
            }
            let bit = words[index].trailing_zeros();
            words[index] &= words[index] - 1;
            u8::try_from(index as u32 * u64::BITS + bit)
                .ok()
                .map(CoreId)
        })
    }

    fn place(shard: CoreId) -> (usize, u64) {
        (usize::from(shard.0 / 64), 1 << (shard.0 % 64))
    }
}

impl FromIterator<CoreId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = CoreId>>(shards: I) -> Self {
        let mut set = Self::EMPTY;
        for shard in shards {
            set.insert(shard);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(operations in prop::collection::vec((any::<bool>(), 0u8..250), 0..200)) {
            let (mut set, mut model) = (ShardSet::EMPTY, BTreeSet::new());
            for (insert, shard) in operations {
                if insert {
                    prop_assert_eq!(set.insert(CoreId(shard)), model.insert(CoreId(shard)));
                } else {
                    prop_assert_eq!(set.remove(CoreId(shard)), model.remove(&CoreId(shard)));
                }
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count() as usize, model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.contains(CoreId(shard)), model.contains(&CoreId(shard)));
                prop_assert_eq!(set.only(), (model.len() == 1).then(|| *model.first().unwrap()));
            }
        }
    }
}
