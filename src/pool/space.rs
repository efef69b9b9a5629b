//! Room in a pool that is full: what is kept for commands that make some, and how what was deleted becomes free.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, StatVfsMountFlags, XattrFlags};

use super::image::{self, Kind, run};
use super::{Pool, btrfs};
use crate::error::{Code, Error, Result};
use crate::sys;

/// Bytes of an attribute: they fit into a node of metadata, which has 4 KiB in a small pool and else 16 KiB.
const ATTRIBUTE: usize = 3_800;
/// Attributes of a piece of the reserve: 4 MiB. A rename reserves up to 3 MiB, for the case that every tree has to grow
/// by a level.
const ATTRIBUTES: usize = 1_024;
/// Bytes of data of a piece, for the records that a command writes.
const DATA: u64 = 256 << 10;
/// What others take of a piece that was freed is gone for the next command: it has another one.
const PIECES: usize = 3;
/// A balance moves chunks of which at most so much is used, in percent: first what costs least.
const USAGES: [u8; 3] = [10, 30, 50];

impl Pool {
    /// Whether little is free: less than a sixteenth of the pool, and less than 1 GiB. If there is no room for metadata,
    /// btrfs says that nothing is free.
    pub fn is_short(&self) -> Result<bool> {
        let fs = self.statvfs()?;
        let (free, size) = (fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize);
        Ok(free < (size / 16).min(1 << 30))
    }

    fn statvfs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::statvfs(&self.paths.top).map_err(|e| Error::io("inspect", &self.paths.top)(e.into()))
    }

    /// Returns when the kernel has freed all subvolumes that are deleted by now, which it does late unless somebody
    /// waits. `told` hears how many are freed, and of how many.
    pub fn wait_until_freed(&self, told: &dyn Fn(usize, usize)) -> Result<()> {
        let top = &self.paths.top;
        // Each commit wakes the kernel's cleaner.
        btrfs::commit(top)?;
        let all: BTreeSet<u64> = btrfs::unfreed(top)?.into_iter().collect();
        let mut left = all.len();
        while left > 0 {
            told(all.len() - left, all.len());
            // A filesystem that has become read-only frees nothing any more.
            if self.statvfs()?.f_flag.contains(StatVfsMountFlags::RDONLY) {
                return Err(Error::io("free what was deleted in", top)(rustix::io::Errno::ROFS.into()));
            }
            sys::deadline::pause(Duration::from_millis(10))
                .map_err(Error::io("free what was deleted in", top))?;
            left = btrfs::unfreed(top)?.into_iter().filter(|id| all.contains(id)).count();
        }
        // What was in them is free with the next commit, and chunks that are empty with the one after it.
        btrfs::commit(top)?;
        btrfs::commit(top)
    }

    /// Gives chunks back that are nearly empty, so that data can have what metadata had, and the other way round. Not on
    /// a btrfs of the host, which is the administrator's.
    pub fn balance(&self, told: &dyn Fn(u8)) -> Result<()> {
        let is_own = || {
            let kind = image::source(&self.place)?.map(|source| source.kind);
            Ok::<_, Error>(matches!(kind, Some(Kind::Loop | Kind::Device { .. })))
        };
        if !self.is_short()? || !is_own()? {
            return Ok(());
        }
        // Without any room for metadata nothing can be moved.
        while self.release_piece()? {}
        for usage in USAGES {
            if !self.is_short()? {
                break;
            }
            told(usage);
            let mut balance = Command::new("btrfs");
            balance.args(["balance", "start", &format!("-dusage={usage}"), &format!("-musage={usage}")]);
            balance.arg(&self.paths.top);
            match run(balance, "install btrfs-progs: `apt-get install btrfs-progs`") {
                // There is no room to move anything to: the pool is full of what is used.
                Err(Error::Program { detail, .. }) => {
                    tracing::debug!("cannot balance further: {detail}");
                    break;
                }
                other => drop(other?),
            }
            btrfs::commit(&self.paths.top)?;
        }
        Ok(())
    }

    /// Does something that makes room or changes a name. If there is no room even for that, it is tried again with more
    /// and more of the reserve, and has to be as if it had not been tried before.
    pub fn with_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(e) if e.code() == Code::NoSpace && self.release_piece()? => {}
                done => return done,
            }
        }
    }

    /// Frees a piece of the reserve. False if there is none. Removing a file is possible without any room: btrfs keeps
    /// some for it.
    fn release_piece(&self) -> Result<bool> {
        for number in 0..PIECES {
            let path = self.paths.reserve().join(number.to_string());
            match std::fs::remove_file(&path) {
                Ok(()) => return btrfs::commit(&self.paths.top).map(|()| true),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", path)(e)),
            }
        }
        Ok(false)
    }

    /// Puts back what is missing of the reserve, if there is room. Never in a pool that is nearly full: btrfs goes
    /// read-only if it finds no room in the middle of a commit.
    pub fn fill_reserve(&self) {
        // A pool of an older version has none.
        if let Err(e) = super::layout::make_dir(&self.paths.reserve(), 0o700) {
            tracing::debug!("{e}");
            return;
        }
        for number in 0..PIECES {
            let path = self.paths.reserve().join(number.to_string());
            if self.is_short().unwrap_or(true) {
                return;
            }
            if let Err(e) = self.fill_piece(&path) {
                tracing::debug!("cannot make {}: {e}", path.display());
                let _ = std::fs::remove_file(&path);
                return;
            }
        }
    }

    /// A piece has no content: what it takes is what counts.
    fn fill_piece(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if rustix::fs::fgetxattr(&file, attribute(ATTRIBUTES - 1), &mut [0; 0][..]).is_ok() {
            return Ok(());
        }
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, DATA)?;
        for number in 0..ATTRIBUTES {
            rustix::fs::fsetxattr(&file, attribute(number), &[0; ATTRIBUTE], XattrFlags::empty())?;
        }
        file.sync_all()
    }
}

fn attribute(number: usize) -> String {
    format!("trusted.spark.reserve.{number}")
}
