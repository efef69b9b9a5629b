//! The memory of a process that holds values of secrets: in no core dump, and zeroed when it is given back.
//!
//! Values have pages of their own ([`super::locked`]). What decodes, decrypts or fetches them has buffers too, in crates that
//! give them back as they are: a later swap of the heap would have what was in them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroize;

static WIPES: AtomicBool = AtomicBool::new(false);

/// Says that this process is about to hold values. From here on none of its memory is in a core dump, and what it gives
/// back is zeroed, in this process and in those that it forks.
pub fn begin() -> io::Result<()> {
    super::exec::set_undumpable()?;
    WIPES.store(true, Ordering::Relaxed);
    Ok(())
}

/// Has none of this process's memory swapped, as far as that is allowed: for one that fetches values with buffers of others.
/// It may become another user afterwards.
pub fn lock_all(becomes_another: bool) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    // Under a limit it could not allocate any more once it is another user, who has no right to pass it.
    let unlimited = Rlimit { current: None, maximum: None };
    let is_free = match becomes_another {
        true => rustix::process::setrlimit(Resource::Memlock, unlimited).is_ok(),
        false => capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK),
    };
    if !is_free {
        return Ok(());
    }
    // Not all at once: most of what is mapped is never touched.
    let how = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: mlockall(2) takes a plain number.
    if unsafe { libc::mlockall(how) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does something with values, and zeroes what it left on the stack: ciphers and the like work there.
pub fn after<T>(work: impl FnOnce() -> T) -> T {
    /// More than anything here uses.
    const DEEP: usize = 256 << 10;
    #[inline(never)]
    fn wipe() {
        let mut stack = [0_u8; DEEP];
        stack.zeroize();
    }
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let done = apart(work);
    wipe();
    done
}

/// The system's allocator, which costs one look more until [`begin`]. A program that holds values has it as its own; a
/// library does not choose for those who use it.
#[derive(Debug)]
pub struct Wiping;

// SAFETY: every call is passed on to the system's allocator as it came, or made of such calls.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that are asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that are asked for here.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if WIPES.load(Ordering::Relaxed) {
            // Not a plain write: before the end of an allocation the compiler may leave that out.
            // SAFETY: the allocation is of this size, and nobody uses it any more.
            unsafe { libc::explicit_bzero(at.cast(), layout.size()) };
        }
        // SAFETY: the caller's promises are those that are asked for here.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !WIPES.load(Ordering::Relaxed) {
            // SAFETY: the caller's promises are those that are asked for here.
            return unsafe { System.realloc(at, layout, size) };
        }
        // SAFETY: the caller promises that `size` is good for this alignment. Both allocations are as large as what is
        // copied, and apart. The old one is given back once, and only if there is a new one.
        unsafe {
            let new = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(at, new, layout.size().min(size));
                self.dealloc(at, layout);
            }
            new
        }
    }
}
