//! Frame headers, both ways (RFC 6455 §5.2). Allocates nothing, keeps nothing, reads no payload.
//!
//! ```text
//!  byte 0                byte 1             then
//!  F R R R o o o o       M l l l l l l l    length: 0, 2 or 8 bytes   mask: 0 or 4 bytes   payload
//!  │ └─┬─┘ opcode        │ └ 0..=125, 126: two bytes follow, 127: eight
//!  │   reserved, zero    └ client to server: 1, server to client: 0
//!  └ last of its message
//! ```

use tungstenite::protocol::frame::coding;

use super::CloseReason;
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const OPCODE_CONTROL: u8 = 0x08;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// The largest length that the second byte holds by itself.
const LENGTH_SHORT_MAX: u8 = 125;
/// The length byte that announces two more.
const LENGTH_TWO: u8 = 126;
/// The length byte that announces eight more.
const LENGTH_EIGHT: u8 = 127;

/// What a frame is (RFC 6455 §5.2, §11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// More of the message that an earlier frame began.
    Continuation = 0,
    /// The first frame of a text message.
    Text = 1,
    /// The first frame of a binary message.
    Binary = 2,
    /// The end of the connection, from this side.
    Close = 8,
    /// A question that a pong answers.
    Ping = 9,
    /// The answer to a ping.
    Pong = 10,
}

impl OpCode {
    /// All opcodes that may be on the wire.
    pub const ALL: [Self; 6] = [
        Self::Continuation,
        Self::Text,
        Self::Binary,
        Self::Close,
        Self::Ping,
        Self::Pong,
    ];

    /// Whether it is a control frame: never fragmented, at most 125 bytes, allowed between fragments (RFC 6455 §5.5).
    #[inline]
    #[must_use]
    pub const fn is_control(self) -> bool {
        self as u8 & OPCODE_CONTROL != 0
    }

    #[inline]
    fn from_bits(bits: u8) -> Option<Self> {
        use coding::{Control, Data, OpCode};
        match OpCode::from(bits & OPCODE) {
            OpCode::Data(Data::Continue) => Some(Self::Continuation),
            OpCode::Data(Data::Text) => Some(Self::Text),
            OpCode::Data(Data::Binary) => Some(Self::Binary),
            OpCode::Control(Control::Close) => Some(Self::Close),
            OpCode::Control(Control::Ping) => Some(Self::Ping),
            OpCode::Control(Control::Pong) => Some(Self::Pong),
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => None,
        }
    }
}

/// Which side reads: it decides whether a mask is required or forbidden (RFC 6455 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads frames of a client: each must be masked.
    Server,
    /// Reads frames of a server: none may be masked.
    Client,
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// Whether the frame is the last of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: OpCode,
    /// Bytes of payload that the header announces, not those that have arrived. Below 2^63.
    pub payload_bytes: u64,
    /// The mask of the payload; `Some` exactly when a server reads.
    pub mask: Option<[u8; 4]>,
    /// Bytes of the header itself: 2 to 14.
    pub header_bytes: u8,
}

/// What is wrong with a frame. All are the peer's doing and end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameError {
    /// A reserved bit is set, and no extension was agreed on that gives it a meaning (RFC 6455 §5.2).
    ReservedBits,
    /// An opcode that has no meaning (RFC 6455 §5.2).
    ReservedOpcode,
    /// A control frame that is not the last of its message (RFC 6455 §5.5).
    ControlFragmented,
    /// A control frame over 125 bytes (RFC 6455 §5.5).
    ControlTooLong,
    /// A client's frame without a mask (RFC 6455 §5.1).
    Unmasked,
    /// A server's frame with a mask (RFC 6455 §5.1).
    Masked,
    /// A length in more bytes than it needs (RFC 6455 §5.2).
    LengthNotMinimal,
    /// An eight-byte length with its top bit set (RFC 6455 §5.2).
    LengthTopBit,
    /// A close frame with a payload of one byte: half a code (RFC 6455 §5.5.1).
    CloseTruncated,
    /// A close code that must not be on the wire (RFC 6455 §7.4).
    CloseCodeForbidden,
    /// A close reason that is not UTF-8 (RFC 6455 §5.5.1).
    CloseReasonNotUtf8,
}

impl FrameError {
    /// The verdict that the connection is closed with.
    #[must_use]
    pub const fn close_reason(self) -> CloseReason {
        match self {
            Self::CloseReasonNotUtf8 => CloseReason::InvalidUtf8,
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::Unmasked
            | Self::Masked
            | Self::LengthNotMinimal
            | Self::LengthTopBit
            | Self::CloseTruncated
            | Self::CloseCodeForbidden => CloseReason::ProtocolError,
        }
    }
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        error.close_reason()
    }
}

/// Decodes one frame header from the front of `bytes`. `Ok(None)`: more are needed, nothing was consumed.
///
/// `payload_bytes` in the result is what the header announces, not what has arrived: charge it before waiting for it.
///
/// # Errors
/// As soon as the bytes show it, the two first bytes before any length:
/// - `ReservedBits`, `ReservedOpcode`: nobody agreed on a meaning (RFC 6455 §5.2).
/// - `ControlFragmented`, `ControlTooLong`: a control frame that is not whole and short (RFC 6455 §5.5).
/// - `Unmasked`, `Masked`: against the direction's rule (RFC 6455 §5.1).
/// - `LengthNotMinimal`, `LengthTopBit`: against the rule of lengths (RFC 6455 §5.2).
#[inline]
pub fn decode_header(bytes: &[u8], role: Role) -> Result<Option<FrameHeader>, FrameError> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    let Some(opcode) = OpCode::from_bits(first) else {
        return Err(refuse_bits(first));
    };
    if first & RESERVED != 0 {
        return Err(FrameError::ReservedBits);
    }
    let fin = first & FIN != 0;
    let length = second & LENGTH;
    if opcode.is_control() && (!fin || length > LENGTH_SHORT_MAX) {
        return Err(refuse_control(fin));
    }
    let masked = second & MASKED != 0;
    if masked != (role == Role::Server) {
        return Err(refuse_mask(role));
    }
    let (payload_bytes, length_bytes) = if length <= LENGTH_SHORT_MAX {
        (u64::from(length), 0)
    } else {
        match decode_length(rest, length)? {
            Some(long) => long,
            None => return Ok(None),
        }
    };
    let mask = match role {
        Role::Client => None,
        Role::Server => match rest[length_bytes..].first_chunk() {
            Some(mask) => Some(*mask),
            None => return Ok(None),
        },
    };
    let header_bytes = 2 + length_bytes as u8 + if mask.is_some() { 4 } else { 0 };
    Ok(Some(FrameHeader {
        fin,
        opcode,
        payload_bytes,
        mask,
        header_bytes,
    }))
}

/// The length behind a length byte of 126 or 127, and how many bytes it took.
#[inline]
fn decode_length(rest: &[u8], length: u8) -> Result<Option<(u64, usize)>, FrameError> {
    if length == LENGTH_TWO {
        let Some(&announced) = rest.first_chunk::<2>() else {
            return Ok(None);
        };
        let announced = u16::from_be_bytes(announced);
        if announced <= u16::from(LENGTH_SHORT_MAX) {
            return Err(FrameError::LengthNotMinimal);
        }
        Ok(Some((u64::from(announced), 2)))
    } else {
        let Some(&announced) = rest.first_chunk::<8>() else {
            return Ok(None);
        };
        let announced = u64::from_be_bytes(announced);
        if announced >> 63 != 0 {
            return Err(FrameError::LengthTopBit);
        }
        if announced <= u64::from(u16::MAX) {
            return Err(FrameError::LengthNotMinimal);
        }
        Ok(Some((announced, 8)))
    }
}

#[cold]
fn refuse_bits(first: u8) -> FrameError {
    if first & RESERVED != 0 {
        FrameError::ReservedBits
    } else {
        FrameError::ReservedOpcode
    }
}

#[cold]
fn refuse_control(fin: bool) -> FrameError {
    if fin {
        FrameError::ControlTooLong
    } else {
        FrameError::ControlFragmented
    }
}

#[cold]
fn refuse_mask(role: Role) -> FrameError {
    match role {
        Role::Server => FrameError::Unmasked,
        Role::Client => FrameError::Masked,
    }
}

/// Appends a server's frame header (unmasked) for `payload_bytes` to `out` and says how many bytes it has: 2, 4 or 10.
///
/// The length takes the fewest bytes that hold it (RFC 6455 §5.2). The caller appends the payload.
///
/// # Panics
/// A control frame of more than 125 bytes, or in fragments: such a frame is this process's mistake.
#[inline]
pub fn encode_header(out: &mut Vec<u8>, fin: bool, opcode: OpCode, payload_bytes: usize) -> u8 {
    encode(out, fin, opcode, payload_bytes, 0)
}

/// Appends a client's frame header with its mask to `out` and says how many bytes it has: 6, 8 or 14.
///
/// The caller appends the payload masked, see [`super::unmask_extend`]. A fresh mask a frame, from a strong source of
/// entropy where the peer is not this process's own (RFC 6455 §5.3).
///
/// # Panics
/// A control frame of more than 125 bytes, or in fragments: such a frame is this process's mistake.
#[inline]
pub fn encode_client_header(
    out: &mut Vec<u8>,
    fin: bool,
    opcode: OpCode,
    payload_bytes: usize,
    mask: [u8; 4],
) -> u8 {
    let header_bytes = encode(out, fin, opcode, payload_bytes, MASKED);
    out.extend_from_slice(&mask);
    header_bytes + 4
}

#[inline]
fn encode(out: &mut Vec<u8>, fin: bool, opcode: OpCode, payload_bytes: usize, masked: u8) -> u8 {
    assert!(
        !opcode.is_control() || (fin && payload_bytes <= CONTROL_PAYLOAD_BYTES_MAX),
        "a control frame is whole and at most 125 bytes long"
    );
    let first = opcode as u8 | if fin { FIN } else { 0 };
    if payload_bytes <= usize::from(LENGTH_SHORT_MAX) {
        out.extend_from_slice(&[first, masked | payload_bytes as u8]);
        2
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        let [high, low] = length.to_be_bytes();
        out.extend_from_slice(&[first, masked | LENGTH_TWO, high, low]);
        4
    } else {
        let mut header = [first, masked | LENGTH_EIGHT, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        out.extend_from_slice(&header);
        10
    }
}

const _: () = assert!(CONTROL_PAYLOAD_BYTES_MAX == LENGTH_SHORT_MAX as usize);
const _: () = assert!(size_of::<FrameHeader>() == 16);

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tungstenite::protocol::frame::FrameHeader as Theirs;

    use super::*;
    use crate::limits::{CLIENT_HEADER_BYTES_MAX, SERVER_HEADER_BYTES_MAX};

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn client_frame(first: u8, length: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        bytes.extend_from_slice(length);
        bytes[1] |= MASKED;
        bytes.extend_from_slice(&MASK);
        bytes
    }

    fn decoded(first: u8, length: &[u8]) -> Result<FrameHeader, FrameError> {
        decode_header(&client_frame(first, length), Role::Server)
            .map(|header| header.expect("the header is whole"))
    }

    #[test]
    fn our_opcodes_are_those_of_the_registry() {
        for bits in 0..=OPCODE {
            let ours = OpCode::from_bits(bits);
            assert_eq!(
                ours.is_some(),
                OpCode::ALL.iter().any(|opcode| *opcode as u8 == bits),
                "{bits}"
            );
            if let Some(ours) = ours {
                assert_eq!(ours as u8, bits);
                assert_eq!(
                    ours.is_control(),
                    matches!(coding::OpCode::from(bits), coding::OpCode::Control(_))
                );
            }
        }
    }

    #[test]
    fn lengths_at_both_sides_of_each_boundary_are_told() {
        let wide = |length: u64| [[LENGTH_EIGHT].as_slice(), &length.to_be_bytes()].concat();
        for (length, payload_bytes, header_bytes) in [
            (vec![0], 0, 6),
            (vec![125], 125, 6),
            (vec![126, 0, 126], 126, 8),
            (vec![126, 255, 255], 65_535, 8),
            (wide(65_536), 65_536, 14),
            (wide((1 << 63) - 1), (1 << 63) - 1, 14),
        ] {
            let header = decoded(0x82, &length).unwrap();
            assert_eq!(
                (header.payload_bytes, header.header_bytes),
                (payload_bytes, header_bytes)
            );
            assert_eq!(header.mask, Some(MASK));
        }
        for length in [vec![126, 0, 125], vec![126, 0, 0], wide(0), wide(65_535)] {
            assert_eq!(
                decoded(0x82, &length),
                Err(FrameError::LengthNotMinimal),
                "{length:?}"
            );
        }
        assert_eq!(decoded(0x82, &wide(1 << 63)), Err(FrameError::LengthTopBit));
        assert_eq!(
            decoded(0x82, &wide(u64::MAX)),
            Err(FrameError::LengthTopBit)
        );
    }

    #[test]
    fn reserved_bits_and_opcodes_are_refused() {
        for bit in [0x40, 0x20, 0x10] {
            assert_eq!(decoded(0x81 | bit, &[0]), Err(FrameError::ReservedBits));
        }
        for opcode in (3..=7).chain(11..=15) {
            assert_eq!(
                decoded(0x80 | opcode, &[0]),
                Err(FrameError::ReservedOpcode)
            );
        }
    }

    #[test]
    fn control_frames_are_whole_and_short() {
        for opcode in [8, 9, 10] {
            assert_eq!(decoded(0x80 | opcode, &[125]).unwrap().payload_bytes, 125);
            assert_eq!(
                decoded(0x80 | opcode, &[126, 0, 126]),
                Err(FrameError::ControlTooLong)
            );
            assert_eq!(decoded(opcode, &[0]), Err(FrameError::ControlFragmented));
        }
        assert!(!decoded(0x01, &[0]).unwrap().fin);
    }

    #[test]
    fn each_direction_has_its_mask_rule() {
        assert_eq!(
            decode_header(&[0x81, 0x00], Role::Server),
            Err(FrameError::Unmasked)
        );
        assert_eq!(
            decode_header(&[0x81, 0x80], Role::Client),
            Err(FrameError::Masked)
        );
        let header = decode_header(&[0x81, 0x00], Role::Client).unwrap().unwrap();
        assert_eq!((header.mask, header.header_bytes), (None, 2));
    }

    #[test]
    fn a_fault_in_the_first_two_bytes_is_told_before_the_length_has_come() {
        assert_eq!(
            decode_header(&[0xc1, 0xfe], Role::Server),
            Err(FrameError::ReservedBits)
        );
        assert_eq!(
            decode_header(&[0x89, 0xfe], Role::Server),
            Err(FrameError::ControlTooLong)
        );
        assert_eq!(
            decode_header(&[0x82, 0x7f], Role::Server),
            Err(FrameError::Unmasked)
        );
        assert_eq!(
            decode_header(&[0x82, 0xfe, 0, 125], Role::Server),
            Err(FrameError::LengthNotMinimal)
        );
    }

    #[test]
    #[should_panic(expected = "at most 125 bytes")]
    fn a_ping_of_126_bytes_is_never_encoded() {
        encode_header(&mut Vec::new(), true, OpCode::Ping, 126);
    }

    fn any_opcode() -> impl Strategy<Value = OpCode> {
        prop::sample::select(&OpCode::ALL[..])
    }

    fn any_length() -> impl Strategy<Value = usize> {
        prop_oneof![
            0usize..300,
            65_000usize..66_000,
            any::<u32>().prop_map(|length| length as usize)
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(opcode in any_opcode(), fin: bool, length in any_length(), mask: [u8; 4]) {
            let (fin, length) = if opcode.is_control() { (true, length % 126) } else { (fin, length) };
            let mut out = vec![0xaa];
            let header_bytes = encode_header(&mut out, fin, opcode, length);
            prop_assert!(usize::from(header_bytes) == out.len() - 1 && out.len() - 1 <= SERVER_HEADER_BYTES_MAX);
            let expected = FrameHeader { fin, opcode, payload_bytes: length as u64, mask: None, header_bytes };
            prop_assert_eq!(decode_header(&out[1..], Role::Client), Ok(Some(expected)));

            let mut out = Vec::new();
            let header_bytes = encode_client_header(&mut out, fin, opcode, length, mask);
            prop_assert!(usize::from(header_bytes) == out.len() && out.len() <= CLIENT_HEADER_BYTES_MAX);
            let expected = FrameHeader { mask: Some(mask), header_bytes, ..expected };
            prop_assert_eq!(decode_header(&out, Role::Server), Ok(Some(expected)));
        }

        #[test]
        fn a_prefix_of_a_header_is_waited_for(opcode in any_opcode(), length in any_length(), mask: [u8; 4]) {
            let length = if opcode.is_control() { length % 126 } else { length };
            let mut out = Vec::new();
            encode_client_header(&mut out, true, opcode, length, mask);
            for end in 0..out.len() {
                prop_assert_eq!(decode_header(&out[..end], Role::Server), Ok(None));
            }
        }

        #[test]
        fn what_we_take_is_what_tungstenite_reads(
            first in any::<u8>(), second in any::<u8>(), rest in prop::collection::vec(any::<u8>(), 0..14)
        ) {
            let bytes = [&[first, second][..], &rest].concat();
            let role = if second & MASKED == 0 { Role::Client } else { Role::Server };
            let mut cursor = Cursor::new(&bytes);
            let theirs = Theirs::parse(&mut cursor);
            match decode_header(&bytes, role) {
                Ok(Some(ours)) => {
                    let (header, length) = theirs.unwrap().expect("whole for us, whole for them");
                    prop_assert_eq!(ours.payload_bytes, length);
                    prop_assert_eq!((ours.fin, ours.mask), (header.is_final, header.mask));
                    prop_assert_eq!(ours.opcode as u8, u8::from(header.opcode));
                    prop_assert_eq!(u64::from(ours.header_bytes), cursor.position());
                    prop_assert!(!header.rsv1 && !header.rsv2 && !header.rsv3);
                }
                Ok(None) => prop_assert!(matches!(theirs, Ok(None))),
                Err(error) => prop_assert_eq!(error.close_reason(), CloseReason::ProtocolError),
            }
        }
    }
}
