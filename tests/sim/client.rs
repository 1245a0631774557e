//! A client by the book, unless it is told to be none: asks for an upgrade, sends messages, reads what comes.

use std::collections::{HashSet, VecDeque};

use throng::protocol::client::{Key, encode_key, encode_request, parse_response};
use throng::protocol::{
    OpCode, Role, decode_header, encode_client_header, parse_close, unmask_extend,
};

use crate::random::Random;
use crate::topic::{EVERYBODY_TOPIC, ROOMS, TOPIC_COUNT, USERS, user_topic};

/// A message's number: unique in a run.
pub type MessageId = u32;

/// Where the client is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Asking,
    Open,
    /// A close frame, an HTTP refusal or the end of the stream has come, or it went by itself.
    Gone,
}

/// What came, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Message(MessageId),
    Gap(u32),
    /// Something may be missing, nobody knows how much.
    Unknown,
}

#[derive(Debug)]
pub struct Client {
    pub shard: usize,
    pub room: usize,
    pub user: Option<usize>,
    pub echo: bool,
    pub notices: bool,
    pub phase: Phase,
    /// It does things that a server has to close it for.
    pub is_faulty: bool,
    /// Its host is gone: it reads nothing and ends nothing.
    pub frozen: bool,
    /// It has sent a close frame.
    pub closes: bool,
    /// Its close frame was answered: everything it had sent before was taken.
    pub closed_well: bool,
    /// It reads.
    pub reads: bool,
    /// Bytes for the server that the network has not carried yet.
    pub outgoing: VecDeque<u8>,
    /// What ends its stream once `outgoing` is carried: `Some(broken)`.
    pub ending: Option<bool>,
    pub heard: Vec<Heard>,
    pub heard_ids: HashSet<MessageId>,
    pub gaps_told: u32,
    /// The run's event number when it was last told that something may be missing.
    pub told_unknown_at: Option<u64>,
    /// The run's event number when its upgrade was answered.
    pub joined_at: Option<u64>,
    /// By topic: how many messages somebody on its shard had received when it asked.
    pub old_counts: [usize; TOPIC_COUNT],
    pub close_code: Option<u16>,
    pub told_to_reconnect: bool,
    pub pongs_due: u32,
    pub pongs_heard: u32,
    key: Key,
    /// Bytes of its request that the network has not carried yet.
    request_bytes_left: usize,
    /// Its request was not carried in one piece: the rest may come too late.
    request_came_apart: bool,
    incoming: Vec<u8>,
}

impl Client {
    pub fn new(shard: usize, room: usize, user: Option<usize>, random: &mut Random) -> Self {
        let key = encode_key([random.next(), random.next()]);
        let (echo, notices) = (!random.one_in(4), !random.one_in(6));
        let mut request = Vec::new();
        let mut path = format!(
            "/rooms/{}?echo={}&notices={}",
            ROOMS[room],
            u8::from(echo),
            u8::from(notices)
        );
        if let Some(user) = user {
            path.push_str("&user=");
            path.push_str(USERS[user]);
        }
        encode_request(&mut request, "throng.test", &path, &key);
        Self {
            shard,
            room,
            user,
            echo,
            notices,
            phase: Phase::Asking,
            is_faulty: false,
            frozen: false,
            closes: false,
            closed_well: false,
            reads: true,
            request_bytes_left: request.len(),
            request_came_apart: false,
            outgoing: request.into(),
            ending: None,
            heard: Vec::new(),
            heard_ids: HashSet::new(),
            gaps_told: 0,
            told_unknown_at: None,
            joined_at: None,
            old_counts: [0; TOPIC_COUNT],
            close_code: None,
            told_to_reconnect: false,
            pongs_due: 0,
            pongs_heard: 0,
            key,
            incoming: Vec::new(),
        }
    }

    /// Whether messages of the topic are for it.
    pub fn hears(&self, topic: usize) -> bool {
        topic == self.room
            || self.user.is_some_and(|user| topic == user_topic(user))
            || topic == EVERYBODY_TOPIC
    }

    /// Sends the message `id`, in one frame or in several with control frames in between.
    pub fn publish(&mut self, id: MessageId, filler_bytes: usize, random: &mut Random) {
        let text = random.one_in(2);
        let mut payload = format!("#{id}:").into_bytes();
        let filler = if text { "é" } else { "x" };
        while payload.len() < filler_bytes {
            payload.extend_from_slice(filler.as_bytes());
        }
        let mut opcode = if text { OpCode::Text } else { OpCode::Binary };
        let mut rest = &payload[..];
        loop {
            let bytes = if random.one_in(3) {
                random.between(0, rest.len())
            } else {
                rest.len()
            };
            let (front, behind) = rest.split_at(bytes);
            rest = behind;
            self.frame(rest.is_empty(), opcode, front, random);
            if rest.is_empty() {
                return;
            }
            opcode = OpCode::Continuation;
            if random.one_in(3) {
                self.ping(random);
            }
        }
    }

    pub fn ping(&mut self, random: &mut Random) {
        self.pongs_due += 1;
        self.frame(true, OpCode::Ping, b"are you there", random);
    }

    pub fn close(&mut self, random: &mut Random) {
        self.closes = true;
        self.frame(true, OpCode::Close, &1000u16.to_be_bytes(), random);
    }

    pub fn frame(&mut self, fin: bool, opcode: OpCode, payload: &[u8], random: &mut Random) {
        let mask = (random.next() as u32).to_be_bytes();
        let mut frame = Vec::new();
        encode_client_header(&mut frame, fin, opcode, payload.len(), mask);
        unmask_extend(&mut frame, payload, mask, 0);
        self.outgoing.extend(frame);
    }

    /// The first `count` bytes that wait for the network go.
    pub fn carry(&mut self, count: usize) -> Vec<u8> {
        let request_bytes = count.min(self.request_bytes_left);
        self.request_bytes_left -= request_bytes;
        self.request_came_apart |= request_bytes > 0 && self.request_bytes_left > 0;
        self.outgoing.drain(..count).collect()
    }

    /// It went: nothing that it hears or says from now on counts.
    pub fn leave(&mut self) {
        self.phase = Phase::Gone;
    }

    /// Takes bytes of the server in. `event` is the run's event number.
    pub fn read(&mut self, bytes: &[u8], event: u64, random: &mut Random) {
        self.incoming.extend_from_slice(bytes);
        if self.phase == Phase::Asking {
            match parse_response(&self.incoming, &self.key) {
                Ok(None) => return,
                Ok(Some(head_bytes)) => {
                    self.incoming.drain(..head_bytes);
                    self.phase = Phase::Open;
                    self.joined_at = Some(event);
                }
                Err(error) => {
                    assert!(
                        error.status == Some(503)
                            || error.status == Some(429) && self.user.is_some()
                            || error.status == Some(408) && self.request_came_apart,
                        "a good request was refused: {error}: {:?}",
                        String::from_utf8_lossy(&self.incoming)
                    );
                    self.phase = Phase::Gone;
                }
            }
        }
        while self.phase == Phase::Open && self.read_frame(event, random) {}
    }

    fn read_frame(&mut self, event: u64, random: &mut Random) -> bool {
        let header =
            decode_header(&self.incoming, Role::Client).expect("a server's frames are good");
        let Some(header) = header else { return false };
        let header_bytes = usize::from(header.header_bytes);
        let end = header_bytes + usize::try_from(header.payload_bytes).unwrap();
        if self.incoming.len() < end {
            return false;
        }
        let payload = self.incoming[header_bytes..end].to_vec();
        self.incoming.drain(..end);
        assert!(header.fin, "a server's messages are whole");
        match header.opcode {
            OpCode::Text | OpCode::Binary => self.message(header.opcode, &payload, event),
            OpCode::Ping => self.frame(true, OpCode::Pong, &payload, random),
            OpCode::Pong => {
                assert_eq!(payload, b"are you there");
                self.pongs_heard += 1;
            }
            OpCode::Close => {
                let (code, _) = parse_close(&payload).unwrap().expect("there is a reason");
                self.close_code = Some(code);
                self.phase = Phase::Gone;
                assert!(
                    self.incoming.is_empty(),
                    "nothing comes behind a close frame"
                );
                self.closed_well = self.closes && code == 1000;
                if !self.closes {
                    self.frame(true, OpCode::Close, &code.to_be_bytes(), random);
                }
                self.ending = Some(false);
            }
            OpCode::Continuation => panic!("a server's messages are whole"),
        }
        true
    }

    fn message(&mut self, opcode: OpCode, payload: &[u8], event: u64) {
        if payload.first() == Some(&b'{') {
            assert!(self.notices, "it asked not to be told");
            let notice: serde_json::Value = serde_json::from_slice(payload).unwrap();
            match notice["type"].as_str() {
                Some("gap") if notice["missed"].is_null() => {
                    self.told_unknown_at = Some(event);
                    self.heard.push(Heard::Unknown);
                }
                Some("gap") => {
                    let missed = u32::try_from(notice["missed"].as_u64().unwrap()).unwrap();
                    assert!(missed > 0);
                    self.gaps_told += missed;
                    self.heard.push(Heard::Gap(missed));
                }
                Some("reconnect") => self.told_to_reconnect = true,
                other => panic!("{other:?}"),
            }
            return;
        }
        let text = String::from_utf8(payload.to_vec()).expect("all fillers are UTF-8");
        let (id, filler) = text[1..].split_once(':').expect("#id:filler");
        let expected = if opcode == OpCode::Text { 'é' } else { 'x' };
        assert!(filler.chars().all(|filler| filler == expected));
        let id = id.parse().unwrap();
        assert!(self.heard_ids.insert(id), "message {id} came twice");
        self.heard.push(Heard::Message(id));
    }
}
