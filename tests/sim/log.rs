//! What servers by the script were given to publish.

use std::collections::{HashMap, HashSet};

use throng::backplane::remote::wire::{self, Parcel};
use throng::bus::Batch;

/// A message as the servers ordered it.
pub struct Logged {
    pub room: String,
    /// The message's payload.
    pub id: u64,
    /// Which of its node's sequences it is in.
    pub epoch: u32,
    /// Only a server has it that had lost the slot without knowing: nobody follows the room there for long.
    pub astray: bool,
}

/// All of them.
#[derive(Default)]
pub struct Log {
    /// Each once, in the order in which they were first published.
    pub messages: Vec<Logged>,
    seen: HashSet<(String, u64, u32, u64)>,
    /// Messages that were published again, because their acknowledgement was lost.
    pub again: HashSet<u64>,
}

impl Log {
    /// Writes down what is published on a channel, which is a room's if it is messages. What messages are in it.
    pub fn record(&mut self, room: Option<&str>, parcel: &[u8], astray: bool) -> Vec<u64> {
        let Parcel::Messages { stamp, .. } = wire::decode(parcel).unwrap() else {
            return Vec::new();
        };
        let room = room.expect("the channel of a room");
        let ids = messages_of(room, parcel);
        let key = (room.to_owned(), stamp.node, stamp.epoch, stamp.sequence);
        if self.seen.insert(key) {
            self.messages.extend(ids.iter().map(|&id| Logged {
                room: room.to_owned(),
                id,
                epoch: stamp.epoch,
                astray,
            }));
        } else {
            let known = self.messages.iter_mut();
            for logged in known.filter(|logged| ids.contains(&logged.id)) {
                logged.astray &= astray;
            }
            self.again.extend(&ids);
        }
        ids
    }

    /// By message: its place.
    pub fn places(&self) -> HashMap<u64, usize> {
        let messages = self.messages.iter().enumerate();
        messages.map(|(place, logged)| (logged.id, place)).collect()
    }
}

/// The messages of a parcel.
pub fn messages_of(room: &str, parcel: &[u8]) -> Vec<u64> {
    match wire::decode(parcel).unwrap() {
        Parcel::Messages { stamp, count, body } => {
            let batch = wire::decode_batch(room, body, count, true, stamp.sent).unwrap();
            ids(&batch).collect()
        }
        Parcel::Probe(_) => Vec::new(),
    }
}

/// The payloads of a batch.
pub fn ids(batch: &Batch) -> impl Iterator<Item = u64> + '_ {
    let mut start = 0;
    batch.messages.iter().map(move |message| {
        let payload = start + usize::from(message.header_bytes)..message.end as usize;
        start = message.end as usize;
        let text = std::str::from_utf8(&batch.bytes[payload]).unwrap();
        text.parse().unwrap()
    })
}
