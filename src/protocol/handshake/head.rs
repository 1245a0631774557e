//! Lines of a request's head, and the search for its end. Every byte is looked at once, however it arrives.
//!
//! What can be seen to be wrong is refused at once: a byte that no head has, a line that does not end in CRLF, first
//! bytes that are no method. So neither a TLS hello nor a port scanner waits for the handshake timeout.

use super::{Options, Refusal};
use crate::metrics::RefusalKind;

/// Bytes of a method. The longest that is registered (`UPDATEREDIRECTREF`) has 17.
const METHOD_BYTES_MAX: usize = 20;

/// How far the search for a request's end has come. Kept beside a partial request; 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadScan {
    scanned_bytes: u32,
}

impl HeadScan {
    /// Looks at what has come since the last call. `bytes` is the request from its first byte on.
    ///
    /// Gives the bytes of the head, the empty line included, once it is whole; then
    /// [`parse_request`](super::parse_request) will not answer `Ok(None)`.
    ///
    /// # Errors
    /// - `BadRequest`: a bare CR or LF, another control character, or first bytes that are no method.
    /// - `UriTooLong`, `HeadersTooLarge`: the head does not end within `options.bytes_max`.
    pub fn advance(&mut self, bytes: &[u8], options: &Options) -> Result<Option<usize>, Refusal> {
        let window = &bytes[..bytes.len().min(options.bytes_max)];
        let mut at = self.scanned_bytes as usize;
        if at <= METHOD_BYTES_MAX {
            check_method(window)?;
        }
        while let Some(end) = line_end(window, at)? {
            at = end + 2;
            if end == 0 || window[..end].ends_with(b"\r\n") {
                return Ok(Some(at));
            }
        }
        if window.len() == options.bytes_max {
            return Err(refuse_length(window));
        }
        // A CR at the very end is judged when its LF is there.
        let judged = window.len() - usize::from(window.last() == Some(&b'\r'));
        self.scanned_bytes = u32::try_from(judged).unwrap_or(u32::MAX);
        Ok(None)
    }
}

/// Finds the end of the line that `at` is in: the index of its CR, behind which is the LF. `Ok(None)`: not here yet.
///
/// # Errors
/// `BadRequest`: a bare CR or LF, or a control character other than HTAB (RFC 9112 §2.2, RFC 9110 §5.5).
#[inline]
pub(super) fn line_end(bytes: &[u8], mut at: usize) -> Result<Option<usize>, Refusal> {
    loop {
        at = control_position(bytes, at);
        match bytes.get(at) {
            None => return Ok(None),
            Some(b'\t') => at += 1,
            Some(b'\r') => match bytes.get(at + 1) {
                None => return Ok(None),
                Some(b'\n') => return Ok(Some(at)),
                Some(_) => {
                    return Err(Refusal::bad("a CR without its LF: end each line with CRLF"));
                }
            },
            Some(b'\n') => {
                return Err(Refusal::bad("a LF without its CR: end each line with CRLF"));
            }
            Some(_) => {
                return Err(Refusal::bad(
                    "a control character: this port speaks HTTP/1.1 without TLS",
                ));
            }
        }
    }
}

/// The index of the first control character (below 0x20, or 0x7f) from `at` on, or the length.
#[inline]
fn control_position(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    // Eight bytes at a time: parsing a browser's 503 bytes takes 0.25 µs, with single bytes 0.58
    // (benches/protocol.rs, `handshake/parse/browser`). A borrow spoils only what is behind the first hit.
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let low = word.wrapping_sub(ONES * 0x20) & !word;
        let delete = word ^ (ONES * 0x7f);
        let delete = delete.wrapping_sub(ONES) & !delete;
        let hits = (low | delete) & TOPS;
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while at < bytes.len() && !bytes[at].is_ascii_control() {
        at += 1;
    }
    at
}

/// Looks whether the first bytes can be a method: a token and a space. For requests whose first line is not whole yet.
///
/// # Errors
/// `BadRequest`: no HTTP method is spelt like this.
pub(super) fn check_method(bytes: &[u8]) -> Result<(), Refusal> {
    let end = bytes
        .iter()
        .position(|&byte| !is_token_byte(byte))
        .unwrap_or(bytes.len());
    let ended_well = end == bytes.len() || (end > 0 && bytes[end] == b' ');
    if ended_well && end <= METHOD_BYTES_MAX {
        Ok(())
    } else {
        Err(Refusal::bad(
            "no HTTP method: this port speaks HTTP/1.1 without TLS",
        ))
    }
}

/// Why a head that does not end within the limit is refused.
#[cold]
pub(super) fn refuse_length(head: &[u8]) -> Refusal {
    if head.contains(&b'\n') {
        Refusal::of(RefusalKind::HeadersTooLarge)
    } else {
        Refusal::of(RefusalKind::UriTooLong)
    }
}

/// Whether `byte` may be in a token (RFC 9110 §5.6.2).
#[inline]
pub(super) const fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

static TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < marks.len() {
        table[marks[index] as usize] = true;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Edge;
    use super::*;

    fn options(bytes_max: usize) -> Options {
        Options {
            bytes_max,
            header_count_max: 16,
            origins: Vec::new(),
            edge: Edge::default(),
        }
    }

    /// Feeds `bytes` one by one; what came out and after how many.
    fn drip(bytes: &[u8], options: &Options) -> (usize, Result<Option<usize>, Refusal>) {
        let mut scan = HeadScan::default();
        for end in 1..=bytes.len() {
            let found = scan.advance(&bytes[..end], options);
            if found != Ok(None) {
                return (end, found);
            }
        }
        (bytes.len(), Ok(None))
    }

    #[test]
    fn the_end_is_found_at_its_last_byte() {
        let head = b"GET / HTTP/1.1\r\nHost:\ta\r\n\r\n";
        assert_eq!(
            drip(head, &options(1_000)),
            (head.len(), Ok(Some(head.len())))
        );
        let longer = [&head[..], b"\x81\x80\r\n\r\n"].concat();
        assert_eq!(
            HeadScan::default().advance(&longer, &options(1_000)),
            Ok(Some(head.len()))
        );
    }

    #[test]
    fn each_byte_is_looked_at_once() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n";
        let mut scan = HeadScan::default();
        assert_eq!(scan.advance(head, &options(1_000)), Ok(None));
        // What was judged is not looked at again: the scan would refuse the first byte otherwise.
        let changed = [&[0; 25][..], b"Accept"].concat();
        assert_eq!(head.len(), 25);
        assert_eq!(scan.advance(&changed, &options(1_000)), Ok(None));
    }

    #[test]
    fn garbage_is_refused_at_the_byte_that_shows_it() {
        for (bytes, seen) in [
            (&b"\x16\x03\x01\x02\x00"[..], 1), // a TLS hello
            (b"\r\n", 1),
            (b" GET", 1),
            (b"GET\tx", 4),
            (b"GET / HTTP/1.1\nHost", 15),
            (b"GET / HTTP/1.1\rHost", 16),
            (b"GET / HTTP/1.1\r\nHost: \x00", 23),
            (b"GET / HTTP/1.1\r\nHost: \x7f", 23),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAA", METHOD_BYTES_MAX + 1),
        ] {
            let (end, found) = drip(bytes, &options(1_000));
            assert_eq!(
                found.unwrap_err().kind,
                RefusalKind::BadRequest,
                "{bytes:?}"
            );
            assert_eq!(end, seen, "{bytes:?}");
        }
    }

    #[test]
    fn a_head_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(drip(head, &options(head.len())).1, Ok(Some(head.len())));
        let refused = drip(head, &options(head.len() - 1)).1.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::HeadersTooLarge);
        let refused = drip(head, &options(15)).1.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::UriTooLong);
    }

    proptest! {
        #[test]
        fn control_characters_are_found_like_by_the_plain_loop(bytes in prop::collection::vec(prop_oneof![4 => 0x20u8..=0xff, 1 => any::<u8>()], 0..60), at in 0usize..8) {
            let at = at.min(bytes.len());
            let expected = (at..bytes.len()).find(|&index| bytes[index].is_ascii_control()).unwrap_or(bytes.len());
            prop_assert_eq!(control_position(&bytes, at), expected);
        }
    }
}
