//! One exchange over TCP: connects, writes, reads until the answer is whole, within one deadline. It knows no HTTP.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// Sends `request` to a host's port and gives back the answer, which is whole when `read` makes something of it. All
/// addresses of the host are tried in turn.
///
/// `read` is handed all bytes so far, and whether the peer has ended.
///
/// # Errors
/// Those of the sockets; `TimedOut` after `timeout`; `InvalidData` with the words of `read`, or for an answer longer than
/// `bytes_max`; `UnexpectedEof` when the peer ended and `read` wanted more.
pub fn exchange<T>(
    host: &str,
    port: u16,
    request: &[u8],
    bytes_max: usize,
    timeout: Duration,
    read: impl Fn(&[u8], bool) -> Result<Option<T>, &'static str>,
) -> io::Result<T> {
    let deadline = Instant::now() + timeout;
    let mut stream = connect(host, port, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request).map_err(in_time)?;
    let mut bytes = Vec::new();
    let mut part = vec![0; READ_BYTES];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = match stream.read(&mut part) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(in_time(error)),
        };
        bytes.extend_from_slice(&part[..count]);
        let wrong = |words: &str| io::Error::new(ErrorKind::InvalidData, words);
        if let Some(whole) = read(&bytes, count == 0).map_err(wrong)? {
            return Ok(whole);
        }
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > bytes_max {
            return Err(wrong("the answer is too long"));
        }
    }
}

fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What is left until the deadline, never nothing.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// A time-out of a socket is told as `WouldBlock`.
fn in_time(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const ENOUGH: Duration = Duration::from_secs(20);

    /// Asks a peer that reads four bytes, writes `answer` and then ends, or stays.
    fn ask(answer: &'static [u8], stays: bool, timeout: Duration) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(answer).unwrap();
            if stays {
                // Ends when the other side does.
                let _ = stream.read(&mut asked);
            }
        });
        let whole = |bytes: &[u8], is_end: bool| match bytes {
            [b'!', ..] => Err("that was rude"),
            [.., b'.'] => Ok(Some(bytes.to_vec())),
            _ if is_end && bytes == b"end" => Ok(Some(bytes.to_vec())),
            _ => Ok(None),
        };
        let got = exchange("127.0.0.1", port, b"ask?", 8, timeout, whole);
        peer.join().unwrap();
        got
    }

    #[test]
    fn an_answer_is_taken_as_soon_as_it_is_whole() {
        assert_eq!(ask(b"yes.", true, ENOUGH).unwrap(), b"yes.");
        assert_eq!(ask(b"end", false, ENOUGH).unwrap(), b"end");
    }

    #[test]
    fn what_goes_wrong_is_told_by_its_kind() {
        let kind = |answer, stays, timeout| ask(answer, stays, timeout).unwrap_err().kind();
        assert_eq!(kind(b"!", true, ENOUGH), ErrorKind::InvalidData);
        assert_eq!(kind(b"much too long", true, ENOUGH), ErrorKind::InvalidData);
        assert_eq!(kind(b"cut", false, ENOUGH), ErrorKind::UnexpectedEof);
        let soon = Duration::from_millis(200);
        assert_eq!(kind(b"slow", true, soon), ErrorKind::TimedOut);
    }

    #[test]
    fn a_port_where_nobody_listens_is_refused() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let error = exchange("127.0.0.1", port, b"", 8, ENOUGH, |_, _| Ok(Some(()))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
