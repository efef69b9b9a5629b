//! `exec`: a process that joins a running spark, exactly as confined as its PID 1.
//!
//! One fork: the child is born in the spark's pid namespace, is or gets in the cgroups, joins all other
//! namespaces in one step, and confines itself in an order in which nobody inside can get hold of it before it is
//! done (docs/security.md). libcontainer's tenant does this in more steps, as the host's root (docs/adr/0007).

use std::ffi::{CStr, CString, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::termios::Winsize;
use secrecy::ExposeSecret;

use super::confine::Confinement;
use super::live::{self, Live};
use super::log::{Keeper, Log};
use super::report::{self, Report, Sender};
use super::streams::Replaced;
use super::users::User;
use super::youki::{Entrances, Handle};
use crate::error::{Error, Result};
use crate::fault;
use crate::sys;
use crate::sys::deadline::{self, Deadline};
use crate::sys::inherited::InitLimits;
use crate::sys::locked::Secret;
use crate::sys::process::ProcessId;

/// A command to run inside.
#[derive(Debug)]
pub struct Entry {
    pub container: Handle,
    pub live: Live,
    pub confinement: Confinement,
    pub user: User,
    pub argv: Vec<OsString>,
    /// `argv[0]` as the program sees it, if not the program's name: `-sh` for a login shell.
    pub shown_as: Option<OsString>,
    /// `KEY=VALUE`, complete but for secrets.
    pub env: Vec<OsString>,
    /// `KEY=VALUE` and a NUL each: what of the environment is in no other memory.
    pub secrets: Vec<Rc<Secret>>,
    pub workdir: PathBuf,
    /// Whether a missing `workdir` is no reason to fail: it was not asked for.
    pub workdir_optional: bool,
    pub terminal: bool,
    /// Standard input, output and error, if not this process's own.
    pub streams: Replaced,
    /// The log that the command writes to, in place of `streams`.
    pub log: Option<Log>,
    /// PID 1 may leave by itself at any moment, when it finds itself alone.
    pub may_leave: bool,
    /// The size of its terminal's window: there before its first instruction.
    pub window: Option<Winsize>,
    /// Whether it is the spark's own, and must not depend on who starts it: nothing of `sys::inherited`'s second list.
    pub is_service: bool,
}

/// What was started: a child of this process.
#[derive(Debug)]
pub struct Entered {
    pub pid: i32,
    pub master: Option<OwnedFd>,
}

/// A child of this process that is on its way into a spark or a container. Whoever is root inside can stop it there.
#[derive(Debug)]
#[must_use]
pub struct Entering {
    pid: i32,
    from: report::Receiver,
    workdir: PathBuf,
    cgroup: PathBuf,
}

/// How long the lock on a spark is kept for a command on its way in. A command that takes longer goes on without: it ends with
/// PID 1 in any case.
const LOCKED: Duration = Duration::from_millis(20);

/// What may go wrong after the fork, as the child reports it.
pub(super) const STEP_CONFINE: u8 = 1;
pub(super) const STEP_TERMINAL: u8 = 2;
pub(super) const STEP_WORKDIR: u8 = 3;
const STEP_EXEC: u8 = 4;
pub(super) const STEP_CGROUP: u8 = 5;
const STEP_REST: u8 = 6;
pub(super) const STEP_STREAMS: u8 = 7;

/// Why a command did not start.
#[derive(Debug)]
pub enum Failure {
    /// The program could not be executed.
    Exec(io::Error),
    /// It was not executed in time, and has been killed.
    TimedOut,
    /// A signal came that ends this process, and the command has been killed.
    Interrupted,
    /// Everything else.
    Other(Error),
}

impl Entry {
    /// Forks the process that becomes the command. From here on it ends when PID 1 does.
    pub fn begin(self) -> Result<Entering> {
        let (workdir, cgroup) = (self.workdir.clone(), self.container.cgroup.clone());
        let (pid, from) = self.fork()?;
        Ok(Entering::of(pid, from, workdir, cgroup))
    }

    fn fork(mut self) -> Result<(i32, report::Receiver)> {
        let init = self.live.pidfd().map_err(Error::sys("find PID 1"))?;
        let cgroups = self.container.entrances()?;
        if let Some(log) = self.log.take() {
            self.streams = Keeper::start(log, &cgroups, &init, self.live.first_id)?;
        }
        let (from, to) = report::channel().map_err(Error::sys("make a channel"))?;
        let plan = Plan::new(self, (init, cgroups), to)?;
        // The child is in sight of the spark from its first moment, and nobody may look into it.
        sys::exec::set_undumpable().map_err(Error::sys("hide this process"))?;
        let cgroup = plan.cgroups.unified.as_ref().map(AsFd::as_fd);
        let pid = sys::process::fork_into(&plan.init, cgroup, || plan.run()).map_err(not_entered)?;
        Ok((pid, from))
    }
}

/// The end of a child's own work: it executes its program if all is prepared, and reports so, or why not. It returns only
/// if the program was not executed, with the child's status.
pub(super) fn end(
    report: &report::Sender,
    prepared: Result<(), (u8, io::Error)>,
    execute: impl FnOnce() -> io::Error,
) -> i32 {
    let ready = || report.ready().and_then(|()| passed(fault::point("enter.ready")));
    let (step, e) = match prepared.and_then(|()| ready().map_err(|e| (STEP_CONFINE, e))) {
        Ok(()) => (STEP_EXEC, execute()),
        Err(failed) => failed,
    };
    report.failed(step, &e);
    127
}

/// The result of a fault point in a child.
pub(super) fn passed(point: Result<()>) -> io::Result<()> {
    point.map_err(io::Error::other)
}

impl Entering {
    pub(super) fn of(pid: i32, from: report::Receiver, workdir: PathBuf, cgroup: PathBuf) -> Entering {
        Entering { pid, from, workdir, cgroup }
    }

    /// Its number on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until the program is executed. `lock`, which keeps the spark as it is, is given back on the way if that takes
    /// long.
    ///
    /// # Errors
    /// Why it was not executed; then it has been killed and reaped.
    pub fn wait(self, lock: &mut Option<OwnedFd>) -> Result<Entered, Failure> {
        let mut report = Report::default();
        let e = match self.hear(&mut report, lock) {
            Ok(()) => match report.failed {
                None if report.ready => return Ok(Entered { pid: self.pid, master: report.master }),
                // The end of the first process is that of all inside.
                None => failure(STEP_CONFINE, io::Error::from_raw_os_error(libc::ESRCH), &self.workdir),
                Some((step, e)) => failure(step, e, &self.workdir),
            },
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Failure::TimedOut,
            Err(e) if deadline::is_interrupted(&e) => Failure::Interrupted,
            Err(e) => Failure::Other(Error::sys("hear of the command")(e)),
        };
        self.abandon();
        Err(e)
    }

    fn hear(&self, report: &mut Report, lock: &mut Option<OwnedFd>) -> io::Result<()> {
        let is_late = |e: &io::Error| e.kind() == io::ErrorKind::TimedOut;
        match self.from.receive(report, Deadline::after(LOCKED)) {
            // The child has it open, too.
            Err(e) if is_late(&e) => lock.take().map(sys::flock::release).transpose().map(drop)?,
            other => return other,
        }
        loop {
            match self.from.receive(report, Deadline::inside()) {
                // Nobody inside has done that: somebody on the host has paused the spark, and will resume it.
                Err(e) if is_late(&e) && live::is_frozen(&self.cgroup) => {}
                other => return other,
            }
        }
    }

    /// Ends it.
    pub fn abandon(self) {
        if let Err(e) = deadline::end_child(self.pid) {
            tracing::debug!(pid = self.pid, "cannot end a command on its way in: {e}");
        }
    }
}

fn failure(step: u8, source: io::Error, workdir: &Path) -> Failure {
    match step {
        STEP_EXEC => Failure::Exec(source),
        STEP_REST if source.raw_os_error() == Some(libc::ETIMEDOUT) => Failure::TimedOut,
        STEP_REST => Failure::Other(Error::sys("find PID 1 at rest")(source)),
        STEP_CGROUP => Failure::Other(not_entered(source)),
        STEP_STREAMS => Failure::Other(not_given(source)),
        STEP_TERMINAL => Failure::Other(Error::sys("open a terminal in the spark")(source)),
        STEP_WORKDIR => Failure::Other(Error::io("change to the working directory", workdir)(source)),
        _ => Failure::Other(Error::sys("confine the command")(source)),
    }
}

/// Why a command could not be put into a spark's cgroups.
fn not_entered(source: io::Error) -> Error {
    match source.raw_os_error() {
        // The kernel gives a new cgroup no real-time share of the processors, and takes no real-time process into it.
        Some(libc::EINVAL) if sys::schedule::is_real_time() => Error::Host {
            what: "a process with a real-time scheduling policy cannot enter a spark".into(),
            hint: "give the command an ordinary one: `chrt --other 0 spark …`".into(),
            source: Some(source),
        },
        _ => Error::sys("enter the spark")(source),
    }
}

/// Why a command could not have this process's standard streams.
fn not_given(source: io::Error) -> Error {
    let names = ["standard input", "standard output", "standard error"];
    let named = (0..).zip(names).find(|(fd, _)| is_directory(sys::exec::standard_stream(*fd)));
    match named {
        Some((_, name)) => Error::Denied {
            what: format!("{name} is a directory: from there, a command could reach all files of the host"),
            hint: format!("redirect {name} to a file, a pipe or /dev/null"),
        },
        None => Error::sys("pass the standard streams on")(source),
    }
}

fn is_directory(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Everything that the child needs, made before the fork.
struct Plan {
    /// A pidfd of PID 1, whose namespaces are joined: certainly its own, whatever becomes of its number.
    init: OwnedFd,
    /// If that may leave when it is alone.
    leaving: Option<ProcessId>,
    cgroups: Entrances,
    report: Sender,
    confinement: Confinement,
    user: User,
    first_id: u32,
    program: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    secrets: Vec<Rc<Secret>>,
    workdir: CString,
    workdir_optional: bool,
    terminal: bool,
    window: Option<Winsize>,
    /// The limits of the host's first process, if the command is to have nothing of who starts it.
    leaves_schedule: Option<InitLimits>,
    streams: Replaced,
}

impl Plan {
    fn new(entry: Entry, (init, cgroups): (OwnedFd, Entrances), report: Sender) -> Result<Plan> {
        let nul = |_| Error::usage("the command, its environment or its directory holds a NUL");
        let string = |s: OsString| CString::new(s.into_vec()).map_err(nul);
        let strings = |items: Vec<OsString>| items.into_iter().map(string).collect::<Result<Vec<_>>>();
        let mut argv = strings(entry.argv)?;
        let envp = strings(entry.env)?;
        let name = argv.first().ok_or_else(|| Error::usage("there is no command"))?;
        let program = candidates(name, &envp);
        if let Some(shown) = entry.shown_as {
            argv[0] = string(shown)?;
        }
        Ok(Plan {
            leaving: entry.may_leave.then(|| entry.live.init.clone()),
            init,
            cgroups,
            report,
            confinement: entry.confinement,
            user: entry.user,
            first_id: entry.live.first_id,
            program,
            argv,
            envp,
            secrets: entry.secrets,
            workdir: string(entry.workdir.into_os_string())?,
            workdir_optional: entry.workdir_optional,
            terminal: entry.terminal,
            window: entry.window,
            leaves_schedule: entry.is_service.then(InitLimits::read),
            streams: entry.streams,
        })
    }

    /// The child. It returns only if the command was not executed.
    fn run(&self) -> i32 {
        end(&self.report, self.prepare(), || self.execute())
    }

    fn prepare(&self) -> Result<(), (u8, io::Error)> {
        let unconfined = |e| (STEP_CONFINE, e);
        self.leave_caller().map_err(unconfined)?;
        self.await_rest().map_err(|e| (STEP_REST, e))?;
        self.arrive().map_err(unconfined)?;
        for mut tasks in &self.cgroups.tasks {
            tasks.write_all(b"0").map_err(|e| (STEP_CGROUP, e))?;
        }
        self.take_streams().map_err(|e| (STEP_STREAMS, e))?;
        self.confine().map_err(unconfined)?;
        if self.terminal {
            self.open_terminal().map_err(|e| (STEP_TERMINAL, e))?;
        }
        match rustix::process::chdir(&self.workdir) {
            // Joining the mount namespace has led to the spark's root already.
            Err(e) if !self.workdir_optional => return Err((STEP_WORKDIR, e.into())),
            _ => {}
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        self.confinement.lower_limits().map_err(unconfined)?;
        // A crash would write the variables that are secrets into the root filesystem, and so into the next snapshot, or hand
        // them to who collects core dumps on the host. Who wants one inside can say so: `ulimit -c`.
        sys::exec::without_core_dumps().map_err(unconfined)?;
        sys::exec::reset_signals().map_err(unconfined)
    }

    /// First, so that no signal that the caller's terminal sends to its foreground reaches this process.
    fn leave_caller(&self) -> io::Result<()> {
        passed(fault::point("enter.born"))?;
        rustix::process::setsid().map(drop).map_err(io::Error::from)
    }

    /// Waits until PID 1 rests, if it may leave by itself.
    fn await_rest(&self) -> io::Result<()> {
        if let Some(init) = &self.leaving {
            // It looks whether it is alone, and then leaves: if it looked just before this process was there, it takes
            // this process along. Asleep, it has decided to stay, and the next time it looks it is not alone.
            sys::process::wait_asleep(init, Deadline::inside())?;
            // What is gone again before it looks counts too.
            live::touch(&self.init)?;
        }
        Ok(())
    }

    fn arrive(&self) -> io::Result<()> {
        passed(fault::point("enter.arrived"))?;
        if let Some(limits) = &self.leaves_schedule {
            sys::inherited::leave_schedule(limits);
        }
        self.confinement.enter_profile()
    }

    /// `/dev/stdin` and its like open the stream's inode anew, so that has to belong to the user inside. Files are
    /// the caller's and stay so, fifos with a name among them.
    ///
    /// # Errors
    /// `EISDIR` for a directory: all of the host's files would be in reach from there.
    fn take_streams(&self) -> io::Result<()> {
        let [input, output, error] = &self.streams;
        input.as_ref().map(rustix::stdio::dup2_stdin).transpose()?;
        output.as_ref().map(rustix::stdio::dup2_stdout).transpose()?;
        error.as_ref().map(rustix::stdio::dup2_stderr).transpose()?;
        // What has a terminal of its own leaves these behind.
        give_streams((!self.terminal).then_some(self.first_id + self.user.uid))
    }

    /// The order matters: see docs/security.md before changing it.
    fn confine(&self) -> io::Result<()> {
        passed(fault::point("enter.in-cgroups"))?;
        sys::exec::join_namespaces(&self.init)?;
        // From here on, who is root inside may signal this process.
        passed(fault::point("enter.joined"))?;
        self.confinement.before_drop()?;
        passed(fault::point("enter.filtered"))?;
        sys::exec::keep_capabilities(true)?;
        sys::exec::become_user(self.user.uid, self.user.gid, &self.user.groups)?;
        sys::exec::set_undumpable()?;
        passed(fault::point("enter.is-user"))?;
        self.confinement.drop_capabilities(self.user.uid)?;
        sys::exec::keep_capabilities(false)?;
        // For good, and not only when it is executed: what the spark chose as directory, program or interpreter may
        // lead through /proc/self/fd.
        sys::exec::close_others(self.report.as_raw_fd())?;
        passed(fault::point("enter.closed"))?;
        self.confinement.after_drop()?;
        passed(fault::point("enter.confined"))
    }

    /// Opened by the user inside, with their rights, and so theirs.
    fn open_terminal(&self) -> io::Result<()> {
        let (master, slave) = sys::tty::open_pair()?;
        if let Some(window) = self.window {
            sys::tty::set_window(&slave, window)?;
        }
        self.report.master(master.as_fd())?;
        rustix::process::ioctl_tiocsctty(&slave)?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        Ok(rustix::stdio::dup2_stderr(&slave)?)
    }

    fn execute(&self) -> io::Error {
        let secrets =
            self.secrets.iter().filter_map(|s| CStr::from_bytes_with_nul(s.expose_secret().bytes()).ok());
        let envp: Vec<&CStr> = self.envp.iter().map(|s| &**s).chain(secrets).collect();
        execute(&self.program, &self.argv, &envp)
    }
}

/// Gives the pipes among the standard streams to a user of the host, if there is one.
pub(super) fn give_streams(to: Option<u32>) -> io::Result<()> {
    for fd in 0..3 {
        let stream = sys::exec::standard_stream(fd);
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if let Some(uid) = to
            && kind.is_fifo()
            && sys::file::is_pipe(stream).unwrap_or(false)
        {
            let _ = sys::exec::give_to(stream, uid);
        }
    }
    Ok(())
}

/// As execvp(3) does: what cannot be entered or is no program is remembered, and the search goes on.
pub(super) fn execute(programs: &[CString], argv: &[CString], envp: &[impl AsRef<CStr>]) -> io::Error {
    let envp: Vec<&CStr> = envp.iter().map(AsRef::as_ref).collect();
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for program in programs {
        let e = sys::exec::execve(program, argv, &envp);
        match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => last = e,
            _ => return e,
        }
    }
    last
}

/// The paths at which a program is looked for.
pub(super) fn candidates(name: &CString, envp: &[CString]) -> Vec<CString> {
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return vec![name.clone()];
    }
    let path = envp.iter().find_map(|e| e.as_bytes().strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|b| *b == b':')
        .filter_map(|dir| {
            let dir = if dir.is_empty() { b"." } else { dir };
            CString::new([dir, b"/", name.as_bytes()].concat()).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_the_path_of_the_spark() {
        let envp = [c"A=b".to_owned(), c"PATH=/x:/y".to_owned()];
        let found = candidates(&c"ls".to_owned(), &envp);
        assert_eq!(found, [c"/x/ls".to_owned(), c"/y/ls".to_owned()]);
        assert_eq!(candidates(&c"./ls".to_owned(), &envp), [c"./ls".to_owned()]);
    }
}
