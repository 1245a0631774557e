//! A look at each target before the run: one connection, made the plain way, so that what is wrong is said at once and in
//! the server's own words.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use throng::protocol::client::{ResponseError, encode_key, parse_response};

use crate::clock::now_ns;
use crate::failure::Failure;
use crate::target::Target;
use crate::words;

/// For how long the rest of a refusal may be on its way.
const BODY_PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Characters of a refusal's body that are shown.
const BODY_CHARS_MAX: usize = 300;

/// Makes one connection to the target and ends it; waits at most `patience` for the connect and for the answer.
///
/// # Errors
/// What is wrong with the target: nobody listens, no answer, an upgrade refused (with status and body).
pub fn probe(target: &Target, patience: Duration) -> Result<(), Failure> {
    let fail = |what: String| Failure::Usage(format!("{}: {what}", target.address));
    let path = target.path("probe", 0);
    let late = |what: &str| {
        fail(format!(
            "{what} within {} s (see --patience and --handshake-timeout)",
            patience.as_secs_f64()
        ))
    };
    let mut stream = TcpStream::connect_timeout(&target.address, patience).map_err(|error| {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => late("no connection"),
            _ => fail(format!(
                "cannot connect: {error}; is the server running there?"
            )),
        }
    })?;
    let key = encode_key([now_ns(), u64::from(std::process::id())]);
    let mut request = Vec::new();
    target.request(&mut request, "probe", 0, &key);
    let mut answer = Answer {
        bytes: Vec::new(),
        until: Instant::now() + patience,
    };
    let end = stream.write_all(&request).and_then(|()| {
        answer.read(&mut stream, |bytes| {
            !matches!(parse_response(bytes, &key), Ok(None))
        })
    });
    match parse_response(&answer.bytes, &key) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => match end {
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                Err(late(&format!("no answer to the upgrade of {path}")))
            }
            Err(error) if answer.bytes.is_empty() => {
                Err(fail(format!("no answer to the upgrade of {path}: {error}")))
            }
            _ => Err(fail(format!(
                "the server ended the stream after {} bytes of an answer to the upgrade of {path}",
                answer.bytes.len()
            ))),
        },
        Err(error) => {
            if error.status.is_some_and(|status| status != 101) {
                // The body may come behind the head; whatever ends the reading, the head is there.
                answer.until = Instant::now() + BODY_PATIENCE;
                let _ = answer.read(&mut stream, has_whole_body);
            }
            let error = parse_response(&answer.bytes, &key).err().unwrap_or(error);
            Err(fail(format!(
                "the upgrade of {path} was refused: {}",
                in_a_line(&error)
            )))
        }
    }
}

struct Answer {
    bytes: Vec<u8>,
    until: Instant,
}

impl Answer {
    /// Reads until `is_whole`, or the end of the stream, or for too long.
    fn read(&mut self, stream: &mut TcpStream, is_whole: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while !is_whole(&self.bytes) && self.bytes.len() < ANSWER_BYTES_MAX {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a response has as many bytes of body as its `Content-Length` says. Without one, the stream's end tells.
fn has_whole_body(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .is_some_and(|length| bytes.len() - (end + 4) >= length)
}

/// A refusal in one line that is safe to print: white space as one blank, no control characters, and not a whole page.
fn in_a_line(error: &ResponseError) -> String {
    let line = words::in_a_line(&error.to_string(), BODY_CHARS_MAX);
    line.trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_whole_when_it_is_as_long_as_announced() {
        let head = b"HTTP/1.1 503 Full\r\ncontent-LENGTH: 4\r\n\r\n".to_vec();
        assert!(!has_whole_body(&head));
        assert!(!has_whole_body(&[&head[..], b"ful"].concat()));
        assert!(has_whole_body(&[&head[..], b"full"].concat()));
        assert!(!has_whole_body(b"HTTP/1.1 503 Full\r\n\r\nmore may come"));
        assert!(!has_whole_body(b"HTTP/1.1 503"));
    }

    #[test]
    fn a_refusal_is_one_safe_line() {
        let line = |body: &str| {
            in_a_line(&ResponseError {
                status: Some(403),
                body: body.into(),
            })
        };
        assert_eq!(line("no\r\n\t entry\u{1b}[2J\n"), "HTTP 403: no entry [2J");
        assert_eq!(line(""), "HTTP 403");
        assert_eq!(line(&"x".repeat(1000)).chars().count(), BODY_CHARS_MAX + 1);
    }
}
