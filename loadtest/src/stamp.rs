//! What a published payload carries, so that each delivery can be checked and timed.
//!
//! ```text
//! 0        4         8                 16         20
//! | publisher | sequence | intended time ns | checksum | filler … |   little-endian
//! ```
//!
//! The checksum covers all bytes but its own.

/// Bytes of the smallest payload.
pub const STAMP_BYTES_MIN: usize = 20;

/// Who published what, and when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The publisher's number, over all rooms.
    pub publisher: u32,
    /// Counts from 0 for each publisher.
    pub sequence: u32,
    /// The moment it should have left, by [`crate::clock::now_ns`]: a late publisher adds to the latency.
    pub due_ns: u64,
}

impl Stamp {
    /// Fills `payload` with this stamp.
    ///
    /// # Panics
    /// When `payload` is shorter than [`STAMP_BYTES_MIN`].
    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.publisher.to_le_bytes());
        payload[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        payload[8..16].copy_from_slice(&self.due_ns.to_le_bytes());
        let filler = (self.sequence ^ self.publisher.rotate_left(16)).to_le_bytes();
        let (words, rest) = payload[STAMP_BYTES_MIN..].as_chunks_mut::<4>();
        words.fill(filler);
        rest.copy_from_slice(&filler[..rest.len()]);
        let checksum = checksum(payload);
        payload[16..20].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the stamp of `payload`. `None`: it is not what a publisher wrote.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let head = payload.first_chunk::<STAMP_BYTES_MIN>()?;
        let stamp = Self {
            publisher: u32::from_le_bytes([head[0], head[1], head[2], head[3]]),
            sequence: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
            due_ns: u64::from_le_bytes(head[8..16].try_into().ok()?),
        };
        let carried = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
        (carried == checksum(payload)).then_some(stamp)
    }
}

/// A multiply-and-rotate sum, eight bytes a step: it finds accidents, and is no defence against a forger.
fn checksum(payload: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = payload.len() as u64;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(FACTOR).rotate_left(29);
    for part in [&payload[..16], &payload[STAMP_BYTES_MIN..]] {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            add(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            add(u64::from_le_bytes(word));
        }
    }
    (sum >> 32) as u32 ^ sum as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_from_every_size() {
        let stamp = Stamp {
            publisher: 7,
            sequence: 1_234_567,
            due_ns: u64::MAX / 3,
        };
        for bytes in STAMP_BYTES_MIN..300 {
            let mut payload = vec![0xee; bytes];
            stamp.write(&mut payload);
            assert_eq!(Stamp::read(&payload), Some(stamp), "{bytes} bytes");
        }
        assert_eq!(Stamp::read(&[0; STAMP_BYTES_MIN - 1]), None);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut payload = vec![0; 61];
        Stamp {
            publisher: 3,
            sequence: 9,
            due_ns: 42,
        }
        .write(&mut payload);
        for bit in 0..payload.len() * 8 {
            payload[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::read(&payload), None, "bit {bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(
            Stamp::read(&payload[..60]).is_none(),
            "a cut tail is found, too"
        );
    }
}
