//! `trash/`: what was deleted, with where it came from, until its time is up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Pool, record};
use crate::domain::FORMAT;
use crate::domain::name::Name;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Time};
use crate::error::{Error, Result};
use crate::sys::flock::Mode;
use crate::{fault, sys};

/// How long a deleted spark can be brought back.
pub const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// When what could not be freed is tried again.
fn look_again() -> Time {
    chrono::Utc::now() + chrono::Duration::minutes(1)
}

/// `trash.json`: where a deleted spark came from.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    pub version: u32,
    pub project: Name,
    pub name: Name,
    pub deleted: Time,
    pub until: Time,
}

/// One deleted spark.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its directory's name: sorts by the time of deletion.
    pub id: Id,
    pub path: PathBuf,
    pub origin: Origin,
}

impl Pool {
    /// Moves a spark's directory into the trash: one rename, durable once this returned. The caller holds the
    /// spark's exclusive lock.
    pub fn discard(&self, dir: &Path, project: &Name, name: &Name, keep: Duration) -> Result<Entry> {
        let deleted = chrono::Utc::now();
        let origin = Origin {
            version: FORMAT,
            project: project.clone(),
            name: name.clone(),
            deleted,
            until: deleted + keep,
        };
        let id = Id::generate();
        let path = self.paths.trash().join(id.as_str());
        self.with_reserve(|| {
            record::replace(&SparkPaths(dir).origin(), &origin)?;
            fault::point("delete.before-rename")?;
            sys::file::rename_new(dir, &path).map_err(Error::io("delete", dir))
        })?;
        fault::point("delete.after-rename")?;
        for dir in [&self.paths.trash(), &self.paths.sparks(project)] {
            sys::file::sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        self.note_added(origin.until);
        Ok(Entry { id, path, origin })
    }

    /// When the first of the trash expires, as far as is known: what every command can afford to ask.
    pub fn next_expiry(&self) -> Option<Time> {
        std::fs::read_to_string(self.place.next_expiry()).ok()?.trim().parse().ok()
    }

    /// Notes when the first of the trash expires, after something came into it.
    fn note_added(&self, until: Time) {
        self.noting(|| match self.next_expiry() {
            Some(next) if next <= until => Ok(()),
            Some(_) => self.set_next_expiry(Some(until)),
            // Nothing is known of what is there already.
            None => self.set_next_expiry(self.trashed()?.iter().map(|entry| entry.origin.until).min()),
        });
    }

    /// The same after what had expired was freed. What has expired and is still there could not be.
    pub fn note_left(&self) {
        self.noting(|| {
            let (now, again) = (chrono::Utc::now(), look_again());
            let due = |entry: &Entry| if entry.origin.until <= now { again } else { entry.origin.until };
            self.set_next_expiry(self.trashed()?.iter().map(due).min())
        });
    }

    /// Has no other command free what has expired, for a minute.
    pub fn postpone_expiry(&self) {
        self.noting(|| self.set_next_expiry(Some(look_again())));
    }

    /// An index as all of `state/`: a loss of it costs time, no data, and a disk that is full is no reason to keep trash.
    ///
    /// Whoever adds and whoever frees do this one after the other: a time that one of them notes from what it saw before
    /// the other was there would have trash stay for good.
    fn noting(&self, note: impl FnOnce() -> Result<()>) {
        let dir = self.paths.trash();
        let lock = sys::flock::lock_dir(&dir, Mode::Exclusive).map_err(Error::io("lock", dir));
        if let Err(e) = lock.and_then(|_lock| note()) {
            tracing::debug!("cannot note when the trash expires: {e}");
        }
    }

    fn set_next_expiry(&self, next: Option<Time>) -> Result<()> {
        let path = self.place.next_expiry();
        match next {
            Some(next) => sys::file::replace_volatile(&path, next.to_rfc3339().as_bytes()),
            None => sys::file::remove(&path),
        }
        .map_err(Error::io("write", path))
    }

    /// Frees one entry at once. The caller holds its exclusive lock.
    pub fn free(&self, entry: &Entry) -> Result<()> {
        self.remove(&entry.path, || Ok(()))
    }

    /// Everything in the trash, oldest first. What does not say where it came from is passed over: `gc` names it.
    pub fn trashed(&self) -> Result<Vec<Entry>> {
        let dir = self.paths.trash();
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Id>().ok());
            if let (Some(id), Ok(Some(origin))) = (id, record::read::<Origin>(&SparkPaths(&path).origin())) {
                entries.push(Entry { id, path, origin });
            }
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }
}
