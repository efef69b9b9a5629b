//! What a process starts ends with it, also where it is killed, and also what was started by code that is not ours.
//!
//! A parent-death signal holds for one child alone, and libcontainer's clones have none: killed together with their maker,
//! the command that waits for it would leave clones that wait for good. So the maker leads a process group, and the kernel
//! kills the group when a pipe ends of which only the command has the other side (fcntl(2), `F_SETOWN` and `F_SETSIG`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::deadline;

/// As `fcntl.h` of Linux has it.
const F_SETSIG: i32 = 10;

/// The side of the process on whose life the others depend: what kills them when it is dropped, or with its process.
#[derive(Debug)]
pub struct Grip(#[expect(dead_code, reason = "it is held")] OwnedFd);

/// The side of a process that is forked.
#[derive(Debug)]
pub struct Line {
    theirs: OwnedFd,
    /// The other side, which that process has a copy of.
    ours: RawFd,
}

/// Makes both sides.
pub fn pair() -> io::Result<(Grip, Line)> {
    let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let line = Line { theirs, ours: ours.as_raw_fd() };
    Ok((Grip(ours), line))
}

impl Line {
    /// In the forked process, which never returns to who has the [`Grip`]: leads a group of its own, which lives as long as
    /// that is held. Whatever it forks has to inherit the returned descriptor.
    ///
    /// # Errors
    /// `ESRCH` if it is not held any more.
    pub fn depend(self) -> io::Result<OwnedFd> {
        super::exec::let_go(&[self.ours]);
        rustix::process::setpgid(None, None)?;
        let group = rustix::process::getpid().as_raw_pid();
        let control = |command: i32, value: i32| {
            // SAFETY: these commands of fcntl(2) take plain numbers.
            let r = unsafe { libc::fcntl(self.theirs.as_raw_fd(), command, value) };
            if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
        };
        control(libc::F_SETOWN, -group)?;
        control(F_SETSIG, libc::SIGKILL)?;
        control(libc::F_SETFL, control(libc::F_GETFL, 0)? | libc::O_ASYNC)?;
        // It may have ended before anybody was to be told.
        let mut fds = [PollFd::new(&self.theirs, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now))? > 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(self.theirs)
    }
}

/// In a process that has another for its parent, in another pid namespace maybe: is killed when that ends, until told
/// otherwise. `parent` is a pidfd of it.
///
/// # Errors
/// `ESRCH` if it has ended already.
pub fn end_with(parent: impl AsFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if deadline::ended(parent, Duration::ZERO)? {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Takes [`end_with`] back.
pub fn end_alone() -> io::Result<()> {
    Ok(set_parent_process_death_signal(None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_group_is_killed_when_the_grip_is_let_go_of_and_not_before() {
        let (grip, line) = pair().unwrap();
        let mut command = Command::new("sh");
        // What a shell starts without job control is in its group.
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let line = Line { theirs: line.theirs.try_clone()?, ours: line.ours };
                let kept = line.depend()?;
                rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty())?;
                std::mem::forget(kept);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut text).unwrap();
        let grandchild = super::super::process::pidfd_open(text.trim().parse().unwrap()).unwrap();
        assert!(!deadline::ended(&grandchild, Duration::ZERO).unwrap());
        drop(grip);
        assert!(deadline::ended(&grandchild, deadline::KILLED).unwrap());
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(libc::SIGKILL)
        );
    }
}
