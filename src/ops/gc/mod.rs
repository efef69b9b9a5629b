//! `gc`: frees what crashes and expired trash left, one collector for each kind of leftover.

mod files;
mod running;

use std::path::{Path, PathBuf};

use super::Sparks;
use crate::error::{Error, Result};

/// One thing that was collected, or would be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Item {
    /// What it is.
    pub what: String,
    /// Whose it was.
    pub owner: String,
    pub path: String,
}

impl Item {
    pub(super) fn new(what: &str, owner: impl ToString, path: &Path) -> Item {
        Item { what: what.into(), owner: owner.to_string(), path: path.display().to_string() }
    }
}

/// What a run of `gc` did. A leftover that could not be freed keeps no other one from being freed.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was freed, or what would be.
    pub items: Vec<Item>,
    /// Why something was not freed, or could not be looked for.
    pub failures: Vec<Error>,
}

/// What the collectors work on.
#[derive(Debug)]
pub(super) struct Collection {
    dry_run: bool,
    collected: Collected,
}

impl Collection {
    fn new(dry_run: bool) -> Collection {
        Collection { dry_run, collected: Collected::default() }
    }

    /// Whether nothing is freed, only listed.
    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Frees one thing and lists it; a dry run only lists it. If it cannot be freed, the failure is kept instead.
    pub(super) fn free(&mut self, item: Item, free: impl FnOnce() -> Result<()>) {
        match self.dry_run {
            true => self.collected.items.push(item),
            false => match free() {
                Ok(()) => self.collected.items.push(item),
                Err(e) => self.fail(e),
            },
        }
    }

    /// Keeps a failure.
    pub(super) fn fail(&mut self, failure: Error) {
        self.collected.failures.push(failure);
    }

    /// The first failure, for an operation that collects one kind of leftover on its way.
    fn result(self) -> Result<()> {
        self.collected.failures.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Finds one kind of leftover and frees it. It never touches what another command works on. An error means that it could
/// not look.
type Collector = fn(&Sparks, &mut Collection) -> Result<()>;

/// All collectors, in the order in which they run: processes before the sparks that they keep locked, and sparks before
/// what belongs to sparks.
const COLLECTORS: &[Collector] = &[
    Sparks::gc_waiting,
    Sparks::gc_still,
    Sparks::gc_ephemeral,
    Sparks::gc_staging,
    Sparks::gc_making,
    Sparks::gc_restores,
    Sparks::gc_trash,
    Sparks::gc_containers,
    Sparks::gc_records,
    Sparks::gc_index,
    Sparks::gc_quotas,
    Sparks::gc_networks,
    Sparks::gc_addresses,
    Sparks::gc_ids,
    Sparks::gc_unwritten,
    Sparks::gc_images,
    Sparks::gc_secrets,
];

impl Sparks {
    /// Collects what is left over, or only lists it. A collector that fails is skipped, and the others run.
    pub fn gc(&self, dry_run: bool) -> Collected {
        let mut collection = Collection::new(dry_run);
        for collector in COLLECTORS {
            if let Err(e) = collector(self, &mut collection) {
                collection.fail(e);
            }
        }
        collection.collected
    }

    /// Runs one collector.
    fn collect(&self, collector: Collector) -> Result<()> {
        let mut collection = Collection::new(false);
        collector(self, &mut collection)?;
        collection.result()
    }

    /// Whether something in the trash has expired. Costs the look at one file.
    pub fn has_expired_trash(&self) -> bool {
        self.pool.next_expiry().is_some_and(|next| next <= chrono::Utc::now())
    }

    /// Frees what has expired in the trash, and nothing else.
    ///
    /// # Errors
    /// What cannot be freed is tried again by a command a minute later.
    pub fn empty_trash(&self) -> Result<()> {
        // Before: whoever looks meanwhile finds a time that is not past.
        self.pool.postpone_expiry();
        self.collect(Sparks::gc_trash)
    }

    /// Removes what is left of sparks that ended by themselves.
    pub(super) fn collect_ended(&self) -> Result<()> {
        self.collect(Sparks::gc_containers)
    }
}

pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("list", dir)(e)),
    }
}
