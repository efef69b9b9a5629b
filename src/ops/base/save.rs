//! `base save`: a spark's files as a template for others, without what must not be shared.

use super::super::origin::Source;
use super::super::{Observer, Sparks, identity};
use super::BaseInfo;
use super::make::new_record;
use crate::domain::name::{Name, SourceRef};
use crate::error::{Error, Result};
use crate::fault;
use crate::ops::git::author;
use crate::pool::{btrfs, stage};
use crate::runtime::users;

impl Sparks {
    /// Saves a spark as it is now, or one of its snapshots, as a base. Left out are the machine-id, ssh host keys, the
    /// random seed, the author of a clone's commits, and what is in `/tmp`, `/var/tmp` and `/run`.
    ///
    /// # Errors
    /// `exists` if there is a base of that name and `replace` is not set.
    pub fn base_save(
        &self,
        source: &SourceRef,
        name: &Name,
        replace: bool,
        observer: &dyn Observer,
    ) -> Result<BaseInfo> {
        let making = match replace {
            true => self.alone_with(name, observer)?,
            false => self.begin_new_base(name, observer)?,
        };
        let found = self.look_up(&Source::Spark(source.clone()))?;
        let stage = self.pool.stage()?;
        let draft = stage.path().join("draft");
        let still = self.hold_still(found.at_work.as_ref())?;
        btrfs::snapshot(&found.root, &draft)?;
        drop(still);
        fault::point("base-save.after-snapshot")?;
        observer.step("cleaning", None);
        let user = users::find(&draft, found.options.user.as_deref().unwrap_or("0"));
        let cleaned = user.map_or(Ok(()), |user| author::remove(&draft, &user));
        cleaned.and_then(|()| identity::clean(&draft)).map_err(Error::io("clean", &draft))?;
        let mut record = new_record(format!("save {source}"), Some(found.origin));
        record.image = found.options.image;
        stage.write("base.json", &record)?;
        // A snapshot of it, and not itself made read-only: the one is durable when it is made, the other is not.
        btrfs::snapshot_read_only(&draft, &stage.path().join("root"))?;
        stage::destroy(&draft)?;
        fault::point("base-save.staged")?;
        match replace {
            true => self.replace_base(stage, name, &making),
            false => self.publish_base(stage, name, &making),
        }
    }
}
