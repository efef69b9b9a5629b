//! What runs: never read from a record, always checked against `/proc`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
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
    let path = path(bundle);
    let content = serde_json::to_vec(live).map_err(|e| Error::corrupt(&path, e))?;
    sys::file::replace_volatile(&path, &content).map_err(Error::io("write", path))
}

/// The running spark of a bundle. `None` if it does not run, or what is left of it belongs to an earlier boot.
pub fn read(bundle: &Path) -> Option<Live> {
    let file = File::open(path(bundle)).ok()?;
    let content = sys::file::read_bounded(file, 4096).ok()?;
    let live: Live = serde_json::from_slice(&content).ok()?;
    live.init.alive().then_some(live)
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

impl Live {
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

/// Whether a cgroup is frozen.
pub fn is_frozen(cgroup: &Path) -> bool {
    freezer(cgroup)
        .is_some_and(|(file, frozen)| std::fs::read_to_string(file).is_ok_and(|text| text.trim() == frozen))
}

/// A spark held still for a moment by one of our commands, as a mark in its bundle: so that whoever finds the spark frozen
/// can tell that from a pause, and end it where the command was killed.
#[derive(Debug)]
pub struct Stillness {
    dir: PathBuf,
}

/// How long processes have to come to a stand: those that wait for a disk do so first.
const STANDSTILL: Duration = Duration::from_secs(1);

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
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(true)
    }

    /// Thaws it.
    pub fn end(&self, cgroup: &Path) -> io::Result<()> {
        match thaw(cgroup) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        match std::fs::remove_file(self.mark()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
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
    let opened: Vec<_> = processes(cgroup)
        .into_iter()
        .filter_map(|pid| Some((pid, crate::sys::process::pidfd_open(pid).ok()?)))
        .collect();
    // A number may have gone to a process of the host before it was opened. If it is there still, and the process
    // that was opened lives, it is that one.
    let still = processes(cgroup);
    let ended = |fd: &OwnedFd| crate::sys::process::wait_end(fd, Some(Duration::ZERO)).unwrap_or(true);
    opened.into_iter().filter(|(pid, fd)| still.contains(pid) && !ended(fd)).collect()
}

/// The processes of a cgroup, as the host numbers them.
pub fn processes(cgroup: &Path) -> Vec<i32> {
    let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let fs = Path::new("/sys/fs/cgroup");
    for top in [fs.join("pids"), fs.to_owned(), fs.join("unified")] {
        if let Ok(text) = std::fs::read_to_string(top.join(below).join("cgroup.procs")) {
            return text.lines().filter_map(|l| l.parse().ok()).collect();
        }
    }
    Vec::new()
}
