//! The raw dialect: every frame is a publish, every delivery is a frame, no envelope.
//!
//! All that the server says of its own accord are notices: text frames `{"type":"…",…}`, sent between messages and never
//! within one. `?notices=0` turns them off.

use crate::protocol::{OpCode, encode_header};

/// Bytes of a notice's frame at most: they are charged to the control reserve of a connection.
pub const NOTICE_BYTES_MAX: usize = 64;

/// The text frame `{"type":"reconnect","after_ms":N}`: the server is stopping; come back after that many milliseconds.
#[must_use]
pub fn notice_reconnect(after_ms: u32) -> Vec<u8> {
    notice("reconnect", "after_ms", u64::from(after_ms))
}

/// The text frame `{"type":"gap","missed":N}`: that many messages were dropped here, because the reader was too slow.
#[must_use]
pub fn notice_gap(missed: u64) -> Vec<u8> {
    notice("gap", "missed", missed)
}

/// The text frame `{"type":"gap","missed":null}`: messages may have been dropped here, and nobody knows how many; perhaps
/// none.
#[must_use]
pub fn notice_gap_unknown() -> Vec<u8> {
    notice_text(r#"{"type":"gap","missed":null}"#)
}

/// The text frame `{"type":"backplane","refused":N,"local":L}`: that many messages of this client are not seen on other
/// nodes, because these cannot be reached. `local`: members on this node got them.
#[must_use]
pub fn notice_backplane(refused: u32, local: bool) -> Vec<u8> {
    notice_text(&format!(
        r#"{{"type":"backplane","refused":{refused},"local":{local}}}"#
    ))
}

fn notice(kind: &str, name: &str, value: u64) -> Vec<u8> {
    notice_text(&format!(r#"{{"type":"{kind}","{name}":{value}}}"#))
}

fn notice_text(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(NOTICE_BYTES_MAX);
    encode_header(&mut out, true, OpCode::Text, text.len());
    out.extend_from_slice(text.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONTROL_RESERVE_BYTES;
    use crate::protocol::{Role, decode_header};

    fn text(frame: &[u8]) -> serde_json::Value {
        let header = decode_header(frame, Role::Client).unwrap().unwrap();
        assert_eq!((header.opcode, header.fin), (OpCode::Text, true));
        let payload = &frame[usize::from(header.header_bytes)..];
        assert_eq!(payload.len() as u64, header.payload_bytes);
        serde_json::from_slice(payload).unwrap()
    }

    #[test]
    fn notices_are_json_with_a_type() {
        assert_eq!(
            text(&notice_reconnect(1_500)),
            serde_json::json!({"type": "reconnect", "after_ms": 1_500})
        );
        assert_eq!(
            text(&notice_gap(3)),
            serde_json::json!({"type": "gap", "missed": 3})
        );
        assert_eq!(
            text(&notice_gap_unknown()),
            serde_json::json!({"type": "gap", "missed": null})
        );
        assert_eq!(
            text(&notice_backplane(7, true)),
            serde_json::json!({"type": "backplane", "refused": 7, "local": true})
        );
    }

    #[test]
    fn the_longest_notice_keeps_its_bound() {
        for frame in [
            notice_reconnect(u32::MAX),
            notice_gap(u64::MAX),
            notice_gap_unknown(),
            notice_backplane(u32::MAX, false),
        ] {
            assert!(frame.len() <= NOTICE_BYTES_MAX, "{} bytes", frame.len());
        }
        assert!(NOTICE_BYTES_MAX * 2 <= CONTROL_RESERVE_BYTES as usize);
    }
}
