//! What a server's frames mean: the seam between protocols and scenarios.
//!
//! A scenario publishes payloads and is handed deliveries and notices; how they are framed is the dialect's. Only
//! this file changes when a server speaks another protocol.

use serde::{Deserialize, Serialize};
use throng::protocol::OpCode;

use crate::client::{Message, append_frame};

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
pub enum Dialect {
    /// Every binary frame is a publish or a delivery as it is; a text frame of JSON is a notice
    #[default]
    Raw,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A message of the room.
    Delivery(&'a [u8]),
    /// The server says that so many messages were dropped before this point.
    Gap {
        /// Messages.
        missed: u64,
    },
    /// The server is stopping, and advises when to come back.
    Reconnect {
        /// Milliseconds from now.
        after_ms: u64,
    },
    /// Something that concerns no scenario.
    Other,
}

/// The notices of the raw dialect that a scenario acts on; others are read as [`Incoming::Other`].
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Notice {
    Gap { missed: u64 },
    Reconnect { after_ms: u64 },
}

impl Dialect {
    /// Appends what publishes a payload of `payload_bytes` bytes, which `write` fills.
    pub fn publish(
        self,
        out: &mut Vec<u8>,
        mask: [u8; 4],
        payload_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        match self {
            Self::Raw => append_frame(out, OpCode::Binary, mask, payload_bytes, write),
        }
    }

    /// What a text or binary message is.
    #[inline]
    pub fn read(self, message: Message<'_>) -> Incoming<'_> {
        match self {
            Self::Raw if message.opcode == OpCode::Binary => Incoming::Delivery(message.payload),
            Self::Raw => read_notice(message.payload),
        }
    }
}

#[cold]
fn read_notice(text: &[u8]) -> Incoming<'_> {
    match serde_json::from_slice(text) {
        Ok(Notice::Gap { missed }) => Incoming::Gap { missed },
        Ok(Notice::Reconnect { after_ms }) => Incoming::Reconnect { after_ms },
        Err(_) => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_deliveries_are_binary_and_notices_text() {
        let read = |opcode, payload| Dialect::Raw.read(Message { opcode, payload });
        assert_eq!(
            read(OpCode::Binary, b"{\"type\":\"gap\",\"missed\":1}"),
            Incoming::Delivery(b"{\"type\":\"gap\",\"missed\":1}")
        );
        assert_eq!(
            read(OpCode::Text, br#"{"type":"gap","missed":12}"#),
            Incoming::Gap { missed: 12 }
        );
        assert_eq!(
            read(OpCode::Text, br#"{"type":"reconnect","after_ms":900}"#),
            Incoming::Reconnect { after_ms: 900 }
        );
        for other in [
            &b"gap"[..],
            br#"{"type":"gap"}"#,
            br#"{"type":"news"}"#,
            b"\xff",
        ] {
            assert_eq!(read(OpCode::Text, other), Incoming::Other);
        }
    }
}
