//! A process that joins a container, as its `process` object says and in no wider confinement than the first one's.
//!
//! The steps are those of a spark's command (`runtime::enter`), but for what a bundle decides: which namespaces there
//! are to join, limits, groups, capabilities, and what is inherited.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::termios::Winsize;

use super::create::home_of;
use super::priority::Priority;
use super::spec::has_home;
use super::state::Container;
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::confine::{Confinement, resource_limit};
use crate::runtime::enter::{
    Entered, Entering, Failure, STEP_CONFINE, STEP_STREAMS, STEP_TERMINAL, STEP_WORKDIR, candidates, end,
    execute, give_streams, passed,
};
use crate::runtime::report::{self, Sender};
use crate::runtime::youki::{Entrances, Handle};
use crate::sys;
use crate::sys::process::ProcessId;

/// A process to start in a container.
#[derive(Debug)]
pub struct Entry {
    pub container: Container,
    pub init: ProcessId,
    pub process: Process,
    pub confinement: Confinement,
    /// Below the container's cgroups.
    pub cgroup: Option<Below>,
    /// How many descriptors after the standard ones it inherits.
    pub preserve_fds: u32,
    /// The execution domain of the container, if it has one of its own.
    pub personality: Option<u32>,
    /// The size of its terminal's window, unless `consoleSize` says another.
    pub window: Option<Winsize>,
}

impl Entry {
    /// Starts it. `lock`, which keeps the container as it is, is given back on the way if that takes long.
    pub fn start(self, lock: &mut Option<OwnedFd>) -> Result<Entered, Failure> {
        let workdir = self.process.cwd().clone();
        let cgroup = self.container.cgroup().map_err(Failure::Other)?;
        let (from, to) = report::channel().map_err(Error::sys("make a channel")).map_err(Failure::Other)?;
        let plan = Plan::new(self, to).map_err(Failure::Other)?;
        plan.run_on(true).map_err(Error::sys("choose processors")).map_err(Failure::Other)?;
        let pid = plan.fork().map_err(Error::sys("enter the container")).map_err(Failure::Other)?;
        // The receiver hears the end only when nobody here can send any more.
        drop(plan);
        Entering::of(pid, from, workdir, cgroup).wait(lock)
    }
}

/// The kinds of namespace besides the one of pids, which the fork sees to.
const KINDS: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("net", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
];

/// Everything that the child needs, made before the fork.
struct Plan {
    /// A pidfd of the first process: certainly that one, whatever becomes of its number.
    init: OwnedFd,
    init_pid: i32,
    handle: Handle,
    cgroups: Entrances,
    /// Whether the caller named a cgroup below the container's.
    is_below: bool,
    /// The namespaces that are not ours already.
    kinds: i32,
    /// Where it is confined by its root alone.
    root: Option<OwnedFd>,
    report: Sender,
    confinement: Confinement,
    process: Process,
    /// The host's number of the user inside.
    host_uid: Option<u32>,
    programs: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    has_home: bool,
    cwd: CString,
    /// The first descriptor that is closed.
    first: RawFd,
    personality: Option<u32>,
    window: Option<Winsize>,
    new_keyring: bool,
    priority: Priority,
    /// Before and after it gets in the cgroups.
    processors: [Option<Vec<usize>>; 2],
}

impl Plan {
    fn new(entry: Entry, report: Sender) -> Result<Plan> {
        let process = entry.process;
        let strings = |items: &[String]| -> Result<Vec<CString>> {
            let string = |s: &String| CString::new(s.as_str());
            let nul = |_| Error::usage("the command or its environment holds a NUL");
            items.iter().map(string).collect::<Result<_, _>>().map_err(nul)
        };
        let argv = strings(process.args().as_deref().unwrap_or_default())?;
        let env = process.env().as_deref().unwrap_or_default();
        let has_home = has_home(env.iter().map(String::as_str));
        let mut envp = strings(env)?;
        if !has_home {
            envp.retain(|e| !e.as_bytes().starts_with(b"HOME="));
        }
        let name = argv.first().ok_or_else(|| Error::usage("there is no command"))?;
        let cwd = if process.cwd().as_os_str().is_empty() { Path::new("/") } else { process.cwd() };
        let cwd = CString::new(cwd.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::usage("the working directory holds a NUL"))?;
        let handle = entry.container.handle()?;
        let pid = entry.init.pid;
        let failed = Error::sys("look at the container's first process");
        let looked = || -> io::Result<_> {
            let init = entry.init.open()?;
            let kinds = kinds_of(pid)?;
            let root = match kinds & libc::CLONE_NEWNS {
                0 => Some(sys::file::open_dir(format!("/proc/{pid}/root").as_ref())?),
                _ => None,
            };
            let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
            // Looked at by number: it was the one meant only if it is still there.
            if !entry.init.alive() {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok((init, kinds, root, outside(&map, process.user().uid())))
        };
        let (init, kinds, root, host_uid) = looked().map_err(failed)?;
        Ok(Plan {
            init,
            kinds,
            root,
            host_uid,
            init_pid: pid,
            cgroups: entrances(&handle, entry.cgroup.as_ref())?,
            is_below: entry.cgroup.is_some(),
            handle,
            report,
            confinement: entry.confinement,
            programs: candidates(name, &envp),
            argv,
            envp,
            has_home,
            cwd,
            first: 3 + entry.preserve_fds as RawFd,
            personality: entry.personality,
            window: window(&process).or(entry.window),
            new_keyring: entry.container.has_keyring(),
            priority: Priority::of(&process)?,
            processors: processors(&process)?,
            process,
        })
    }

    /// Where the process runs before it gets in the cgroups, or after.
    fn run_on(&self, before: bool) -> io::Result<()> {
        let [initial, last] = &self.processors;
        if let Some(list) = if before { initial } else { last } {
            let mask = sys::process::run_on(list)?;
            tracing::debug!("affinity: {mask:#x}");
        }
        Ok(())
    }

    fn fork(&self) -> io::Result<i32> {
        // The child is in sight of the container from its first moment, and nobody may look into it.
        sys::exec::set_undumpable()?;
        let cgroup = self.cgroups.unified.as_ref().map(AsFd::as_fd);
        match sys::process::fork_into(&self.init, cgroup, || self.run()) {
            // No process may be where controllers are given to cgroups below.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && !self.is_below => {
                let inner = Entrances::where_init_is(&self.handle, self.init_pid)?;
                sys::process::fork_into(&self.init, Some(inner.as_fd()), || self.run())
            }
            forked => forked,
        }
    }

    /// The child. It returns only if the program was not executed.
    fn run(&self) -> i32 {
        end(&self.report, self.prepare(), || self.execute())
    }

    /// The order matters: see docs/security.md before changing it.
    fn prepare(&self) -> Result<(), (u8, io::Error)> {
        self.leave_host().map_err(|e| (STEP_CONFINE, e))?;
        give_streams(self.host_uid.filter(|_| !self.process.terminal().unwrap_or(false)))
            .map_err(|e| (STEP_STREAMS, e))?;
        self.join().map_err(|e| (STEP_CONFINE, e))?;
        passed(fault::point("oci-enter.joined")).map_err(|e| (STEP_CONFINE, e))?;
        if self.process.terminal().unwrap_or(false) {
            self.open_terminal().map_err(|e| (STEP_TERMINAL, e))?;
        }
        // Before the filter, which may forbid this, and for good: what the container chose as directory, program or
        // interpreter may lead through /proc/self/fd.
        sys::exec::close_from(self.first, self.report.as_raw_fd()).map_err(|e| (STEP_CONFINE, e))?;
        // As root inside, who may get where the user may not; again as the user if not even root may.
        let entered = rustix::process::chdir(&self.cwd);
        self.confine().map_err(|e| (STEP_CONFINE, e))?;
        match entered {
            Ok(()) => {}
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
                rustix::process::chdir(&self.cwd).map_err(|e| (STEP_WORKDIR, e.into()))?;
            }
            Err(e) => return Err((STEP_WORKDIR, e.into())),
        }
        below_root().map_err(|e| (STEP_WORKDIR, e))
    }

    /// What needs the host's root and its `/proc`.
    fn leave_host(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        if self.new_keyring {
            sys::exec::leave_keyring()?;
        }
        for mut tasks in &self.cgroups.tasks {
            tasks.write_all(b"0")?;
        }
        self.run_on(false)?;
        self.priority.take()?;
        if let Some(domain) = self.personality {
            sys::process::set_personality(domain)?;
        }
        if let Some(score) = self.process.oom_score_adj() {
            std::fs::write("/proc/self/oom_score_adj", score.to_string())?;
        }
        self.confinement.enter_profile()?;
        for limit in self.process.rlimits().iter().flatten() {
            let (which, limit) = resource_limit(limit);
            rustix::process::setrlimit(which, limit)?;
        }
        Ok(())
    }

    /// The container's namespaces.
    fn join(&self) -> io::Result<()> {
        if self.kinds != 0 {
            sys::exec::join_some(&self.init, self.kinds)?;
        }
        if let Some(root) = &self.root {
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
        }
        Ok(())
    }

    fn confine(&self) -> io::Result<()> {
        let user = self.process.user();
        if let Some(umask) = user.umask() {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        }
        self.confinement.before_drop()?;
        sys::exec::keep_capabilities(true)?;
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        sys::exec::become_user(user.uid(), user.gid(), groups)?;
        sys::exec::set_undumpable()?;
        self.confinement.drop_capabilities(user.uid())?;
        sys::exec::keep_capabilities(false)?;
        sys::exec::reset_signals()?;
        self.confinement.after_drop()
    }

    fn open_terminal(&self) -> io::Result<()> {
        let (master, slave) = sys::tty::open_pair()?;
        if let Some(size) = self.window {
            sys::tty::set_window(&slave, size)?;
        }
        self.report.master(master.as_fd())?;
        rustix::process::ioctl_tiocsctty(&slave)?;
        sys::exec::give_to(slave.as_fd(), self.process.user().uid())?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        Ok(rustix::stdio::dup2_stderr(&slave)?)
    }

    fn execute(&self) -> io::Error {
        let mut envp = self.envp.clone();
        if !self.has_home
            && let Ok(home) = CString::new(format!("HOME={}", home_of(self.process.user().uid())))
        {
            envp.push(home);
        }
        execute(&self.programs, &self.argv, &envp)
    }
}

/// What `consoleSize` says.
fn window(process: &Process) -> Option<Winsize> {
    let side = |n: u64| n.try_into().unwrap_or(0);
    process.console_size().map(|size| Winsize {
        ws_row: side(size.height()),
        ws_col: side(size.width()),
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

/// What `execCPUAffinity` lists.
fn processors(process: &Process) -> Result<[Option<Vec<usize>>; 2]> {
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok([None, None]) };
    let list = |text: &Option<String>| {
        let text = text.as_deref().filter(|t| !t.is_empty());
        let wrong = |t: &str| Error::usage(format!("`{}` is no list of processors", t.escape_default()));
        text.map(|t| numbers(t).ok_or_else(|| wrong(t))).transpose()
    };
    Ok([list(affinity.initial())?, list(affinity.cpu_affinity_final())?])
}

/// `0-3,7`
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.trim().parse::<usize>().ok()?, to.trim().parse::<usize>().ok()?);
        if from > to || to > 1 << 16 {
            return None;
        }
        found.extend(from..=to);
    }
    Some(found)
}

/// The namespaces of a process that are not this one's.
fn kinds_of(pid: i32) -> io::Result<i32> {
    let mut kinds = 0;
    for (name, kind) in KINDS {
        let theirs = match std::fs::metadata(format!("/proc/{pid}/ns/{name}")) {
            // A kernel without this kind.
            Err(e) if e.kind() == io::ErrorKind::NotFound && name == "time" => continue,
            theirs => theirs?,
        };
        let ours = std::fs::metadata(format!("/proc/self/ns/{name}"))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            kinds |= kind;
        }
    }
    Ok(kinds)
}

/// The host's number of a user inside, by a `uid_map`.
pub(super) fn outside(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [inside, outside, count] = numbers[..] else { return None };
        let offset = u64::from(uid).checked_sub(inside).filter(|offset| *offset < count)?;
        (outside + offset).try_into().ok()
    })
}

/// Refuses a working directory that is not below the root: it has no path here.
pub(super) fn below_root() -> io::Result<()> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        Err(e) => Err(e.into()),
    }
}

/// Cgroups below the container's, which are there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// The same in every hierarchy.
    Everywhere(PathBuf),
    /// Others than the container's in those of some controllers.
    Some(BTreeMap<String, PathBuf>),
}

impl Below {
    /// What runc's `exec --cgroup` takes: `PATH`, or `CONTROLLER[,CONTROLLER...]:PATH` any number of times.
    ///
    /// # Errors
    /// `usage` for what leads out of the container's cgroup, and for a path without controllers beside another.
    pub fn parse(all: &[String]) -> Result<Option<Below>> {
        let wrong =
            |text: &str, why: &str| Error::usage(format!("--cgroup {}: {why}", text.escape_default()));
        let mut some = BTreeMap::new();
        for text in all {
            let (controllers, path) = match text.split_once(':') {
                Some((controllers, path)) => (Some(controllers), path),
                None => (None, text.as_str()),
            };
            if path.contains(':') {
                return Err(wrong(text, "there is more than one colon"));
            }
            let path = Path::new(path.trim_start_matches('/'));
            if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
                return Err(wrong(text, "it is no cgroup below the container's"));
            }
            match controllers {
                None if all.len() > 1 => return Err(wrong(text, "of several, each needs `CONTROLLER:`")),
                None => return Ok(Some(Below::Everywhere(path.into()))),
                Some(names) => some.extend(names.split(',').map(|name| (name.to_owned(), path.to_owned()))),
            }
        }
        Ok((!some.is_empty()).then_some(Below::Some(some)))
    }
}

/// The ways into the container's cgroups, or into some below.
///
/// # Errors
/// `usage` if one of those is not there: a process would be outside of the container's limits.
fn entrances(handle: &Handle, below: Option<&Below>) -> Result<Entrances> {
    let Some(below) = below else { return handle.entrances() };
    let mut hierarchies = handle.hierarchies();
    if let Below::Some(paths) = below {
        let known = |name: &str| hierarchies.iter().any(|(names, _)| names.split(',').any(|n| n == name));
        if let Some(name) = paths.keys().find(|name| !known(name)) {
            return Err(Error::usage(format!(
                "the container has no cgroup of a controller `{}`",
                name.escape_default()
            )));
        }
    }
    for (names, dir) in &mut hierarchies {
        let path = match below {
            Below::Everywhere(path) => Some(path),
            Below::Some(paths) => names.split(',').find_map(|name| paths.get(name)),
        };
        let Some(path) = path else { continue };
        dir.push(path);
        if !dir.is_dir() {
            return Err(Error::usage(format!("there is no cgroup {}", dir.display())));
        }
    }
    handle.entrances_of(hierarchies.into_iter().map(|(_, dir)| dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_one_by_one_and_from_to() {
        assert_eq!(numbers("0-2,7"), Some(vec![0, 1, 2, 7]));
        for wrong in ["", "a", "3-1", "1-", "0,,1", "0-99999999"] {
            assert_eq!(numbers(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_user_inside_has_a_number_outside() {
        let map = "         0     100000      1000\n      1000       5000         1\n";
        assert_eq!(outside(map, 0), Some(100_000));
        assert_eq!(outside(map, 999), Some(100_999));
        assert_eq!(outside(map, 1000), Some(5000));
        assert_eq!(outside(map, 1001), None);
        assert_eq!(outside("0 0 4294967295", 7), Some(7));
    }
}
