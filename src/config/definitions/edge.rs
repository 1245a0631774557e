//! What stands before the node, and what of its word is believed.

use super::{Definition, setting};
use crate::config::group::Group;
use crate::config::value::Kind;
use crate::protocol::handshake::{Network, is_header_name};

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
];
