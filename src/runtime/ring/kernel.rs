//! The io_uring itself: queues, `io_uring_enter`, and the count of what the kernel still holds of ours.
//!
//! Nothing here knows of sockets. An operation is in flight from [`Kernel::push`] until its last completion.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::error::RingError;
use super::wake::WakeHandle;
use crate::metrics::RingCounters;

/// Completions copied out at a time.
const BATCH_ENTRIES: usize = 256;
/// One `enter` runs some dozens of deferred completions at most (Linux 6.13 and newer). Go on while fewer than this
/// many wait, so that a turn has a batch worth its overhead.
const TURN_COMPLETIONS: usize = 256;
/// Attempts at an `enter` that the kernel has no memory for, before it is left to the next turn.
const ENTER_ATTEMPTS: u32 = 8;
/// How long dropping a ring waits for cancelled operations, in steps.
const QUIESCE_STEPS: u32 = 100;
const QUIESCE_STEP: Duration = Duration::from_millis(10);

/// User data of requests whose completion nobody waits for.
const SILENT: u64 = 0;

/// `IORING_REGISTER_RING_FDS` and its counterpart (`linux/io_uring.h`).
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update` (`linux/io_uring.h`).
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// A completion, copied out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl From<&cqueue::Entry> for Completion {
    fn from(entry: &cqueue::Entry) -> Self {
        Self {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }
    }
}

impl Completion {
    /// Whether the operation goes on.
    pub(super) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that came with it.
    pub(super) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// One io_uring of this thread.
pub(super) struct Kernel {
    io: IoUring,
    /// What `enter` is told: the registered index and its flag, or the descriptor itself.
    enter_fd: RawFd,
    enter_flags: u32,
    batch: Box<[MaybeUninit<cqueue::Entry>; BATCH_ENTRIES]>,
    batch_next: usize,
    batch_end: usize,
    /// Completions taken out of the queue early, so that the kernel would take submissions again.
    spilled: VecDeque<Completion>,
    /// Submissions that the queue had no room for and the kernel would not take.
    backlog: VecDeque<squeue::Entry>,
    /// Operations that have not had their last completion.
    in_flight: u64,
    pub(super) counters: RingCounters,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Sets the ring up on this thread, signalling `wake` switched off.
    pub(super) fn new(
        submission_entries: u32,
        completion_entries: u32,
        wake: &WakeHandle,
    ) -> Result<Self, RingError> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completion_entries);
        // No index array between queue and entries since 6.6; older kernels answer EINVAL.
        let built = builder
            .clone()
            .setup_no_sqarray()
            .build(submission_entries)
            .or_else(|error| {
                if error.raw_os_error() == Some(libc::EINVAL) {
                    builder.build(submission_entries)
                } else {
                    Err(error)
                }
            });
        let mut io = built.map_err(|error| RingError::new("setting up io_uring", &error))?;
        io.completion().disable_eventfd();
        io.submitter()
            .register_eventfd(wake.as_raw_fd())
            .map_err(|error| RingError::new("registering the eventfd with io_uring", &error))?;
        let mut kernel = Self {
            enter_fd: io.as_raw_fd(),
            enter_flags: 0,
            io,
            batch: Box::new([const { MaybeUninit::uninit() }; BATCH_ENTRIES]),
            batch_next: 0,
            batch_end: 0,
            spilled: VecDeque::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            counters: RingCounters::default(),
        };
        kernel.register_ring_fd();
        Ok(kernel)
    }

    /// Saves the descriptor lookup of each `enter`. A thread has 16 places for it: without one, the plain way stays.
    fn register_ring_fd(&mut self) {
        let fd = self.io.as_raw_fd();
        #[allow(clippy::cast_sign_loss)] // an open descriptor is not negative
        let mut update = RingFdUpdate {
            offset: u32::MAX,
            reserved: 0,
            data: fd as u64,
        };
        // SAFETY: the argument is one `io_uring_rsrc_update`, alive during the call, which writes its index into it.
        // JUSTIFICATION: the io-uring crate registers for the lifetime of a borrowed `Submitter` only; the lookup
        // that this saves is on every turn.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                REGISTER_RING_FDS,
                &raw mut update,
                1,
            )
        };
        if result == 1
            && let Ok(index) = RawFd::try_from(update.offset)
        {
            self.enter_fd = index;
            self.enter_flags = EnterFlags::REGISTERED_RING.bits();
        }
    }

    /// The thread's table would keep the ring alive until the thread ends.
    fn unregister_ring_fd(&mut self) {
        if self.enter_flags == 0 {
            return;
        }
        #[allow(clippy::cast_sign_loss)] // an index is not negative
        let update = RingFdUpdate {
            offset: self.enter_fd as u32,
            reserved: 0,
            data: 0,
        };
        let fd = self.io.as_raw_fd();
        // SAFETY: the argument is one `io_uring_rsrc_update`, alive during the call, which only reads it.
        // JUSTIFICATION: the counterpart of `register_ring_fd`.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                UNREGISTER_RING_FDS,
                &raw const update,
                1,
            );
        }
        self.enter_fd = fd;
        self.enter_flags = 0;
    }

    /// For registering buffers and files.
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.io.submitter()
    }

    /// Queues an operation that has one last completion. Never loses it, whatever the queue says.
    ///
    /// # Safety
    /// The memory that `entry` names must stay valid and untouched until that completion has been taken with
    /// [`Kernel::next_completion`], or [`Kernel::quiesce`] has returned true.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.in_flight += 1;
        // SAFETY: promised by the caller.
        // JUSTIFICATION: queueing is unsafe in the io-uring crate because of the memory, nothing else.
        if !self.backlog.is_empty() || unsafe { self.io.submission().push(entry) }.is_err() {
            self.push_full(entry);
        }
    }

    /// Queues a request that names no memory and completes only if it fails.
    fn push_silent(&mut self, entry: squeue::Entry) {
        // SAFETY: both callers queue a cancellation, which names no memory.
        // JUSTIFICATION: as for `push`.
        unsafe { self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(SILENT)) };
        self.in_flight -= 1;
    }

    /// Asks to cancel the operation with this user data; that operation's completion tells what came of it.
    pub(super) fn push_cancel(&mut self, user_data: u64) {
        self.push_silent(opcode::AsyncCancel::new(user_data).build());
    }

    #[cold]
    fn push_full(&mut self, entry: &squeue::Entry) {
        self.counters.submission_full += 1;
        self.backlog.push_back(entry.clone());
        for _ in 0..ENTER_ATTEMPTS {
            let _ = self.enter_once(0, 0);
            self.refill();
            if self.backlog.is_empty() {
                return;
            }
        }
        // The kernel takes nothing now: the next turn will try again.
        self.spill();
    }

    /// Moves the backlog into the queue, as far as there is room.
    fn refill(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut queue = self.io.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the caller of `push` promised for it when it was put into the backlog.
            // JUSTIFICATION: as for `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Takes completions out of the queue into our own memory. What is there is bounded by what is in flight.
    fn spill(&mut self) {
        while let Some(entry) = self.io.completion().next() {
            self.counters.completions += 1;
            self.spilled.push_back(Completion::from(&entry));
        }
    }

    fn enter_once(&mut self, wait_count: u32, flags: u32) -> io::Result<usize> {
        let submit_count = self.io.submission().len();
        self.counters.enters += 1;
        // SAFETY: the ring is ours and open; the call has no pointer arguments. What the queued entries name was
        // promised for at `push`.
        // JUSTIFICATION: the io-uring crate's `enter` cannot use a ring descriptor registered once for good.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                submit_count,
                wait_count,
                flags | self.enter_flags,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Submits what is queued and runs deferred completions; waits for one if `wait`.
    ///
    /// # Errors
    /// What no waiting mends: the ring cannot be used any more (`EBADF`, `EEXIST`: another thread's), or the kernel
    /// has lost a completion for want of memory (`EBADR`).
    pub(super) fn enter(&mut self, wait: bool) -> io::Result<()> {
        let get_events = EnterFlags::GETEVENTS.bits();
        let mut attempts = 0;
        let mut wait_count = u32::from(wait && !self.has_completions());
        loop {
            match self.enter_once(wait_count, get_events) {
                Ok(_) => wait_count = 0,
                Err(error) => match error.raw_os_error() {
                    // A signal. Somebody who waits wants to see to it.
                    Some(libc::EINTR) => wait_count = 0,
                    // No memory for requests, or too much waits in the completion queue.
                    Some(libc::EAGAIN | libc::EBUSY) => {
                        self.spill();
                        attempts += 1;
                        if attempts == ENTER_ATTEMPTS {
                            break;
                        }
                        continue;
                    }
                    _ => return Err(error),
                },
            }
            self.refill();
            let queue = self.io.submission();
            if queue.cq_overflow() {
                self.counters.completion_overflows += 1;
                break;
            }
            let submitted = queue.is_empty();
            let unrun = queue.taskrun();
            drop(queue);
            let completions = self.io.completion();
            let room = completions.len() < TURN_COMPLETIONS.min(completions.capacity() / 2);
            if submitted && (!unrun || !room) {
                break;
            }
            attempts += 1;
            if attempts == 4 * ENTER_ATTEMPTS {
                break;
            }
        }
        Ok(())
    }

    /// Whether completions wait in our memory or in the queue.
    pub(super) fn has_completions(&mut self) -> bool {
        self.batch_next < self.batch_end
            || !self.spilled.is_empty()
            || !self.io.completion().is_empty()
    }

    /// Whether the kernel has been given everything that was queued.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.backlog.is_empty() && self.io.submission().is_empty()
    }

    /// Whether anything is left that the kernel was not told of, or has not told us.
    fn is_unsettled(&mut self) -> bool {
        if self.has_completions() || !self.backlog.is_empty() {
            return true;
        }
        let queue = self.io.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Switches signalling on. True: nothing is waiting, and whatever comes from now on signals.
    ///
    /// Why no wake-up is lost. The kernel signals when it adds deferred work to an empty list while signalling is on.
    /// Signalling is switched on first; the `enter` after it takes the whole list (an atomic exchange, so also a
    /// full barrier). Work that was added before that exchange runs in this `enter`: its completions, or the
    /// flags that say that some of it did not fit (`TASKRUN`, `CQ_OVERFLOW`), are seen by the look that follows. Work
    /// that is added after the exchange finds the list empty and signalling on: it signals.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        if self.has_completions() {
            return false;
        }
        self.io.completion().enable_eventfd();
        let entered = self.enter(false);
        if entered.is_err() || self.is_unsettled() {
            self.io.completion().disable_eventfd();
            return false;
        }
        self.counters.sleeps += 1;
        true
    }

    /// Switches signalling off.
    pub(super) fn awake(&mut self) {
        self.io.completion().disable_eventfd();
    }

    /// Counts a turn of the loop.
    pub(super) fn record_turn(&mut self, us: u64) {
        self.counters.turn.record(us, 1);
    }

    /// The oldest completion that has not been taken.
    pub(super) fn next_completion(&mut self) -> Option<Completion> {
        loop {
            let completion = if self.batch_next < self.batch_end {
                // SAFETY: `fill_batch` initialised `batch[..batch_end]`, and `batch_next` is below `batch_end`.
                // JUSTIFICATION: a batch is 4 KiB; clearing it before every fill would be felt.
                let entry = unsafe { self.batch[self.batch_next].assume_init_ref() };
                self.batch_next += 1;
                Completion::from(entry)
            } else if let Some(completion) = self.spilled.pop_front() {
                completion
            } else if self.fill_batch() {
                continue;
            } else {
                return None;
            };
            if completion.user_data == SILENT {
                continue;
            }
            if !completion.more() {
                self.in_flight -= 1;
            }
            return Some(completion);
        }
    }

    /// Called when batch and spill are empty, so that completions stay in their order.
    fn fill_batch(&mut self) -> bool {
        self.batch_end = self.io.completion().fill(&mut self.batch[..]).len();
        self.batch_next = 0;
        self.counters.completions += self.batch_end as u64;
        self.batch_end > 0
    }

    /// Cancels everything and waits for it, at most a second. False: the kernel may still use memory of ours, which
    /// must then be left alone for good.
    ///
    /// `discard` is shown each completion.
    pub(super) fn quiesce(&mut self, mut discard: impl FnMut(Completion)) -> bool {
        self.unregister_ring_fd();
        self.io.completion().disable_eventfd();
        for _ in 0..QUIESCE_STEPS {
            while let Some(completion) = self.next_completion() {
                discard(completion);
            }
            if self.in_flight == 0 {
                return true;
            }
            self.refill();
            let any = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
            self.push_silent(any);
            let step = types::Timespec::from(QUIESCE_STEP);
            let arguments = types::SubmitArgs::new().timespec(&step);
            let _ = self.io.submitter().submit_with_args(1, &arguments);
        }
        false
    }
}
