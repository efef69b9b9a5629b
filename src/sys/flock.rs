//! Locks on directories: `flock(2)`, close-on-exec, gone with the process.
//!
//! The kernel lets new shared lockers in as long as there is one, so an exclusive one might wait for good. Here an exclusive
//! locker that waits announces itself, and new shared lockers let it go first. The announcement is an open file description
//! lock (fcntl_locking(2)) on the same directory, which `flock(2)` does not see. It needs no file, it follows a rename, and
//! it ends with the process that waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many at once.
    Shared,
    /// Shared, for a process that has such a lock already. It does not let exclusive lockers go first: they may be waiting
    /// for the lock that the process has.
    SharedToo,
    /// One alone.
    Exclusive,
}

/// Longest pause between two tries, and so how much later than free a lock may be taken.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause of an exclusive locker, which is shorter: all other lockers wait for it.
const PAUSE_ALONE: Duration = Duration::from_millis(5);
/// First pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// How long a lock is waited for before its holders are looked at, and how often they are.
const LOOK: Duration = Duration::from_millis(500);
/// How long a shared locker lets exclusive ones go first. If one of those waits for a shared lock that is held for long, or
/// for what this process has locked already, this one goes on after that time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Locks a directory, waiting for it. After locking, the path is compared with what was locked: a rename or a
/// delete in between means that another one has the name now, and it is tried again.
///
/// A lock belongs to all forks of who took it. If that was killed, those that wait for it for good are ended here
/// (see [`orphans`]); so it is tried again and again, since `flock(2)` would not wake up to look. There is no deadline: who
/// has the lock is a command of the host, which may do much, and whose own waits have one.
///
/// # Errors
/// [`Interrupted`](super::deadline::Interrupted) for a signal that ends this process. `NotFound` if the directory does not
/// exist, or does not any more.
pub fn lock_dir(path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    loop {
        let fd = super::file::open_dir(path)?;
        wait_for(&fd, mode, path)?;
        if super::file::same_file(&fd, path)? {
            return Ok(fd);
        }
    }
}

/// Locks an open file, and waits for that no longer than `limit`. False if somebody else has it locked still.
pub fn lock_file(file: impl AsFd, mode: Mode, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(50);
    loop {
        if try_lock(&file, mode)? {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        super::deadline::pause(pause)?;
        pause = (pause * 2).min(PAUSE);
    }
}

/// Locks what is open. False if somebody else has it locked.
fn try_lock(fd: impl AsFd, mode: Mode) -> io::Result<bool> {
    let operation = match mode {
        Mode::Shared | Mode::SharedToo => FlockOperation::NonBlockingLockShared,
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(fd, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn wait_for(fd: &OwnedFd, mode: Mode, path: &Path) -> io::Result<()> {
    let begun = Instant::now();
    let mut pauses = pauses(mode);
    let mut look = begun + LOOK / 10;
    let mut announcement = None;
    loop {
        let may_try = mode != Mode::Shared || !is_announced(fd)? || begun.elapsed() > PATIENCE;
        if may_try && try_lock(fd, mode)? {
            return Ok(());
        }
        if mode == Mode::Exclusive && announcement.is_none() {
            announcement = Some(Announcement::of(fd)?);
        }
        if Instant::now() >= look {
            tracing::info!(path = %path.display(), "waiting for another command");
            end_orphans(fd)?;
            look = Instant::now() + LOOK;
        }
        super::deadline::pause(pauses.next().unwrap_or(PAUSE))?;
    }
}

/// The pauses between tries: each twice as long as the one before, up to the longest.
fn pauses(mode: Mode) -> impl Iterator<Item = Duration> {
    let longest = if mode == Mode::Exclusive { PAUSE_ALONE } else { PAUSE };
    std::iter::successors(Some(FIRST_PAUSE), move |pause| Some((*pause * 2).min(longest)))
}

/// Says on a directory that somebody waits to lock it alone, until it is dropped. A directory cannot be opened for writing,
/// so this is a read lock: many can have one, and [`is_announced`] asks whether a write lock would meet one.
struct Announcement<'a>(&'a OwnedFd);

impl Announcement<'_> {
    fn of(fd: &OwnedFd) -> io::Result<Announcement<'_>> {
        fcntl_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK)?;
        Ok(Announcement(fd))
    }
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        // If this failed, it would end with the lock, which the same open file description holds.
        let _ = fcntl_lock(self.0, libc::F_OFD_SETLK, libc::F_UNLCK);
    }
}

/// Whether somebody else waits to lock a directory alone.
fn is_announced(fd: &OwnedFd) -> io::Result<bool> {
    fcntl_lock(fd, libc::F_OFD_GETLK, libc::F_WRLCK).map(|found| i32::from(found) != libc::F_UNLCK)
}

/// Marks a file, which is open for writing, as that of a process that lives, and of those that it passes the descriptor on to.
/// The mark ends with the last of them. Who looks for it with [`is_marked`] takes no lock.
///
/// # Errors
/// Those of fcntl(2).
pub fn mark(file: impl AsFd) -> io::Result<()> {
    fcntl_lock(file, libc::F_OFD_SETLK, libc::F_WRLCK).map(drop)
}

/// Whether a process lives that has a file marked.
///
/// # Errors
/// Those of fcntl(2).
pub fn is_marked(file: impl AsFd) -> io::Result<bool> {
    fcntl_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK).map(|found| i32::from(found) != libc::F_UNLCK)
}

/// Sets or asks for an open file description lock on the first byte. Returns the kind of lock that the kernel answers with.
fn fcntl_lock(fd: impl AsFd, command: i32, kind: i32) -> io::Result<i16> {
    // SAFETY: all zeros are a valid flock: from byte 0 on, and `l_pid` has to be 0 here.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_len = 1;
    // SAFETY: `lock` is valid, and outlives the call.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &mut lock) };
    if r == 0 { Ok(lock.l_type) } else { Err(io::Error::last_os_error()) }
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
            super::deadline::ended(&pidfd, super::deadline::KILLED)?;
        }
    }
    Ok(())
}

/// Gives a lock back, also where a process that was forked meanwhile still has it open.
pub fn release(lock: OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::flock(lock, FlockOperation::Unlock)?)
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

/// How long the kernel may take to let go of what a process had that ends.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Locks a directory whose lock nobody has that lives, and ends [`orphans`] for that. None if who has taken it lives: it is at
/// work.
///
/// What is asked is the lock itself: between two looks at `/proc`, an orphan may have forked another, and left.
pub fn lock_abandoned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        if let Some(lock) = try_lock_dir(path)? {
            return Ok(Some(lock));
        }
        let held = super::file::open_dir(path)?;
        end_orphans(&held)?;
        if is_held(&held)? || Instant::now() > deadline {
            return Ok(None);
        }
        super::deadline::pause(Duration::from_millis(1))?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn who_took_a_lock_stands_in_fdinfo() {
        assert_eq!(taker("lock:\t1: FLOCK  ADVISORY  WRITE 4242 00:2e:257 0 EOF"), Some(4242));
        assert_eq!(taker("lock:\t1: POSIX  ADVISORY  WRITE 4242 00:2e:257 0 EOF"), None);
        assert_eq!(taker("pos:\t0"), None);
    }

    #[test]
    fn an_exclusive_locker_that_waits_goes_before_new_shared_ones() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_dir(dir.path(), Mode::Shared).unwrap();
        let probe = super::super::file::open_dir(dir.path()).unwrap();
        let (order, locked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let lock = |mode| {
                let (order, path) = (order.clone(), dir.path());
                scope.spawn(move || {
                    let lock = lock_dir(path, mode).unwrap();
                    order.send(mode).unwrap();
                    drop(lock);
                });
            };
            lock(Mode::Exclusive);
            while !is_announced(&probe).unwrap() {
                std::thread::yield_now();
            }
            lock(Mode::Shared);
            // A shared locker that did not let the other one go first would be here by now: the lock is shared.
            let early = locked.recv_timeout(LOOK);
            assert!(early.is_err(), "{early:?} was first");
            drop(first);
            assert_eq!([locked.recv().unwrap(), locked.recv().unwrap()], [Mode::Exclusive, Mode::Shared]);
        });
        assert!(!is_announced(&probe).unwrap());
    }

    /// Shared lockers of which one always has the lock, as long as nobody else waits. Each may have looked for an announcement
    /// just before there was one.
    #[test]
    fn shared_lockers_that_overlap_without_end_get_in_once_more_at_most_before_an_exclusive_one() {
        const SHARED: u32 = 4;
        let dir = tempfile::tempdir().unwrap();
        let probe = super::super::file::open_dir(dir.path()).unwrap();
        let (count, done) = (AtomicU32::new(0), AtomicBool::new(false));
        let lock_again_and_again = || {
            while !done.load(SeqCst) {
                let lock = lock_dir(dir.path(), Mode::Shared).unwrap();
                let mine = count.fetch_add(1, SeqCst) + 1;
                while count.load(SeqCst) == mine && !is_announced(&probe).unwrap() && !done.load(SeqCst) {
                    std::thread::yield_now();
                }
                drop(lock);
            }
        };
        std::thread::scope(|scope| {
            (0..SHARED).for_each(|_| drop(scope.spawn(lock_again_and_again)));
            while count.load(SeqCst) < 10 * SHARED {
                std::thread::yield_now();
            }
            let exclusive = scope.spawn(|| {
                let lock = lock_dir(dir.path(), Mode::Exclusive).unwrap();
                let at = count.load(SeqCst);
                done.store(true, SeqCst);
                drop(lock);
                at
            });
            while !is_announced(&probe).unwrap() && !exclusive.is_finished() {
                std::thread::yield_now();
            }
            let announced = count.load(SeqCst);
            let more = exclusive.join().unwrap().saturating_sub(announced);
            assert!(more <= SHARED, "{more} shared lockers got in first");
        });
    }

    /// All others wait for an exclusive locker that waits.
    #[test]
    fn an_exclusive_locker_tries_three_times_as_often_as_a_shared_one() {
        let tries = |mode| {
            let mut left = Duration::from_secs(1);
            pauses(mode).take_while(|pause| left.checked_sub(*pause).map(|now| left = now).is_some()).count()
        };
        assert!(tries(Mode::Exclusive) > 3 * tries(Mode::Shared), "{:?}", tries(Mode::Exclusive));
        assert_eq!(tries(Mode::Shared), tries(Mode::SharedToo));
    }

    #[test]
    fn an_announcement_ends_with_the_process_that_waits() {
        let dir = tempfile::tempdir().unwrap();
        let probe = super::super::file::open_dir(dir.path()).unwrap();
        let waiting = super::super::file::open_dir(dir.path()).unwrap();
        std::mem::forget(Announcement::of(&waiting).unwrap());
        assert!(is_announced(&probe).unwrap() && !is_announced(&waiting).unwrap());
        // What the kernel does for a process that is killed.
        drop(waiting);
        assert!(!is_announced(&probe).unwrap());
        drop(lock_dir(dir.path(), Mode::Shared).unwrap());
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
