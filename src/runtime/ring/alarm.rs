//! The alarm: at most one timeout is in flight, and it is moved rather than joined by another.

use std::time::Duration;

use io_uring::{opcode, types};

use super::kernel::Completion;
use super::{Event, Kind, Ring};

/// One deadline.
///
/// A timeout that passes while an update of it is on its way is not the deadline that was asked for last. The kernel
/// completes in order: a timeout that completes before its update made that update fail, and one that completes
/// after it is the new one.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Boxed, because the kernel reads it at submission.
    after: Box<types::Timespec>,
    /// `after` has changed and the kernel was not told.
    pending: bool,
    /// A timeout is in flight.
    armed: bool,
    updates_in_flight_count: u32,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self {
            after: Box::new(types::Timespec::new()),
            pending: false,
            armed: false,
            updates_in_flight_count: 0,
        }
    }
}

impl Ring {
    /// One alarm, `after` from the next submission; replaces an earlier one, whose event does not come any more.
    pub fn set_alarm(&mut self, after: Duration) {
        *self.alarm.after = types::Timespec::from(after);
        self.alarm.pending = true;
    }

    pub(super) fn alarm_flush(&mut self) {
        if !self.alarm.pending {
            return;
        }
        self.alarm.pending = false;
        let after = &raw const *self.alarm.after;
        let submission = if self.alarm.armed {
            self.alarm.updates_in_flight_count += 1;
            opcode::TimeoutUpdate::new(Kind::Alarm.user_data(0, 0), after)
                .build()
                .user_data(Kind::AlarmUpdate.user_data(0, 0))
        } else {
            self.alarm.armed = true;
            opcode::Timeout::new(after)
                .build()
                .user_data(Kind::Alarm.user_data(0, 0))
        };
        // SAFETY: the duration is boxed and lives as long as the ring; the kernel copies it inside `enter`, and we
        // change it outside only.
        // JUSTIFICATION: a timeout of the ring wakes the core without a second descriptor or a system call of its own.
        unsafe { self.kernel.push(&submission) };
    }

    /// The timeout has passed.
    pub(super) fn alarm_completed(&mut self) -> Option<Event<'static>> {
        self.alarm.armed = false;
        let replaced = self.alarm.pending || self.alarm.updates_in_flight_count > 0;
        (!replaced).then_some(Event::Alarm)
    }

    /// The timeout was moved, or had passed (or was just passing) before it could be.
    pub(super) fn alarm_updated(&mut self, completion: Completion) {
        self.alarm.updates_in_flight_count -= 1;
        if completion.result < 0 && self.alarm.updates_in_flight_count == 0 {
            self.alarm.pending = true;
        }
    }
}
