//! Any bytes as a request, at once and in pieces: what is taken agrees with httparse, a room's name keeps its rules, and
//! every answer is a whole response. The same bytes as a PROXY header and as `X-Forwarded-For`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throng::protocol::client::parse_response;
use throng::protocol::handshake::{
    Auth, Edge, HeadScan, Network, Options, ParsedRequest, ProxyHeader, Refusal, Route,
    answer_health, answer_refusal, answer_upgrade, forwarded_for, is_in, parse_proxy_header,
    parse_request, route,
};

/// What most requests share, so that the fuzzer finds the way to a room.
const FRONT: &[u8] =
    b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    check_proxy_header(input);
    let options = Options {
        bytes_max: 512,
        header_count_max: 8,
        origins: if choice & 1 == 0 {
            Vec::new()
        } else {
            vec!["http*://*.a".to_owned()]
        },
        edge: Edge {
            auth: if choice & 32 == 0 {
                Auth::None
            } else {
                Auth::Header("X-User-Id".to_owned())
            },
            ..Edge::default()
        },
    };
    let mut request = Vec::new();
    if choice & 2 == 0 {
        request.extend_from_slice(input);
    } else {
        // The input is the target and, behind its first line break, more headers.
        let line_bytes = input
            .iter()
            .position(|&byte| byte == b'\n')
            .unwrap_or(input.len());
        request.extend_from_slice(b"GET /rooms/");
        request.extend_from_slice(&input[..line_bytes]);
        request.extend_from_slice(b" HTTP/1.1\r\n");
        request.extend_from_slice(FRONT);
        request.extend_from_slice(input.get(line_bytes + 1..).unwrap_or_default());
        request.extend_from_slice(b"\r\n\r\n\x81\x80");
    }

    let parsed = parse_request(&request, &options);
    check_pieces(
        &request,
        &options,
        &parsed,
        usize::from(choice >> 2) % 7 + 1,
    );
    match parsed {
        Ok(None) => {}
        Ok(Some(parsed)) => {
            check_with_httparse(&request, &parsed);
            check_route(&parsed, &options, choice & 64 != 0);
            check_forwarded(&parsed);
        }
        Err(refusal) => check_refusal(&refusal),
    }
});

/// A PROXY header in pieces is partial until it is whole, and then the same as at once.
fn check_proxy_header(input: &[u8]) {
    let whole = parse_proxy_header(input);
    let decided = (0..=input.len())
        .map(|end| parse_proxy_header(&input[..end]))
        .find(|found| *found != Ok(ProxyHeader::Partial));
    assert_eq!(decided.unwrap_or(Ok(ProxyHeader::Partial)), whole);
    if let Ok(ProxyHeader::Whole { header_bytes, .. }) = whole {
        assert!(header_bytes <= input.len().min(4_096));
        let header = &input[..header_bytes];
        assert_eq!(parse_proxy_header(header), whole);
    }
}

/// Who is forwarded for is no trusted proxy, unless all are.
fn check_forwarded(parsed: &ParsedRequest<'_>) {
    let trusted = [Network::parse("10.0.0.0/8").unwrap()];
    let found = forwarded_for(parsed, &trusted);
    let anybody = [Network::parse("::/0").unwrap()];
    if let Some(client) = found.client
        && !found.is_malformed
        && is_in(&trusted, client.ip())
    {
        // Then it is the leftmost, which is who would be found if all were trusted.
        assert_eq!(forwarded_for(parsed, &anybody).client, Some(client));
    }
}

/// The same request in pieces ends the same way.
fn check_pieces(
    request: &[u8],
    options: &Options,
    whole: &Result<Option<ParsedRequest<'_>>, Refusal>,
    piece_bytes: usize,
) {
    let mut scan = HeadScan::default();
    let mut end = 0;
    while end < request.len() {
        end = request.len().min(end + piece_bytes);
        match scan.advance(&request[..end], options) {
            Ok(None) => {}
            Ok(Some(head_bytes)) => {
                let pieced = parse_request(&request[..head_bytes], options);
                assert_ne!(pieced, Ok(None));
                assert_eq!(&pieced, whole);
                return;
            }
            Err(_) => {
                assert!(whole.is_err());
                return;
            }
        }
    }
    assert!(!matches!(whole, Ok(Some(_))));
}

/// Whatever is taken, the widely used parser takes too, and reads the same.
fn check_with_httparse(request: &[u8], parsed: &ParsedRequest<'_>) {
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut theirs = httparse::Request::new(&mut headers);
    assert_eq!(
        theirs.parse(request),
        Ok(httparse::Status::Complete(parsed.head_bytes))
    );
    assert_eq!(theirs.method.map(str::as_bytes), Some(parsed.method));
    assert_eq!(theirs.path.map(str::as_bytes), Some(parsed.target));
    assert_eq!(theirs.headers.len(), parsed.header_count);
}

fn check_route(parsed: &ParsedRequest<'_>, options: &Options, from_proxy: bool) {
    let mut out = Vec::new();
    match route(parsed, options, from_proxy) {
        Ok(Route::Health(health)) => {
            let stays = answer_health(&mut out, true, health);
            assert_eq!(stays, health.keep_alive);
            check_response(&out, health.with_body);
        }
        Ok(Route::Upgrade(upgrade)) => {
            assert!((1..=255).contains(&upgrade.room.len()));
            assert!(!upgrade.room.chars().any(char::is_control));
            if let Some(user) = &upgrade.user {
                assert!((1..=128).contains(&user.len()));
                assert!(!user.chars().any(char::is_control));
                assert!(from_proxy || options.edge.auth == Auth::None);
            }
            answer_upgrade(&mut out, &upgrade.accept, b"");
            if upgrade.accept == EXAMPLE_ACCEPT {
                assert_eq!(
                    parse_response(&out, b"dGhlIHNhbXBsZSBub25jZQ=="),
                    Ok(Some(out.len()))
                );
            }
        }
        Err(refusal) => check_refusal(&refusal),
    }
}

const EXAMPLE_ACCEPT: [u8; 28] = *b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn check_refusal(refusal: &Refusal) {
    let mut out = Vec::new();
    answer_refusal(&mut out, refusal, Some(1));
    let status = check_response(&out, true);
    assert_eq!(status, refusal.kind.status());
}

/// A whole response whose body is as long as announced; its status.
fn check_response(out: &[u8], with_body: bool) -> u16 {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = response.parse(out).unwrap().unwrap();
    let length = response
        .headers
        .iter()
        .find(|header| header.name == "Content-Length")
        .unwrap();
    let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
    assert_eq!(out.len() - head_bytes, if with_body { length } else { 0 });
    response.code.unwrap()
}
