//! Bytes to frames to messages, both ways; the handshake; close verdicts; dialects.
//!
//! Rule of this room: it takes bytes and gives back values, keeps no connection and reads no clock. Framing facts
//! (opcodes, close codes, the accept key) come from tungstenite, and no tungstenite type leaves this room.
#![forbid(unsafe_code)]

mod close;
mod encoded;

pub use close::CloseReason;
pub use encoded::{Encoded, Meter, Piece};
