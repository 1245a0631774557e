//! A mistake in the settings: where it is, what is wrong, what to write instead.

use std::fmt;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody gave one.
    Default,
    /// A line of the file, counted from 1.
    File {
        /// The line.
        line: usize,
    },
    /// A variable of the environment.
    Environment,
    /// A flag of the command line.
    Flag,
}

/// Something that the settings may not be. All of them are reported at once, and nothing starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where: `throng.toml:12`, `THRONG_SHARDS`, `--shards`, or the keys of a contradiction.
    pub place: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub instead: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            problem,
            instead,
        } = self;
        write!(f, "{place}: {problem}; {instead}")
    }
}

/// The candidate nearest to `word`, if it is near enough to be what was meant.
///
/// Near is an edit distance of a third of the length, of two in all but short words, or one name holding the other.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let held =
        |candidate: &str| word.len() >= 4 && (candidate.contains(word) || word.contains(candidate));
    let near = |candidate: &str| match word.len().max(candidate.len()) {
        length @ ..=4 => length / 3,
        length => (length / 3).max(2), // two neighbours swapped are two edits
    };
    candidates
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= near(candidate) || held(candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and substitutions of bytes between two names (Levenshtein).
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (left_index, left_byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = left_index + 1;
        for (right_index, right_byte) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(left_byte != right_byte);
            diagonal = row[right_index + 1];
            row[right_index + 1] = substituted.min(diagonal + 1).min(row[right_index] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_edits() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("shards", "shards"), 0);
        assert_eq!(edit_distance("shrads", "shards"), 2);
        assert_eq!(edit_distance("shard", "shards"), 1);
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let names = ["listen", "shards", "ping_interval_ms"];
        assert_eq!(nearest("shard", names.into_iter()), Some("shards"));
        assert_eq!(
            nearest("ping_interval", names.into_iter()),
            Some("ping_interval_ms")
        );
        assert_eq!(nearest("lisetn", names.into_iter()), Some("listen"));
        assert_eq!(nearest("colour", names.into_iter()), None);
    }
}
