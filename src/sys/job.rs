//! Work in a process of its own, with a deadline and a bound on what it says: a program, or code that could hang or
//! leave copies of a secret behind.

use std::ffi::OsString;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

use super::deadline::{self, Deadline};
use super::locked::Locked;
use super::process::{self, Ended};
use super::run::Ids;

/// What is kept of standard error.
const ERRORS: usize = 4096;

/// How a job is run.
#[derive(Debug)]
pub struct Limits<'a> {
    /// Who it runs as, if not as this process.
    pub ids: Option<&'a Ids>,
    pub timeout: Duration,
    /// Most bytes of output.
    pub most: usize,
}

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    Done(Done),
    /// It has been killed, with all that it started.
    TimedOut,
    /// The same, for it wrote more than it may.
    TooMuch,
}

/// A job that has ended.
#[derive(Debug)]
pub struct Done {
    pub ended: Ended,
    pub output: Locked,
    /// The beginning of what it wrote to standard error.
    pub errors: Vec<u8>,
}

/// Runs a program with `input`, or nothing, to read. It has no terminal to ask at.
///
/// # Errors
/// `NotFound` if there is no such program.
pub fn run(
    argv: &[OsString],
    env: &[(OsString, OsString)],
    input: Option<&[u8]>,
    limits: &Limits<'_>,
) -> io::Result<Outcome> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env.iter().map(|(k, v)| (k, v))).current_dir("/");
    command.stdin(match input {
        None => Stdio::null(),
        Some(bytes) => {
            // Not a pipe: who does not read it would have us wait.
            let memory = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
            let mut file = std::fs::File::from(memory);
            file.write_all(bytes)?;
            file.rewind()?;
            file.into()
        }
    });
    let (output, output_tx) = pipe()?;
    let (errors, errors_tx) = pipe()?;
    command.stdout(output_tx).stderr(errors_tx);
    let ids = limits.ids.cloned();
    let become_them = move || {
        rustix::process::setsid()?;
        if let Some(ids) = &ids {
            super::exec::become_user(ids.uid, ids.gid, &ids.groups)?;
        }
        // After the change of user, which resets it.
        Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
    };
    // SAFETY: only system calls, on memory that was made before: nothing allocates and no lock is taken.
    unsafe { command.pre_exec(become_them) };
    let pid = command.spawn()?.id() as i32;
    // Our copies of the other ends go with it: the pipes end with the program.
    drop(command);
    attend(pid, [output, errors], limits)
}

/// Runs code in a forked process; its result is what it writes to the descriptor that it gets.
///
/// # Errors
/// Refused in a process with more than one thread.
pub fn fork(work: impl FnOnce(OwnedFd) -> i32, limits: &Limits<'_>) -> io::Result<Outcome> {
    let (output, output_tx) = pipe()?;
    let (errors, errors_tx) = pipe()?;
    let ids = limits.ids.cloned();
    let pid = process::fork(move || {
        let prepare = || -> io::Result<()> {
            rustix::process::setsid()?;
            // Where the kernel refuses, the work is done all the same.
            let _ = super::wipe::lock_all(ids.is_some());
            if let Some(ids) = &ids {
                super::exec::become_user(ids.uid, ids.gid, &ids.groups)?;
            }
            super::wipe::begin()?;
            rustix::stdio::dup2_stderr(&errors_tx)?;
            Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
        };
        match prepare() {
            Ok(()) => work(output_tx),
            Err(_) => 126,
        }
    })?;
    attend(pid, [output, errors], limits)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Reads what a child says until it has ended, and ends it if it does not do so itself.
fn attend(pid: i32, [output, errors]: [OwnedFd; 2], limits: &Limits<'_>) -> io::Result<Outcome> {
    let kill = || {
        let group = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        // It leads a session and so a group of its own. If it has not come to that yet, it is all there is.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = rustix::process::kill_process(group, Signal::KILL);
        deadline::reap(pid, Deadline::after(deadline::KILLED))
    };
    let heard = match hear(pid, &output, &errors, limits) {
        Ok(heard) => heard,
        Err(e) => {
            kill()?;
            return Err(e);
        }
    };
    let (output, errors) = match heard {
        Heard::All(output, errors) => (output, errors),
        Heard::TimedOut => return kill().map(|_| Outcome::TimedOut),
        Heard::TooMuch => return kill().map(|_| Outcome::TooMuch),
    };
    // It has ended and is not reaped, so its number is nobody else's: what it left running goes with it.
    if let Some(group) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let ended = process::try_reap(pid)?.ok_or(io::ErrorKind::WouldBlock)?;
    Ok(Outcome::Done(Done { ended, output, errors }))
}

enum Heard {
    All(Locked, Vec<u8>),
    TimedOut,
    TooMuch,
}

fn hear(pid: i32, output: &OwnedFd, errors: &OwnedFd, limits: &Limits<'_>) -> io::Result<Heard> {
    let deadline = Instant::now() + limits.timeout;
    let pidfd = process::pidfd_open(pid)?;
    for pipe in [output, errors] {
        rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK)?;
    }
    let (mut said, mut complaints) = (Locked::with_room(limits.most + 1)?, Vec::new());
    let (mut output_open, mut errors_open) = (true, true);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Heard::TimedOut);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        for (pipe, open) in [(output, output_open), (errors, errors_open)] {
            if open {
                fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        // Looked at before the pipes are emptied: what it wrote before it ended is in them then, up to 256 reads.
        let ended = deadline::ended(&pidfd, Duration::ZERO)?;
        if output_open {
            output_open = drain(output, |pipe| {
                let n = rustix::io::read(pipe, said.rest())?;
                said.grow(n);
                Ok(n)
            })?;
        }
        if said.bytes().len() > limits.most {
            return Ok(Heard::TooMuch);
        }
        if errors_open {
            errors_open = drain(errors, |pipe| {
                let mut chunk = [0; 1024];
                let n = rustix::io::read(pipe, &mut chunk[..])?;
                let room = ERRORS - complaints.len();
                complaints.extend_from_slice(&chunk[..n.min(room)]);
                Ok(n)
            })?;
        }
        // What it left running may keep the pipes open; nobody waits for that.
        if ended {
            return Ok(Heard::All(said, complaints));
        }
    }
}

/// Reads what is there. False at the end.
fn drain(pipe: &OwnedFd, mut read: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>) -> io::Result<bool> {
    // Not for as long as it writes: there is a deadline to look at.
    for _ in 0..256 {
        match read(pipe) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}
