//! Encoded bytes on their way out, shared by every recipient on a core.

use std::cell::Cell;
use std::rc::Rc;

/// Adds up the bytes of all [`Encoded`] that were made with it and still live.
///
/// The ledger reads it: bytes that a thousand recipients share are held once, and are gone when the last lets go,
/// wherever that is.
#[derive(Clone, Debug, Default)]
pub struct Meter(Rc<Cell<u64>>);

impl Meter {
    /// Bytes alive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }
}

/// Bytes ready for a socket: one or more whole frames. Cloning shares them; nobody changes them any more.
///
/// One pointer wide and not atomic: it never leaves its core.
#[derive(Clone, Debug)]
pub struct Encoded(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    meter: Option<Meter>,
}

impl Inner {
    /// What `bytes` cost the core: their buffer, and what stands before it with the two counts of its clones.
    fn held_bytes(bytes: &Vec<u8>) -> u64 {
        (bytes.capacity() + size_of::<Self>() + 2 * size_of::<usize>()) as u64
    }

    /// Takes the bytes off the meter, once.
    fn unmeter(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.0.set(meter.0.get() - Self::held_bytes(&self.bytes));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.unmeter();
    }
}

impl Encoded {
    /// Takes the bytes over, unmetered: for frames that a core keeps for good.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Rc::new(Inner { bytes, meter: None }))
    }

    /// Takes the bytes over; their capacity and the bookkeeping of an `Encoded` count in `meter` until the last clone
    /// is dropped.
    #[must_use]
    pub fn metered(bytes: Vec<u8>, meter: &Meter) -> Self {
        meter.0.set(meter.0.get() + Inner::held_bytes(&bytes));
        Self(Rc::new(Inner {
            bytes,
            meter: Some(meter.clone()),
        }))
    }

    /// The bytes. Their address does not change while any clone lives.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

#[cfg(test)]
impl Encoded {
    /// What the ledger is told of each beside its buffer.
    pub(crate) const BOOKKEEPING_BYTES: u64 = (size_of::<Inner>() + 2 * size_of::<usize>()) as u64;

    /// The buffer, if nobody else holds it: how tests see that the ring has let go.
    pub(crate) fn reclaim(self) -> Option<Vec<u8>> {
        let mut inner = Rc::try_unwrap(self.0).ok()?;
        inner.unmeter();
        Some(std::mem::take(&mut inner.bytes))
    }
}

/// A part of an [`Encoded`]: the unit of a vectored send.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The bytes it is a part of.
    pub encoded: Encoded,
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
}

impl Piece {
    /// All of `encoded`.
    ///
    /// # Panics
    /// When it is 4 GiB or longer; batches are bounded far below.
    #[must_use]
    pub fn whole(encoded: Encoded) -> Self {
        let end = u32::try_from(encoded.bytes().len()).expect("a batch is bounded far below 4 GiB");
        Self {
            encoded,
            start: 0,
            end,
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.encoded.bytes()[self.start as usize..self.end as usize]
    }

    /// How many they are.
    #[must_use]
    pub const fn byte_count(&self) -> u32 {
        self.end - self.start
    }
}

const _: () = assert!(size_of::<Option<Encoded>>() == size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_counts_shared_bytes_once_and_until_the_last_clone_goes() {
        let meter = Meter::default();
        let mut buffer = Vec::with_capacity(100);
        buffer.resize(60, 0);
        let first = Encoded::metered(buffer, &meter);
        let second = first.clone();
        let piece = Piece {
            encoded: first.clone(),
            start: 10,
            end: 20,
        };
        // The buffer; a vector and a meter; the counts of strong and weak pointers.
        let held = 100 + (3 + 1 + 2) * size_of::<usize>() as u64;
        assert_eq!(meter.bytes(), held);
        drop((first, second));
        assert_eq!(meter.bytes(), held);
        assert_eq!(piece.bytes().len(), 10);
        drop(piece);
        assert_eq!(meter.bytes(), 0);
    }

    #[test]
    fn a_reclaimed_buffer_is_off_the_meter() {
        let meter = Meter::default();
        let encoded = Encoded::metered(vec![0; 100], &meter);
        assert_eq!(encoded.reclaim().map(|buffer| buffer.len()), Some(100));
        assert_eq!(meter.bytes(), 0);
    }
}
