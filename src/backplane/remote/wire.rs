//! What travels on a room's channel: version, kind, node, epoch, sequence, then the batch's messages. Big-endian.
//!
//! ```text
//!  0        1       2               10           14               22              30
//! ┌─────────┬───────┬───────────────┬────────────┬────────────────┬───────────────┬─────────────┬─────────────
//! │ version │ kind  │ node          │ epoch      │ sequence       │ sent          │ count (u32) │ message …
//! └─────────┴───────┴───────────────┴────────────┴────────────────┴───────────────┴─────────────┴─────────────
//! message: flags │ sender (u64, if it follows) │ length (u32) │ payload
//!   flags: 1 binary, 2 a sender follows, 4 a close (its payload is that of a close frame: code, reason), 8 a close before
//!   which clients are told to come back
//! ```
//! `docs/PROTOCOL.md` has the same for other readers.

use std::sync::Arc;

use crate::bus::{Batch, BatchMessage, ConnectionId, Hidden, MessageKind, hidden};
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use crate::protocol::{OpCode, encode_header, parse_close};
use crate::time::Tick;

/// The version that is spoken and understood.
pub const VERSION: u8 = 1;
/// Bytes before the first message.
pub const HEADER_BYTES: usize = 34;

const KIND_MESSAGES: u8 = 1;
const KIND_PROBE: u8 = 2;
const FLAG_BINARY: u8 = 1;
const FLAG_SENDER: u8 = 2;
const FLAG_CLOSE: u8 = 4;
const FLAG_RECONNECT: u8 = 8;
const FLAG_CLOSE_RECONNECT: u8 = FLAG_CLOSE | FLAG_RECONNECT;

/// Who published, and the how-manieth of its messages on this channel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The process that published: drawn at random when it starts.
    pub node: u64,
    /// Which of the node's sequences it belongs to.
    pub epoch: u32,
    /// The number of the first message; a sequence begins with 1.
    pub sequence: u64,
    /// When its node took it, on that node's clock: nobody else can read it.
    pub sent: Tick,
}

/// What came on a channel, its messages not looked at yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parcel<'a> {
    /// Messages of a room.
    Messages {
        /// Who published them.
        stamp: Stamp,
        /// How many; at least 1.
        count: u32,
        /// The messages.
        body: &'a [u8],
    },
    /// A probe; its number is the stamp's sequence.
    Probe(Stamp),
}

/// What came is not in this format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Appends a batch.
pub fn encode_batch(out: &mut Vec<u8>, stamp: &Stamp, batch: &Batch) {
    let count = u32::try_from(batch.messages.len()).expect("fewer than the batch has bytes");
    encode_head(out, KIND_MESSAGES, stamp, count);
    let mut start = 0;
    for message in &batch.messages {
        let end = message.end as usize;
        let payload = &batch.bytes[start + usize::from(message.header_bytes)..end];
        start = end;
        let kind = match message.kind {
            MessageKind::Text => 0,
            MessageKind::Binary => FLAG_BINARY,
            MessageKind::Close { reconnect: false } => FLAG_CLOSE,
            MessageKind::Close { reconnect: true } => FLAG_CLOSE_RECONNECT,
        };
        match message.sender {
            Some(sender) => {
                out.push(kind | FLAG_SENDER);
                out.extend_from_slice(&sender.0.to_be_bytes());
            }
            None => out.push(kind),
        }
        let length = u32::try_from(payload.len()).expect("bounded by the message limit");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(payload);
    }
}

/// Appends a probe.
pub fn encode_probe(out: &mut Vec<u8>, stamp: &Stamp) {
    encode_head(out, KIND_PROBE, stamp, 0);
}

fn encode_head(out: &mut Vec<u8>, kind: u8, stamp: &Stamp, count: u32) {
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&stamp.node.to_be_bytes());
    out.extend_from_slice(&stamp.epoch.to_be_bytes());
    out.extend_from_slice(&stamp.sequence.to_be_bytes());
    out.extend_from_slice(&stamp.sent.0.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
}

/// Reads what stands before the messages.
///
/// # Errors
/// Another version or kind, or it is cut short.
pub fn decode(bytes: &[u8]) -> Result<Parcel<'_>, Malformed> {
    let mut reader = Reader(bytes);
    let [version, kind] = reader.take()?;
    let stamp = Stamp {
        node: u64::from_be_bytes(reader.take()?),
        epoch: u32::from_be_bytes(reader.take()?),
        sequence: u64::from_be_bytes(reader.take()?),
        sent: Tick(u64::from_be_bytes(reader.take()?)),
    };
    let count = u32::from_be_bytes(reader.take()?);
    match (version, kind, count) {
        (VERSION, KIND_MESSAGES, 1..)
            if stamp.sequence > 0 && stamp.sequence.checked_add(u64::from(count)).is_some() =>
        {
            Ok(Parcel::Messages {
                stamp,
                count,
                body: reader.0,
            })
        }
        (VERSION, KIND_PROBE, 0) if reader.0.is_empty() => Ok(Parcel::Probe(stamp)),
        _ => Err(Malformed),
    }
}

/// Reads the messages of a batch in `room`. `own`: this node has published them, so that their senders are connections of
/// its own; of others' nobody here knows anything. `published`: when they count as taken from their publisher.
///
/// # Errors
/// Text that is not UTF-8, a close that is none or is in a room that is not a user's, lengths beyond the end, bytes left
/// over.
pub fn decode_batch(
    room: &str,
    body: &[u8],
    count: u32,
    own: bool,
    published: Tick,
) -> Result<Arc<Batch>, Malformed> {
    let mut reader = Reader(body);
    // A count that the bytes cannot hold reserves nothing: the least message has 5 bytes.
    let likely_count = (count as usize).min(body.len() / 5 + 1);
    let mut messages = Vec::with_capacity(likely_count);
    let mut bytes = Vec::with_capacity(body.len() + 4 * likely_count);
    for _ in 0..count {
        let [flags] = reader.take()?;
        let (kind, opcode) = match flags & !FLAG_SENDER {
            0 => (MessageKind::Text, OpCode::Text),
            FLAG_BINARY => (MessageKind::Binary, OpCode::Binary),
            FLAG_CLOSE => (MessageKind::Close { reconnect: false }, OpCode::Close),
            FLAG_CLOSE_RECONNECT => (MessageKind::Close { reconnect: true }, OpCode::Close),
            _ => return Err(Malformed),
        };
        let sender = match flags & FLAG_SENDER {
            0 => None,
            _ => Some(ConnectionId(u64::from_be_bytes(reader.take()?))),
        };
        let length = u32::from_be_bytes(reader.take()?);
        let payload = reader.take_slice(length as usize)?;
        let is_good = match kind {
            MessageKind::Text => simdutf8::basic::from_utf8(payload).is_ok(),
            MessageKind::Binary => true,
            MessageKind::Close { .. } => is_close(room, payload),
        };
        if !is_good {
            return Err(Malformed);
        }
        let header_bytes = encode_header(&mut bytes, true, opcode, payload.len());
        bytes.extend_from_slice(payload);
        messages.push(BatchMessage {
            end: u32::try_from(bytes.len()).map_err(|_| Malformed)?,
            header_bytes,
            kind,
            sender: sender.filter(|_| own),
        });
    }
    if !reader.0.is_empty() {
        return Err(Malformed);
    }
    Ok(Arc::new(Batch {
        bytes,
        messages,
        published,
    }))
}

/// Whether `payload` is that of a close frame, in a room whose members may be closed.
fn is_close(room: &str, payload: &[u8]) -> bool {
    matches!(hidden(room), Some(Hidden::User(_)))
        && payload.len() <= CONTROL_PAYLOAD_BYTES_MAX
        && matches!(parse_close(payload), Ok(Some(_)))
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (front, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*front)
    }

    fn take_slice(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(front)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: Stamp = Stamp {
        node: 0x0102_0304_0506_0708,
        epoch: 9,
        sequence: 10,
        sent: Tick(11),
    };

    fn batch(messages: &[(MessageKind, Option<u64>, Vec<u8>)]) -> Batch {
        let mut batch = Batch {
            bytes: Vec::new(),
            messages: Vec::new(),
            published: Tick(5),
        };
        for (kind, sender, payload) in messages {
            let opcode = match kind {
                MessageKind::Text => OpCode::Text,
                MessageKind::Binary => OpCode::Binary,
                MessageKind::Close { .. } => OpCode::Close,
            };
            let header_bytes = encode_header(&mut batch.bytes, true, opcode, payload.len());
            batch.bytes.extend_from_slice(payload);
            batch.messages.push(BatchMessage {
                end: batch.bytes.len() as u32,
                header_bytes,
                kind: *kind,
                sender: sender.map(ConnectionId),
            });
        }
        batch
    }

    fn encoded(batch: &Batch) -> Vec<u8> {
        let mut out = Vec::new();
        encode_batch(&mut out, &STAMP, batch);
        out
    }

    fn decoded(bytes: &[u8], own: bool) -> Result<(Stamp, Arc<Batch>), Malformed> {
        decoded_in("\u{1}ann", bytes, own)
    }

    fn decoded_in(room: &str, bytes: &[u8], own: bool) -> Result<(Stamp, Arc<Batch>), Malformed> {
        match decode(bytes)? {
            Parcel::Messages { stamp, count, body } => {
                Ok((stamp, decode_batch(room, body, count, own, Tick(5))?))
            }
            Parcel::Probe(_) => Err(Malformed),
        }
    }

    #[test]
    fn the_bytes_are_as_documented() {
        let batch = batch(&[
            (MessageKind::Text, Some(7), b"hi".to_vec()),
            (MessageKind::Binary, None, vec![0xff]),
        ]);
        let expected = [
            &[1, 1][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 9],
            &[0, 0, 0, 0, 0, 0, 0, 10],
            &[0, 0, 0, 0, 0, 0, 0, 11],
            &[0, 0, 0, 2],
            &[2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, b'h', b'i'],
            &[1, 0, 0, 0, 1, 0xff],
        ]
        .concat();
        assert_eq!(encoded(&batch), expected);
        let mut probe = Vec::new();
        encode_probe(&mut probe, &STAMP);
        assert_eq!(probe.len(), HEADER_BYTES);
        assert_eq!(decode(&probe), Ok(Parcel::Probe(STAMP)));
    }

    #[test]
    fn a_close_is_a_users_alone_and_holds_a_code() {
        for (reconnect, flags) in [(false, 4), (true, 12)] {
            let kind = MessageKind::Close { reconnect };
            let close = batch(&[(kind, None, b"\x0f\xa1gone".to_vec())]);
            let bytes = encoded(&close);
            assert_eq!(bytes[HEADER_BYTES], flags);
            assert_eq!(*decoded(&bytes, true).unwrap().1, close);
            for room in ["ann", "\u{2}"] {
                assert_eq!(decoded_in(room, &bytes, true), Err(Malformed), "{room:?}");
            }
        }
        let kind = MessageKind::Close { reconnect: false };
        let too_long = [b"\x03\xe8", &[b'x'; 124][..]].concat();
        for payload in [&b""[..], b"\x03", b"\x03\xed", b"\x03\xe8\xff", &too_long] {
            let mut bytes = encoded(&batch(&[(MessageKind::Binary, None, payload.to_vec())]));
            bytes[HEADER_BYTES] = 4;
            assert_eq!(
                decoded(&bytes, true),
                Err(Malformed),
                "{kind:?} {payload:?}"
            );
        }
        for flags in [5, 8, 9, 16] {
            let mut bytes = encoded(&batch(&[(kind, None, b"\x0f\xa1".to_vec())]));
            bytes[HEADER_BYTES] = flags;
            assert_eq!(decoded(&bytes, true), Err(Malformed), "flags {flags}");
        }
    }

    #[test]
    fn senders_of_other_nodes_are_nobody_here() {
        let batch = batch(&[(MessageKind::Text, Some(7), b"hi".to_vec())]);
        let bytes = encoded(&batch);
        assert_eq!(*decoded(&bytes, true).unwrap().1, batch);
        assert_eq!(decoded(&bytes, false).unwrap().1.messages[0].sender, None);
    }

    #[test]
    fn what_is_cut_short_too_long_or_of_another_version_is_malformed() {
        let good = encoded(&batch(&[(MessageKind::Text, Some(7), b"hello".to_vec())]));
        for end in 0..good.len() {
            assert_eq!(decoded(&good[..end], true), Err(Malformed), "{end} bytes");
        }
        let long = [&good[..], b"x"].concat();
        assert_eq!(decoded(&long, true), Err(Malformed));
        for (at, byte) in [(0, 2), (1, 3), (HEADER_BYTES, 0x80), (good.len() - 1, 0xff)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(decoded(&bad, true), Err(Malformed), "byte {at} = {byte}");
        }
        let mut nothing = good[..HEADER_BYTES].to_vec();
        nothing[33] = 0;
        assert_eq!(decoded(&nothing, true), Err(Malformed), "no messages");
        let mut many = good;
        many[30..34].fill(0xff);
        assert_eq!(decoded(&many, true), Err(Malformed), "more than there are");
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_went(
            messages in prop::collection::vec((any::<bool>(), any::<Option<u64>>(), ".{0,300}"), 1..20)
        ) {
            let messages: Vec<_> = messages.into_iter().map(|(binary, sender, text)| {
                let kind = if binary { MessageKind::Binary } else { MessageKind::Text };
                (kind, sender, text.into_bytes())
            }).collect();
            let batch = batch(&messages);
            let (stamp, back) = decoded(&encoded(&batch), true).unwrap();
            prop_assert_eq!(stamp, STAMP);
            prop_assert_eq!(&*back, &batch);
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), valid_head: bool) {
            let mut bytes = bytes;
            if valid_head && bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&[VERSION, KIND_MESSAGES]);
            }
            let _ = decoded(&bytes, true);
        }
    }
}
