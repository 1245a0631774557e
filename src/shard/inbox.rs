//! What a connection has sent and could not be used whole yet. Exists only while there is something.

use super::ledger::{Ledger, Refused};
use crate::bus::MessageKind;
use crate::protocol::Utf8Validator;
use crate::protocol::handshake::HeadScan;

/// A data frame whose payload is still coming.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameProgress {
    pub mask: [u8; 4],
    pub payload_bytes: u32,
    pub received_bytes: u32,
    pub fin: bool,
}

/// A message of which at least one frame has begun.
#[derive(Debug)]
pub(super) struct Partial {
    pub kind: MessageKind,
    pub payload: Vec<u8>,
    pub fragment_count: u32,
    pub utf8: Utf8Validator,
    /// The frame that is coming; `None` between frames, and when the message is whole but was not published yet.
    pub frame: Option<FrameProgress>,
    /// All frames are here.
    pub whole: bool,
}

/// Input that waits.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Bytes not decoded yet: the beginning of a request, a header or a control frame; whatever came during a pause.
    pub unread: Vec<u8>,
    /// How far the end of an unfinished request has been looked for.
    pub head_scan: HeadScan,
    pub partial: Option<Partial>,
    /// Stamp of the last byte of what is begun: of payload, or of a header before there is any. Control frames between
    /// the frames of a message do not count.
    pub progress_ms: u32,
    charged_bytes: u32,
}

impl Inbox {
    /// Bytes the ledger has charged for it.
    pub(super) const fn charged_bytes(&self) -> u32 {
        self.charged_bytes
    }

    /// Nothing waits in it: it may go.
    pub(super) const fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.partial.is_none()
    }

    /// A new inbox, charged for itself. `owed`: whatever the limits say, as for [`Inbox::keep_unread`].
    pub(super) fn open(ledger: &mut Ledger, now_ms: u32, owed: bool) -> Result<Box<Self>, Refused> {
        let bytes = u32::try_from(size_of::<Self>()).expect("small");
        if owed {
            ledger.charge_owed(bytes);
        } else {
            ledger.charge(bytes)?;
        }
        Ok(Box::new(Self {
            progress_ms: now_ms,
            charged_bytes: bytes,
            ..Self::default()
        }))
    }

    /// Appends to `unread`, charging first. `owed` input is kept even beyond the limits: the kernel had handed it
    /// over before it could know, and it is bounded by the shard's receive buffers.
    pub(super) fn keep_unread(
        &mut self,
        bytes: &[u8],
        ledger: &mut Ledger,
        owed: bool,
    ) -> Result<(), Refused> {
        let grown = grown_capacity(&self.unread, bytes.len(), usize::MAX);
        self.charge_growth(grown - self.unread.capacity(), ledger, owed)?;
        self.unread.reserve_exact(grown - self.unread.len());
        self.unread.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes place for `bytes` more of the message's payload, charging first. Called when a header announces them.
    pub(super) fn announce(
        &mut self,
        bytes: usize,
        message_max: usize,
        ledger: &mut Ledger,
    ) -> Result<(), Refused> {
        let Some(partial) = &self.partial else {
            return Ok(());
        };
        let grown = grown_capacity(&partial.payload, bytes, message_max);
        let growth = grown - partial.payload.capacity();
        self.charge_growth(growth, ledger, false)?;
        let partial = self.partial.as_mut().expect("looked at above");
        partial.payload.reserve_exact(grown - partial.payload.len());
        Ok(())
    }

    fn charge_growth(
        &mut self,
        bytes: usize,
        ledger: &mut Ledger,
        owed: bool,
    ) -> Result<(), Refused> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if owed {
            ledger.charge_owed(bytes);
        } else {
            ledger.charge(bytes)?;
        }
        self.charged_bytes += bytes;
        Ok(())
    }

    /// Takes the message out, and refunds what it was charged.
    pub(super) fn take_partial(&mut self, ledger: &mut Ledger) -> Option<Partial> {
        let partial = self.partial.take()?;
        self.refund(partial.payload.capacity(), ledger);
        Some(partial)
    }

    /// Takes the unread bytes out, and refunds what they were charged.
    pub(super) fn take_unread(&mut self, ledger: &mut Ledger) -> Vec<u8> {
        let unread = std::mem::take(&mut self.unread);
        self.refund(unread.capacity(), ledger);
        unread
    }

    fn refund(&mut self, bytes: usize, ledger: &mut Ledger) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.charged_bytes -= bytes;
        ledger.refund(bytes);
    }
}

/// The capacity to grow to for `more` bytes: exactly what is needed at first, then doubling so that a message of many
/// fragments is not copied for each of them, but never beyond `max`.
fn grown_capacity(buffer: &Vec<u8>, more: usize, max: usize) -> usize {
    let needed = buffer.len() + more;
    if needed <= buffer.capacity() {
        return buffer.capacity();
    }
    if buffer.is_empty() {
        needed
    } else {
        needed.max((2 * buffer.capacity()).min(max))
    }
}
