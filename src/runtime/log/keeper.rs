//! The keepers of a log: a process beside each detached command, which copies what that writes from a pipe to the log.
//!
//! The command cannot have the log itself: it could write without end, or truncate the file up to a tebibyte. A keeper is the
//! program in `init/keeper.rs`. It counts for the spark's limits, and has nothing of its caller.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;

use super::bounded::MOST;
use super::{Log, reader};
use crate::error::{Error, Result};
use crate::runtime::live;
use crate::runtime::report::{self, Sender};
use crate::runtime::youki::Entrances;
use crate::runtime::{init, streams::Replaced};
use crate::sys;
use crate::sys::deadline::Deadline;
use crate::sys::inherited::InitLimits;

/// The user that keepers are, counted from a spark's first id: nobody inside is the host's nobody.
const USER: u32 = 65_534;
/// The program's name, and that of its file in memory.
const NAME: &std::ffi::CStr = c"spark-log";
/// How long keepers have to write down what a spark left in their pipes.
const TO_WRITE: Duration = Duration::from_secs(2);

/// A keeper to be.
#[derive(Debug)]
pub(in crate::runtime) struct Keeper<'a> {
    pipe: OwnedFd,
    log: Log,
    init: BorrowedFd<'a>,
    program: OwnedFd,
    cgroups: &'a Entrances,
    user: u32,
}

impl Keeper<'_> {
    /// Starts a keeper for a command that is about to enter a running spark by these ways. `init` is a pidfd of PID 1.
    /// Returns the command's streams: nothing to read, and the keeper's pipe twice.
    pub(in crate::runtime) fn start(
        log: Log,
        cgroups: &Entrances,
        init: &OwnedFd,
        first_id: u32,
    ) -> Result<Replaced> {
        let begin = || -> io::Result<_> {
            let null = File::open("/dev/null")?;
            let (pipe, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
            // A command opens its output anew through /dev/stdout, as any user inside.
            rustix::fs::fchmod(&to, rustix::fs::Mode::from_raw_mode(0o622))?;
            let streams = [Some(null.into()), Some(to.try_clone()?), Some(to)];
            Ok((pipe, init::seal(NAME, init::KEEPER)?, streams))
        };
        let (pipe, program, streams) = begin().map_err(Error::sys("prepare the keeper of the log"))?;
        let keeper = Keeper { pipe, log, init: init.as_fd(), program, cgroups, user: first_id + USER };
        keeper.fork().map_err(Error::sys("start the keeper of the log"))?;
        Ok(streams)
    }

    /// Forks the keeper, and waits until it is executed.
    fn fork(&self) -> io::Result<()> {
        let (from, to) = report::channel()?;
        sys::exec::set_undumpable()?;
        let cgroup = self.cgroups.unified.as_ref().map(AsFd::as_fd);
        sys::process::fork_orphan(cgroup, || self.run(&to))?;
        drop(to);
        let mut report = report::Report::default();
        // It joins no user namespace on its way: nobody inside can signal it.
        from.receive(&mut report, Deadline::inside())?;
        match report.failed {
            None => Ok(()),
            Some((_, e)) => Err(e),
        }
    }

    fn run(&self, to: &Sender) -> i32 {
        let e = match self.prepare() {
            Ok(()) => init::exec(self.program.as_fd(), &[NAME]),
            Err(e) => e,
        };
        to.failed(0, &e);
        127
    }

    /// Leaves behind what the caller has, and then all rights.
    fn prepare(&self) -> io::Result<()> {
        for mut tasks in &self.cgroups.tasks {
            tasks.write_all(b"0")?;
        }
        // The kernel would choose it for its spark's lack of memory, and the command would end with it.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        rustix::process::setsid()?;
        sys::inherited::leave_schedule(&InitLimits::read());
        sys::exec::leave_keyring()?;
        // All but those of processes, where those inside would see it, and of users: its root is the spark's.
        let all = libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP;
        sys::exec::join_some(self.init, all)?;
        let log = &self.log;
        let fds = [self.pipe.as_fd(), log.newer.as_fd(), log.older.as_fd(), log.start.as_fd(), self.init];
        sys::exec::limit_files(MOST)?;
        sys::exec::without_core_dumps()?;
        sys::exec::become_user(self.user, self.user, &[])?;
        sys::exec::set_no_new_privs()?;
        sys::exec::pass_on(&fds)
    }
}

/// The keepers of a spark: processes of its cgroup that are not in its pid namespace, so nobody inside can pass for one.
fn keepers(cgroup: &Path) -> Vec<(i32, OwnedFd)> {
    let Ok(own) = std::fs::read_link("/proc/self/ns/pid") else { return Vec::new() };
    let is_keeper = |pid: i32| {
        let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}"));
        link("ns/pid").is_ok_and(|namespace| namespace == own)
            && link("exe").is_ok_and(|program| program.to_string_lossy().contains("memfd:spark-log"))
    };
    live::members(cgroup).into_iter().filter(|(pid, _)| is_keeper(*pid)).collect()
}

/// Waits until the keepers of a spark that has ended have written down what it left.
pub fn wait_end(cgroup: &Path) {
    let deadline = Instant::now() + TO_WRITE;
    for (_, pidfd) in keepers(cgroup) {
        let left = deadline.saturating_duration_since(Instant::now());
        if !sys::deadline::ended(&pidfd, left).unwrap_or(true) {
            tracing::warn!("the log may lack what was written last");
        }
    }
}

/// Waits until the log has what was written before this was called.
pub fn settle(cgroup: &Path, log: &Path) -> io::Result<()> {
    // Those of a paused spark stand still too.
    if live::is_frozen(cgroup) {
        return Ok(());
    }
    let deadline = Instant::now() + TO_WRITE;
    let mut pipes: Vec<File> = keepers(cgroup).iter().filter_map(|(pid, _)| pipe_of(*pid)).collect();
    let unread = |pipe: &File| rustix::io::ioctl_fionread(pipe).unwrap_or(0);
    let enough = pipes.iter().map(unread).sum::<u64>() + reader::end_of(log)?;
    loop {
        pipes.retain(|pipe| unread(pipe) > 0);
        // Pipes that are filled again and again are never empty.
        if pipes.is_empty() || reader::end_of(log)? >= enough || Instant::now() > deadline {
            return Ok(());
        }
        sys::deadline::pause(Duration::from_micros(200))?;
    }
}

/// The pipe that a keeper reads, opened to be asked how much is in it.
fn pipe_of(keeper: i32) -> Option<File> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK).open(format!("/proc/{keeper}/fd/0")).ok()
}
