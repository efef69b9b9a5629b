//! What a new spark starts from: a base, another spark as it is now, or one of its snapshots.

use std::path::PathBuf;

use super::data::Copied;
use super::spark::Opened;
use super::{Observer, Sparks};
use crate::domain::name::{Name, SourceRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin};
use crate::error::Result;
use crate::sys::flock::Mode;

/// What to start from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A base; the default one if none is named.
    Base(Option<Name>),
    Spark(SourceRef),
}

/// A source that is there.
#[derive(Debug)]
pub(crate) struct Found {
    pub origin: Origin,
    /// The subvolume to copy.
    pub root: PathBuf,
    /// The spark whose own root it is, which may be at work on it.
    pub at_work: Option<Id>,
    /// What a spark made of it inherits.
    pub options: SparkOptions,
    /// The data volumes that it gets copies of; those that it shares are options.
    pub copies: Vec<Copied>,
    /// The spark, locked: its root stays what it is.
    pub opened: Option<Opened>,
}

impl Sparks {
    /// Finds a source. Makes the default base if that is wanted and there is none.
    pub(super) fn find_source(&self, source: &Source, observer: &dyn Observer) -> Result<Found> {
        if matches!(source, Source::Base(None)) && self.context.base.is_none() {
            self.ensure_default_base(observer)?;
        }
        self.look_up(source)
    }

    /// Finds a source, making nothing.
    pub(super) fn look_up(&self, source: &Source) -> Result<Found> {
        match source {
            Source::Base(name) => {
                let (name, record, root) = self.find_base(name.as_ref())?;
                let origin = Origin::Base { name, id: record.id };
                let (options, copies) = Default::default();
                Ok(Found { origin, root, at_work: None, options, copies, opened: None })
            }
            Source::Spark(source) => self.look_up_spark(source),
        }
    }

    fn look_up_spark(&self, source: &SourceRef) -> Result<Found> {
        let opened = self.open_spark(&self.resolve(&source.spark)?, Mode::Shared)?;
        let root = match &source.snapshot {
            Some(snapshot) => self.snapshot_root(&opened.id, snapshot)?,
            None => {
                opened.refuse_damaged()?;
                SparkPaths(&opened.dir).root()
            }
        };
        let at_work = source.snapshot.is_none().then(|| opened.record.id.clone());
        let origin = Origin::Spark {
            project: opened.id.project.clone(),
            name: opened.id.name.clone(),
            id: opened.record.id.clone(),
            snapshot: source.snapshot.clone(),
            race: None,
        };
        let options = opened.record.options.clone();
        Ok(Found { origin, root, at_work, options, copies: Vec::new(), opened: Some(opened) })
    }
}
