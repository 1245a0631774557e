//! What stands before the server, and what of its word is believed.

use super::badge::Badge;
use super::head::is_token_byte;
use super::network::Network;
use super::proxy_header::ProxyProtocol;

/// Who says which user a client is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// The client itself, by `?user=`; nobody checks it.
    #[default]
    None,
    /// A trusted proxy, by the header of this name. Nobody else may send it, and `?user=` is refused.
    Header(String),
}

/// Whether `name` can be a header's name in the settings: a token (RFC 9110 §5.6.2) of 1 to 64 bytes.
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(is_token_byte)
}

/// What is believed of what comes through a balancer, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edge {
    /// The networks of the proxies whose word is taken.
    pub trusted_proxies: Vec<Network>,
    /// Who says which user a client is.
    pub auth: Auth,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Whether a trusted proxy's `X-Forwarded-For` tells the client.
    pub forwarded_for: bool,
    /// What the 101 says of the node.
    pub badge: Badge,
}
