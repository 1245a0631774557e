//! Which Redis server a room belongs to: a partition and its slot in a cluster, or the server that the name draws.
//!
//! All nodes have to agree, whatever they are told first and wherever they run: everything here is a function of names.
//! `docs/PROTOCOL.md` has the same for other readers.

/// Slots of a Redis Cluster (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
pub const SLOT_COUNT: u16 = 16_384;
/// Partitions at most.
pub const PARTITION_COUNT_MAX: u16 = 4_096;

/// A slot of a cluster.
pub type Slot = u16;

/// FNV-1a of 64 bits, its bits then mixed as MurmurHash3 does: near names are to fall far from each other.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// The last step of MurmurHash3 for 64 bits (`fmix64`).
const fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The slot of a key: CRC16 (XMODEM) of its tag.
#[must_use]
pub fn slot_of(key: &[u8]) -> Slot {
    crc16(tag_of(key)) % SLOT_COUNT
}

/// What of a key says where it belongs: what stands in its first braces, or all of it where they are missing or empty.
#[must_use]
pub fn tag_of(key: &[u8]) -> &[u8] {
    let open = key.iter().position(|byte| *byte == b'{');
    let tag = open.and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then_some(&rest[..close])
    });
    tag.unwrap_or(key)
}

const CRC16: [u16; 256] = crc16_table();

const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        crc << 8 ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// A hash tag: its text, and the slot of whatever has it in braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// A decimal number.
    pub text: String,
    /// Where it falls.
    pub slot: Slot,
}

/// The smallest number whose slot is `wanted`, as a tag. `None`: no slot is.
pub fn tag_in(wanted: impl Fn(Slot) -> bool) -> Option<Tag> {
    let any = (0..SLOT_COUNT).any(&wanted);
    let mut tags = (0_u64..).map(|number| {
        let text = number.to_string();
        let slot = slot_of(text.as_bytes());
        Tag { text, slot }
    });
    any.then(|| tags.find(|tag| wanted(tag.slot))).flatten()
}

/// The partitions that rooms are dealt out to, and the tag of each: partition P of N has the smallest number whose slot
/// is among the P-th N-th of all slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions {
    tags: Vec<Tag>,
}

impl Partitions {
    /// `count` of them, 1 to [`PARTITION_COUNT_MAX`].
    #[must_use]
    pub fn new(count: u16) -> Self {
        let count = usize::from(count.clamp(1, PARTITION_COUNT_MAX));
        let mut tags: Vec<Option<Tag>> = vec![None; count];
        let mut missing = count;
        for number in 0_u64.. {
            let text = number.to_string();
            let slot = slot_of(text.as_bytes());
            let tag = &mut tags[usize::from(slot) * count / usize::from(SLOT_COUNT)];
            if tag.is_none() {
                *tag = Some(Tag { text, slot });
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        Self {
            tags: tags.into_iter().flatten().collect(),
        }
    }

    /// The partition of a room.
    #[must_use]
    pub fn of(&self, room: &str) -> u16 {
        (hash(room.as_bytes()) % self.tags.len() as u64) as u16
    }

    /// The tag of a room's partition.
    #[must_use]
    pub fn tag_of(&self, room: &str) -> &Tag {
        &self.tags[usize::from(self.of(room))]
    }

    /// All tags, by partition.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

/// Independent servers, by the hash of each one's name: a room goes to the one with which its name draws the highest
/// number (rendezvous hashing). One more takes its share from all others, and nothing else moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    servers: Vec<u64>,
}

impl Rendezvous {
    /// Servers by their names, at least one; what counts is the name and not the place in the list.
    #[must_use]
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self {
            servers: names.map(|name| hash(name.as_bytes())).collect(),
        }
    }

    /// The place in the list of the server that `name` belongs to.
    #[must_use]
    pub fn of(&self, name: &[u8]) -> u16 {
        let name = hash(name);
        // Equal draws are as good as impossible; the names' hashes would settle them alike everywhere.
        let draws = self
            .servers
            .iter()
            .map(|server| (mix(server ^ name), *server));
        let best = draws.enumerate().max_by_key(|(_, draw)| *draw);
        best.map_or(0, |(index, _)| index as u16)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the cluster specification, and from CLUSTER KEYSLOT.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"{foo}:bar"), 12_182);
        assert_eq!(slot_of(b"x{foo}y{bar}"), 12_182);
        assert_eq!(
            slot_of(b"{}foo"),
            crc16(b"{}foo") % SLOT_COUNT,
            "empty braces"
        );
        assert_eq!(slot_of(b"{foo"), crc16(b"{foo") % SLOT_COUNT, "open braces");
        assert_eq!(slot_of(b"{{foo}"), slot_of(b"{foo"), "the first of both");
    }

    #[test]
    fn the_hash_and_the_tags_are_as_documented() {
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        let partitions = Partitions::new(128);
        let texts = partitions.tags().iter().take(3);
        let texts: Vec<&str> = texts.map(|tag| tag.text.as_str()).collect();
        assert_eq!(texts, ["14", "10", "100"]);
        assert_eq!(partitions.of("lobby"), 103);
        let lobby = partitions.tag_of("lobby");
        assert_eq!((lobby.text.as_str(), lobby.slot), ("268", 13_229));
    }

    #[test]
    fn partitions_spread_evenly_over_the_slots() {
        for count in [1, 2, 3, 7, 128, 1_000, PARTITION_COUNT_MAX] {
            let partitions = Partitions::new(count);
            let all = partitions.tags();
            assert_eq!(all.len(), usize::from(count));
            let texts: HashSet<&str> = all.iter().map(|tag| tag.text.as_str()).collect();
            assert_eq!(texts.len(), all.len(), "each its own");
            for (index, tag) in all.iter().enumerate() {
                let part = usize::from(tag.slot) * all.len() / usize::from(SLOT_COUNT);
                assert_eq!(part, index, "{tag:?} of {count}");
                assert_eq!(
                    slot_of(format!("throng:{{{}}}:room:x", tag.text).as_bytes()),
                    tag.slot
                );
            }
        }
    }

    #[test]
    fn rooms_spread_evenly_over_partitions() {
        let partitions = Partitions::new(128);
        let mut counts = vec![0; 128];
        for number in 0..128_000 {
            counts[usize::from(partitions.of(&format!("room-{number}")))] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_tag_is_found_wherever_there_is_a_slot() {
        assert_eq!(tag_in(|_| false), None);
        for slot in [0, 1, 8_191, 16_383] {
            assert_eq!(tag_in(|found| found == slot).unwrap().slot, slot);
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count)
            .map(|index| format!("10.0.0.{index}:6379"))
            .collect()
    }

    proptest! {
        #[test]
        fn all_nodes_agree_however_they_list_the_servers(count in 1_usize..9, turn in 0_usize..9, room in ".{1,20}") {
            let names = names(count);
            let mut others = names.clone();
            others.rotate_left(turn % count);
            others.reverse();
            let one = Rendezvous::new(names.iter().map(String::as_str));
            let other = Rendezvous::new(others.iter().map(String::as_str));
            let (one, other) = (one.of(room.as_bytes()), other.of(room.as_bytes()));
            prop_assert_eq!(&names[usize::from(one)], &others[usize::from(other)]);
        }

        #[test]
        fn one_more_server_takes_its_share_and_moves_nothing_else(count in 1_usize..9, salt: u32) {
            let names = names(count + 1);
            let fewer = Rendezvous::new(names[..count].iter().map(String::as_str));
            let more = Rendezvous::new(names.iter().map(String::as_str));
            let rooms = 1_000;
            let mut moved = 0;
            for number in 0..rooms {
                let room = format!("{salt}-{number}");
                let (before, after) = (fewer.of(room.as_bytes()), more.of(room.as_bytes()));
                if before != after {
                    prop_assert_eq!(usize::from(after), count, "it moves to the new one only");
                    moved += 1;
                }
            }
            let share = rooms / (count + 1);
            prop_assert!((share / 2..share * 3 / 2).contains(&moved), "{} of {}", moved, share);
        }
    }
}
