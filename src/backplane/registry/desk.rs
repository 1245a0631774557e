//! Commands on their way, and what each was for.

use std::collections::{BTreeMap, VecDeque};

use crate::bus::PresenceNote;
use crate::time::Tick;

/// A command for Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its number: the answer comes under it.
    pub ticket: u64,
    /// What decides which server has its keys: their hash tag with its braces, or the key.
    pub place: Vec<u8>,
    /// The command and its arguments.
    pub words: Vec<Vec<u8>>,
}

/// What a command was for.
#[derive(Debug)]
pub enum Asked {
    /// A connection is told of.
    Touch {
        /// When that came up.
        noted: Tick,
        /// It has no user.
        is_lone: bool,
    },
    /// A connection that has gone, noted at this time.
    Forget(PresenceNote, Tick),
    Enrol,
    /// These are taken off this node's set.
    Withdraw(Vec<String>),
    See,
    Beat,
    Roll,
    State,
    /// The next step of removing what a dead node has left.
    Reap {
        run: u64,
    },
    /// One of its connections.
    ReapForget {
        run: u64,
    },
    /// Its name is taken off the roll.
    ReapEnd,
    /// This node's own hash is removed.
    Leave,
    /// A part of the answer to a question.
    Lookup {
        request: u64,
        part: usize,
    },
}

/// Numbers commands, and remembers them until they are answered.
#[derive(Debug, Default)]
pub struct Desk {
    ticket_next: u64,
    /// Each with the server that it was given to.
    asked: BTreeMap<u64, (Asked, u16)>,
    out: VecDeque<Command>,
}

impl Desk {
    pub fn ask(&mut self, asked: Asked, key: &str, words: Vec<Vec<u8>>) {
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        self.asked.insert(ticket, (asked, 0));
        let place = place(key).as_bytes().to_vec();
        self.out.push_back(Command {
            ticket,
            place,
            words,
        });
    }

    /// The next command that has not been given yet.
    pub fn poll(&mut self) -> Option<Command> {
        self.out.pop_front()
    }

    /// The command is given to this server.
    pub fn given(&mut self, ticket: u64, server: u16) {
        if let Some((_, to)) = self.asked.get_mut(&ticket) {
            *to = server;
        }
    }

    /// What the command was for that has come to its end, and which server had it.
    pub fn take(&mut self, ticket: u64) -> Option<(Asked, u16)> {
        self.asked.remove(&ticket)
    }

    /// Those that are on their way, the oldest first.
    pub fn asked(&self) -> impl Iterator<Item = &Asked> {
        self.asked.values().map(|(asked, _)| asked)
    }
}

/// All keys of one tag are at one place, in a cluster and with several servers alike.
fn place(key: &str) -> &str {
    let tag = key.find('{').zip(key.find('}'));
    tag.map_or(key, |(begins, ends)| &key[begins..=ends])
}

/// A command of plain words.
pub fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_tag_are_at_one_place() {
        for (key, expected) in [
            ("p:user:{ann}:conns", "{ann}"),
            ("p:conn:{ann}:n:1:2", "{ann}"),
            ("p:conn:{a{b}:n:1:2", "{a{b}"),
            ("p:nodes", "p:nodes"),
        ] {
            assert_eq!(place(key), expected);
        }
    }
}
