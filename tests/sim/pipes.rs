//! Connections to servers by the script, and the protocol on them as a server speaks it (RESP3).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One connection, both directions.
#[derive(Default)]
pub struct Pipe {
    pub server: usize,
    /// From the node.
    pub up: VecDeque<u8>,
    /// To the node.
    pub down: VecDeque<u8>,
    /// What the node has subscribed to on it.
    pub channels: BTreeSet<Vec<u8>>,
    /// The server has closed it: the node reads what is left, then its end.
    pub ended: bool,
    /// Nothing passes any more, and nobody is told.
    pub half_open: bool,
}

impl Pipe {
    /// The node subscribes to a room's channel, once; or to its probes', again to see whether the link works.
    pub fn subscribe(&mut self, channel: Vec<u8>) {
        let is_probe = channel.windows(7).any(|part| part == b":probe:");
        let is_new = self.channels.insert(channel);
        assert!(is_new || is_probe, "subscribed twice");
    }
}

/// All connections that nodes have not closed.
#[derive(Default)]
pub struct Pipes {
    pub by_id: BTreeMap<u64, Pipe>,
    last: u64,
}

impl Pipes {
    pub fn open(&mut self, server: usize) -> u64 {
        self.last += 1;
        let pipe = Pipe {
            server,
            ..Pipe::default()
        };
        self.by_id.insert(self.last, pipe);
        self.last
    }

    pub fn ids(&self) -> Vec<u64> {
        self.by_id.keys().copied().collect()
    }

    /// Those that the server has not closed.
    pub fn live(&self) -> impl Iterator<Item = (u64, &Pipe)> {
        let all = self.by_id.iter().map(|(id, pipe)| (*id, pipe));
        all.filter(|(_, pipe)| !pipe.ended)
    }

    /// One that there is.
    pub fn at(&mut self, id: u64) -> &mut Pipe {
        self.by_id.get_mut(&id).unwrap()
    }

    /// The server ends a connection, if there is one.
    pub fn end(&mut self, id: u64) {
        if let Some(pipe) = self.by_id.get_mut(&id) {
            pipe.ended = true;
            pipe.up.clear();
            pipe.channels.clear();
        }
    }

    /// The server ends all of its connections.
    pub fn end_all(&mut self, server: usize) {
        for id in self.ids() {
            if self.by_id[&id].server == server {
                self.end(id);
            }
        }
    }

    /// The server says `bytes`, if the connection is there still.
    pub fn say(&mut self, id: u64, bytes: &[u8]) {
        if let Some(pipe) = self.by_id.get_mut(&id) {
            pipe.down.extend(bytes);
        }
    }

    /// The server says one text.
    pub fn say_bulk(&mut self, id: u64, text: &[u8]) {
        let mut out = Vec::new();
        bulk(&mut out, text);
        self.say(id, &out);
    }

    /// The server pushes a message, or (two words) says what is subscribed to now or not any more.
    pub fn push(&mut self, id: u64, words: &[&[u8]]) {
        let mut out = format!(">{}\r\n", words.len().max(3)).into_bytes();
        for word in words {
            bulk(&mut out, word);
        }
        if words.len() == 2 {
            out.extend_from_slice(b":1\r\n");
        }
        self.say(id, &out);
    }
}

/// Encodes a text.
pub fn bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(format!("${}\r\n", text.len()).as_bytes());
    out.extend(text);
    out.extend(b"\r\n");
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
