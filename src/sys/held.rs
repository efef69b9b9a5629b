//! Signals that wait until they are asked for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Signals held back from this thread, and told by a descriptor that becomes readable. Those that this process ignores
/// stay so. Dropping it lets them through again.
#[derive(Debug)]
pub struct Held {
    arrived: OwnedFd,
    before: libc::sigset_t,
}

impl Held {
    pub fn new(signals: &[i32]) -> io::Result<Held> {
        // SAFETY: both sets are of plain numbers, made whole by sigemptyset(3) and the kernel. The descriptor is new and
        // nobody else's.
        unsafe {
            let (mut set, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut set);
            for signal in signals {
                let mut does: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, std::ptr::null(), &mut does);
                if does.sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&mut set, *signal);
                }
            }
            let arrived = libc::signalfd(-1, &set, libc::SFD_CLOEXEC);
            if arrived < 0 {
                return Err(io::Error::last_os_error());
            }
            let arrived = OwnedFd::from_raw_fd(arrived);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) {
                0 => Ok(Held { arrived, before }),
                e => Err(io::Error::from_raw_os_error(e)),
            }
        }
    }

    /// The number of the next one that arrives.
    pub fn next(&self) -> io::Result<i32> {
        let mut about = [0_u8; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.arrived, &mut about)?;
        Ok(i32::from_ne_bytes(about.first_chunk().copied().unwrap_or_default()))
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the set is what the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
