//! The opening handshake, the client's side (RFC 6455 §4.1). For load generators and tests: keys and masks are handed in.

use std::fmt;

use tungstenite::handshake::derive_accept_key;

/// Bytes of a response's head at most; a server that sends more is not waited for.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a refusal's body that are kept.
const BODY_BYTES_MAX: usize = 1024;

/// A `Sec-WebSocket-Key`: 16 bytes in base64.
pub type Key = [u8; 24];

/// The key whose 16 bytes are `seed`, which is to be drawn at random for each connection (RFC 6455 §4.1).
#[must_use]
pub fn encode_key(seed: [u64; 2]) -> Key {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from(seed[0]) << 64 | u128::from(seed[1]);
    let mut key = [b'='; 24];
    for (index, character) in key[..21].iter_mut().enumerate() {
        *character = ALPHABET[(bits >> (122 - 6 * index)) as usize & 63];
    }
    key[21] = ALPHABET[(bits << 4) as usize & 63];
    key
}

/// Appends the request for an upgrade of `path` at `host` to `out`. Both go out as they are: `path` is percent-encoded.
pub fn encode_request(out: &mut Vec<u8>, host: &str, path: &str, key: &Key) {
    for part in [
        b"GET ",
        path.as_bytes(),
        b" HTTP/1.1\r\nHost: ",
        host.as_bytes(),
    ] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\n\r\n");
}

/// Why a response is no upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseError {
    /// The HTTP status; `None` when the answer is no HTTP response.
    pub status: Option<u16>,
    /// The body of a refusal, as far as it had arrived, at most 1 KiB; otherwise what is wrong with the response.
    pub body: String,
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "HTTP {status}: {}", self.body.trim_end()),
            None => f.write_str(&self.body),
        }
    }
}

impl std::error::Error for ResponseError {}

/// Reads the answer to the request with `key`. `Ok(None)`: its head is not whole yet.
///
/// Gives the bytes of the head; what is behind them is frames.
///
/// # Errors
/// `ResponseError`: a refusal, another protocol, an accept key that does not belong to `key`, an extension or a
/// subprotocol that nobody asked for (RFC 6455 §4.1), or a head over 16 KiB.
pub fn parse_response(bytes: &[u8], key: &Key) -> Result<Option<usize>, ResponseError> {
    let faulty = |status, fault: &str| ResponseError {
        status,
        body: fault.to_owned(),
    };
    let window = &bytes[..bytes.len().min(RESPONSE_BYTES_MAX)];
    let Some(end) = window.windows(4).position(|window| window == b"\r\n\r\n") else {
        let length = window.len().min(5);
        if window[..length] != b"HTTP/"[..length] {
            return Err(faulty(None, "the answer is not HTTP"));
        }
        if window.len() == RESPONSE_BYTES_MAX {
            return Err(faulty(None, "the answer has too many bytes of headers"));
        }
        return Ok(None);
    };
    let head_bytes = end + 4;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| faulty(None, "the answer is not HTTP/1.1"))?;
    if status != 101 {
        let body = &bytes[head_bytes..];
        let body = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]).into_owned();
        return Err(ResponseError {
            status: Some(status),
            body,
        });
    }
    let (mut upgrade, mut connection, mut accept) = (false, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim_matches([' ', '\t']);
        let mut tokens = value
            .split(',')
            .map(|token| token.trim_matches([' ', '\t']));
        match name.to_ascii_lowercase().as_str() {
            "upgrade" => upgrade |= value.eq_ignore_ascii_case("websocket"),
            "connection" => connection |= tokens.any(|token| token.eq_ignore_ascii_case("upgrade")),
            "sec-websocket-accept" => accept |= value == derive_accept_key(key),
            "sec-websocket-extensions" | "sec-websocket-protocol" => {
                return Err(faulty(
                    Some(status),
                    "the server agreed to what nobody asked for",
                ));
            }
            _ => {}
        }
    }
    match (upgrade && connection, accept) {
        (true, true) => Ok(Some(head_bytes)),
        (false, _) => Err(faulty(
            Some(status),
            "the answer does not upgrade to a WebSocket",
        )),
        (true, false) => Err(faulty(
            Some(status),
            "the accept key does not belong to the request's key",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    use proptest::prelude::*;

    use super::*;
    use crate::metrics::RefusalKind;
    use crate::protocol::handshake::{
        Edge, Options, Refusal, Route, answer_refusal, answer_upgrade, parse_request, route,
    };
    use crate::protocol::{OpCode, Role, decode_header, encode_header, unmask_extend};

    const KEY: &Key = b"dGhlIHNhbXBsZSBub25jZQ==";

    fn answer(key: &Key) -> Vec<u8> {
        let options = Options {
            bytes_max: 1_000,
            header_count_max: 8,
            origins: Vec::new(),
            edge: Edge::default(),
        };
        let mut request = Vec::new();
        encode_request(&mut request, "a:1", "/rooms/x%20y", key);
        let request = parse_request(&request, &options).unwrap().unwrap();
        let Ok(Route::Upgrade(upgrade)) = route(&request, &options, false) else {
            panic!("not upgraded")
        };
        assert_eq!(upgrade.room, "x y");
        let mut out = Vec::new();
        answer_upgrade(&mut out, &upgrade.accept, b"");
        out
    }

    #[test]
    fn the_example_of_the_rfc_is_its_own_key() {
        let nonce = u128::from_be_bytes(*b"the sample nonce");
        assert_eq!(&encode_key([(nonce >> 64) as u64, nonce as u64]), KEY);
    }

    #[test]
    fn a_refusal_is_told_with_status_and_body() {
        let mut out = Vec::new();
        answer_refusal(
            &mut out,
            &Refusal {
                kind: RefusalKind::NodeFull,
                detail: "come back later",
            },
            Some(1),
        );
        let error = parse_response(&out, KEY).unwrap_err();
        assert_eq!(error.status, Some(503));
        assert!(error.to_string().contains("come back later"));
    }

    #[test]
    fn an_answer_that_is_no_upgrade_is_refused() {
        let good = String::from_utf8(answer(KEY)).unwrap();
        for (from, to) in [
            ("s3pPLM", "S3pPLM"),
            ("Upgrade: websocket\r\n", ""),
            ("Connection: Upgrade\r\n", ""),
            ("HTTP/1.1 101", "HTTP/1.0 101"),
            ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: x\r\n\r\n"),
        ] {
            assert!(good.contains(from));
            assert!(
                parse_response(good.replacen(from, to, 1).as_bytes(), KEY).is_err(),
                "{from:?} as {to:?}"
            );
        }
        assert_eq!(parse_response(b"SSH-2.0", KEY).unwrap_err().status, None);
        assert!(
            parse_response(
                &[&b"HTTP/1.1 101 "[..], &[b'x'; RESPONSE_BYTES_MAX]].concat(),
                KEY
            )
            .is_err()
        );
    }

    type Answer = fn(&[u8]) -> Vec<u8>;

    /// A stream in memory. What is written is kept; the first read gives what `answer` makes of it.
    struct Memory {
        written: Vec<u8>,
        answer: Option<Answer>,
        unread: Cursor<Vec<u8>>,
    }

    impl Memory {
        fn new(answer: Answer) -> Self {
            Self {
                written: Vec::new(),
                answer: Some(answer),
                unread: Cursor::default(),
            }
        }
    }

    impl Read for Memory {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if let Some(answer) = self.answer.take() {
                self.unread = Cursor::new(answer(&self.written));
                self.written.clear();
            }
            self.unread.read(into)
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Our server's side: the upgrade, and one text frame right behind it.
    fn serve(request: &[u8]) -> Vec<u8> {
        let options = Options {
            bytes_max: 1_000,
            header_count_max: 8,
            origins: Vec::new(),
            edge: Edge::default(),
        };
        let request = parse_request(request, &options).unwrap().unwrap();
        let Ok(Route::Upgrade(upgrade)) = route(&request, &options, false) else {
            panic!("not upgraded")
        };
        let mut out = Vec::new();
        answer_upgrade(&mut out, &upgrade.accept, b"");
        encode_header(&mut out, true, OpCode::Text, upgrade.room.len());
        out.extend_from_slice(upgrade.room.as_bytes());
        out
    }

    #[test]
    fn another_client_connects_reads_our_frame_and_is_read() {
        let (mut socket, _) =
            tungstenite::client("ws://a.example:1/rooms/r%C3%A9", Memory::new(serve)).unwrap();
        assert_eq!(socket.read().unwrap(), tungstenite::Message::text("ré"));

        let payload: Vec<u8> = (0..70_000).map(|index| index as u8).collect();
        socket
            .send(tungstenite::Message::binary(payload.clone()))
            .unwrap();
        let frame = &socket.get_ref().written;
        let header = decode_header(frame, Role::Server).unwrap().unwrap();
        assert_eq!(
            (header.fin, header.opcode, header.payload_bytes),
            (true, OpCode::Binary, 70_000)
        );
        let mut unmasked = Vec::new();
        unmask_extend(
            &mut unmasked,
            &frame[usize::from(header.header_bytes)..],
            header.mask.unwrap(),
            0,
        );
        assert_eq!(unmasked, payload);
    }

    #[test]
    fn another_server_takes_our_request_and_its_answer_is_taken() {
        let mut request = Vec::new();
        encode_request(&mut request, "a.example", "/x", KEY);
        let stream = Memory {
            written: Vec::new(),
            answer: None,
            unread: Cursor::new(request),
        };
        let socket = tungstenite::accept(stream).unwrap();
        let answer = &socket.get_ref().written;
        assert_eq!(parse_response(answer, KEY), Ok(Some(answer.len())));
    }

    proptest! {
        #[test]
        fn both_sides_agree_and_frames_behind_the_answer_are_left(seed: [u64; 2], tail in prop::collection::vec(any::<u8>(), 0..9)) {
            let key = encode_key(seed);
            let answer = answer(&key);
            for end in 0..answer.len() {
                prop_assert_eq!(parse_response(&answer[..end], &key), Ok(None));
            }
            let bytes = [&answer[..], &tail].concat();
            prop_assert_eq!(parse_response(&bytes, &key), Ok(Some(answer.len())));
        }

        #[test]
        fn any_answer_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            let _ = parse_response(&[&b"HTTP/1.1 "[..], &bytes, b"\r\n\r\n"].concat(), KEY);
        }
    }
}
