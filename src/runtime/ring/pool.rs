//! A slab in chunks: it grows without copying, and touches memory only as it is used.

use std::ops::{Index, IndexMut};

/// Entries in one chunk.
const CHUNK_ENTRIES: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// What a pool holds; free entries are linked through themselves.
pub(super) trait Entry {
    /// The free entry that `next` follows; `next` is `u32::MAX` for the last one.
    fn free(next: u32) -> Self;
    /// What [`Entry::free`] was given; `None` for an entry in use.
    fn next_free(&self) -> Option<u32>;
    /// What remains of a freed entry; most keep nothing.
    fn freed(&self, next: u32) -> Self
    where
        Self: Sized,
    {
        Self::free(next)
    }
}

/// A slab whose entries keep their index, not their address.
///
/// Invariant: an index below `len()` is in use, or on the free list exactly once.
#[derive(Debug)]
pub(super) struct Pool<T> {
    chunks: Vec<Vec<T>>,
    first_free: u32,
    used_count: u32,
}

impl<T: Entry> Pool<T> {
    pub(super) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            first_free: u32::MAX,
            used_count: 0,
        }
    }

    /// Entries in use.
    pub(super) const fn used_count(&self) -> u32 {
        self.used_count
    }

    /// Indexes ever used: `0..len()`.
    #[allow(clippy::cast_possible_truncation)] // callers bound their pools to 24 bits
    pub(super) fn len(&self) -> u32 {
        match self.chunks.last() {
            Some(last) => ((self.chunks.len() - 1) * CHUNK_ENTRIES + last.len()) as u32,
            None => 0,
        }
    }

    /// Keeps what `fill` makes of the entry's remains, and returns its index.
    pub(super) fn insert_with(&mut self, fill: impl FnOnce(T) -> T) -> u32 {
        self.used_count += 1;
        if self.first_free != u32::MAX {
            let index = self.first_free;
            let old = std::mem::replace(&mut self[index], T::free(u32::MAX));
            self.first_free = old
                .next_free()
                .expect("the free list holds free entries only");
            self[index] = fill(old);
            return index;
        }
        let index = self.len();
        if (index as usize).is_multiple_of(CHUNK_ENTRIES) {
            self.chunks.push(Vec::with_capacity(CHUNK_ENTRIES));
        }
        let last = self
            .chunks
            .last_mut()
            .expect("a chunk was just made sure of");
        last.push(fill(T::free(u32::MAX)));
        index
    }

    /// Keeps `entry` and returns its index.
    pub(super) fn insert(&mut self, entry: T) -> u32 {
        self.insert_with(|_| entry)
    }

    /// Frees the entry and gives back what was in it.
    pub(super) fn remove(&mut self, index: u32) -> T {
        assert!(self[index].next_free().is_none(), "an entry is freed once");
        let freed = self[index].freed(self.first_free);
        self.first_free = index;
        self.used_count -= 1;
        std::mem::replace(&mut self[index], freed)
    }
}

impl<T> Index<u32> for Pool<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.chunks[(index >> CHUNK_BITS) as usize][index as usize % CHUNK_ENTRIES]
    }
}

impl<T> IndexMut<u32> for Pool<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[(index >> CHUNK_BITS) as usize][index as usize % CHUNK_ENTRIES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Thing {
        Free(u32),
        Used(u32),
    }

    impl Entry for Thing {
        fn free(next: u32) -> Self {
            Self::Free(next)
        }
        fn next_free(&self) -> Option<u32> {
            match self {
                Self::Free(next) => Some(*next),
                Self::Used(_) => None,
            }
        }
    }

    #[test]
    fn indexes_are_dense_reused_and_never_shared() {
        let mut pool = Pool::new();
        let count = 3 * CHUNK_ENTRIES as u32 + 5;
        for number in 0..count {
            assert_eq!(pool.insert(Thing::Used(number)), number);
        }
        for number in (0..count).step_by(3) {
            assert!(matches!(pool.remove(number), Thing::Used(was) if was == number));
        }
        let mut reused: Vec<u32> = (0..count)
            .step_by(3)
            .map(|_| pool.insert(Thing::Used(7)))
            .collect();
        reused.sort_unstable();
        assert_eq!(reused, (0..count).step_by(3).collect::<Vec<_>>());
        assert_eq!((pool.used_count(), pool.len()), (count, count));
    }

    #[test]
    #[should_panic(expected = "freed once")]
    fn freeing_twice_is_noticed() {
        let mut pool = Pool::new();
        let index = pool.insert(Thing::Used(1));
        pool.remove(index);
        pool.remove(index);
    }
}
