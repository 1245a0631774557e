//! Encoded bytes on their way out, shared by every recipient on a core.

use std::rc::Rc;

/// Bytes ready for a socket: one or more whole frames. Cloning shares them; nobody changes them any more.
///
/// One pointer wide, because a connection with one piece queued keeps it in its slab slot. Not atomic, because it
/// never leaves its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(Rc<Vec<u8>>);

impl Encoded {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Rc::new(bytes))
    }

    /// The bytes. Their address does not change while any clone lives.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the buffer back for reuse if nobody else holds it.
    #[must_use]
    pub fn reclaim(self) -> Option<Vec<u8>> {
        Rc::try_unwrap(self.0).ok()
    }
}

/// A part of an [`Encoded`]: the unit of a vectored send.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

const _: () = assert!(size_of::<Option<Encoded>>() == size_of::<usize>());
