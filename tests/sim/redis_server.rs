//! Redis by the script: HELLO, SUBSCRIBE, UNSUBSCRIBE and PUBLISH in RESP3, what streams want beside, and every way in
//! which it may fail.

use std::collections::HashSet;

use throng::backplane::remote::Address;
use throng::bus::EVERYBODY;
use throng::time::Tick;

use super::log::Log;
use super::nodes::Servers;
use super::pipes::{Pipe, Pipes};
use super::redis_streams::{DIGEST, Kept};

#[derive(Default)]
pub struct Server {
    pub pipes: Pipes,
    /// Refuses connections.
    pub is_down: bool,
    /// Takes connections and says nothing.
    pub is_stopped: bool,
    /// The next so many pushes of messages are lost.
    pub pushes_to_lose: usize,
    pub log: Log,
    /// Messages of which a push was lost.
    pub lost: HashSet<u64>,
    /// What is kept in streams mode.
    pub kept: Kept,
}

impl Server {
    pub fn restart_begins(&mut self) {
        self.is_down = true;
        self.pipes.end_all(0);
    }

    /// Nodes' connections that follow a channel.
    pub fn subscribers(&self, channel: &str) -> usize {
        let follows = |(_, pipe): &(u64, &Pipe)| pipe.channels.contains(channel.as_bytes());
        self.pipes.live().filter(follows).count()
    }

    /// Publishes `payload`, which has `parcel` in it. How many follow the channel.
    fn publish(&mut self, channel: &[u8], parcel: &[u8], payload: &[u8]) -> usize {
        let room = room_of(channel);
        let published = self.log.record(room, parcel, false);
        let follows = |(_, pipe): &(u64, &Pipe)| pipe.channels.contains(channel);
        let followers = self.pipes.live().filter(follows);
        let followers: Vec<u64> = followers.map(|(id, _)| id).collect();
        for follower in &followers {
            if room.is_some() && self.pushes_to_lose > 0 {
                self.pushes_to_lose -= 1;
                self.lost.extend(&published);
                continue;
            }
            self.pipes.push(*follower, &[b"message", channel, payload]);
        }
        followers.len()
    }
}

impl Servers for Server {
    fn pipes(&mut self) -> &mut Pipes {
        &mut self.pipes
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn connect(&mut self, _: &Address) -> Option<u64> {
        (!self.is_down).then(|| self.pipes.open(0))
    }

    fn hears(&self, _: usize) -> bool {
        !self.is_stopped
    }

    fn command(&mut self, id: u64, words: &[Vec<u8>]) {
        let arguments = &words[1..];
        match words[0].as_slice() {
            b"HELLO" => {
                let hello =
                    b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n";
                self.pipes.say(id, hello);
            }
            b"SUBSCRIBE" => {
                assert!(arguments.len() <= 512, "{} channels", arguments.len());
                for channel in arguments {
                    self.pipes.at(id).subscribe(channel.clone());
                    self.pipes.push(id, &[b"subscribe", channel]);
                }
            }
            b"UNSUBSCRIBE" => {
                for channel in arguments {
                    let pipe = self.pipes.at(id);
                    assert!(pipe.channels.remove(channel), "it was not subscribed");
                    self.pipes.push(id, &[b"unsubscribe", channel]);
                }
            }
            b"PUBLISH" => {
                let count = self.publish(&arguments[0], &arguments[1], &arguments[1]);
                self.pipes.say(id, format!(":{count}\r\n").as_bytes());
            }
            b"EVALSHA" => match self.kept.append(arguments) {
                Some(appended) => {
                    let (push, answer) = appended.answer();
                    if let Some((channel, payload)) = push {
                        self.publish(&channel, &arguments[4], &payload);
                    }
                    self.pipes.say(id, answer.as_bytes());
                }
                None => self.pipes.say(id, b"-NOSCRIPT No matching script.\r\n"),
            },
            b"SCRIPT" => {
                self.kept.load(&arguments[1]);
                self.pipes.say_bulk(id, DIGEST);
            }
            b"INFO" => self.pipes.say_bulk(id, self.kept.info().as_bytes()),
            b"HMGET" | b"XRANGE" | b"GET" | b"SET" => {
                let answer = self.kept.answer(words);
                self.pipes.say(id, &answer);
            }
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }

    fn set_time(&mut self, now: Tick) {
        self.kept.now = now;
    }
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
