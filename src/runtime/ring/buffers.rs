//! The receive buffers: one ring of them, which the kernel takes from and we give back to in order.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// The buffer group's number; there is one.
pub(super) const GROUP: u16 = 0;

/// One mapping: the ring's entries first, the buffers behind them. Pages are real only once they were used.
#[derive(Debug)]
pub(super) struct Buffers {
    base: NonNull<u8>,
    bytes: usize,
    buffers_offset: usize,
    buffer_bytes: u32,
    count: u16,
    tail: u16,
    /// Buffers that completions we have seen hold.
    taken: u16,
}

impl Buffers {
    /// Maps `count` (a power of two up to 32,768) buffers of `buffer_bytes`; they are not given to a ring yet.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let buffers_offset = (count as usize * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let bytes = buffers_offset + count as usize * buffer_bytes as usize;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        // JUSTIFICATION: the kernel wants a page-aligned ring, and zeroed pages that cost nothing until they are
        // used: a buffer that no receive ever needed takes no memory. No safe wrapper among our dependencies maps.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffers = Self {
            base,
            bytes,
            buffers_offset,
            buffer_bytes,
            count,
            tail: 0,
            taken: 0,
        };
        for id in 0..count {
            buffers.offer(id);
        }
        Ok(buffers)
    }

    /// The address to register, and the number of entries.
    pub(super) fn ring(&self) -> (u64, u16) {
        (self.base.as_ptr() as u64, self.count)
    }

    /// Buffers that are with the kernel as far as we know.
    pub(super) const fn free_count(&self) -> u16 {
        self.count - self.taken
    }

    /// Notes that a completion brought buffer `id`.
    pub(super) fn take(&mut self, id: u16) {
        assert!(
            id < self.count && self.taken < self.count,
            "the kernel lends buffers that it was given"
        );
        self.taken += 1;
    }

    /// The first `len` bytes of a buffer that was taken.
    pub(super) fn bytes(&self, id: u16, len: u32) -> &[u8] {
        assert!(
            id < self.count && len <= self.buffer_bytes,
            "a receive stays inside its buffer"
        );
        // SAFETY: the range lies inside the mapping (asserted above), is initialised (zero pages, then written by
        // the kernel), and the kernel does not write to it again before `recycle`, which takes `&mut self`.
        // JUSTIFICATION: lending the buffer itself saves a copy of every byte received.
        unsafe { std::slice::from_raw_parts(self.address(id), len as usize) }
    }

    /// Gives buffer `id` back to the kernel.
    pub(super) fn recycle(&mut self, id: u16) {
        assert!(
            id < self.count && self.taken > 0,
            "a buffer is given back once"
        );
        self.taken -= 1;
        self.offer(id);
    }

    /// Leaves the mapping to the process for good: the kernel may still write to it.
    pub(super) fn leak(&mut self) {
        self.bytes = 0;
    }

    fn address(&self, id: u16) -> *mut u8 {
        let offset = self.buffers_offset + id as usize * self.buffer_bytes as usize;
        // SAFETY: every caller passes `id < count`, so the offset lies inside the mapping.
        // JUSTIFICATION: as for `bytes`.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn offer(&mut self, id: u16) {
        let address = self.address(id) as u64;
        let ring = self.base.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is masked to the ring's entries, which lie at the front of the mapping; the kernel reads
        // an entry only after the tail passed it. The tail overlays the last two bytes of entry 0 and is written
        // only here, as an atomic because the kernel reads it while we write; `set_addr`, `set_len` and `set_bid`
        // leave those bytes alone.
        // JUSTIFICATION: this is the kernel's interface; filling a provided-buffer ring is a store to shared memory.
        unsafe {
            let entry = &mut *ring.add((self.tail & (self.count - 1)) as usize);
            entry.set_addr(address);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            (*BufRingEntry::tail(ring).cast::<AtomicU16>()).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: the mapping is ours, and the ring leaks it rather than drop it while the kernel may
        // write to it.
        // JUSTIFICATION: the counterpart of `mmap` above.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.bytes);
        }
    }
}
