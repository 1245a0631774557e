//! One connection as its client sees it, and the frames in what it receives.

use throng::protocol::{
    FrameError, OpCode, Role, decode_header, encode_client_header, unmask_in_place,
};

/// Bytes of a message at most; a server that sends more is broken or not what this tool is for.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The token is not in use.
    Free,
    /// The TCP connect is in flight.
    Connecting,
    /// The request is on its way, or its answer.
    Upgrading,
    /// Messages flow.
    Open,
    /// A close frame has been sent; the peer ends the stream.
    Ending,
    /// Closed from here; the kernel finishes.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    /// Where it stands.
    pub state: State,
    /// Whether a send is in flight.
    pub sending: bool,
    /// Which of the worker's members it is.
    pub local: u32,
    /// When its connect began.
    pub started_ns: u64,
    /// What is to be sent when the send in flight is done.
    pub pending: Vec<u8>,
    /// What has come in part only.
    pub partial: Option<Box<Partial>>,
}

impl Link {
    /// A token nobody uses.
    pub const FREE: Self = Self {
        state: State::Free,
        sending: false,
        local: 0,
        started_ns: 0,
        pending: Vec::new(),
        partial: None,
    };
}

/// What has come in part only: a frame's beginning, a message's first fragments.
#[derive(Debug, Default)]
pub struct Partial {
    /// The beginning of a frame, or of the upgrade's answer.
    pub bytes: Vec<u8>,
    fragments: Vec<u8>,
    opcode: Option<OpCode>,
}

/// One whole message, or a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Text, binary, close, ping or pong.
    pub opcode: OpCode,
    /// Its payload, still in the receive buffer unless it came in parts.
    pub payload: &'a [u8],
}

/// Why what came is not a stream of server frames.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamError {
    /// RFC 6455 §5 forbids it.
    Frame(FrameError),
    /// A continuation of nothing, or a new message within one (RFC 6455 §5.4).
    Fragments,
    /// Over [`MESSAGE_BYTES_MAX`].
    TooBig,
}

/// Hands each whole message in `bytes` (behind what `partial` holds) to `on_message`, and keeps the rest in `partial`.
///
/// # Errors
/// At the first frame that no server may send; what came before it has been handed over.
pub fn read_messages(
    partial: &mut Option<Box<Partial>>,
    bytes: &[u8],
    mut on_message: impl FnMut(Message<'_>),
) -> Result<(), StreamError> {
    let mut kept = partial.take();
    let joined = kept.as_mut().map(|kept| {
        let mut joined = std::mem::take(&mut kept.bytes);
        joined.extend_from_slice(bytes);
        joined
    });
    let bytes = joined.as_deref().unwrap_or(bytes);
    let taken_bytes = read_frames(bytes, &mut kept, &mut on_message)?;
    if taken_bytes < bytes.len() {
        kept.get_or_insert_default().bytes = bytes[taken_bytes..].to_vec();
    }
    *partial = kept.filter(|kept| !kept.bytes.is_empty() || kept.opcode.is_some());
    Ok(())
}

/// Reads whole frames from the front of `bytes` and returns how many bytes they were.
fn read_frames(
    bytes: &[u8],
    partial: &mut Option<Box<Partial>>,
    on_message: &mut impl FnMut(Message<'_>),
) -> Result<usize, StreamError> {
    let mut rest = bytes;
    while let Some(header) = decode_header(rest, Role::Client).map_err(StreamError::Frame)? {
        let payload_bytes = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        if payload_bytes > MESSAGE_BYTES_MAX {
            return Err(StreamError::TooBig);
        }
        let header_bytes = usize::from(header.header_bytes);
        let Some(payload) = rest.get(header_bytes..header_bytes + payload_bytes) else {
            break;
        };
        rest = &rest[header_bytes + payload_bytes..];
        let in_fragments = partial
            .as_ref()
            .is_some_and(|partial| partial.opcode.is_some());
        if header.opcode.is_control()
            || header.fin && !in_fragments && header.opcode != OpCode::Continuation
        {
            on_message(Message {
                opcode: header.opcode,
                payload,
            });
            continue;
        }
        if in_fragments != (header.opcode == OpCode::Continuation) {
            return Err(StreamError::Fragments);
        }
        let assembly = partial.get_or_insert_default();
        let opcode = *assembly.opcode.get_or_insert(header.opcode);
        if assembly.fragments.len() + payload.len() > MESSAGE_BYTES_MAX {
            return Err(StreamError::TooBig);
        }
        assembly.fragments.extend_from_slice(payload);
        if header.fin {
            on_message(Message {
                opcode,
                payload: &assembly.fragments,
            });
            assembly.fragments = Vec::new();
            assembly.opcode = None;
        }
    }
    Ok(bytes.len() - rest.len())
}

/// Appends a masked frame whose payload of `payload_bytes` bytes is written by `write`.
pub fn append_frame(
    out: &mut Vec<u8>,
    opcode: OpCode,
    mask: [u8; 4],
    payload_bytes: usize,
    write: impl FnOnce(&mut [u8]),
) {
    out.reserve(payload_bytes + throng::limits::CLIENT_HEADER_BYTES_MAX);
    encode_client_header(out, true, opcode, payload_bytes, mask);
    let start = out.len();
    out.resize(start + payload_bytes, 0);
    write(&mut out[start..]);
    unmask_in_place(&mut out[start..], mask, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_split(bytes: &[u8], chunk_bytes: usize) -> Result<Vec<(OpCode, Vec<u8>)>, StreamError> {
        let mut partial = None;
        let mut messages = Vec::new();
        for chunk in bytes.chunks(chunk_bytes) {
            read_messages(&mut partial, chunk, |message| {
                messages.push((message.opcode, message.payload.to_vec()))
            })?;
        }
        assert!(partial.is_none(), "whole messages leave nothing behind");
        Ok(messages)
    }

    #[test]
    fn any_split_reads_alike_fragments_and_control_frames_between_them_included() {
        let mut bytes = vec![0x82, 3, 1, 2, 3];
        bytes.extend([0x01, 2, b'a', b'b', 0x89, 1, b'p', 0x00, 0, 0x80, 1, b'c']);
        bytes.extend([0x82, 126, 0, 200]);
        bytes.extend([7; 200]);
        let expected = vec![
            (OpCode::Binary, vec![1, 2, 3]),
            (OpCode::Ping, b"p".to_vec()),
            (OpCode::Text, b"abc".to_vec()),
            (OpCode::Binary, vec![7; 200]),
        ];
        for chunk_bytes in 1..=bytes.len() {
            assert_eq!(
                read_split(&bytes, chunk_bytes).as_ref(),
                Ok(&expected),
                "chunks of {chunk_bytes}"
            );
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        assert_eq!(
            read_split(&[0x80, 0], 2),
            Err(StreamError::Fragments),
            "a continuation of nothing"
        );
        assert_eq!(
            read_split(&[0x02, 0, 0x82, 0], 4),
            Err(StreamError::Fragments),
            "a message within a message"
        );
        assert!(
            matches!(
                read_split(&[0x82, 0x81, 0, 0, 0, 0, 1], 7),
                Err(StreamError::Frame(_))
            ),
            "a masked frame"
        );
        assert_eq!(
            read_split(&[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0], 10),
            Err(StreamError::TooBig)
        );
    }
}
