//! What runs: never read from a record, always checked against `/proc`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::process::ProcessId;

/// `init.json` in the bundle: written when the spark has started, and so the sign that it has.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Live {
    /// PID 1 of the spark, as the host numbers it.
    pub init: ProcessId,
    /// First host id of its range.
    pub first_id: u32,
}

fn path(bundle: &Path) -> PathBuf {
    bundle.join("init.json")
}

/// Says that a spark has started.
pub fn write(bundle: &Path, live: &Live) -> Result<()> {
    write_json(&path(bundle), live)
}

/// Writes a file of what runs, whole, for as long as this boot lasts.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let content = serde_json::to_vec(value).map_err(|e| Error::corrupt(path, e))?;
    sys::file::replace_volatile(path, &content).map_err(Error::io("write", path))
}

/// Reads one of at most so many bytes. None for what is not there, and what is damaged.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, most: u64) -> Option<T> {
    let content = sys::file::read_bounded(File::open(path).ok()?, most).ok()?;
    serde_json::from_slice(&content).ok()
}

/// The running spark of a bundle. `None` if it does not run, or what is left of it belongs to an earlier boot.
pub fn read(bundle: &Path) -> Option<Live> {
    read_json(&path(bundle), 4096).filter(|live: &Live| live.init.alive())
}

/// `service.json` in the bundle: what the spark's image runs in it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Service {
    pub process: ProcessId,
    /// What ends it.
    pub stop_signal: i32,
}

/// Says which process is what the spark's image runs.
pub fn write_service(bundle: &Path, service: &Service) -> Result<()> {
    write_json(&bundle.join("service.json"), service)
}

/// What the image of a spark runs in it, as long as that has not ended.
pub fn service(bundle: &Path) -> Option<Service> {
    read_json(&bundle.join("service.json"), 4096).filter(|service: &Service| service.process.alive())
}

/// Says that a spark's processes have been told to end. Gone with the bundle, when they have.
pub fn mark_stopping(bundle: &Path) -> Result<()> {
    let path = bundle.join("stopping");
    std::fs::write(&path, "").map_err(Error::io("write", path))
}

/// Whether they have been told so.
pub fn is_stopping(bundle: &Path) -> bool {
    bundle.join("stopping").exists()
}

/// Lets PID 1 know that its spark is in use: any signal counts, and this one does nothing else.
pub fn touch(init: impl AsFd) -> io::Result<()> {
    sys::process::signal(init, rustix::process::Signal::URG)
}

/// Tells PID 1 for how many seconds to idle before it leaves, from now on; 0 is never.
pub fn set_idle_stop(init: impl AsFd, seconds: u32) -> io::Result<()> {
    /// As `pid1.rs` has it.
    const SIGIDLE: i32 = 50;
    sys::process::signal_with_value(init, SIGIDLE, i32::try_from(seconds).unwrap_or(i32::MAX))
}

/// Whether a bundle is that of a spark whose PID 1 has ended without having been told to by a command.
pub fn has_left(bundle: &Path) -> bool {
    path(bundle).exists() && read(bundle).is_none() && !is_stopping(bundle)
}

impl Live {
    /// Waits until PID 1 has ended, if it is about to. False if it goes on, or stays until somebody on the host has reaped the
    /// commands that it takes along.
    pub fn has_ended(&self) -> bool {
        match self.pidfd() {
            Ok(pidfd) if sys::process::is_ending(&self.init) => {
                sys::deadline::ended(pidfd, sys::deadline::INSIDE).unwrap_or(false)
            }
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// A pidfd of PID 1.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.init.open()
    }
}

/// The freezer's file of a cgroup: the file, what it holds when frozen, and what to write to freeze and thaw.
fn freezer(cgroup: &Path) -> Option<(PathBuf, &'static str)> {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let fs = Path::new("/sys/fs/cgroup");
    let v1 = fs.join("freezer").join(below).join("freezer.state");
    if v1.exists() {
        return Some((v1, "FROZEN"));
    }
    let v2 = fs.join(below).join("cgroup.freeze");
    v2.exists().then_some((v2, "1"))
}

/// Thaws a cgroup, whatever libcontainer knows of it.
pub fn thaw(cgroup: &Path) -> io::Result<()> {
    let (file, frozen) = freezer(cgroup).ok_or(io::ErrorKind::NotFound)?;
    std::fs::write(file, if frozen == "1" { "0" } else { "THAWED" })
}

/// Whether a cgroup was told to freeze, as `cgroup.freeze` says too. Version 1 has a word for one of which a process does
/// not stand still yet: one that waits for a disk, or that is just entering.
pub fn is_frozen(cgroup: &Path) -> bool {
    let wanted = |text: String, frozen| text.trim() == frozen || text.trim() == "FREEZING";
    freezer(cgroup)
        .is_some_and(|(file, frozen)| std::fs::read_to_string(file).is_ok_and(|text| wanted(text, frozen)))
}

/// A spark held still for a moment by one of our commands, as a mark in its bundle: so that whoever finds the spark frozen
/// can tell that from a pause, and end it where the command was killed.
#[derive(Debug)]
pub struct Stillness {
    dir: PathBuf,
}

/// How long processes have to come to a stand: those that wait for a disk do so first.
const STANDSTILL: Duration = Duration::from_secs(5);

impl Stillness {
    pub fn of(bundle: &Path) -> Stillness {
        Stillness { dir: bundle.join("still") }
    }

    /// The directory to lock first.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn mark(&self) -> PathBuf {
        self.dir.join("begun")
    }

    /// Makes the directory.
    pub fn prepare(&self) -> io::Result<()> {
        match std::fs::create_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub fn is_begun(&self) -> bool {
        self.mark().exists()
    }

    /// Freezes a cgroup. False if not all of it stands still in time.
    pub fn begin(&self, cgroup: &Path) -> io::Result<bool> {
        std::fs::write(self.mark(), "")?;
        let Some((file, frozen)) = freezer(cgroup) else { return Ok(false) };
        std::fs::write(file, frozen)?;
        let deadline = Instant::now() + STANDSTILL;
        while !stands_still(cgroup) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            sys::deadline::pause(Duration::from_micros(200))?;
        }
        Ok(true)
    }

    /// Thaws it.
    pub fn end(&self, cgroup: &Path) -> io::Result<()> {
        match thaw(cgroup) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        sys::file::remove(&self.mark())
    }
}

/// Whether the last process of a cgroup that was told to has come to a stand.
fn stands_still(cgroup: &Path) -> bool {
    let Some((file, frozen)) = freezer(cgroup) else { return false };
    let holds = |file: &Path, line: &str| {
        std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(|l| l == line))
    };
    if frozen == "1" {
        holds(&file.with_file_name("cgroup.events"), "frozen 1")
    } else {
        holds(&file, frozen)
    }
}

/// The processes of a cgroup, as pidfds: certainly its own, whatever number they get or lose meanwhile.
pub fn members(cgroup: &Path) -> Vec<(i32, OwnedFd)> {
    members_beside(cgroup, &[])
}

/// Those of a cgroup but for what is in some directories below it, which are others'.
pub(super) fn members_beside(cgroup: &Path, others: &[PathBuf]) -> Vec<(i32, OwnedFd)> {
    let opened: Vec<_> = processes_beside(cgroup, others)
        .into_iter()
        .filter_map(|pid| Some((pid, crate::sys::process::pidfd_open(pid).ok()?)))
        .collect();
    // A number may have gone to a process of the host before it was opened. If it is there still, and the process
    // that was opened lives, it is that one.
    let still = processes_beside(cgroup, others);
    let ended = |fd: &OwnedFd| crate::sys::deadline::ended(fd, Duration::ZERO).unwrap_or(true);
    opened.into_iter().filter(|(pid, fd)| still.contains(pid) && !ended(fd)).collect()
}

/// Whether a process is in a cgroup or below it, in any hierarchy: each may hold others.
pub fn is_used(cgroup: &Path) -> bool {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let fs = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(fs).into_iter().flatten().flatten().map(|entry| entry.path());
    let tops = hierarchies.chain([fs.to_owned()]).map(|top| top.join(below));
    let has_processes = |dir: PathBuf| {
        std::fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
    };
    tops.filter(|top| top.join("cgroup.procs").exists())
        .any(|top| with_below(&top).into_iter().any(has_processes))
}

/// The processes of a cgroup and of those below it, as the host numbers them: who is inside may make some.
pub fn processes(cgroup: &Path) -> Vec<i32> {
    processes_beside(cgroup, &[])
}

/// Those of a cgroup but for what is in some directories below it, which are others'.
pub(super) fn processes_beside(cgroup: &Path, others: &[PathBuf]) -> Vec<i32> {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let fs = Path::new("/sys/fs/cgroup");
    let mut tops =
        [fs.join("pids"), fs.to_owned(), fs.join("unified")].into_iter().map(|top| top.join(below));
    let Some(top) = tops.find(|top| top.join("cgroup.procs").exists()) else { return Vec::new() };
    let listed = |dir: PathBuf| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let lists: Vec<String> = own_of(&top, others).into_iter().map(listed).collect();
    lists.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
}

/// A directory of a cgroup hierarchy and those below it, each before what is above it.
pub(super) fn with_below(top: &Path) -> Vec<PathBuf> {
    own_of(top, &[])
}

/// The same without some directories below it, and what is in those.
pub(super) fn own_of(top: &Path, others: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path());
        let dirs: Vec<PathBuf> = dirs.filter(|dir| !others.contains(dir)).collect();
        found.extend(dirs);
        next += 1;
    }
    found.reverse();
    found
}
