//! Reading what a connection received: the upgrade's answer, then messages.

use throng::protocol::client::{Key, encode_key, parse_response};
use throng::protocol::{OpCode, parse_close};

use super::behaviour::{Behaviour, Cause, Plan, Reply};
use super::link::{Link, State, append_frame, read_messages};
use super::local::Share;
use super::outcome::Outcome;
use crate::clock::now_ns;
use crate::random::mix;

/// The close code that stands for "a close frame without a code" (RFC 6455 §7.4.1).
const CLOSE_WITHOUT_CODE: u16 = 1005;

/// What is to be done when an event's borrow of the ring has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// Send the upgrade's request.
    Request,
    /// Carry the reply out.
    Reply,
    /// Send what waits.
    Flush,
    /// Close the socket.
    Close,
}

/// The parts of an engine that reading needs while the ring lends the bytes.
pub struct Reader<'a, B> {
    /// What all workers have in common.
    pub plan: &'a Plan,
    /// This worker's members.
    pub share: Share,
    /// The scenario.
    pub behaviour: &'a mut B,
    /// What is counted.
    pub outcome: &'a mut Outcome,
    /// What is answered.
    pub reply: &'a mut Reply,
    /// The upgrade was answered with 101.
    pub opened: bool,
    /// It is over.
    pub lost: Option<Cause>,
}

impl<B: Behaviour> Reader<'_, B> {
    /// Bytes came for `link`.
    pub fn received(&mut self, link: &mut Link, bytes: &[u8]) -> Then {
        match link.state {
            State::Open => self.messages(link, bytes),
            State::Upgrading => self.answer(link, bytes),
            State::Free | State::Connecting | State::Ending | State::Closing => Then::Nothing,
        }
    }

    /// The upgrade's answer, or more of it.
    fn answer(&mut self, link: &mut Link, bytes: &[u8]) -> Then {
        let joined;
        let bytes = match link.partial.take() {
            None => bytes,
            Some(mut partial) => {
                partial.bytes.extend_from_slice(bytes);
                joined = partial.bytes;
                &joined
            }
        };
        let key = handshake_key(self.plan.seed, self.share.number(link.local));
        match parse_response(bytes, &key) {
            Ok(None) => {
                link.partial.get_or_insert_default().bytes = bytes.to_vec();
                Then::Nothing
            }
            Ok(Some(head_bytes)) => {
                let now = now_ns();
                link.state = State::Open;
                self.opened = true;
                self.outcome.upgraded += 1;
                self.outcome
                    .handshake
                    .saturating_record(now.saturating_sub(link.started_ns));
                self.behaviour.opened(link.local, now, self.reply);
                self.messages(link, &bytes[head_bytes..])
            }
            Err(error) => {
                self.outcome.refusal(&error);
                self.outcome
                    .error(|| format!("the upgrade was refused: {error}"));
                self.lost = Some(Cause::Refused(error.status.unwrap_or(0)));
                Then::Close
            }
        }
    }

    fn messages(&mut self, link: &mut Link, bytes: &[u8]) -> Then {
        let now = now_ns();
        let local = link.local;
        let mut closed_with = None;
        let read = read_messages(&mut link.partial, bytes, |message| match message.opcode {
            OpCode::Text | OpCode::Binary => {
                self.behaviour.message(local, message, now, self.reply)
            }
            OpCode::Ping => answer_control(self.reply, OpCode::Pong, message.payload),
            OpCode::Close => {
                closed_with = Some(
                    parse_close(message.payload)
                        .ok()
                        .flatten()
                        .map_or(CLOSE_WITHOUT_CODE, |(code, _)| code),
                );
                answer_control(self.reply, OpCode::Close, message.payload);
            }
            OpCode::Pong | OpCode::Continuation => {}
        });
        if let Err(error) = read {
            self.outcome.stream_errors += 1;
            self.outcome
                .error(|| format!("no stream of server frames: {error:?}"));
            self.lost = Some(Cause::Left); // counted above
            return Then::Close;
        }
        if let Some(code) = closed_with {
            link.state = State::Ending;
            self.lost = Some(Cause::Closed(code));
        }
        Then::Reply
    }
}

#[cold]
fn answer_control(reply: &mut Reply, opcode: OpCode, payload: &[u8]) {
    let mask = reply.masks.next();
    append_frame(&mut reply.bytes, opcode, mask, payload.len(), |out| {
        out.copy_from_slice(payload)
    });
}

/// The key of a member's request; made again when the answer is checked, so that it need not be kept.
pub fn handshake_key(seed: u64, number: u32) -> Key {
    let number = u64::from(number);
    encode_key([mix(seed ^ number), mix(seed.rotate_left(32) ^ number)])
}
