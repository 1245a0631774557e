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

pub use close::{CLOSE_REASON_BYTES_MAX, CloseReason, close_frame, parse_close};
pub use encoded::{Encoded, Meter, Piece};
pub use frame::{
    FrameError, FrameHeader, OpCode, Role, decode_header, encode_client_header, encode_header,
};
pub use mask::{unmask_extend, unmask_in_place};
pub use utf8::{InvalidUtf8, Utf8Validator};
