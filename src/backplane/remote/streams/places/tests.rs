//! Rooms that stand, miss something, and catch up: by example, and against a stream under random faults.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::super::Address;
use super::*;

const A: CoreId = CoreId(0);
const B: CoreId = CoreId(1);

fn options() -> super::super::Options {
    super::super::Options {
        streams_ttl_ms: 60_000,
        ..super::super::Options::new(Address::parse("redis://x").unwrap())
    }
}

fn room() -> RoomName {
    RoomName::from("r")
}

/// The server's side of one room: what the script does.
#[derive(Debug, Clone, Default)]
struct Stream {
    history: Vec<(u64, u64)>,
    server: u64,
    last: u64,
    entries: Vec<(u64, u64, u32)>,
    /// What was taken, by its name.
    taken: HashSet<u32>,
}

impl Stream {
    /// Appends a batch of `count` messages that are called by `name`, or knows it. Its offset.
    fn append(&mut self, name: u32, count: u64, server: u64, fresh: u64) -> Option<(Offset, u64)> {
        if !self.taken.insert(name) {
            return None;
        }
        let first = self.last + 1;
        if self.history.is_empty() || self.server != server {
            self.history.push((fresh, first));
            self.server = server;
            let forgotten = self.history.len().saturating_sub(8);
            self.history.drain(..forgotten);
        }
        self.last += count;
        self.entries.push((first, self.last, name));
        let epoch = self.history[self.history.len() - 1].0;
        Some((Offset { epoch, first }, self.last))
    }

    fn trim(&mut self, keep: usize) {
        let gone = self.entries.len().saturating_sub(keep);
        self.entries.drain(..gone);
    }

    fn answer(&self, turn: &Turn) -> (u64, Reply) {
        let text = |text: String| Reply::Text(Bytes::from(text));
        match turn {
            Turn::Known { ticket, .. } if self.history.is_empty() => {
                (*ticket, Reply::List(vec![Reply::Nil, Reply::Nil]))
            }
            Turn::Known { ticket, .. } => {
                let records = self.history.iter();
                let records = records.map(|(epoch, first)| format!("{epoch:016x}{first:016x}"));
                let fields = vec![text(records.collect()), text(self.last.to_string())];
                (*ticket, Reply::List(fields))
            }
            Turn::Entries {
                ticket,
                first,
                count,
                ..
            } => {
                let entries = self.entries.iter().filter(|(at, _, _)| at >= first);
                let entries = entries.take(*count).map(|(first, last, name)| {
                    let id = text(format!("{first}-{}", last - first + 1));
                    let fields = vec![text("m".into()), text(name.to_string())];
                    Reply::List(vec![id, Reply::List(fields)])
                });
                (*ticket, Reply::List(entries.collect()))
            }
        }
    }
}

/// Answers all turns that there are. What was told.
fn settle(places: &mut Places, stream: &Stream, now: Tick) -> Vec<News> {
    let mut told = Vec::new();
    while let Some(turn) = places.take_turn() {
        places.check_invariants();
        let (ticket, reply) = stream.answer(&turn);
        let answered = places.answered(ticket, Some(reply), now).unwrap();
        told.extend(answered.into_iter().flat_map(|(_, news)| news));
        places.check_invariants();
    }
    told
}

/// A room that is live at the end of `stream`.
fn live(stream: &Stream) -> Places {
    let mut places = Places::new(&options(), 1);
    places.stand(&room(), ShardSet::of(A), Tick(0));
    assert_eq!(
        settle(&mut places, stream, Tick(0)),
        [News::Live(ShardSet::of(A))]
    );
    places
}

fn names(news: &[News]) -> Vec<String> {
    let told = news.iter().map(|news| match news {
        News::Gone(Some(count)) => format!("-{count}"),
        News::Gone(None) => "-?".into(),
        News::Parcel(name) => String::from_utf8(name.to_vec()).unwrap(),
        News::Live(_) => "live".into(),
    });
    told.collect()
}

fn stream(count: u32) -> Stream {
    let mut stream = Stream::default();
    for name in 1..=count {
        stream.append(name, 1, 1, 100);
    }
    stream
}

#[test]
fn a_join_is_answered_once_its_place_is_known_and_what_comes_next_is_delivered() {
    let mut places = Places::new(&options(), 1);
    let mut stream = stream(3);
    assert!(
        !places.join(&room(), A, Tick(0)),
        "its channel does not stand"
    );
    places.stand(&room(), ShardSet::of(A), Tick(0));
    assert!(!places.join(&room(), B, Tick(0)));
    assert_eq!(places.waiting_count(), 1);
    // One is pushed that the answer has counted, and one that it has not.
    let (third, fourth) = (
        Offset {
            epoch: 100,
            first: 3,
        },
        Offset {
            epoch: 100,
            first: 4,
        },
    );
    assert_eq!(places.push("r", third, 3), Pushed::Ignored);
    assert_eq!(places.push("r", fourth, 4), Pushed::Ignored);
    let both = [A, B].into_iter().collect();
    assert_eq!(settle(&mut places, &stream, Tick(0)), [News::Live(both)]);
    stream.append(4, 1, 1, 100);
    let (fifth, last) = stream.append(5, 2, 1, 100).unwrap();
    assert_eq!(places.push("r", fifth, last), Pushed::Next);
    assert_eq!(
        places.push("r", fifth, last),
        Pushed::Ignored,
        "it was here"
    );
    assert!(places.join(&room(), B, Tick(0)));
    assert_eq!((places.behind_count(), places.catch_ups), (0, 0));
}

#[test]
fn a_hole_is_read_from_the_stream_and_so_is_what_comes_meanwhile() {
    let mut stream = stream(3);
    let mut places = live(&stream);
    stream.append(4, 1, 1, 100);
    let (offset, last) = stream.append(5, 1, 1, 100).unwrap();
    assert_eq!(
        places.push("r", offset, last),
        Pushed::Ignored,
        "the fourth is missing"
    );
    assert_eq!(places.behind_count(), 1);
    let (sixth, last) = stream.append(6, 1, 1, 100).unwrap();
    assert_eq!(places.push("r", sixth, last), Pushed::Ignored);
    assert_eq!(
        names(&settle(&mut places, &stream, Tick(0))),
        ["4", "5", "6", "live"]
    );
    let (seventh, last) = stream.append(7, 1, 1, 100).unwrap();
    assert_eq!(places.push("r", seventh, last), Pushed::Next);
}

#[test]
fn what_a_lost_link_missed_is_read_and_what_is_gone_is_counted_once() {
    let mut stream = stream(3);
    let mut places = live(&stream);
    places.lose(Tick(1), |_| true);
    for name in 4..=40 {
        stream.append(name, 2, 1, 100);
    }
    stream.trim(20);
    assert_eq!(places.take_turn(), None, "its channel does not stand");
    places.stand(&room(), ShardSet::EMPTY, Tick(2));
    let told = names(&settle(&mut places, &stream, Tick(2)));
    assert_eq!((told[0].as_str(), told[1].as_str()), ("-34", "21"));
    assert_eq!((told.len(), places.catch_ups), (22, 1));
    assert_eq!(places.untold("r", 30), 0, "told with the rest");
    assert_eq!(places.untold("r", 30), 26);
    places.lose(Tick(3), |_| false);
    places.check_invariants();
    assert_eq!(places.behind_count(), 0, "forgotten");
}

#[test]
fn another_server_that_has_less_is_read_from_where_they_part() {
    let mut stream = stream(10);
    let mut places = live(&stream);
    places.lose(Tick(1), |_| true);
    stream.last = 7; // a replica that was three behind
    stream.entries.truncate(7);
    stream.taken = (1..=7).collect();
    places.stand(&room(), ShardSet::EMPTY, Tick(2));
    assert_eq!(
        names(&settle(&mut places, &stream, Tick(2))),
        ["live"],
        "nothing is new there"
    );
    for name in [8, 9, 10, 11] {
        let (offset, last) = stream.append(name, 1, 2, 200).unwrap();
        assert_eq!(places.push("r", offset, last), Pushed::Ignored);
    }
    let told = names(&settle(&mut places, &stream, Tick(2)));
    assert_eq!(
        told,
        ["8", "9", "10", "11", "live"],
        "who has them drops them"
    );
}

#[test]
fn an_epoch_that_the_next_server_has_never_heard_of_is_read_from_where_it_began() {
    let mut stream = stream(10);
    let mut places = live(&stream);
    let replica = stream.clone();
    let (offset, last) = stream.append(11, 1, 2, 200).unwrap();
    places.push("r", offset, last);
    assert_eq!(
        names(&settle(&mut places, &stream, Tick(0))),
        ["11", "live"]
    );
    places.lose(Tick(1), |_| true);
    stream = replica;
    stream.append(12, 1, 3, 300);
    stream.append(11, 1, 3, 300);
    stream.trim(5);
    places.stand(&room(), ShardSet::EMPTY, Tick(2));
    assert_eq!(
        names(&settle(&mut places, &stream, Tick(2))),
        ["12", "11", "live"]
    );
}

#[test]
fn a_stream_that_is_gone_is_told_unless_it_may_have_rested() {
    let rested = |lost: bool, ms: u64, before: u32, after: u32| {
        let mut places = live(&stream(before));
        places.lose(Tick::from_ms(1), |_| true);
        if lost {
            places.data_lost(Tick::from_ms(2));
        }
        let now = Tick::from_ms(ms);
        places.stand(&room(), ShardSet::EMPTY, now);
        let mut anew = Stream::default();
        for name in 1..=after {
            anew.append(100 + name, 1, 1, 300);
        }
        names(&settle(&mut places, &anew, now))
    };
    assert_eq!(
        rested(false, 3_000, 5, 0),
        ["live"],
        "it rested, and so nothing came"
    );
    assert_eq!(rested(true, 3_000, 5, 0), ["-?", "live"]);
    assert_eq!(rested(false, 60_001, 5, 0), ["-?", "live"]);
    assert_eq!(rested(false, 3_000, 5, 2), ["101", "102", "live"]);
    assert_eq!(rested(true, 3_000, 5, 2), ["-?", "101", "102", "live"]);
    assert_eq!(
        rested(false, 3_000, 0, 2),
        ["101", "102", "live"],
        "it began since"
    );
    assert_eq!(rested(true, 3_000, 0, 0), ["-?", "live"]);
}

#[test]
fn a_stream_that_begins_anew_under_live_rooms_goes_on() {
    let mut places = live(&stream(5));
    let mut anew = Stream::default();
    let (offset, last) = anew.append(6, 1, 1, 300).unwrap();
    assert_eq!(places.push("r", offset, last), Pushed::Next);
    let mut again = Stream::default();
    again.append(7, 1, 1, 400);
    let (offset, last) = again.append(8, 1, 1, 400).unwrap();
    assert_eq!(
        places.push("r", offset, last),
        Pushed::Ignored,
        "its first is missing"
    );
    assert_eq!(
        names(&settle(&mut places, &again, Tick(0))),
        ["7", "8", "live"]
    );
}

#[test]
fn a_push_of_an_epoch_that_the_answer_does_not_know_is_looked_for() {
    let mut stream = stream(3);
    let mut places = live(&stream);
    places.lose(Tick(1), |_| true);
    places.stand(&room(), ShardSet::EMPTY, Tick(2));
    let turn = places.take_turn().unwrap();
    let (ticket, old) = stream.answer(&turn);
    let (offset, last) = stream.append(4, 1, 2, 200).unwrap();
    assert_eq!(places.push("r", offset, last), Pushed::Ignored);
    let (_, told) = places
        .answered(ticket, Some(old), Tick(2))
        .unwrap()
        .unwrap();
    assert_eq!(told, []);
    assert_eq!(names(&settle(&mut places, &stream, Tick(2))), ["4", "live"]);
}

#[test]
fn a_lost_commands_link_gives_its_rooms_another_turn_and_old_answers_count_for_nothing() {
    let mut stream = stream(300);
    let mut places = Places::new(&options(), 1);
    places.stand(&room(), ShardSet::of(A), Tick(0));
    let Some(Turn::Known { ticket, .. }) = places.take_turn() else {
        panic!("it is asked for");
    };
    assert_eq!(places.answered(ticket, None, Tick(0)), Ok(None));
    let refused = Reply::Error("LOADING".into());
    let Some(Turn::Known { ticket, .. }) = places.take_turn() else {
        panic!("it is asked for again");
    };
    assert!(places.answered(ticket, Some(refused), Tick(0)).is_err());
    assert_eq!(settle(&mut places, &stream, Tick(0)).len(), 1, "and again");
    places.lose(Tick(0), |_| true);
    for name in 301..=400 {
        stream.append(name, 1, 1, 100);
    }
    places.stand(&room(), ShardSet::EMPTY, Tick(0));
    let old = places.take_turn().unwrap();
    let (ticket, reply) = stream.answer(&old);
    places.lose(Tick(0), |_| true);
    assert_eq!(places.answered(ticket, Some(reply), Tick(0)), Ok(None));
    places.stand(&room(), ShardSet::EMPTY, Tick(0));
    assert_eq!(names(&settle(&mut places, &stream, Tick(0))).len(), 101);
}

#[test]
fn few_rooms_are_read_at_a_time_and_joins_wait_for_so_long() {
    let mut places = Places::new(&options(), 1);
    for index in 0..1_000 {
        let room = RoomName::from(format!("r{index}"));
        places.stand(&room, ShardSet::of(A), Tick(0));
    }
    assert_eq!(
        std::iter::from_fn(|| places.take_turn()).count(),
        READING_COUNT_MAX
    );
    assert!(places.leave("r0", A) && !places.leave("r0", A));
    assert_eq!(places.take_overdue(Tick::from_ms(9_999)), None);
    let due = Tick::from_ms(10_000);
    assert_eq!(places.deadline(), Some(due));
    let overdue = std::iter::from_fn(|| places.take_overdue(due));
    assert_eq!(overdue.count(), 999);
    for index in 0..1_000 {
        places.forget(&format!("r{index}"));
        places.check_invariants();
    }
    assert_eq!((places.behind_count(), places.waiting_count()), (0, 0));
    assert_eq!(places.take_turn(), None);
}

/// What happens to a room, its stream and the links.
#[derive(Debug, Clone)]
enum Happening {
    /// A batch; whether its push comes.
    Publish {
        count: u64,
        comes: bool,
    },
    /// Some turns are answered.
    Answer(usize),
    /// The subscription link is lost; and stands again.
    Cut,
    Stand,
    /// Another server, with so much of what the one before had; it has what publishers send again.
    Server {
        lag: usize,
    },
    /// All is lost, and nobody sends it again.
    Lose,
    Trim(usize),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        8 => (1..4u64, prop::bool::weighted(0.8))
            .prop_map(|(count, comes)| Happening::Publish { count, comes }),
        4 => (1..4usize).prop_map(Happening::Answer),
        1 => Just(Happening::Cut),
        2 => Just(Happening::Stand),
        1 => (0..4usize).prop_map(|lag| Happening::Server { lag }),
        1 => Just(Happening::Lose),
        1 => (1..30usize).prop_map(Happening::Trim),
    ];
    prop::collection::vec(one, 1..150)
}

/// The world of the property: one publisher whose batches are called by their numbers.
struct World {
    places: Places,
    stream: Stream,
    server: u64,
    fresh: u64,
    now: Tick,
    stands: bool,
    published: Vec<u64>,
    /// Numbers of batches in the order in which they were first delivered.
    seen: Vec<u32>,
    told: u64,
    unknown: bool,
    /// Nothing was ever lost or trimmed.
    pristine: bool,
}

impl World {
    fn new() -> Self {
        let stream = Stream::default();
        Self {
            places: live(&stream),
            stream,
            server: 1,
            fresh: 1,
            now: Tick(0),
            stands: true,
            published: Vec::new(),
            seen: Vec::new(),
            told: 0,
            unknown: false,
            pristine: true,
        }
    }

    fn deliver(&mut self, name: u32) {
        // As `Arrivals` does: what is not newer was here.
        if self.seen.last().is_none_or(|newest| name > *newest) {
            self.seen.push(name);
        }
    }

    fn publish(&mut self, name: u32, count: u64, comes: bool) {
        self.fresh += 1;
        let appended = self.stream.append(name, count, self.server, self.fresh);
        if let Some((offset, last)) = appended
            && comes
            && self.stands
            && self.places.push("r", offset, last) == Pushed::Next
        {
            self.deliver(name);
        }
    }

    fn cut(&mut self) {
        self.stands = false;
        self.places.lose(self.now, |_| true);
    }

    fn answer(&mut self) -> bool {
        let Some(turn) = self.places.take_turn() else {
            return false;
        };
        let (ticket, reply) = self.stream.answer(&turn);
        let answered = self.places.answered(ticket, Some(reply), self.now).unwrap();
        for news in answered.into_iter().flat_map(|(_, news)| news) {
            match news {
                News::Gone(Some(count)) => self.told += count,
                News::Gone(None) => self.unknown = true,
                News::Parcel(name) => {
                    let name = std::str::from_utf8(&name).unwrap().parse().unwrap();
                    self.deliver(name);
                }
                News::Live(_) => {}
            }
        }
        true
    }

    fn happens(&mut self, happening: &Happening) {
        self.now = Tick(self.now.0 + 1_000);
        match happening {
            Happening::Publish { count, comes } => {
                self.published.push(*count);
                let name = self.published.len() as u32;
                self.publish(name, *count, *comes);
            }
            Happening::Answer(count) => {
                for _ in 0..*count {
                    self.answer();
                }
            }
            Happening::Cut => self.cut(),
            Happening::Stand if !self.stands => {
                self.stands = true;
                self.places.stand(&room(), ShardSet::EMPTY, self.now);
            }
            Happening::Stand => {}
            Happening::Server { lag } => {
                self.cut();
                self.server += 1;
                let keep = self.stream.entries.len().saturating_sub(*lag);
                let lost = self.stream.entries.split_off(keep);
                if let Some((first, _, _)) = lost.first() {
                    self.stream.last = first - 1;
                }
                for (_, _, name) in &lost {
                    self.stream.taken.remove(name);
                }
                for (first, last, name) in lost {
                    self.publish(name, last - first + 1, false);
                }
            }
            Happening::Lose => {
                self.cut();
                self.server += 1;
                self.stream = Stream::default();
                self.places.data_lost(self.now);
                self.pristine = false;
            }
            Happening::Trim(keep) => {
                self.stream.trim(*keep);
                self.pristine = false;
            }
        }
        self.places.check_invariants();
    }

    fn check(&mut self) {
        self.happens(&Happening::Stand);
        // One that comes shows what was lost before it.
        while self.answer() {}
        self.happens(&Happening::Publish {
            count: 1,
            comes: true,
        });
        while self.answer() {}
        assert_eq!(self.places.behind_count(), 0);
        assert!(
            self.seen.is_sorted_by(|one, next| one < next),
            "in order, each once"
        );
        assert_eq!(
            self.seen.last(),
            Some(&(self.published.len() as u32)),
            "up to the newest"
        );
        let all: u64 = self.published.iter().sum();
        let seen = self
            .seen
            .iter()
            .map(|name| self.published[*name as usize - 1]);
        let missing = all - seen.sum::<u64>();
        if self.pristine {
            assert_eq!((missing, self.told, self.unknown), (0, 0, false));
        } else if !self.unknown {
            assert!(
                missing <= self.told,
                "{missing} missing, {} told",
                self.told
            );
        }
    }
}

proptest! {
    #[test]
    fn nothing_comes_twice_or_out_of_order_and_nothing_is_missing_in_silence(all in happenings()) {
        let mut world = World::new();
        for happening in &all {
            world.happens(happening);
        }
        world.check();
    }
}
