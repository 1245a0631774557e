//! Any bytes as a stream of frames, of either side: what is taken agrees with tungstenite, whatever the pieces it comes
//! in; masking is its own inverse; UTF-8 is judged like the standard library does; close payloads keep their rules.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use throng::protocol::{
    FrameError, FrameHeader, OpCode, Role, Utf8Validator, decode_header, encode_client_header,
    encode_header, parse_close, unmask_extend, unmask_in_place,
};
use tungstenite::protocol::frame::FrameHeader as Theirs;
use tungstenite::protocol::frame::coding::CloseCode;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, stream)) = input.split_first() else {
        return;
    };
    let role = if choice & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let piece_bytes = usize::from(choice >> 1) % 16 + 1;
    let mut rest = stream;
    let mut validator = Utf8Validator::default();
    let mut text = Vec::new();
    while let Some(header) = decode(rest, role) {
        check_encoding(&header, &rest[..usize::from(header.header_bytes)]);
        rest = &rest[usize::from(header.header_bytes)..];
        let Some(payload) = usize::try_from(header.payload_bytes)
            .ok()
            .and_then(|bytes| rest.get(..bytes))
        else {
            break;
        };
        let payload = check_mask(payload, header.mask.unwrap_or_default(), piece_bytes);
        rest = &rest[payload.len()..];
        match header.opcode {
            OpCode::Close => check_close(&payload),
            OpCode::Continuation | OpCode::Text => {
                text.extend_from_slice(&payload);
                if !check_text(&mut validator, &payload, piece_bytes, &text) {
                    break;
                }
            }
            OpCode::Binary | OpCode::Ping | OpCode::Pong => {}
        }
    }
});

/// Decodes, and looks whether tungstenite and every shorter prefix agree.
fn decode(bytes: &[u8], role: Role) -> Option<FrameHeader> {
    let ours = decode_header(bytes, role);
    let theirs = Theirs::parse(&mut Cursor::new(bytes));
    for end in 0..bytes.len().min(14) {
        match decode_header(&bytes[..end], role) {
            Ok(None) => {}
            earlier => assert_eq!(earlier, ours, "a verdict does not change with what follows"),
        }
    }
    match ours {
        Ok(Some(header)) => {
            let (theirs, payload_bytes) = theirs.unwrap().unwrap();
            assert_eq!(
                (header.payload_bytes, header.mask),
                (payload_bytes, theirs.mask)
            );
            assert_eq!(
                (header.fin, header.opcode as u8),
                (theirs.is_final, u8::from(theirs.opcode))
            );
            assert_eq!(header.mask.is_some(), role == Role::Server);
            Some(header)
        }
        Ok(None) => {
            assert!(matches!(theirs, Ok(None)));
            None
        }
        Err(_) => None,
    }
}

/// What was decoded is encoded to the same bytes: there is one way to write a header.
fn check_encoding(header: &FrameHeader, bytes: &[u8]) {
    let Ok(payload_bytes) = usize::try_from(header.payload_bytes) else {
        return;
    };
    let mut out = Vec::new();
    let header_bytes = match header.mask {
        Some(mask) => {
            encode_client_header(&mut out, header.fin, header.opcode, payload_bytes, mask)
        }
        None => encode_header(&mut out, header.fin, header.opcode, payload_bytes),
    };
    assert_eq!((header_bytes, &out[..]), (header.header_bytes, bytes));
}

/// Unmasks in pieces, both ways, and back.
fn check_mask(payload: &[u8], mask: [u8; 4], piece_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, piece) in payload.chunks(piece_bytes).enumerate() {
        unmask_extend(&mut out, piece, mask, index * piece_bytes);
    }
    let mut place = payload.to_vec();
    unmask_in_place(&mut place, mask, 0);
    assert_eq!(place, out);
    unmask_in_place(&mut place, mask, 0);
    assert_eq!(place, payload);
    out
}

fn check_close(payload: &[u8]) {
    match parse_close(payload) {
        Ok(None) => assert!(payload.is_empty()),
        Ok(Some((code, reason))) => {
            assert!(CloseCode::from(code).is_allowed());
            assert_eq!(reason.as_bytes(), &payload[2..]);
        }
        Err(FrameError::CloseTruncated) => assert_eq!(payload.len(), 1),
        Err(FrameError::CloseReasonNotUtf8) => assert!(std::str::from_utf8(&payload[2..]).is_err()),
        Err(error) => assert_eq!(error, FrameError::CloseCodeForbidden),
    }
}

/// Pushes in pieces; `text` is all that was pushed, this payload included. Says whether it may still become a text.
fn check_text(
    validator: &mut Utf8Validator,
    payload: &[u8],
    piece_bytes: usize,
    text: &[u8],
) -> bool {
    let pushed = payload
        .chunks(piece_bytes * 13)
        .all(|piece| validator.push(piece).is_ok());
    match std::str::from_utf8(text) {
        Ok(_) => assert!(pushed && validator.is_complete()),
        Err(error) if error.error_len().is_none() => assert!(pushed && !validator.is_complete()),
        Err(_) => assert!(!pushed),
    }
    pushed
}
