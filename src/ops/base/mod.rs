//! `spark base`: the read-only root filesystems that sparks start from.

mod bootstrap;
mod containerd;
mod export;
mod import;
mod layers;
mod make;
mod pull;
mod push;
mod save;
mod sources;

use std::path::PathBuf;

use super::{Observer, Sparks, near};
use crate::domain::base::BaseRecord;
use crate::domain::image::FromImage;
use crate::domain::name::Name;
use crate::domain::spark::{Id, Time};
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::{btrfs, names_in, record};
use crate::sys::flock::Mode;

pub use containerd::ContainerdRef;
pub use export::Export;
pub use import::ImportSource;
pub use pull::PullRequest;

/// The base that is made without a network.
pub const MINIMAL: &str = "minimal";

/// One base. Of a broken one only the name is certain.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BaseInfo {
    pub name: Name,
    pub id: Option<Id>,
    pub created: Option<Time>,
    /// How it was made, in words.
    pub origin: Option<String>,
    /// The image that its files began as, and what sparks get from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<FromImage>,
    /// Whether `create` takes it where none is named.
    pub default: bool,
    /// The root filesystem.
    pub path: PathBuf,
    pub subvolume: Option<btrfs::Info>,
    /// Why nothing can start from it.
    pub broken: Option<String>,
}

impl Sparks {
    /// All bases by name, the broken ones too.
    pub fn base_list(&self) -> Result<Vec<BaseInfo>> {
        let default = self.base_default(None)?;
        let names = names_in(&self.pool.paths.bases())?;
        Ok(names.iter().map(|name| self.describe_base(name, default.as_ref())).collect())
    }

    /// One base.
    ///
    /// # Errors
    /// `not_found` with names that look alike.
    pub fn base_info(&self, name: &Name) -> Result<BaseInfo> {
        self.check_base_exists(name)?;
        Ok(self.describe_base(name, self.base_default(None)?.as_ref()))
    }

    /// Deletes a base at once. What was made from it stays: a snapshot needs its origin no longer.
    ///
    /// # Errors
    /// `not_found`; `wrong_state` for the default base.
    pub fn base_delete(&self, name: &Name) -> Result<()> {
        self.check_base_exists(name)?;
        if self.base_default(None)?.as_ref() == Some(name) {
            return Err(Error::WrongState {
                action: "delete",
                kind: "base",
                name: name.to_string(),
                state: "the default base".into(),
                hint: "make another one the default first: `spark base default NAME`".into(),
            });
        }
        let dir = self.pool.paths.base(name);
        let Some(_lock) = self.pool.lock(&dir, Mode::Exclusive)? else {
            return Err(self.no_such_base(name));
        };
        fault::point("base-delete.before-rename")?;
        self.pool.remove(&dir, || fault::point("base-delete.after-rename"))
    }

    /// The base that `create` takes where none is named: the one of the context, else the one that was set. With
    /// `set`, sets that first.
    ///
    /// # Errors
    /// `not_found`, and `corrupt` for a broken one.
    pub fn base_default(&self, set: Option<&Name>) -> Result<Option<Name>> {
        if let Some(name) = set {
            self.find_base(Some(name))?;
            let _lock = self.pool.lock(&self.pool.paths.top, Mode::Exclusive)?;
            self.pool.set_default_base(name)?;
            return Ok(Some(name.clone()));
        }
        match &self.context.base {
            Some(name) => Ok(Some(name.clone())),
            None => Ok(self.pool.layout()?.default_base),
        }
    }

    /// Finds a base, or the default one: its name, its record, and its root.
    ///
    /// # Errors
    /// `not_found`, `corrupt` if its record or its root is, `usage` if there is no default.
    pub(crate) fn find_base(&self, wanted: Option<&Name>) -> Result<(Name, BaseRecord, PathBuf)> {
        let name = match wanted {
            Some(name) => name.clone(),
            None => self.base_default(None)?.ok_or_else(|| Error::Usage {
                message: "there is no default base".into(),
                hint: Some("name one with `--base`, or make one with `spark base bootstrap`".into()),
            })?,
        };
        self.check_base_exists(&name)?;
        let (record, root) = self.inspect(&name)?;
        Ok((name, record, root))
    }

    /// Makes the default base if there is no base at all: the host's own Debian where it can be bootstrapped, else
    /// the minimal one. Returns the default.
    pub(crate) fn ensure_default_base(&self, observer: &dyn Observer) -> Result<Name> {
        if let Some(name) = self.base_default(None)?
            && self.check_base_exists(&name).is_ok()
        {
            return Ok(name);
        }
        // One makes it, others wait for it.
        let wait = || observer.notice("another command makes the first base: waiting for it");
        let _making = self.pool.making("first-base", wait)?;
        if names_in(&self.pool.paths.bases())?.is_empty() {
            self.make_first_base(observer)?;
        }
        self.find_base(None).map(|(name, ..)| name)
    }

    /// Waits for the command that makes a base, if there is one. `minimal` is made if it is not there: that takes no network
    /// and no time.
    pub(crate) fn ensure_base(&self, name: &Name, observer: &dyn Observer) -> Result<()> {
        let is_there = || self.check_base_exists(name).is_ok();
        if is_there() {
            return Ok(());
        }
        self.wait_for_base(name, observer)?;
        if is_there() || name.as_str() != MINIMAL {
            return Ok(());
        }
        observer.notice("there is no base `minimal` yet: making it");
        match self.base_bootstrap(MINIMAL, None, observer) {
            // Another command was first.
            Err(Error::Exists { .. }) => Ok(()),
            made => made.map(drop),
        }
    }

    fn make_first_base(&self, observer: &dyn Observer) -> Result<()> {
        let (suite, how) = match bootstrap::host_suite() {
            Some(suite) if bootstrap::is_possible() => {
                let how = format!(
                    "there is no base yet: making `{suite}`, once (a smaller one: `spark base bootstrap minimal`)"
                );
                (suite, how)
            }
            Some(suite) => {
                let how = format!(
                    "there is no base yet: making `minimal` (for a Debian: `apt-get install mmdebstrap`, then `spark base bootstrap {suite}`)"
                );
                (MINIMAL.to_owned(), how)
            }
            None => {
                let how = "there is no base yet: making `minimal` (another one: `spark base import ROOTFS.tar NAME`)";
                (MINIMAL.to_owned(), how.to_owned())
            }
        };
        observer.notice(&how);
        match self.base_bootstrap(&suite, None, observer) {
            // No network, most often. A first spark should start all the same.
            Err(e @ Error::Program { .. }) if suite != MINIMAL => {
                observer.notice(&format!(
                    "{e}\nmaking `minimal` instead (again: `spark base bootstrap {suite}`)"
                ));
                self.base_bootstrap(MINIMAL, None, observer).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn describe_base(&self, name: &Name, default: Option<&Name>) -> BaseInfo {
        let (record, broken) = match self.inspect(name) {
            Ok((record, _)) => (Some(record), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let path = self.pool.paths.base(name).join("root");
        let subvolume = broken.is_none().then(|| btrfs::info(&path).ok()).flatten();
        let default = default == Some(name);
        let (id, created, origin, image) = match record {
            Some(r) => (Some(r.id), Some(r.created), Some(r.origin), r.image),
            None => (None, None, None, None),
        };
        BaseInfo { name: name.clone(), id, created, origin, image, default, path, subvolume, broken }
    }

    /// A base's record and root, if both are as they should be.
    fn inspect(&self, name: &Name) -> Result<(BaseRecord, PathBuf)> {
        let dir = self.pool.paths.base(name);
        let again = || Some(format!("remove it with `spark base delete {name}`, and make it again"));
        let broken = |path: PathBuf, why: String| Error::Corrupt { path, why, hint: again() };
        let path = dir.join("base.json");
        let record = match record::read::<BaseRecord>(&path) {
            Ok(Some(record)) => record,
            Ok(None) => return Err(broken(path, "it is gone".into())),
            Err(Error::Corrupt { path, why, hint: None }) => return Err(broken(path, why)),
            Err(e) => return Err(e),
        };
        let root = dir.join("root");
        if !btrfs::is_subvolume(&root) {
            let why = if root.exists() { "it is not a subvolume" } else { "it is gone" };
            return Err(broken(root, why.into()));
        }
        Ok((record, root))
    }

    fn check_base_exists(&self, name: &Name) -> Result<()> {
        match std::fs::symlink_metadata(self.pool.paths.base(name)) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(self.no_such_base(name)),
            Err(e) => Err(Error::io("inspect", self.pool.paths.base(name))(e)),
        }
    }

    fn no_such_base(&self, name: &Name) -> Error {
        let names = names_in(&self.pool.paths.bases()).unwrap_or_default();
        let near = near(name.as_str(), names.iter().map(Name::as_str));
        Error::NotFound { kind: "base", name: name.to_string(), in_project: None, near }
    }
}
