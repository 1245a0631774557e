//! From a message to its room: it joins what the room gathers in this turn.

use std::sync::Arc;

use super::connection::{State, flag};
use super::room::{Gathered, Order, Reach, RoomIndex};
use super::{Quiet, Shard};
use crate::bus::{Batch, BatchMessage, MessageKind, RoomName, Upstream};
use crate::limits::{LANE_BYTES_MAX, ROOM_BATCH_BYTES_MAX, SERVER_HEADER_BYTES_MAX};
use crate::protocol::{CloseReason, OpCode, Utf8Validator, encode_header, unmask_extend};

/// A payload on its way into a room.
pub(super) enum Payload<'a> {
    /// As it came, still masked; text is not checked yet.
    Masked { bytes: &'a [u8], mask: [u8; 4] },
    /// Put together from frames, checked.
    Plain(&'a [u8]),
}

impl Payload<'_> {
    const fn len(&self) -> usize {
        match self {
            Self::Masked { bytes, .. } | Self::Plain(bytes) => bytes.len(),
        }
    }
}

/// The text was not UTF-8; nothing was published.
pub(super) struct NotUtf8;

impl Shard {
    /// Whether a message of `payload_bytes` may be published into `room` now. If not, its publisher waits.
    pub(super) fn has_publish_room(&mut self, room: RoomIndex, payload_bytes: usize) -> bool {
        let bytes = payload_bytes + SERVER_HEADER_BYTES_MAX + BatchMessage::BYTES;
        // Where no output is held, none will ever be given back: what fills the budget then is input that waits for
        // this very answer, so one message at a time goes.
        let output_bytes = self.gathered_bytes + self.ledger.meter().bytes();
        let admitted = self.ledger.admit(self.gathered_bytes + bytes as u64);
        if admitted.is_err() && output_bytes > 0 {
            return false;
        }
        let room = &self.rooms[room];
        match room.order {
            // One batch a room and turn: what is sent of it at once need not wait in the members' queues.
            Order::Here => room
                .incoming
                .as_ref()
                .is_none_or(|gathered| gathered.bytes.len() < ROOM_BATCH_BYTES_MAX),
            Order::Pending => false,
            // A message beyond the lane's bound goes when the lane carries nothing else (`LaneWriter::fits`).
            Order::Bus => {
                (self.bus_bytes >= bytes || self.bus_bytes >= LANE_BYTES_MAX)
                    && (room.outgoing.is_some() || self.bus_envelopes > 0)
            }
        }
    }

    /// Publishes a message of the connection `index`. The caller has asked [`Shard::has_publish_room`].
    pub(super) fn publish(
        &mut self,
        index: u32,
        kind: MessageKind,
        payload: &Payload<'_>,
    ) -> Result<(), NotUtf8> {
        let room_index = self.connections[index].room;
        let sender = Some(self.connections.id(self.core, index));
        let room = &mut self.rooms[room_index];
        let upwards = room.order == Order::Bus;
        let place = if upwards {
            &mut room.outgoing
        } else {
            &mut room.incoming
        };
        let is_first = place.is_none();
        let gathered = place.get_or_insert_with(|| {
            let mut gathered = self.spare_gathered.take(self.now);
            gathered
                .bytes
                .reserve_exact(payload.len() + SERVER_HEADER_BYTES_MAX);
            gathered
        });
        let start = gathered.bytes.len();
        let opcode = match kind {
            MessageKind::Text => OpCode::Text,
            MessageKind::Binary => OpCode::Binary,
            MessageKind::Close { .. } => OpCode::Close,
        };
        let header_bytes = encode_header(&mut gathered.bytes, true, opcode, payload.len());
        match *payload {
            Payload::Plain(bytes) => gathered.bytes.extend_from_slice(bytes),
            Payload::Masked { bytes, mask } => {
                unmask_extend(&mut gathered.bytes, bytes, mask, 0);
                if kind == MessageKind::Text {
                    let mut utf8 = Utf8Validator::default();
                    let text = &gathered.bytes[start + usize::from(header_bytes)..];
                    if utf8.push(text).is_err() || !utf8.is_complete() {
                        gathered.bytes.truncate(start);
                        if is_first {
                            *place = None;
                        }
                        return Err(NotUtf8);
                    }
                }
            }
        }
        let end = u32::try_from(gathered.bytes.len())
            .expect("bounded by the batch and the message limit");
        gathered.messages.push(BatchMessage {
            end,
            header_bytes,
            kind,
            sender,
        });
        let total = gathered.bytes.len();
        let weight_bytes = total - start + BatchMessage::BYTES;
        self.gathered_bytes += weight_bytes as u64;
        self.counters.messages_in += 1;
        self.counters.message_bytes_in += payload.len() as u64;
        if upwards {
            self.bus_bytes = self.bus_bytes.saturating_sub(weight_bytes);
            self.bus_envelopes -= usize::from(is_first);
        }
        if is_first {
            self.rooms_dirty.push(room_index);
        }
        if upwards && total >= ROOM_BATCH_BYTES_MAX {
            self.flush_outgoing(room_index);
        }
        Ok(())
    }

    /// A delivery of the backplane joins what the room gathers.
    pub(super) fn delivered(&mut self, room: &RoomName, batch: &Batch) {
        let Some(index) = self.rooms.find(room) else {
            return;
        };
        if self.rooms[index].order == Order::Bus {
            self.gather(index, batch);
        }
    }

    /// A publish of the admin API that this shard is to put in order. Without members, or without the lease, there was
    /// nobody in the room when it was published: see [`crate::bus::Downstream::Publish`].
    pub(super) fn publish_from_bus(&mut self, room: &RoomName, batch: &Batch) {
        if let Some(index) = self.rooms.find(room)
            && self.rooms[index].order == Order::Here
        {
            self.gather(index, batch);
        }
    }

    /// Takes in what others have put in order. Nobody here can be made to wait for it, so that what the ledger has no
    /// room for is sent to those who are idle and held for nobody: see [`Terms`](super::deliver::Terms).
    fn gather(&mut self, index: RoomIndex, batch: &Batch) {
        let room = &mut self.rooms[index];
        if room.incoming.is_none() {
            self.rooms_dirty.push(index);
        }
        let gathered = room
            .incoming
            .get_or_insert_with(|| self.spare_gathered.take(batch.published));
        let offset = u32::try_from(gathered.bytes.len()).expect("bounded by the batch limit");
        gathered.bytes.extend_from_slice(&batch.bytes);
        gathered
            .messages
            .extend(batch.messages.iter().map(|m| BatchMessage {
                end: m.end + offset,
                ..*m
            }));
        gathered.published = gathered.published.min(batch.published);
        gathered.unasked = true;
        self.gathered_bytes += batch.weight_bytes() as u64;
        if gathered.bytes.len() >= ROOM_BATCH_BYTES_MAX {
            self.flush_room(index);
        }
    }

    /// Delivers and forwards what all rooms gathered.
    pub(super) fn flush_rooms(&mut self) {
        // In the order in which they gathered: what one member hears of several rooms keeps close to how it came.
        let mut next = 0;
        while let Some(&index) = self.rooms_dirty.get(next) {
            next += 1;
            if self.rooms.is_open(index) {
                self.flush_room(index);
            }
        }
        self.rooms_dirty.clear();
        debug_assert_eq!(self.gathered_bytes, 0);
    }

    /// Delivers and forwards what one room gathered.
    pub(super) fn flush_room(&mut self, index: RoomIndex) {
        self.flush_outgoing(index);
        let room = &mut self.rooms[index];
        let Some(mut gathered) = room.incoming.take() else {
            return;
        };
        self.gathered_bytes -= gathered.weight_bytes() as u64;
        let closing = match room.reach {
            Reach::User => gathered.take_closing(),
            Reach::Members | Reach::Everybody => None,
        };
        if !gathered.messages.is_empty() {
            self.publish_fan_out(index, gathered);
        }
        // Delivering may have closed the last member, and the room with it.
        if let Some(closing) = closing
            && self.rooms.is_open(index)
        {
            self.close_user(index, &closing);
        }
    }

    /// Forwards what one room gathered for the bus.
    pub(super) fn flush_outgoing(&mut self, index: RoomIndex) {
        let room = &mut self.rooms[index];
        if let Some(gathered) = room.outgoing.take() {
            let Gathered {
                bytes,
                messages,
                published,
                ..
            } = *gathered;
            let batch = Arc::new(Batch {
                bytes,
                messages,
                published,
            });
            let weight_bytes = batch.weight_bytes();
            self.gathered_bytes -= weight_bytes as u64;
            let weight_bytes =
                u32::try_from(weight_bytes).expect("bounded by the batch and the message limit");
            let room = Arc::clone(&room.name);
            self.forward(Upstream::Publish { room, batch }, weight_bytes);
        }
    }

    /// The connection's publisher waits: it is not read until there is room for what it publishes.
    pub(super) fn pause_publisher(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if connection.set_first(flag::PAUSED) {
            self.paused.push((index, connection.generation));
        }
        if connection.set_first(flag::READ_PAUSED) {
            self.counters.publishers_paused += 1;
            self.work.quiet.push_back(Quiet::ReadPause(index));
        }
    }

    /// Lets the engine read the connection again, if it was told not to.
    pub(super) fn resume_reading(&mut self, index: u32) {
        let connection = &mut self.connections[index];
        if connection.has(flag::READ_PAUSED) {
            connection.clear(flag::READ_PAUSED);
            // Nobody could hear it meanwhile, and that was not its fault.
            connection.heard_ms = self.now.ms32();
            connection.message_ms = self.now.ms32();
            if let Some(inbox) = &mut connection.inbox {
                inbox.progress_ms = self.now.ms32();
            }
            self.work.quiet.push_back(Quiet::ReadResume(index));
        }
    }

    /// Lets publishers that wait try again, in the order in which they began to wait.
    pub(super) fn resume_publishers(&mut self) {
        let waiting = std::mem::take(&mut self.paused);
        for (index, generation) in waiting {
            let connection = &mut self.connections[index];
            if !connection.has(flag::PAUSED) || connection.generation != generation {
                continue; // it was closed since
            }
            let room = connection.room;
            if !self.has_publish_room(room, 0) {
                self.paused.push((index, generation));
                continue;
            }
            self.connections[index].clear(flag::PAUSED);
            self.receive_unread(index);
            let connection = &self.connections[index];
            if connection.has(flag::PAUSED) || connection.state != State::Open {
                continue;
            }
            if connection.has(flag::PEER_ENDED) {
                self.cut(index, CloseReason::PeerGone);
            } else {
                self.resume_reading(index);
            }
        }
    }
}
