//! Processes that read what is not trusted. Such a process has three pipes and nothing else.
//!
//! The caller executes a program of ours again with [`start`]. The new process finds its task with [`role`], and calls
//! [`confine()`] before it reads the first byte. From then on it has a user id that nobody else has, no capabilities, an empty
//! network namespace and no open file. The kernel kills it for every system call but those that move bytes between its pipes
//! and that manage its memory.
//!
//! Standard input is what it reads, standard output what it makes of that. Standard error takes one sentence: why the input
//! is refused. The exit status says what the sentence is about ([`End`]).
//!
//! The process is executed and not only forked, because a fork of a process with threads may find locks taken, and because
//! a fork would have a copy of all memory of the caller.

use std::cell::Cell;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;

use super::attack::{Wall, stands};
use super::confine::{self, Confinement, Files, Filter};
use super::deadline::{self, Deadline};
use super::{exec, process};

/// The name that such a process is started with.
pub(super) const NAME: &str = "spark-isolated";
/// What a pipe holds. Two processes take turns for each pipe that is full, so a larger one means fewer turns.
const PIPE: usize = 1 << 20;
/// Most bytes of the sentence on standard error.
const SENTENCE: u64 = 4096;
/// How long a process may take to end after its last byte.
const TO_END: Duration = Duration::from_secs(10);

const REFUSED: u8 = 1;
const UNCONFINED: u8 = 2;
const CUT: u8 = 3;

/// The side of the process that started another one. Dropping it kills that.
#[derive(Debug)]
pub struct Isolated {
    child: Child,
    said: PipeReader,
    ended: bool,
}

/// How such a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All input was read, and nothing is wrong with it.
    Done,
    /// The input is refused. `cut` says that all of the input had been read: if the input itself was cut off by another failure,
    /// then that failure is the reason.
    Refused { why: String, cut: bool },
    /// The process could not give up its rights, so it read nothing.
    Unconfined(String),
    /// The process did not end by itself. A number of a signal, or none if it ended in a way that none of ours does.
    Killed(Option<i32>),
}

/// Makes a pipe of the size that suits two processes.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // A host may have set the most to less.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}

/// Starts a process of a role, which becomes user `id`, reads `input` and writes `output`. It ends with the thread that
/// calls this.
///
/// # Errors
/// Those of pipe(2), fork(2) and execve(2).
pub fn start(program: &Path, role: &str, id: u32, input: OwnedFd, output: OwnedFd) -> io::Result<Isolated> {
    let (said, errors) = io::pipe()?;
    let mut command = Command::new(program);
    command.arg0(NAME).args([role, &id.to_string(), &std::process::id().to_string()]);
    command.stdin(input).stdout(output).stderr(errors).env_clear().current_dir("/");
    // A key that is pressed at the terminal is the caller's to answer.
    command.process_group(0);
    #[cfg(feature = "faults")]
    command.envs(std::env::var("SPARK_FAULT").map(|fault| ("SPARK_FAULT", fault)));
    Ok(Isolated { child: command.spawn()?, said, ended: false })
}

impl Isolated {
    /// Waits for the end, when the caller has read all output. A process that does not end then is killed.
    ///
    /// # Errors
    /// Those of poll(2), read(2) and waitpid(2).
    pub fn end(&mut self) -> io::Result<End> {
        let deadline = Deadline::after(TO_END);
        let mut said = Vec::new();
        while said.len() < SENTENCE as usize && deadline::ended(&self.said, deadline.left())? {
            let mut some = [0; 512];
            match self.said.read(&mut some)? {
                0 => break,
                n => said.extend_from_slice(&some[..n]),
            }
        }
        let pidfd = process::pidfd_open(self.child.id() as i32)?;
        if !deadline::ended(&pidfd, deadline.left())? {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        self.ended = true;
        Ok(End::of(status, &said))
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.kill();
    }
}

impl End {
    fn of(status: ExitStatus, said: &[u8]) -> End {
        // A process that was taken over may have written anything.
        let text = || -> String {
            let text = String::from_utf8_lossy(said);
            text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
        };
        match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(0) => End::Done,
            Some(REFUSED) => End::Refused { why: text(), cut: false },
            Some(CUT) => End::Refused { why: text(), cut: true },
            Some(UNCONFINED) => End::Unconfined(text()),
            _ => End::Killed(status.signal()),
        }
    }
}

/// Waits until a source can be read, or nobody reads the pipe that it is copied to. False for the latter.
pub fn is_wanted(source: BorrowedFd<'_>, pipe: impl AsFd) -> io::Result<bool> {
    is_first(source, pipe, PollFlags::empty())
}

/// Waits until a source can be read, or another descriptor says to stop. False for the latter.
pub fn goes_on(source: impl AsFd, stop: impl AsFd) -> io::Result<bool> {
    is_first(source.as_fd(), stop, PollFlags::IN)
}

fn is_first(source: BorrowedFd<'_>, other: impl AsFd, event: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN), PollFd::new(&other, event)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
    Ok(fds[1].revents().is_empty())
}

/// Moves bytes of a file or a pipe to another pipe without a copy, as splice(2) does. Returns how many; 0 at the end.
///
/// # Errors
/// Those of splice(2). `EINVAL` says that the source is of a kind that it cannot do this for.
pub fn move_bytes(source: BorrowedFd<'_>, pipe: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(rustix::pipe::splice(source, None, pipe, None, most, SpliceFlags::MOVE)?)
}

/// What such a process reads.
#[derive(Debug)]
pub struct Input {
    has_ended: Rc<Cell<bool>>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = rustix::io::read(exec::standard_stream(0), &mut *buffer)?;
        if n == 0 && !buffer.is_empty() {
            self.has_ended.set(true);
        }
        Ok(n)
    }
}

/// What such a process makes of its input.
#[derive(Debug)]
pub struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(exec::standard_stream(1), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The role that this process was started for. Nothing for every other process.
pub fn role() -> Option<String> {
    let mut args = std::env::args();
    (args.next()? == NAME).then(|| args.next()).flatten()
}

/// Runs this process in its role: it gives up its rights, then does `work` with its input and its output. `memory` is the
/// most bytes of address space. If the input is refused, `work` says why.
pub fn run(memory: u64, work: impl FnOnce(Input, Output) -> Result<(), String>) -> ExitCode {
    let (status, why) = match confine(memory) {
        Err(e) => (UNCONFINED, e.to_string()),
        Ok(()) => {
            super::attack::attack();
            let has_ended = Rc::new(Cell::new(false));
            match work(Input { has_ended: has_ended.clone() }, Output) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(why) => (if has_ended.get() { CUT } else { REFUSED }, why),
            }
        }
    };
    let end = why.floor_char_boundary(SENTENCE as usize - 1);
    // Whoever started this process has the exit status too.
    let _ = io::stderr().write_all(&why.as_bytes()[..end]);
    ExitCode::from(status)
}

/// The filter of system calls. Only a test does without.
fn filter() -> io::Result<Filter> {
    #[cfg(feature = "faults")]
    if !stands(Wall::Filter) {
        return Ok(Filter::open());
    }
    Filter::of_reader()
}

/// Gives up all rights of this process, which has one thread. The order matters: each step still needs what later ones take.
fn confine(memory: u64) -> io::Result<()> {
    let number = |n: usize| std::env::args().nth(n)?.parse::<u32>().ok().filter(|n| *n > 0);
    let (Some(id), Some(parent)) = (number(2), number(3)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it was not started by spark"));
    };
    exec::close_all_from(3)?;
    let network = if stands(Wall::Network) { Some(Arc::new(confine::empty_network()?)) } else { None };
    let capabilities = if stands(Wall::Capabilities) { CapabilitySet::empty() } else { CapabilitySet::all() };
    let confinement = Confinement {
        network,
        files: if stands(Wall::Files) { Files::none()?.ready() } else { None },
        filter: Arc::new(filter()?),
        capabilities,
        limits: if stands(Wall::Limits) { confine::limits(memory, 0) } else { Vec::new() },
    };
    confinement.leave_network()?;
    if stands(Wall::User) {
        confine::become_stranger(id)?;
    }
    // After the change of user, which resets it. A parent that has ended before is not waited for.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid().is_none_or(|now| now.as_raw_pid() as u32 != parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    confinement.enforce()
}
