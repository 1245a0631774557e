//! Any list of operations on one shard: sockets that open, ask, talk, stop to read and break, in any order and with any
//! bytes, while time passes and the node stops. The shard keeps its invariants and its contract with the engine, and
//! holds nothing once everybody has gone.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use throng::bus::{
    Batch, BatchMessage, CoreId, Downstream, DrainOrder, EVERYBODY, Hidden, MessageKind, Upstream,
    hidden,
};
use throng::limits::SEND_PIECE_COUNT_MAX;
use throng::metrics::DropPolicy;
use throng::protocol::client::encode_request;
use throng::protocol::handshake::Edge;
use throng::protocol::{OpCode, encode_client_header, encode_header, unmask_extend};
use throng::shard::{Action, Delivery, HeartbeatMode, Input, Node, Options, Presence, RoomRule, Shard};
use throng::time::Tick;

const TOKENS: u8 = 6;
const ROOMS: [&str; 3] = ["a", "b", "c"];
const USERS: [&str; 2] = ["u", "v"];
/// What messages are sent to: rooms, then the hidden rooms of users, then everybody's.
const TOPICS: [&str; 6] = ["a", "b", "c", "\u{1}u", "\u{1}v", EVERYBODY];

#[derive(Arbitrary, Debug)]
enum Operation<'a> {
    Open(u8),
    Request {
        token: u8,
        room: u8,
        options: u8,
    },
    Frame {
        token: u8,
        head: u8,
        payload: &'a [u8],
    },
    Long {
        token: u8,
        bytes: u16,
        sent: u8,
    },
    Bytes {
        token: u8,
        bytes: &'a [u8],
    },
    Write {
        token: u8,
        bytes: u8,
    },
    Break(u8),
    End {
        token: u8,
        broken: bool,
    },
    EndTurn,
    Pass(u16),
    BusRoom {
        envelopes: u8,
        bytes: u16,
    },
    Answer {
        room: u8,
        leased: bool,
    },
    Refuse(u8),
    Revoke(u8),
    Announce(u8),
    Close {
        user: u8,
        from_admin: bool,
        reconnect: bool,
    },
    Deliver {
        room: u8,
        from_admin: bool,
        bytes: u8,
    },
    Drain(u8),
}

#[derive(Default)]
struct Socket {
    in_flight: u32,
    paused: bool,
    write_ended: bool,
    ended: bool,
    closing: bool,
}

/// A room as the backplane has it: answers it owes, whether the shard is in, whether it holds the lease.
#[derive(Default)]
struct Interest {
    unanswered: u32,
    holds: bool,
    joined: bool,
    leased: bool,
}

struct World {
    shard: Shard,
    now: Tick,
    sockets: BTreeMap<u32, Socket>,
    interests: [Interest; TOPICS.len()],
    stop_asked: bool,
}

impl World {
    fn new(choice: u8) -> Self {
        let policies = ROOMS.iter().zip([
            DropPolicy::Disconnect,
            DropPolicy::DropOldest,
            DropPolicy::Latest,
        ]);
        let options = Options {
            connection_count_max: 4 + u32::from(choice & 1),
            address_connection_count_max: 5,
            user_connection_count_max: u32::from(choice >> 6 & 1) * 2,
            presence: if choice & 32 == 0 {
                Presence::Users
            } else {
                Presence::All
            },
            presence_refresh_ms: 2_000,
            room_count_max: 2 + u32::from(choice >> 1 & 1),
            handshakes_per_s_max: 0,
            message_bytes_max: 300,
            message_fragment_count_max: 5,
            connection_queue_bytes_max: 500,
            shard_bytes_max: if choice & 4 == 0 { 5_000 } else { 1 << 20 },
            node_bytes_max: 1 << 24,
            messages_per_s_max: u32::from(choice >> 3 & 1) * 50,
            message_bytes_per_s_max: 0,
            heartbeat: HeartbeatMode::Ping,
            ping_interval_ms: 2_000,
            pong_timeout_ms: 1_000,
            idle_timeout_ms: 20_000,
            message_timeout_ms: 3_000,
            write_stall_timeout_ms: 2_000,
            handshake_timeout_ms: 1_000,
            join_timeout_ms: 5_000,
            close_timeout_ms: 1_000,
            handshake_bytes_max: 400,
            handshake_header_count_max: 8,
            origins: Vec::new(),
            edge: Edge::default(),
            retry_after_s: 1,
            reconnect_after_ms: 10,
            rooms: policies
                .map(|(room, slow)| RoomRule {
                    pattern: (*room).to_owned(),
                    slow,
                })
                .collect(),
        };
        let node = Node::new(
            1,
            options.connection_count_max,
            options.node_bytes_max,
            5,
            1,
        );
        let node = node.limit_users(options.user_connection_count_max, 1);
        let delivery = if choice & 16 == 0 {
            Delivery::Inline
        } else {
            Delivery::Bus
        };
        let seed = u64::from(choice);
        Self {
            shard: Shard::new(CoreId(1), options, delivery, Arc::new(node), seed, Tick(0)),
            now: Tick(0),
            sockets: BTreeMap::new(),
            interests: Default::default(),
            stop_asked: false,
        }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.now);
    }

    /// The socket, if the engine could still report something of it.
    fn open(&mut self, token: u8) -> Option<(u32, &mut Socket)> {
        let index = u32::from(token % TOKENS);
        let socket = self.sockets.get_mut(&index)?;
        (!socket.closing).then_some((index, socket))
    }

    fn receive(&mut self, token: u8, bytes: &[u8]) {
        if let Some((index, socket)) = self.open(token)
            && !socket.ended
            && !bytes.is_empty()
        {
            self.handle(Input::Received { index, bytes });
        }
    }

    fn operate(&mut self, operation: &Operation<'_>) {
        match *operation {
            Operation::Open(token) => {
                let index = u32::from(token % TOKENS);
                if let std::collections::btree_map::Entry::Vacant(place) = self.sockets.entry(index)
                {
                    place.insert(Socket::default());
                    let peer = ([10, 0, 0, token % 2], 1).into();
                    self.handle(Input::Opened { index, peer });
                }
            }
            Operation::Request {
                token,
                room,
                options,
            } => {
                let room = ROOMS[usize::from(room) % ROOMS.len()];
                let mut path = format!(
                    "/rooms/{room}?echo={}&notices={}",
                    options & 1,
                    options >> 1 & 1
                );
                if let Some(user) = USERS.get(usize::from(options >> 2 & 3)) {
                    path.push_str("&user=");
                    path.push_str(user);
                }
                let mut request = Vec::new();
                encode_request(&mut request, "a", &path, b"dGhlIHNhbXBsZSBub25jZQ==");
                self.receive(token, &request);
            }
            Operation::Frame {
                token,
                head,
                payload,
            } => {
                let opcode = OpCode::ALL[usize::from(head) % OpCode::ALL.len()];
                let payload =
                    &payload[..payload
                        .len()
                        .min(if opcode.is_control() { 125 } else { 400 })];
                let fin = opcode.is_control() || head & 0x80 == 0;
                self.frame(token, fin, opcode, payload, usize::MAX);
            }
            Operation::Long { token, bytes, sent } => {
                let payload = vec![b'x'; usize::from(bytes) % 320];
                self.frame(token, true, OpCode::Text, &payload, 6 + usize::from(sent));
            }
            Operation::Bytes { token, bytes } => self.receive(token, bytes),
            Operation::Write { token, bytes } => {
                if let Some((index, socket)) = self.open(token)
                    && socket.in_flight > 0
                {
                    let bytes = (u32::from(bytes) * 8).clamp(1, socket.in_flight);
                    socket.in_flight -= bytes;
                    let done = socket.in_flight == 0;
                    self.handle(Input::Written { index, bytes, done });
                }
            }
            Operation::Break(token) => {
                if let Some((index, socket)) = self.open(token)
                    && std::mem::take(&mut socket.in_flight) > 0
                {
                    self.handle(Input::WriteFailed { index });
                }
            }
            Operation::End { token, broken } => self.end(token, broken),
            Operation::EndTurn => self.end_turn(),
            Operation::Pass(ms) => {
                self.now.0 += u64::from(ms) * 1_000;
                self.shard.handle_deadline(self.now);
            }
            Operation::BusRoom { envelopes, bytes } => self.handle(Input::BusRoom {
                envelopes: usize::from(envelopes),
                bytes: usize::from(bytes),
            }),
            Operation::Answer { room, leased } => {
                let at = usize::from(room) % TOPICS.len();
                let interest = &mut self.interests[at];
                if interest.unanswered > 0 {
                    interest.unanswered -= 1;
                    interest.joined = interest.holds && interest.unanswered == 0;
                    interest.leased = interest.joined && leased;
                    let room = TOPICS[at].into();
                    self.handle(Input::Downstream(Downstream::Joined { room, leased }));
                }
            }
            Operation::Refuse(room) => {
                let at = usize::from(room) % TOPICS.len();
                let interest = &mut self.interests[at];
                if interest.unanswered > 0 {
                    interest.unanswered -= 1;
                    let room = TOPICS[at].into();
                    self.handle(Input::Downstream(Downstream::JoinRefused { room }));
                }
            }
            Operation::Revoke(room) => {
                let room = TOPICS[usize::from(room) % TOPICS.len()].into();
                self.handle(Input::Downstream(Downstream::LeaseRevoke { room }));
            }
            Operation::Announce(within) => {
                let within_ms = u32::from(within) * 10;
                self.handle(Input::Downstream(Downstream::Announce { within_ms }));
            }
            Operation::Close {
                user,
                from_admin,
                reconnect,
            } => {
                let room = TOPICS[ROOMS.len() + usize::from(user) % USERS.len()];
                assert!(matches!(hidden(room), Some(Hidden::User(_))));
                let kind = MessageKind::Close { reconnect };
                self.deliver(room, from_admin, kind, OpCode::Close, b"\x0f\xa1bye");
            }
            Operation::Deliver {
                room,
                from_admin,
                bytes,
            } => {
                let room = TOPICS[usize::from(room) % TOPICS.len()];
                let payload = vec![7; usize::from(bytes)];
                self.deliver(
                    room,
                    from_admin,
                    MessageKind::Binary,
                    OpCode::Binary,
                    &payload,
                );
            }
            Operation::Drain(order) => {
                let order = match order % 3 {
                    0 => DrainOrder::NotReady,
                    1 => DrainOrder::Close {
                        window_ms: u32::from(order) * 10,
                        notice: order & 8 == 0,
                    },
                    _ => DrainOrder::Cut,
                };
                self.handle(Input::Downstream(Downstream::Drain(order)));
            }
        }
    }

    /// The first `sent_max` bytes of a frame.
    fn frame(&mut self, token: u8, fin: bool, opcode: OpCode, payload: &[u8], sent_max: usize) {
        let mut frame = Vec::new();
        encode_client_header(&mut frame, fin, opcode, payload.len(), [1, 2, 3, token]);
        unmask_extend(&mut frame, payload, [1, 2, 3, token], 0);
        frame.truncate(sent_max);
        self.receive(token, &frame);
    }

    fn deliver(
        &mut self,
        room: &str,
        from_admin: bool,
        kind: MessageKind,
        opcode: OpCode,
        payload: &[u8],
    ) {
        let room = room.into();
        let mut frame = Vec::new();
        let header_bytes = encode_header(&mut frame, true, opcode, payload.len());
        frame.extend_from_slice(payload);
        let batch = Arc::new(Batch {
            messages: vec![BatchMessage {
                end: u32::try_from(frame.len()).unwrap(),
                header_bytes,
                kind,
                sender: None,
            }],
            bytes: frame,
            published: self.now,
        });
        let envelope = if from_admin {
            Downstream::Publish { room, batch }
        } else {
            Downstream::Delivery { room, batch }
        };
        self.handle(Input::Downstream(envelope));
    }

    fn end(&mut self, token: u8, broken: bool) {
        if let Some((index, socket)) = self.open(token)
            && !std::mem::replace(&mut socket.ended, true)
        {
            self.handle(Input::ReceiveEnded { index, broken });
        }
    }

    fn end_turn(&mut self) {
        self.shard.end_turn(self.now);
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::FanOut { encoded, targets } => {
                    let bytes = u32::try_from(encoded.bytes().len()).unwrap();
                    for index in targets {
                        give(self.sockets.get_mut(index).expect("it is open"), bytes);
                    }
                }
                Action::Send { index, pieces } => {
                    assert!(pieces.len() <= SEND_PIECE_COUNT_MAX);
                    let bytes = pieces.iter().map(throng::protocol::Piece::byte_count).sum();
                    give(self.sockets.get_mut(&index).expect("it is open"), bytes);
                }
                Action::Forward { envelope, .. } => note(&mut self.interests, &envelope),
                Action::ReadPause { index } => {
                    let socket = self.sockets.get_mut(&index).expect("it is open");
                    assert!(!socket.closing && !std::mem::replace(&mut socket.paused, true));
                }
                Action::ReadResume { index } => {
                    let socket = self.sockets.get_mut(&index).expect("it is open");
                    assert!(!socket.closing && std::mem::replace(&mut socket.paused, false));
                }
                Action::ShutdownWrite { index } => {
                    let socket = self.sockets.get_mut(&index).expect("it is open");
                    assert!(!socket.closing && socket.in_flight == 0);
                    assert!(!std::mem::replace(&mut socket.write_ended, true));
                }
                Action::Close { index } => {
                    let socket = self.sockets.get_mut(&index).expect("it is open");
                    assert!(!std::mem::replace(&mut socket.closing, true));
                }
                Action::StopAccepting => {
                    assert!(!std::mem::replace(&mut self.stop_asked, true));
                }
            }
        }
        self.shard.check_invariants();
        let closing: Vec<u32> = self
            .sockets
            .iter()
            .filter_map(|(index, socket)| socket.closing.then_some(*index))
            .collect();
        for index in closing {
            self.sockets.remove(&index);
            self.handle(Input::Closed { index });
        }
    }
}

fn give(socket: &mut Socket, bytes: u32) {
    assert!(!socket.closing && !socket.write_ended && socket.in_flight == 0 && bytes > 0);
    socket.in_flight = bytes;
}

fn note(interests: &mut [Interest; TOPICS.len()], envelope: &Upstream) {
    let (Upstream::Interest { room }
    | Upstream::Disinterest { room }
    | Upstream::LeaseReturned { room }
    | Upstream::Publish { room, .. }) = envelope
    else {
        return;
    };
    let at = TOPICS.iter().position(|name| **name == **room).unwrap();
    let interest = &mut interests[at];
    match envelope {
        Upstream::Interest { .. } => {
            assert!(!std::mem::replace(&mut interest.holds, true));
            interest.unanswered += 1;
        }
        Upstream::Disinterest { .. } => {
            assert!(interest.holds);
            let unanswered = interest.unanswered;
            *interest = Interest {
                unanswered,
                ..Interest::default()
            };
        }
        Upstream::LeaseReturned { .. } => {
            assert!(std::mem::replace(&mut interest.leased, false));
        }
        _ => assert!(interest.joined && !interest.leased),
    }
}

fuzz_target!(|input: (u8, Vec<Operation<'_>>)| {
    let (choice, operations) = input;
    let mut world = World::new(choice);
    for operation in &operations {
        world.operate(operation);
    }
    world.end_turn();
    // Everything breaks, and whoever waited for room with its stream at its end finds some.
    for _ in 0..3 {
        world.operate(&Operation::BusRoom {
            envelopes: u8::MAX,
            bytes: u16::MAX,
        });
        for token in 0..TOKENS {
            world.operate(&Operation::Break(token));
            world.end(token, true);
        }
        world.end_turn();
    }
    assert!(world.sockets.is_empty(), "whoever broke is gone");
    let gauges = world.shard.snapshot().gauges;
    assert_eq!((gauges.ledger_bytes, gauges.sockets_open), (0, 0));
    assert_eq!(gauges.queued_bytes + gauges.connections_open, 0);
});
