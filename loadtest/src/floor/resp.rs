//! As much RESP2 as a bare publisher and its subscriber need: commands out, replies and messages in.

use std::io::{self, ErrorKind};

/// One reply, or one message.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The payload of a message on a channel.
    Message(&'a [u8]),
    /// An error in the server's words.
    Error(&'a [u8]),
    /// Anything else: the answer to a PUBLISH, a subscription that stands.
    Answer,
}

/// Appends a command.
pub fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    head(out, b'*', words.len());
    for word in words {
        head(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn head(out: &mut Vec<u8>, kind: u8, mut number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// The first reply of `bytes`, and how many bytes it has. `None`: more are needed.
///
/// # Errors
/// What came is not RESP2 as a publisher or a subscriber gets it.
pub fn next(bytes: &[u8]) -> io::Result<Option<(Incoming<'_>, usize)>> {
    let Some((kind, number, mut at)) = line(bytes)? else {
        return Ok(None);
    };
    match kind {
        b'*' => {}
        b'-' => return Ok(Some((Incoming::Error(&bytes[1..at - 2]), at))),
        _ => return Ok(Some((Incoming::Answer, at))),
    }
    let mut words = [&[][..]; 3];
    if number != words.len() {
        return Err(not_resp());
    }
    for word in &mut words {
        let Some((kind, length, after)) = line(bytes.get(at..).unwrap_or_default())? else {
            return Ok(None);
        };
        at += after;
        if kind == b'$' {
            let Some(found) = bytes.get(at..at + length) else {
                return Ok(None);
            };
            *word = found;
            at += length + 2;
        }
    }
    if at > bytes.len() {
        return Ok(None);
    }
    let incoming = match words[0] {
        b"message" => Incoming::Message(words[2]),
        _ => Incoming::Answer,
    };
    Ok(Some((incoming, at)))
}

/// Kind, number and bytes of the line that `bytes` begin with. A line that is a text has the number 0.
fn line(bytes: &[u8]) -> io::Result<Option<(u8, usize, usize)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\r') else {
        return Ok(None);
    };
    if end == 0 {
        return Err(not_resp());
    }
    if bytes.len() < end + 2 {
        return Ok(None);
    }
    let mut number = 0_usize;
    if matches!(bytes[0], b'*' | b'$' | b':') {
        for digit in &bytes[1..end] {
            if !digit.is_ascii_digit() || number > usize::MAX / 100 {
                return Err(not_resp());
            }
            number = number * 10 + usize::from(digit - b'0');
        }
    }
    Ok(Some((bytes[0], number, end + 2)))
}

fn not_resp() -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        "what came is not what Redis says to a publisher or a subscriber",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written_as_redis_reads_it() {
        let mut out = Vec::new();
        command(&mut out, &[b"PUBLISH", b"room", b"0123456789"]);
        assert_eq!(
            out,
            b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nroom\r\n$10\r\n0123456789\r\n"
        );
    }

    #[test]
    fn replies_are_read_however_they_are_split() {
        let all = [
            (&b":12\r\n"[..], Incoming::Answer),
            (
                b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
                Incoming::Answer,
            ),
            (
                b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n\0x\r\n",
                Incoming::Message(b"\r\n\0x"),
            ),
            (b"-ERR no\r\n", Incoming::Error(b"ERR no")),
        ];
        for (bytes, wanted) in all {
            for cut in 0..bytes.len() {
                assert_eq!(next(&bytes[..cut]).unwrap(), None, "{cut} of {bytes:?}");
            }
            let more = [bytes, b":1\r\n"].concat();
            assert_eq!(next(&more).unwrap(), Some((wanted, bytes.len())));
        }
        assert!(next(b"*2\r\n").is_err() && next(b"\r\n").is_err() && next(b":1x\r\n").is_err());
    }
}
