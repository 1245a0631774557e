//! A connection's life: accept, request, join, leave, close.
//!
//! ```text
//! open ─▶ Handshake ─▶ (Joining ─▶) Open ─▶ Closing ─▶ Dead ─▶ closed
//!             │             │          └────────────────▲
//!             └─ refused ───┴─▶ Closing                 └─ broken, timed out
//! ```

use std::net::SocketAddr;

use super::connection::{CONNECTION_IDLE_BYTES, State, flag};
use super::outbox::Reserve;
use super::rate::RateState;
use super::room::{Order, Reach, RoomIndex, TableFull};
use super::users::Identity;
use super::{Delivery, Quiet, Shard};
use crate::bus::{RoomName, Upstream};
use crate::metrics::RefusalKind;
use crate::protocol::handshake::{self, HeadScan, ParsedRequest, Refusal, Route, Upgrade};
use crate::protocol::{CloseReason, OpCode, close_frame, encode_header};

impl Shard {
    pub(super) fn open(&mut self, index: u32, peer: SocketAddr) {
        self.counters.accepted += 1;
        let connection = self.connections.open(index, peer, self.now);
        connection.mark_ms = self.now.ms32();
        // Owed: the socket is there already. Whether it may become a connection is asked at the upgrade.
        self.ledger
            .charge_owed(u32::try_from(CONNECTION_IDLE_BYTES).expect("small"));
        let is_welcome = self.meet(index);
        let may_stay = self.node.count_socket();
        if self.drain.is_cut() {
            self.cut(index, CloseReason::Draining);
        } else if !may_stay {
            self.cut(index, CloseReason::OverBudget); // an answer would take what there is not
        } else if !is_welcome {
            self.cut(index, CloseReason::NotUpgraded);
        }
    }

    /// Bytes of a request came.
    pub(super) fn receive_request(&mut self, index: u32, bytes: &[u8]) {
        if self.connections[index].inbox.is_none() {
            self.requests(index, bytes, HeadScan::default());
            return;
        }
        self.keep_unread(index, bytes, false);
        let Some(inbox) = &mut self.connections[index].inbox else {
            return;
        };
        let scan = inbox.head_scan;
        let unread = inbox.take_unread(&mut self.ledger);
        self.drop_empty_inbox(index);
        self.requests(index, &unread, scan);
    }

    /// Answers the requests in `bytes`; the end of an unfinished one is kept. `scan`: how far its end was looked for.
    fn requests(&mut self, index: u32, mut bytes: &[u8], mut scan: HeadScan) {
        if self.connections[index].has(flag::PROXY_AWAITED) {
            match self.take_proxy_header(index, bytes) {
                Some(rest) => bytes = rest,
                None => return,
            }
        }
        while !bytes.is_empty() && self.connections[index].state == State::Handshake {
            let parsed = if scan == HeadScan::default() {
                handshake::parse_request(bytes, &self.handshake)
            } else {
                Ok(None)
            };
            let parsed = match parsed {
                Ok(None) => scan
                    .advance(bytes, &self.handshake)
                    .and_then(|end| match end {
                        Some(_) => handshake::parse_request(bytes, &self.handshake),
                        None => Ok(None),
                    }),
                parsed => parsed,
            };
            match parsed {
                Ok(Some(request)) => {
                    let route = self.admit_address(index).and_then(|()| {
                        let from_proxy = self.connections[index].has(flag::FROM_PROXY);
                        handshake::route(&request, &self.handshake, from_proxy)
                    });
                    match route {
                        Ok(route) => self.routed(index, &request, &route),
                        Err(refusal) => self.refuse(index, &refusal),
                    }
                    bytes = &bytes[request.head_bytes..];
                    scan = HeadScan::default();
                }
                Ok(None) => {
                    self.keep_unread(index, bytes, false);
                    if let Some(inbox) = &mut self.connections[index].inbox {
                        inbox.head_scan = scan;
                    }
                    return;
                }
                Err(refusal) => self.refuse(index, &refusal),
            }
        }
        if bytes.is_empty() {
            return;
        }
        match self.connections[index].state {
            State::Open => self.receive_frames(index, bytes),
            State::Joining => self.keep_unread(index, bytes, false),
            _ => {}
        }
    }

    fn routed(&mut self, index: u32, request: &ParsedRequest<'_>, route: &Route<'_>) {
        match route {
            Route::Upgrade(upgrade) => {
                let admitted = self.admit_forwarded(index, request);
                if let Err(refusal) = admitted.and_then(|()| self.upgrade(index, upgrade)) {
                    self.refuse(index, &refusal);
                }
            }
            Route::Health(health) => {
                self.counters.health_checks += 1;
                let mut answer = Vec::new();
                let keep_alive =
                    handshake::answer_health(&mut answer, !self.drain.is_begun(), *health);
                let queued = self.queue_control(index, answer, Reserve::Control);
                let connection = &mut self.connections[index];
                connection.set(flag::HEALTH_ANSWERED);
                connection.mark_ms = self.now.ms32();
                if !keep_alive || !queued {
                    self.end(index, CloseReason::NotUpgraded);
                }
            }
        }
    }

    /// Admits the connection and puts it into its room, or says why not and changes nothing.
    fn upgrade(&mut self, index: u32, upgrade: &Upgrade<'_>) -> Result<(), Refusal> {
        let refusal = |kind| Err(Refusal::of(kind));
        if self.drain.window_is_over(self.now) {
            return refusal(RefusalKind::Draining);
        }
        if !self.handshake_bucket.take(1, self.now) {
            return refusal(RefusalKind::HandshakeRate);
        }
        if self.ledger.is_tight(0) {
            return refusal(RefusalKind::OverBudget);
        }
        let user = upgrade.user.as_deref();
        let identity_bytes = user.map_or(0, Identity::bytes);
        if identity_bytes > 0 && self.ledger.is_tight(u64::from(identity_bytes)) {
            return refusal(RefusalKind::OverBudget);
        }
        if !self.node.admit_connection() {
            return refusal(RefusalKind::NodeFull);
        }
        if user.is_some_and(|user| !self.node.admit_user(user)) {
            self.node.release_connection();
            return refusal(RefusalKind::UserFull);
        }
        if let Err(TableFull) = self.join(index, &upgrade.room) {
            if let Some(user) = user {
                self.node.release_user(user);
            }
            self.node.release_connection();
            return refusal(RefusalKind::OverBudget);
        }
        if let Some(user) = user {
            self.ledger.charge_owed(identity_bytes); // asked for above
            self.join_user(index, user);
        }
        let connection = &mut self.connections[index];
        connection.set(flag::ADMITTED);
        for (bit, is_set) in [
            (flag::NO_ECHO, !upgrade.echo),
            (flag::NO_NOTICES, !upgrade.notices),
        ] {
            if is_set {
                connection.set(bit);
            }
        }
        let lines = self.handshake.edge.badge.lines(upgrade.knows_node);
        let mut answer = Vec::with_capacity(handshake::UPGRADE_FIXED_BYTES + lines.len());
        handshake::answer_upgrade(&mut answer, &upgrade.accept, lines);
        connection.state = State::Joining;
        if self.must_wait(index) {
            self.joining.insert(index, answer);
        } else {
            self.opened(index, answer);
        }
        Ok(())
    }

    /// Answers the upgrade: the connection is a member of its room, and of its user's.
    fn opened(&mut self, index: u32, answer: Vec<u8>) {
        // What these have gathered came before it.
        let own = self.connections[index].room;
        let users = self.users.identity(index).map(|identity| identity.room);
        for room in [Some(own), users, Some(self.everybody)]
            .into_iter()
            .flatten()
        {
            self.flush_room(room);
            if self.connections[index].state != State::Joining {
                return; // its user is disconnected in this very turn
            }
        }
        self.counters.upgraded += 1;
        self.connections_open += 1;
        self.connections[index].state = State::Open;
        self.connections[index].message_ms = self.now.ms32();
        if let Some(inbox) = &mut self.connections[index].inbox {
            inbox.progress_ms = self.now.ms32(); // what came before the answer has waited for us
        }
        let queued = self.queue_control(index, answer, Reserve::Control);
        debug_assert!(queued, "an empty queue takes the answer");
        self.note_presence(index, false);
    }

    /// Makes the connection a member of the room `name`.
    fn join(&mut self, index: u32, name: &str) -> Result<(), TableFull> {
        let order = match self.delivery {
            Delivery::Inline => Order::Here,
            Delivery::Bus => Order::Pending,
        };
        if let Some(room_index) = self.rooms.find(name) {
            self.flush_room(room_index); // what came before it is not for it
        }
        let room_index = self.rooms.find_or_open(name, order)?;
        let room = &mut self.rooms[room_index];
        let connection = &mut self.connections[index];
        connection.room = room_index;
        connection.member_index =
            u32::try_from(room.members.len()).expect("bounded by the connections");
        room.members.push(index);
        if room.order == Order::Pending && room.members.len() == 1 {
            self.send_interest(room_index);
        }
        Ok(())
    }

    /// The backplane answered our interest: whoever waited is in.
    pub(super) fn joined(&mut self, name: &RoomName, leased: bool) {
        let Some(room_index) = self.rooms.find(name) else {
            return;
        };
        let room = &mut self.rooms[room_index];
        room.answers_due = room.answers_due.saturating_sub(1);
        if room.answers_due > 0 {
            return; // the answer to an interest that was given up since
        }
        if room.members.is_empty() && room_index != self.everybody {
            self.rooms.close(room_index);
            return;
        }
        room.order = if leased { Order::Here } else { Order::Bus };
        self.tell_absence(room_index);
        self.let_in(room_index);
    }

    /// Answers those who have waited for the room and wait for nothing else.
    pub(super) fn let_in(&mut self, room_index: RoomIndex) {
        for index in self.waiting(room_index) {
            // Who was let in before this one may have taken it along: a delivery has met its budget.
            if self.connections[index].state != State::Joining || self.must_wait(index) {
                continue;
            }
            if let Some(answer) = self.joining.remove(&index) {
                self.opened(index, answer);
                self.receive_unread(index);
            }
        }
    }

    /// Another shard wants a room that this shard puts in order.
    pub(super) fn lease_revoked(&mut self, name: RoomName) {
        let Some(room_index) = self.rooms.find(&name) else {
            return;
        };
        if self.delivery == Delivery::Bus && self.rooms[room_index].order == Order::Here {
            self.flush_room(room_index);
            // Delivering may have closed the last member, and the room with it; its disinterest has gone up then.
            if self.rooms.find(&name) == Some(room_index)
                && (room_index == self.everybody || !self.rooms[room_index].members.is_empty())
            {
                self.rooms[room_index].order = Order::Bus;
                self.forward(Upstream::LeaseReturned { room: name }, 0);
            }
        }
    }

    /// Takes the connection out of its rooms.
    fn leave(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        let room_index = std::mem::replace(&mut connection.room, RoomIndex::NONE);
        if room_index == RoomIndex::NONE {
            return;
        }
        let at = connection.member_index;
        self.leave_room(room_index, at);
        self.leave_user(index);
    }

    /// Takes the member at the place `at` out of the room.
    pub(super) fn leave_room(&mut self, room_index: RoomIndex, at: u32) {
        let room = &mut self.rooms[room_index];
        room.members.swap_remove(at as usize);
        if let Some(&moved) = room.members.get(at as usize) {
            match room.reach {
                Reach::User => self.users.moved(moved, at),
                Reach::Members | Reach::Everybody => self.connections[moved].member_index = at,
            }
        }
        if !room.members.is_empty() {
            return;
        }
        self.absent.remove(room_index);
        if let Some(gathered) = room.incoming.take() {
            self.gathered_bytes -= gathered.weight_bytes() as u64; // nobody is left to get it
        }
        if self.delivery == Delivery::Bus {
            self.flush_outgoing(room_index); // others may be
            let name = RoomName::clone(&self.rooms[room_index].name);
            self.forward(Upstream::Disinterest { room: name }, 0);
            if self.rooms[room_index].answers_due > 0 {
                return; // kept until the answers have come
            }
        }
        self.rooms.close(room_index);
    }

    /// Answers an HTTP request with an error and closes.
    pub(super) fn refuse(&mut self, index: u32, refusal: &Refusal) {
        self.counters.refused[refusal.kind as usize] += 1;
        let retry_after_s = matches!(refusal.kind.status(), 429 | 503).then(|| {
            let base = self.options.retry_after_s;
            base + self.jittered(base)
        });
        let mut answer = Vec::new();
        handshake::answer_refusal(&mut answer, refusal, retry_after_s);
        self.queue_control(index, answer, Reserve::Close);
        self.end(index, CloseReason::NotUpgraded);
    }

    /// Ends the connection for a fault or a limit: tells the peer where there is a code for it.
    #[cold]
    pub(super) fn fail(&mut self, index: u32, reason: CloseReason) {
        match (self.connections[index].state, reason.code()) {
            (State::Open, Some(code)) => {
                if matches!(reason, CloseReason::SlowConsumer | CloseReason::OverBudget) {
                    self.drop_messages(index);
                }
                self.close_with(index, reason, &close_frame_of(code, reason));
            }
            (State::Closing | State::Dead | State::Vacant, _) => {}
            _ => self.cut(index, reason),
        }
    }

    /// The peer sent a close frame: what it published goes first, then its code goes back (RFC 6455 §5.5.1).
    pub(super) fn peer_closed(&mut self, index: u32, code: Option<u16>) {
        let room = self.connections[index].room;
        self.flush_room(room);
        if self.connections[index].state == State::Open {
            let mut frame = Vec::new();
            match code {
                Some(code) => close_frame(&mut frame, code, ""),
                None => _ = encode_header(&mut frame, true, OpCode::Close, 0),
            }
            self.close_with(index, CloseReason::PeerClosed, &frame);
        }
    }

    /// Queues a close frame behind everything that is queued, and ends the connection.
    pub(super) fn close_with(&mut self, index: u32, reason: CloseReason, frame: &[u8]) {
        self.queue_gap_notice(index); // nothing may come behind the close frame
        let queued = self.queue_control(index, frame.to_vec(), Reserve::Close);
        debug_assert!(queued, "the end of the reserve is kept for it");
        self.end(index, reason);
    }

    /// From here on the connection only gets what is queued; then our side of the stream is ended.
    fn end(&mut self, index: u32, reason: CloseReason) {
        self.note_presence(index, true);
        self.leave(index);
        self.unlist(index);
        let connection = &mut self.connections[index];
        connection.state = State::Closing;
        connection.reason = reason;
        connection.mark_ms = self.now.ms32();
        connection.clear(flag::AWAITING_PONG);
        self.counters.closed[reason as usize] += 1;
        if !self.connections[index].has(flag::SENDING) && self.connections[index].outbox.is_none() {
            self.all_sent(index);
        }
    }

    /// Gives up what an open connection has and one that only drains has not.
    fn unlist(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        self.connections_open -= u64::from(connection.state == State::Open);
        if connection.has(flag::PAUSED) {
            connection.clear(flag::PAUSED); // its place in the list is passed over
        }
        self.resume_reading(index);
        if self.connections[index].rate.take().is_some() {
            self.ledger.refund(RateState::BYTES);
        }
        self.joining.remove(&index);
        self.drop_inbox(index);
    }

    /// A closing connection has nothing left to send.
    pub(super) fn all_sent(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if connection.has(flag::PEER_ENDED) || connection.reason == CloseReason::PeerClosed {
            connection.state = State::Dead;
            self.work.quiet.push_back(Quiet::Close(index));
        } else if connection.set_first(flag::WRITE_ENDED) {
            // Closing with unread input would reset the connection, and could take our last bytes with it.
            self.work.quiet.push_back(Quiet::ShutdownWrite(index));
        }
    }

    /// Ends the connection at once.
    pub(super) fn cut(&mut self, index: u32, reason: CloseReason) {
        match self.connections[index].state {
            State::Vacant | State::Dead => return,
            State::Closing => {}
            State::Handshake | State::Joining | State::Open => {
                self.note_presence(index, true);
                self.leave(index);
                self.unlist(index);
                self.connections[index].reason = reason;
                self.counters.closed[reason as usize] += 1;
            }
        }
        self.drop_queue(index);
        self.connections[index].state = State::Dead;
        self.work.quiet.push_back(Quiet::Close(index));
    }

    /// The peer's stream has ended.
    pub(super) fn receive_ended(&mut self, index: u32, broken: bool) {
        let connection = &mut self.connections[index];
        connection.set(flag::PEER_ENDED);
        match connection.state {
            // What it published before is still served; then it is cut.
            State::Open if connection.has(flag::PAUSED) && !broken => {}
            State::Closing
                if !broken && (connection.has(flag::SENDING) || connection.outbox.is_some()) => {}
            // It wants its answer, and no other.
            State::Handshake
                if !broken && (connection.has(flag::SENDING) || connection.outbox.is_some()) =>
            {
                self.end(index, CloseReason::NotUpgraded);
            }
            _ => self.cut(
                index,
                if broken {
                    CloseReason::PeerReset
                } else {
                    CloseReason::PeerGone
                },
            ),
        }
    }

    pub(super) fn write_failed(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if connection.state != State::Dead {
            connection.clear(flag::SENDING);
            connection.queued_bytes = connection
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.queued_bytes());
            self.cut(index, CloseReason::PeerReset);
        }
    }

    /// The engine has nothing left of the socket: the slot is free.
    pub(super) fn closed(&mut self, index: u32) {
        if self.connections[index].state != State::Dead {
            // The engine closed it unasked: there is nothing left to be done to the socket.
            self.cut(index, CloseReason::PeerReset);
            self.work.quiet.retain(|quiet| !quiet.is_about(index));
        }
        let connection = &self.connections[index];
        if connection.has(flag::ADMITTED) {
            self.node.release_connection();
        }
        if connection.has(flag::ADDRESS_COUNTED) {
            self.node.release_address(connection.peer().ip());
        }
        self.node.release_socket();
        self.ledger.refund(connection.charged_bytes());
        self.connections.vacate(index);
        if self.connections.count() == 0 {
            self.ledger.settle(); // no sweep does, while nobody is here
        }
    }
}

fn close_frame_of(code: u16, reason: CloseReason) -> Vec<u8> {
    let mut frame = Vec::new();
    close_frame(&mut frame, code, reason.label());
    frame
}
