//! The sockets of a planted server: one thread, epoll, and deadlines that are met within microseconds.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll;
use throng::protocol::OpCode;

use super::connection::{Connection, Incoming, Over, State, read_frames};
use super::distribution::choices;
use super::faults::{Faults, Write};
use super::plants::{CLOSE_ABNORMAL, Closing, Garbage, Plants, Span};
use super::schedule::{Due, Frame, MemberId, Schedule};
use super::tally::{Planted, Tally};
use crate::clock::now_ns;
use crate::floor::door::{Door, EVENT_COUNT_MAX, LISTENER};
use crate::floor::wire;

const BUFFER_BYTES: usize = 256 * 1024;
/// A wait ends that long before its deadline; the rest is spent looking at the clock and the sockets in turn.
const SPIN_NS: u64 = 100_000;
/// At the latest after this, it is looked whether the server is to stop.
const LOOK_NS: u64 = 10_000_000;
/// A client that does not answer a close frame is cut off after this.
const CLOSE_PATIENCE_NS: u64 = 5_000_000_000;

/// Bytes that are leaked at most.
const LEAK_BYTES_MAX: u64 = 1 << 30;

/// A server that does what was planted, and counts it.
pub struct Server {
    plants: Plants,
    planted: Arc<Planted>,
    door: Door,
    buffer: Vec<u8>,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    serial_next: u32,
    open_count: u32,
    refuse_first: u32,
    schedule: Schedule,
    faults: Faults,
    writes: Vec<Write>,
    leak: Vec<Vec<u8>>,
    /// Whose outboxes are to be written.
    dirty: Vec<MemberId>,
    first_message_ns: Option<u64>,
    first_upgrade_ns: Option<u64>,
    /// Those that are still to come, in order.
    stalls: VecDeque<Span>,
    closing: Option<Closing>,
    /// When who is sent a close frame, in order.
    closes: VecDeque<(u64, MemberId)>,
    /// When whose upgrade is answered, in order.
    answers: VecDeque<(u64, MemberId)>,
    /// When who is cut off unless it has answered one.
    cuts: VecDeque<(u64, MemberId)>,
}

impl Server {
    /// Binds `address`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(address: SocketAddr, plants: Plants) -> io::Result<Self> {
        Ok(Self {
            planted: Arc::default(),
            door: Door::new(address)?,
            buffer: vec![0; BUFFER_BYTES],
            connections: Vec::new(),
            serial_next: 0,
            open_count: 0,
            refuse_first: plants.refuse_first,
            schedule: Schedule::new(&plants),
            faults: Faults::new(&plants),
            writes: Vec::new(),
            leak: Vec::new(),
            dirty: Vec::new(),
            first_message_ns: None,
            first_upgrade_ns: None,
            stalls: plants.stalls().into(),
            closing: plants.close_after,
            closes: VecDeque::new(),
            answers: VecDeque::new(),
            cuts: VecDeque::new(),
            plants,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.listener.local_addr()
    }

    /// What was planted so far; it stays readable while the server runs, and after.
    pub fn planted(&self) -> Arc<Planted> {
        Arc::clone(&self.planted)
    }

    /// Serves until `stop` is set or `until_ns` has come.
    ///
    /// # Errors
    /// When epoll fails, or the process has no descriptor left to accept with.
    pub fn run(&mut self, stop: &AtomicBool, until_ns: u64) -> io::Result<()> {
        let planted = self.planted();
        while !stop.load(Ordering::Relaxed) && now_ns() < until_ns {
            self.stall(&planted);
            {
                let mut tally = planted.lock();
                self.perform(&mut tally);
            }
            self.wait()?;
            if !self.door.events.is_empty() {
                self.serve(&mut planted.lock())?;
            }
        }
        Ok(())
    }

    /// Does nothing while a stall lasts.
    fn stall(&mut self, planted: &Planted) {
        let (Some(first_ns), Some(stall)) = (self.first_message_ns, self.stalls.front()) else {
            return;
        };
        let from_ns = now_ns();
        if from_ns < first_ns + stall.at_ns {
            return;
        }
        let to_ns = from_ns + stall.for_ns;
        while let Some(left_ns) = to_ns.checked_sub(now_ns()).filter(|left_ns| *left_ns > 0) {
            std::thread::sleep(Duration::from_nanos(left_ns));
        }
        planted.lock().stalls.push((from_ns, now_ns()));
        self.stalls.pop_front();
    }

    /// Does what is due.
    fn perform(&mut self, tally: &mut Tally) {
        let now = now_ns();
        while let Some(due) = self.schedule.poll_due(now) {
            self.deliver(&due, now, tally);
        }
        self.faults.give_up(now, &mut self.writes);
        self.queue_writes(tally);
        self.answer_due(now, tally);
        self.close_due(now, tally);
        self.flush(tally);
        tally.deferred = self.schedule.deferred_count();
        tally.overflowed = self.schedule.overflowed_count();
    }

    fn deliver(&mut self, due: &Due, now: u64, tally: &mut Tally) {
        for member in due.members() {
            if !is_open(&self.connections, *member) {
                tally.unreachable += 1;
                continue;
            }
            let writes = &mut self.writes;
            self.faults
                .deliver(due, *member, &self.schedule, now, tally, writes);
        }
        self.queue_writes(tally);
    }

    fn queue_writes(&mut self, tally: &mut Tally) {
        let mut writes = std::mem::take(&mut self.writes);
        for write in writes.drain(..) {
            let Some(connection) = open(&mut self.connections, write.member) else {
                tally.unreachable += 1;
                continue;
            };
            let frame = &write.frame;
            let queued = match write.flipped_bit {
                None => connection.queue(&frame.bytes),
                Some(bit) => {
                    let mut bytes = frame.bytes.clone();
                    bytes[frame.header_bytes + bit as usize / 8] ^= 1 << (bit % 8);
                    connection.queue(&bytes)
                }
            };
            if let Some(due_ns) = write.due_ns {
                connection.mark(frame.came_ns, due_ns, frame.intended_ns);
            }
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(write.member);
            }
            if let Err(over) = queued {
                self.drop_connection(write.member, over, tally);
            }
        }
        self.writes = writes;
    }

    /// Answers the upgrades whose answer was held back.
    fn answer_due(&mut self, now: u64, tally: &mut Tally) {
        while let Some((at_ns, id)) = self.answers.front().copied()
            && at_ns <= now
        {
            self.answers.pop_front();
            let Some(connection) = find(&mut self.connections, id) else {
                continue;
            };
            let mut bytes = connection.take_kept();
            let answered = self
                .answer(id, &bytes, tally)
                .and_then(|head_bytes| self.take_in(id, &mut bytes[head_bytes..], now, tally));
            if let Err(over) = answered {
                self.drop_connection(id, over, tally);
            }
        }
    }

    /// Begins the planted closing, and sends the close frames that are due.
    fn close_due(&mut self, now: u64, tally: &mut Tally) {
        if let (Some(closing), Some(first_ns)) = (self.closing, self.first_upgrade_ns)
            && now >= first_ns + closing.after_ns
        {
            self.closing = None;
            let mut members: Vec<_> = self
                .connections
                .iter()
                .flatten()
                .filter(|connection| matches!(connection.state, State::Open(_)))
                .map(|connection| connection.id)
                .collect();
            let mut random = choices(self.plants.seed, 8);
            for index in (1..members.len()).rev() {
                members.swap(index, random.below(index as u64 + 1) as usize);
            }
            let count = members.len() as u64;
            let spread = |index: u64| now + self.plants.close_over * index / count;
            let closes = (0..).map(spread).zip(members);
            self.closes.extend(closes);
        }
        let code = self.plants.close_after.map_or(1000, |closing| closing.code);
        while let Some((at_ns, member)) = self.closes.front().copied()
            && at_ns <= now
        {
            self.closes.pop_front();
            let Some(connection) = open(&mut self.connections, member) else {
                continue;
            };
            tally.closed += 1;
            tally.first_close_ns.get_or_insert_with(now_ns);
            tally.last_close_ns = Some(now_ns());
            if code == CLOSE_ABNORMAL {
                self.drop_connection(member, Over::Gone, tally);
                continue;
            }
            let after_ms = self.plants.reconnect_after_ms;
            let notice = format!("{{\"type\":\"reconnect\",\"after_ms\":{after_ms}}}");
            let queued = connection
                .queue_frame(OpCode::Text, notice.as_bytes())
                .and_then(|()| connection.queue_frame(OpCode::Close, &code.to_be_bytes()));
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(member);
            }
            self.leave(member, State::Closing);
            self.cuts.push_back((now + CLOSE_PATIENCE_NS, member));
            if let Err(over) = queued {
                self.drop_connection(member, over, tally);
            }
        }
        while let Some((at_ns, member)) = self.cuts.front().copied()
            && at_ns <= now
        {
            self.cuts.pop_front();
            if find(&mut self.connections, member).is_some() {
                self.drop_connection(member, Over::Cut, tally);
            }
        }
    }

    fn flush(&mut self, tally: &mut Tally) {
        for member in std::mem::take(&mut self.dirty) {
            self.flush_one(member, tally);
        }
    }

    fn flush_one(&mut self, member: MemberId, tally: &mut Tally) {
        let Some(connection) = find(&mut self.connections, member) else {
            return;
        };
        connection.dirty = false;
        let was_blocked = connection.blocked;
        let mut flushed = connection.flush(tally);
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, connection.blocked);
        if connection.blocked != was_blocked {
            let data = epoll::EventData::new_u64(u64::from(member.index));
            flushed = flushed.and(
                epoll::modify(&self.door.epoll, &connection.socket, data, flags)
                    .or(Err(Over::Gone)),
            );
        }
        let ended = connection.state == State::Ending && !connection.blocked;
        if flushed.is_err() || ended {
            self.drop_connection(member, Over::Gone, tally);
        }
    }

    /// Waits for sockets, up to the next deadline, and fills `events`.
    fn wait(&mut self) -> io::Result<()> {
        let now = now_ns();
        let stall_ns = self
            .first_message_ns
            .zip(self.stalls.front())
            .map(|(first_ns, stall)| first_ns + stall.at_ns);
        let closing_ns = self
            .first_upgrade_ns
            .zip(self.closing)
            .map(|(first_ns, closing)| first_ns + closing.after_ns);
        let deadline_ns = [
            self.schedule.next_due_ns(),
            self.faults.next_deadline_ns(),
            stall_ns,
            closing_ns,
            self.closes.front().map(|(at_ns, _)| *at_ns),
            self.answers.front().map(|(at_ns, _)| *at_ns),
            self.cuts.front().map(|(at_ns, _)| *at_ns),
        ]
        .into_iter()
        .flatten()
        .fold(now + LOOK_NS, u64::min);
        let wait_ns = deadline_ns.saturating_sub(now).saturating_sub(SPIN_NS);
        self.door.wait(Some(Duration::from_nanos(wait_ns)))
    }

    /// Serves what is ready. The listener comes last: who has left makes room for who comes.
    fn serve(&mut self, tally: &mut Tally) -> io::Result<()> {
        let events = std::mem::take(&mut self.door.events);
        let mut listener_is_ready = false;
        for event in &events {
            if event.data.u64() == LISTENER {
                listener_is_ready = true;
                continue;
            }
            let index = event.data.u64() as usize;
            let Some(id) = self.connections[index].as_ref().map(|found| found.id) else {
                continue;
            };
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.flush_one(id, tally);
            }
            if flags
                .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
                && find(&mut self.connections, id).is_some()
                && let Err(over) = self.read(id, tally)
            {
                self.drop_connection(id, over, tally);
            }
        }
        self.door.events = events;
        if listener_is_ready {
            self.accept()?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..EVENT_COUNT_MAX {
            let Some((index, socket)) = self.door.accept(&mut self.connections)? else {
                break;
            };
            let id = MemberId {
                index: index as u32,
                serial: self.serial_next,
            };
            self.serial_next = self.serial_next.wrapping_add(1);
            self.connections[index] = Some(Connection::new(socket, id));
        }
        Ok(())
    }

    fn read(&mut self, id: MemberId, tally: &mut Tally) -> Result<(), Over> {
        let connection = find(&mut self.connections, id).ok_or(Over::Gone)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = connection
            .receive(&mut buffer)
            .and_then(|byte_count| self.take_in(id, &mut buffer[..byte_count], now_ns(), tally));
        self.buffer = buffer;
        result
    }

    /// Takes in what came of `id` at `now`, behind what is taken in already.
    fn take_in(
        &mut self,
        id: MemberId,
        bytes: &mut [u8],
        now: u64,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        let connection = find(&mut self.connections, id).ok_or(Over::Gone)?;
        let mut taken_bytes = 0;
        if connection.state == State::Upgrading {
            if self.plants.answer_after == 0 {
                taken_bytes = self.answer(id, bytes, tally)?;
            } else if bytes.windows(4).any(|window| window == b"\r\n\r\n") {
                connection.state = State::Asked;
                self.answers.push_back((now + self.plants.answer_after, id));
            }
        }
        let connection = find(&mut self.connections, id).ok_or(Over::Gone)?;
        match connection.state {
            State::Upgrading | State::Asked => {}
            State::Ending => taken_bytes = bytes.len(), // nothing may follow a close frame
            State::Open(room) => {
                taken_bytes += read_frames(&mut bytes[taken_bytes..], |incoming| match incoming {
                    Incoming::Message(opcode, payload) => {
                        tally.messages += 1;
                        if self.plants.leak > 0 && tally.leaked_bytes < LEAK_BYTES_MAX {
                            tally.leaked_bytes += self.plants.leak as u64;
                            self.leak.push(vec![1; self.plants.leak]); // written, so that it is resident
                        }
                        self.first_message_ns.get_or_insert(now);
                        let frame = Frame::new(opcode, payload, id, room, now);
                        let before_ns =
                            std::mem::replace(&mut connection.intended_ns, frame.intended_ns);
                        if let Some((intended_ns, before_ns)) = frame.intended_ns.zip(before_ns) {
                            tally
                                .spacing
                                .saturating_record(intended_ns.saturating_sub(before_ns));
                        }
                        self.schedule.publish(frame);
                        Ok(())
                    }
                    Incoming::Ping(payload) => connection.queue_frame(OpCode::Pong, payload),
                    Incoming::Close(payload) => {
                        connection.state = State::Ending;
                        connection.queue_frame(OpCode::Close, payload)
                    }
                })?;
                if connection.state == State::Ending {
                    self.schedule.leave(room, id);
                    self.open_count -= 1;
                    taken_bytes = bytes.len();
                }
            }
            State::Closing => {
                taken_bytes += read_frames(&mut bytes[taken_bytes..], |incoming| match incoming {
                    Incoming::Close(_) => Err(Over::Gone), // our own is answered: the end
                    Incoming::Message(..) | Incoming::Ping(_) => Ok(()),
                })?;
            }
        }
        connection.keep(&bytes[taken_bytes..])?;
        self.flush_one(id, tally);
        Ok(())
    }

    /// Answers the request at the front of `bytes`, if it is whole, and returns how many bytes it was.
    fn answer(&mut self, id: MemberId, bytes: &[u8], tally: &mut Tally) -> Result<usize, Over> {
        let connection = find(&mut self.connections, id).ok_or(Over::Gone)?;
        let mut answer = Vec::new();
        let Some(head_bytes) = wire::answer_upgrade(bytes, &mut answer) else {
            return Ok(0);
        };
        if self.plants.end_before_answer {
            tally.spoiled += 1;
            return Err(Over::Gone);
        }
        let is_full = self
            .plants
            .connections_max
            .is_some_and(|max| self.open_count >= max);
        let since_ns = self
            .first_upgrade_ns
            .map(|first_ns| now_ns().saturating_sub(first_ns));
        let is_shut = since_ns.is_some_and(|since_ns| {
            let mut spans = self.plants.refuse.iter();
            spans.any(|span| (span.at_ns..span.at_ns + span.for_ns).contains(&since_ns))
        });
        if is_full || is_shut || self.refuse_first > 0 {
            let body = match self.plants.connections_max {
                Some(max) if is_full => format!("{max} connections are all there may be\n"),
                _ if is_shut => "nobody is let in for now\n".to_owned(),
                _ => "the first ones are refused\n".to_owned(),
            };
            self.refuse_first = self.refuse_first.saturating_sub(1);
            tally.refused += 1;
            connection.state = State::Ending;
            connection.queue(
                format!(
                    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
                     Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            )?;
            return Ok(bytes.len());
        }
        match self.plants.garbage {
            Some(Garbage::Http) => {
                tally.spoiled += 1;
                connection.state = State::Ending;
                connection.queue(b"220 mail.example ESMTP\r\n\r\n")?;
                return Ok(bytes.len());
            }
            Some(Garbage::Key) => {
                tally.spoiled += 1;
                answer.clear();
                let other =
                    b"GET / HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
                wire::answer_upgrade(other, &mut answer);
            }
            Some(Garbage::Frames) => {
                tally.spoiled += 1;
                answer.extend_from_slice(&[0xff; 16]); // reserved bits, a reserved opcode, a mask
            }
            None => {}
        }
        connection.queue(&answer)?;
        let target = bytes[..head_bytes].split(|byte| *byte == b' ').nth(1);
        let path = String::from_utf8_lossy(target.unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        connection.state = State::Open(self.schedule.join(path, id));
        self.open_count += 1;
        self.first_upgrade_ns.get_or_insert_with(now_ns);
        tally.upgraded += 1;
        Ok(head_bytes)
    }

    /// A member becomes something else, and is in no room any more.
    fn leave(&mut self, id: MemberId, state: State) {
        if let Some(connection) = find(&mut self.connections, id)
            && let State::Open(room) = std::mem::replace(&mut connection.state, state)
        {
            self.schedule.leave(room, id);
            self.open_count -= 1;
        }
    }

    fn drop_connection(&mut self, id: MemberId, over: Over, tally: &mut Tally) {
        self.leave(id, State::Ending);
        if over == Over::Cut {
            tally.cut += 1;
        }
        self.connections[id.index as usize] = None; // closes the socket, which leaves the epoll set by that
    }
}

/// The connection of `id`, unless it has gone, be its place taken or not.
fn find(connections: &mut [Option<Connection>], id: MemberId) -> Option<&mut Connection> {
    connections
        .get_mut(id.index as usize)?
        .as_mut()
        .filter(|connection| connection.id == id)
}

/// The same if it is in a room.
fn open(connections: &mut [Option<Connection>], id: MemberId) -> Option<&mut Connection> {
    find(connections, id).filter(|connection| matches!(connection.state, State::Open(_)))
}

fn is_open(connections: &[Option<Connection>], id: MemberId) -> bool {
    connections
        .get(id.index as usize)
        .and_then(Option::as_ref)
        .is_some_and(|connection| connection.id == id && matches!(connection.state, State::Open(_)))
}
