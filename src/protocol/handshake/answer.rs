//! Answers to requests: the upgrade, the health check, the refusals. Whole HTTP/1.1 responses, appended to a buffer.

use super::{Health, Refusal};
use crate::metrics::RefusalKind;

const UPGRADE_FRONT: &[u8; 97] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: ";

/// Bytes of an upgrade's answer without further lines: no more than clients need.
pub const UPGRADE_FIXED_BYTES: usize = UPGRADE_FRONT.len() + 28 + 4;

/// Appends the answer that makes the connection a WebSocket (RFC 6455 §4.2.2). `lines`: further headers, each with its
/// CRLF.
///
/// No subprotocol and no extension is ever agreed on in the raw dialect.
#[inline]
pub fn answer_upgrade(out: &mut Vec<u8>, accept: &[u8; 28], lines: &[u8]) {
    const END: usize = UPGRADE_FRONT.len() + 28;
    let mut front = [0; END + 2];
    front[..UPGRADE_FRONT.len()].copy_from_slice(UPGRADE_FRONT);
    front[UPGRADE_FRONT.len()..END].copy_from_slice(accept);
    front[END..].copy_from_slice(b"\r\n");
    out.extend_from_slice(&front);
    out.extend_from_slice(lines);
    out.extend_from_slice(b"\r\n");
}

/// Appends the answer to a health check: 200 when `ready`, 503 while draining. Says whether another request may follow
/// on the connection; if not, it is to be closed once the answer is out.
#[must_use]
pub fn answer_health(out: &mut Vec<u8>, ready: bool, health: Health) -> bool {
    let keep_alive = ready && health.keep_alive;
    let (status, body) = if ready {
        ("200 OK", r#"{"status":"ok"}"#)
    } else {
        ("503 Service Unavailable", r#"{"status":"draining"}"#)
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    push(
        out,
        &[
            "HTTP/1.1 ",
            status,
            "\r\nContent-Type: application/json\r\nContent-Length: ",
            &body.len().to_string(),
        ],
    );
    push(
        out,
        &[
            "\r\nCache-Control: no-store\r\nConnection: ",
            connection,
            "\r\n\r\n",
        ],
    );
    if health.with_body {
        push(out, &[body]);
    }
    keep_alive
}

/// Appends the answer to a request that is not served; the connection is to be closed once it is out.
///
/// `retry_after_s`, in seconds, is told where it is given: with 503, and with 429.
#[cold]
pub fn answer_refusal(out: &mut Vec<u8>, refusal: &Refusal, retry_after_s: Option<u32>) {
    let status = refusal.kind.status().to_string();
    let body = format!("{status} {}: {}.\n", phrase(refusal.kind), refusal.detail);
    push(
        out,
        &["HTTP/1.1 ", &status, " ", phrase(refusal.kind), "\r\n"],
    );
    push(
        out,
        &[
            "Content-Type: text/plain; charset=utf-8\r\nContent-Length: ",
            &body.len().to_string(),
            "\r\n",
        ],
    );
    push(out, &["Cache-Control: no-store\r\n"]);
    if let Some(seconds) = retry_after_s {
        push(out, &["Retry-After: ", &seconds.to_string(), "\r\n"]);
    }
    push(
        out,
        &[match refusal.kind {
            // RFC 9110 §15.5.6.
            RefusalKind::MethodNotAllowed => "Allow: GET\r\nConnection: close\r\n\r\n",
            // RFC 6455 §4.2.2, §4.4; RFC 9110 §7.8 and §15.5.22.
            RefusalKind::UpgradeRequired => {
                "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n\r\n"
            }
            _ => "Connection: close\r\n\r\n",
        }],
    );
    push(out, &[&body]);
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

const fn phrase(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::BadRequest => "Bad Request",
        RefusalKind::OriginForbidden | RefusalKind::IdentityForbidden => "Forbidden",
        RefusalKind::NotFound => "Not Found",
        RefusalKind::MethodNotAllowed => "Method Not Allowed",
        RefusalKind::Timeout => "Request Timeout",
        RefusalKind::UriTooLong => "URI Too Long",
        RefusalKind::UpgradeRequired => "Upgrade Required",
        RefusalKind::AddressFull | RefusalKind::UserFull => "Too Many Requests",
        RefusalKind::HeadersTooLarge => "Request Header Fields Too Large",
        RefusalKind::NodeFull
        | RefusalKind::HandshakeRate
        | RefusalKind::OverBudget
        | RefusalKind::Draining
        | RefusalKind::Backplane => "Service Unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status line, headers in lower case, body; the body is as long as announced.
    fn read(out: &[u8]) -> (String, Vec<String>, String) {
        let text = std::str::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n").map(str::to_owned);
        let status = lines.next().unwrap();
        (
            status,
            lines.map(|line| line.to_ascii_lowercase()).collect(),
            body.to_owned(),
        )
    }

    #[test]
    fn the_upgrade_is_what_the_rfc_shows() {
        let mut out = Vec::new();
        answer_upgrade(&mut out, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"");
        let (status, headers, body) = read(&out);
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 101 Switching Protocols", "")
        );
        let expected = [
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        ];
        assert_eq!(headers, expected);
        assert_eq!((out.len(), UPGRADE_FIXED_BYTES), (129, 129));
        out.clear();
        answer_upgrade(&mut out, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"X-A: b\r\n");
        assert_eq!(read(&out).1, [&expected[..], &["x-a: b"]].concat());
    }

    #[test]
    fn health_is_told_and_a_draining_node_ends_the_connection() {
        let answer = |ready, keep_alive, with_body| {
            let mut out = Vec::new();
            let stays = answer_health(
                &mut out,
                ready,
                Health {
                    keep_alive,
                    with_body,
                },
            );
            let (status, headers, body) = read(&out);
            assert!(headers.contains(&"cache-control: no-store".to_owned()));
            assert_eq!(headers.contains(&"connection: close".to_owned()), !stays);
            (stays, status, headers, body)
        };
        let (stays, status, headers, body) = answer(true, true, true);
        assert_eq!(
            (stays, status.as_str(), body.as_str()),
            (true, "HTTP/1.1 200 OK", r#"{"status":"ok"}"#)
        );
        assert!(headers.contains(&format!("content-length: {}", body.len())));
        let (stays, status, headers, body) = answer(false, true, true);
        assert_eq!((stays, body.as_str()), (false, r#"{"status":"draining"}"#));
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert!(headers.contains(&format!("content-length: {}", body.len())));
        let (stays, _, headers, body) = answer(true, false, false);
        assert_eq!((stays, body.as_str()), (false, ""));
        assert!(
            headers.contains(&"content-length: 15".to_owned()),
            "HEAD tells the length that GET would have"
        );
    }

    #[test]
    fn every_refusal_is_a_whole_answer_that_says_what_is_wrong() {
        for kind in RefusalKind::ALL {
            let mut out = Vec::new();
            let refusal = Refusal::of(kind);
            answer_refusal(&mut out, &refusal, None);
            let (status, headers, body) = read(&out);
            assert!(status.starts_with(&format!("HTTP/1.1 {} ", kind.status())));
            assert!(headers.contains(&format!("content-length: {}", body.len())));
            assert!(
                headers
                    .iter()
                    .any(|header| header.starts_with("connection: close"))
            );
            assert!(body.contains(refusal.detail) && refusal.detail.len() > 6);
            assert_eq!(
                headers.contains(&"allow: get".to_owned()),
                kind == RefusalKind::MethodNotAllowed
            );
            let tells_version = headers.contains(&"sec-websocket-version: 13".to_owned());
            assert_eq!(tells_version, kind == RefusalKind::UpgradeRequired);
            assert!(
                !headers
                    .iter()
                    .any(|header| header.starts_with("retry-after"))
            );
        }
        let mut out = Vec::new();
        answer_refusal(
            &mut out,
            &Refusal {
                kind: RefusalKind::NodeFull,
                detail: "full",
            },
            Some(3),
        );
        assert!(read(&out).1.contains(&"retry-after: 3".to_owned()));
    }
}
