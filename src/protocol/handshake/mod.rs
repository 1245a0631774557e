//! The opening handshake, the server's side: HTTP/1.1 on the WebSocket port (RFC 6455 §4.2, RFC 9112).
//!
//! ```text
//! bytes ──parse_request──▶ ParsedRequest ──route──▶ Health ─▶ answer_health
//!   │         │                    │           └──▶ Upgrade ▶ answer_upgrade, then frames
//!   │ partial │ Refusal            │ Refusal
//!   ▼         ▼                    ▼
//! HeadScan  answer_refusal, then the connection is closed
//! ```
//!
//! The common request arrives whole and is parsed where it lies. One that does not is kept by the caller, and a
//! [`HeadScan`] looks at each further byte once until its end is there.

mod answer;
mod badge;
mod edge;
mod forwarded;
mod head;
mod identity;
mod network;
mod origin;
mod proxy_header;
mod request;
mod route;

pub use answer::{UPGRADE_FIXED_BYTES, answer_health, answer_refusal, answer_upgrade};
pub use badge::{Badge, Cookie, SameSite};
pub use edge::{Auth, Edge, is_header_name};
pub use forwarded::{Forwarded, forwarded_for};
pub use head::HeadScan;
pub use network::{Network, is_in};
pub use proxy_header::{ProxyHeader, ProxyProtocol, parse_proxy_header};
pub use request::{ParsedRequest, parse_request};
pub use route::{Health, Route, Upgrade, route};

use crate::metrics::RefusalKind;

/// What the handshake may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a request, its line, headers and empty line.
    pub bytes_max: usize,
    /// Headers of a request.
    pub header_count_max: usize,
    /// Allowed values of `Origin`; empty: any. `*` stands for one or more characters.
    pub origins: Vec<String>,
    /// What is believed of what comes through a balancer.
    pub edge: Edge,
}

/// Why a request is not served: what is counted, and what the other side reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The metric's label and the HTTP status.
    pub kind: RefusalKind,
    /// What is wrong and what to do about it: a sentence's beginning, without a full stop.
    pub detail: &'static str,
}

impl Refusal {
    /// A refusal for a reason that does not lie in the request's bytes: its text says what such a client can do.
    #[cold]
    #[must_use]
    pub const fn of(kind: RefusalKind) -> Self {
        let detail = match kind {
            RefusalKind::BadRequest => "not a request that this server understands",
            RefusalKind::OriginForbidden => "this Origin is not on the server's list of origins",
            RefusalKind::IdentityForbidden => "this client may not say who the user is",
            RefusalKind::NotFound => "connect to /rooms/{room}, a `/` in its name as %2F",
            RefusalKind::MethodNotAllowed => "use GET",
            RefusalKind::Timeout => "the request did not come whole in time: send it at once",
            RefusalKind::UriTooLong => {
                "the request line is too long: shorten the path or the query"
            }
            RefusalKind::UpgradeRequired => {
                "no `Upgrade: websocket`: connect with a WebSocket client"
            }
            RefusalKind::AddressFull => "too many connections from this address: close one first",
            RefusalKind::UserFull => "this user has as many connections as it may: close one first",
            RefusalKind::HeadersTooLarge => {
                "too many headers or bytes of headers: send fewer, cookies above all"
            }
            RefusalKind::NodeFull => {
                "this node holds as many connections as it may: try again later"
            }
            RefusalKind::HandshakeRate => "too many handshakes at this moment: try again later",
            RefusalKind::OverBudget => {
                "this node has no memory, or no place for a new room, left: try again later"
            }
            RefusalKind::Draining => {
                "this node is stopping: connect again, to another one if there is one"
            }
            RefusalKind::Backplane => {
                "this node cannot follow the room at Redis now: try again later, or on another node"
            }
        };
        Self { kind, detail }
    }

    /// A trusted proxy's connection without the PROXY header that the settings require.
    pub(crate) const NO_PROXY_HEADER: Self =
        Self::bad("no PROXY header before the request: this server requires one of its proxies");

    /// A malformed request, and what is malformed in it.
    #[cold]
    const fn bad(detail: &'static str) -> Self {
        Self {
            kind: RefusalKind::BadRequest,
            detail,
        }
    }
}
