//! Room in a pool that grows by itself: every command that writes looks for it, and a helper does while sparks run.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use super::Sparks;
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::pool::growth;
use crate::pool::room::Space;
use crate::runtime::live;
use crate::sys;
use crate::sys::flock::{Mode, lock_dir, try_lock_dir};

/// How often a command that writes is asked whether it still does.
const COMMAND: Duration = Duration::from_millis(200);
/// How long a helper tries to become the one: others look for a moment whether there is one.
const TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// Held by a command that writes into the pool: the helper looks after the room as long.
#[derive(Debug)]
#[must_use]
pub(crate) struct Room {
    _lock: Option<OwnedFd>,
}

impl Sparks {
    /// Looks whether the pool has room, has it grow if it may, and has a helper look while the result is held and while
    /// sparks run. A spark that is started is running before the result is dropped.
    ///
    /// # Errors
    /// `corrupt` if the pool's image was deleted or truncated.
    pub(crate) fn room(&self) -> Result<Room> {
        let growing = self.pool.tend()?.is_some_and(|image| image.space == Space::Growing);
        let (true, Some(program)) = (growing, &self.context.program) else {
            return Ok(Room { _lock: None });
        };
        let place = &self.context.place;
        let writers = place.writers();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&writers);
        made.map_err(Error::io("create", &writers))?;
        // First of the two: a helper that is about to leave looks at this after it let go of the other.
        let lock = lock_dir(&writers, Mode::Shared).map_err(Error::io("lock", &writers))?;
        let watch = place.watch();
        if try_lock_dir(&watch).map_err(Error::io("lock", &watch))?.is_some() {
            let env: [(&str, &Path); 2] = [("SPARK_ROOT", &place.root), ("SPARK_RUN", &place.run)];
            if let Err(e) = sys::run::detached(program, &["pool", "grow", "--background"], &env) {
                tracing::warn!("nothing looks after the room of the pool: {e}");
            }
        }
        Ok(Room { _lock: Some(lock) })
    }
}

/// Looks after the room of a growing pool as long as a spark runs or a command writes. One process does: others leave.
///
/// # Errors
/// Only of the locks: a pool that cannot grow now may be able to later.
pub(super) fn watch(place: &Place) -> Result<()> {
    while let Some(lock) = become_watcher(place)? {
        while let Some(user) = User::find(place)? {
            loop {
                let Some(pause) = look(place) else { return Ok(()) };
                if user.is_gone_after(pause)? {
                    break;
                }
            }
        }
        // A command that came too late to be seen above has seen this lock, and relies on this process.
        drop(lock);
        if User::find(place)?.is_none() {
            break;
        }
    }
    Ok(())
}

/// Has the pool grow if need be. Returns when to look again, or `None` if it does not grow by itself.
fn look(place: &Place) -> Option<Duration> {
    let promised = growth::promised(&place.pool());
    match growth::tend(place, promised) {
        Ok(Some(image)) if image.space == Space::Growing => Some(image.lasts(promised)),
        Ok(_) => None,
        Err(e) => {
            tracing::warn!("cannot look after the room of the pool: {e}");
            Some(Duration::from_secs(5))
        }
    }
}

/// Takes the lock of who watches. `None` if another one has it, or nothing of this boot is there.
fn become_watcher(place: &Place) -> Result<Option<OwnedFd>> {
    let watch = place.watch();
    for _ in 0..TRIES {
        match try_lock_dir(&watch) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(None) => sys::deadline::pause(BETWEEN_TRIES).map_err(Error::sys("wait for who watches"))?,
            other => return other.map_err(Error::io("lock", watch)),
        }
    }
    Ok(None)
}

/// Why the room is watched.
enum User {
    /// A spark runs: its PID 1.
    Spark(OwnedFd),
    /// A command writes.
    Command,
}

impl User {
    fn find(place: &Place) -> Result<Option<User>> {
        let bundles = std::fs::read_dir(place.run.join("bundles")).into_iter().flatten().flatten();
        let running = |bundle: std::fs::DirEntry| live::read(&bundle.path())?.pidfd().ok();
        if let Some(init) = { bundles }.find_map(running) {
            return Ok(Some(User::Spark(init)));
        }
        let writers = place.writers();
        match try_lock_dir(&writers) {
            Ok(None) => Ok(Some(User::Command)),
            Ok(Some(_)) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("lock", writers)(e)),
        }
    }

    /// Waits so long, or until the spark has ended. True if somebody else has to be found.
    fn is_gone_after(&self, time: Duration) -> Result<bool> {
        match self {
            User::Spark(init) => {
                sys::deadline::ended(init.as_fd(), time).map_err(Error::sys("wait for the end of a spark"))
            }
            User::Command => {
                sys::deadline::pause(time.min(COMMAND)).map_err(Error::sys("wait for a command"))?;
                Ok(true)
            }
        }
    }
}
