//! Redis by the script: HELLO, SUBSCRIBE, UNSUBSCRIBE and PUBLISH in RESP3, what streams want beside, and every way in
//! which it may fail.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use throng::backplane::remote::wire::{self, Parcel};
use throng::bus::EVERYBODY;

use super::redis_streams::{DIGEST, Kept, bulk};

/// One connection, both directions.
#[derive(Default)]
pub struct Pipe {
    /// From the node.
    pub up: VecDeque<u8>,
    /// To the node.
    pub down: VecDeque<u8>,
    channels: BTreeSet<Vec<u8>>,
    /// The server has closed it: the node reads what is left, then its end.
    pub ended: bool,
    /// Nothing passes any more, and nobody is told.
    pub half_open: bool,
}

/// A message as Redis ordered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub room: &'static str,
    /// The message's payload.
    pub id: u64,
}

#[derive(Default)]
pub struct Server {
    pub pipes: BTreeMap<u64, Pipe>,
    next: u64,
    /// Refuses connections.
    pub is_down: bool,
    /// Takes connections and says nothing.
    pub is_stopped: bool,
    /// The next so many pushes of messages are lost.
    pub pushes_to_lose: usize,
    /// Every message, in the order in which it was first published here.
    pub log: Vec<Logged>,
    seen: HashSet<(u64, u32, u64)>,
    /// Messages of which a push was lost.
    pub lost: HashSet<u64>,
    /// Messages that were published again, because their acknowledgement was lost.
    pub again: HashSet<u64>,
    /// What is kept in streams mode.
    pub kept: Kept,
}

impl Server {
    pub fn connect(&mut self) -> Option<u64> {
        if self.is_down {
            return None;
        }
        self.next += 1;
        self.pipes.insert(self.next, Pipe::default());
        Some(self.next)
    }

    /// Ends a connection from this side.
    pub fn kill(&mut self, id: u64) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.ended = true;
            pipe.up.clear();
            pipe.channels.clear();
        }
    }

    pub fn restart_begins(&mut self) {
        self.is_down = true;
        for id in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.kill(id);
        }
    }

    /// Nodes' connections that follow a channel.
    pub fn subscribers(&self, channel: &str) -> usize {
        let pipes = self.pipes.values().filter(|pipe| !pipe.ended);
        pipes
            .filter(|pipe| pipe.channels.contains(channel.as_bytes()))
            .count()
    }

    /// Carries out up to `count` commands of one connection.
    pub fn work(&mut self, id: u64, count: usize) {
        for _ in 0..count {
            if self.is_stopped {
                return;
            }
            let Some(pipe) = self.pipes.get_mut(&id) else {
                return;
            };
            if pipe.ended || pipe.half_open {
                return;
            }
            let Some(words) = take_command(&mut pipe.up) else {
                return;
            };
            self.command(id, &words);
        }
    }

    fn command(&mut self, id: u64, words: &[Vec<u8>]) {
        let arguments = &words[1..];
        match words[0].as_slice() {
            b"HELLO" => {
                let hello =
                    b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n";
                self.say(id, hello);
            }
            b"SUBSCRIBE" => {
                assert!(arguments.len() <= 512, "{} channels", arguments.len());
                for channel in arguments {
                    let pipe = self.pipes.get_mut(&id).unwrap();
                    let is_new = pipe.channels.insert(channel.clone());
                    assert!(is_new || is_probe(channel), "subscribed twice");
                    self.push(id, &[b"subscribe", channel]);
                }
            }
            b"UNSUBSCRIBE" => {
                for channel in arguments {
                    let pipe = self.pipes.get_mut(&id).unwrap();
                    assert!(pipe.channels.remove(channel), "it was not subscribed");
                    self.push(id, &[b"unsubscribe", channel]);
                }
            }
            b"PUBLISH" => {
                let count = self.publish(&arguments[0], &arguments[1], &arguments[1]);
                self.say(id, format!(":{count}\r\n").as_bytes());
            }
            b"EVALSHA" => match self.kept.append(arguments) {
                Some(appended) => {
                    let (push, answer) = appended.answer();
                    if let Some((channel, payload)) = push {
                        self.publish(&channel, &arguments[4], &payload);
                    }
                    self.say(id, answer.as_bytes());
                }
                None => self.say(id, b"-NOSCRIPT No matching script.\r\n"),
            },
            b"SCRIPT" => {
                self.kept.load(&arguments[1]);
                let mut out = Vec::new();
                bulk(&mut out, DIGEST);
                self.say(id, &out);
            }
            b"INFO" => {
                let mut out = Vec::new();
                bulk(&mut out, self.kept.info().as_bytes());
                self.say(id, &out);
            }
            b"HMGET" | b"XRANGE" | b"GET" | b"SET" => {
                let answer = self.kept.answer(words);
                self.say(id, &answer);
            }
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }

    /// Publishes `payload`, which has `parcel` in it. How many follow the channel.
    fn publish(&mut self, channel: &[u8], parcel: &[u8], payload: &[u8]) -> usize {
        let mut published = Vec::new();
        if let Parcel::Messages { stamp, count, body } = wire::decode(parcel).unwrap() {
            let room = room_of(channel).unwrap();
            let batch = wire::decode_batch(room, body, count, true, stamp.sent).unwrap();
            published.extend(super::redis::ids(&batch));
            if self.seen.insert((stamp.node, stamp.epoch, stamp.sequence)) {
                let logged = published.iter().map(|&id| Logged { room, id });
                self.log.extend(logged);
            } else {
                self.again.extend(&published);
            }
        }
        let followers = self.pipes.iter();
        let followers =
            followers.filter(|(_, pipe)| !pipe.ended && pipe.channels.contains(channel));
        let followers: Vec<u64> = followers.map(|(id, _)| *id).collect();
        for follower in &followers {
            if room_of(channel).is_some() && self.pushes_to_lose > 0 {
                self.pushes_to_lose -= 1;
                self.lost.extend(&published);
                continue;
            }
            self.push(*follower, &[b"message", channel, payload]);
        }
        followers.len()
    }

    fn push(&mut self, id: u64, words: &[&[u8]]) {
        let mut out = format!(">{}\r\n", words.len().max(3)).into_bytes();
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        if words.len() == 2 {
            out.extend_from_slice(b":1\r\n");
        }
        self.say(id, &out);
    }

    fn say(&mut self, id: u64, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.down.extend(bytes);
        }
    }
}

/// Takes one whole command off the front.
pub fn take_command(bytes: &mut VecDeque<u8>) -> Option<Vec<Vec<u8>>> {
    let all = bytes.make_contiguous();
    let mut at = 0;
    let line = |at: &mut usize, kind: u8| -> Option<usize> {
        let rest = &all[*at..];
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        assert_eq!(rest[0], kind);
        *at += end + 2;
        std::str::from_utf8(&rest[1..end]).unwrap().parse().ok()
    };
    let count = line(&mut at, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = line(&mut at, b'$')?;
        words.push(all.get(at..at + length)?.to_vec());
        all.get(at + length..at + length + 2)?;
        at += length + 2;
    }
    bytes.drain(..at);
    Some(words)
}

/// The channels of a run's rooms, hidden ones among them.
const CHANNELS: [(&str, &str); 4] = [
    ("one", "throng:room:one"),
    ("two", "throng:room:two"),
    ("\u{1}ann", "throng:user:ann"),
    (EVERYBODY, "throng:all"),
];

/// The channel of a room of the run.
pub fn channel_of(room: &str) -> &'static str {
    let found = CHANNELS.iter().find(|(name, _)| *name == room);
    found.expect("a room of the run").1
}

/// The room whose channel it is.
fn room_of(channel: &[u8]) -> Option<&'static str> {
    let found = CHANNELS.iter().find(|(_, name)| name.as_bytes() == channel);
    found.map(|(room, _)| *room)
}

/// Whether it is the channel of a node's probes, which may be subscribed to again to see whether the link works.
pub fn is_probe(channel: &[u8]) -> bool {
    channel.windows(7).any(|part| part == b":probe:")
}
