//! A request and its answer, as values.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What was asked. Header values are as they came; missing ones are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, … as it came; `HEAD` comes as `GET`.
    pub method: String,
    /// The path, not decoded, without the query.
    pub path: String,
    /// What follows the `?`, not decoded; empty without one.
    pub query: String,
    /// What follows `Bearer ` in `Authorization`.
    pub bearer: Option<String>,
    /// Whom it was meant for: the authority of an absolute target, else `Host`; several are joined by `, `.
    pub host: Option<String>,
    /// Whether there is an `Origin`, which browsers write for a page.
    pub has_origin: bool,
    /// `Accept`.
    pub accept: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// What is answered. The carrier adds `Content-Length`, `Date` and `Cache-Control: no-store`, and `Connection: close` where
/// the answer is the connection's last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

const JSON_CONTENT_TYPE: &str = "application/json";

impl Answer {
    /// A JSON answer.
    #[must_use]
    pub fn json(status: u16, value: &Value) -> Self {
        let mut body = value.to_string().into_bytes();
        body.push(b'\n');
        Self {
            status,
            content_type: JSON_CONTENT_TYPE,
            headers: Vec::new(),
            body,
        }
    }

    /// An answer of text.
    #[must_use]
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self {
            status: 200,
            content_type,
            headers: Vec::new(),
            body: text.into_bytes(),
        }
    }

    /// An error: a stable `code` for programs, and for people what to do.
    #[cold]
    #[must_use]
    pub fn error(status: u16, code: &'static str, message: &str) -> Self {
        Self::json(
            status,
            &json!({ "error": { "code": code, "message": message } }),
        )
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// 401 (RFC 6750 §3).
    #[cold]
    pub(super) fn unauthorized(given: bool) -> Self {
        let (message, challenge) = if given {
            (
                "the key is not the one of this node",
                "Bearer realm=\"throng\", error=\"invalid_token\"",
            )
        } else {
            (
                "send the admin key as `Authorization: Bearer KEY`",
                "Bearer realm=\"throng\"",
            )
        };
        Self::error(401, "unauthorized", message).with_header("WWW-Authenticate", challenge)
    }

    /// 403 where no key is set: a page in a browser on this host could have sent it.
    #[cold]
    pub(super) fn from_browser(because: &str) -> Self {
        let message = format!(
            "{because}: a page in a browser may be behind it. Ask without Origin and by an IP address or localhost, or set \
             THRONG_ADMIN_KEY and send it"
        );
        Self::error(403, "browser_refused", &message)
    }

    /// 405 with the methods that the path takes.
    #[cold]
    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("this path takes {allow}");
        Self::error(405, "method_not_allowed", &message).with_header("Allow", allow)
    }

    /// 503 for something that passes by itself.
    #[cold]
    pub(super) fn busy(code: &'static str, message: &str) -> Self {
        Self::error(503, code, message).with_header("Retry-After", "1")
    }

    /// 504: the shards that would have known did not answer in time.
    #[cold]
    pub(super) fn shards_stalled(shards: &[u8]) -> Self {
        let mut message = String::from("no answer in time from shard");
        for (index, shard) in shards.iter().enumerate() {
            let _ = write!(message, "{}{shard}", if index == 0 { " " } else { ", " });
        }
        message.push_str("; try again, and look at its loop times in /metrics");
        let error = json!({ "code": "shard_stalled", "message": message });
        Self::json(504, &json!({ "error": error, "stalled_shards": shards }))
    }
}
