//! Channels' names: prefix, the tag of the partition where there are any, kind, room.

use std::borrow::Cow;

use super::names::{room_channel, room_of};
use super::placement::{Partitions, Slot, Tag, slot_of};

/// Rooms to channels and back.
#[derive(Debug, Clone)]
pub struct Naming {
    prefix: String,
    /// What channels of each partition begin with; none without partitions.
    prefixes: Vec<String>,
    partitions: Option<Partitions>,
}

impl Naming {
    /// Names that begin with `prefix`, and with a tag if there are partitions.
    pub fn new(prefix: &str, partitions: Option<Partitions>) -> Self {
        let tags = partitions.iter().flat_map(Partitions::tags);
        let prefixes = tags.map(|tag| format!("{prefix}:{{{}}}", tag.text));
        Self {
            prefix: prefix.to_owned(),
            prefixes: prefixes.collect(),
            partitions,
        }
    }

    /// The channel of a room.
    pub fn channel(&self, room: &str) -> Vec<u8> {
        let prefix = match &self.partitions {
            Some(partitions) => &self.prefixes[usize::from(partitions.of(room))],
            None => &self.prefix,
        };
        room_channel(prefix, room)
    }

    /// The room whose channel it is.
    pub fn room_of<'a>(&self, channel: &'a [u8]) -> Option<Cow<'a, str>> {
        if self.partitions.is_none() {
            return room_of(&self.prefix, channel);
        }
        let rest = channel.strip_prefix(self.prefix.as_bytes())?;
        let rest = rest.strip_prefix(b":{")?;
        let end = rest.iter().position(|byte| *byte == b'}')?;
        let room = room_of("", &rest[end + 1..])?;
        let own = self.partitions.as_ref()?.tag_of(&room);
        (own.text.as_bytes() == &rest[..end]).then_some(room)
    }

    /// The slot of a room's channel; without partitions it does not matter.
    pub fn slot_of(&self, room: &str) -> Slot {
        let tag = self.partitions.as_ref().map(|all| all.tag_of(room));
        tag.map_or(0, |tag| tag.slot)
    }

    /// The channel of a node's own probes through a server; in a cluster `tag` leads there.
    pub fn probe_channel(&self, tag: Option<&Tag>, node: u64) -> String {
        let prefix = &self.prefix;
        match tag {
            Some(tag) => format!("{prefix}:{{{}}}:probe:{node:016x}", tag.text),
            None => format!("{prefix}:probe:{node:016x}"),
        }
    }

    /// The slot of any channel.
    pub fn slot_of_channel(channel: &[u8]) -> Slot {
        slot_of(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_leads_back_to_its_room_and_to_its_slot() {
        let plain = Naming::new("p", None);
        assert_eq!(plain.channel("lobby"), b"p:room:lobby");
        assert_eq!(plain.room_of(b"p:room:lobby").as_deref(), Some("lobby"));
        let tagged = Naming::new("p", Some(Partitions::new(128)));
        assert_eq!(tagged.channel("lobby"), b"p:{268}:room:lobby");
        assert_eq!(tagged.slot_of("lobby"), 13_229);
        for room in ["lobby", "{x}", "}", "a}b{c", "über"] {
            let channel = tagged.channel(room);
            assert_eq!(tagged.room_of(&channel).as_deref(), Some(room));
            assert_eq!(Naming::slot_of_channel(&channel), tagged.slot_of(room));
        }
    }

    #[test]
    fn other_channels_are_nobodys() {
        let tagged = Naming::new("p", Some(Partitions::new(128)));
        for channel in [
            "p:room:lobby",
            "p:{269}:room:lobby",
            "p:{268:room:lobby",
            "q:{268}:room:lobby",
        ] {
            assert_eq!(tagged.room_of(channel.as_bytes()), None, "{channel}");
        }
        let tag = Partitions::new(128).tag_of("lobby").clone();
        let probe = tagged.probe_channel(Some(&tag), 10);
        assert_eq!(probe, "p:{268}:probe:000000000000000a");
        assert_eq!(tagged.room_of(probe.as_bytes()), None);
    }
}
