//! What a new spark starts from: a base, another spark as it is now, or one of its snapshots.

use std::path::PathBuf;

use super::base::PullRequest;
use super::data::Copied;
use super::spark::Opened;
use super::{Observer, Sparks};
use crate::domain::image::FromImage;
use crate::domain::name::{Name, SourceRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin};
use crate::error::{Error, Result};
use crate::sys::flock::Mode;

/// What to start from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A base; the default one if none is named.
    Base(Option<Name>),
    /// The base that was pulled as an image; it is pulled if there is none.
    Image(PullRequest),
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

/// What sparks inherit of the image that their base was made from.
fn options_of(image: Option<FromImage>) -> SparkOptions {
    let Some(image) = image else { return SparkOptions::default() };
    let mut env = image.config.env.clone();
    // Last, as where no image says otherwise.
    if let Some(path) = env.get_mut("PATH").filter(|path| path.split(':').all(|dir| dir != "/spark/bin")) {
        path.push_str(":/spark/bin");
    }
    let (user, workdir) = (image.config.user.clone(), image.config.workdir.clone());
    SparkOptions { env, user, workdir, image: Some(image), ..SparkOptions::default() }
}

impl Sparks {
    /// Finds a source. Waits for a base that another command makes, and makes the default base if there is none.
    pub(super) fn find_source(&self, source: &Source, observer: &dyn Observer) -> Result<Found> {
        if let Source::Base(name) = source {
            match name.as_ref().or(self.context.base.as_ref()) {
                Some(name) => self.ensure_base(name, observer)?,
                None => self.ensure_default_base(observer).map(drop)?,
            }
        }
        if let Source::Image(request) = source {
            let name = self.base_of_image(request, observer)?;
            return self.look_up(&Source::Base(Some(name)));
        }
        self.look_up(source)
    }

    /// Finds a source, making nothing.
    pub(super) fn look_up(&self, source: &Source) -> Result<Found> {
        match source {
            Source::Base(name) => {
                let (name, record, root) = self.find_base(name.as_ref())?;
                let origin = Origin::Base { name, id: record.id };
                let (options, copies) = (options_of(record.image), Vec::new());
                Ok(Found { origin, root, at_work: None, options, copies, opened: None })
            }
            Source::Image(request) => {
                let found = self.find_pulled(&request.image)?;
                let name = found.ok_or_else(|| Error::NotFound {
                    kind: "image",
                    name: request.image.to_string(),
                    in_project: None,
                    near: Vec::new(),
                })?;
                self.look_up(&Source::Base(Some(name)))
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
