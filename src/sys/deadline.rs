//! Waits that end: when what is waited for has come, when the time is over, or when a signal comes that would end this process.
//!
//! A process inside a spark can stop, trace or starve what the host waits for. So this is the only module that waits: for a
//! descriptor, for the end of a process, and between two looks at something that nobody tells of. `tests/layers.rs` refuses
//! blocking calls elsewhere (docs/adr/0022).

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::held::ENDING;
use super::process::{self, Ended};

/// The longest time that the host waits for something that a process inside a spark or a container can delay.
pub const INSIDE: Duration = Duration::from_secs(10);
/// How long what was killed may take to end. It has no say any more, so this is a wait for the kernel: for a disk that has
/// not answered.
pub const KILLED: Duration = Duration::from_secs(60);

/// A point in time at which a wait is given up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// For what a process inside can delay.
    pub fn inside() -> Deadline {
        Deadline::after(INSIDE / haste())
    }

    /// For what was killed.
    pub fn killed() -> Deadline {
        Deadline::after(KILLED / haste())
    }

    /// So long from now on.
    pub fn after(time: Duration) -> Deadline {
        // What is further away than the clock can say is a year away.
        let now = Instant::now();
        Deadline(now.checked_add(time).unwrap_or(now + Duration::from_secs(365 * 24 * 3600)))
    }

    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}

/// By how much a test shortens deadlines.
#[cfg(not(feature = "faults"))]
#[inline(always)]
fn haste() -> u32 {
    1
}

/// By how much a test shortens deadlines: `SPARK_HASTE=N` makes them an Nth.
#[cfg(feature = "faults")]
fn haste() -> u32 {
    std::env::var("SPARK_HASTE").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(1)
}

thread_local! {
    /// A signalfd of [`ENDING`] while waits of this thread are to end for them.
    static ATTENTION: Cell<Option<RawFd>> = const { Cell::new(None) };
}

/// While this is there, the first wait of this thread that would go on when one of [`ENDING`] has come ends with
/// [`Interrupted`]; those after it undo what was begun, and are not disturbed again. The signals have to be held back.
#[derive(Debug)]
pub struct Attention {
    /// Told of the signals of [`ENDING`].
    told: OwnedFd,
}

impl Attention {
    pub fn new() -> io::Result<Attention> {
        let told = super::held::told_of(&ENDING)?;
        ATTENTION.set(Some(told.as_raw_fd()));
        Ok(Attention { told })
    }

    /// The number of the signal of [`ENDING`] that has ended a wait, if one has.
    pub fn has_ended_by(&self) -> io::Result<Option<i32>> {
        // The wait that a signal ends pays no more attention.
        if ATTENTION.get() == Some(self.told.as_raw_fd()) { Ok(None) } else { pending() }
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        ATTENTION.set(None);
    }
}

/// Why a wait was given up: a signal came that ends this process.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted by a signal")
    }
}

impl std::error::Error for Interrupted {}

/// In a forked child: its waits end for no signal. The child may close the descriptor of [`Attention`], and another file
/// may get its number.
pub(super) fn pay_no_attention() {
    ATTENTION.set(None);
}

/// Whether a wait was given up because of a signal.
pub fn is_interrupted(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|e| e.is::<Interrupted>())
}

/// Waits until a descriptor can be read, or its other end is closed. For a pidfd that is the end of its process.
///
/// # Errors
/// `TimedOut`; [`Interrupted`] for a signal.
pub fn readable(fd: impl AsFd, deadline: Deadline) -> io::Result<()> {
    if wait(Some(fd.as_fd()), deadline)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// Waits until the process of a pidfd has ended, or a pipe can be read. False if the time is over first.
///
/// # Errors
/// [`Interrupted`] for a signal.
pub fn ended(pidfd: impl AsFd, time: Duration) -> io::Result<bool> {
    wait(Some(pidfd.as_fd()), Deadline::after(time))
}

/// Waits between two looks at something that nobody tells of.
///
/// # Errors
/// [`Interrupted`] for a signal.
pub fn pause(time: Duration) -> io::Result<()> {
    wait(None, Deadline::after(time)).map(drop)
}

/// Waits until a child has ended, and reaps it. None if the time is over first.
///
/// # Errors
/// [`Interrupted`] for a signal.
pub fn reap(pid: i32, deadline: Deadline) -> io::Result<Option<Ended>> {
    if let Some(ended) = process::try_reap(pid)? {
        return Ok(Some(ended));
    }
    let pidfd = process::pidfd_open(pid)?;
    wait(Some(pidfd.as_fd()), deadline)?;
    process::try_reap(pid)
}

/// Kills a child and reaps it. One that does not end, since it is frozen or waits for a disk, is left to who adopts orphans: it
/// is dead as soon as it may go on.
pub fn end_child(pid: i32) -> io::Result<()> {
    process::kill_child(pid)?;
    let attention = ATTENTION.take();
    let reaped = reap(pid, Deadline::after(Duration::from_secs(1)));
    ATTENTION.set(attention);
    reaped.map(drop)
}

/// Waits for a descriptor, if there is one, for a signal, and for the deadline. Whether the descriptor is ready.
fn wait(fd: Option<BorrowedFd<'_>>, deadline: Deadline) -> io::Result<bool> {
    loop {
        let left = deadline.left();
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // Who only looks does not wait.
        let attention = ATTENTION.get().filter(|_| !left.is_zero());
        // SAFETY: the descriptor is open as long as it stands in ATTENTION: `Attention` owns it, and takes it out first.
        let told = attention.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        let mut fds: Vec<PollFd<'_>> =
            fd.iter().chain(&told).map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut fds, Some(&time)) {
            Ok(0) if deadline.has_passed() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        if fd.is_some() && !fds[0].revents().is_empty() {
            return Ok(true);
        }
        ATTENTION.set(None);
        return Err(io::Error::new(io::ErrorKind::Interrupted, Interrupted));
    }
}

/// The first signal of [`ENDING`] that waits to be let through.
fn pending() -> io::Result<Option<i32>> {
    // SAFETY: sigpending(2) fills a set, which sigismember(3) reads.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        if libc::sigpending(&mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ENDING.into_iter().find(|signal| libc::sigismember(&set, *signal) == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_for_its_descriptor_and_once_for_a_signal() {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let brief = || Deadline::after(Duration::from_millis(10));
        assert_eq!(readable(&from, brief()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let held = super::super::held::Held::new(&[libc::SIGTERM]).unwrap();
        let attention = Attention::new().unwrap();
        // SAFETY: raise(3) takes a plain number, and the signal is held back from this thread.
        unsafe { libc::raise(libc::SIGTERM) };
        // Who only looks does not wait, and what has come is not waited for.
        assert!(!ended(&from, Duration::ZERO).unwrap());
        assert_eq!(attention.has_ended_by().unwrap(), None);
        let e = readable(&from, Deadline::after(Duration::from_secs(3600))).unwrap_err();
        assert!(is_interrupted(&e), "{e}");
        assert_eq!(attention.has_ended_by().unwrap(), Some(libc::SIGTERM));
        // What is begun is undone in peace.
        pause(Duration::from_millis(1)).unwrap();
        drop(to);
        readable(&from, Deadline::inside()).unwrap();
        assert_eq!(held.next().unwrap(), libc::SIGTERM);
    }

    #[test]
    fn a_deadline_beyond_all_clocks_is_one() {
        assert!(!Deadline::after(Duration::MAX).has_passed());
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }
}
