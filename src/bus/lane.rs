//! A bounded lane from one core to another, and the bell that tells whether the reader has to be woken.
//!
//! ```text
//! writer core                    lane (crossbeam, bounded)                reader core
//! try_send(envelope, bytes) ──▶ [ envelope | envelope | … ] ──▶ next() … then settle()
//!      ▲                                                                   │
//!      └──────────────── bytes settled (one atomic a drain) ◀──────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::limits::{LANE_BYTES_MAX, LANE_CONTROL_RESERVE, LANE_ENVELOPE_COUNT_MAX};

/// Tells writers whether a core sleeps. One per core, shared by all lanes that lead to it.
///
/// ```text
/// reader: doze() ─▶ all lanes still empty? ─▶ sleep          writer: try_send ─▶ ring() ─▶ true: wake the core
/// ```
#[derive(Debug, Default)]
pub struct Bell(AtomicBool);

impl Bell {
    /// A bell of a core that is awake.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The reader is about to sleep. It must look into its lanes once more before it does.
    pub fn doze(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// The reader is awake.
    pub fn awake(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Called by a writer after sending: whether the reader slept, so that it has to be woken. True once a sleep.
    #[must_use]
    pub fn ring(&self) -> bool {
        // Orders the envelope before the look at the flag; pairs with the SeqCst store in `doze`.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::SeqCst)
    }
}

/// The lane had no room; here is the envelope back.
#[derive(Debug, PartialEq, Eq)]
pub struct LaneFull<T>(pub T);

/// The end of a lane that one core writes to.
#[derive(Debug)]
pub struct LaneWriter<T> {
    envelopes: Sender<(T, u32)>,
    settled_bytes: Arc<AtomicU64>,
    sent_bytes: u64,
}

/// The end of a lane that one core reads from.
#[derive(Debug)]
pub struct LaneReader<T> {
    envelopes: Receiver<(T, u32)>,
    settled_bytes: Arc<AtomicU64>,
    taken_bytes: u64,
}

/// A lane of [`LANE_ENVELOPE_COUNT_MAX`] envelopes and [`LANE_BYTES_MAX`] payload bytes.
#[must_use]
pub fn lane<T>() -> (LaneWriter<T>, LaneReader<T>) {
    let (sender, receiver) = bounded(LANE_ENVELOPE_COUNT_MAX);
    let settled_bytes = Arc::new(AtomicU64::new(0));
    (
        LaneWriter {
            envelopes: sender,
            settled_bytes: Arc::clone(&settled_bytes),
            sent_bytes: 0,
        },
        LaneReader {
            envelopes: receiver,
            settled_bytes,
            taken_bytes: 0,
        },
    )
}

impl<T> LaneWriter<T> {
    /// Data envelopes that would still be taken. Never more than are free: this is the only writer.
    #[must_use]
    pub fn data_room(&self) -> usize {
        let free = LANE_ENVELOPE_COUNT_MAX - self.envelopes.len();
        free.saturating_sub(LANE_CONTROL_RESERVE)
    }

    /// Payload bytes that would still be taken.
    #[must_use]
    pub fn bytes_room(&self) -> usize {
        LANE_BYTES_MAX.saturating_sub(usize::try_from(self.bytes_flying()).unwrap_or(usize::MAX))
    }

    /// Envelopes waiting.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.envelopes.len()
    }

    /// Payload bytes in flight: sent, and not settled yet.
    #[must_use]
    pub fn bytes_flying(&self) -> u64 {
        self.sent_bytes - self.settled_bytes.load(Ordering::Acquire)
    }

    /// Whether a data envelope with `bytes` of payload would be taken now.
    ///
    /// A single message may be larger than [`LANE_BYTES_MAX`] (its limit is a setting): a lane with no bytes in flight
    /// takes it, so the bound is the larger of the two, and nothing waits for ever.
    #[must_use]
    pub fn fits(&self, bytes: u32) -> bool {
        let room = self.bytes_room();
        self.data_room() > 0 && (room >= bytes as usize || room == LANE_BYTES_MAX)
    }

    /// Sends an envelope that carries `bytes` of payload.
    ///
    /// # Errors
    /// `LaneFull` gives the envelope back when only the control reserve is left, or the bytes do not fit.
    pub fn try_send_data(&mut self, envelope: T, bytes: u32) -> Result<(), LaneFull<T>> {
        if !self.fits(bytes) {
            return Err(LaneFull(envelope));
        }
        self.push(envelope, bytes)
    }

    /// Sends an envelope without payload; it may use the control reserve.
    ///
    /// # Errors
    /// `LaneFull` gives the envelope back.
    pub fn try_send_control(&mut self, envelope: T) -> Result<(), LaneFull<T>> {
        self.push(envelope, 0)
    }

    fn push(&mut self, envelope: T, bytes: u32) -> Result<(), LaneFull<T>> {
        match self.envelopes.try_send((envelope, bytes)) {
            Ok(()) => {
                self.sent_bytes += u64::from(bytes);
                Ok(())
            }
            Err(TrySendError::Full((envelope, _))) => Err(LaneFull(envelope)),
            // The reader's core has died, and the process ends for it: nobody is left to care.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }
}

impl<T> LaneReader<T> {
    /// The next envelope, in the order they were sent.
    pub fn next_envelope(&mut self) -> Option<T> {
        let (envelope, bytes) = self.envelopes.try_recv().ok()?;
        self.taken_bytes += u64::from(bytes);
        Some(envelope)
    }

    /// Gives the bytes of all envelopes taken so far back to the writer. Once a drain, not once an envelope.
    pub fn settle(&self) {
        self.settled_bytes
            .store(self.taken_bytes, Ordering::Release);
    }

    /// Envelopes waiting.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.envelopes.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_leaves_the_control_reserve_and_control_may_use_it() {
        let (mut writer, mut reader) = lane::<u32>();
        let mut sent = 0;
        while writer.try_send_data(sent, 1).is_ok() {
            sent += 1;
        }
        assert_eq!(
            sent as usize,
            LANE_ENVELOPE_COUNT_MAX - LANE_CONTROL_RESERVE
        );
        for _ in 0..LANE_CONTROL_RESERVE {
            writer.try_send_control(u32::MAX).unwrap();
        }
        assert_eq!(writer.try_send_control(7), Err(LaneFull(7)));
        for expected in 0..sent {
            assert_eq!(reader.next_envelope(), Some(expected));
        }
        assert_eq!(writer.try_send_data(9, 1), Ok(()));
    }

    #[test]
    fn bytes_are_bounded_and_come_back_when_settled() {
        let (mut writer, mut reader) = lane::<&str>();
        writer
            .try_send_data("most", u32::try_from(LANE_BYTES_MAX).unwrap() - 10)
            .unwrap();
        assert_eq!(
            writer.try_send_data("too much", 11),
            Err(LaneFull("too much"))
        );
        writer.try_send_data("fits", 10).unwrap();
        assert_eq!(writer.bytes_room(), 0);
        while reader.next_envelope().is_some() {}
        assert_eq!(writer.bytes_room(), 0, "not settled yet");
        reader.settle();
        assert_eq!(writer.bytes_room(), LANE_BYTES_MAX);
    }

    #[test]
    fn a_message_larger_than_the_lane_goes_when_nothing_else_is_in_flight() {
        let (mut writer, mut reader) = lane::<&str>();
        let huge = u32::try_from(LANE_BYTES_MAX).unwrap() + 10;
        writer.try_send_data("small", 1).unwrap();
        assert_eq!(writer.try_send_data("huge", huge), Err(LaneFull("huge")));
        reader.next_envelope().unwrap();
        reader.settle();
        writer.try_send_data("huge", huge).unwrap();
        assert_eq!(writer.bytes_room(), 0);
        assert_eq!(writer.try_send_data("small", 1), Err(LaneFull("small")));
        reader.next_envelope().unwrap();
        reader.settle();
        assert_eq!(writer.bytes_room(), LANE_BYTES_MAX);
    }

    #[test]
    fn a_lane_whose_reader_has_died_takes_everything() {
        let (mut writer, reader) = lane::<u32>();
        drop(reader);
        for envelope in 0..=u32::try_from(LANE_ENVELOPE_COUNT_MAX).unwrap() {
            assert_eq!(writer.try_send_control(envelope), Ok(()));
        }
    }

    #[test]
    fn the_bell_rings_once_a_sleep() {
        let bell = Bell::new();
        assert!(!bell.ring());
        bell.doze();
        assert!(bell.ring());
        assert!(!bell.ring());
        bell.doze();
        bell.awake();
        assert!(!bell.ring());
    }
}
