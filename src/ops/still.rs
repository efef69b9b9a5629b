//! A spark held still for the moment of a snapshot.
//!
//! btrfs first writes out what the files of a subvolume hold, and then copies it. What happens in between may be in the
//! copy without what was written just before it: a name without its content, a reference to what is not there. Programs
//! that do not call fsync, as git does not by default, are not made for that. So nothing in the spark goes on meanwhile.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Sparks;
use crate::bundle::spec::cgroup;
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::live::{self, Stillness};
use crate::sys::flock::{self, Mode};

/// Every process of a spark stands where it is, until this is dropped.
#[derive(Debug)]
pub(crate) struct Still {
    cgroup: PathBuf,
    stillness: Stillness,
    _lock: OwnedFd,
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Err(e) = self.stillness.end(&self.cgroup) {
            tracing::warn!("cannot let {} go on: {e}", self.cgroup.display());
        }
    }
}

impl Sparks {
    /// Holds a spark still, if there is one and it runs. The caller has its lock, which keeps others from starting or
    /// pausing it.
    pub(crate) fn hold_still(&self, id: Option<&Id>) -> Result<Option<Still>> {
        let Some(id) = id else { return Ok(None) };
        let bundle = self.pool.place.bundle(id);
        if live::read(&bundle).is_none() {
            return Ok(None);
        }
        let (cgroup, stillness) = (cgroup(id), Stillness::of(&bundle));
        let failed = || Error::io("hold still what runs of", &bundle);
        stillness.prepare().map_err(failed())?;
        // Two snapshots at once: the second waits, else the first would let go in the midst of it.
        let lock = flock::lock_dir(stillness.dir(), Mode::Exclusive).map_err(failed())?;
        if live::is_frozen(&cgroup) && !stillness.is_begun() {
            // It is paused, and stays so.
            return Ok(None);
        }
        let still = Still { cgroup, stillness, _lock: lock };
        if still.stillness.begin(&still.cgroup).map_err(failed())? {
            tracing::debug!(%id, "held still");
        } else {
            tracing::warn!(%id, "it cannot be held still: the copy has what a power cut would leave");
        }
        fault::point("snapshot.still")?;
        Ok(Some(still))
    }

    /// Lets a spark go on that a command was killed over. Returns whether there was one.
    pub(super) fn let_go(&self, id: &Id) -> Result<bool> {
        let Some(_lock) = self.left_still(id)? else { return Ok(false) };
        let bundle = self.pool.place.bundle(id);
        Stillness::of(&bundle).end(&cgroup(id)).map_err(Error::io("let go on what runs of", &bundle))?;
        Ok(true)
    }

    /// The lock of who held a spark still, if that was killed over it.
    pub(super) fn left_still(&self, id: &Id) -> Result<Option<OwnedFd>> {
        let stillness = Stillness::of(&self.pool.place.bundle(id));
        if !stillness.is_begun() {
            return Ok(None);
        }
        match flock::try_lock_dir(stillness.dir()) {
            // Who held it may have let it go before we had the lock.
            Ok(lock) => Ok(lock.filter(|_| stillness.is_begun())),
            // It has ended since.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("lock", stillness.dir())(e)),
        }
    }
}
