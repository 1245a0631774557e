//! Where a request leads: a health check, a room, or a refusal. Control decides once, before the first frame.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use tungstenite::handshake::derive_accept_key;

use super::identity::{escapes_are_whole, identify};
use super::origin::check_origin;
use super::request::{Once, ParsedRequest};
use super::{Options, Refusal};
use crate::limits::ROOM_NAME_BYTES_MAX;
use crate::metrics::RefusalKind;

/// Where a request leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET` or `HEAD` of `/health`.
    Health(Health),
    /// Into a room.
    Upgrade(Upgrade<'a>),
}

/// A health check, for load balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Whether another request may follow on the connection (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// Whether the answer has a body: `GET`; `HEAD` has none.
    pub with_body: bool,
}

/// An upgrade into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// The room's name, percent-decoded: 1 to 255 bytes, no control characters.
    pub room: Cow<'a, str>,
    /// Whether the member gets its own messages back; `?echo=0`: it does not.
    pub echo: bool,
    /// Whether the member is sent notices; `?notices=0`: it is not.
    pub notices: bool,
    /// The user that the connection is of, if any: 1 to 128 bytes, no control characters.
    pub user: Option<Cow<'a, str>>,
    /// The request brings the affinity cookie that this node sets.
    pub knows_node: bool,
    /// The value of `Sec-WebSocket-Accept` (RFC 6455 §4.2.2).
    pub accept: [u8; 28],
}

/// Decides where `request` leads. `from_proxy`: the connection's other end is one of `options.edge.trusted_proxies`.
///
/// # Errors
/// In this order:
/// - `BadRequest`: `Host` is not there exactly once (RFC 9112 §3.2).
/// - `NotFound`: neither `/health` nor `/rooms/{room}`.
/// - `MethodNotAllowed`: not `GET` (RFC 6455 §4.2.1); `HEAD` is allowed for `/health`.
/// - `UpgradeRequired`: no `Upgrade: websocket`, or not version 13 (RFC 6455 §4.2.2, §4.4).
/// - `BadRequest`: HTTP/1.0, `Connection` without `Upgrade`, no valid `Sec-WebSocket-Key` (RFC 6455 §4.2.1).
/// - `OriginForbidden`: an `Origin` that `options.origins` does not allow (RFC 6455 §10.2). None at all is allowed: such a
///   client is no browser, and could claim any.
/// - `BadRequest`, `UriTooLong`: the room's name, `echo`, `notices` or the user's id is not what it may be.
/// - `IdentityForbidden`: it names a user, and may not.
pub fn route<'a>(
    request: &ParsedRequest<'a>,
    options: &Options,
    from_proxy: bool,
) -> Result<Route<'a>, Refusal> {
    check_host(request)?;
    let (path, query) = split_target(request.target);
    let is_get = request.method == b"GET";
    if path == b"/health" {
        if !is_get && request.method != b"HEAD" {
            return Err(Refusal::of(RefusalKind::MethodNotAllowed));
        }
        let keep_alive =
            !request.connection_close && (request.is_http_1_1 || request.connection_keep_alive);
        return Ok(Route::Health(Health {
            keep_alive,
            with_body: is_get,
        }));
    }
    let room = match path.strip_prefix(b"/rooms/") {
        Some(room) if !room.is_empty() && !room.contains(&b'/') => room,
        _ => {
            return Err(Refusal::of(RefusalKind::NotFound));
        }
    };
    if !is_get {
        return Err(Refusal::of(RefusalKind::MethodNotAllowed));
    }
    let key = check_upgrade(request)?;
    check_origin(request.origin, &options.origins)?;
    let room = decode_room(room)?;
    let query = read_query(query)?;
    let user = identify(request, query.user, &options.edge.auth, from_proxy)?;
    Ok(Route::Upgrade(Upgrade {
        room,
        echo: query.echo,
        notices: query.notices,
        user,
        knows_node: options.edge.badge.is_known(request),
        accept: accept_of(key),
    }))
}

fn accept_of(key: &[u8]) -> [u8; 28] {
    derive_accept_key(key)
        .as_bytes()
        .try_into()
        .expect("20 bytes are 28 in base64")
}

/// Exactly one `Host`, of the characters that an authority has (RFC 9112 §3.2). HTTP/1.0 may leave it out.
fn check_host(request: &ParsedRequest<'_>) -> Result<(), Refusal> {
    let is_authority_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    match request.host {
        Once::Given(host) if !host.is_empty() && host.iter().all(is_authority_byte) => Ok(()),
        Once::Absent if !request.is_http_1_1 => Ok(()),
        Once::Absent => Err(Refusal::bad("no Host header")),
        Once::Given(_) => Err(Refusal::bad("the Host header is not `name` or `name:port`")),
        Once::Repeated => Err(Refusal::bad("more than one Host header")),
    }
}

/// Path and query of a target. An absolute one (RFC 9112 §3.2.2) is read from behind its authority on.
fn split_target(target: &[u8]) -> (&[u8], &[u8]) {
    let target = match target.first() {
        Some(b'/') => target,
        _ => strip_authority(target).unwrap_or(target),
    };
    match target.iter().position(|&byte| byte == b'?') {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, b""),
    }
}

fn strip_authority(target: &[u8]) -> Option<&[u8]> {
    let behind = [&b"http://"[..], b"https://", b"ws://", b"wss://"]
        .into_iter()
        .find_map(|scheme| {
            let (front, behind) = target.split_at_checked(scheme.len())?;
            front.eq_ignore_ascii_case(scheme).then_some(behind)
        })?;
    let slash = behind.iter().position(|&byte| byte == b'/')?;
    Some(&behind[slash..])
}

/// The key, when the request asks for this version of the protocol (RFC 6455 §4.2.1).
fn check_upgrade<'a>(request: &ParsedRequest<'a>) -> Result<&'a [u8], Refusal> {
    if !request.upgrades_to_websocket {
        return Err(Refusal::of(RefusalKind::UpgradeRequired));
    }
    if !request.is_http_1_1 {
        return Err(Refusal::bad(
            "not HTTP/1.1: a proxy in between may need `proxy_http_version 1.1`",
        ));
    }
    if !request.connection_upgrade {
        return Err(Refusal::bad(
            "no `Connection: Upgrade`: a proxy in between may have to pass it on",
        ));
    }
    match request.websocket_version {
        Once::Given(b"13") => {}
        Once::Repeated => return Err(Refusal::bad("more than one Sec-WebSocket-Version")),
        Once::Absent | Once::Given(_) => {
            return Err(Refusal {
                kind: RefusalKind::UpgradeRequired,
                detail: "the WebSocket version is not 13",
            });
        }
    }
    match request.websocket_key {
        Once::Given(key) if is_key(key) => Ok(key),
        Once::Given(_) => Err(Refusal::bad("Sec-WebSocket-Key is not 16 bytes in base64")),
        Once::Absent => Err(Refusal::bad("no Sec-WebSocket-Key")),
        Once::Repeated => Err(Refusal::bad("more than one Sec-WebSocket-Key")),
    }
}

/// Whether `key` is 16 bytes in base64: 22 characters of the alphabet and two of padding. The four bits that the last
/// character has over do not count: nothing is decoded, and some clients draw the characters at random.
fn is_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key.split_at_checked(22), Some((digits, b"==")) if digits.iter().all(is_base64))
}

/// The room's name out of the path's last segment.
fn decode_room(segment: &[u8]) -> Result<Cow<'_, str>, Refusal> {
    if !escapes_are_whole(segment) {
        return Err(Refusal::bad(
            "the room's name has a `%` without two hexadecimal digits: write it as %25",
        ));
    }
    let room = percent_decode(segment)
        .decode_utf8()
        .map_err(|_| Refusal::bad("the room's name is not UTF-8"))?;
    if room.len() > ROOM_NAME_BYTES_MAX {
        return Err(Refusal {
            kind: RefusalKind::UriTooLong,
            detail: "the room's name is longer than 255 bytes",
        });
    }
    if room.chars().any(char::is_control) {
        return Err(Refusal::bad("the room's name has a control character"));
    }
    Ok(room)
}

/// The parameters of a query.
struct Query<'a> {
    echo: bool,
    notices: bool,
    /// As it came.
    user: Once<'a>,
}

/// Of `echo` and `notices` the last counts, `user` may come once, and what else is in the query does not matter.
fn read_query(query: &[u8]) -> Result<Query<'_>, Refusal> {
    let mut read = Query {
        echo: true,
        notices: true,
        user: Once::Absent,
    };
    for parameter in query.split(|&byte| byte == b'&') {
        let mut parts = parameter.splitn(2, |&byte| byte == b'=');
        let (name, value) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        match name {
            b"echo" => {
                read.echo =
                    read_switch(value).ok_or_else(|| Refusal::bad("echo is neither 0 nor 1"))?
            }
            b"notices" => {
                read.notices =
                    read_switch(value).ok_or_else(|| Refusal::bad("notices is neither 0 nor 1"))?
            }
            b"user" => read.user.add(value),
            _ => {}
        }
    }
    Ok(read)
}

fn read_switch(value: &[u8]) -> Option<bool> {
    match value {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Edge, parse_request};
    use super::*;

    const UPGRADE: &str = "Host: a.example:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

    fn options(origins: &[&str]) -> Options {
        let origins = origins.iter().map(ToString::to_string).collect();
        Options {
            bytes_max: 8_192,
            header_count_max: 64,
            origins,
            edge: Edge::default(),
        }
    }

    /// Routes the request and hands the result to `look`, which may borrow from it.
    fn routed<T>(
        line: &str,
        headers: &str,
        look: impl FnOnce(Result<Route<'_>, Refusal>) -> T,
    ) -> T {
        let bytes = format!("{line}\r\n{headers}\r\n");
        let options = options(&["https://*.example", "null"]);
        let request = parse_request(bytes.as_bytes(), &options).unwrap().unwrap();
        look(route(&request, &options, false))
    }

    fn refused(line: &str, headers: &str) -> (RefusalKind, &'static str) {
        routed(line, headers, |route| {
            route.map(|route| format!("{route:?}")).expect_err(line)
        })
        .into()
    }

    impl From<Refusal> for (RefusalKind, &'static str) {
        fn from(refusal: Refusal) -> Self {
            (refusal.kind, refusal.detail)
        }
    }

    fn upgraded(target: &str) -> (String, bool, bool) {
        routed(
            &format!("GET {target} HTTP/1.1"),
            UPGRADE,
            |route| match route {
                Ok(Route::Upgrade(upgrade)) => {
                    (upgrade.room.into_owned(), upgrade.echo, upgrade.notices)
                }
                other => panic!("{target}: {other:?}"),
            },
        )
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        routed("GET /rooms/chat HTTP/1.1", UPGRADE, |route| {
            let Ok(Route::Upgrade(upgrade)) = route else {
                panic!("{route:?}")
            };
            assert_eq!(&upgrade.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); // RFC 6455 §1.3
            assert!(
                matches!(upgrade.room, Cow::Borrowed("chat")),
                "a plain name is not copied"
            );
            assert!(upgrade.echo && upgrade.notices);
        });
    }

    #[test]
    fn rooms_are_percent_decoded_and_parameters_read() {
        assert_eq!(
            upgraded("/rooms/a%2Fb%20%C3%A9+c"),
            ("a/b é+c".into(), true, true)
        );
        assert_eq!(upgraded("/rooms/a?echo=0"), ("a".into(), false, true));
        assert_eq!(
            upgraded("/rooms/a?x&notices=0&echo=1&y=2"),
            ("a".into(), true, false)
        );
        assert_eq!(
            upgraded("/rooms/a?echo=0&echo=1&Echo=5"),
            ("a".into(), true, true)
        );
        assert_eq!(
            upgraded("http://b.example/rooms/a?echo=0"),
            ("a".into(), false, true)
        );
        assert_eq!(upgraded("/rooms/a?/"), ("a".into(), true, true));
    }

    #[test]
    fn a_room_has_1_to_255_bytes_after_decoding() {
        assert_eq!(
            upgraded(&format!("/rooms/{}", "x".repeat(255))).0.len(),
            255
        );
        assert_eq!(
            upgraded(&format!("/rooms/{}", "%C3%A9".repeat(127)))
                .0
                .len(),
            254
        );
        let refusal = refused(&format!("GET /rooms/{} HTTP/1.1", "x".repeat(256)), UPGRADE);
        assert_eq!(refusal.0, RefusalKind::UriTooLong);
        let refusal = refused(
            &format!("GET /rooms/{} HTTP/1.1", "%C3%A9".repeat(128)),
            UPGRADE,
        );
        assert_eq!(refusal.0, RefusalKind::UriTooLong);
        assert_eq!(
            refused("GET /rooms/ HTTP/1.1", UPGRADE).0,
            RefusalKind::NotFound
        );
    }

    #[test]
    fn rooms_that_no_room_may_be_called_are_refused() {
        for room in [
            "%",
            "%4",
            "%zz",
            "a%",
            "%C3",
            "%FF",
            "%ED%A0%80",
            "%00",
            "a%0Ab",
            "%7F",
            "%C2%85",
        ] {
            let refusal = refused(&format!("GET /rooms/{room} HTTP/1.1"), UPGRADE);
            assert_eq!(refusal.0, RefusalKind::BadRequest, "{room}");
        }
    }

    #[test]
    fn a_parameter_that_is_no_switch_is_named() {
        for value in ["", "=", "=2", "=true", "=00", "=0%30"] {
            let refusal = refused(&format!("GET /rooms/a?echo{value} HTTP/1.1"), UPGRADE);
            assert_eq!(
                refusal,
                (RefusalKind::BadRequest, "echo is neither 0 nor 1")
            );
            let refusal = refused(&format!("GET /rooms/a?notices{value} HTTP/1.1"), UPGRADE);
            assert_eq!(
                refusal,
                (RefusalKind::BadRequest, "notices is neither 0 nor 1")
            );
        }
    }

    #[test]
    fn paths_and_methods_are_told_apart() {
        for path in [
            "/",
            "/rooms",
            "/rooms/a/b",
            "/rooms/a/",
            "/room/a",
            "/Rooms/a",
            "*",
            "rooms/a",
            "/health/",
            "http://a",
        ] {
            assert_eq!(
                refused(&format!("GET {path} HTTP/1.1"), UPGRADE).0,
                RefusalKind::NotFound,
                "{path}"
            );
        }
        for line in [
            "POST /rooms/a HTTP/1.1",
            "HEAD /rooms/a HTTP/1.1",
            "get /rooms/a HTTP/1.1",
            "POST /health HTTP/1.1",
        ] {
            assert_eq!(
                refused(line, UPGRADE).0,
                RefusalKind::MethodNotAllowed,
                "{line}"
            );
        }
    }

    #[test]
    fn a_health_check_needs_a_host_and_says_whether_it_goes_on() {
        let health = |line: &str, headers: &str| {
            routed(line, headers, |route| match route {
                Ok(Route::Health(health)) => (health.keep_alive, health.with_body),
                other => panic!("{line}: {other:?}"),
            })
        };
        assert_eq!(health("GET /health HTTP/1.1", "Host: a\r\n"), (true, true));
        assert_eq!(
            health("HEAD /health?x HTTP/1.1", "Host: a\r\n"),
            (true, false)
        );
        assert_eq!(
            health("GET /health HTTP/1.1", "Host: a\r\nConnection: Close\r\n"),
            (false, true)
        );
        assert_eq!(health("GET /health HTTP/1.0", ""), (false, true));
        assert_eq!(
            health("GET /health HTTP/1.0", "Connection: keep-alive\r\n"),
            (true, true)
        );
        assert_eq!(
            refused("GET /health HTTP/1.1", "").0,
            RefusalKind::BadRequest
        );
    }

    #[test]
    fn the_host_is_there_once_and_is_an_authority() {
        for host in [
            "",
            "Host:\r\n",
            "Host: a b\r\n",
            "Host: a/b\r\n",
            "Host: u@a\r\n",
            "Host: a\r\nHost: a\r\n",
        ] {
            let headers = UPGRADE.replace("Host: a.example:8080\r\n", host);
            assert_eq!(
                refused("GET /rooms/a HTTP/1.1", &headers).0,
                RefusalKind::BadRequest,
                "{host:?}"
            );
        }
        let headers = UPGRADE.replace("a.example:8080", "[::1]:80");
        routed("GET /rooms/a HTTP/1.1", &headers, |route| {
            assert!(route.is_ok())
        });
    }

    #[test]
    fn each_header_of_the_upgrade_is_required() {
        use RefusalKind::{BadRequest, UpgradeRequired};
        for (from, to, kind) in [
            ("Upgrade: websocket\r\n", "", UpgradeRequired),
            (
                "Upgrade: websocket\r\n",
                "Upgrade: h2c\r\n",
                UpgradeRequired,
            ),
            ("Sec-WebSocket-Version: 13\r\n", "", UpgradeRequired),
            ("Version: 13", "Version: 8", UpgradeRequired),
            ("Version: 13", "Version: 13, 8", UpgradeRequired),
            (
                "Version: 13",
                "Version: 13\r\nSec-WebSocket-Version: 13",
                BadRequest,
            ),
            ("Connection: Upgrade\r\n", "", BadRequest),
            ("Connection: Upgrade", "Connection: keep-alive", BadRequest),
            (
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                "",
                BadRequest,
            ),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", BadRequest),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQ=",
                BadRequest,
            ),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQAA",
                BadRequest,
            ),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25jZQ===",
                BadRequest,
            ),
            (
                "dGhlIHNhbXBsZSBub25jZQ==",
                "dGhlIHNhbXBsZSBub25j-Q==",
                BadRequest,
            ),
            (
                "ZQ==\r\n",
                "ZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                BadRequest,
            ),
        ] {
            assert!(UPGRADE.contains(from));
            assert_eq!(
                refused("GET /rooms/a HTTP/1.1", &UPGRADE.replacen(from, to, 1)).0,
                kind,
                "{from:?} as {to:?}"
            );
        }
        assert_eq!(refused("GET /rooms/a HTTP/1.0", UPGRADE).0, BadRequest);
    }

    #[test]
    fn an_origin_must_be_on_the_list() {
        let with_origin = |origin: &str| format!("{UPGRADE}Origin: {origin}\r\n");
        routed(
            "GET /rooms/a HTTP/1.1",
            &with_origin("https://a.example"),
            |route| assert!(route.is_ok()),
        );
        let refusal = refused(
            "GET /rooms/a HTTP/1.1",
            &with_origin("https://a.example.org"),
        );
        assert_eq!(refusal.0, RefusalKind::OriginForbidden);
        let twice = with_origin("null\r\nOrigin: null");
        assert_eq!(
            refused("GET /rooms/a HTTP/1.1", &twice).0,
            RefusalKind::BadRequest
        );
    }

    proptest! {
        #[test]
        fn every_name_comes_back_from_its_escapes(name in "\\PC{1,60}") {
            let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let expected = (!name.chars().any(char::is_control)).then_some(name.as_str());
            let decoded = decode_room(escaped.as_bytes()).ok();
            prop_assert_eq!(decoded.as_deref(), expected);
        }
    }
}
