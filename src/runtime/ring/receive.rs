//! Receiving: one multishot receive a socket, armed again by the ring whenever it ends without being asked to.

use std::io;

use io_uring::opcode;

use super::buffers::GROUP;
use super::kernel::Completion;
use super::socket::Phase;
use super::{Event, Kind, Outcome, Ring};

impl Ring {
    /// Arms the multishot receive; it stays armed (the ring arms it again as needed) until the stream ends.
    ///
    /// Calling it again does nothing; calling it before [`super::Event::Connected`] is early, not wrong. Nothing is received of a socket that is being closed.
    pub fn receive(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        assert!(
            socket.phase() != Phase::Free,
            "a token is used between its first event and `Closed`"
        );
        socket.set_wanted(true);
        if socket.should_arm() {
            self.receive_arm(token);
        }
    }

    /// Stops receiving soon; what has already arrived is still reported.
    pub fn receive_pause(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        if socket.wanted() && socket.phase() == Phase::Open {
            socket.set_wanted(false);
            if socket.armed() {
                self.kernel.push_cancel(Kind::Receive.user_data(0, token));
            }
        }
    }

    /// Ends a pause.
    pub fn receive_resume(&mut self, token: u32) {
        self.receive(token);
    }

    pub(super) fn receive_arm(&mut self, token: u32) {
        let socket = &mut self.sockets[token];
        socket.set_armed(true);
        self.armed_count += 1;
        let receive = opcode::RecvMulti::new(socket.fd(), GROUP)
            .build()
            .flags(self.descriptor_flags)
            .user_data(Kind::Receive.user_data(0, token));
        // SAFETY: a receive with buffer selection names no memory; the buffers belong to the ring and outlive it.
        // JUSTIFICATION: an armed receive must own nothing in this process, or idle connections would not be small.
        unsafe { self.kernel.push(&receive) };
    }

    /// Arms receives that found no buffer, in the order in which they did, one for each buffer that is free.
    ///
    /// Each that has data takes a buffer, so a turn serves as many as there are buffers and nobody is overtaken.
    pub(super) fn receive_starved(&mut self) {
        for _ in 0..self.buffers.free_count() {
            let Some(token) = self.starved.pop_front() else {
                break;
            };
            let socket = &mut self.sockets[token];
            socket.set_starved(false);
            if socket.should_arm() {
                self.receive_arm(token);
            }
        }
    }

    /// A receive has completed, or brought bytes and goes on.
    pub(super) fn receive_completed(
        &mut self,
        token: u32,
        completion: Completion,
    ) -> Option<Outcome> {
        let buffer = completion.buffer();
        if let Some(id) = buffer {
            self.buffers.take(id);
        }
        let socket = &mut self.sockets[token];
        if !completion.more() {
            socket.set_armed(false);
            self.armed_count -= 1;
        }
        if socket.phase() != Phase::Open || socket.ended() {
            if let Some(id) = buffer {
                self.buffers.recycle(id);
            }
            self.close_when_quiet(token);
            return None;
        }
        match (completion.result, buffer) {
            (1.., Some(id)) => {
                if socket.should_arm() {
                    self.receive_arm(token);
                }
                let len = completion.result.cast_unsigned();
                return Some(Outcome::Received {
                    token,
                    buffer: id,
                    len,
                });
            }
            (0.., Some(id)) => {
                self.buffers.recycle(id);
                self.sockets[token].set_ended(true);
                return Some(Outcome::Told(Event::ReceiveEnded { token, error: None }));
            }
            (0.., None) => {
                socket.set_ended(true);
                return Some(Outcome::Told(Event::ReceiveEnded { token, error: None }));
            }
            (_, Some(id)) => self.buffers.recycle(id),
            (_, None) => {}
        }
        let socket = &mut self.sockets[token];
        match -completion.result {
            libc::ENOBUFS => {
                self.kernel.counters.buffers_exhausted += 1;
                if !socket.starved() {
                    socket.set_starved(true);
                    self.starved.push_back(token);
                }
            }
            // A pause, or a pause that has ended meanwhile.
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {
                if socket.should_arm() {
                    self.receive_arm(token);
                }
            }
            error => {
                socket.set_ended(true);
                let error = Some(io::Error::from_raw_os_error(error));
                return Some(Outcome::Told(Event::ReceiveEnded { token, error }));
            }
        }
        None
    }
}
