//! The engine's side of one socket, as the shard's contract describes it.

use std::collections::VecDeque;

/// A socket between a shard and a client.
#[derive(Debug)]
pub struct Socket {
    pub client: usize,
    pub opened: bool,
    pub paused: bool,
    /// Something may have arrived before the pause took hold.
    pub late_read: bool,
    /// The send in flight, what is left of it.
    pub in_flight: Option<VecDeque<u8>>,
    /// In the kernel, for the client to read.
    pub kernel: VecDeque<u8>,
    pub kernel_bytes_max: usize,
    pub write_ended: bool,
    pub end_reported: bool,
    /// The shard asked for the end; `Closed` follows.
    pub closing: bool,
}

impl Socket {
    pub const fn new(client: usize, kernel_bytes_max: usize) -> Self {
        Self {
            client,
            opened: false,
            paused: false,
            late_read: false,
            in_flight: None,
            kernel: VecDeque::new(),
            kernel_bytes_max,
            write_ended: false,
            end_reported: false,
            closing: false,
        }
    }

    /// Takes a send over.
    pub fn send<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        assert!(self.opened && !self.closing, "a send to nobody");
        assert!(!self.write_ended, "a send behind the end of our stream");
        assert!(self.in_flight.is_none(), "two sends in flight");
        let bytes: VecDeque<u8> = pieces.flatten().copied().collect();
        assert!(!bytes.is_empty(), "an empty send");
        self.in_flight = Some(bytes);
    }

    /// The kernel takes up to `max` bytes of the send in flight: how many, and whether that was all.
    pub fn write(&mut self, max: usize) -> Option<(u32, bool)> {
        let bytes = self.in_flight.as_mut()?;
        let room = self.kernel_bytes_max.saturating_sub(self.kernel.len());
        let count = bytes.len().min(max).min(room);
        if count == 0 {
            return None;
        }
        self.kernel.extend(bytes.drain(..count));
        let done = bytes.is_empty();
        if done {
            self.in_flight = None;
        }
        Some((u32::try_from(count).unwrap(), done))
    }
}
