//! The memory account: how many bytes the Worker has allocated, and the budget
//! `MAX_OBJECT_BYTES`.
//!
//! The global allocator counts the bytes of all allocations, so the account is exact. The
//! objects of one isolate share one WebAssembly memory and therefore one account. Strings and
//! frames that the runtime holds are outside of this memory and are not counted.

use roomcast_proto::error::Error;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The default allocator, with a count of the allocated bytes.
struct Account {
    allocated: AtomicUsize,
    /// The maximum of `allocated`.
    #[cfg(feature = "failpoints")]
    peak: AtomicUsize,
}

#[global_allocator]
static ACCOUNT: Account = Account {
    allocated: AtomicUsize::new(0),
    #[cfg(feature = "failpoints")]
    peak: AtomicUsize::new(0),
};

impl Account {
    /// Counts an allocation of `size` bytes that replaces one of `before` bytes.
    fn count(&self, before: usize, size: usize) {
        // WebAssembly has one thread, so a load and a store are enough.
        let allocated = self.allocated.load(Relaxed) - before + size;
        self.allocated.store(allocated, Relaxed);
        #[cfg(feature = "failpoints")]
        self.peak.fetch_max(allocated, Relaxed);
    }
}

// SAFETY: all calls are passed to the default allocator without a change.
unsafe impl GlobalAlloc for Account {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            self.count(0, layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            self.count(0, layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        if !moved.is_null() {
            self.count(layout.size(), size);
        }
        moved
    }
}

/// The bytes of all [`Reservation`]s.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Memory for a body that is being read. It counts from the beginning, because otherwise many
/// bodies could begin at the same time.
pub(crate) struct Reservation(usize);

impl Reservation {
    /// Reserves `bytes` bytes until the reservation is dropped.
    pub(crate) fn new(bytes: usize) -> Self {
        RESERVED.fetch_add(bytes, Relaxed);
        Reservation(bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.0, Relaxed);
    }
}

/// Returns the bytes above which gateways refuse large bodies and close sessions: earlier than
/// requests are refused, because otherwise rooms could refuse events while no event makes a
/// gateway close the sessions that hold the memory.
const fn early_limit(budget: usize) -> usize {
    budget / 4 * 3
}

/// Returns `true` if the Worker uses or has reserved more than three quarters of `budget`.
pub(crate) fn is_short(budget: usize) -> bool {
    ACCOUNT.allocated.load(Relaxed) + RESERVED.load(Relaxed) > early_limit(budget)
}

/// Returns the number of bytes by which the Worker exceeds three quarters of `budget`, or 0.
pub(crate) fn early_excess(budget: usize) -> usize {
    excess(early_limit(budget))
}

/// Returns the number of bytes by which the Worker exceeds `budget`, or 0.
pub(crate) fn excess(budget: usize) -> usize {
    ACCOUNT.allocated.load(Relaxed).saturating_sub(budget)
}

/// Checks that a request may allocate memory that is kept after it.
///
/// # Errors
///
/// Returns `unavailable` if the Worker exceeds `budget`.
pub(crate) fn admit(budget: usize) -> Result<(), Error> {
    match excess(budget) {
        0 => Ok(()),
        _ => Err(Error::overloaded()),
    }
}

/// Returns the account as JSON, for tests. `memoryBytes` is the size of the WebAssembly
/// memory, which never shrinks.
#[cfg(feature = "failpoints")]
pub(crate) fn json(budget: usize) -> String {
    const PAGE_BYTES: usize = 64 * 1024;
    let (allocated, peak) = (ACCOUNT.allocated.load(Relaxed), ACCOUNT.peak.load(Relaxed));
    let memory = core::arch::wasm32::memory_size(0) * PAGE_BYTES;
    serde_json::json!({
        "allocatedBytes": allocated,
        "peakBytes": peak,
        "memoryBytes": memory,
        "budgetBytes": budget,
    })
    .to_string()
}
