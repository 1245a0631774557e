//! From bytes to messages: frames, fragments, control frames (RFC 6455 §5, §8.1), limits.

use super::Shard;
use super::connection::{State, flag};
use super::inbox::{FrameProgress, Inbox, Partial};
use super::outbox::Reserve;
use super::publish::Payload;
use super::rate::RateState;
use crate::bus::MessageKind;
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use crate::protocol::{
    CloseReason, FrameHeader, OpCode, Role, Utf8Validator, decode_header, encode_header,
    parse_close, unmask_extend, unmask_in_place,
};
use crate::time::Tick;

/// Why decoding stops before the bytes do.
enum Stop {
    /// The rest is the beginning of something; it is kept until more comes.
    NeedMore,
    /// The publisher waits for room; the rest is kept.
    Wait,
    /// The connection is not open any more; the rest is nobody's.
    Ended,
}

impl Shard {
    /// Bytes came from the peer.
    pub(super) fn receive(&mut self, index: u32, bytes: &[u8]) {
        self.counters.bytes_in += bytes.len() as u64;
        let connection = &mut self.connections[index];
        connection.heard_ms = self.now.ms32();
        match connection.state {
            State::Open if connection.inbox.is_none() => self.receive_frames(index, bytes),
            State::Open => self.receive_behind(index, bytes),
            State::Handshake => self.receive_request(index, bytes),
            State::Joining => self.keep_unread(index, bytes, false),
            State::Closing | State::Dead | State::Vacant => {}
        }
    }

    /// Decodes frames out of `bytes` and keeps what is left.
    pub(super) fn receive_frames(&mut self, index: u32, bytes: &[u8]) {
        let mut rest = bytes;
        let stop = loop {
            match self.receive_step(index, &mut rest) {
                Ok(()) => {}
                Err(stop) => break stop,
            }
        };
        match stop {
            Stop::NeedMore | Stop::Wait if !rest.is_empty() => {
                self.keep_unread(index, rest, matches!(stop, Stop::Wait));
            }
            Stop::NeedMore | Stop::Wait | Stop::Ended => {}
        }
        if rest.len() < bytes.len()
            && let Some(inbox) = &mut self.connections[index].inbox
            && inbox.partial.is_none()
        {
            inbox.progress_ms = self.now.ms32(); // what is begun now began behind a whole frame
        }
        self.drop_empty_inbox(index);
    }

    /// Bytes came while earlier ones wait.
    fn receive_behind(&mut self, index: u32, bytes: &[u8]) {
        let connection = &self.connections[index];
        let paused = connection.has(flag::PAUSED);
        if paused
            || connection
                .inbox
                .as_ref()
                .is_some_and(|inbox| !inbox.unread.is_empty())
        {
            self.keep_unread(index, bytes, paused);
            if !paused {
                self.receive_unread(index);
            }
            return;
        }
        self.receive_frames(index, bytes);
    }

    /// Decodes what was kept.
    pub(super) fn receive_unread(&mut self, index: u32) {
        let Some(inbox) = &mut self.connections[index].inbox else {
            return;
        };
        let unread = inbox.take_unread(&mut self.ledger);
        self.receive_frames(index, &unread);
    }

    /// Keeps bytes that cannot be used yet. `owed`: whatever the limits say, since the engine bounds them.
    pub(super) fn keep_unread(&mut self, index: u32, bytes: &[u8], owed: bool) {
        if !matches!(
            self.connections[index].state,
            State::Open | State::Joining | State::Handshake
        ) {
            return;
        }
        let kept = self.inbox(index, owed).and_then(|()| {
            let inbox = self.connections[index].inbox.as_mut().expect("made above");
            inbox.keep_unread(bytes, &mut self.ledger, owed)
        });
        let unread = self.connections[index]
            .inbox
            .as_ref()
            .map_or(0, |inbox| inbox.unread.len());
        if kept.is_err() || (!owed && unread > self.unread_bytes_max()) {
            self.fail(index, CloseReason::OverBudget);
        }
    }

    /// What a connection may have waiting that is not part of a message: a request, or what comes before its answer.
    fn unread_bytes_max(&self) -> usize {
        (self.options.message_bytes_max as usize).max(self.handshake.bytes_max) + 64 * 1024
    }

    fn inbox(&mut self, index: u32, owed: bool) -> Result<(), super::ledger::Refused> {
        if self.connections[index].inbox.is_none() {
            self.connections[index].inbox =
                Some(Inbox::open(&mut self.ledger, self.now.ms32(), owed)?);
        }
        Ok(())
    }

    pub(super) fn drop_empty_inbox(&mut self, index: u32) {
        if self.connections[index]
            .inbox
            .as_ref()
            .is_some_and(|inbox| inbox.is_empty())
        {
            self.drop_inbox(index);
        }
    }

    pub(super) fn drop_inbox(&mut self, index: u32) {
        if let Some(inbox) = self.connections[index].inbox.take() {
            self.ledger.refund(inbox.charged_bytes());
        }
    }

    /// One step: a piece of the frame that is coming, a whole message that waits, or the next frame.
    fn receive_step(&mut self, index: u32, rest: &mut &[u8]) -> Result<(), Stop> {
        let connection = &mut self.connections[index];
        if connection.state != State::Open {
            return Err(Stop::Ended);
        }
        if let Some(inbox) = &mut connection.inbox
            && let Some(partial) = &mut inbox.partial
        {
            if partial.whole {
                return self.publish_partial(index);
            }
            if let Some(frame) = &mut partial.frame {
                let count = rest
                    .len()
                    .min((frame.payload_bytes - frame.received_bytes) as usize);
                let (bytes, behind) = rest.split_at(count);
                *rest = behind;
                if count > 0 {
                    inbox.progress_ms = self.now.ms32();
                }
                unmask_extend(
                    &mut partial.payload,
                    bytes,
                    frame.mask,
                    frame.received_bytes as usize,
                );
                #[allow(clippy::cast_possible_truncation)] // at most payload_bytes
                let received = frame.received_bytes + count as u32;
                frame.received_bytes = received;
                let FrameProgress {
                    payload_bytes, fin, ..
                } = *frame;
                if received == payload_bytes {
                    partial.frame = None;
                    partial.whole = fin;
                }
                let is_valid = partial.kind == MessageKind::Binary || {
                    let from = partial.payload.len() - count;
                    partial.utf8.push(&partial.payload[from..]).is_ok()
                        && (!partial.whole || partial.utf8.is_complete())
                };
                if !is_valid {
                    return Err(self.fail_and_stop(index, CloseReason::InvalidUtf8));
                }
                return if received == payload_bytes {
                    Ok(())
                } else {
                    Err(Stop::NeedMore)
                };
            }
        }
        if rest.is_empty() {
            return Err(Stop::NeedMore);
        }
        let header = match decode_header(rest, Role::Server) {
            Ok(Some(header)) => header,
            Ok(None) => return Err(Stop::NeedMore),
            Err(error) => return Err(self.fail_and_stop(index, error.close_reason())),
        };
        if header.opcode.is_control() {
            self.control_frame(index, &header, rest)
        } else {
            self.data_frame(index, &header, rest)
        }
    }

    /// Ends the connection for what it sent. What it had published before still reaches its room, itself included.
    #[cold]
    fn fail_and_stop(&mut self, index: u32, reason: CloseReason) -> Stop {
        let room = self.connections[index].room;
        self.flush_room(room);
        self.fail(index, reason); // unless that delivery has ended it already
        Stop::Ended
    }

    /// A data frame begins (RFC 6455 §5.4, §5.6).
    fn data_frame(
        &mut self,
        index: u32,
        header: &FrameHeader,
        rest: &mut &[u8],
    ) -> Result<(), Stop> {
        let connection = &self.connections[index];
        let partial = connection
            .inbox
            .as_ref()
            .and_then(|inbox| inbox.partial.as_ref());
        let kind = match (header.opcode, partial) {
            (OpCode::Text, None) => MessageKind::Text,
            (OpCode::Binary, None) => MessageKind::Binary,
            (OpCode::Continuation, Some(partial)) => partial.kind,
            _ => return Err(self.fail_and_stop(index, CloseReason::ProtocolError)),
        };
        let message_bytes =
            partial.map_or(0, |partial| partial.payload.len() as u64) + header.payload_bytes;
        let fragment_count = partial.map_or(0, |partial| partial.fragment_count) + 1;
        if message_bytes > u64::from(self.options.message_bytes_max)
            || fragment_count > self.options.message_fragment_count_max
        {
            return Err(self.fail_and_stop(index, CloseReason::MessageTooBig));
        }
        let mask = header.mask.unwrap_or_default();
        #[allow(clippy::cast_possible_truncation)] // at most message_bytes_max
        let (payload_bytes, header_bytes) = (
            header.payload_bytes as usize,
            usize::from(header.header_bytes),
        );
        if partial.is_none() && header.fin && rest.len() >= header_bytes + payload_bytes {
            // The common case: a whole message, used where it lies.
            let room = connection.room;
            if !self.has_publish_room(room, payload_bytes) {
                self.pause_publisher(index);
                return Err(Stop::Wait);
            }
            let (frame, behind) = rest.split_at(header_bytes + payload_bytes);
            self.take_rate(index, payload_bytes)?;
            let payload = Payload::Masked {
                bytes: &frame[header_bytes..],
                mask,
            };
            let Ok(()) = self.publish(index, kind, &payload) else {
                return Err(self.fail_and_stop(index, CloseReason::InvalidUtf8));
            };
            *rest = behind;
            return Ok(());
        }
        *rest = &rest[header_bytes..];
        self.begin_frame(index, kind, header.fin, payload_bytes, mask)
    }

    /// Begins or goes on with a message that is put together from several pieces. Charged as announced.
    fn begin_frame(
        &mut self,
        index: u32,
        kind: MessageKind,
        fin: bool,
        payload_bytes: usize,
        mask: [u8; 4],
    ) -> Result<(), Stop> {
        if self.inbox(index, false).is_err() {
            return Err(self.fail_and_stop(index, CloseReason::OverBudget));
        }
        let inbox = self.connections[index].inbox.as_mut().expect("made above");
        if inbox.partial.is_none() {
            inbox.progress_ms = self.now.ms32();
        }
        let partial = inbox.partial.get_or_insert_with(|| Partial {
            kind,
            payload: Vec::new(),
            fragment_count: 0,
            utf8: Utf8Validator::default(),
            frame: None,
            whole: false,
        });
        partial.fragment_count += 1;
        partial.frame = Some(FrameProgress {
            mask,
            payload_bytes: u32::try_from(payload_bytes).expect("at most message_bytes_max"),
            received_bytes: 0,
            fin,
        });
        if inbox
            .announce(
                payload_bytes,
                self.options.message_bytes_max as usize,
                &mut self.ledger,
            )
            .is_err()
        {
            return Err(self.fail_and_stop(index, CloseReason::OverBudget));
        }
        Ok(())
    }

    /// Publishes a message that is whole.
    fn publish_partial(&mut self, index: u32) -> Result<(), Stop> {
        let connection = &self.connections[index];
        let room = connection.room;
        let partial = connection
            .inbox
            .as_ref()
            .and_then(|inbox| inbox.partial.as_ref())
            .expect("the caller saw it");
        let payload_bytes = partial.payload.len();
        if !self.has_publish_room(room, payload_bytes) {
            self.pause_publisher(index);
            return Err(Stop::Wait);
        }
        let inbox = self.connections[index]
            .inbox
            .as_mut()
            .expect("the caller saw it");
        let partial = inbox
            .take_partial(&mut self.ledger)
            .expect("the caller saw it");
        self.take_rate(index, payload_bytes)?;
        let published = self.publish(index, partial.kind, &Payload::Plain(&partial.payload));
        debug_assert!(published.is_ok(), "its text was checked as it came");
        Ok(())
    }

    /// Holds a message against the connection's rate limits, and notes that one came.
    fn take_rate(&mut self, index: u32, payload_bytes: usize) -> Result<(), Stop> {
        let options = &self.options;
        let connection = &mut self.connections[index];
        connection.message_ms = self.now.ms32();
        if options.messages_per_s_max == 0 && options.message_bytes_per_s_max == 0 {
            return Ok(());
        }
        if connection.rate.is_none() {
            self.ledger.charge_owed(RateState::BYTES);
        }
        let rate = connection.rate.get_or_insert_with(|| {
            let (messages, bytes) = (options.messages_per_s_max, options.message_bytes_per_s_max);
            Box::new(RateState::new(
                messages,
                bytes,
                options.message_bytes_max,
                self.now,
            ))
        });
        if rate.take(u32::try_from(payload_bytes).unwrap_or(u32::MAX), self.now) {
            Ok(())
        } else {
            Err(self.fail_and_stop(index, CloseReason::RateLimited))
        }
    }

    /// A control frame, used once it is whole (RFC 6455 §5.5).
    fn control_frame(
        &mut self,
        index: u32,
        header: &FrameHeader,
        rest: &mut &[u8],
    ) -> Result<(), Stop> {
        let header_bytes = usize::from(header.header_bytes);
        #[allow(clippy::cast_possible_truncation)] // at most 125: the decoder refuses more
        let payload_bytes = header.payload_bytes as usize;
        if rest.len() < header_bytes + payload_bytes {
            return Err(Stop::NeedMore);
        }
        let (frame, behind) = rest.split_at(header_bytes + payload_bytes);
        *rest = behind;
        let mut buffer = [0; CONTROL_PAYLOAD_BYTES_MAX];
        let payload = &mut buffer[..payload_bytes];
        payload.copy_from_slice(&frame[header_bytes..]);
        unmask_in_place(payload, header.mask.unwrap_or_default(), 0);
        match header.opcode {
            OpCode::Ping => {
                let mut pong = Vec::with_capacity(payload.len() + 2);
                encode_header(&mut pong, true, OpCode::Pong, payload.len());
                pong.extend_from_slice(payload);
                // A peer that pings and does not read gets no more than the reserve holds (§5.5.3 allows it).
                self.counters.pings_answered +=
                    u64::from(self.queue_control(index, pong, Reserve::Control));
            }
            OpCode::Pong => self.ponged(index, payload),
            OpCode::Close => match parse_close(payload) {
                Ok(verdict) => {
                    let code = verdict.map(|(code, _)| code);
                    self.peer_closed(index, code);
                    return Err(Stop::Ended);
                }
                Err(error) => return Err(self.fail_and_stop(index, error.close_reason())),
            },
            OpCode::Continuation | OpCode::Text | OpCode::Binary => {
                unreachable!("the caller looked")
            }
        }
        Ok(())
    }

    /// A pong; ours carries the ping's time in microseconds, big-endian.
    fn ponged(&mut self, index: u32, payload: &[u8]) {
        let connection = &mut self.connections[index];
        if !connection.has(flag::AWAITING_PONG) {
            return; // unsolicited: allowed (§5.5.3), means nothing
        }
        if let Ok(stamp) = payload.try_into().map(u64::from_be_bytes)
            && stamp <= self.now.0
            && Tick(stamp).ms32() == connection.mark_ms
        // the one that was sent, not one made up
        {
            connection.clear(flag::AWAITING_PONG);
            self.counters.pongs_received += 1;
            self.counters.round_trip.record(self.now.0 - stamp, 1);
        }
    }
}
