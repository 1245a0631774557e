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
    /// Messages lost before the first queued one, behind everything that was sent.
    missed_before: u32,
    /// Messages lost behind the last queued one. 0 while no message is queued: the two gaps are one then.
    missed_after: u32,
    /// Pieces of messages in `queue`.
    message_piece_count: u32,
    /// Pieces and entries in `queue`.
    queued_bytes: u32,
    /// Those of them that leave with the next send for sure, and are as good as in flight.
    leaving_bytes: u32,
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

    /// Whether a message is queued, and not only control frames, notices or an answer.
    pub(super) const fn has_messages(&self) -> bool {
        self.message_piece_count > 0
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
        self.queued_bytes += cost;
        self.message_piece_count += u32::from(message_count > 0);
        self.queue.push_back(Queued {
            piece,
            message_count,
        });
        cost
    }

    /// How many messages were lost behind everything that is queued: to be told before anything else is queued.
    pub(super) const fn gap_at_end(&self) -> u32 {
        if self.message_piece_count == 0 {
            self.missed_before
        } else {
            self.missed_after
        }
    }

    /// [`Outbox::gap_at_end`] has been told.
    pub(super) const fn told_gap_at_end(&mut self) {
        if self.message_piece_count == 0 {
            self.missed_before = 0;
        } else {
            self.missed_after = 0;
        }
    }

    /// The last queued message has gone: what was lost behind it is lost before the next.
    const fn join_gaps(&mut self) {
        if self.message_piece_count == 0 {
            self.missed_before = self.missed_before.saturating_add(self.missed_after);
            self.missed_after = 0;
        }
    }

    /// `count` messages that would have been queued last were dropped.
    pub(super) fn miss_newest(&mut self, count: u32) {
        self.missed_after = self.missed_after.saturating_add(count);
        self.join_gaps();
    }

    /// Drops the oldest queued piece of messages. Returns the bytes it cost and its messages; `None`: there is none.
    pub(super) fn drop_oldest(&mut self) -> Option<(u32, u32)> {
        let at = self
            .queue
            .iter()
            .position(|queued| queued.message_count > 0)?;
        let dropped = self.queue.remove(at).expect("just found");
        let cost = dropped.piece.byte_count() + QUEUED_BYTES;
        self.queued_bytes -= cost;
        self.leaving_bytes = self.leaving_bytes.saturating_sub(cost); // the oldest leave first
        self.message_piece_count -= 1;
        self.missed_before = self.missed_before.saturating_add(dropped.message_count);
        self.join_gaps();
        Some((cost, dropped.message_count))
    }

    /// Moves the pieces of the next send into `pieces`, each gap told where it is: `notice` makes the piece that says
    /// so, if the peer wants to know. Returns the entries' bytes, which are no longer queued.
    pub(super) fn take(
        &mut self,
        pieces: &mut Vec<Piece>,
        mut notice: impl FnMut(u32) -> Option<Piece>,
    ) -> u32 {
        let mut entry_bytes = 0;
        self.leaving_bytes = 0;
        while pieces.len() < SEND_PIECE_COUNT_MAX {
            let is_message = self.queue.front().map(|queued| queued.message_count > 0);
            if self.missed_before > 0 && is_message != Some(false) {
                // In front of the message that comes behind the gap, or behind everything there is.
                pieces.extend(notice(std::mem::take(&mut self.missed_before)));
            } else if let Some(queued) = self.queue.pop_front() {
                entry_bytes += QUEUED_BYTES;
                self.queued_bytes -= queued.piece.byte_count() + QUEUED_BYTES;
                self.message_piece_count -= u32::from(queued.message_count > 0);
                self.join_gaps();
                pieces.push(queued.piece);
            } else {
                self.queue.shrink_to(SEND_PIECE_COUNT_MAX);
                break;
            }
        }
        entry_bytes
    }

    /// Bytes queued: pieces and entries.
    pub(super) const fn queued_bytes(&self) -> u32 {
        self.queued_bytes
    }

    /// Bytes that wait behind the next send: what the budget is for.
    pub(super) const fn waiting_bytes(&self) -> u32 {
        self.queued_bytes - self.leaving_bytes
    }

    /// The piece that was pushed last, of `cost` bytes, leaves with the next send: nothing is in flight, and there are
    /// fewer than [`SEND_PIECE_COUNT_MAX`] in front of it.
    pub(super) const fn leaves_next(&mut self, cost: u32) {
        self.leaving_bytes += cost;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        assert_eq!(outbox.gap_at_end(), 4);
        assert_eq!(outbox.queued_bytes(), 2 + QUEUED_BYTES);
    }

    #[test]
    fn a_gap_stands_where_the_messages_would_have_stood() {
        let mut outbox = Outbox::default();
        outbox.miss_newest(2);
        assert_eq!(sent(&mut outbox), [-2]);
        outbox.push(piece(1), 1);
        outbox.miss_newest(5);
        assert_eq!(outbox.gap_at_end(), 5);
        outbox.push(piece(3), 0);
        assert_eq!(sent(&mut outbox), [1, 3, -5], "nothing is queued behind it");
        outbox.push(piece(1), 1);
        outbox.miss_newest(5);
        outbox.drop_oldest();
        assert_eq!(outbox.missed_untold(), 6);
        outbox.push(piece(2), 1);
        assert_eq!(sent(&mut outbox), [-6, 2], "the two gaps have met");
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_gap_does_not_overtake_the_control_frames_in_front_of_it() {
        let mut outbox = Outbox::default();
        outbox.push(piece(129), 0); // the answer to the upgrade
        outbox.push(piece(1), 1);
        outbox.push(piece(2), 1);
        outbox.drop_oldest();
        assert_eq!(sent(&mut outbox), [129, -1, 2]);
    }

    #[test]
    fn a_gap_told_at_the_end_is_told_once() {
        let mut outbox = Outbox::default();
        outbox.push(piece(1), 1);
        outbox.miss_newest(3);
        assert_eq!(outbox.gap_at_end(), 3);
        outbox.told_gap_at_end();
        assert_eq!((outbox.gap_at_end(), sent(&mut outbox)), (0, vec![1]));
    }

    proptest! {
        /// Against a plain list of what was queued and lost: nothing changes places, and every loss is told where it is.
        #[test]
        fn whatever_happens_what_is_sent_and_told_adds_up_in_order(
            operations in prop::collection::vec((0u8..6, 1usize..50), 0..200)
        ) {
            let mut outbox = Outbox::default();
            // Messages by number: each is sent once or told once, in order.
            let (mut next, mut told, mut heard) = (0u32, 0u32, Vec::new());
            let mut queued = std::collections::VecDeque::new();
            for (operation, bytes) in operations {
                match operation {
                    0 | 1 => {
                        if outbox.gap_at_end() > 0 {
                            told += outbox.gap_at_end();
                            outbox.told_gap_at_end();
                            outbox.push(piece(0), 0);
                            queued.push_back((0, 0));
                        }
                        outbox.push(piece(bytes), 1);
                        queued.push_back((bytes, 1));
                        next += 1;
                    }
                    2 => {
                        outbox.push(piece(bytes), 0);
                        queued.push_back((bytes, 0));
                    }
                    3 => {
                        outbox.miss_newest(1);
                        next += 1;
                    }
                    4 => {
                        let at = queued.iter().position(|(_, messages)| *messages > 0);
                        let expected = at.and_then(|at| queued.remove(at));
                        let expected = expected.map(|(bytes, messages)| (bytes as u32 + QUEUED_BYTES, messages));
                        prop_assert_eq!(outbox.drop_oldest(), expected);
                    }
                    _ => {
                        let mut pieces = Vec::new();
                        let entry_bytes = outbox.take(&mut pieces, |missed| {
                            told += missed;
                            Some(piece(1_000))
                        });
                        prop_assert!(pieces.len() <= SEND_PIECE_COUNT_MAX);
                        let mut taken = 0;
                        for piece in pieces.iter().filter(|piece| piece.byte_count() < 1_000) {
                            let (bytes, messages) = queued.pop_front().expect("it was queued");
                            prop_assert_eq!(piece.byte_count() as usize, bytes);
                            heard.extend((messages > 0).then_some(bytes));
                            taken += 1;
                        }
                        prop_assert_eq!(entry_bytes, taken * QUEUED_BYTES);
                    }
                }
                let bytes: usize = queued.iter().map(|(bytes, _)| bytes + QUEUED_BYTES as usize).sum();
                prop_assert_eq!(outbox.queued_bytes() as usize, bytes);
                prop_assert_eq!(outbox.piece_count() as usize, queued.len());
                let waiting = queued.iter().filter(|(_, messages)| *messages > 0).count() as u32;
                prop_assert_eq!(outbox.has_messages(), waiting > 0);
                prop_assert_eq!(heard.len() as u32 + waiting + told + outbox.missed_untold(), next);
            }
        }
    }

    /// All that the next send carries: bytes of pieces, gaps as negative numbers.
    fn sent(outbox: &mut Outbox) -> Vec<i64> {
        let mut pieces = Vec::new();
        let mut gaps = Vec::new();
        outbox.take(&mut pieces, |missed| {
            gaps.push(i64::from(missed));
            Some(piece(0))
        });
        let mut gaps = gaps.into_iter();
        pieces
            .iter()
            .map(|piece| match piece.byte_count() {
                0 => -gaps.next().unwrap(),
                bytes => i64::from(bytes),
            })
            .collect()
    }

    #[test]
    fn a_send_takes_a_bounded_number_of_pieces_in_order() {
        let mut outbox = Outbox::default();
        for bytes in 1..=SEND_PIECE_COUNT_MAX + 5 {
            outbox.push(piece(bytes), 1);
        }
        let mut pieces = Vec::new();
        outbox.take(&mut pieces, |_| None);
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
