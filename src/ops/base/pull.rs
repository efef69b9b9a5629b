//! `spark base pull`: a base from an image.

use super::super::{Observer, Sparks};
use super::{BaseInfo, make};
use crate::domain::image::{FromImage, ImageRef, Platform};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::fault;
use crate::image::oci::{self, Pull};
use crate::pool::{btrfs, names_in};

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
        let reference = request.image.to_string();
        let old = self.base_info(&name).ok();
        if old.as_ref().is_some_and(|old| !is_pulled(old, &reference)) {
            return self.refuse_taken(&name).and_then(|()| self.base_info(&name));
        }
        let _held = self.hold_images()?;
        let scratch = self.pool.stage()?;
        observer.step(&format!("asking for {reference}"), None);
        let limit = self.import_limits()?.bytes;
        let (image, platform) = (&request.image, &request.platform);
        let opened = oci::open(&Pull { image, platform, scratch: scratch.path(), limit })?;
        let image = &opened.image;
        if let Some(old) = old.as_ref().filter(|old| old.broken.is_none())
            && old.image.as_ref().is_some_and(|had| had.digest == image.digest)
        {
            observer.notice(&format!("base `{name}` is up to date"));
            return self.base_info(&name);
        }
        let Some(top) = image.layers.last() else {
            return Err(Error::Image { what: reference, why: "it has no layers".into() });
        };
        let (config, odd) = image.parsed.run();
        odd.iter().for_each(|why| observer.notice(why));
        self.add_layers(&reference, &opened, scratch.path(), observer)?;
        self.keep_manifest(&reference, image)?;
        fault::point("base-pull.kept")?;
        let stage = self.pool.stage()?;
        btrfs::snapshot_read_only(
            &self.pool.paths.layer(&top.chain).join("root"),
            &stage.path().join("root"),
        )?;
        let mut record = make::new_record(format!("pull {reference}"), None);
        record.image = Some(FromImage { reference, digest: image.digest.clone(), config });
        stage.write("base.json", &record)?;
        fault::point("base-pull.staged")?;
        match old {
            Some(_) => self.replace_base(stage, &name),
            None => self.publish_base(stage, &name),
        }
    }

    /// The base that was pulled as an image, pulled now if there is none.
    pub(in crate::ops) fn base_of_image(
        &self,
        request: &PullRequest,
        observer: &dyn Observer,
    ) -> Result<Name> {
        if let Some(name) = self.find_pulled(&request.image)? {
            return Ok(name);
        }
        let first = named_after(&request.image)?;
        let taken = |name: &Name| self.pool.paths.base(name).exists();
        let mut name = first.clone();
        for number in 2..100 {
            if !taken(&name) {
                break;
            }
            let stem = &first.as_str()[..first.as_str().len().min(60)];
            name = format!("{}-{number}", stem.trim_end_matches('-')).parse()?;
        }
        self.base_pull(request, Some(&name), observer).map(|base| base.name)
    }

    /// The base that was pulled as an image, if there is one.
    pub(in crate::ops) fn find_pulled(&self, image: &ImageRef) -> Result<Option<Name>> {
        let reference = image.to_string();
        for name in names_in(&self.pool.paths.bases())? {
            let base = self.base_info(&name)?;
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

fn named_after(image: &ImageRef) -> Result<Name> {
    image.base_name().parse().map_err(|_| Error::Usage {
        message: format!("no base can be called after {image}"),
        hint: Some("give it a name: `spark base pull REF BASE`".into()),
    })
}
