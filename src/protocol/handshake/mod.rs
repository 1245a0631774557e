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
mod head;
mod request;
mod route;

pub use answer::{answer_health, answer_refusal, answer_upgrade};
pub use head::HeadScan;
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
    #[cold]
    const fn new(kind: RefusalKind, detail: &'static str) -> Self {
        Self { kind, detail }
    }

    #[cold]
    const fn bad(detail: &'static str) -> Self {
        Self::new(RefusalKind::BadRequest, detail)
    }
}
