//! `diff`: what differs between sparks, snapshots and bases.

mod file;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Sparks, hosts};
use crate::domain::name::{InvalidName, Name, SourceRef, SparkRef};
use crate::domain::place::SparkPaths;
use crate::domain::spark::Origin;
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::pool::changes::{self, File, Kind, What};
use crate::sys::flock::Mode;

pub use file::{FileDiff, Side};

/// The file that Sparks writes a section of.
const HOSTS: &[u8] = b"etc/hosts";

/// What is compared: `name`, `project/name`, either with `@snapshot`, or `base:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Base(Name),
    Spark(SourceRef),
}

impl FromStr for Source {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Source, InvalidName> {
        match s.strip_prefix("base:") {
            Some(base) => base.parse().map(Source::Base),
            None => s.parse().map(Source::Spark),
        }
    }
}

/// What to compare with what.
#[derive(Debug, Clone)]
pub struct Pair {
    /// What a spark was made from, if none.
    pub before: Option<Source>,
    pub after: Source,
}

/// One path that is not as it was.
#[derive(Debug, serde::Serialize)]
pub struct Change {
    pub kind: Kind,
    /// Where it is, or was. Bytes that are not UTF-8 are written `\xNN`.
    pub path: String,
    /// Where it was, if it was renamed.
    pub from: Option<String>,
    /// Whether the rename replaced something else.
    pub replaced: bool,
    /// What differs besides the name.
    pub what: Vec<What>,
    #[serde(rename = "type")]
    pub file: File,
    /// Bytes of a regular file.
    pub size_before: Option<u64>,
    pub size_after: Option<u64>,
}

/// The sum of all changes.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stat {
    pub added: u64,
    pub modified: u64,
    pub deleted: u64,
    pub renamed: u64,
    /// Bytes of the files that differ.
    pub before_bytes: u64,
    pub after_bytes: u64,
}

impl Stat {
    /// Sums up.
    pub fn of(changes: impl Iterator<Item = Change>) -> Stat {
        let mut stat = Stat::default();
        for change in changes {
            *match change.kind {
                Kind::Added => &mut stat.added,
                Kind::Modified => &mut stat.modified,
                Kind::Deleted => &mut stat.deleted,
                Kind::Renamed => &mut stat.renamed,
            } += 1;
            stat.before_bytes = stat.before_bytes.saturating_add(change.size_before.unwrap_or(0));
            stat.after_bytes = stat.after_bytes.saturating_add(change.size_after.unwrap_or(0));
        }
        stat
    }
}

impl From<changes::Change> for Change {
    fn from(change: changes::Change) -> Change {
        let path = |path: Vec<u8>| format!("/{}", text(&path));
        Change {
            kind: change.kind,
            path: path(change.path),
            from: change.from.map(path),
            replaced: change.replaced,
            what: change.what,
            file: change.file,
            size_before: change.size_before,
            size_after: change.size_after,
        }
    }
}

/// A root filesystem, and the lock that keeps it where it is.
struct Root {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Sparks {
    /// Finds what differs, by path. Sparks may run: they are compared as they are at this moment.
    ///
    /// # Errors
    /// `not_found`, `corrupt`, `wrong_state` if the base that a spark was made from is no longer there.
    pub fn diff(&self, pair: &Pair) -> Result<impl Iterator<Item = Change> + use<>> {
        let (before, after) = self.roots(pair)?;
        // Of each a snapshot of our own: the kernel compares only what cannot change, and nothing has to stay locked.
        let stage = self.pool.stage()?;
        let [a, b] = ["before", "after"].map(|name| stage.path().join(name));
        btrfs::snapshot_read_only(&before.path, &a)?;
        btrfs::snapshot_read_only(&after.path, &b)?;
        drop((before, after));
        // One by one, since there may be many.
        let found = changes::between(&a, &b)?.changes;
        let is_hosts = |change: &changes::Change| {
            change.path == HOSTS
                && change.kind != Kind::Renamed
                && change.what.iter().all(|w| *w == What::Content)
        };
        let are_alike = found.iter().any(is_hosts) && hosts::are_alike(&a, &b);
        Ok(found.into_iter().filter(move |change| !(are_alike && is_hosts(change))).map(Change::from))
    }

    /// Compares one file. `path` is as inside; no link is followed on the way to it, nor at its end.
    ///
    /// # Errors
    /// As [`diff`](Sparks::diff); `not_found` if neither has the file.
    pub fn diff_file(&self, pair: &Pair, path: &Path) -> Result<FileDiff> {
        let (before, after) = self.roots(pair)?;
        file::compare(&before.path, &after.path, path)
    }

    fn roots(&self, pair: &Pair) -> Result<(Root, Root)> {
        let before = match (&pair.before, &pair.after) {
            (Some(before), _) => self.source_root(before, Mode::Shared)?,
            (None, Source::Spark(spark)) => self.origin_root(spark)?,
            (None, Source::Base(base)) => {
                return Err(Error::Usage {
                    message: format!("base `{base}` was made from nothing to compare it with"),
                    hint: Some(format!("name two: `spark diff base:{base} SPARK`")),
                });
            }
        };
        Ok((before, self.source_root(&pair.after, Mode::SharedToo)?))
    }

    fn source_root(&self, source: &Source, mode: Mode) -> Result<Root> {
        let source = match source {
            Source::Base(base) => return self.base_root(base, mode),
            Source::Spark(source) => source,
        };
        let spark = self.open_spark(&self.resolve(&source.spark)?, mode)?;
        let path = match &source.snapshot {
            Some(snapshot) => self.snapshot_root(&spark.id, snapshot)?,
            None => {
                spark.refuse_damaged()?;
                SparkPaths(&spark.dir).root()
            }
        };
        Ok(Root { path, _lock: spark.lock })
    }

    fn base_root(&self, base: &Name, mode: Mode) -> Result<Root> {
        let (_, _, path) = self.find_base(Some(base))?;
        let Some(lock) = self.pool.lock(&self.pool.paths.base(base), mode)? else {
            return Err(Error::Busy { what: format!("base `{base}`"), why: "it is being deleted".into() });
        };
        Ok(Root { path, _lock: lock })
    }

    /// The root that a spark was made from, if it is still that one.
    fn origin_root(&self, source: &SourceRef) -> Result<Root> {
        let (name, id) = match self.record(&self.resolve(&source.spark)?)?.origin {
            Origin::Base { name, id } => (name, id),
            Origin::Received { snapshot, .. } => {
                // Received together with it.
                let snapshot = Some(snapshot);
                let received = SourceRef { snapshot, ..source.clone() };
                return self.source_root(&Source::Spark(received), Mode::Shared);
            }
            Origin::Spark { name, id, snapshot, .. } => {
                // Whatever it is called by now.
                let Some(found) = self.pool.find_container(id.as_str())? else {
                    return Err(Error::WrongState {
                        action: "compare with",
                        kind: "spark",
                        name: name.to_string(),
                        state: format!("gone, which `{}` was forked from", source.spark),
                        hint: format!("name two: `spark diff SPARK {source}`"),
                    });
                };
                let spark = SparkRef { project: Some(found.project), name: found.name };
                return self.source_root(&Source::Spark(SourceRef { spark, snapshot }), Mode::Shared);
            }
        };
        let (_, base, _) = self.find_base(Some(&name))?;
        if base.id != id {
            return Err(Error::WrongState {
                action: "compare with",
                kind: "base",
                name: name.to_string(),
                state: format!("not the one that `{}` was made from", source.spark),
                hint: format!("to compare with it all the same: `spark diff base:{name} {source}`"),
            });
        }
        self.base_root(&name, Mode::Shared)
    }
}

/// Bytes as text, those that are not UTF-8 as `\xNN`.
fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|b| format!("\\x{b:02x}")));
    }
    out
}
