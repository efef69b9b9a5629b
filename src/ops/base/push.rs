//! `spark base push`: a base to a registry.

use super::super::{Observer, Sparks};
use crate::domain::image::{Digest, ImageRef, Named};
use crate::domain::name::Name;
use crate::error::Result;
use crate::image::oci::{self, Content, Upload};

/// What a registry has now.
#[derive(Debug, serde::Serialize)]
pub struct Pushed {
    pub base: Name,
    pub reference: String,
    /// Of its manifest.
    pub digest: Digest,
}

impl Sparks {
    /// Sends a base to a registry: as the layers of the image that it was made from, and one more of what differs.
    /// Layers that are there are not sent again.
    ///
    /// # Errors
    /// `denied` and `network` from the registry; then no image has changed there.
    pub fn base_push(&self, name: &Name, to: &Named, observer: &dyn Observer) -> Result<Pushed> {
        let (name, record, root) = self.find_base(Some(name))?;
        // The layers that are sent must not go meanwhile.
        let _held = self.hold_images()?;
        let scratch = self.pool.stage()?;
        let whole = self.whole(&record, &root, scratch.path(), observer)?;
        let digest = oci::digest_of(&whole.manifest);
        let config = (whole.config_blob(), Content::Bytes(whole.config));
        let layers = whole.layers.into_iter().map(|(blob, path)| (blob, Content::File(path)));
        let blobs: Vec<_> = layers.chain([config]).collect();
        let total = blobs.iter().map(|(blob, _)| blob.size).sum();
        let from = record.image.and_then(|image| match image.reference.parse() {
            Ok(ImageRef::Registry(named)) => Some(named),
            _ => None,
        });
        let upload = Upload { blobs, manifest: whole.manifest, media_type: whole.media_type, from };
        observer.step(&format!("pushing {to}"), Some(total));
        oci::push(to, &upload, &|bytes| observer.advance(bytes))?;
        Ok(Pushed { base: name, reference: to.to_string(), digest })
    }
}
