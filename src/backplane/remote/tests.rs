//! A server that answers as it is told: what it refuses, and what becomes of that.

use std::time::Duration;

use super::*;
use crate::bus::{BatchMessage, MessageKind};

const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.";
const WRONGTYPE: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value";

/// The server, and the node's side of it.
struct World {
    fleet: Fleet,
    now: Tick,
    subscribed: Vec<Vec<u8>>,
    /// What commands are answered with that are not what they should be.
    answers: Vec<(&'static str, &'static str)>,
    commands: Vec<String>,
    connects: Vec<(Role, Tick)>,
    /// It takes connections and commands, and answers nothing.
    silent: bool,
    fatal: Option<String>,
    effects: Vec<Effect>,
}

fn text(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

/// The words of all commands.
fn commands(mut bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    let number = |bytes: &mut &[u8]| {
        let end = bytes.iter().position(|byte| *byte == b'\r').unwrap();
        let digits = std::str::from_utf8(&bytes[1..end]).unwrap();
        *bytes = &bytes[end + 2..];
        digits.parse::<usize>().unwrap()
    };
    while !bytes.is_empty() {
        let count = number(&mut bytes);
        let mut words = Vec::new();
        for _ in 0..count {
            let length = number(&mut bytes);
            words.push(bytes[..length].to_vec());
            bytes = &bytes[length + 2..];
        }
        all.push(words);
    }
    all
}

impl World {
    fn new(mode: Mode, change: impl Fn(&mut Options)) -> Self {
        let mut options = Options::new(Address::parse("redis://x").unwrap());
        options.mode = mode;
        change(&mut options);
        Self {
            fleet: Fleet::new(options, 7, Tick(0)),
            now: Tick(0),
            subscribed: Vec::new(),
            answers: Vec::new(),
            commands: Vec::new(),
            connects: Vec::new(),
            silent: false,
            fatal: None,
            effects: Vec::new(),
        }
    }

    /// Goes on for so long, a millisecond a step.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.fleet.handle_deadline(self.now);
            while self.turn() {}
            self.fleet.check_invariants();
            while let Some(effect) = self.fleet.poll_effect() {
                self.effects.push(effect);
            }
            self.now = self.now.after(Duration::from_millis(1));
        }
    }

    fn turn(&mut self) -> bool {
        let mut busy = false;
        while let Some(order) = self.fleet.poll_order() {
            busy = true;
            match order {
                LinkOrder::Connect { link, .. } => {
                    self.connects.push((link.role, self.now));
                    self.fleet.connected(link, self.now);
                }
                LinkOrder::Close(link) if link.role == Role::Subscription => {
                    self.subscribed.clear();
                }
                LinkOrder::Close(_) => {}
                LinkOrder::Fatal(reason) => self.fatal = Some(reason),
            }
        }
        for role in Role::ALL {
            let link = LinkId { server: 0, role };
            let output = self.fleet.output(link, self.now).to_vec();
            if output.is_empty() {
                continue;
            }
            busy = true;
            self.fleet.written(link, output.len(), self.now);
            for words in commands(&output) {
                self.answer(link, &words);
            }
        }
        busy
    }

    fn answer(&mut self, link: LinkId, words: &[Vec<u8>]) {
        let command = String::from_utf8_lossy(&words[0]).into_owned();
        self.commands.push(command.clone());
        if self.silent {
            return;
        }
        let told = self.answers.iter().find(|(name, _)| *name == command);
        let told = told.map(|(_, told)| format!("{told}\r\n").into_bytes());
        let push = |kind: &str, channel: &[u8], last: Vec<u8>| {
            let channel = text(std::str::from_utf8(channel).unwrap());
            [b">3\r\n".to_vec(), text(kind), channel, last].concat()
        };
        let answer = told.unwrap_or_else(|| match command.as_str() {
            "HELLO" => b"%1\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n".to_vec(),
            "SCRIPT" => text("digest"),
            "INFO" => text("run_id:one\r\n"),
            "GET" => b"_\r\n".to_vec(),
            "HMGET" => b"*2\r\n_\r\n_\r\n".to_vec(),
            "XRANGE" => b"*0\r\n".to_vec(),
            "SUBSCRIBE" => {
                self.subscribed.extend_from_slice(&words[1..]);
                let stands = words[1..].iter();
                let stands = stands.flat_map(|name| push("subscribe", name, b":1\r\n".to_vec()));
                stands.collect()
            }
            "PUBLISH" if self.subscribed.contains(&words[1]) => {
                let mut payload = format!("${}\r\n", words[2].len()).into_bytes();
                payload.extend_from_slice(&words[2]);
                payload.extend_from_slice(b"\r\n");
                let role = Role::Subscription;
                let pushed = push("message", &words[1], payload);
                self.fleet
                    .received(LinkId { server: 0, role }, &pushed, self.now);
                b":1\r\n".to_vec()
            }
            "PUBLISH" | "EVALSHA" => b":1\r\n".to_vec(),
            _ => b"+OK\r\n".to_vec(),
        });
        self.fleet.received(link, &answer, self.now);
    }

    fn publish(&mut self, room: &str) {
        let message = BatchMessage {
            end: 1,
            header_bytes: 0,
            kind: MessageKind::Text,
            sender: None,
        };
        let batch = Arc::new(Batch {
            bytes: vec![b'x'],
            messages: vec![message],
            published: self.now,
        });
        let published = self
            .fleet
            .publish(&room.into(), &batch, Some(CoreId(0)), self.now);
        assert_eq!(published, Published::Taken);
    }

    fn troubles(&self) -> Vec<LinkTrouble> {
        self.fleet.troubles(self.now)
    }

    fn reasons(&self) -> Vec<String> {
        let troubles = self.troubles().into_iter();
        troubles.map(|trouble| trouble.reason).collect()
    }

    fn refused(&self) -> Vec<bool> {
        let effects = self.effects.iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Refused { local, .. } => Some(*local),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn where_sharded_is_forbidden_a_node_that_is_to_fail_at_the_start_falls_back_too() {
    let mut world = World::new(Mode::Sharded, |options| options.at_start = AtStart::Fail);
    world.answers = vec![
        ("SSUBSCRIBE", "-ERR unknown command 'SSUBSCRIBE'"),
        ("SPUBLISH", "-ERR unknown command 'SPUBLISH'"),
    ];
    world.run(1_000);
    assert_eq!((&world.fatal, world.reasons()), (&None, Vec::new()));
    assert_eq!(world.fleet.snapshot(world.now).mode, FALLEN_BACK);
    world.fleet.interest(CoreId(0), &"lobby".into(), world.now);
    world.run(1);
    let channel = b"throng:{268}:room:lobby".to_vec();
    assert!(world.subscribed.contains(&channel), "the sharded channels");
    let mut world = World::new(Mode::Sharded, |options| options.at_start = AtStart::Fail);
    world.answers = vec![("SSUBSCRIBE", "-NOPERM No permissions to access a channel")];
    world.run(10);
    assert!(world.fatal.is_some(), "no other mode mends that");
}

#[test]
fn what_is_refused_again_and_again_is_tried_ever_less_often_and_named_all_the_while() {
    for (mode, command) in [(Mode::Streams, "EVALSHA"), (Mode::Pubsub, "PUBLISH")] {
        let mut world = World::new(mode, |_| {});
        world.run(100);
        assert_eq!(world.reasons(), Vec::<String>::new(), "{mode:?}");
        world.answers = vec![(command, OOM)];
        world.publish("r");
        world.run(1);
        let before = world.connects.len();
        for _ in 0..80 {
            world.run(100);
            let reasons = world.reasons();
            let told = |reason: &String| reason.contains("maxmemory");
            assert!(reasons.iter().any(told), "{mode:?}: {reasons:?}");
        }
        let attempts = world.connects.len() - before;
        assert!((3..16).contains(&attempts), "{mode:?}: {attempts} in 8 s");
        world.answers.clear();
        world.run(5_100);
        assert_eq!(world.reasons(), Vec::<String>::new(), "{mode:?}");
    }
}

#[test]
fn a_refusal_is_forgotten_once_nothing_waits_that_it_was_about() {
    let mut world = World::new(Mode::Streams, |_| {});
    world.run(100);
    world.answers = vec![("EVALSHA", OOM)];
    world.publish("r");
    world.run(20_000);
    assert_eq!(world.refused(), [true], "it was too old");
    assert_eq!(world.reasons(), Vec::<String>::new());
}

#[test]
fn a_clock_that_cannot_be_written_is_tried_ever_less_often() {
    let mut world = World::new(Mode::Streams, |_| {});
    world.answers = vec![("SET", OOM)];
    world.run(8_000);
    let of = |role: Role| {
        let connects = world.connects.iter();
        connects.filter(|(other, _)| *other == role).count()
    };
    let attempts = of(Role::Commands);
    assert!((3..16).contains(&attempts), "{attempts} in 8 s");
    assert_eq!(of(Role::Publishing), 1);
    let reasons = world.reasons();
    assert!(
        reasons.iter().any(|reason| reason.contains("maxmemory")),
        "{reasons:?}"
    );
    world.answers.clear();
    world.run(5_100);
    assert_eq!(world.reasons(), Vec::<String>::new());
}

#[test]
fn a_key_that_holds_something_else_is_a_matter_of_its_room_alone() {
    let mut world = World::new(Mode::Streams, |_| {});
    world.run(100);
    let connects = world.connects.len();
    world.answers = vec![("EVALSHA", WRONGTYPE), ("HMGET", WRONGTYPE)];
    world.fleet.interest(CoreId(0), &"r".into(), world.now);
    world.run(10);
    let joined = |effect: &Effect| matches!(effect, Effect::Joined { .. });
    assert!(world.effects.iter().any(joined), "{:?}", world.effects);
    world.publish("r");
    world.run(10);
    assert_eq!(world.refused(), [false], "and members here have not got it");
    world.answers.clear();
    world.publish("s");
    world.run(10);
    assert_eq!(world.fleet.unacknowledged(), 0);
    assert_eq!(world.connects.len(), connects, "all links stand");
}

#[test]
fn what_is_lost_at_a_stop_is_counted() {
    let mut world = World::new(Mode::Pubsub, |_| {});
    world.run(100);
    world.answers = vec![("PUBLISH", OOM)];
    world.publish("r");
    world.publish("s");
    world.run(1);
    world.fleet.close(world.now);
    world.run(1_001);
    assert!(world.fleet.is_closed(world.now));
    assert_eq!(world.fleet.unacknowledged(), 2);
}

#[test]
fn a_server_that_falls_silent_is_found_on_both_links_whatever_was_on_its_way() {
    // The publishing link is found together with the probe; before one goes out; while one is on its way.
    for (published_ms, found_ms) in [(None, 8_000), (Some(0), 8_000), (Some(3_000), 9_001)] {
        let mut world = World::new(Mode::Pubsub, |_| {});
        world.run(100);
        world.silent = true;
        if let Some(ms) = published_ms {
            world.run(ms);
            world.publish("r");
        }
        world.run(found_ms - published_ms.unwrap_or_default());
        let found: Vec<&str> = world.troubles().iter().map(|one| one.link).collect();
        assert_eq!(found, ["publishing", "subscription"], "{published_ms:?}");
        world.silent = false;
        world.run(8_100);
        assert_eq!(world.reasons(), Vec::<String>::new(), "{published_ms:?}");
    }
}
