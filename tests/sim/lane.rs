//! Lanes between cores as `bus::lane` has them, but so short that they are full most of the time.

use std::collections::VecDeque;

/// Envelopes that only control may use.
const CONTROL_RESERVE: usize = 8;

pub struct Lane<T> {
    envelopes: VecDeque<(T, u32)>,
    bytes: usize,
    envelope_count_max: usize,
    bytes_max: usize,
}

impl<T> Lane<T> {
    pub const fn new(envelope_count_max: usize, bytes_max: usize) -> Self {
        Self {
            envelopes: VecDeque::new(),
            bytes: 0,
            envelope_count_max,
            bytes_max,
        }
    }

    pub fn data_room(&self) -> usize {
        self.envelope_count_max.saturating_sub(self.envelopes.len())
    }

    pub const fn bytes_room(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    /// An empty lane takes a message of any size, as the real one does.
    pub fn fits(&self, bytes: u32) -> bool {
        self.data_room() > 0 && (self.bytes_room() >= bytes as usize || self.bytes == 0)
    }

    pub fn fits_control(&self) -> bool {
        self.envelopes.len() < self.envelope_count_max + CONTROL_RESERVE
    }

    pub fn push(&mut self, envelope: T, bytes: u32) {
        self.bytes += bytes as usize;
        self.envelopes.push_back((envelope, bytes));
    }

    pub fn pop(&mut self) -> Option<T> {
        let (envelope, bytes) = self.envelopes.pop_front()?;
        self.bytes -= bytes as usize;
        Some(envelope)
    }

    pub fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }
}
