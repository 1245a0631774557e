//! The PROXY protocol's header, versions 1 and 2: what a balancer writes before the client's first byte
//! (haproxy.org, proxy-protocol.txt, §2).
//!
//! ```text
//! v1  PROXY TCP4 203.0.113.9 192.0.2.1 51324 443\r\n                         text, 107 bytes at most
//! v2  \r\n\r\n\0\r\nQUIT\n | version, command | family | length (16 bits) | addresses | TLVs
//!     12 bytes               1                  1        2                  0, 12, 36, 216
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Refusal;
use crate::limits::PROXY_HEADER_BYTES_MAX;

/// Whether connections begin with a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyProtocol {
    /// None does: it would be no HTTP.
    #[default]
    Off,
    /// Those of trusted proxies may.
    Accept,
    /// All must come from trusted proxies and have one.
    Require,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The beginning of a header; its end is not here yet.
    Partial,
    /// No header.
    Absent,
    /// A header.
    Whole {
        /// Its bytes.
        header_bytes: usize,
        /// The client. `None`: the proxy says that it speaks for itself (`LOCAL`), or for no TCP connection over IP. Its
        /// address stands, and what is behind the header is a client's all the same.
        client: Option<SocketAddr>,
    },
}

const V1_FRONT: &[u8; 6] = b"PROXY ";
/// §2.1: "a 108-byte buffer is always enough to store all the line and a trailing zero".
const V1_BYTES_MAX: usize = 107;
const V2_FRONT: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;

/// Looks for a header at the front of `bytes`, the first of the connection.
///
/// TLVs of version 2 are passed over; only their lengths are checked.
///
/// # Errors
/// `BadRequest`: it begins like a header and is none, or has more than [`PROXY_HEADER_BYTES_MAX`].
pub fn parse_proxy_header(bytes: &[u8]) -> Result<ProxyHeader, Refusal> {
    if begins_like(bytes, V1_FRONT) {
        parse_v1(bytes)
    } else if begins_like(bytes, V2_FRONT) {
        parse_v2(bytes)
    } else {
        Ok(ProxyHeader::Absent)
    }
}

/// Whether `bytes`, as far as they go, are those of `front`.
fn begins_like(bytes: &[u8], front: &[u8]) -> bool {
    let common = bytes.len().min(front.len());
    bytes[..common] == front[..common]
}

fn parse_v1(bytes: &[u8]) -> Result<ProxyHeader, Refusal> {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < V1_BYTES_MAX {
            Ok(ProxyHeader::Partial)
        } else {
            Err(Refusal::bad("a PROXY header whose line does not end"))
        };
    };
    let client = std::str::from_utf8(&window[V1_FRONT.len()..end])
        .ok()
        .and_then(v1_client)
        .ok_or_else(|| Refusal::bad("a PROXY header that is not `PROXY TCP4 FROM TO PORT PORT`"))?;
    Ok(ProxyHeader::Whole {
        header_bytes: end + 2,
        client,
    })
}

/// The client that `line`, from behind its first space to its end, tells of; the outer `None`: it is malformed.
fn v1_client(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None); // whatever is behind it (§2.1)
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse().ok().map(IpAddr::V4),
            "TCP6" => text.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let port = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let has_front_zero = text.len() > 1 && text.starts_with('0');
        (is_number && !has_front_zero)
            .then(|| text.parse::<u16>().ok())
            .flatten()
    };
    let (from, _) = (address(words.next()?)?, address(words.next()?)?);
    let (from_port, _) = (port(words.next()?)?, port(words.next()?)?);
    words
        .next()
        .is_none()
        .then_some(Some(SocketAddr::new(from, from_port)))
}

fn parse_v2(bytes: &[u8]) -> Result<ProxyHeader, Refusal> {
    const NOT_V2: Refusal = Refusal::bad("a PROXY header that is not of version 2 or 1");
    if bytes
        .get(12)
        .is_some_and(|&byte| !matches!(byte, 0x20 | 0x21))
        || bytes
            .get(13)
            .is_some_and(|&byte| byte >> 4 > 3 || byte & 0xf > 2)
    {
        return Err(NOT_V2);
    }
    let Some(&[.., version_command, family, high, low]) = bytes.first_chunk::<V2_FIXED_BYTES>()
    else {
        return Ok(ProxyHeader::Partial);
    };
    let header_bytes = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if header_bytes > PROXY_HEADER_BYTES_MAX {
        return Err(Refusal::bad(
            "a PROXY header of more than 4096 bytes: let the proxy send fewer TLVs",
        ));
    }
    let Some(body) = bytes.get(V2_FIXED_BYTES..header_bytes) else {
        return Ok(ProxyHeader::Partial);
    };
    let is_local = version_command & 0xf == 0;
    let client = match (is_local, family) {
        (false, 0x11) => {
            let (&[a, b, c, d, _, _, _, _, high, low, _, _], tlvs) =
                body.split_first_chunk().ok_or(NOT_V2)?;
            check_tlvs(tlvs).ok_or(NOT_V2)?;
            Some((
                IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
                u16::from_be_bytes([high, low]),
            ))
        }
        (false, 0x21) => {
            let (addresses, tlvs) = body.split_first_chunk::<36>().ok_or(NOT_V2)?;
            check_tlvs(tlvs).ok_or(NOT_V2)?;
            let from: [u8; 16] = *addresses.first_chunk().expect("16 of 36");
            Some((
                IpAddr::V6(Ipv6Addr::from(from)),
                u16::from_be_bytes([addresses[32], addresses[33]]),
            ))
        }
        // The proxy's own check, or a client that came by no TCP over IP: the connection's own address stands (§2.2).
        _ => None,
    };
    Ok(ProxyHeader::Whole {
        header_bytes,
        client: client.map(|(address, port)| SocketAddr::new(address, port)),
    })
}

/// Whether `tlvs` are whole entries of type, length (16 bits) and value (§2.2.1).
fn check_tlvs(mut tlvs: &[u8]) -> Option<()> {
    while !tlvs.is_empty() {
        let (&[_, high, low], rest) = tlvs.split_first_chunk()?;
        tlvs = rest.get(usize::from(u16::from_be_bytes([high, low]))..)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2: command, family, addresses and what is behind them.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap();
        [
            V2_FRONT,
            &[command, family][..],
            &length.to_be_bytes(),
            body,
        ]
        .concat()
    }

    const V4_BODY: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 1, 0xc8, 0x7c, 1, 0xbb];

    fn v6_body() -> Vec<u8> {
        let from: Ipv6Addr = "2001:db8::9".parse().unwrap();
        [
            &from.octets()[..],
            &[0; 16],
            &51_324u16.to_be_bytes(),
            &[1, 0xbb],
        ]
        .concat()
    }

    /// The client of a header that is all of `bytes`.
    fn client(bytes: &[u8]) -> Option<String> {
        let followed = [bytes, b"GET /"].concat();
        match parse_proxy_header(&followed) {
            Ok(ProxyHeader::Whole {
                header_bytes,
                client,
            }) => {
                assert_eq!(header_bytes, bytes.len());
                client.map(|client| client.to_string())
            }
            other => panic!("{other:?}: {}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn version_1_tells_the_client() {
        for (line, expected) in [
            (
                "TCP4 203.0.113.9 192.0.2.1 51324 443",
                Some("203.0.113.9:51324"),
            ),
            ("TCP6 2001:db8::9 ::1 0 65535", Some("[2001:db8::9]:0")),
            ("UNKNOWN", None),
            ("UNKNOWN whatever is here", None),
        ] {
            let header = format!("PROXY {line}\r\n");
            assert_eq!(client(header.as_bytes()).as_deref(), expected, "{line}");
        }
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n");
        assert_eq!(line.len(), V1_BYTES_MAX);
        assert_eq!(client(line.as_bytes()), None);
    }

    #[test]
    fn version_1_has_one_spelling() {
        for line in [
            "",
            "TCP4",
            "TCP5 203.0.113.9 192.0.2.1 51324 443",
            "tcp4 203.0.113.9 192.0.2.1 51324 443",
            "TCP4 2001:db8::9 192.0.2.1 51324 443",
            "TCP4 203.0.113.9 ::1 51324 443",
            "TCP6 203.0.113.9 192.0.2.1 51324 443",
            "TCP4 203.0.113.09 192.0.2.1 51324 443",
            "TCP4 203.0.113.9 192.0.2.1 65536 443",
            "TCP4 203.0.113.9 192.0.2.1 +1 443",
            "TCP4 203.0.113.9 192.0.2.1 01 443",
            "TCP4 203.0.113.9 192.0.2.1 51324",
            "TCP4 203.0.113.9 192.0.2.1 51324 443 ",
            "TCP4  203.0.113.9 192.0.2.1 51324 443",
            "TCP4 203.0.113.9 192.0.2.1 51324 ",
            "TCP4 203.0.113.9 192.0.2.1 51324 443\n",
            "UNKNOWNS",
        ] {
            let header = format!("PROXY {line}\r\n");
            assert!(parse_proxy_header(header.as_bytes()).is_err(), "{line:?}");
        }
        let endless = "PROXY UNKNOWN ".to_owned() + &"x".repeat(200);
        assert!(parse_proxy_header(&endless.as_bytes()[..107]).is_err());
        assert_eq!(
            parse_proxy_header(&endless.as_bytes()[..106]),
            Ok(ProxyHeader::Partial)
        );
    }

    #[test]
    fn version_2_tells_the_client_and_its_tlvs_are_passed_over() {
        let expected = Some("203.0.113.9:51324".to_owned());
        assert_eq!(client(&v2(0x21, 0x11, &V4_BODY)), expected);
        let with_tlvs = [&V4_BODY[..], &[4, 0, 0], &[0xea, 0, 3, 1, 2, 3]].concat();
        assert_eq!(client(&v2(0x21, 0x11, &with_tlvs)), expected);
        assert_eq!(
            client(&v2(0x21, 0x21, &v6_body())).unwrap(),
            "[2001:db8::9]:51324"
        );
    }

    #[test]
    fn a_proxy_speaks_for_itself_or_of_no_tcp_and_its_own_address_stands() {
        for (command, family, body) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &V4_BODY),
            (0x20, 0x00, &[9; 40]), // LOCAL: what is behind it is not looked at
            (0x21, 0x00, &[]),
            (0x21, 0x12, &V4_BODY),
            (0x21, 0x31, &[b'/'; 216]),
        ] {
            assert_eq!(client(&v2(command, family, body)), None);
        }
    }

    #[test]
    fn version_2_has_bounds() {
        let nearly = |body: &[u8], family| parse_proxy_header(&v2(0x21, family, body));
        assert!(nearly(&V4_BODY[..11], 0x11).is_err(), "too short for IPv4");
        assert!(
            nearly(&v6_body()[..35], 0x21).is_err(),
            "too short for IPv6"
        );
        for tlvs in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 0, 5, 0xff, 0xff, 1]] {
            assert!(nearly(&[&V4_BODY[..], tlvs].concat(), 0x11).is_err());
        }
        let filled = |total: usize| {
            let value = total - 16 - 12 - 3;
            let length = u16::try_from(value).unwrap().to_be_bytes();
            let body = [&V4_BODY[..], &[4], &length, &vec![0; value]].concat();
            v2(0x21, 0x11, &body)
        };
        assert!(client(&filled(PROXY_HEADER_BYTES_MAX)).is_some());
        let over = filled(PROXY_HEADER_BYTES_MAX + 1);
        assert!(
            parse_proxy_header(&over[..16]).is_err(),
            "known when the length is here"
        );
        for (command, family) in [(0x11, 0x11), (0x22, 0x11), (0x21, 0x41), (0x21, 0x13)] {
            let header = v2(command, family, &V4_BODY);
            assert!(parse_proxy_header(&header[..14]).is_err());
        }
    }

    #[test]
    fn what_is_no_header_is_known_at_its_first_byte_that_differs() {
        for bytes in [
            &b"G"[..],
            b"PU",
            b"PROPFIND",
            b"PROXYX",
            b"\r\nG",
            b"\x16\x03",
        ] {
            assert_eq!(parse_proxy_header(bytes), Ok(ProxyHeader::Absent));
        }
        for bytes in [&b""[..], b"P", b"PROXY", b"\r", V2_FRONT] {
            assert_eq!(parse_proxy_header(bytes), Ok(ProxyHeader::Partial));
        }
    }

    fn any_header() -> impl Strategy<Value = Vec<u8>> {
        let v1 = (any::<Ipv4Addr>(), any::<u16>()).prop_map(|(address, port)| {
            format!("PROXY TCP4 {address} 192.0.2.1 {port} 443\r\n").into_bytes()
        });
        let v1_v6 = (any::<Ipv6Addr>(), any::<u16>()).prop_map(|(address, port)| {
            format!("PROXY TCP6 {address} ::1 {port} 443\r\n").into_bytes()
        });
        let tlvs = prop::collection::vec(any::<u8>(), 0..40).prop_map(|value| {
            [
                &[5][..],
                &u16::try_from(value.len()).unwrap().to_be_bytes(),
                &value,
            ]
            .concat()
        });
        let v2 = tlvs.prop_map(|tlvs| v2(0x21, 0x11, &[&V4_BODY[..], &tlvs].concat()));
        prop_oneof![v1, v1_v6, v2]
    }

    proptest! {
        #[test]
        fn a_header_in_pieces_ends_like_one_that_comes_at_once(header in any_header(), behind in prop::collection::vec(any::<u8>(), 0..20)) {
            let bytes = [&header[..], &behind].concat();
            let whole = parse_proxy_header(&bytes).unwrap();
            let header_bytes = header.len();
            let ProxyHeader::Whole { header_bytes: found, .. } = whole else { panic!("{whole:?}") };
            prop_assert_eq!(found, header_bytes);
            for end in 0..bytes.len() {
                let expected = if end < header_bytes { ProxyHeader::Partial } else { whole };
                prop_assert_eq!(parse_proxy_header(&bytes[..end]), Ok(expected));
            }
        }

        #[test]
        fn any_bytes_are_judged_within_bounds(front in 0usize..3, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let front = [&b""[..], V1_FRONT, V2_FRONT][front];
            let bytes = [front, &rest].concat();
            if let Ok(ProxyHeader::Whole { header_bytes, .. }) = parse_proxy_header(&bytes) {
                prop_assert!(header_bytes <= bytes.len());
            }
        }
    }
}
