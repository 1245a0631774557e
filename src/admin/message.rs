//! A message of the admin API as the bus carries it.

use std::sync::Arc;

use crate::bus::{Batch, BatchMessage, MessageKind};
use crate::protocol::{OpCode, close_frame, encode_header};
use crate::time::Tick;

use super::Answer;

/// What is sent as one message: its kind, and a batch of one without a sender.
///
/// `kind` is what the query said; without it, `application/octet-stream` is binary and everything else is text.
///
/// # Errors
/// The answer: 413 beyond `message_bytes_max`, 400 for text that is not UTF-8.
pub fn batch(
    kind: Option<MessageKind>,
    content_type: Option<&str>,
    body: &[u8],
    message_bytes_max: u32,
    now: Tick,
) -> Result<Arc<Batch>, Answer> {
    if body.len() > message_bytes_max as usize {
        let message = format!("a message has at most {message_bytes_max} bytes");
        return Err(Answer::error(413, "message_too_big", &message));
    }
    let media_type = content_type
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    let binary = media_type.eq_ignore_ascii_case("application/octet-stream");
    let kind = kind.unwrap_or(if binary {
        MessageKind::Binary
    } else {
        MessageKind::Text
    });
    if kind == MessageKind::Text && simdutf8::basic::from_utf8(body).is_err() {
        let message = "a text message is UTF-8; send other bytes with `?kind=binary`";
        return Err(Answer::error(400, "text_invalid", message));
    }
    let opcode = match kind {
        MessageKind::Text => OpCode::Text,
        MessageKind::Binary => OpCode::Binary,
        MessageKind::Close { .. } => OpCode::Close,
    };
    let mut bytes = Vec::with_capacity(body.len() + crate::limits::SERVER_HEADER_BYTES_MAX);
    let header_bytes = encode_header(&mut bytes, true, opcode, body.len());
    bytes.extend_from_slice(body);
    let end = u32::try_from(bytes.len()).expect("a message's limit is far below 4 GiB");
    let message = BatchMessage {
        end,
        header_bytes,
        kind,
        sender: None,
    };
    Ok(Arc::new(Batch {
        bytes,
        messages: vec![message],
        published: now,
    }))
}

/// The order to close a user's connections, as a batch of one.
pub fn close_batch(code: u16, reason: &str, reconnect: bool, now: Tick) -> Arc<Batch> {
    let mut bytes = Vec::new();
    close_frame(&mut bytes, code, reason);
    let message = BatchMessage {
        end: u32::try_from(bytes.len()).expect("a control frame is short"),
        header_bytes: u8::try_from(bytes.len() - 2 - reason.len()).expect("a frame's header"),
        kind: MessageKind::Close { reconnect },
        sender: None,
    };
    Arc::new(Batch {
        bytes,
        messages: vec![message],
        published: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = 70_000;

    fn kind(kind: Option<MessageKind>, content_type: Option<&str>) -> MessageKind {
        batch(kind, content_type, b"x", MAX, Tick(0))
            .unwrap()
            .messages[0]
            .kind
    }

    #[test]
    fn a_batch_holds_one_whole_frame_without_a_sender() {
        let batch = batch(None, None, b"hello", MAX, Tick(9)).unwrap();
        assert_eq!(batch.bytes, b"\x81\x05hello");
        let message = BatchMessage {
            end: 7,
            header_bytes: 2,
            kind: MessageKind::Text,
            sender: None,
        };
        assert_eq!(batch.messages, [message]);
        assert_eq!(batch.published, Tick(9));
    }

    #[test]
    fn a_close_is_one_whole_close_frame() {
        let batch = close_batch(4001, "gone", true, Tick(9));
        assert_eq!(batch.bytes, b"\x88\x06\x0f\xa1gone");
        let message = BatchMessage {
            end: 8,
            header_bytes: 2,
            kind: MessageKind::Close { reconnect: true },
            sender: None,
        };
        assert_eq!(batch.messages, [message]);
    }

    #[test]
    fn the_length_takes_the_form_it_needs() {
        for (payload_bytes, header) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_535, vec![0x82, 126, 255, 255]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let body = vec![0xff; payload_bytes];
            let batch = batch(Some(MessageKind::Binary), None, &body, MAX, Tick(0)).unwrap();
            assert_eq!(batch.bytes[..header.len()], header);
            assert_eq!(usize::from(batch.messages[0].header_bytes), header.len());
            assert_eq!(batch.messages[0].end as usize, header.len() + payload_bytes);
        }
    }

    #[test]
    fn the_query_decides_the_kind_then_the_content_type() {
        assert_eq!(kind(None, None), MessageKind::Text);
        assert_eq!(kind(None, Some("application/json")), MessageKind::Text);
        assert_eq!(
            kind(None, Some("Application/Octet-Stream; x=y")),
            MessageKind::Binary
        );
        assert_eq!(
            kind(Some(MessageKind::Text), Some("application/octet-stream")),
            MessageKind::Text
        );
        assert_eq!(
            kind(Some(MessageKind::Binary), Some("text/plain")),
            MessageKind::Binary
        );
    }

    #[test]
    fn a_message_that_clients_could_not_send_is_refused() {
        assert_eq!(
            batch(None, None, b"\xff", MAX, Tick(0)).unwrap_err().status,
            400
        );
        assert_eq!(
            batch(None, None, &[b'x'; 6], 5, Tick(0))
                .unwrap_err()
                .status,
            413
        );
        assert!(batch(None, None, &[b'x'; 5], 5, Tick(0)).is_ok());
    }
}
