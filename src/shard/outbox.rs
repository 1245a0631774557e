//! What waits for one connection's socket behind the send in flight. Exists only while something does.

use std::collections::VecDeque;

use crate::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, CONTROL_RESERVE_BYTES, SEND_PIECE_COUNT_MAX, SERVER_HEADER_BYTES_MAX,
};
use crate::protocol::Piece;

/// One queued piece.
#[derive(Debug)]
struct Queued {
    piece: Piece,
    /// Messages in it; 0 is a control frame, a notice or an HTTP answer, which no policy drops.
    message_count: u32,
}

/// Bytes that a queued piece costs beside its own.
#[allow(clippy::cast_possible_truncation)] // a few dozen
pub(super) const QUEUED_BYTES: u32 = size_of::<Queued>() as u32;

/// The part of the control reserve that is kept for the close frame.
const CLOSE_RESERVE_BYTES: u32 =
    (CONTROL_PAYLOAD_BYTES_MAX + SERVER_HEADER_BYTES_MAX) as u32 + QUEUED_BYTES;
const _: () = assert!(2 * CLOSE_RESERVE_BYTES < CONTROL_RESERVE_BYTES);

/// How far a queue may be filled, by what is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserve {
    /// Messages: up to the connection's budget.
    Data,
    /// Pings, pongs and notices: into the reserve.
    Control,
    /// The close frame: to the end of the reserve.
    Close,
}

impl Reserve {
    /// Bytes that may be queued, given the budget for messages.
    ///
    /// One message of the greatest size always fits an empty queue: its header and its entry are not held against it.
    pub(super) const fn limit(self, queue_bytes_max: u32) -> u32 {
        let data = queue_bytes_max + SERVER_HEADER_BYTES_MAX as u32 + QUEUED_BYTES;
        match self {
            Self::Data => data,
            Self::Control => data + CONTROL_RESERVE_BYTES - CLOSE_RESERVE_BYTES,
            Self::Close => data + CONTROL_RESERVE_BYTES,
        }
    }
}

/// A queue of pieces, and the gaps that have not been told yet.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Queued>,
    /// Messages lost before the first queued piece.
    missed_before: u32,
    /// Messages lost behind the last queued piece.
    missed_after: u32,
}

impl Outbox {
    /// What a connection's memory account pays for it: the box itself. Entries are part of `queued_bytes`.
    pub(super) const BYTES: u32 = size_of::<Self>() as u32;

    /// Bytes charged for the queue: box and entries. The pieces themselves are metered where they are shared.
    pub(super) fn charged_bytes(&self) -> u32 {
        Self::BYTES + QUEUED_BYTES * self.piece_count()
    }

    pub(super) fn piece_count(&self) -> u32 {
        u32::try_from(self.queue.len()).expect("bounded by the connection's budget")
    }

    /// Nothing queued and no gap untold: it may go.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.missed_untold() == 0
    }

    pub(super) const fn missed_untold(&self) -> u32 {
        self.missed_before.saturating_add(self.missed_after)
    }

    /// Queues `piece` with its `message_count` messages (0: control). Returns the bytes it costs.
    pub(super) fn push(&mut self, piece: Piece, message_count: u32) -> u32 {
        let cost = piece.byte_count() + QUEUED_BYTES;
        self.queue.push_back(Queued {
            piece,
            message_count,
        });
        cost
    }

    /// Whether a gap has to be told before the next message is queued.
    pub(super) const fn gap_after(&self) -> u32 {
        self.missed_after
    }

    /// The gap behind the queue has been told, or became the gap before it.
    pub(super) const fn take_gap_after(&mut self) -> u32 {
        std::mem::replace(&mut self.missed_after, 0)
    }

    /// The gap before the queue, to be told now.
    pub(super) const fn take_gap_before(&mut self) -> u32 {
        std::mem::replace(&mut self.missed_before, 0)
    }

    /// `count` messages that would have been queued last were dropped.
    pub(super) fn miss_newest(&mut self, count: u32) {
        if self.queue.iter().any(|queued| queued.message_count > 0) {
            self.missed_after = self.missed_after.saturating_add(count);
        } else {
            self.missed_before = self.missed_before.saturating_add(count);
        }
    }

    /// Drops the oldest queued piece of messages. Returns the bytes it cost and its messages; `None`: there is none.
    pub(super) fn drop_oldest(&mut self) -> Option<(u32, u32)> {
        let at = self
            .queue
            .iter()
            .position(|queued| queued.message_count > 0)?;
        let dropped = self.queue.remove(at).expect("just found");
        self.missed_before = self.missed_before.saturating_add(dropped.message_count);
        if !self.queue.iter().any(|queued| queued.message_count > 0) {
            self.missed_before = self.missed_before.saturating_add(self.take_gap_after());
        }
        Some((
            dropped.piece.byte_count() + QUEUED_BYTES,
            dropped.message_count,
        ))
    }

    /// Moves the pieces of the next send into `pieces`. Returns the entries' bytes, which are no longer queued.
    pub(super) fn take(&mut self, pieces: &mut Vec<Piece>) -> u32 {
        let count = self.queue.len().min(SEND_PIECE_COUNT_MAX - pieces.len());
        let mut entry_bytes = 0;
        for queued in self.queue.drain(..count) {
            entry_bytes += QUEUED_BYTES;
            pieces.push(queued.piece);
        }
        if self.queue.is_empty() {
            self.queue.shrink_to(SEND_PIECE_COUNT_MAX);
        }
        entry_bytes
    }

    /// Bytes queued: pieces and entries.
    pub(super) fn queued_bytes(&self) -> u32 {
        self.queue
            .iter()
            .map(|queued| queued.piece.byte_count() + QUEUED_BYTES)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Encoded;

    fn piece(bytes: usize) -> Piece {
        Piece::whole(Encoded::new(vec![7; bytes]))
    }

    #[test]
    fn what_is_dropped_first_is_the_oldest_message_and_never_a_control_frame() {
        let mut outbox = Outbox::default();
        outbox.push(piece(2), 0);
        outbox.push(piece(10), 3);
        outbox.push(piece(20), 1);
        assert_eq!(outbox.drop_oldest(), Some((10 + QUEUED_BYTES, 3)));
        assert_eq!(outbox.drop_oldest(), Some((20 + QUEUED_BYTES, 1)));
        assert_eq!(outbox.drop_oldest(), None);
        assert_eq!(outbox.take_gap_before(), 4);
        assert_eq!(outbox.queued_bytes(), 2 + QUEUED_BYTES);
    }

    #[test]
    fn a_gap_stands_where_the_messages_would_have_stood() {
        let mut outbox = Outbox::default();
        outbox.miss_newest(2);
        assert_eq!(
            outbox.take_gap_before(),
            2,
            "nothing is queued: the gap comes first"
        );
        outbox.push(piece(1), 1);
        outbox.miss_newest(5);
        assert_eq!((outbox.take_gap_before(), outbox.gap_after()), (0, 5));
        outbox.drop_oldest();
        assert_eq!(
            (outbox.take_gap_before(), outbox.gap_after()),
            (6, 0),
            "the two gaps have met"
        );
    }

    #[test]
    fn a_send_takes_a_bounded_number_of_pieces_in_order() {
        let mut outbox = Outbox::default();
        for bytes in 1..=SEND_PIECE_COUNT_MAX + 5 {
            outbox.push(piece(bytes), 1);
        }
        let mut pieces = Vec::new();
        outbox.take(&mut pieces);
        assert_eq!(pieces.len(), SEND_PIECE_COUNT_MAX);
        assert!(
            pieces
                .iter()
                .zip(1..)
                .all(|(piece, bytes)| piece.byte_count() == bytes)
        );
        assert_eq!(outbox.piece_count(), 5);
    }

    #[test]
    fn a_full_queue_still_takes_control_frames_and_then_a_close_frame() {
        let data = Reserve::Data.limit(1_000);
        assert!(Reserve::Control.limit(1_000) >= data + CLOSE_RESERVE_BYTES);
        assert_eq!(
            Reserve::Close.limit(1_000) - Reserve::Control.limit(1_000),
            CLOSE_RESERVE_BYTES
        );
    }
}
