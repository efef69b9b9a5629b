//! Signals that wait until they are asked for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};

/// What ends a program that has nothing to say about it.
pub const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals held back from this thread, and told by a descriptor that becomes readable. Those that this process ignores
/// stay so. Dropping it lets them through again, unless they are held for good.
#[derive(Debug)]
pub struct Held {
    arrived: OwnedFd,
    /// The mask to put back.
    before: Option<libc::sigset_t>,
}

impl Held {
    pub fn new(signals: &[i32]) -> io::Result<Held> {
        // SAFETY: both sets are of plain numbers, made whole by sigemptyset(3) and the kernel.
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
            let arrived = signalfd(&set)?;
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) {
                0 => Ok(Held { arrived, before: Some(before) }),
                e => Err(io::Error::from_raw_os_error(e)),
            }
        }
    }

    /// Does not let the signals through when this is dropped. Programs that this process starts get them again.
    pub fn for_good(self) -> Held {
        let mut held = self;
        held.before = None;
        held
    }

    /// Whether one has arrived. It stays where it is, and acts when this is dropped.
    pub fn has_arrived(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.arrived, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)))? > 0)
    }

    /// The number of the next one that arrives.
    pub fn next(&self) -> io::Result<i32> {
        let mut about = [0_u8; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.arrived, &mut about)?;
        Ok(i32::from_ne_bytes(about.first_chunk().copied().unwrap_or_default()))
    }
}

/// Makes a descriptor that becomes readable when one of these signals arrives. The caller holds the signals back.
pub(super) fn told_of(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is of plain numbers, made whole by sigemptyset(3).
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        signalfd(&set)
    }
}

fn signalfd(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    // SAFETY: the set is valid, and the kernel only reads it. The descriptor is new and nobody else's.
    unsafe {
        match libc::signalfd(-1, set, libc::SFD_CLOEXEC) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}

impl AsRawFd for Held {
    fn as_raw_fd(&self) -> RawFd {
        self.arrived.as_raw_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the set is what the kernel gave.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const IGNORED: i32 = 60;
    const CAUGHT: i32 = 61;

    fn raise(signal: i32) {
        // SAFETY: raise(3) takes a plain number, and sends to this thread alone.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn an_ignored_signal_stays_ignored_and_what_is_held_for_good_never_gets_through() {
        // SAFETY: ignoring a signal runs no code of ours, and no other test uses this one.
        unsafe { libc::signal(IGNORED, libc::SIG_IGN) };
        let held = Held::new(&[IGNORED, CAUGHT]).unwrap().for_good();
        raise(IGNORED);
        raise(CAUGHT);
        // The kernel gives the lower number first.
        assert_eq!(held.next().unwrap(), CAUGHT);
        assert!(!held.has_arrived().unwrap());
        drop(held);
        // Ends this process if it gets through.
        raise(CAUGHT);
    }
}
