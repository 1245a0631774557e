//! Which user a client is: by `?user=` where nobody checks it, or by a header that only a trusted proxy may send.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::Refusal;
use super::edge::Auth;
use super::request::{Once, ParsedRequest};
use crate::limits::USER_ID_BYTES_MAX;
use crate::metrics::RefusalKind;

/// The user that `request` is of; `None`: it names none. `parameter`: the query's `user`, as it came.
///
/// # Errors
/// - `IdentityForbidden`: with [`Auth::Header`], the header does not come from a trusted proxy, or there is a
///   `?user=` at all: nobody becomes another user by writing it into an address.
/// - `BadRequest`: repeated, or not what an id may be.
pub(super) fn identify<'a>(
    request: &ParsedRequest<'a>,
    parameter: Once<'a>,
    auth: &Auth,
    from_proxy: bool,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    match auth {
        Auth::None => match parameter {
            Once::Absent => Ok(None),
            Once::Given(id) => decode_parameter(id).map(Some),
            Once::Repeated => Err(Refusal::bad("more than one user in the query")),
        },
        Auth::Header(name) => {
            let forbidden = |detail| {
                Err(Refusal {
                    kind: RefusalKind::IdentityForbidden,
                    detail,
                })
            };
            if parameter != Once::Absent {
                return forbidden("a proxy says here who the user is: leave ?user= out");
            }
            let mut values = request.values(name);
            match (values.next(), values.next()) {
                (None, _) => Ok(None),
                (Some(_), _) if !from_proxy => {
                    forbidden("only a trusted proxy may send the header that names the user")
                }
                (Some(id), None) => std::str::from_utf8(id)
                    .map_err(|_| Refusal::bad("the user's id is not UTF-8"))
                    .and_then(|id| check(Cow::Borrowed(id)))
                    .map(Some),
                (Some(_), Some(_)) => Err(Refusal::bad("more than one header that names the user")),
            }
        }
    }
}

fn decode_parameter(id: &[u8]) -> Result<Cow<'_, str>, Refusal> {
    if !escapes_are_whole(id) {
        return Err(Refusal::bad(
            "the user's id has a `%` without two hexadecimal digits: write it as %25",
        ));
    }
    let id = percent_decode(id)
        .decode_utf8()
        .map_err(|_| Refusal::bad("the user's id is not UTF-8"))?;
    check(id)
}

/// Whether behind each `%` are two hexadecimal digits.
pub(super) fn escapes_are_whole(text: &[u8]) -> bool {
    let mut escapes = text.split(|&byte| byte == b'%').skip(1);
    escapes.all(
        |escape| matches!(escape, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()),
    )
}

fn check(id: Cow<'_, str>) -> Result<Cow<'_, str>, Refusal> {
    if id.is_empty() {
        Err(Refusal::bad("the user's id is empty: leave it out"))
    } else if id.len() > USER_ID_BYTES_MAX {
        Err(Refusal::bad("the user's id is longer than 128 bytes"))
    } else if id.chars().any(char::is_control) {
        Err(Refusal::bad("the user's id has a control character"))
    } else {
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Edge, Options, Route, parse_request, route};
    use super::*;

    const UPGRADE: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

    fn by_header() -> Auth {
        Auth::Header("X-User-Id".into())
    }

    /// The user of an upgrade with `query` and further `headers`.
    fn user(
        auth: Auth,
        query: &str,
        headers: &str,
        from_proxy: bool,
    ) -> Result<Option<String>, Refusal> {
        let options = Options {
            bytes_max: 8_192,
            header_count_max: 16,
            origins: Vec::new(),
            edge: Edge {
                auth,
                ..Edge::default()
            },
        };
        let bytes = format!("GET /rooms/a{query} HTTP/1.1\r\n{UPGRADE}{headers}\r\n");
        let request = parse_request(bytes.as_bytes(), &options).unwrap().unwrap();
        match route(&request, &options, from_proxy)? {
            Route::Upgrade(upgrade) => Ok(upgrade.user.map(Cow::into_owned)),
            other => panic!("{other:?}"),
        }
    }

    fn by_query(query: &str) -> Result<Option<String>, Refusal> {
        user(Auth::None, query, "X-User-Id: mallory\r\n", false)
    }

    fn kind(result: Result<Option<String>, Refusal>) -> RefusalKind {
        result.unwrap_err().kind
    }

    #[test]
    fn the_query_names_the_user_where_nobody_checks_it() {
        assert_eq!(
            by_query(""),
            Ok(None),
            "a header of nobody's does not count"
        );
        assert_eq!(by_query("?user=anna&echo=0"), Ok(Some("anna".into())));
        assert_eq!(
            by_query("?user=a%2Fb%20%C3%A9+c"),
            Ok(Some("a/b é+c".into()))
        );
        assert_eq!(by_query("?User=anna&users=b"), Ok(None));
    }

    #[test]
    fn an_id_has_1_to_128_bytes_without_control_characters_and_comes_once() {
        let long = |count| format!("?user={}", "x".repeat(count));
        assert_eq!(by_query(&long(128)).unwrap().unwrap().len(), 128);
        for query in [
            long(129).as_str(),
            "?user",
            "?user=",
            "?user=a&user=a",
            "?user=%",
            "?user=%4",
            "?user=%zz",
            "?user=%FF",
            "?user=%00",
            "?user=%C2%85",
            &format!("?user={}", "%C3%A9".repeat(65)),
        ] {
            assert_eq!(kind(by_query(query)), RefusalKind::BadRequest, "{query}");
        }
    }

    #[test]
    fn a_trusted_proxy_names_the_user_by_its_header_as_it_stands() {
        let header = |headers: &str| user(by_header(), "", headers, true);
        assert_eq!(header(""), Ok(None));
        assert_eq!(
            header("x-user-ID:\t anna%20é \r\n"),
            Ok(Some("anna%20é".into()))
        );
        for headers in [
            "X-User-Id:\r\n",
            "X-User-Id: a\tb\r\n",
            "X-User-Id: a\r\nX-User-Id: a\r\n",
            &format!("X-User-Id: {}\r\n", "x".repeat(129)),
        ] {
            assert_eq!(kind(header(headers)), RefusalKind::BadRequest, "{headers}");
        }
    }

    #[test]
    fn nobody_else_names_a_user_where_a_proxy_does() {
        let header = "X-User-Id: anna\r\n";
        assert_eq!(
            kind(user(by_header(), "", header, false)),
            RefusalKind::IdentityForbidden
        );
        for from_proxy in [false, true] {
            for query in ["?user=anna", "?user=", "?user=a&user=b"] {
                assert_eq!(
                    kind(user(by_header(), query, header, from_proxy)),
                    RefusalKind::IdentityForbidden
                );
            }
        }
        assert_eq!(user(by_header(), "", "", false), Ok(None));
    }

    proptest! {
        #[test]
        fn every_id_comes_back_from_its_escapes(id in "\\PC{0,40}") {
            let escaped: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let fits = (1..=USER_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
            let decoded = decode_parameter(escaped.as_bytes()).ok();
            prop_assert_eq!(decoded.as_deref(), fits.then_some(id.as_str()));
        }
    }
}
