//! UTF-8 checked as it arrives, across fragments and reads (RFC 6455 §8.1, RFC 3629 §4).
//!
//! What is kept between two pieces is the unfinished character only: how many bytes it still needs, and what the next
//! of them may be. Overlong forms, surrogates and what lies beyond U+10FFFF are known at the second byte by that range.

/// Below this many bytes simdutf8 has no vectors to use, and the standard library tells where a character is cut.
const BULK_BYTES_MIN: usize = 64;

/// The text is not UTF-8, and nothing that follows can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InvalidUtf8;

/// Checks a text that comes in pieces.
///
/// An error is told with the piece that holds the first byte that cannot continue a valid text, not later. After an
/// error the validator is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Utf8Validator {
    /// Bytes that the unfinished character still needs: 0 to 3.
    needed: u8,
    /// The next byte's range, both ends in it. Counts only while `needed` is not 0.
    lower: u8,
    upper: u8,
}

impl Utf8Validator {
    /// Checks the next piece.
    ///
    /// # Errors
    /// `InvalidUtf8` when no text that begins with all the bytes so far is UTF-8.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        let mut rest = bytes;
        while self.needed > 0 {
            let Some((&byte, behind)) = rest.split_first() else {
                return Ok(());
            };
            self.step(byte)?;
            rest = behind;
        }
        if rest.len() < BULK_BYTES_MIN {
            match std::str::from_utf8(rest) {
                Ok(_) => Ok(()),
                Err(error) if error.error_len().is_some() => Err(InvalidUtf8),
                Err(error) => self.push_tail(&rest[error.valid_up_to()..]),
            }
        } else {
            let (whole, tail) = rest.split_at(rest.len() - unfinished_bytes(rest));
            simdutf8::basic::from_utf8(whole).map_err(|_| InvalidUtf8)?;
            self.push_tail(tail)
        }
    }

    /// Whether the text could end here: no character is unfinished.
    #[inline]
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.needed == 0
    }

    fn push_tail(&mut self, tail: &[u8]) -> Result<(), InvalidUtf8> {
        tail.iter().try_for_each(|&byte| self.step(byte))
    }

    fn step(&mut self, byte: u8) -> Result<(), InvalidUtf8> {
        if self.needed > 0 {
            if byte < self.lower || byte > self.upper {
                return Err(InvalidUtf8);
            }
            *self = Self {
                needed: self.needed - 1,
                lower: 0x80,
                upper: 0xbf,
            };
            return Ok(());
        }
        // The ranges of RFC 3629 §4.
        let (needed, lower, upper) = match byte {
            0x00..=0x7f => (0, 0x80, 0xbf),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xe1..=0xec | 0xee..=0xef => (2, 0x80, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            0x80..=0xc1 | 0xf5..=0xff => return Err(InvalidUtf8),
        };
        *self = Self {
            needed,
            lower,
            upper,
        };
        Ok(())
    }
}

/// How many bytes at the end of `bytes` begin a character that needs more: 0 to 3. Judges nothing else.
fn unfinished_bytes(bytes: &[u8]) -> usize {
    for (behind, &byte) in bytes.iter().rev().take(3).enumerate() {
        let character_bytes = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            0x80..=0xbf => continue,
            0x00..=0x7f => return 0,
        };
        return if behind + 1 < character_bytes {
            behind + 1
        } else {
            0
        };
    }
    0
}

const _: () = assert!(size_of::<Utf8Validator>() <= 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes byte by byte; the index of the byte that was refused.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut validator = Utf8Validator::default();
        bytes
            .iter()
            .position(|byte| validator.push(std::slice::from_ref(byte)).is_err())
    }

    /// What the standard library says: the index of the first byte that cannot continue a valid text.
    fn refused_at_by_std(bytes: &[u8]) -> Option<usize> {
        (0..bytes.len()).find(|&index| {
            matches!(std::str::from_utf8(&bytes[..=index]), Err(error) if error.error_len().is_some())
        })
    }

    #[test]
    fn an_error_is_told_at_the_first_byte_that_cannot_continue() {
        for (bytes, index) in [
            (&b"\xc0\x80"[..], 0),                // overlong, two bytes
            (b"\xc1", 0),                         // overlong
            (b"\x80", 0),                         // a continuation of nothing
            (b"\xe0\x9f\x80", 1),                 // overlong, three bytes
            (b"\xf0\x8f\xbf\xbf", 1),             // overlong, four bytes
            (b"\xed\xa0\x80", 1),                 // the first surrogate
            (b"\xed\xbf\xbf", 1),                 // the last surrogate
            (b"\xf4\x90\x80\x80", 1),             // U+110000
            (b"\xf5", 0),                         // beyond any
            (b"\xff", 0),                         // beyond any
            (b"\xce\xba\xe1\xbd\xb9\xf4\x90", 6), // as Autobahn 6.4 has it
            (b"\xe2\x28", 1),                     // a lead without its continuation
            (b"\xe2\x82\x28", 2),
            (b"\xf0\x9f\x98\x41", 3),
        ] {
            assert_eq!(refused_at(bytes), Some(index), "{bytes:x?}");
            let long = [&[b'a'; 100][..], bytes, &[b'b'; 100]].concat();
            assert_eq!(
                Utf8Validator::default().push(&long),
                Err(InvalidUtf8),
                "{bytes:x?} within a long piece"
            );
        }
    }

    #[test]
    fn the_edges_of_each_range_are_valid() {
        for text in [
            "\0",
            "\x7f",
            "\u{80}",
            "\u{7ff}",
            "\u{800}",
            "\u{d7ff}",
            "\u{e000}",
            "\u{ffff}",
            "\u{10000}",
            "\u{10ffff}",
        ] {
            let mut validator = Utf8Validator::default();
            for (index, byte) in text.bytes().enumerate() {
                assert_eq!(validator.push(&[byte]), Ok(()), "{text:?}");
                assert_eq!(validator.is_complete(), index + 1 == text.len(), "{text:?}");
            }
        }
    }

    #[test]
    fn all_pairs_and_the_leads_of_all_triples_are_judged_like_std() {
        for first in 0..=255 {
            for second in 0..=255 {
                for third in [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff] {
                    let bytes = [first, second, third];
                    assert_eq!(refused_at(&bytes), refused_at_by_std(&bytes), "{bytes:x?}");
                }
            }
        }
    }

    #[test]
    fn a_character_cut_at_the_end_of_a_long_piece_is_carried_over() {
        for text in ["é", "€", "😀"] {
            for cut in 1..text.len() {
                let (front, back) = text.as_bytes().split_at(cut);
                let mut validator = Utf8Validator::default();
                assert_eq!(validator.push(&[&[b'x'; 200][..], front].concat()), Ok(()));
                assert!(!validator.is_complete());
                assert_eq!(validator.push(&[back, &[b'x'; 200][..]].concat()), Ok(()));
                assert!(validator.is_complete());
            }
        }
    }

    /// Texts, broken texts and noise, long enough for the bulk path.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let text = prop::collection::vec(any::<char>(), 0..80)
            .prop_map(|text| text.into_iter().collect::<String>().into_bytes());
        let broken = (text.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(mut bytes, index, byte)| {
                if !bytes.is_empty() {
                    let index = index.index(bytes.len());
                    bytes[index] = byte;
                }
                bytes
            },
        );
        prop_oneof![text, broken, prop::collection::vec(any::<u8>(), 0..200)]
    }

    proptest! {
        #[test]
        fn any_split_is_judged_like_std(bytes in any_bytes(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let refused = refused_at_by_std(&bytes);
            let (mut validator, mut start) = (Utf8Validator::default(), 0);
            for end in ends {
                let pushed = validator.push(&bytes[start..end]);
                prop_assert_eq!(pushed.is_err(), refused.is_some_and(|index| index < end));
                if pushed.is_err() {
                    return Ok(());
                }
                prop_assert_eq!(validator.is_complete(), std::str::from_utf8(&bytes[..end]).is_ok());
                start = end;
            }
        }
    }
}
