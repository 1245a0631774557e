//! Masking of payloads (RFC 6455 §5.3): XOR with four bytes, over and over. Masking twice is unmasking.
//!
//! `offset` is where in the frame's payload the slice begins, so a payload may come in any pieces.

/// Bytes that are copied and masked at once: one round trip through registers.
const BLOCK_BYTES: usize = 64;

/// The mask as it falls on a slice that begins `offset` bytes into the payload, twice, first byte lowest.
#[inline]
const fn word_mask(mask: [u8; 4], offset: usize) -> u64 {
    let word = u32::from_le_bytes(mask).rotate_right(8 * (offset & 3) as u32) as u64;
    word << 32 | word
}

/// Masks or unmasks `bytes` where they lie.
#[inline]
pub fn unmask_in_place(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    apply(bytes, word_mask(mask, offset));
}

/// Appends `bytes` masked or unmasked to `out`: copy and XOR in one pass.
#[inline]
pub fn unmask_extend(out: &mut Vec<u8>, bytes: &[u8], mask: [u8; 4], offset: usize) {
    let key = word_mask(mask, offset);
    out.reserve(bytes.len());
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    for block in blocks {
        let mut block = *block;
        apply(&mut block, key);
        out.extend_from_slice(&block);
    }
    let start = out.len();
    out.extend_from_slice(rest);
    apply(&mut out[start..], key);
}

/// Words first, which the compiler turns into vectors, then at most seven bytes.
#[inline]
fn apply(bytes: &mut [u8], key: u64) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_le_bytes(*word) ^ key).to_le_bytes();
    }
    let mut key = key;
    for byte in rest {
        *byte ^= key as u8;
        key >>= 8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(bytes: &[u8], mask: [u8; 4], offset: usize) -> Vec<u8> {
        bytes
            .iter()
            .enumerate()
            .map(|(index, byte)| byte ^ mask[(offset + index) % 4])
            .collect()
    }

    #[test]
    fn the_example_of_the_rfc_is_unmasked() {
        let mut hello = [0x7f, 0x9f, 0x4d, 0x51, 0x58]; // RFC 6455 §5.7
        unmask_in_place(&mut hello, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&hello, b"Hello");
    }

    #[test]
    fn every_length_at_every_offset_is_as_the_plain_loop_has_it() {
        let bytes: Vec<u8> = (0..300u32).map(|index| (index * 7 + 3) as u8).collect();
        let mask = [0x11, 0xa2, 0x3b, 0xc4];
        for length in 0..bytes.len() {
            for offset in [0, 1, 2, 3, 4, 5, usize::MAX - 3] {
                let expected = naive(&bytes[..length], mask, offset & 3);
                let mut place = bytes[..length].to_vec();
                unmask_in_place(&mut place, mask, offset & 3);
                assert_eq!(place, expected);
                let mut out = vec![9];
                unmask_extend(&mut out, &bytes[..length], mask, offset & 3);
                assert_eq!((out[0], &out[1..]), (9, &expected[..]));
            }
        }
    }

    proptest! {
        #[test]
        fn a_payload_in_pieces_is_unmasked_like_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..600), cut in any::<prop::sample::Index>(), mask: [u8; 4]
        ) {
            let expected = naive(&bytes, mask, 0);
            let cut = cut.index(bytes.len() + 1);
            let (front, back) = bytes.split_at(cut);
            let mut out = Vec::new();
            unmask_extend(&mut out, front, mask, 0);
            unmask_extend(&mut out, back, mask, cut);
            prop_assert_eq!(&out, &expected);
            let mut place = bytes.clone();
            unmask_in_place(&mut place[..cut], mask, 0);
            unmask_in_place(&mut place[cut..], mask, cut);
            prop_assert_eq!(&place, &expected);
            unmask_in_place(&mut place, mask, 0);
            prop_assert_eq!(&place, &bytes);
        }
    }
}
