//! A process of ours that outlives the command that starts it, serves sparks, and has no rights.
//!
//! The command executes a program of ours again with [`start`], as [`super::isolated`] does. The new process finds its task
//! with [`super::isolated::role`]. It begins as root, with nothing of the command but the descriptors that it is given. It opens
//! what it needs, says with [`Ready::say`] how that went, and calls [`confine()`] before it reads the first byte of anybody
//! else's.
//!
//! Nobody waits for its end: its parent is who adopts orphans.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::confine::{self, Confinement, Files, Filter};
use super::deadline::{self, Deadline};
use super::inherited::InitLimits;
use super::{exec, isolated, process};

/// How long a process may take to open what it needs and to give up its rights.
const TO_BEGIN: Duration = Duration::from_secs(20);
/// Most bytes of the sentence that says why it could not.
const SENTENCE: usize = 4096;
/// What it says if nothing went wrong.
const READY: &[u8] = b"+";

/// Starts a process of a role with some descriptors, and waits until it is confined.
///
/// # Errors
/// Those of fork(2) and execve(2), and what the process says.
pub fn start(program: &Path, role: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let (said, saying) = io::pipe()?;
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(program);
    command.arg0(isolated::NAME).arg(role).args(numbers.iter().map(RawFd::to_string));
    command.stdin(Stdio::null()).stdout(saying).stderr(Stdio::null()).env_clear().current_dir("/");
    #[cfg(feature = "faults")]
    command.envs(std::env::var("SPARK_FAULT").map(|fault| ("SPARK_FAULT", fault)));
    let limits = InitLimits::read();
    let leave = move || {
        rustix::process::setsid()?;
        exec::reset_signals()?;
        super::inherited::leave_schedule(&limits);
        for fd in &numbers {
            exec::keep_over_execution(*fd)?;
        }
        process::become_orphan()
    };
    // SAFETY: only system calls, on memory that was made before: nothing allocates and no lock is taken.
    unsafe { command.pre_exec(leave) };
    command.spawn()?.wait()?;
    // The command has a copy of the end that is written to.
    drop(command);
    listen(said)
}

/// Waits for what a process says.
fn listen(mut said: PipeReader) -> io::Result<()> {
    let deadline = Deadline::after(TO_BEGIN);
    let mut text = Vec::new();
    while text.len() < SENTENCE {
        deadline::readable(&said, deadline)?;
        let mut some = [0; 512];
        match said.read(&mut some)? {
            0 => break,
            n => text.extend_from_slice(&some[..n]),
        }
    }
    match text.as_slice() {
        READY => Ok(()),
        b"" => Err(io::Error::other("it ended before it was ready")),
        said => Err(io::Error::other(String::from_utf8_lossy(said).into_owned())),
    }
}

/// The way in which a process tells the command that started it how its beginning went. Dropping it lets the command go on.
#[derive(Debug)]
pub struct Ready(File);

impl Ready {
    /// Standard output becomes the null device: it must not keep the command waiting.
    fn take() -> io::Result<Ready> {
        let pipe = rustix::io::fcntl_dupfd_cloexec(exec::standard_stream(1), 3)?;
        rustix::stdio::dup2_stdout(exec::standard_stream(0))?;
        Ok(Ready(pipe.into()))
    }

    /// Says it.
    pub fn say(mut self, begun: &io::Result<()>) {
        let text = match begun {
            Ok(()) => READY.to_vec(),
            Err(e) => e.to_string().into_bytes(),
        };
        // Whoever waits sees at least the end.
        let _ = self.0.write_all(&text);
    }
}

/// In such a process, before it has opened anything: the descriptors that it was given, and how it says that it is ready.
/// Closes all others.
///
/// # Errors
/// If it was given other ones, because nobody like [`start`] has started this process.
pub fn begin<const N: usize>() -> io::Result<([OwnedFd; N], Ready)> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidInput, "it was not started by spark");
    let numbers: Vec<RawFd> = std::env::args().skip(2).map_while(|arg| arg.parse().ok()).collect();
    let numbers: [RawFd; N] = numbers.try_into().map_err(|_| unknown())?;
    let mut sorted = numbers;
    sorted.sort_unstable();
    let differ = sorted.windows(2).all(|pair| pair[0] < pair[1]);
    if !differ || sorted.iter().any(|fd| *fd < 3 || !exec::is_inherited(*fd)) {
        return Err(unknown());
    }
    let mut first = 3;
    for fd in sorted {
        exec::close_some(first, fd)?;
        first = fd + 1;
    }
    exec::close_all_from(first as libc::c_uint)?;
    // SAFETY: `start` has passed these descriptors, which are open and different, for this process to own. It has opened
    // nothing itself yet, and this is called once, so nobody else owns one of them.
    let fds = numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((fds, Ready::take()?))
}

/// Gives up all rights of this process, which has one thread. From then on it has user `id`, and `root` is all the files that
/// there are for it to read. It keeps its descriptors, and may have `files` of them open.
///
/// # Errors
/// The first step that the kernel refuses. The process must not go on then.
pub fn confine(id: u32, root: impl AsFd, memory: u64, files: u64) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(".")?;
    let confinement = Confinement {
        // It can make no socket, whatever network it is in.
        network: None,
        files: Files::of_resolver()?.add(Path::new("/"), confine::Access::Read)?.ready(),
        filter: Arc::new(Filter::of_resolver()?),
        capabilities: CapabilitySet::empty(),
        limits: confine::limits(memory, files),
    };
    confine::become_stranger(id)?;
    confinement.enforce()?;
    super::attack::attack();
    Ok(())
}
