//! What the scripted Redis keeps: rooms' streams as the appending script leaves them, nodes' clocks, and what is left of
//! them after a restart or a failover.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use throng::backplane::remote::wire::{self, Parcel};
use throng::time::Tick;

/// Appends before a failover that the replica may lack, unless they are older than that.
const LAG_MAX: usize = 5;
const LAG_TIME: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
pub struct Stream {
    head: Head,
    entries: Vec<(u64, u64, Vec<u8>)>,
}

/// What is known of a stream.
#[derive(Clone, Default)]
struct Head {
    history: String,
    server: Vec<u8>,
    last: u64,
    /// By node: which of its sequences, and up to where.
    taken: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
}

#[derive(Clone, Default)]
struct Data {
    /// By the key of what is known.
    streams: BTreeMap<Vec<u8>, Stream>,
    texts: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All of it, and how streams were before the last appends.
#[derive(Clone, Default)]
pub struct Kept {
    data: Data,
    before: VecDeque<(Tick, Vec<u8>, Head)>,
    pub now: Tick,
    run: u64,
    is_script_known: bool,
}

/// A channel, and what is to be published on it.
type Push = (Vec<u8>, Vec<u8>);

/// What an append has done.
pub enum Appended {
    /// The newest offset is this. No push: it was there.
    Taken(u64, Option<Push>),
    /// What it follows was not taken.
    Refused,
}

impl Appended {
    /// What is to be published, and what is answered.
    pub fn answer(self) -> (Option<Push>, String) {
        match self {
            Self::Taken(last, push) => (push, format!(":{last}\r\n")),
            Self::Refused => (None, "-TRYAGAIN what it follows was not taken\r\n".into()),
        }
    }
}

pub const DIGEST: &[u8] = b"0123456789abcdef0123456789abcdef01234567";

impl Kept {
    /// That of one server among several: no two have the same `run_id`.
    pub fn of(server: usize) -> Self {
        Self {
            run: (server as u64) << 32,
            ..Self::default()
        }
    }

    /// The process ends; another begins with what was kept.
    pub fn restart(&mut self) {
        self.run += 1;
        self.is_script_known = false;
    }

    /// The same without anything kept.
    pub fn lose(&mut self) {
        self.restart();
        self.data = Data::default();
        self.before.clear();
    }

    /// A replica takes over that is `lag` appends behind.
    pub fn fail_over(&mut self, lag: usize) {
        self.restart();
        self.fall_behind(lag);
    }

    /// What a replica has of it that is `lag` appends behind.
    pub fn fall_behind(&mut self, lag: usize) {
        for _ in 0..lag {
            if let Some((since, key, head)) = self.before.pop_back()
                && since.after(LAG_TIME) > self.now
            {
                let stream = self.data.streams.get_mut(&key).unwrap();
                stream.entries.retain(|(first, _, _)| *first <= head.last);
                stream.head = head;
            }
        }
        self.before.clear();
    }

    /// Takes out what is kept of rooms, by the key of what is known of them.
    pub fn take(&mut self, goes: impl Fn(&[u8]) -> bool) -> Vec<(Vec<u8>, Stream)> {
        self.before.retain(|(_, key, _)| !goes(key));
        let streams = std::mem::take(&mut self.data.streams).into_iter();
        let (gone, kept): (BTreeMap<_, _>, _) = streams.partition(|(key, _)| goes(key));
        self.data.streams = kept;
        gone.into_iter().collect()
    }

    /// Takes over what another has let go.
    pub fn put(&mut self, streams: Vec<(Vec<u8>, Stream)>) {
        self.data.streams.extend(streams);
    }

    /// All batches that are kept.
    pub fn parcels(&self) -> impl Iterator<Item = &[u8]> {
        let streams = self.data.streams.values();
        let entries = streams.flat_map(|stream| &stream.entries);
        entries.map(|(_, _, parcel)| parcel.as_slice())
    }

    pub fn info(&self) -> String {
        format!(
            "# Server\r\nredis_version:7.2.0\r\nrun_id:{:040x}\r\n",
            self.run
        )
    }

    pub fn load(&mut self, script: &[u8]) {
        assert!(script.starts_with(b"-- One publish"));
        self.is_script_known = true;
    }

    /// The script, by its arguments from the digest on. `None`: it is not known.
    pub fn append(&mut self, words: &[Vec<u8>]) -> Option<Appended> {
        if !self.is_script_known {
            return None;
        }
        let [digest, two, stream_key, key, rest @ ..] = words else {
            panic!("{} words", words.len());
        };
        assert_eq!(
            (digest.as_slice(), two.as_slice()),
            (DIGEST, b"2".as_slice())
        );
        let [
            parcel,
            count,
            _length,
            _ttl,
            server,
            fresh,
            verb,
            channel,
            node,
            sequences,
            first,
            last,
            after,
        ] = rest
        else {
            panic!("{} arguments", rest.len());
        };
        assert_eq!(verb, b"PUBLISH");
        let room = channel.strip_prefix(b"throng").unwrap();
        assert_eq!(key, &[b"throng:known", room].concat());
        assert_eq!(stream_key, &[b"throng:stream", room].concat());
        assert_eq!(
            server,
            format!("{:040x}", self.run).as_bytes(),
            "the one it is"
        );
        let Stream { head, entries } = self.data.streams.entry(key.clone()).or_default();
        let stream = head;
        if let Some((of, up_to)) = stream.taken.get(node)
            && of == sequences
        {
            if number(first) <= *up_to {
                return Some(Appended::Taken(stream.last, None));
            }
            if *up_to < number(after) {
                return Some(Appended::Refused);
            }
        }
        if stream.last == 0 && number(after) > 0 {
            return Some(Appended::Refused);
        }
        self.before
            .push_back((self.now, key.clone(), stream.clone()));
        if self.before.len() > LAG_MAX {
            self.before.pop_front();
        }
        let begins = stream.last + 1;
        if stream.history.is_empty() || stream.server != *server {
            let fresh = std::str::from_utf8(fresh).unwrap();
            stream.history.push_str(&format!("{fresh}{begins:016x}"));
            let forgotten = stream.history.len().saturating_sub(256);
            stream.history.drain(..forgotten);
            stream.server.clone_from(server);
        }
        let Ok(Parcel::Messages { count: inside, .. }) = wire::decode(parcel) else {
            panic!("no batch");
        };
        assert_eq!(u64::from(inside), number(count));
        stream.last += number(count);
        stream
            .taken
            .insert(node.clone(), (sequences.clone(), number(last)));
        entries.push((begins, number(count), parcel.clone()));
        let epoch = &stream.history[stream.history.len() - 32..][..16];
        let head = format!("\x01\x03{epoch}{begins:016x}");
        let payload = [head.as_bytes(), parcel].concat();
        let push = Some((channel.clone(), payload));
        Some(Appended::Taken(stream.last, push))
    }

    /// The answer to HMGET, XRANGE, GET or SET.
    pub fn answer(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        match words[0].as_slice() {
            b"HMGET" => {
                assert_eq!(words[2..], [b"h".to_vec(), b"o".to_vec()]);
                let known = self.data.streams.get(&words[1]).map(|stream| &stream.head);
                match known.filter(|head| head.last > 0) {
                    None => out.extend(b"*2\r\n_\r\n_\r\n"),
                    Some(stream) => {
                        out.extend(b"*2\r\n");
                        bulk(&mut out, stream.history.as_bytes());
                        bulk(&mut out, stream.last.to_string().as_bytes());
                    }
                }
            }
            b"XRANGE" => {
                let room = words[1].strip_prefix(b"throng:stream").unwrap();
                let key = [b"throng:known", room].concat();
                let (first, count) = (number(&words[2]), number(&words[5]) as usize);
                let stream = self.data.streams.get(&key);
                let entries = stream.into_iter().flat_map(|stream| &stream.entries);
                let entries: Vec<_> = entries
                    .filter(|entry| entry.0 >= first)
                    .take(count)
                    .collect();
                out.extend(format!("*{}\r\n", entries.len()).as_bytes());
                for (first, count, parcel) in entries {
                    out.extend(b"*2\r\n");
                    bulk(&mut out, format!("{first}-{count}").as_bytes());
                    out.extend(b"*2\r\n");
                    bulk(&mut out, b"m");
                    bulk(&mut out, parcel);
                }
            }
            b"GET" => match self.data.texts.get(&words[1]) {
                None => out.extend(b"_\r\n"),
                Some(text) => bulk(&mut out, text),
            },
            b"SET" => {
                self.data.texts.insert(words[1].clone(), words[2].clone());
                out.extend(b"+OK\r\n");
            }
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
        out
    }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

pub fn bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(format!("${}\r\n", text.len()).as_bytes());
    out.extend(text);
    out.extend(b"\r\n");
}
