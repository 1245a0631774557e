//! Rooms, and when each delivery is due: one queue with a known service time, then a known delay. Reads no clock.
//!
//! A message that comes is due at its members when the server has got to it (`--messages-per-s-max`,
//! `--deliveries-per-s-max`) and its delay has passed, but never before an earlier message of its room: at each member
//! due times never go back, and equal ones keep the order in which the messages came. So a draw that is shorter than
//! the rest of the one before it is lengthened; [`Schedule::deferred_count`] tells how many deliveries that befell.
//! Where messages of a room are further apart than the longest delay it is none, and delays are exactly what was drawn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;

use throng::limits::SERVER_HEADER_BYTES_MAX;
use throng::protocol::{OpCode, encode_header};

use super::distribution::Delays;
use super::plants::{Draw, Plants};
use crate::random::Random;
use crate::stamp::Stamp;

/// Deliveries, or messages to a whole room, that may wait to become due. What comes on top is dropped and counted.
const WAITING_COUNT_MAX: usize = 1 << 22;

/// A connection that is, or was, in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberId {
    /// Its place; another connection takes it later.
    pub index: u32,
    /// Tells it from all others that ever had the place.
    pub serial: u32,
}

/// A room's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomId(u32);

/// A message as it goes to the members of its room.
#[derive(Debug)]
pub struct Frame {
    /// Header and payload, as a server sends them.
    pub bytes: Vec<u8>,
    /// Bytes of the header.
    pub header_bytes: usize,
    /// Who sent it.
    pub sender: MemberId,
    /// Where to.
    pub room: RoomId,
    /// When it was read, nanoseconds.
    pub came_ns: u64,
    /// When its sender was to send it, as its stamp says; `None` without a stamp.
    pub intended_ns: Option<u64>,
}

impl Frame {
    /// The frame of a message that `sender` sent to `room`, and that was read at `came_ns`.
    pub fn new(
        opcode: OpCode,
        payload: &[u8],
        sender: MemberId,
        room: RoomId,
        came_ns: u64,
    ) -> Self {
        let mut bytes = Vec::with_capacity(payload.len() + SERVER_HEADER_BYTES_MAX);
        encode_header(&mut bytes, true, opcode, payload.len());
        let header_bytes = bytes.len();
        bytes.extend_from_slice(payload);
        Self {
            bytes,
            header_bytes,
            sender,
            room,
            came_ns,
            intended_ns: Stamp::read(payload).map(|stamp| stamp.due_ns),
        }
    }
}

/// A message that is due now.
#[derive(Debug)]
pub struct Due {
    /// The message.
    pub frame: Rc<Frame>,
    /// When it was to be written, nanoseconds.
    pub due_ns: u64,
    targets: Targets,
}

impl Due {
    /// To whom.
    pub fn members(&self) -> &[MemberId] {
        match &self.targets {
            Targets::All(members) => members,
            Targets::One(member) => std::slice::from_ref(member),
        }
    }
}

#[derive(Debug)]
enum Targets {
    /// Who was in the room when the message came.
    All(Rc<Vec<MemberId>>),
    One(MemberId),
}

#[derive(Debug)]
struct Waiting {
    due_ns: u64,
    order: u64,
    frame: Rc<Frame>,
    targets: Targets,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due_ns, self.order).cmp(&(other.due_ns, other.order))
    }
}

/// One server with one queue and a constant service time. In picoseconds, so that a rate of millions is kept exactly.
#[derive(Debug)]
struct Queue {
    service_ps: u128,
    busy_until_ps: u128,
}

impl Queue {
    fn new(per_s: f64) -> Self {
        Self {
            service_ps: (1e12 / per_s) as u128,
            busy_until_ps: 0,
        }
    }

    /// When what comes at `now_ns` has been served.
    fn serve(&mut self, now_ns: u64) -> u64 {
        let start_ps = self.busy_until_ps.max(u128::from(now_ns) * 1_000);
        self.busy_until_ps = start_ps + self.service_ps;
        (self.busy_until_ps / 1_000) as u64
    }
}

#[derive(Debug, Default)]
struct Room {
    members: Rc<Vec<MemberId>>,
    last_due_ns: u64,
}

/// The rooms, and what waits for its time.
#[derive(Debug)]
pub struct Schedule {
    rooms: Vec<Room>,
    rooms_by_path: HashMap<String, RoomId>,
    filled_count: usize,
    message_queue: Option<Queue>,
    delivery_queue: Option<Queue>,
    delays: Option<Delays>,
    delay_each: Draw,
    /// What is added to each delay for each second since the first message.
    slow_down_ns: u64,
    first_came_ns: Option<u64>,
    /// By member index: when its last delivery is due.
    last_due_ns: Vec<u64>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    order: u64,
    deferred_count: u64,
    overflowed_count: u64,
}

impl Schedule {
    /// No rooms yet.
    pub fn new(plants: &Plants) -> Self {
        Self {
            rooms: Vec::new(),
            rooms_by_path: HashMap::new(),
            filled_count: 0,
            message_queue: plants.messages_per_s_max.map(Queue::new),
            delivery_queue: plants.deliveries_per_s_max.map(Queue::new),
            delays: plants
                .delay
                .clone()
                .map(|delay| Delays::new(delay, plants.seed)),
            delay_each: plants.delay_each,
            slow_down_ns: plants.slow_down,
            first_came_ns: None,
            last_due_ns: Vec::new(),
            waiting: BinaryHeap::new(),
            order: 0,
            deferred_count: 0,
            overflowed_count: 0,
        }
    }

    /// Takes `member` into the room at `path`.
    pub fn join(&mut self, path: &str, member: MemberId) -> RoomId {
        let room = match self.rooms_by_path.get(path) {
            Some(room) => *room,
            None => {
                let room = RoomId(self.rooms.len() as u32);
                self.rooms.push(Room::default());
                self.rooms_by_path.insert(path.to_owned(), room);
                room
            }
        };
        let members = Rc::make_mut(&mut self.rooms[room.0 as usize].members);
        self.filled_count += usize::from(members.is_empty());
        members.push(member);
        let index = member.index as usize;
        if self.last_due_ns.len() <= index {
            self.last_due_ns.resize(index + 1, 0);
        }
        self.last_due_ns[index] = 0;
        room
    }

    /// Takes `member` out of its room. What waits for it stays due.
    pub fn leave(&mut self, room: RoomId, member: MemberId) {
        let members = Rc::make_mut(&mut self.rooms[room.0 as usize].members);
        if let Some(position) = members.iter().position(|found| *found == member) {
            members.swap_remove(position);
            self.filled_count -= usize::from(members.is_empty());
        }
    }

    /// A message has come: it is due at all who are in its room now, each at its time.
    pub fn publish(&mut self, frame: Frame) {
        let frame = Rc::new(frame);
        let room = &mut self.rooms[frame.room.0 as usize];
        let members = Rc::clone(&room.members);
        if members.is_empty() {
            return;
        }
        let first_came_ns = *self.first_came_ns.get_or_insert(frame.came_ns);
        let age_ns = frame.came_ns - first_came_ns;
        let mut ready_ns = frame.came_ns;
        if let Some(queue) = &mut self.message_queue {
            ready_ns = queue.serve(ready_ns);
        }
        ready_ns += (u128::from(self.slow_down_ns) * u128::from(age_ns) / 1_000_000_000) as u64;
        let each = self.delay_each == Draw::Delivery && self.delays.is_some();
        let common_delay_ns = match &mut self.delays {
            Some(delays) if !each => delays.next(),
            _ => 0,
        };
        if !each && self.delivery_queue.is_none() {
            let drawn_ns = ready_ns + common_delay_ns;
            let due_ns = drawn_ns.max(room.last_due_ns);
            self.deferred_count += u64::from(due_ns > drawn_ns) * members.len() as u64;
            room.last_due_ns = due_ns;
            self.wait(due_ns, frame, Targets::All(members));
            return;
        }
        for member in members.iter() {
            let served_ns = match &mut self.delivery_queue {
                Some(queue) => queue.serve(ready_ns),
                None => ready_ns,
            };
            let delay_ns = match &mut self.delays {
                Some(delays) if each => delays.next(),
                _ => common_delay_ns,
            };
            let last_due_ns = &mut self.last_due_ns[member.index as usize];
            let drawn_ns = served_ns + delay_ns;
            let due_ns = drawn_ns.max(*last_due_ns);
            self.deferred_count += u64::from(due_ns > drawn_ns);
            *last_due_ns = due_ns;
            self.wait(due_ns, Rc::clone(&frame), Targets::One(*member));
        }
    }

    fn wait(&mut self, due_ns: u64, frame: Rc<Frame>, targets: Targets) {
        if self.waiting.len() >= WAITING_COUNT_MAX {
            self.overflowed_count += match &targets {
                Targets::All(members) => members.len() as u64,
                Targets::One(_) => 1,
            };
            return;
        }
        self.waiting.push(Reverse(Waiting {
            due_ns,
            order: self.order,
            frame,
            targets,
        }));
        self.order += 1;
    }

    /// What is due by `now_ns`, in order.
    pub fn poll_due(&mut self, now_ns: u64) -> Option<Due> {
        if self.next_due_ns()? > now_ns {
            return None;
        }
        let Reverse(waiting) = self.waiting.pop()?;
        Some(Due {
            frame: waiting.frame,
            due_ns: waiting.due_ns,
            targets: waiting.targets,
        })
    }

    /// When the next delivery is due.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse(first)| first.due_ns)
    }

    /// Whether any room but `room` has a member.
    pub fn has_others(&self, room: RoomId) -> bool {
        let here = !self.rooms[room.0 as usize].members.is_empty();
        self.filled_count > usize::from(here)
    }

    /// Some member of another room than `room`.
    pub fn draw_elsewhere(&self, room: RoomId, random: &mut Random) -> Option<MemberId> {
        let count = self.rooms.len();
        let start = random.below(count as u64) as usize;
        let others = (start..start + count).map(|index| index % count);
        let members = others
            .filter(|index| *index != room.0 as usize)
            .map(|index| &self.rooms[index].members)
            .find(|members| !members.is_empty())?;
        Some(members[random.below(members.len() as u64) as usize])
    }

    /// Deliveries whose delay was lengthened so that they would not overtake an earlier one.
    pub fn deferred_count(&self) -> u64 {
        self.deferred_count
    }

    /// Deliveries that were dropped because too many waited.
    pub fn overflowed_count(&self) -> u64 {
        self.overflowed_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn member(index: u32) -> MemberId {
        MemberId {
            index,
            serial: index + 100,
        }
    }

    fn frame(room: RoomId, came_ns: u64, number: u8) -> Frame {
        Frame::new(OpCode::Binary, &[number], member(0), room, came_ns)
    }

    /// All deliveries in the order in which they are due: when, to whom, which.
    fn drain(schedule: &mut Schedule) -> Vec<(u64, u32, u8)> {
        let mut list = Vec::new();
        while let Some(due) = schedule.poll_due(u64::MAX) {
            for member in due.members() {
                list.push((due.due_ns, member.index, due.frame.bytes[2]));
            }
        }
        list
    }

    fn in_one_room(plants: &Plants, member_count: u32) -> (Schedule, RoomId) {
        let mut schedule = Schedule::new(plants);
        let mut room = RoomId(0);
        for index in 0..member_count {
            room = schedule.join("/rooms/a", member(index));
        }
        (schedule, room)
    }

    #[test]
    fn a_message_is_due_after_its_delay_at_who_was_there_when_it_came() {
        let plants = Plants {
            delay: Some("constant:5ms".parse().unwrap()),
            ..Plants::default()
        };
        let (mut schedule, room) = in_one_room(&plants, 2);
        schedule.publish(frame(room, 100, 7));
        schedule.leave(room, member(0));
        schedule.join("/rooms/a", member(2));
        schedule.publish(frame(room, 200, 8));
        assert_eq!(schedule.next_due_ns(), Some(5 * MS + 100));
        assert!(schedule.poll_due(5 * MS + 99).is_none());
        let (first, second) = (5 * MS + 100, 5 * MS + 200);
        let expected = [(first, 0, 7), (first, 1, 7), (second, 1, 8), (second, 2, 8)];
        assert_eq!(drain(&mut schedule), expected);
    }

    #[test]
    fn no_message_overtakes_another_at_any_member_whatever_is_drawn() {
        for delay_each in [Draw::Message, Draw::Delivery] {
            let plants = Plants {
                delay: Some("uniform:0ms-50ms".parse().unwrap()),
                delay_each,
                ..Plants::default()
            };
            let (mut schedule, room) = in_one_room(&plants, 3);
            for number in 0..100 {
                schedule.publish(frame(room, u64::from(number) * MS, number));
            }
            let deferred_count = schedule.deferred_count();
            assert!((100..300).contains(&deferred_count), "{deferred_count}");
            let list = drain(&mut schedule);
            assert_eq!(list.len(), 300);
            for index in 0..3 {
                let numbers = list.iter().filter(|(_, member, _)| *member == index);
                assert!(numbers.map(|(_, _, number)| *number).eq(0..100), "{index}");
            }
            let alike = list.chunks(3).all(|chunk| chunk[0].0 == chunk[2].0);
            assert_eq!(alike, delay_each == Draw::Message);
        }
    }

    #[test]
    fn far_apart_messages_are_delayed_exactly_as_drawn() {
        let plants = Plants {
            delay: Some("steps:1ms@0.9,10ms@0.09,20ms@0.01".parse().unwrap()),
            ..Plants::default()
        };
        let (mut schedule, room) = in_one_room(&plants, 1);
        let mut delays = Vec::new();
        for number in 0..1_000 {
            schedule.publish(frame(room, number * 20 * MS, 0));
            let due = schedule.poll_due(u64::MAX).unwrap();
            delays.push(due.due_ns - due.frame.came_ns);
        }
        delays.sort_unstable();
        assert_eq!(schedule.deferred_count(), 0);
        assert_eq!([delays[899], delays[900]], [MS, 10 * MS]);
        assert_eq!([delays[989], delays[990]], [10 * MS, 20 * MS]);
    }

    #[test]
    fn a_server_that_slows_down_adds_so_much_each_second() {
        let plants = Plants {
            delay: Some("constant:2ms".parse().unwrap()),
            slow_down: 4 * MS,
            ..Plants::default()
        };
        let (mut schedule, room) = in_one_room(&plants, 1);
        for came_ns in [70 * MS, 320 * MS, 1_070 * MS] {
            schedule.publish(frame(room, came_ns, 0));
        }
        let due_ns = drain(&mut schedule).into_iter().map(|(due_ns, ..)| due_ns);
        assert!(due_ns.eq([72 * MS, 323 * MS, 1_076 * MS]));
    }

    #[test]
    fn a_limit_on_messages_is_one_queue_with_a_constant_service_time() {
        let plants = Plants {
            messages_per_s_max: Some(1_000.0),
            ..Plants::default()
        };
        let (mut schedule, room) = in_one_room(&plants, 2);
        let other = schedule.join("/rooms/b", member(2));
        for (came_ns, room, number) in [
            (0, room, 0),
            (0, other, 1),
            (MS / 2, room, 2),
            (9 * MS, room, 3),
        ] {
            schedule.publish(frame(room, came_ns, number));
        }
        let times: Vec<_> = drain(&mut schedule);
        let expected = [
            (MS, 0, 0),
            (MS, 1, 0),
            (2 * MS, 2, 1),
            (3 * MS, 0, 2),
            (3 * MS, 1, 2),
            (10 * MS, 0, 3),
            (10 * MS, 1, 3),
        ];
        assert_eq!(times, expected);
    }

    #[test]
    fn a_limit_on_deliveries_counts_each_member() {
        let plants = Plants {
            deliveries_per_s_max: Some(3e6),
            ..Plants::default()
        };
        let (mut schedule, room) = in_one_room(&plants, 3);
        for _ in 0..1_000 {
            schedule.publish(frame(room, 0, 0));
        }
        let list = drain(&mut schedule);
        assert_eq!((list[0].0, list[1].0), (333, 666));
        assert!((list[2_999].0).abs_diff(MS) <= 1, "3000 at 3 a microsecond");
    }

    #[test]
    fn a_member_elsewhere_is_never_of_the_same_room() {
        let (mut schedule, room) = in_one_room(&Plants::default(), 2);
        let mut random = Random::new(1);
        let gone = schedule.join("/rooms/gone", member(2));
        schedule.leave(gone, member(2));
        assert!(!schedule.has_others(room));
        assert_eq!(schedule.draw_elsewhere(room, &mut random), None);
        schedule.join("/rooms/b", member(3));
        assert!(schedule.has_others(room) && schedule.has_others(gone));
        for _ in 0..20 {
            let found = schedule.draw_elsewhere(room, &mut random);
            assert_eq!(found, Some(member(3)));
        }
    }
}
