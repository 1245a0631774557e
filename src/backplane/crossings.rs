//! Shards by the book around a backplane, and every way their envelopes can cross each other.
//!
//! What is checked: all members of a room see the same messages in the same order, without a hole between two that
//! both see; nobody sees one twice; who was told that they are in before a message was published sees it; one shard at
//! most orders a room, and then nobody else is in; and when everybody has read, nothing waits any more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::bus::{Batch, CoreId, Downstream, RoomName, Upstream};
use crate::time::Tick;

const ROOMS: [&str; 2] = ["one", "two"];
/// Small, so that lanes are full most of the time.
const LANE_ENVELOPES: usize = 3;
const LANE_BYTES: usize = 9;

/// One stay in a room, from `Joined` to `Disinterest`.
#[derive(Debug, Default)]
struct Stay {
    seen: Vec<u32>,
    /// Messages published before `Joined` was read.
    published_before: u32,
    /// Messages published before it ended; `None` while it lasts.
    published_until: Option<u32>,
}

/// A room as a shard has it.
#[derive(Debug, Default)]
struct ModelRoom {
    /// `Joined` that are still to come, the wanted one last.
    unanswered: u32,
    interested: bool,
    /// Leave as soon as the answer has come.
    leave_when_in: bool,
    stay: Option<Stay>,
    leased: bool,
    past: Vec<Stay>,
}

#[derive(Default)]
struct Lane {
    envelopes: VecDeque<(Downstream, u32)>,
    bytes: usize,
}

struct World {
    backplane: Backplane,
    shards: Vec<BTreeMap<&'static str, ModelRoom>>,
    up: Vec<VecDeque<Upstream>>,
    down: Vec<Lane>,
    published: u32,
    /// By message: its room and who published it (`None`: the admin API).
    messages: Vec<&'static str>,
}

struct Wires<'a> {
    up: &'a mut [VecDeque<Upstream>],
    down: &'a mut [Lane],
    take_max: usize,
}

impl LaneRoom for Wires<'_> {
    fn fits(&self, shard: CoreId, bytes: u32) -> bool {
        let lane = &self.down[usize::from(shard.0)];
        lane.envelopes.len() < LANE_ENVELOPES
            && (lane.bytes + bytes as usize <= LANE_BYTES || lane.bytes == 0)
    }
}

impl Ports for Wires<'_> {
    fn take(&mut self, from: CoreId) -> Option<Upstream> {
        self.take_max = self.take_max.checked_sub(1)?;
        self.up[usize::from(from.0)].pop_front()
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send {
                to,
                envelope,
                bytes,
            } => {
                assert!(self.fits(to, bytes), "sent into a full lane: {envelope:?}");
                let lane = &mut self.down[usize::from(to.0)];
                lane.envelopes.push_back((envelope, bytes));
                lane.bytes += bytes as usize;
            }
            Action::SendControl { to, envelope } => {
                assert!(matches!(envelope, Downstream::Probe { .. }));
                self.down[usize::from(to.0)]
                    .envelopes
                    .push_back((envelope, 0));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Join {
        shard: usize,
        room: usize,
    },
    Leave {
        shard: usize,
        room: usize,
        patient: bool,
    },
    Publish {
        shard: usize,
        room: usize,
        bytes: u8,
    },
    AdminPublish {
        room: usize,
    },
    Read {
        shard: usize,
        count: usize,
    },
    Turn {
        first: usize,
        take_max: usize,
    },
}

impl World {
    fn new(shard_count: usize, leases: bool) -> Self {
        let options = Options {
            leases,
            ..Options::new(u8::try_from(shard_count).unwrap(), 2)
        };
        Self {
            backplane: Backplane::new(options, 7, Tick(0)),
            shards: (0..shard_count)
                .map(|_| ROOMS.map(|room| (room, ModelRoom::default())).into())
                .collect(),
            up: (0..shard_count).map(|_| VecDeque::new()).collect(),
            down: (0..shard_count).map(|_| Lane::default()).collect(),
            published: 0,
            messages: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let shard_count = self.shards.len();
        match *step {
            Step::Join { shard, room } => self.join(shard % shard_count, ROOMS[room]),
            Step::Leave {
                shard,
                room,
                patient,
            } => self.leave(shard % shard_count, ROOMS[room], patient),
            Step::Publish { shard, room, bytes } => {
                self.publish(shard % shard_count, ROOMS[room], bytes)
            }
            Step::AdminPublish { room } => {
                let batch = self.message(ROOMS[room], 1);
                let wires = Wires {
                    up: &mut self.up,
                    down: &mut self.down,
                    take_max: 0,
                };
                if self
                    .backplane
                    .publish(&ROOMS[room].into(), &batch, &wires, Tick(0))
                    .is_err()
                {
                    // Refused: as if it had never been.
                    self.published -= 1;
                    self.messages.pop();
                }
                self.perform();
            }
            Step::Read { shard, count } => {
                for _ in 0..count {
                    self.read(shard % shard_count);
                }
            }
            Step::Turn { first, take_max } => {
                let mut wires = Wires {
                    up: &mut self.up,
                    down: &mut self.down,
                    take_max,
                };
                turn(
                    &mut self.backplane,
                    &mut wires,
                    first,
                    Tick(u64::from(self.published)),
                );
            }
        }
        self.backplane.check_invariants();
        self.check_leases();
    }

    fn perform(&mut self) {
        let mut wires = Wires {
            up: &mut self.up,
            down: &mut self.down,
            take_max: 0,
        };
        while let Some(action) = self.backplane.poll_action() {
            wires.perform(action);
        }
    }

    /// The message's number stands in its first four bytes, in as many bytes as it claims in the lane.
    fn message(&mut self, room: &'static str, bytes: u8) -> Arc<Batch> {
        let number = self.published;
        self.published += 1;
        self.messages.push(room);
        let mut frame = vec![0; usize::from(bytes).max(4)];
        frame[..4].copy_from_slice(&number.to_be_bytes());
        Arc::new(Batch {
            bytes: frame,
            messages: Vec::new(),
            published: Tick(0),
        })
    }

    fn join(&mut self, shard: usize, name: &'static str) {
        let room = self.shards[shard].get_mut(name).unwrap();
        room.leave_when_in = false;
        if !room.interested {
            room.interested = true;
            room.unanswered += 1;
            self.up[shard].push_back(Upstream::Interest { room: name.into() });
        }
    }

    fn leave(&mut self, shard: usize, name: &'static str, patient: bool) {
        let published = self.published;
        let room = self.shards[shard].get_mut(name).unwrap();
        if !room.interested {
            return;
        }
        if room.stay.is_none() && patient {
            room.leave_when_in = true;
            return;
        }
        room.interested = false;
        room.leave_when_in = false;
        room.leased = false;
        if let Some(mut stay) = room.stay.take() {
            stay.published_until = Some(published);
            room.past.push(stay);
        }
        self.up[shard].push_back(Upstream::Disinterest { room: name.into() });
    }

    fn publish(&mut self, shard: usize, name: &'static str, bytes: u8) {
        if self.shards[shard][name].stay.is_none() {
            return;
        }
        let batch = self.message(name, bytes);
        self.order(shard, name.into(), batch);
    }

    /// What a shard does with a publish of a member's: delivers it itself, or sends it up.
    fn order(&mut self, shard: usize, name: RoomName, batch: Arc<Batch>) {
        let room = self.shards[shard].get_mut(&*name).unwrap();
        match &mut room.stay {
            Some(stay) if room.leased => stay.seen.push(number(&batch)),
            _ => self.up[shard].push_back(Upstream::Publish { room: name, batch }),
        }
    }

    fn read(&mut self, shard: usize) {
        let Some((envelope, bytes)) = self.down[shard].envelopes.pop_front() else {
            return;
        };
        self.down[shard].bytes -= bytes as usize;
        let published = self.published;
        let rooms = &mut self.shards[shard];
        match envelope {
            Downstream::Joined { room: name, leased } => {
                let (key, room) = rooms.iter_mut().find(|(key, _)| ***key == *name).unwrap();
                let key = *key;
                room.unanswered -= 1;
                if room.unanswered > 0 || !room.interested {
                    return;
                }
                assert!(room.stay.is_none(), "told twice");
                room.stay = Some(Stay {
                    published_before: published,
                    ..Stay::default()
                });
                room.leased = leased;
                if room.leave_when_in {
                    self.leave(shard, key, false);
                }
            }
            Downstream::LeaseRevoke { room: name } => {
                let room = rooms.get_mut(&*name).unwrap();
                if room.leased {
                    room.leased = false;
                    self.up[shard].push_back(Upstream::LeaseReturned { room: name });
                }
            }
            Downstream::Delivery { room: name, batch } => {
                let room = rooms.get_mut(&*name).unwrap();
                if let Some(stay) = &mut room.stay {
                    assert!(!room.leased, "a delivery into a room that the shard orders");
                    stay.seen.push(number(&batch));
                }
            }
            Downstream::Publish { room: name, batch } => {
                if rooms[&*name].leased {
                    self.order(shard, name, batch);
                }
            }
            Downstream::Probe { sequence } => {
                self.up[shard].push_back(Upstream::ProbeReply { sequence })
            }
            other => panic!("{other:?}"),
        }
    }

    fn check_leases(&self) {
        for name in ROOMS {
            let holders = self
                .shards
                .iter()
                .filter(|rooms| rooms[name].leased)
                .count();
            let inside = self
                .shards
                .iter()
                .filter(|rooms| rooms[name].stay.is_some())
                .count();
            assert!(
                holders == 0 || inside == 1,
                "{name}: {holders} leases, {inside} shards in"
            );
        }
    }

    /// Everybody reads until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for shard in 0..self.shards.len() {
                self.step(&Step::Read {
                    shard,
                    count: LANE_ENVELOPES + 1,
                });
            }
            self.step(&Step::Turn {
                first: 0,
                take_max: usize::MAX,
            });
            let quiet = self.up.iter().all(VecDeque::is_empty)
                && self.down.iter().all(|lane| lane.envelopes.is_empty())
                && !self.backplane.has_stalled();
            if quiet {
                return;
            }
        }
        panic!("something waits for ever");
    }

    fn check_deliveries(&self) {
        for name in ROOMS {
            let rooms = self.shards.iter().map(|rooms| &rooms[name]);
            for room in rooms.clone() {
                assert_eq!(
                    room.stay.is_some(),
                    room.interested,
                    "{name}: an interest without an answer"
                );
                assert_eq!(room.unanswered, 0);
            }
            let stays: Vec<&Stay> = rooms
                .flat_map(|room| room.past.iter().chain(&room.stay))
                .collect();
            for stay in &stays {
                let mut sorted = stay.seen.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(
                    sorted.len(),
                    stay.seen.len(),
                    "{name}: seen twice in {:?}",
                    stay.seen
                );
                assert!(
                    sorted
                        .iter()
                        .all(|number| self.messages[*number as usize] == name)
                );
                // Who is still in has read everything that was published since.
                if stay.published_until.is_none() {
                    for number in stay.published_before..self.published {
                        let owed = self.messages[number as usize] == name;
                        assert!(
                            !owed || stay.seen.contains(&number),
                            "{name}: {number} is missing in {:?}",
                            stay.seen
                        );
                    }
                }
            }
            for (index, one) in stays.iter().enumerate() {
                for other in &stays[index + 1..] {
                    assert_eq!(
                        shared(&one.seen, &other.seen),
                        shared(&other.seen, &one.seen),
                        "{name}: order"
                    );
                }
            }
        }
    }
}

fn number(batch: &Batch) -> u32 {
    u32::from_be_bytes(batch.bytes[..4].try_into().unwrap())
}

/// The part of `seen` from the first to the last message that `other` has seen too.
fn shared<'a>(seen: &'a [u32], other: &[u32]) -> &'a [u32] {
    let common = |number: &u32| other.contains(number);
    match (seen.iter().position(common), seen.iter().rposition(common)) {
        (Some(first), Some(last)) => &seen[first..=last],
        _ => &[],
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (shard, room) = (0..3usize, 0..2usize);
    let step = prop_oneof![
        3 => (shard.clone(), room.clone()).prop_map(|(shard, room)| Step::Join { shard, room }),
        2 => (shard.clone(), room.clone(), any::<bool>())
            .prop_map(|(shard, room, patient)| Step::Leave { shard, room, patient }),
        5 => (shard.clone(), room.clone(), 4u8..14)
            .prop_map(|(shard, room, bytes)| Step::Publish { shard, room, bytes }),
        1 => room.prop_map(|room| Step::AdminPublish { room }),
        6 => (shard.clone(), 1..4usize).prop_map(|(shard, count)| Step::Read { shard, count }),
        5 => (shard, 1..5usize).prop_map(|(first, take_max)| Step::Turn { first, take_max }),
    ];
    prop::collection::vec(step, 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn whatever_crosses_members_see_one_order_without_holes(
        shard_count in 2..4usize,
        leases in prop::bool::weighted(0.8),
        steps in steps(),
    ) {
        let mut world = World::new(shard_count, leases);
        for step in &steps {
            world.step(step);
        }
        world.settle();
        world.check_deliveries();
        // Everybody leaves: nothing is left behind.
        for shard in 0..shard_count {
            for name in ROOMS {
                world.leave(shard, name, false);
            }
        }
        world.settle();
        assert_eq!(world.backplane.snapshot(Tick(0)).rooms, 0);
    }
}
