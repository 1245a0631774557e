//! Why a connection ends: the one list that wire, clients, metrics and logs agree on.

/// Why a connection ended. The single home of the close code, the advice and the label.
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
    /// The shard's or the node's memory budget has nothing left for it.
    OverBudget,
    /// A send made no progress for the write stall timeout.
    WriteStalled,
    /// No pong within the heartbeat timeout.
    HeartbeatLost,
    /// No message for the idle timeout.
    Idle,
    /// The request was not complete within the handshake timeout.
    HandshakeTimeout,
    /// The request was answered with an HTTP error, or was a health check.
    NotUpgraded,
    /// The node is stopping.
    Draining,
    /// Somebody asked for it through the admin API.
    Disconnected,
}

impl CloseReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
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
        Self::HandshakeTimeout,
        Self::NotUpgraded,
        Self::Draining,
        Self::Disconnected,
    ];

    /// The close code that the peer is sent (RFC 6455 §7.4); `None` when no close frame is sent.
    #[must_use]
    pub const fn code(self) -> Option<u16> {
        match self {
            Self::PeerClosed => Some(1000), // a peer's own valid code is echoed instead
            Self::ProtocolError => Some(1002),
            Self::InvalidUtf8 => Some(1007),
            Self::RateLimited => Some(1008),
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

    /// Whether a client may come back by itself after this.
    #[must_use]
    pub const fn may_reconnect(self) -> bool {
        !matches!(
            self,
            Self::ProtocolError | Self::InvalidUtf8 | Self::MessageTooBig | Self::Disconnected | Self::NotUpgraded
        )
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
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NotUpgraded => "not_upgraded",
            Self::Draining => "draining",
            Self::Disconnected => "disconnected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_order_and_labels_are_unique() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let mut labels: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }
}
