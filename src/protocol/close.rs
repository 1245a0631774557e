//! Why a connection ends: the one list that wire, clients, metrics and logs agree on; and the close frame itself.

use tungstenite::protocol::frame::coding::CloseCode;

use super::{FrameError, OpCode, encode_header};
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

/// Bytes of a close frame's reason: a control frame's payload without the code (RFC 6455 §5.5.1).
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

/// Why a connection ended. The single home of the close code and the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer sent a close frame.
    PeerClosed,
    /// The peer ended the TCP stream without a close frame.
    PeerGone,
    /// The TCP connection broke: reset, unreachable, timed out.
    PeerReset,
    /// A frame that RFC 6455 §5 forbids.
    ProtocolError,
    /// Text, or a close reason, that is not UTF-8 (RFC 6455 §8.1).
    InvalidUtf8,
    /// A message beyond the limit; known when its header announces it.
    MessageTooBig,
    /// More messages or bytes a second than allowed.
    RateLimited,
    /// Its queue met its budget and the room's policy is `disconnect`.
    SlowConsumer,
    /// The shard's or the node's memory budget has nothing left for it, or the node has as many sockets as it may.
    OverBudget,
    /// A send made no progress for the write stall timeout.
    WriteStalled,
    /// No pong within the heartbeat timeout.
    HeartbeatLost,
    /// No message for the idle timeout.
    Idle,
    /// Nothing more of a begun message, or frame, for the message timeout.
    MessageTimeout,
    /// Nothing of a request came within the handshake timeout, or the room was not ready for it by then.
    HandshakeTimeout,
    /// The request was answered with an HTTP error (408 where it was not whole in time), or was a health check.
    NotUpgraded,
    /// The node is stopping.
    Draining,
    /// Somebody asked for it through the admin API.
    Disconnected,
}

impl CloseReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 17] = [
        Self::PeerClosed,
        Self::PeerGone,
        Self::PeerReset,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::MessageTooBig,
        Self::RateLimited,
        Self::SlowConsumer,
        Self::OverBudget,
        Self::WriteStalled,
        Self::HeartbeatLost,
        Self::Idle,
        Self::MessageTimeout,
        Self::HandshakeTimeout,
        Self::NotUpgraded,
        Self::Draining,
        Self::Disconnected,
    ];

    /// The close code that the peer is sent (RFC 6455 §7.4); `None` when no close frame is sent.
    #[must_use]
    pub const fn code(self) -> Option<u16> {
        match self {
            // Its usual code: what goes back is the peer's own, or none where it gave none (RFC 6455 §5.5.1).
            Self::PeerClosed => Some(1000),
            Self::ProtocolError => Some(1002),
            Self::InvalidUtf8 => Some(1007),
            Self::RateLimited | Self::MessageTimeout => Some(1008),
            Self::MessageTooBig => Some(1009),
            Self::Draining => Some(1012),
            Self::SlowConsumer | Self::OverBudget => Some(1013),
            Self::Idle => Some(4000),
            Self::Disconnected => Some(4001),
            Self::PeerGone
            | Self::PeerReset
            | Self::WriteStalled
            | Self::HeartbeatLost
            | Self::HandshakeTimeout
            | Self::NotUpgraded => None,
        }
    }

    /// The name in metrics, logs and close frames: lower case, words joined by `_`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerGone => "peer_gone",
            Self::PeerReset => "peer_reset",
            Self::ProtocolError => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MessageTooBig => "message_too_big",
            Self::RateLimited => "rate_limited",
            Self::SlowConsumer => "slow_consumer",
            Self::OverBudget => "over_budget",
            Self::WriteStalled => "write_stalled",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::Idle => "idle",
            Self::MessageTimeout => "message_timeout",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NotUpgraded => "not_upgraded",
            Self::Draining => "draining",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Appends a server's close frame with `code` and `reason` to `out` (RFC 6455 §5.5.1).
///
/// # Panics
/// A code that must not be on the wire, or a reason over [`CLOSE_REASON_BYTES_MAX`] bytes: both are this process's own.
pub fn close_frame(out: &mut Vec<u8>, code: u16, reason: &str) {
    assert!(
        is_on_wire(code),
        "close code {code} must not be on the wire"
    );
    assert!(
        reason.len() <= CLOSE_REASON_BYTES_MAX,
        "a close reason has at most 123 bytes"
    );
    encode_header(out, true, OpCode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Reads the unmasked payload of a close frame: its code and reason; `Ok(None)` when it has neither.
///
/// # Errors
/// - `CloseTruncated`: one byte is no code (RFC 6455 §5.5.1).
/// - `CloseCodeForbidden`: a code that must not be on the wire, or that nobody has defined (RFC 6455 §7.4).
/// - `CloseReasonNotUtf8`: what follows the code is not UTF-8 (RFC 6455 §5.5.1).
pub fn parse_close(payload: &[u8]) -> Result<Option<(u16, &str)>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(FrameError::CloseTruncated)
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_on_wire(code) {
        return Err(FrameError::CloseCodeForbidden);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| FrameError::CloseReasonNotUtf8)?;
    Ok(Some((code, reason)))
}

/// Whether a server may send `code` in a close frame: what may be on the wire, but 1010, which is a client's alone (RFC 6455
/// §7.4.1).
#[must_use]
pub fn is_server_close_code(code: u16) -> bool {
    is_on_wire(code) && code != 1010
}

fn is_on_wire(code: u16) -> bool {
    CloseCode::from(code).is_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_order_and_labels_are_unique() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let mut labels: Vec<_> = CloseReason::ALL
            .iter()
            .map(|reason| reason.label())
            .collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }

    #[test]
    fn every_reason_fits_a_close_frame_and_reads_back() {
        for reason in CloseReason::ALL {
            let Some(code) = reason.code() else { continue };
            let mut out = Vec::new();
            close_frame(&mut out, code, reason.label());
            assert_eq!((out[0], usize::from(out[1])), (0x88, out.len() - 2));
            assert_eq!(parse_close(&out[2..]), Ok(Some((code, reason.label()))));
        }
    }

    #[test]
    fn codes_at_both_sides_of_each_range_are_judged() {
        let parsed =
            |code: u16| parse_close(&code.to_be_bytes()).map(|close| close.map(|(code, _)| code));
        for code in [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000,
            4999,
        ] {
            assert_eq!(parsed(code), Ok(Some(code)));
        }
        for code in [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
        ] {
            assert_eq!(parsed(code), Err(FrameError::CloseCodeForbidden), "{code}");
        }
    }

    #[test]
    fn a_server_sends_what_may_be_on_the_wire_and_no_code_of_clients() {
        for code in [1000, 1003, 1007, 1009, 1011, 1013, 3000, 4999] {
            assert!(is_server_close_code(code), "{code}");
        }
        for code in [0, 999, 1005, 1006, 1010, 1015, 2999, 5000] {
            assert!(!is_server_close_code(code), "{code}");
        }
    }

    #[test]
    fn a_close_payload_is_empty_or_a_code_and_utf8() {
        assert_eq!(parse_close(b""), Ok(None));
        assert_eq!(parse_close(b"\x03"), Err(FrameError::CloseTruncated));
        assert_eq!(parse_close(b"\x03\xe8"), Ok(Some((1000, ""))));
        assert_eq!(
            parse_close(b"\x03\xed\xff"),
            Err(FrameError::CloseCodeForbidden)
        );
        assert_eq!(
            parse_close(b"\x03\xe8\xc3"),
            Err(FrameError::CloseReasonNotUtf8)
        );
        assert_eq!(
            FrameError::CloseReasonNotUtf8.close_reason(),
            CloseReason::InvalidUtf8
        );
        assert_eq!(
            FrameError::CloseTruncated.close_reason(),
            CloseReason::ProtocolError
        );
    }

    #[test]
    fn a_reason_of_123_bytes_fills_the_frame() {
        let mut out = Vec::new();
        close_frame(&mut out, 1000, &"x".repeat(CLOSE_REASON_BYTES_MAX));
        assert_eq!(out.len(), 2 + CONTROL_PAYLOAD_BYTES_MAX);
    }

    #[test]
    #[should_panic(expected = "at most 123 bytes")]
    fn a_reason_of_124_bytes_is_never_sent() {
        close_frame(
            &mut Vec::new(),
            1000,
            &"x".repeat(CLOSE_REASON_BYTES_MAX + 1),
        );
    }

    #[test]
    #[should_panic(expected = "must not be on the wire")]
    fn a_reserved_code_is_never_sent() {
        close_frame(&mut Vec::new(), 1006, "");
    }
}
