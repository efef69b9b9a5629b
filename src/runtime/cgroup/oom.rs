//! Word of the kernel that no memory was left within a control group's limit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;

use super::{Cgroup, field, read};

/// Where it is heard.
#[derive(Debug)]
pub struct Notices {
    fd: OwnedFd,
    from: From,
}

#[derive(Debug)]
enum From {
    /// Version 1: a counter that the kernel adds to.
    Counter { dir: PathBuf },
    /// Version 2: a file that says how often, and a notification when it changes.
    File { events: PathBuf, known: u64 },
}

impl Cgroup {
    /// Listens from now on. None where there is no controller for memory.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn notices(&self) -> io::Result<Option<Notices>> {
        let (old, new) = (self.v1("memory"), self.v2().join("memory.events"));
        if old.is_dir() {
            return Notices::from_counter(old).map(Some);
        }
        if new.exists() { Notices::from_file(new).map(Some) } else { Ok(None) }
    }
}

impl Notices {
    fn from_counter(dir: PathBuf) -> io::Result<Notices> {
        let control = std::fs::File::open(dir.join("memory.oom_control"))?;
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let wanted = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        std::fs::write(dir.join("cgroup.event_control"), wanted)?;
        Ok(Notices { fd, from: From::Counter { dir } })
    }

    fn from_file(events: PathBuf) -> io::Result<Notices> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, &events, inotify::WatchFlags::MODIFY)?;
        let known = kills(&events).unwrap_or(0);
        Ok(Notices { fd, from: From::File { events, known } })
    }

    /// How often it was so since this was asked last.
    pub fn take(&mut self) -> u64 {
        let mut buffer = [0; 4096];
        let mut sum = 0;
        while let Ok(length @ 1..) = rustix::io::read(&self.fd, &mut buffer) {
            if let (8, Ok(number)) = (length, buffer[..8].try_into()) {
                sum += u64::from_ne_bytes(number);
            }
        }
        match &mut self.from {
            // It is added to by the group's removal too.
            From::Counter { dir } => sum.saturating_sub(u64::from(!dir.exists())),
            From::File { events, known } => {
                let now = kills(events).unwrap_or(*known);
                now.saturating_sub(std::mem::replace(known, now))
            }
        }
    }
}

impl AsFd for Notices {
    /// Readable when it is worth asking.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn kills(events: &Path) -> Option<u64> {
    field(&read(events).ok()?, "oom_kill")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::deadline::ended;

    /// The kernel's file stands for itself: what is written to it is what counts.
    #[test]
    fn version_2_says_how_often_and_other_changes_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::below(dir.path(), Path::new("/spark/x"));
        assert!(group.notices().unwrap().is_none());
        std::fs::create_dir_all(group.v2()).unwrap();
        let write = |text: &str| std::fs::write(group.v2().join("memory.events"), text).unwrap();
        write("max 0\noom_kill 3\n");
        let mut notices = group.notices().unwrap().unwrap();
        let heard = |notices: &Notices| ended(notices, std::time::Duration::ZERO).unwrap();
        assert!(!heard(&notices));
        write("max 7\noom_kill 3\n");
        assert!(heard(&notices));
        assert_eq!(notices.take(), 0);
        assert!(!heard(&notices));
        write("max 7\noom_kill 5\n");
        assert!(heard(&notices));
        assert_eq!((notices.take(), notices.take()), (2, 0));
    }
}
