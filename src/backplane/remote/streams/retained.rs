//! What Redis has acknowledged lately: a server that takes another's place may lack it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::backplane::remote::outgoing::Entry;
use crate::time::Tick;

/// Acknowledged entries, oldest first, bounded by time and bytes.
#[derive(Debug)]
pub struct Retained {
    entries: VecDeque<(Tick, Entry)>,
    bytes: u64,
    bytes_max: u64,
    time: Duration,
}

impl Retained {
    /// Nothing; entries are kept for `time`, and no more than `bytes_max` of them.
    pub fn new(time: Duration, bytes_max: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            time,
        }
    }

    /// Sets how much may be kept; the oldest make room.
    pub fn set_bytes_max(&mut self, bytes: u64) {
        self.bytes_max = bytes;
        self.trim();
    }

    /// Keeps an entry that was acknowledged now; the oldest make room.
    pub fn keep(&mut self, entry: Entry, now: Tick) {
        self.bytes += entry.bytes();
        self.entries.push_back((now, entry));
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > self.bytes_max {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, entry)) = self.entries.pop_front() {
            self.bytes -= entry.bytes();
        }
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Tick) {
        let time = self.time;
        let is_old = |(since, _): &(Tick, Entry)| since.after(time) <= now;
        while self.entries.front().is_some_and(is_old) {
            self.drop_oldest();
        }
    }

    /// Takes everything out, oldest first.
    pub fn take_all(&mut self) -> Vec<Entry> {
        self.bytes = 0;
        let entries = std::mem::take(&mut self.entries);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Takes what is kept of rooms that go to another server, oldest first.
    pub fn release(&mut self, goes: impl Fn(&str) -> bool) -> Vec<Entry> {
        let entries = std::mem::take(&mut self.entries).into_iter();
        let (gone, kept) = entries.partition(|(_, entry)| goes(&entry.room));
        self.entries = kept;
        let gone: VecDeque<(Tick, Entry)> = gone;
        let gone = gone.into_iter().map(|(_, entry)| entry);
        let gone: Vec<Entry> = gone.collect();
        self.bytes -= gone.iter().map(Entry::bytes).sum::<u64>();
        gone
    }

    /// What is kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|(_, entry)| entry)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backplane::remote::wire::Stamp;
    use crate::bus::Batch;

    fn entry(sequence: u64) -> Entry {
        let stamp = Stamp {
            node: 1,
            epoch: 1,
            sequence,
            sent: Tick(0),
        };
        Entry {
            room: "r".into(),
            batch: Arc::new(Batch {
                bytes: vec![0; 1_000],
                messages: Vec::new(),
                published: Tick(0),
            }),
            stamp,
            from: None,
            taken: Tick(0),
            local: false,
            again: false,
            after: 0,
        }
    }

    fn sequences(retained: &Retained) -> Vec<u64> {
        retained.iter().map(|entry| entry.stamp.sequence).collect()
    }

    #[test]
    fn what_is_acknowledged_is_kept_for_a_while_and_within_its_bytes() {
        let bytes = entry(0).bytes();
        let mut retained = Retained::new(Duration::from_secs(5), 3 * bytes);
        for sequence in 1..=4 {
            retained.keep(entry(sequence), Tick::from_ms(sequence * 1_000));
        }
        assert_eq!(
            (sequences(&retained), retained.bytes()),
            (vec![2, 3, 4], 3 * bytes)
        );
        retained.set_bytes_max(2 * bytes);
        assert_eq!(sequences(&retained), [3, 4], "its share is smaller");
        retained.set_bytes_max(3 * bytes);
        retained.expire(Tick::from_ms(6_999));
        assert_eq!(sequences(&retained), [3, 4]);
        retained.expire(Tick::from_ms(8_000));
        assert_eq!(sequences(&retained), [4]);
        assert_eq!(retained.release(|room| room != "r").len(), 0);
        assert_eq!(retained.take_all().len(), 1);
        retained.keep(entry(5), Tick(0));
        assert_eq!(retained.release(|room| room == "r").len(), 1);
        assert_eq!((retained.bytes(), retained.iter().count()), (0, 0));
    }
}
