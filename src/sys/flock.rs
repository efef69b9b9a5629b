//! Locks on directories: `flock(2)`, close-on-exec, gone with the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many at once.
    Shared,
    /// One alone.
    Exclusive,
}

/// Longest pause between two tries, and so how much later than free a lock may be taken.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a lock is waited for before its holders are looked at, and how often they are.
const LOOK: Duration = Duration::from_millis(500);

/// Locks a directory, waiting for it. After locking, the path is compared with what was locked: a rename or a
/// delete in between means that another one has the name now, and it is tried again.
///
/// A lock belongs to all forks of who took it. If that was killed, those that wait for it for good are ended here
/// (see [`orphans`]); so it is tried again and again, since `flock(2)` would not wake up to look.
///
/// # Errors
/// `NotFound` if the directory does not exist, or does not any more.
pub fn lock_dir(path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let operation = match mode {
        Mode::Shared => FlockOperation::NonBlockingLockShared,
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        let fd = super::file::open_dir(path)?;
        wait_for(&fd, operation, path)?;
        if super::file::same_file(&fd, path)? {
            return Ok(fd);
        }
    }
}

fn wait_for(fd: &OwnedFd, operation: FlockOperation, path: &Path) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    let mut look = Instant::now() + LOOK / 10;
    loop {
        match rustix::fs::flock(fd, operation) {
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
        if Instant::now() >= look {
            tracing::info!(path = %path.display(), "waiting for another command");
            end_orphans(fd)?;
            look = Instant::now() + LOOK;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
}

/// The processes that hold a lock by inheritance, from one that does not live any more or has let go of it.
///
/// libcontainer's clones wait for their maker on sockets of which they have both ends: if it is killed, they do so for
/// good, with all that it had open. proc(5) says in `fdinfo` which process took the lock of an open file.
pub fn orphans(dir: impl AsFd) -> io::Result<Vec<i32>> {
    let holders = holders(dir)?;
    let lives = |taker: i32| holders.contains(&(taker, taker));
    Ok(holders.iter().filter(|(_, taker)| !lives(*taker)).map(|(pid, _)| *pid).collect())
}

/// Whether who took a lock has it still. Who is ending may hold it for a moment without being seen here.
pub fn is_held(dir: impl AsFd) -> io::Result<bool> {
    Ok(holders(dir)?.iter().any(|(pid, taker)| pid == taker))
}

/// The processes that hold a lock by inheritance from this one.
fn heirs(dir: impl AsFd) -> io::Result<Vec<i32>> {
    let me = std::process::id() as i32;
    Ok(holders(dir)?
        .into_iter()
        .filter(|(pid, taker)| *taker == me && *pid != me)
        .map(|(pid, _)| pid)
        .collect())
}

/// Who holds a lock, and who took it for them.
fn holders(dir: impl AsFd) -> io::Result<Vec<(i32, i32)>> {
    let wanted = rustix::fs::fstat(&dir)?;
    let wanted = (wanted.st_dev, wanted.st_ino);
    let mut holders = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) {
            holders.extend(taken_by(pid, wanted).map(|taker| (pid, taker)));
        }
    }
    Ok(holders)
}

/// Who took the lock that a process holds on a file, if it holds one.
fn taken_by(pid: i32, file: (u64, u64)) -> Option<i32> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let Ok(stat) = rustix::fs::stat(entry.path()) else { continue };
        if (stat.st_dev, stat.st_ino) != file {
            continue;
        }
        let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
        let text = std::fs::read_to_string(info).unwrap_or_default();
        if let Some(taker) = text.lines().find_map(taker) {
            return Some(taker);
        }
    }
    None
}

/// Reads a line such as `lock: 1: FLOCK  ADVISORY  WRITE 4242 00:2e:257 0 EOF`.
fn taker(line: &str) -> Option<i32> {
    let mut words = line.strip_prefix("lock:")?.split_ascii_whitespace().skip(1);
    (words.next()? == "FLOCK").then(|| words.nth(2)?.parse().ok()).flatten()
}

/// Ends [`orphans`], and waits until they have.
pub fn end_orphans(dir: impl AsFd) -> io::Result<()> {
    end_all(|| orphans(&dir))
}

/// Ends what holds this process's lock by inheritance: what a helper that was killed has left.
pub fn end_heirs(dir: impl AsFd) -> io::Result<()> {
    end_all(|| heirs(&dir))
}

fn end_all(find: impl Fn() -> io::Result<Vec<i32>>) -> io::Result<()> {
    for pid in find()? {
        let Ok(pidfd) = super::process::pidfd_open(pid) else { continue };
        // Another one may have the number by now.
        if find()?.contains(&pid) {
            tracing::info!(pid, "ending what a killed process left waiting");
            // What has ended meanwhile is as well.
            let _ = super::process::signal(&pidfd, rustix::process::Signal::KILL);
            super::process::wait_end(&pidfd, Some(super::process::TO_END))?;
        }
    }
    Ok(())
}

/// Locks a directory if nobody else has it.
pub fn try_lock_dir(path: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = super::file::open_dir(path)?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if super::file::same_file(&fd, path)? => Ok(Some(fd)),
        Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_took_a_lock_stands_in_fdinfo() {
        assert_eq!(taker("lock:\t1: FLOCK  ADVISORY  WRITE 4242 00:2e:257 0 EOF"), Some(4242));
        assert_eq!(taker("lock:\t1: POSIX  ADVISORY  WRITE 4242 00:2e:257 0 EOF"), None);
        assert_eq!(taker("pos:\t0"), None);
    }

    #[test]
    fn a_lock_that_lives_has_no_orphans_and_one_that_was_only_inherited_does() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_dir(dir.path(), Mode::Exclusive).unwrap();
        assert!(orphans(&lock).unwrap().is_empty());
        // Opens another description of the directory, locks that, and leaves it to its own child.
        let script = "exec 9<\"$0\"; flock -n 9 || exit 1; sleep 100 >/dev/null 2>&1 & echo $!";
        drop(lock);
        let out = std::process::Command::new("sh").args(["-c", script]).arg(dir.path()).output().unwrap();
        let child: i32 = String::from_utf8_lossy(&out.stdout).trim().parse().unwrap();
        let again = super::super::file::open_dir(dir.path()).unwrap();
        assert_eq!(orphans(&again).unwrap(), [child]);
        drop(lock_dir(dir.path(), Mode::Exclusive).unwrap());
        assert!(orphans(&again).unwrap().is_empty());
    }
}
