//! What every way to make a base has in common.

use std::path::Path;

use super::super::{Observer, Sparks};
use super::BaseInfo;
use crate::domain::FORMAT;
use crate::domain::base::BaseRecord;
use crate::domain::name::Name;
use crate::domain::spark::{Id, Origin};
use crate::error::{Error, Result};
use crate::image::{Limits, Summary};
use crate::pool::btrfs;
use crate::pool::image::usage;
use crate::pool::making::Making;
use crate::pool::stage::Stage;
use crate::sys::flock::Mode;
use crate::{fault, sys};

impl Sparks {
    /// Makes a base of what `fill` puts into an empty root. It appears by one rename, complete, read-only and
    /// durable, or not at all. The first base becomes the default.
    pub(super) fn make_base(
        &self,
        name: &Name,
        origin: String,
        (making, observer): (&Making, &dyn Observer),
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<BaseInfo> {
        let _room = self.room()?;
        let stage = self.pool.stage()?;
        let root = stage.path().join("root");
        btrfs::create(&root)?;
        set_top(&root)?;
        fill(&root)?;
        fault::point("base-import.after-unpack")?;
        stage.write("base.json", &new_record(origin, None))?;
        fault::point("base-import.staged")?;
        observer.step("writing to disk", None);
        make_durable(&root)?;
        // Here, and not in its final place: its parent is what will be moved, and that a read-only one allows.
        btrfs::set_read_only(&root)?;
        fault::point("base-import.before-publish")?;
        self.publish_base(stage, name, making)
    }

    /// Gets the right to make a base. If another command makes one of this name, it waits for that, and says so.
    ///
    /// # Errors
    /// `exists` if the name was taken before.
    pub(super) fn begin_base(&self, name: &Name, observer: &dyn Observer) -> Result<Making> {
        self.refuse_taken(name)?;
        self.alone_with(name, observer)
    }

    /// Gets the right to make a base that is like no other one: of two at once under one name, the second fails when the first
    /// has made its base, and does no work before.
    ///
    /// # Errors
    /// `exists` if the name is taken.
    pub(super) fn begin_new_base(&self, name: &Name, observer: &dyn Observer) -> Result<Making> {
        let making = self.begin_base(name, observer)?;
        self.refuse_taken(name)?;
        Ok(making)
    }

    /// Gets the right to make a base that replaces one of this name.
    pub(super) fn alone_with(&self, name: &Name, observer: &dyn Observer) -> Result<Making> {
        self.pool.making(&thing(name), || observer.notice(&waiting(name)))
    }

    /// Waits for the command that makes a base, if there is one.
    pub(super) fn wait_for_base(&self, name: &Name, observer: &dyn Observer) -> Result<()> {
        self.pool.wait_made(&thing(name), || observer.notice(&waiting(name)))
    }

    /// Gives what is staged its name.
    pub(super) fn publish_base(&self, stage: Stage, name: &Name, _: &Making) -> Result<BaseInfo> {
        let _lock = stage.publish(&self.pool.paths.base(name)).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => taken(name),
            e => e,
        })?;
        fault::point("base-import.after-publish")?;
        self.sync_bases()?;
        self.default_if_first(name)?;
        self.base_info(name)
    }

    /// Puts what is staged in the place of a base, which is freed. What was made from that one stays as it is.
    pub(super) fn replace_base(&self, stage: Stage, name: &Name, making: &Making) -> Result<BaseInfo> {
        let dir = self.pool.paths.base(name);
        // Held until it is freed, so that `gc` does not do that at the same time.
        let Some(_old) = self.pool.lock(&dir, Mode::Exclusive)? else {
            return self.publish_base(stage, name, making);
        };
        fault::point("base-save.before-exchange")?;
        sys::file::exchange(stage.path(), &dir).map_err(Error::io("replace", &dir))?;
        fault::point("base-save.exchanged")?;
        self.sync_bases()?;
        drop(stage);
        self.base_info(name)
    }

    fn sync_bases(&self) -> Result<()> {
        let bases = self.pool.paths.bases();
        sys::file::sync_dir(&bases).map_err(Error::io("sync", &bases))
    }

    /// Fails if the name is taken: asked before the long work, and by the rename again.
    pub(super) fn refuse_taken(&self, name: &Name) -> Result<()> {
        if self.check_base_exists(name).is_ok() { Err(taken(name)) } else { Ok(()) }
    }

    fn default_if_first(&self, name: &Name) -> Result<()> {
        let _lock = self.pool.lock(&self.pool.paths.top, Mode::Exclusive)?;
        match self.pool.layout()?.default_base {
            // One that is gone, removed by hand, is none.
            Some(default) if self.check_base_exists(&default).is_ok() => Ok(()),
            _ => self.pool.set_default_base(name),
        }
    }

    /// What an import may take: what is free, but for a sixteenth that the sparks which run need meanwhile.
    pub(in crate::ops) fn import_limits(&self) -> Result<Limits> {
        let usage = usage(&self.pool.place)?;
        let free = usage.free + usage.can_grow_bytes.unwrap_or_default();
        Ok(Limits { bytes: free - free / 16, ..Limits::default() })
    }

    /// The program whose processes read what is not trusted.
    pub(in crate::ops) fn reader(&self) -> Result<&Path> {
        self.context.program.as_deref().ok_or_else(|| Error::Host {
            what: "archives and images are read by processes of `spark`, and this program has not said where that is".into(),
            hint: "set `Context::program` to its path, such as /usr/bin/spark".into(),
            source: None,
        })
    }
}

/// The record of a new base.
pub(super) fn new_record(origin: String, from: Option<Origin>) -> BaseRecord {
    let (id, created) = (Id::generate(), chrono::Utc::now());
    BaseRecord { version: FORMAT, id, created, origin, from, image: None, rest: Default::default() }
}

/// What the right to make a base is called.
fn thing(name: &Name) -> String {
    format!("base-{name}")
}

fn waiting(name: &Name) -> String {
    format!("another command makes base `{name}`: waiting for it")
}

pub(super) fn taken(name: &Name) -> Error {
    Error::Exists { kind: "base", name: name.to_string(), in_project: None }
}

pub(super) fn set_top(root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).map_err(Error::io("set mode of", root))
}

/// Writes the root to disk. Only this and a clone sync the whole filesystem: a base has tens of thousands of
/// files, making one is rare and takes long anyway, and an fsync of each would take longer.
fn make_durable(root: &Path) -> Result<()> {
    sys::file::open_dir(root).and_then(sys::tree::sync_filesystem).map_err(Error::io("sync", root))
}

/// Says what was left out.
pub(super) fn report(summary: &Summary, observer: &dyn Observer) {
    summary.notices().for_each(|notice| observer.notice(&notice));
}
