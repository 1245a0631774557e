//! Whom a proxy forwards for, by `X-Forwarded-For`: the rightmost address that is not a trusted proxy's.
//!
//! ```text
//! X-Forwarded-For: 192.0.2.66, 203.0.113.9        each proxy appends whom it was called by,
//! X-Forwarded-For: 10.0.0.2                       the header may come several times
//!                  forged ┘         │      │
//!                            client ┘      └ a proxy before the proxy that calls
//! ```

use std::net::{IpAddr, SocketAddr};

use super::network::{Network, is_in};
use super::request::ParsedRequest;

/// What `X-Forwarded-For` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// The client; port 0 where none is told. `None`: the header is not there, or tells of nobody.
    pub client: Option<SocketAddr>,
    /// Something that is no address stood where the client would have been looked for. Then `client` is who brought it:
    /// the last address before that, seen from the right.
    pub is_malformed: bool,
}

/// Looks through all `X-Forwarded-For` of `request`, which comes from one of `trusted_proxies`.
///
/// From the right, the addresses of `trusted_proxies` are passed over; the first other one is the client, since a
/// trusted proxy wrote it down. What is further left anybody may have written. If all are trusted, the leftmost is the
/// client. An address is `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`; empty
/// elements do not count (RFC 9110 §5.6.1).
#[must_use]
pub fn forwarded_for(request: &ParsedRequest<'_>, trusted_proxies: &[Network]) -> Forwarded {
    let elements = request
        .values("X-Forwarded-For")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty());
    let mut found = Forwarded::default();
    // From the left: what is found is what would be, if the list ended here.
    for element in elements {
        match parse_address(element) {
            None => {
                found = Forwarded {
                    client: None,
                    is_malformed: true,
                };
            }
            Some(address) if is_in(trusted_proxies, address.ip()) => {
                found.client.get_or_insert(address);
            }
            Some(address) => {
                found = Forwarded {
                    client: Some(address),
                    is_malformed: false,
                };
            }
        }
    }
    found
}

fn parse_address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if text.contains('%') {
        return None; // a zone is of one host only
    }
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .map(|inner| inner.parse().map(IpAddr::V6)),
        None => Some(text.parse()),
    };
    match bare {
        Some(Ok(address)) => Some(SocketAddr::new(address, 0)),
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Edge, Options, parse_request};
    use super::*;

    fn networks() -> [Network; 2] {
        ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|text| Network::parse(text).unwrap())
    }

    fn found(headers: &str) -> Forwarded {
        let options = Options {
            bytes_max: 8_192,
            header_count_max: 64,
            origins: Vec::new(),
            edge: Edge::default(),
        };
        let bytes = format!("GET / HTTP/1.1\r\n{headers}\r\n");
        let request = parse_request(bytes.as_bytes(), &options).unwrap().unwrap();
        forwarded_for(&request, &networks())
    }

    /// The client of one header with this value, and whether something was malformed.
    fn client(value: &str) -> (Option<String>, bool) {
        let found = found(&format!("X-Forwarded-For: {value}\r\n"));
        (
            found.client.map(|client| client.to_string()),
            found.is_malformed,
        )
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_client() {
        for (value, expected) in [
            ("203.0.113.9", "203.0.113.9:0"),
            ("192.0.2.66, 203.0.113.9", "203.0.113.9:0"),
            ("192.0.2.66,203.0.113.9 ,\t10.0.0.2", "203.0.113.9:0"),
            ("203.0.113.9, 10.0.0.2, 10.0.0.3", "203.0.113.9:0"),
            ("10.0.0.2, 203.0.113.9", "203.0.113.9:0"),
            ("10.0.0.2, 10.0.0.3", "10.0.0.2:0"),
            ("forged, 203.0.113.9", "203.0.113.9:0"),
            ("203.0.113.9,, ,", "203.0.113.9:0"),
            ("2001:db8::9, 2001:db8:ffff::1", "[2001:db8::9]:0"),
        ] {
            assert_eq!(client(value), (Some(expected.into()), false), "{value}");
        }
    }

    #[test]
    fn ports_and_brackets_are_understood() {
        for (value, expected) in [
            ("203.0.113.9:51324", "203.0.113.9:51324"),
            ("[2001:db8::9]", "[2001:db8::9]:0"),
            ("[2001:db8::9]:51324", "[2001:db8::9]:51324"),
        ] {
            assert_eq!(client(value), (Some(expected.into()), false), "{value}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_search_at_who_brought_it() {
        for value in [
            "unknown",
            "203.0.113.9, unknown",
            "203.0.113.9:",
            "203.0.113.9:65536",
            "203.0.113.09",
            "[203.0.113.9]",
            "[2001:db8::9",
            "2001:db8::9]",
            "fe80::1%1",
            "[fe80::1%1]:80",
            "\"203.0.113.9\"",
            "for=203.0.113.9",
        ] {
            assert_eq!(client(value), (None, true), "{value}");
        }
        assert_eq!(
            client("203.0.113.9, x, 10.0.0.2, 10.0.0.3"),
            (Some("10.0.0.2:0".into()), true)
        );
    }

    #[test]
    fn several_headers_are_one_list_and_none_is_none() {
        let headers = "X-Forwarded-For: 192.0.2.66\r\nHost: a\r\nx-forwarded-FOR: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.2\r\n";
        let client = found(headers).client.unwrap();
        assert_eq!(client.to_string(), "203.0.113.9:0");
        assert_eq!(found("Host: a\r\n"), Forwarded::default());
        assert_eq!(found("X-Forwarded-For:\r\n"), Forwarded::default());
    }

    proptest! {
        /// The definition, walked from the right over a list at hand.
        #[test]
        fn the_search_from_the_left_ends_where_one_from_the_right_does(
            elements in prop::collection::vec(prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "203.0.113.9", "192.0.2.66", "x"]), 0..8)
        ) {
            let mut expected = Forwarded::default();
            for element in elements.iter().rev() {
                let Some(address) = parse_address(element.as_bytes()) else {
                    expected.is_malformed = true;
                    break;
                };
                expected.client = Some(address);
                if !is_in(&networks(), address.ip()) {
                    break;
                }
            }
            prop_assert_eq!(found(&format!("X-Forwarded-For: {}\r\n", elements.join(", "))), expected);
        }
    }
}
