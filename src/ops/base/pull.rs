//! `spark base pull`: a base from an image.

use super::super::{Observer, Sparks};
use super::import::hold_signals;
use super::{BaseInfo, make};
use crate::domain::image::{FromImage, ImageRef, Platform};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::fault;
use crate::image::oci::{self, Pull};
use crate::pool::making::Making;
use crate::pool::{btrfs, names_in};
use crate::runtime::users;

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    pub image: ImageRef,
    /// This host's unless another was asked for.
    pub platform: Platform,
}

impl PullRequest {
    /// For this host, from where its name says.
    pub fn of(image: ImageRef) -> PullRequest {
        PullRequest { image, platform: Platform::default() }
    }
}

impl Sparks {
    /// Makes a base of an image: called `name`, or after the image. A base of that name which was pulled as the same
    /// image is brought up to date; what was made from it stays as it is.
    ///
    /// # Errors
    /// `exists` if the name is another base's; `image` for what is refused; `denied`, `network` and `not_found` from a
    /// registry. Then no base is made or changed.
    pub fn base_pull(
        &self,
        request: &PullRequest,
        name: Option<&Name>,
        observer: &dyn Observer,
    ) -> Result<BaseInfo> {
        let name = match name {
            Some(name) => name.clone(),
            None => named_after(&request.image)?,
        };
        // At once, and not after waiting for another command.
        self.old_of(&name, request)?;
        let making = self.alone_with(&name, observer)?;
        self.pull_alone(request, &name, (&making, observer))
    }

    /// The base of a name, which has to be of this image, if there is one.
    fn old_of(&self, name: &Name, request: &PullRequest) -> Result<Option<BaseInfo>> {
        match self.base_info(name).ok() {
            Some(old) if !is_pulled(&old, &request.image.to_string()) => Err(make::taken(name)),
            old => Ok(old),
        }
    }

    fn pull_alone(
        &self,
        request: &PullRequest,
        name: &Name,
        (making, observer): (&Making, &dyn Observer),
    ) -> Result<BaseInfo> {
        let old = self.old_of(name, request)?;
        let reference = request.image.to_string();
        let _room = self.room()?;
        let _held = self.hold_images()?;
        // Declared before what is half made: a signal that is held back acts when that is gone.
        let signals;
        let scratch = self.pool.stage()?;
        observer.step(&format!("asking for {reference}"), None);
        let limit = self.import_limits()?.bytes;
        let (image, platform) = (&request.image, &request.platform);
        let program = self.reader()?;
        let opened = oci::open(&Pull { image, platform, scratch: scratch.path(), limit, program })?;
        let image = &opened.image;
        if let Some(old) = old.as_ref().filter(|old| old.broken.is_none())
            && old.image.as_ref().is_some_and(|had| had.digest == image.digest)
        {
            observer.notice(&format!("base `{name}` is up to date"));
            return self.base_info(name);
        }
        let Some(top) = image.layers.last() else {
            return Err(Error::Image { what: reference, why: "it has no layers".into() });
        };
        let (config, odd) = image.parsed.run();
        odd.iter().for_each(|why| observer.notice(why));
        signals = hold_signals()?;
        self.add_layers(&reference, &opened, scratch.path(), (observer, &signals))?;
        let root = self.pool.paths.layer(&top.chain).join("root");
        if let Some(user) = &config.user
            && let Err(e) = users::find(&root, user)
        {
            observer.notice(&format!("nothing can run as the image's user `{}`: {e}", user.escape_default()));
        }
        self.keep_manifest(&reference, image)?;
        fault::point("base-pull.kept")?;
        let stage = self.pool.stage()?;
        btrfs::snapshot_read_only(&root, &stage.path().join("root"))?;
        let mut record = make::new_record(format!("pull {reference}"), None);
        record.image = Some(FromImage { reference, digest: image.digest.clone(), config });
        stage.write("base.json", &record)?;
        fault::point("base-pull.staged")?;
        match old {
            Some(_) => self.replace_base(stage, name, making),
            None => self.publish_base(stage, name, making),
        }
    }

    /// The base that was pulled as an image, pulled now if there is none. If another command pulls the image at this moment,
    /// that is waited for, and its base is taken.
    pub(in crate::ops) fn base_of_image(
        &self,
        request: &PullRequest,
        observer: &dyn Observer,
    ) -> Result<Name> {
        if request.image.is_stream() {
            return Err(Error::Usage {
                message: format!("{} is another image each time that it is read", request.image),
                hint: Some("make a base of it first: `spark base pull REF BASE`".into()),
            });
        }
        let first = named_after(&request.image)?;
        for number in 1..100 {
            if let Some(name) = self.find_pulled(&request.image)? {
                return Ok(name);
            }
            let name = numbered(&first, number)?;
            if self.refuse_taken(&name).is_err() {
                continue;
            }
            let making = self.alone_with(&name, observer)?;
            if let Some(name) = self.find_pulled(&request.image)? {
                return Ok(name);
            }
            // Of another image by now?
            if self.refuse_taken(&name).is_ok() {
                return self.pull_alone(request, &name, (&making, observer)).map(|base| base.name);
            }
        }
        Err(make::taken(&first))
    }

    /// The base that was pulled as an image, if there is one.
    pub(in crate::ops) fn find_pulled(&self, image: &ImageRef) -> Result<Option<Name>> {
        let reference = image.to_string();
        for name in names_in(&self.pool.paths.bases())? {
            // One that is being deleted is none.
            let Ok(base) = self.base_info(&name) else { continue };
            if base.broken.is_none() && is_pulled(&base, &reference) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// Whether a base is an image as it came. One that was saved from a spark has its origin from the image too.
fn is_pulled(base: &BaseInfo, reference: &str) -> bool {
    base.image.as_ref().is_some_and(|image| image.reference == reference)
        && base.origin.as_ref().is_some_and(|origin| origin.starts_with("pull "))
}

/// A name for the base of an image whose own name others may have.
fn numbered(first: &Name, number: u32) -> Result<Name> {
    if number == 1 {
        return Ok(first.clone());
    }
    let stem = &first.as_str()[..first.as_str().len().min(60)];
    Ok(format!("{}-{number}", stem.trim_end_matches('-')).parse()?)
}

fn named_after(image: &ImageRef) -> Result<Name> {
    image.base_name().parse().map_err(|_| Error::Usage {
        message: format!("no base can be called after {image}"),
        hint: Some("give it a name: `spark base pull REF BASE`".into()),
    })
}
