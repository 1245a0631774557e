//! How large the published payloads are: one size, a range, or sizes with weights.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::random::mix;
use crate::stamp::STAMP_BYTES_MIN;

/// Bytes of the largest payload.
const SIZE_BYTES_MAX: u32 = 1 << 20;

/// A distribution of payload sizes. Each message's size follows from its publisher and sequence, so that a receiver
/// knows it, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    text: String,
    /// Sizes from, sizes to (inclusive), and the cumulated weight up to this entry.
    parts: Vec<(u32, u32, u32)>,
}

impl Size {
    /// Bytes of the payload of a publisher's message.
    pub fn of(&self, publisher: u32, sequence: u32) -> usize {
        let [(from, to, _)] = self.parts[..] else {
            return self.drawn(publisher, sequence);
        };
        if from == to {
            return from as usize;
        }
        self.drawn(publisher, sequence)
    }

    fn drawn(&self, publisher: u32, sequence: u32) -> usize {
        let random = mix(u64::from(publisher) << 32 | u64::from(sequence));
        let total = self.parts[self.parts.len() - 1].2;
        let point = (random >> 32) as u32 % total;
        let (from, to, _) = self.parts[self
            .parts
            .partition_point(|(_, _, cumulated)| *cumulated <= point)];
        from as usize + (random as u32 % (to - from + 1)) as usize
    }
}

impl FromStr for Size {
    type Err = String;

    /// Reads `128`, `64-4096` (each alike), or `128:90,4096:9,65536:1` (with weights).
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| {
            word.trim().parse::<u32>().map_err(|_| {
                format!("{word:?} is no number of bytes; write 128, 64-4096, or 128:90,4096:10")
            })
        };
        let mut parts = Vec::new();
        let mut cumulated = 0_u32;
        for part in text.split(',') {
            let (range, weight) = match part.split_once(':') {
                Some((range, weight)) => (range, number(weight)?),
                None => (part, 1),
            };
            let (from, to) = match range.split_once('-') {
                Some((from, to)) => (number(from)?, number(to)?),
                None => (number(range)?, number(range)?),
            };
            cumulated = cumulated.checked_add(weight).unwrap_or(0);
            if weight == 0 || cumulated == 0 {
                return Err("weights are at least 1, and 2^32 in all at most".into());
            }
            if from > to || (from as usize) < STAMP_BYTES_MIN || to > SIZE_BYTES_MAX {
                return Err(format!(
                    "a payload is {STAMP_BYTES_MIN} to {SIZE_BYTES_MAX} bytes: the stamp needs the first {STAMP_BYTES_MIN}"
                ));
            }
            parts.push((from, to, cumulated));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.text
    }
}

impl Default for Size {
    fn default() -> Self {
        Self {
            text: "128".to_owned(),
            parts: vec![(128, 128, 1)],
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_their_weights_and_stay_within_their_ranges() {
        let size: Size = "100:90,200-300:10".parse().unwrap();
        let sizes: Vec<usize> = (0..10_000).map(|sequence| size.of(3, sequence)).collect();
        let small = sizes.iter().filter(|bytes| **bytes == 100).count();
        assert!((8_800..9_200).contains(&small), "{small} of 10000");
        assert!(
            sizes
                .iter()
                .all(|bytes| *bytes == 100 || (200..=300).contains(bytes))
        );
        assert!(sizes.contains(&200) && sizes.contains(&300));
        assert_eq!(size.of(3, 77), size.of(3, 77));
        assert_eq!("64".parse::<Size>().unwrap().of(1, 2), 64);
    }

    #[test]
    fn what_cannot_be_published_is_refused_in_words() {
        for wrong in [
            "",
            "x",
            "15",
            "16-",
            "300-200",
            "16-32",
            "128:0",
            "1048577",
            "20:1,19:1",
            "-5",
        ] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        assert!("20".parse::<Size>().is_ok() && "20-1048576".parse::<Size>().is_ok());
    }
}
