//! One shard, and model sockets that do what it says.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::bus::{CoreId, Downstream, EVERYBODY, Upstream};
use crate::metrics::{DropPolicy, ShardCounters};
use crate::protocol::client::{Key, encode_request};
use crate::protocol::handshake::Edge;
use crate::protocol::{
    CloseReason, OpCode, Role, decode_header, encode_client_header, parse_close, unmask_extend,
};
use crate::shard::{
    Action, Delivery, HeartbeatMode, Input, Node, Options, Presence, RoomRule, Shard,
};
use crate::time::Tick;

const KEY: &Key = b"dGhlIHNhbXBsZSBub25jZQ==";

/// A frame that a client got.
pub(super) type Frame = (OpCode, Vec<u8>);

/// The other end of a socket.
#[derive(Debug, Default)]
pub(super) struct Peer {
    in_flight: Option<VecDeque<u8>>,
    /// Bytes that its kernel still takes.
    pub takes: usize,
    pub received: Vec<u8>,
    pub paused: bool,
    pub write_ended: bool,
    /// The shard has asked for the end.
    pub closing: bool,
    pub sends: usize,
}

pub(super) struct World {
    pub shard: Shard,
    pub now: Tick,
    pub peers: BTreeMap<u32, Peer>,
    pub forwarded: Vec<Upstream>,
    pub fan_outs: usize,
    pub stops_asked: usize,
}

/// Budgets as a node has them by default; no limit of rate.
pub(super) fn options() -> Options {
    Options {
        connection_count_max: 1_000_000,
        address_connection_count_max: 0,
        user_connection_count_max: 0,
        presence: Presence::Off,
        presence_refresh_ms: 20_000,
        room_count_max: 1_000,
        handshakes_per_s_max: 0,
        message_bytes_max: 64 * 1024,
        message_fragment_count_max: 1_000,
        connection_queue_bytes_max: 64 * 1024,
        shard_bytes_max: 1 << 28,
        node_bytes_max: 1 << 30,
        messages_per_s_max: 0,
        message_bytes_per_s_max: 0,
        heartbeat: HeartbeatMode::Ping,
        ping_interval_ms: 25_000,
        pong_timeout_ms: 10_000,
        idle_timeout_ms: 0,
        message_timeout_ms: 30_000,
        write_stall_timeout_ms: 20_000,
        handshake_timeout_ms: 5_000,
        join_timeout_ms: 0,
        close_timeout_ms: 5_000,
        handshake_bytes_max: 8_192,
        handshake_header_count_max: 64,
        origins: Vec::new(),
        edge: Edge::default(),
        retry_after_s: 5,
        reconnect_after_ms: 1_000,
        rooms: DropPolicy::ALL
            .map(|slow| RoomRule {
                pattern: slow.label().to_owned(),
                slow,
            })
            .into(),
    }
}

pub(super) fn node(options: &Options) -> Arc<Node> {
    Arc::new(Node::new(
        1,
        options.connection_count_max,
        options.node_bytes_max,
        options.address_connection_count_max,
        1,
    ))
}

/// A client's frame.
pub(super) fn frame(fin: bool, opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mask = [7, 77, 177, 255];
    encode_client_header(&mut bytes, fin, opcode, payload.len(), mask);
    unmask_extend(&mut bytes, payload, mask, 0);
    bytes
}

pub(super) fn text(payload: &str) -> Vec<u8> {
    frame(true, OpCode::Text, payload.as_bytes())
}

pub(super) fn close(code: u16) -> Vec<u8> {
    frame(true, OpCode::Close, &code.to_be_bytes())
}

pub(super) fn request(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, "throng.test", path, KEY);
    bytes
}

impl World {
    pub fn new(options: Options) -> Self {
        let node = node(&options);
        Self::on(options, Delivery::Inline, 0, node)
    }

    /// A shard whose messages the backplane puts in order.
    pub fn on_bus(options: Options) -> Self {
        let node = node(&options);
        Self::on(options, Delivery::Bus, 0, node)
    }

    pub fn on(options: Options, delivery: Delivery, core: u8, node: Arc<Node>) -> Self {
        let mut world = Self::begun(options, delivery, core, node);
        if delivery == Delivery::Bus {
            world.turn();
            assert_eq!(world.forwarded.len(), 1, "everybody's room is asked for");
            world.forwarded.clear();
            world.downstream(Downstream::Joined {
                room: EVERYBODY.into(),
                leased: false,
            });
        }
        world
    }

    /// A shard that has only begun.
    pub fn begun(options: Options, delivery: Delivery, core: u8, node: Arc<Node>) -> Self {
        let now = Tick::from_ms(1_000);
        Self {
            shard: Shard::new(CoreId(core), options, delivery, node, 1, now),
            now,
            peers: BTreeMap::new(),
            forwarded: Vec::new(),
            fan_outs: 0,
            stops_asked: 0,
        }
    }

    // News.

    pub fn open_from(&mut self, address: &str) -> u32 {
        let index = (0..).find(|token| !self.peers.contains_key(token)).unwrap();
        let peer = Peer {
            takes: usize::MAX,
            ..Peer::default()
        };
        self.peers.insert(index, peer);
        let peer: SocketAddr = format!("{address}:4000").parse().unwrap();
        self.shard.handle(Input::Opened { index, peer }, self.now);
        index
    }

    pub fn open(&mut self) -> u32 {
        self.open_from("10.0.0.1")
    }

    /// Bytes come; no turn ends.
    pub fn bytes(&mut self, index: u32, bytes: &[u8]) {
        self.shard
            .handle(Input::Received { index, bytes }, self.now);
    }

    /// Bytes come, and the turn ends.
    pub fn send(&mut self, index: u32, bytes: &[u8]) {
        self.bytes(index, bytes);
        self.turn();
    }

    /// A member of the room, whose answer has been read.
    pub fn join(&mut self, path: &str) -> u32 {
        let index = self.open();
        self.send(index, &request(&format!("/rooms/{path}")));
        let answer = self.http(index);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        index
    }

    pub fn ended(&mut self, index: u32, broken: bool) {
        self.shard
            .handle(Input::ReceiveEnded { index, broken }, self.now);
        self.turn();
    }

    pub fn downstream(&mut self, envelope: Downstream) {
        self.shard.handle(Input::Downstream(envelope), self.now);
        self.turn();
    }

    pub fn bus_room(&mut self, envelopes: usize, bytes: usize) {
        self.shard
            .handle(Input::BusRoom { envelopes, bytes }, self.now);
    }

    // Turns.

    /// Ends the turn, does what the shard says, and lets the sockets take what they take; until nothing moves.
    pub fn turn(&mut self) {
        loop {
            self.shard.end_turn(self.now);
            self.perform();
            self.shard.check_invariants();
            if !self.write() {
                return;
            }
        }
    }

    fn perform(&mut self) {
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::FanOut { encoded, targets } => {
                    self.fan_outs += 1;
                    for index in targets {
                        let peer = self.peers.get_mut(index).expect("a target is open");
                        peer.give(encoded.bytes().iter().copied().collect());
                    }
                }
                Action::Send { index, pieces } => {
                    let peer = self.peers.get_mut(&index).expect("a target is open");
                    peer.give(
                        pieces
                            .iter()
                            .flat_map(|piece| piece.bytes())
                            .copied()
                            .collect(),
                    );
                }
                Action::Forward { envelope, .. } => self.forwarded.push(envelope),
                Action::ReadPause { index } => {
                    let peer = self.peers.get_mut(&index).unwrap();
                    assert!(!std::mem::replace(&mut peer.paused, true), "paused twice");
                }
                Action::ReadResume { index } => {
                    let peer = self.peers.get_mut(&index).unwrap();
                    assert!(std::mem::replace(&mut peer.paused, false), "resumed twice");
                }
                Action::ShutdownWrite { index } => {
                    let peer = self.peers.get_mut(&index).unwrap();
                    assert!(peer.in_flight.is_none(), "something is in flight");
                    assert!(!std::mem::replace(&mut peer.write_ended, true));
                }
                Action::Close { index } => {
                    let peer = self.peers.get_mut(&index).unwrap();
                    assert!(!std::mem::replace(&mut peer.closing, true), "closed twice");
                }
                Action::StopAccepting => self.stops_asked += 1,
            }
        }
    }

    /// Sockets take bytes of their sends, and closed ones go.
    fn write(&mut self) -> bool {
        let mut moved = false;
        let indexes: Vec<u32> = self.peers.keys().copied().collect();
        for index in indexes {
            let peer = self.peers.get_mut(&index).unwrap();
            if peer.closing {
                if peer.in_flight.take().is_some() {
                    self.shard.handle(Input::WriteFailed { index }, self.now);
                }
                self.shard.handle(Input::Closed { index }, self.now);
                self.peers.get_mut(&index).unwrap().closing = false;
                self.gone(index);
                moved = true;
                continue;
            }
            let Some(bytes) = &mut peer.in_flight else {
                continue;
            };
            let count = bytes.len().min(peer.takes);
            if count == 0 {
                continue;
            }
            peer.takes -= if peer.takes == usize::MAX { 0 } else { count };
            peer.received.extend(bytes.drain(..count));
            let done = bytes.is_empty();
            if done {
                peer.in_flight = None;
            }
            let bytes = u32::try_from(count).unwrap();
            self.shard
                .handle(Input::Written { index, bytes, done }, self.now);
            moved = true;
        }
        moved
    }

    /// A socket that is gone keeps what it got under another name, so that its token is free.
    fn gone(&mut self, index: u32) {
        let peer = self.peers.remove(&index).unwrap();
        self.peers.insert(
            index | GONE,
            Peer {
                write_ended: true,
                takes: 0,
                ..peer
            },
        );
    }

    pub fn is_gone(&self, index: u32) -> bool {
        self.peers.contains_key(&(index | GONE))
    }

    /// Time passes, every tick of it.
    pub fn pass(&mut self, ms: u64) {
        let end = Tick(self.now.0 + ms * 1_000);
        while let Some(due) = self.shard.next_deadline()
            && due <= end
        {
            self.now = due.max(self.now);
            self.shard.handle_deadline(self.now);
            self.turn();
        }
        self.now = end;
    }

    /// Time passes as the runtime's loop has it: room on the bus first, then the deadline, every half millisecond.
    pub fn pass_in_turns(&mut self, ms: u64) {
        let end = Tick(self.now.0 + ms * 1_000);
        while self.now < end {
            self.now = Tick(self.now.0 + 500);
            self.bus_room(usize::MAX, usize::MAX);
            if self
                .shard
                .next_deadline()
                .is_some_and(|due| due <= self.now)
            {
                self.shard.handle_deadline(self.now);
            }
            self.turn();
        }
    }

    // What came of it.

    pub fn peer(&mut self, index: u32) -> &mut Peer {
        let index = if self.peers.contains_key(&index) {
            index
        } else {
            index | GONE
        };
        self.peers.get_mut(&index).expect("such a peer")
    }

    /// The socket takes nothing any more.
    pub fn stick(&mut self, index: u32) {
        self.peer(index).takes = 0;
    }

    /// The socket takes everything again.
    pub fn unstick(&mut self, index: u32) {
        self.peer(index).takes = usize::MAX;
        self.turn();
    }

    /// One HTTP answer, whole.
    pub fn http(&mut self, index: u32) -> String {
        let received = &mut self.peer(index).received;
        let head = received
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(received)))
            + 4;
        let text = String::from_utf8(received[..head].to_vec()).unwrap();
        let body_bytes = text
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
            .unwrap_or(0);
        let answer = received.drain(..head + body_bytes).collect();
        String::from_utf8(answer).unwrap()
    }

    /// The frames that came since the last look.
    pub fn frames(&mut self, index: u32) -> Vec<Frame> {
        let received = &mut self.peer(index).received;
        let mut frames = Vec::new();
        while let Some(header) = decode_header(received, Role::Client).expect("good frames") {
            let header_bytes = usize::from(header.header_bytes);
            let end = header_bytes + usize::try_from(header.payload_bytes).unwrap();
            if received.len() < end {
                break;
            }
            assert!(header.fin);
            let frame: Vec<u8> = received.drain(..end).collect();
            frames.push((header.opcode, frame[header_bytes..].to_vec()));
        }
        assert!(received.is_empty(), "half a frame is left");
        frames
    }

    /// The texts that came since the last look, and a close frame as its code.
    pub fn texts(&mut self, index: u32) -> Vec<String> {
        let frames = self.frames(index);
        let as_text = |(opcode, payload): Frame| match opcode {
            OpCode::Text => String::from_utf8(payload).unwrap(),
            OpCode::Close => {
                let (code, _) = parse_close(&payload).unwrap().expect("a code");
                format!("close {code}")
            }
            OpCode::Ping => "ping".to_owned(),
            OpCode::Pong => format!("pong {}", String::from_utf8_lossy(&payload)),
            opcode => panic!("{opcode:?}"),
        };
        frames.into_iter().map(as_text).collect()
    }

    pub fn counters(&self) -> &ShardCounters {
        self.shard.counters()
    }

    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.counters().closed[reason as usize]
    }

    pub fn dropped(&self, policy: DropPolicy) -> u64 {
        self.counters().dropped[policy as usize]
    }

    pub fn held_bytes(&self) -> u64 {
        self.shard.snapshot().gauges.ledger_bytes
    }
}

/// Marks a socket that is gone in [`World::peers`].
const GONE: u32 = 1 << 31;

impl Peer {
    fn give(&mut self, bytes: VecDeque<u8>) {
        assert!(self.in_flight.is_none(), "two sends in flight");
        assert!(!self.write_ended && !self.closing, "a send to nobody");
        assert!(!bytes.is_empty(), "an empty send");
        self.in_flight = Some(bytes);
        self.sends += 1;
    }
}
