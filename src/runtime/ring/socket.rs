//! What the process keeps of a socket: eight bytes.
//!
//! ```text
//! 63           32 31            8  7        6     5      4       3      2 0
//! [ descriptor  ][  operation   ][starved][shut][ended][wanted][armed][phase]
//! ```

use io_uring::types;

use super::pool::Entry;

/// No send, connect or install is in flight.
pub(super) const NO_OPERATION: u32 = (1 << OPERATION_BITS) - 1;
const OPERATION_BITS: u32 = 24;
const OPERATION_SHIFT: u32 = u32::BITS - OPERATION_BITS;

/// How far a socket's life has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Nobody's. `descriptor` is the next free entry.
    Free,
    /// On its way into the file table.
    Installing,
    /// Connecting.
    Connecting,
    /// Connected.
    Open,
    /// [`super::Ring::close`] was called: what is in flight ends first.
    Closing,
    /// Its close is in flight, and nothing else.
    Closed,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Free,
        Self::Installing,
        Self::Connecting,
        Self::Open,
        Self::Closing,
        Self::Closed,
    ];
}

/// One socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket {
    /// The slot in the ring's file table, or the plain descriptor.
    pub(super) descriptor: u32,
    state: u32,
}

const _: () = assert!(size_of::<Socket>() == 8);

macro_rules! flag {
    ($(#[$doc:meta])* $get:ident, $set:ident, $bit:expr) => {
        $(#[$doc])*
        pub(super) const fn $get(&self) -> bool {
            self.state & (1 << $bit) != 0
        }
        pub(super) const fn $set(&mut self, value: bool) {
            self.state = self.state & !(1 << $bit) | (value as u32) << $bit;
        }
    };
}

impl Socket {
    flag!(
        /// A multishot receive is in flight.
        armed, set_armed, 3
    );
    flag!(
        /// The owner wants to receive.
        wanted, set_wanted, 4
    );
    flag!(
        /// The stream has ended; there is nothing more to receive.
        ended, set_ended, 5
    );
    flag!(
        /// A shutdown of our side is in flight, or waits for the send in flight.
        shut, set_shut, 6
    );
    flag!(
        /// Its token is in the queue of receives that wait for a buffer. Outlives the socket, as the queue entry does.
        starved, set_starved, 7
    );

    /// A socket with nothing in flight, in the entry that `remains` had.
    pub(super) fn new(descriptor: u32, phase: Phase, remains: Self) -> Self {
        let mut socket = Self {
            descriptor,
            state: phase as u32 | NO_OPERATION << OPERATION_SHIFT,
        };
        socket.set_starved(remains.starved());
        socket
    }

    /// The descriptor as submissions name it; they carry [`super::Ring`]'s flag for direct ones.
    pub(super) const fn fd(&self) -> types::Fd {
        types::Fd(self.descriptor.cast_signed())
    }

    pub(super) const fn phase(&self) -> Phase {
        Phase::ALL[(self.state & 7) as usize]
    }

    pub(super) const fn set_phase(&mut self, phase: Phase) {
        self.state = self.state & !7 | phase as u32;
    }

    /// The send, or the connect, in flight: an index into their pool, or [`NO_OPERATION`].
    pub(super) const fn operation(&self) -> u32 {
        self.state >> OPERATION_SHIFT
    }

    pub(super) const fn set_operation(&mut self, operation: u32) {
        assert!(
            operation <= NO_OPERATION,
            "operations are numbered in 24 bits"
        );
        self.state = self.state & ((1 << OPERATION_SHIFT) - 1) | operation << OPERATION_SHIFT;
    }

    /// Whether the receive should be armed now.
    pub(super) fn should_arm(&self) -> bool {
        self.wanted()
            && !self.armed()
            && !self.ended()
            && !self.starved()
            && self.phase() == Phase::Open
    }

    /// Whether the kernel has nothing of this socket but the descriptor.
    pub(super) const fn is_quiet(&self) -> bool {
        !self.armed() && !self.shut() && self.operation() == NO_OPERATION
    }
}

impl Entry for Socket {
    fn free(next: u32) -> Self {
        Self {
            descriptor: next,
            state: Phase::Free as u32 | NO_OPERATION << OPERATION_SHIFT,
        }
    }

    fn next_free(&self) -> Option<u32> {
        (self.phase() == Phase::Free).then_some(self.descriptor)
    }

    fn freed(&self, next: u32) -> Self {
        let mut socket = Self::free(next);
        socket.set_starved(self.starved());
        socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_phase_and_operation_do_not_touch_each_other() {
        let mut socket = Socket::new(u32::MAX, Phase::Open, Socket::free(0));
        assert!(socket.is_quiet());
        socket.set_wanted(true);
        assert!(socket.should_arm());
        socket.set_armed(true);
        socket.set_operation(0x00ab_cdef);
        socket.set_phase(Phase::Closing);
        assert_eq!(
            (socket.phase(), socket.operation(), socket.descriptor),
            (Phase::Closing, 0x00ab_cdef, u32::MAX)
        );
        assert!(
            socket.armed()
                && socket.wanted()
                && !socket.ended()
                && !socket.shut()
                && !socket.starved()
        );
        socket.set_armed(false);
        socket.set_operation(NO_OPERATION);
        assert!(socket.is_quiet() && socket.wanted());
    }

    #[test]
    fn a_place_in_the_queue_for_buffers_outlives_the_socket() {
        let mut socket = Socket::new(3, Phase::Open, Socket::free(0));
        socket.set_starved(true);
        let next = Socket::new(4, Phase::Open, socket.freed(9));
        assert!(next.starved());
    }
}
