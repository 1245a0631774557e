//! What is kept of a room at Redis, as bytes: the script that appends, the keys, and what comes back.
//!
//! ```text
//!  PREFIX:stream:room:ROOM    stream: an entry a batch, FIRST-COUNT ─ m ─▶ parcel
//!  PREFIX:known:room:ROOM     hash: h history, s server, o last offset, nNODE what was taken of each node
//! ```
//! An offset numbers the room's messages, from 1 on. The history is a record of 32 hexadecimal digits for each epoch:
//! its name, and the first offset in it. `docs/PROTOCOL.md` has the same for other readers.

use bytes::Bytes;

use crate::backplane::resp::Reply;

/// The script: `append.lua` says what it does.
pub const SCRIPT: &str = include_str!("append.lua");
/// What stands before the parcel on a channel: version, kind, epoch and first offset in 16 hexadecimal digits each.
pub const HEADER_BYTES: usize = 34;
/// Characters of one record of a history.
const RECORD_CHARS: usize = 32;
/// Records that are kept of a history.
const RECORD_COUNT_MAX: usize = 8;

/// Where a batch stands in its room's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Which life of the stream.
    pub epoch: u64,
    /// The number of the batch's first message.
    pub first: u64,
}

/// Reads what stands before the parcel on a room's channel. `None`: it is a parcel that is not kept.
#[must_use]
pub fn split(payload: &[u8]) -> Option<(Offset, &[u8])> {
    let (head, parcel) = payload.split_at_checked(HEADER_BYTES)?;
    if head[..2] != [1, 3] {
        return None;
    }
    let epoch = number(&head[2..18])?;
    let first = number(&head[18..])?;
    (first > 0).then_some((Offset { epoch, first }, parcel))
}

fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The keys of the room whose channel it is: its stream, and what is known of it. What makes a channel's place in a
/// cluster makes its keys' place, too.
#[must_use]
pub fn keys(prefix: &str, channel: &[u8]) -> [Vec<u8>; 2] {
    let rest = channel.strip_prefix(prefix.as_bytes()).unwrap_or(channel);
    ["stream", "known"].map(|kind| [prefix.as_bytes(), b":", kind.as_bytes(), rest].concat())
}

/// The two epochs before one, newest first, and the last offset in each.
pub type Earlier = [Option<(u64, u64)>; 2];

/// What is known of a room's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Epochs, oldest first, and the first offset in each. Never empty.
    epochs: Vec<(u64, u64)>,
    /// The newest offset.
    pub last: u64,
}

impl Known {
    /// Reads the answer to [`Self::FIELDS`]. `Ok(None)`: nothing is kept of the room.
    ///
    /// # Errors
    /// It is something else.
    pub fn of(reply: &Reply) -> Result<Option<Self>, String> {
        let Reply::List(fields) = reply else {
            return Err(unexpected("HMGET", reply));
        };
        let [history, last] = fields.as_slice() else {
            return Err(unexpected("HMGET", reply));
        };
        match (history, last) {
            (Reply::Nil, _) | (_, Reply::Nil) => Ok(None),
            (Reply::Text(history), Reply::Text(last)) => {
                let record = |record: &[u8]| {
                    let first = number(&record[16..]).filter(|first| *first > 0);
                    number(&record[..16]).zip(first)
                };
                let records = history.chunks_exact(RECORD_CHARS);
                let whole = records.remainder().is_empty();
                let epochs: Option<Vec<_>> = records.map(record).collect();
                let last = std::str::from_utf8(last)
                    .ok()
                    .and_then(|text| text.parse().ok());
                match (epochs, last) {
                    (Some(epochs), Some(last)) if whole && !epochs.is_empty() => {
                        Ok(Some(Self { epochs, last }))
                    }
                    _ => Err(unexpected("HMGET", reply)),
                }
            }
            _ => Err(unexpected("HMGET", reply)),
        }
    }

    /// The fields that [`Self::of`] reads.
    pub const FIELDS: [&str; 2] = ["h", "o"];

    /// The epoch that goes on.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epochs[self.epochs.len() - 1].0
    }

    /// The first offset that somebody lacks who has all of `epoch` up to `last`: what later epochs begin with counts anew.
    /// `None`: that epoch is not of this stream's history.
    #[must_use]
    pub fn next(&self, epoch: u64, last: u64) -> Option<u64> {
        let index = self.epochs.iter().rposition(|(known, _)| *known == epoch)?;
        let later = self.epochs[index + 1..].iter().map(|(_, first)| *first);
        Some(later.fold(last + 1, u64::min))
    }

    /// The same for somebody whose epoch may be one that this server has never heard of: then one `before` it counts.
    #[must_use]
    pub fn next_of(&self, epoch: u64, last: u64, before: &Earlier) -> Option<u64> {
        let earlier = before.iter().flatten();
        let earlier = earlier.map(|(epoch, end)| (*epoch, last.min(*end)));
        std::iter::once((epoch, last))
            .chain(earlier)
            .find_map(|(epoch, last)| self.next(epoch, last))
    }

    /// The epochs before the newest, and the last offset in each.
    #[must_use]
    pub fn before(&self) -> Earlier {
        let newest_first = self.epochs.iter().rev();
        let mut end = u64::MAX;
        let mut ends = newest_first.map(|(epoch, first)| {
            let last = end;
            end = end.min(first - 1);
            (*epoch, last)
        });
        ends.next();
        [ends.next(), ends.next()]
    }

    /// Whether older epochs were forgotten.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.epochs.len() >= RECORD_COUNT_MAX
    }
}

/// An entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of its first message.
    pub first: u64,
    /// The number of its last.
    pub last: u64,
    /// The batch.
    pub parcel: Bytes,
}

/// Reads the answer to XRANGE.
///
/// # Errors
/// It is something else.
pub fn entries(reply: Reply) -> Result<Vec<Entry>, String> {
    match reply {
        Reply::List(entries) => {
            let read = |entry| self::entry(entry).ok_or("the stream has entries of somebody else");
            Ok(entries.into_iter().map(read).collect::<Result<_, _>>()?)
        }
        other => Err(unexpected("XRANGE", &other)),
    }
}

fn entry(reply: Reply) -> Option<Entry> {
    let Reply::List(parts) = reply else {
        return None;
    };
    let [Reply::Text(id), Reply::List(fields)] = parts.as_slice() else {
        return None;
    };
    let [_, Reply::Text(parcel)] = fields.as_slice() else {
        return None;
    };
    let (first, count) = std::str::from_utf8(id).ok()?.split_once('-')?;
    let (first, count): (u64, u64) = (first.parse().ok()?, count.parse().ok()?);
    Some(Entry {
        first,
        last: first.checked_add(count.checked_sub(1)?)?,
        parcel: parcel.clone(),
    })
}

fn unexpected(command: &str, reply: &Reply) -> String {
    format!("Redis answers {command} with something else: {reply:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn known(history: &str, last: &str) -> Result<Option<Known>, String> {
        Known::of(&Reply::List(vec![text(history), text(last)]))
    }

    #[test]
    fn what_comes_on_a_channel_has_its_offset_in_front() {
        let kept = b"\x01\x0300000000000000ff0000000000000010parcel";
        let offset = Offset {
            epoch: 255,
            first: 16,
        };
        assert_eq!(split(kept), Some((offset, b"parcel".as_slice())));
        for bad in [
            b"\x01\x0100000000000000ff0000000000000010parcel".as_slice(),
            b"\x01\x0300000000000000fg0000000000000010parcel",
            b"\x01\x0300000000000000ff0000000000000000parcel",
            b"\x01\x0300000000000000ff00000000000000",
            b"",
        ] {
            assert_eq!(split(bad), None);
        }
    }

    #[test]
    fn keys_stand_where_their_channel_does() {
        let [stream, known] = keys("throng", b"throng:{7}:room:a");
        assert_eq!(stream, b"throng:stream:{7}:room:a");
        assert_eq!(known, b"throng:known:{7}:room:a");
    }

    #[test]
    fn a_history_tells_what_somebody_lacks() {
        let history = "000000000000000a0000000000000001\
                       000000000000000b0000000000000065\
                       000000000000000c0000000000000050";
        let known = known(history, "300").unwrap().unwrap();
        assert_eq!((known.epoch(), known.last), (12, 300));
        assert_eq!(known.next(12, 300), Some(301));
        assert_eq!(
            known.next(11, 200),
            Some(0x50),
            "the last epoch began before"
        );
        assert_eq!(known.next(11, 0x4f), Some(0x50));
        assert_eq!(known.next(10, 20), Some(21), "before any other");
        assert_eq!(known.next(10, 0x64), Some(0x50), "and it went back further");
        assert_eq!(known.next(9, 1), None);
        assert_eq!(known.before(), [Some((11, 0x4f)), Some((10, 0x4f))]);
        let before = [Some((9, 250)), Some((12, 220))];
        assert_eq!(known.next_of(7, 230, &before), Some(221), "what both have");
        assert_eq!(known.next_of(7, 210, &before), Some(211));
        assert_eq!(known.next_of(7, 210, &Earlier::default()), None);
        assert!(!known.is_cut());
    }

    #[test]
    fn what_is_not_there_is_not_known_and_what_cannot_be_read_is_told() {
        let nothing = Reply::List(vec![Reply::Nil, Reply::Nil]);
        assert_eq!(Known::of(&nothing), Ok(None));
        for (history, last) in [
            ("", "1"),
            ("xyz", "1"),
            (&"0".repeat(33), "1"),
            (&"0".repeat(32), "x"),
        ] {
            assert!(known(history, last).is_err(), "{history:?} {last:?}");
        }
        let refused = Known::of(&Reply::Error("NOPERM no hmget".into()));
        assert!(refused.unwrap_err().contains("NOPERM"));
    }

    #[test]
    fn entries_are_numbered_by_their_first_message() {
        let entry = |id: &str| Reply::List(vec![text(id), Reply::List(vec![text("m"), text("p")])]);
        let read = entries(Reply::List(vec![entry("1-3"), entry("4-1")])).unwrap();
        let spans: Vec<_> = read.iter().map(|entry| (entry.first, entry.last)).collect();
        assert_eq!(spans, [(1, 3), (4, 4)]);
        for id in ["1", "1-0", "x-1", "18446744073709551615-2"] {
            assert!(entries(Reply::List(vec![entry(id)])).is_err(), "{id}");
        }
    }
}
