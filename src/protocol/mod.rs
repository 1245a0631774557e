//! Bytes to frames to messages, both ways; the handshake; close verdicts; dialects.
//!
//! Rule of this room: it takes bytes and gives back values, keeps no connection and reads no clock. Framing facts
//! (opcodes, close codes, the accept key) come from tungstenite, and no tungstenite type leaves this room.
#![forbid(unsafe_code)]

pub mod client;
mod close;
pub mod dialect;
mod encoded;
mod frame;
pub mod handshake;
mod mask;
mod utf8;

pub use close::{
    CLOSE_REASON_BYTES_MAX, CloseReason, close_frame, is_server_close_code, parse_close,
};
pub use encoded::{Encoded, Meter, Piece};
pub use frame::{
    FrameError, FrameHeader, OpCode, Role, decode_header, encode_client_header, encode_header,
};
pub use mask::{unmask_extend, unmask_in_place};
pub use utf8::{InvalidUtf8, Utf8Validator};

#[cfg(test)]
mod tests {
    use super::CloseReason;
    use crate::metrics::RefusalKind;

    const PAGE: &str = include_str!("../../docs/PROTOCOL.md");

    #[test]
    fn the_page_on_the_protocol_lists_every_close_code_and_every_status() {
        for reason in CloseReason::ALL {
            if let Some(code) = reason.code() {
                let row = PAGE
                    .lines()
                    .find(|line| line.starts_with(&format!("| {code} |")));
                let label = format!("`{}`", reason.label());
                assert!(
                    row.is_some_and(|row| row.contains(&label)),
                    "{code} {label}"
                );
            }
        }
        for kind in RefusalKind::ALL {
            let row = format!("\n| {} |", kind.status());
            assert!(PAGE.contains(&row), "{} {}", kind.status(), kind.label());
        }
    }
}
