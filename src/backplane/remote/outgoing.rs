//! What was published and Redis has not acknowledged: numbered, in order, bounded by bytes and age.
//!
//! Nothing leaves the buffer before Redis has said that it has it, so that a lost link loses nothing: what was on its way
//! is sent again under its old number, and who had it already drops it.
//!
//! What a server that is gone had acknowledged is sent again, too. It does not expire, and takes no room from what is
//! published now: its publishers were told that it is published, and nobody would be told that it is not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::wire::Stamp;
use crate::bus::{Batch, CoreId, RoomName};
use crate::time::Tick;

/// A room that was not published to for so long begins a new sequence. Long enough for what was lost to be noticed.
const SEQUENCE_IDLE: Duration = Duration::from_secs(60);
/// What an entry costs beside its batch.
const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// A batch that is not acknowledged.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its room.
    pub room: RoomName,
    /// The messages.
    pub batch: Arc<Batch>,
    /// Its number.
    pub stamp: Stamp,
    /// The shard that it came from; `None`: the admin API.
    pub from: Option<CoreId>,
    /// When it was taken.
    pub taken: Tick,
    /// Members on this node have it already.
    pub local: bool,
    /// Redis had it, and its publisher was told so: it does not expire.
    pub again: bool,
    /// The last number of its sequence that was on its way when it was sent itself; 0: none was.
    pub after: u64,
}

impl Entry {
    /// What it costs in memory.
    pub fn bytes(&self) -> u64 {
        self.batch.weight_bytes() as u64 + ENTRY_BYTES
    }

    /// The same as what Redis had, and may have no more.
    pub fn into_again(self, now: Tick) -> Self {
        Self {
            from: None,
            taken: now,
            again: true,
            ..self
        }
    }

    /// The number of its last message.
    pub fn last(&self) -> u64 {
        self.stamp.sequence + self.batch.messages.len() as u64 - 1
    }

    /// Where it stands among its room's: numbers of one sequence go up, and so do a room's epochs.
    pub fn place(&self) -> (u32, u64) {
        (self.stamp.epoch, self.stamp.sequence)
    }
}

/// The numbers of one room's messages.
#[derive(Debug)]
pub struct Sequence {
    epoch: u32,
    next: u64,
    used: Tick,
    /// The last number that is on its way to the server; 0: none is.
    on_way: u64,
}

/// What goes with rooms to another server.
#[derive(Debug)]
pub struct Parting {
    /// How each room's numbers go on.
    pub sequences: Vec<(RoomName, Sequence)>,
    /// What is not on its way, in order.
    pub unsent: Vec<Entry>,
    /// How many entries of a room are on their way, of those that have any.
    pub in_flight: HashMap<RoomName, u32, FixedState>,
}

/// The buffer, and the sequences that number what goes into it.
#[derive(Debug)]
pub struct Outgoing {
    node: u64,
    epoch_next: u32,
    sequences: HashMap<RoomName, Sequence, FixedState>,
    /// When each sequence is to be looked at for its last use, oldest first.
    idle: VecDeque<(Tick, RoomName)>,
    /// What is sent first: all of it was acknowledged before.
    replayed: VecDeque<Entry>,
    /// What is sent then. The first of it was not; others may have been, where they stand behind what came before them.
    queue: VecDeque<Entry>,
    /// Entries at the front of both that are on their way.
    sent_count: usize,
    /// Of what was not acknowledged before.
    bytes: u64,
    /// Of what was.
    again_bytes: u64,
}

impl Outgoing {
    /// An empty buffer of the node `node`.
    pub fn new(node: u64, seed: u64) -> Self {
        Self {
            node,
            epoch_next: 1,
            sequences: HashMap::with_hasher(FixedState::with_seed(seed)),
            idle: VecDeque::new(),
            replayed: VecDeque::new(),
            queue: VecDeque::new(),
            sent_count: 0,
            bytes: 0,
            again_bytes: 0,
        }
    }

    /// Takes a batch in and numbers it.
    pub fn push(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        from: Option<CoreId>,
        now: Tick,
    ) -> &mut Entry {
        let entry = self.number(room, batch, from, now);
        self.resume(entry);
        let last = self.queue.len() - 1;
        &mut self.queue[last]
    }

    /// Numbers a batch that is kept elsewhere until [`Self::resume`].
    pub fn number(
        &mut self,
        room: &RoomName,
        batch: &Arc<Batch>,
        from: Option<CoreId>,
        now: Tick,
    ) -> Entry {
        let sequence = match self.sequences.get_mut(room) {
            Some(sequence) => sequence,
            None => {
                let epoch = self.epoch_next;
                self.epoch_next = self.epoch_next.wrapping_add(1);
                self.idle
                    .push_back((now.after(SEQUENCE_IDLE), room.clone()));
                self.sequences.entry(room.clone()).or_insert(Sequence {
                    epoch,
                    next: 1,
                    used: now,
                    on_way: 0,
                })
            }
        };
        let stamp = Stamp {
            node: self.node,
            epoch: sequence.epoch,
            sequence: sequence.next,
            sent: batch.published,
        };
        sequence.next += batch.messages.len() as u64;
        sequence.used = now;
        Entry {
            room: room.clone(),
            batch: Arc::clone(batch),
            stamp,
            from,
            taken: now,
            local: false,
            again: false,
            after: 0,
        }
    }

    /// Takes in what has its number, behind all else.
    pub fn resume(&mut self, entry: Entry) {
        *self.bytes_like(&entry) += entry.bytes();
        self.queue.push_back(entry);
        self.settle();
    }

    /// Where the bytes of such an entry count.
    fn bytes_like(&mut self, entry: &Entry) -> &mut u64 {
        match entry.again {
            true => &mut self.again_bytes,
            false => &mut self.bytes,
        }
    }

    /// Moves the border between both parts to the first that may expire: nothing changes its place.
    fn settle(&mut self) {
        while self.queue.front().is_some_and(|entry| entry.again) {
            self.replayed.extend(self.queue.pop_front());
        }
    }

    /// Lets rooms go; what is on its way stays, and is acknowledged here or comes back with [`Self::take_unsent`].
    pub fn release(&mut self, goes: impl Fn(&str) -> bool) -> Parting {
        let mut in_flight = HashMap::with_hasher(FixedState::default());
        let sent = self.iter().take(self.sent_count);
        for entry in sent.filter(|entry| goes(&entry.room)) {
            *in_flight.entry(entry.room.clone()).or_default() += 1;
        }
        let sequences = self.sequences.extract_if(|room, _| goes(room)).collect();
        Parting {
            sequences,
            unsent: self.take_unsent(goes),
            in_flight,
        }
    }

    /// Takes rooms' entries out that are not on their way, in order.
    pub fn take_unsent(&mut self, goes: impl Fn(&str) -> bool) -> Vec<Entry> {
        let replayed_sent_count = self.sent_count.min(self.replayed.len());
        let queue_sent_count = self.sent_count - replayed_sent_count;
        let mut taken = take_from(&mut self.replayed, replayed_sent_count, &goes);
        taken.extend(take_from(&mut self.queue, queue_sent_count, &goes));
        for entry in &taken {
            *self.bytes_like(entry) -= entry.bytes();
        }
        self.settle();
        taken
    }

    /// Goes on with a room's numbers where another server's buffer has left off.
    pub fn adopt(&mut self, room: RoomName, sequence: Sequence, now: Tick) {
        self.idle
            .push_back((now.after(SEQUENCE_IDLE), room.clone()));
        let on_way = 0; // here
        self.sequences.insert(room, Sequence { on_way, ..sequence });
    }

    /// The epoch that the next new sequence gets. What rooms leave behind must not come again under an old one: all
    /// buffers between which rooms move go on from the highest.
    pub fn epoch_next(&self) -> u32 {
        self.epoch_next
    }

    /// Goes on from there.
    pub fn set_epoch_next(&mut self, epoch: u32) {
        self.epoch_next = epoch;
    }

    /// The next entry to be sent; it counts as sent.
    pub fn send_next(&mut self) -> Option<&Entry> {
        let entry = match self.sent_count.checked_sub(self.replayed.len()) {
            None => self.replayed.get_mut(self.sent_count)?,
            Some(index) => self.queue.get_mut(index)?,
        };
        self.sent_count += 1;
        entry.after = match self.sequences.get_mut(&entry.room) {
            Some(sequence) if sequence.epoch == entry.stamp.epoch => {
                std::mem::replace(&mut sequence.on_way, entry.last())
            }
            _ => 0,
        };
        Some(entry)
    }

    /// Redis has the oldest that is on its way.
    pub fn acknowledge(&mut self) -> Option<Entry> {
        let entry = self.take_refused()?;
        if let Some(sequence) = self.sequences.get_mut(&entry.room)
            && sequence.on_way == entry.last()
        {
            sequence.on_way = 0;
        }
        Some(entry)
    }

    /// Redis has not taken the oldest that is on its way. It stays what the next of its room follows.
    pub fn take_refused(&mut self) -> Option<Entry> {
        self.sent_count = self.sent_count.checked_sub(1)?;
        let Some(entry) = self.replayed.pop_front() else {
            return self.pop();
        };
        self.again_bytes -= entry.bytes();
        Some(entry)
    }

    /// The link was lost: everything is to be sent again.
    pub fn rewind(&mut self) {
        let sent = self.replayed.iter().chain(&self.queue);
        for entry in sent.take(self.sent_count) {
            if let Some(sequence) = self.sequences.get_mut(&entry.room) {
                sequence.on_way = 0;
            }
        }
        self.sent_count = 0;
    }

    /// Puts entries in front that were acknowledged by a server that is gone. Nothing is on its way then.
    pub fn replay(&mut self, entries: Vec<Entry>, now: Tick) {
        debug_assert_eq!(self.sent_count, 0, "nothing is on its way");
        for entry in entries.into_iter().rev() {
            self.again_bytes += entry.bytes();
            self.replayed.push_front(entry.into_again(now));
        }
    }

    /// Takes the oldest out that may expire if it was taken before `limit` and nothing is on its way.
    pub fn expire(&mut self, limit: Tick) -> Option<Entry> {
        if self.oldest_unsent()? >= limit {
            return None;
        }
        self.pop()
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        self.bytes -= entry.bytes();
        self.settle();
        Some(entry)
    }

    /// Forgets the sequences of rooms that were not published to for a while.
    pub fn forget_idle(&mut self, now: Tick) {
        while self.idle.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, room)) = self.idle.pop_front() else {
                return;
            };
            let due = self
                .sequences
                .get(&room)
                .map(|sequence| sequence.used.after(SEQUENCE_IDLE));
            if due.is_some_and(|due| due > now) {
                // Looked at again an idle time from now at the latest: the list stays in order.
                self.idle.push_back((now.after(SEQUENCE_IDLE), room));
            } else {
                self.sequences.remove(&room);
            }
        }
    }

    /// When [`Self::forget_idle`] is due.
    pub fn idle_deadline(&self) -> Option<Tick> {
        self.idle.front().map(|(due, _)| *due)
    }

    /// Members on this node have what waits of these rooms.
    pub fn mark_local(&mut self, rooms: impl Fn(&str) -> bool) {
        let entries = self.queue.iter_mut();
        for entry in entries.filter(|entry| rooms(&entry.room)) {
            entry.local = true;
        }
    }

    /// What waits, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.replayed.iter().chain(&self.queue)
    }

    /// Bytes held of what was not acknowledged before.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes held of what is published again.
    pub fn again_bytes(&self) -> u64 {
        self.again_bytes
    }

    /// What a batch would add to them.
    pub fn cost(batch: &Batch) -> u64 {
        batch.weight_bytes() as u64 + ENTRY_BYTES
    }

    /// When the oldest was taken.
    pub fn oldest(&self) -> Option<Tick> {
        self.iter().next().map(|entry| entry.taken)
    }

    /// When the oldest that may expire was taken, if nothing is on its way.
    pub fn oldest_unsent(&self) -> Option<Tick> {
        self.oldest_new().filter(|_| self.sent_count == 0)
    }

    /// When the oldest was taken that was not acknowledged before.
    pub fn oldest_new(&self) -> Option<Tick> {
        self.queue.front().map(|entry| entry.taken)
    }

    /// Whether some are not on their way.
    pub fn has_unsent(&self) -> bool {
        self.sent_count < self.replayed.len() + self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.replayed.is_empty() && self.queue.is_empty()
    }

    /// Checks what must hold between inputs. For tests: O(entries).
    pub fn check_invariants(&self) {
        assert!(self.replayed.iter().all(|entry| entry.again));
        assert!(self.queue.front().is_none_or(|entry| !entry.again));
        let (again, first): (Vec<_>, Vec<_>) = self.iter().partition(|entry| entry.again);
        for (entries, bytes) in [(again, self.again_bytes), (first, self.bytes)] {
            assert_eq!(entries.into_iter().map(Entry::bytes).sum::<u64>(), bytes);
        }
        assert!(self.sent_count <= self.replayed.len() + self.queue.len());
    }
}

/// Takes rooms' entries out that stand behind the first `sent_count`, in order.
fn take_from(
    entries: &mut VecDeque<Entry>,
    sent_count: usize,
    goes: impl Fn(&str) -> bool,
) -> Vec<Entry> {
    let unsent = entries.split_off(sent_count).into_iter();
    let (taken, kept): (Vec<Entry>, Vec<Entry>) = unsent.partition(|entry| goes(&entry.room));
    entries.extend(kept);
    taken
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bus::{BatchMessage, MessageKind};

    /// So many messages without content.
    pub fn batch(count: usize) -> Arc<Batch> {
        let message = BatchMessage {
            end: 0,
            header_bytes: 0,
            kind: MessageKind::Text,
            sender: None,
        };
        Arc::new(Batch {
            bytes: Vec::new(),
            messages: vec![message; count],
            published: Tick(3),
        })
    }

    fn numbers(outgoing: &Outgoing) -> Vec<(String, u32, u64)> {
        outgoing
            .iter()
            .map(|entry| {
                (
                    entry.room.to_string(),
                    entry.stamp.epoch,
                    entry.stamp.sequence,
                )
            })
            .collect()
    }

    #[test]
    fn each_room_counts_its_own_messages_and_a_lost_link_sends_them_again() {
        let mut outgoing = Outgoing::new(7, 1);
        let (one, two) = (RoomName::from("one"), RoomName::from("two"));
        for (room, count) in [(&one, 2), (&two, 1), (&one, 3)] {
            outgoing.push(room, &batch(count), None, Tick(0));
        }
        let expected = [
            ("one".into(), 1, 1),
            ("two".into(), 2, 1),
            ("one".into(), 1, 3),
        ];
        assert_eq!(numbers(&outgoing), expected);
        assert!(outgoing.send_next().is_some() && outgoing.send_next().is_some());
        assert_eq!(&*outgoing.acknowledge().unwrap().room, "one");
        outgoing.rewind();
        assert!(outgoing.acknowledge().is_none(), "nothing is on its way");
        assert_eq!(&*outgoing.send_next().unwrap().room, "two");
        assert_eq!(outgoing.send_next().unwrap().stamp.sequence, 3);
        assert!(outgoing.send_next().is_none());
        while outgoing.acknowledge().is_some() {}
        assert_eq!((outgoing.bytes(), outgoing.is_empty()), (0, true));
    }

    #[test]
    fn only_what_is_old_and_not_on_its_way_expires() {
        let mut outgoing = Outgoing::new(7, 1);
        let room = RoomName::from("one");
        outgoing.push(&room, &batch(1), None, Tick(10));
        outgoing.push(&room, &batch(1), None, Tick(20));
        assert!(outgoing.expire(Tick(10)).is_none());
        outgoing.send_next();
        assert!(outgoing.expire(Tick(30)).is_none());
        outgoing.rewind();
        assert_eq!(outgoing.expire(Tick(11)).unwrap().taken, Tick(10));
        assert!(outgoing.expire(Tick(11)).is_none());
    }

    #[test]
    fn what_is_published_again_goes_first_and_does_not_expire() {
        let mut outgoing = Outgoing::new(7, 1);
        let (one, two) = (RoomName::from("one"), RoomName::from("two"));
        let mut acknowledged = Vec::new();
        for room in [&one, &two, &one] {
            outgoing.push(room, &batch(1), Some(CoreId(0)), Tick(1));
            outgoing.send_next();
            acknowledged.extend(outgoing.acknowledge());
        }
        outgoing.push(&one, &batch(1), None, Tick(2));
        let bytes = outgoing.bytes();
        outgoing.replay(acknowledged, Tick(3));
        assert_eq!(outgoing.bytes(), bytes, "they are not of the buffer");
        assert_eq!(outgoing.again_bytes(), 3 * bytes);
        assert_eq!(outgoing.oldest_unsent(), Some(Tick(2)));
        assert_eq!(outgoing.expire(Tick(9)).unwrap().stamp.sequence, 3);
        assert!(outgoing.expire(Tick(9)).is_none() && outgoing.has_unsent());
        outgoing.push(&one, &batch(1), None, Tick(4));
        for _ in 0..2 {
            assert!(outgoing.send_next().unwrap().from.is_none());
        }
        let parting = outgoing.release(|room| room == "one");
        let numbers = parting.unsent.iter().map(|entry| entry.stamp.sequence);
        assert_eq!(numbers.collect::<Vec<_>>(), [2, 4]);
        assert_eq!(parting.in_flight[&one], 1);
        for room in ["one", "two"] {
            assert_eq!(&*outgoing.acknowledge().unwrap().room, room);
        }
        assert!(outgoing.is_empty() && !outgoing.has_unsent());
        assert_eq!((outgoing.bytes(), outgoing.again_bytes()), (0, 0));
    }

    #[test]
    fn each_knows_what_of_its_room_was_on_its_way_before_it() {
        let mut outgoing = Outgoing::new(7, 1);
        let (one, two) = (RoomName::from("one"), RoomName::from("two"));
        let publish = |outgoing: &mut Outgoing, room, count| {
            outgoing.push(room, &batch(count), None, Tick(0));
            outgoing.send_next().unwrap().after
        };
        assert_eq!(publish(&mut outgoing, &one, 2), 0);
        assert_eq!(publish(&mut outgoing, &two, 1), 0);
        assert_eq!(publish(&mut outgoing, &one, 1), 2);
        outgoing.acknowledge();
        outgoing.acknowledge();
        assert_eq!(publish(&mut outgoing, &one, 1), 3, "the newest of them");
        assert_eq!(publish(&mut outgoing, &two, 1), 0, "it was acknowledged");
        // What was refused is followed all the same: the next is not to overtake it.
        outgoing.take_refused();
        outgoing.take_refused();
        assert_eq!(publish(&mut outgoing, &one, 1), 4);
        outgoing.rewind();
        outgoing.acknowledge();
        let after: Vec<u64> =
            std::iter::from_fn(|| outgoing.send_next().map(|next| next.after)).collect();
        assert_eq!(after, [0, 0], "another link");
        let parting = outgoing.release(|_| true);
        for (room, sequence) in parting.sequences {
            outgoing.adopt(room, sequence, Tick(0));
        }
        while outgoing.acknowledge().is_some() {}
        assert_eq!(publish(&mut outgoing, &one, 1), 0, "another server");
    }

    #[test]
    fn what_redis_had_outlives_what_stands_around_it_and_keeps_its_place() {
        let mut outgoing = Outgoing::new(7, 1);
        let room = RoomName::from("one");
        let entries: Vec<Entry> = (0..5)
            .map(|_| outgoing.number(&room, &batch(1), Some(CoreId(0)), Tick(1)))
            .collect();
        // The second and the third were acknowledged elsewhere, the fourth was not, the fifth was.
        for (index, entry) in entries.into_iter().enumerate() {
            let again = [1, 2, 4].contains(&index);
            outgoing.resume(if again {
                entry.into_again(Tick(1))
            } else {
                entry
            });
            outgoing.check_invariants();
        }
        let bytes = Outgoing::cost(&batch(1));
        assert_eq!(
            (outgoing.bytes(), outgoing.again_bytes()),
            (2 * bytes, 3 * bytes)
        );
        outgoing.send_next();
        outgoing.send_next();
        outgoing.acknowledge();
        outgoing.check_invariants();
        assert_eq!(outgoing.oldest_unsent(), None, "one is on its way");
        outgoing.rewind();
        assert_eq!(outgoing.oldest_unsent(), Some(Tick(1)));
        let expired = outgoing.expire(Tick(9)).unwrap();
        assert_eq!((expired.stamp.sequence, expired.from), (4, Some(CoreId(0))));
        outgoing.check_invariants();
        assert!(outgoing.expire(Tick(9)).is_none(), "nothing else may");
        assert_eq!((outgoing.bytes(), outgoing.oldest_unsent()), (0, None));
        outgoing.push(&room, &batch(1), None, Tick(9));
        let sent = |outgoing: &mut Outgoing| outgoing.send_next().map(|next| next.stamp.sequence);
        for sequence in [2, 3, 5, 6] {
            assert_eq!(sent(&mut outgoing), Some(sequence));
        }
        // On its way to yet another server, the same.
        outgoing.rewind();
        let parting = outgoing.release(|_| true);
        let again: Vec<bool> = parting.unsent.iter().map(|entry| entry.again).collect();
        assert_eq!(again, [true, true, true, false]);
        assert_eq!((outgoing.bytes(), outgoing.again_bytes()), (0, 0));
    }

    #[test]
    fn what_expires_is_found_behind_any_number_that_does_not() {
        let mut outgoing = Outgoing::new(7, 1);
        let room = RoomName::from("one");
        for number in 0..100 {
            let entry = outgoing.number(&room, &batch(1), None, Tick(number));
            let stays = number % 10 != 0;
            outgoing.resume(if stays {
                entry.into_again(Tick(0))
            } else {
                entry
            });
        }
        let mut taken = Vec::new();
        while let Some(entry) = outgoing.expire(Tick(50)) {
            taken.push(entry.taken.0);
            outgoing.check_invariants();
        }
        assert_eq!(taken, [0, 10, 20, 30, 40]);
        assert_eq!(outgoing.iter().count(), 95);
        let left = outgoing.take_unsent(|_| true);
        let numbers = left.iter().map(|entry| entry.stamp.sequence);
        assert!(numbers.is_sorted(), "all in their order");
        outgoing.check_invariants();
    }

    #[test]
    fn a_room_that_rests_begins_a_new_sequence_and_one_in_use_does_not() {
        let mut outgoing = Outgoing::new(7, 1);
        let (quiet, busy) = (RoomName::from("quiet"), RoomName::from("busy"));
        outgoing.push(&quiet, &batch(1), None, Tick(0));
        outgoing.push(&busy, &batch(1), None, Tick(0));
        outgoing.push(&busy, &batch(1), None, Tick::from_ms(59_000));
        outgoing.forget_idle(Tick::from_ms(60_000));
        let epoch = outgoing
            .push(&quiet, &batch(1), None, Tick::from_ms(60_000))
            .stamp;
        assert_eq!((epoch.epoch, epoch.sequence), (3, 1));
        let stamp = outgoing
            .push(&busy, &batch(1), None, Tick::from_ms(60_000))
            .stamp;
        assert_eq!((stamp.epoch, stamp.sequence), (2, 3));
        outgoing.forget_idle(Tick::from_ms(1_000_000));
        assert_eq!(outgoing.idle_deadline(), None);
    }
}
