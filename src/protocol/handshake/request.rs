//! A request's head: strict, in one pass, without copying (RFC 9112 §2 to §5).

use super::head::{check_method, is_token_byte, line_end, refuse_length};
use super::{Options, Refusal};
use crate::metrics::RefusalKind;

/// A header that may come once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Once<'a> {
    #[default]
    Absent,
    Given(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    pub(super) fn add(&mut self, value: &'a [u8]) {
        *self = if *self == Self::Absent {
            Self::Given(value)
        } else {
            Self::Repeated
        };
    }
}

/// A request's head, its parts where they lie in the receive buffer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedRequest<'a> {
    /// The method, as it came: a token, case counts.
    pub method: &'a [u8],
    /// The request target, as it came: visible ASCII without `#`.
    pub target: &'a [u8],
    /// Bytes of the head, the empty line included. What is behind it belongs to the next request, or is frames.
    pub head_bytes: usize,
    /// Headers in it.
    pub header_count: usize,
    /// The lines of the headers, each with its CRLF.
    header_lines: &'a [u8],
    /// HTTP/1.1; otherwise HTTP/1.0, which only a health check may speak.
    pub(super) is_http_1_1: bool,
    pub(super) host: Once<'a>,
    pub(super) origin: Once<'a>,
    pub(super) websocket_key: Once<'a>,
    pub(super) websocket_version: Once<'a>,
    /// `Upgrade` names `websocket`.
    pub(super) upgrades_to_websocket: bool,
    /// `Connection` names `upgrade`.
    pub(super) connection_upgrade: bool,
    /// `Connection` names `close`.
    pub(super) connection_close: bool,
    /// `Connection` names `keep-alive`, which counts in HTTP/1.0 only.
    pub(super) connection_keep_alive: bool,
}

impl<'a> ParsedRequest<'a> {
    /// The values of all headers called `name`, in order. Looks through the lines again: for headers that few requests
    /// are asked for.
    pub(super) fn values<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let mut lines = self.header_lines;
        std::iter::from_fn(move || {
            let end = lines.iter().position(|&byte| byte == b'\r')?;
            let line = &lines[..end];
            lines = &lines[end + 2..];
            Some(line)
        })
        .filter_map(move |line| {
            let (front, rest) = line.split_at_checked(name.len())?;
            let value = rest.strip_prefix(b":")?;
            front
                .eq_ignore_ascii_case(name.as_bytes())
                .then(|| trim(value))
        })
    }
}

/// Parses a request's head from the front of `bytes`. `Ok(None)`: it is not whole yet, nothing was consumed.
///
/// A partial request is parsed again from its front with each call: keep a [`HeadScan`](super::HeadScan) beside it and
/// call this only when that has found the end.
///
/// # Errors
/// As soon as a whole line shows it:
/// - `BadRequest`: against the grammar (RFC 9112 §3, §5; bare LF and folded lines too), not HTTP/1.x, or with a body.
/// - `UriTooLong`, `HeadersTooLarge`: does not end within `options.bytes_max`, or more than `options.header_count_max`
///   headers.
pub fn parse_request<'a>(
    bytes: &'a [u8],
    options: &Options,
) -> Result<Option<ParsedRequest<'a>>, Refusal> {
    let window = &bytes[..bytes.len().min(options.bytes_max)];
    match parse_head(window, options.header_count_max)? {
        Some(request) => Ok(Some(request)),
        None if window.len() < options.bytes_max => Ok(None),
        None => Err(refuse_length(window)),
    }
}

fn parse_head(bytes: &[u8], header_count_max: usize) -> Result<Option<ParsedRequest<'_>>, Refusal> {
    let Some(mut end) = line_end(bytes, 0)? else {
        check_method(bytes)?;
        return Ok(None);
    };
    let mut request = parse_request_line(&bytes[..end])?;
    let lines_start = end + 2;
    loop {
        let start = end + 2;
        end = match line_end(bytes, start)? {
            Some(end) => end,
            None => return Ok(None),
        };
        if end == start {
            request.head_bytes = end + 2;
            request.header_lines = &bytes[lines_start..start];
            return Ok(Some(request));
        }
        if request.header_count == header_count_max {
            return Err(Refusal::of(RefusalKind::HeadersTooLarge));
        }
        request.header_count += 1;
        parse_header(&mut request, &bytes[start..end])?;
    }
}

/// `method SP target SP HTTP/1.x` (RFC 9112 §3), exactly one space each.
fn parse_request_line(line: &[u8]) -> Result<ParsedRequest<'_>, Refusal> {
    check_method(line)?;
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::bad("the request line is not `GET path HTTP/1.1`"));
    };
    let is_http_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => {
            return Err(Refusal::bad(
                "not HTTP/1.1: a WebSocket begins with `GET path HTTP/1.1`",
            ));
        }
    };
    if target.is_empty()
        || !target
            .iter()
            .all(|&byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(Refusal::bad(
            "the path has bytes that must be percent-encoded",
        ));
    }
    Ok(ParsedRequest {
        method,
        target,
        is_http_1_1,
        ..ParsedRequest::default()
    })
}

/// `name ":" OWS value OWS` (RFC 9112 §5). Control characters in the line were refused before.
fn parse_header<'a>(request: &mut ParsedRequest<'a>, line: &'a [u8]) -> Result<(), Refusal> {
    let name_bytes = line
        .iter()
        .position(|&byte| !is_token_byte(byte))
        .unwrap_or(line.len());
    if name_bytes == 0 || line.get(name_bytes) != Some(&b':') {
        return Err(refuse_header(line));
    }
    let (name, value) = (&line[..name_bytes], trim(&line[name_bytes + 1..]));
    // By length first: a browser sends a dozen headers, and few of them have a length that matters here.
    match name.len() {
        4 if name.eq_ignore_ascii_case(b"host") => request.host.add(value),
        6 if name.eq_ignore_ascii_case(b"origin") => request.origin.add(value),
        7 if name.eq_ignore_ascii_case(b"upgrade") => {
            request.upgrades_to_websocket |= names(value, b"websocket");
        }
        10 if name.eq_ignore_ascii_case(b"connection") => {
            request.connection_upgrade |= names(value, b"upgrade");
            request.connection_close |= names(value, b"close");
            request.connection_keep_alive |= names(value, b"keep-alive");
        }
        14 if name.eq_ignore_ascii_case(b"content-length") => refuse_body(value)?,
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => refuse_body(b"")?,
        17 if name.eq_ignore_ascii_case(b"sec-websocket-key") => request.websocket_key.add(value),
        21 if name.eq_ignore_ascii_case(b"sec-websocket-version") => {
            request.websocket_version.add(value)
        }
        _ => {}
    }
    Ok(())
}

#[cold]
fn refuse_header(line: &[u8]) -> Refusal {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        Refusal::bad("a folded header: send each on one line")
    } else {
        Refusal::bad("a header that is not `Name: value`")
    }
}

/// Refuses any announcement of a body but a `Content-Length` of zero.
fn refuse_body(value: &[u8]) -> Result<(), Refusal> {
    if !value.is_empty() && value.iter().all(|&byte| byte == b'0') {
        Ok(())
    } else {
        Err(Refusal::bad("a request with a body: send none"))
    }
}

/// Without the spaces and tabs around (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether the comma-separated `list` has `token`, in any case (RFC 9110 §5.6.1).
fn names(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|element| trim(element).eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Edge, HeadScan};
    use super::*;

    fn options() -> Options {
        Options {
            bytes_max: 1_000,
            header_count_max: 8,
            origins: Vec::new(),
            edge: Edge::default(),
        }
    }

    fn refused(bytes: &[u8]) -> RefusalKind {
        parse_request(bytes, &options())
            .expect_err(&String::from_utf8_lossy(bytes))
            .kind
    }

    #[test]
    fn a_request_is_read_where_it_lies_and_what_follows_is_left() {
        let bytes = b"GET /rooms/a?x HTTP/1.1\r\nhOST:\t a \r\nConnection: keep-alive ,\tUPGRADE\r\nUpgrade: h2c, WebSocket\r\n\
            Sec-WebSocket-Key:k\r\nSec-WebSocket-Version: 13\r\nOrigin:\r\n\r\n\x81\x80";
        let request = parse_request(bytes, &options()).unwrap().unwrap();
        assert_eq!(
            (request.method, request.target),
            (&b"GET"[..], &b"/rooms/a?x"[..])
        );
        assert_eq!(
            (request.head_bytes, request.header_count),
            (bytes.len() - 2, 6)
        );
        assert_eq!(
            (request.host, request.websocket_key),
            (Once::Given(b"a"), Once::Given(b"k"))
        );
        assert_eq!(
            (request.origin, request.websocket_version),
            (Once::Given(b""), Once::Given(b"13"))
        );
        assert!(
            request.connection_upgrade
                && request.connection_keep_alive
                && !request.connection_close
        );
        assert!(request.upgrades_to_websocket && request.is_http_1_1);
    }

    #[test]
    fn a_token_within_a_word_does_not_count() {
        let bytes =
            b"GET / HTTP/1.1\r\nConnection: upgraded, x upgrade\r\nUpgrade: websocket2\r\n\r\n";
        let request = parse_request(bytes, &options()).unwrap().unwrap();
        assert!(!request.connection_upgrade && !request.upgrades_to_websocket);
    }

    #[test]
    fn what_the_grammar_does_not_have_is_refused() {
        for bytes in [
            &b"GET /\r\n\r\n"[..],
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1 \r\n\r\n",
            b"GET / x HTTP/1.1\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / http/1.1\r\n\r\n",
            b"GET /# HTTP/1.1\r\n\r\n",
            b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
            b"G(T / HTTP/1.1\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            b"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 0, 0\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(refused(bytes), RefusalKind::BadRequest);
        }
        assert!(
            parse_request(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", &options())
                .unwrap()
                .is_some()
        );
        assert!(
            parse_request(b"GET / HTTP/1.1\r\nX: \xc3\xa9\r\n\r\n", &options())
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn the_limits_hold_at_both_sides() {
        let with_headers =
            |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert!(
            parse_request(with_headers(8).as_bytes(), &options())
                .unwrap()
                .is_some()
        );
        assert_eq!(
            refused(with_headers(9).as_bytes()),
            RefusalKind::HeadersTooLarge
        );

        let head =
            |bytes: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(bytes - 23));
        assert_eq!(
            parse_request(head(1_000).as_bytes(), &options())
                .unwrap()
                .unwrap()
                .head_bytes,
            1_000
        );
        assert_eq!(
            refused(head(1_001).as_bytes()),
            RefusalKind::HeadersTooLarge
        );
        assert_eq!(
            refused(&head(1_001).as_bytes()[..1_000]),
            RefusalKind::HeadersTooLarge
        );
        assert_eq!(
            parse_request(&head(1_001).as_bytes()[..999], &options()),
            Ok(None)
        );

        let line = format!("GET /{}", "a".repeat(1_000));
        assert_eq!(refused(line.as_bytes()), RefusalKind::UriTooLong);
        assert_eq!(parse_request(&line.as_bytes()[..999], &options()), Ok(None));
        let with_frames = [head(1_000).as_bytes(), &[0x82; 5_000]].concat();
        assert_eq!(
            parse_request(&with_frames, &options())
                .unwrap()
                .unwrap()
                .head_bytes,
            1_000
        );
    }

    #[test]
    fn a_repeated_header_is_noticed() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n";
        assert_eq!(
            parse_request(bytes, &options()).unwrap().unwrap().host,
            Once::Repeated
        );
    }

    /// Requests, some of them spoilt.
    fn any_request() -> impl Strategy<Value = Vec<u8>> {
        let header = ("[A-Za-z-]{1,12}", "[ -~\t]{0,20}")
            .prop_map(|(name, value)| format!("{name}:{value}\r\n"));
        let whole = (
            "[A-Z]{1,7}",
            "/[!-~]{0,20}",
            prop::collection::vec(header, 0..10),
        )
            .prop_map(|(method, target, headers)| {
                format!(
                    "{method} {target} HTTP/1.1\r\n{}\r\n\x01ab",
                    headers.concat()
                )
                .into_bytes()
            });
        let spoilt = (whole.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(mut bytes, index, byte)| {
                let index = index.index(bytes.len());
                bytes[index] = byte;
                bytes
            },
        );
        prop_oneof![whole, spoilt]
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_request(&bytes, &options());
        }

        #[test]
        fn bytes_that_drip_in_end_like_those_that_come_at_once(bytes in any_request()) {
            let whole = parse_request(&bytes, &options());
            let mut scan = HeadScan::default();
            let mut dripped = Ok(None);
            for end in 1..=bytes.len() {
                match scan.advance(&bytes[..end], &options()) {
                    Ok(None) => continue,
                    Ok(Some(head_bytes)) => {
                        prop_assert_eq!(head_bytes, end);
                        dripped = parse_request(&bytes[..end], &options());
                        prop_assert!(dripped != Ok(None));
                    }
                    Err(refusal) => dripped = Err(refusal),
                }
                break;
            }
            match (whole, dripped) {
                (Err(_), Err(_)) => {}
                (whole, dripped) => prop_assert_eq!(whole, dripped),
            }
        }
    }
}
