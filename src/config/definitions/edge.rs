//! What stands before the node, and what of its word is believed.

use super::{Definition, any, setting};
use crate::config::group::Group;
use crate::config::value::{Kind, Unit, Value};
use crate::protocol::handshake::{Network, ProxyProtocol, SameSite, is_header_name};

/// The settings of this part.
pub(super) const SETTINGS: &[Definition] = &[
    setting(
        "trusted_proxies",
        Group::Edge,
        Kind::Texts {
            range: "addresses and networks such as 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32; empty: nobody",
            accepts: |text| Network::parse(text).is_some(),
        },
        "",
        "The balancers whose word about a client is taken. Their own addresses have no limit of connections.",
        |draft, value| {
            let networks = value.texts();
            draft.settings.shard.edge.trusted_proxies = networks
                .iter()
                .filter_map(|text| Network::parse(text))
                .collect();
        },
    ),
    setting(
        "auth",
        Group::Edge,
        Kind::Choice(&["none", "header"]),
        "none",
        "Who says which user a client is: the client itself by ?user=, which nobody checks (none), or a trusted proxy by a header (header).",
        |draft, value| draft.auth_by_header = value.text().as_deref() == Some("header"),
    ),
    setting(
        "identity_header",
        Group::Edge,
        Kind::Text {
            range: "a header's name of 1 to 64 characters",
            accepts: is_header_name,
        },
        "X-User-Id",
        "With auth = \"header\": the header in which a trusted proxy names the user. From others it is answered 403.",
        |draft, value| draft.identity_header = value.text().unwrap_or_default(),
    ),
    setting(
        "proxy_protocol",
        Group::Edge,
        Kind::Choice(&["off", "accept", "require"]),
        "off",
        "Whether connections begin with a PROXY header (version 1 or 2): none, those of trusted proxies may, or all come from trusted proxies and have one.",
        |draft, value| {
            draft.settings.shard.edge.proxy_protocol = match value.text().as_deref() {
                Some("accept") => ProxyProtocol::Accept,
                Some("require") => ProxyProtocol::Require,
                _ => ProxyProtocol::Off,
            }
        },
    ),
    setting(
        "forwarded_for",
        Group::Edge,
        Kind::Choice(&["off", "on"]),
        "off",
        "Whether X-Forwarded-For of a trusted proxy tells the client: its rightmost address that is not a trusted proxy's.",
        |draft, value| draft.settings.shard.edge.forwarded_for = value.text().as_deref() == Some("on"),
    ),
    setting(
        "node_header",
        Group::Edge,
        Kind::Text {
            range: "a header's name of 1 to 64 characters that means nothing else in a 101",
            accepts: is_node_header_name,
        },
        "X-Throng-Node",
        "The header of the 101 that has this node's name (node_id).",
        |draft, value| draft.node_header = value.text(),
    )
    .or("off"),
    setting(
        "affinity_cookie",
        Group::Edge,
        Kind::Text {
            range: "a cookie's name of 1 to 64 characters, such as throng_node",
            accepts: is_header_name,
        },
        "off",
        "The cookie that the 101 sets, for a balancer to bring the client back to this node. Who has it with this value already is not sent it again.",
        |draft, value| draft.affinity_cookie = value.text(),
    )
    .or("off"),
    setting(
        "affinity_value",
        Group::Edge,
        Kind::Text {
            range: "1 to 64 visible ASCII characters without `\"`, `,`, `;` and `\\`",
            accepts: |text| (1..=64).contains(&text.len()) && text.bytes().all(is_cookie_byte),
        },
        "auto",
        "The cookie's value. auto: node_id.",
        |draft, value| draft.affinity_value = value.text(),
    )
    .or("auto"),
    setting(
        "affinity_path",
        Group::Edge,
        Kind::Text {
            range: "1 to 128 visible ASCII characters without `;`, the first a `/`",
            accepts: |text| {
                text.len() <= 128 && text.starts_with('/') && text.bytes().all(is_attribute_byte)
            },
        },
        "/",
        "Path of the cookie.",
        |draft, value| draft.affinity_path = value.text().unwrap_or_default(),
    ),
    setting(
        "affinity_domain",
        Group::Edge,
        Kind::Text {
            range: "a host name of 1 to 128 characters",
            accepts: |text| {
                let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
                (1..=128).contains(&text.len()) && text.bytes().all(is_host_byte)
            },
        },
        "none",
        "Domain of the cookie. none: the host that set it, and no other.",
        |draft, value| draft.affinity_domain = value.text(),
    )
    .or("none"),
    setting(
        "affinity_max_age_s",
        Group::Edge,
        Kind::Number(
            Unit::Seconds,
            any(1, 400 * 24 * 3_600).or_zero("as long as the browser runs"),
        ),
        "0",
        "Max-Age of the cookie.",
        |draft, value| draft.affinity_max_age_s = value.u32().unwrap_or_default(),
    ),
    setting(
        "affinity_same_site",
        Group::Edge,
        Kind::Choice(&["lax", "strict", "none"]),
        "lax",
        "SameSite of the cookie. Pages of other sites need none, which browsers take with affinity_secure only.",
        |draft, value| {
            draft.affinity_same_site = match value.text().as_deref() {
                Some("strict") => SameSite::Strict,
                Some("none") => SameSite::None,
                _ => SameSite::Lax,
            }
        },
    ),
    setting(
        "affinity_secure",
        Group::Edge,
        Kind::Boolean,
        "false",
        "Whether the cookie is for TLS only. It is always HttpOnly.",
        |draft, value| draft.affinity_secure = *value == Value::Boolean(true),
    ),
];

/// Whether `name` may be the node header's: none that HTTP or RFC 6455 gives a meaning in a 101.
fn is_node_header_name(name: &str) -> bool {
    let taken = [
        "connection",
        "content-length",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let lower = name.to_ascii_lowercase();
    is_header_name(name) && !taken.contains(&&*lower) && !lower.starts_with("sec-websocket-")
}

/// Whether `byte` may be in a cookie's value: `cookie-octet` (RFC 6265 §4.1.1).
const fn is_cookie_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

/// Whether `byte` may be in an attribute of a cookie: `av-octet` (RFC 6265 §4.1.1) but for the space.
const fn is_attribute_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b';'
}
