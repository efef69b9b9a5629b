//! The layers that images consist of: each upon those below it, once for all images that begin with the same ones.
//!
//! `images/layers/CHAIN/` holds `root/`, a read-only subvolume of everything up to that layer, and `blob`, the layer's
//! archive as it came, so that a base can be pushed as what it was pulled as.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::super::gc::{Collection, Item};
use super::super::{Observer, Sparks};
use super::make;
use crate::domain::FORMAT;
use crate::domain::base::BaseRecord;
use crate::domain::image::{Digest, FromImage, LayerRecord, ManifestRecord};
use crate::domain::spark::SparkRecord;
use crate::error::{Error, Result};
use crate::image::oci::{Image, Layer, Opened};
use crate::image::{Summary, unpack};
use crate::pool::layout::make_dir;
use crate::pool::stage::Stage;
use crate::pool::{btrfs, names_in, record, stage};
use crate::sys::flock::Mode;
use crate::sys::held::Held;
use crate::{fault, sys};

impl Sparks {
    /// Keeps `gc` from collecting what no base needs yet.
    pub(super) fn hold_images(&self) -> Result<OwnedFd> {
        let paths = &self.pool.paths;
        for dir in [paths.layers(), paths.manifests()] {
            if !dir.is_dir() {
                make_dir(&dir, 0o700)?;
                for dir in [paths.images(), paths.top.clone()] {
                    sys::file::sync_dir(&dir).map_err(Error::io("sync", dir))?;
                }
            }
        }
        let dir = paths.images();
        let gone = || Error::io("lock", &dir)(std::io::ErrorKind::NotFound.into());
        self.pool.lock(&dir, Mode::Shared)?.ok_or_else(gone)
    }

    /// Makes the layers of an image that are not there yet, in the order in which they lie upon each other, while the
    /// later ones are still being fetched. `scratch` is a directory in the pool. A signal that is held back ends the work.
    pub(super) fn add_layers(
        &self,
        what: &str,
        opened: &Opened,
        scratch: &Path,
        (observer, signals): (&dyn Observer, &Held),
    ) -> Result<()> {
        let layers = &opened.image.layers;
        let wanted: Vec<usize> =
            (0..layers.len()).filter(|i| !self.pool.paths.layer(&layers[*i].chain).exists()).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let total: u64 = wanted.iter().fold(0, |sum, i| layers[*i].blob.size.saturating_add(sum));
        if total > self.import_limits()?.bytes {
            return Err(Error::io("make room for", scratch)(std::io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        let mut summary = Summary::default();
        let mut fetching = opened.fetch(wanted.clone(), scratch)?;
        observer.step("fetching", Some(total));
        let (count, mut unpacking) = (wanted.len() as u64, false);
        for (done, i) in (0..).zip(wanted) {
            let advance = |bytes| observer.advance(if unpacking { done } else { bytes });
            let blob = fetching.wait(i, signals, &advance)?;
            if !unpacking && fetching.has_ended() {
                // What is left to wait for is another thing.
                observer.step("unpacking layers", Some(count));
                unpacking = true;
            }
            if unpacking {
                observer.advance(done);
            }
            fault::point("base-pull.fetched")?;
            let below = i.checked_sub(1).map(|below| &layers[below].chain);
            let what = format!("layer {} of {what}", i + 1);
            summary.add(&self.add_layer(&what, &layers[i], below, (&blob, signals))?);
        }
        make::report(&summary, observer);
        Ok(())
    }

    fn add_layer(
        &self,
        what: &str,
        layer: &Layer,
        below: Option<&Digest>,
        (blob, signals): (&Path, &Held),
    ) -> Result<Summary> {
        let stage = self.pool.stage()?;
        let draft = stage.path().join("draft");
        match below {
            Some(below) => btrfs::snapshot(&self.pool.paths.layer(below).join("root"), &draft)?,
            None => {
                btrfs::create(&draft)?;
                make::set_top(&draft)?;
            }
        }
        let file = File::open(blob).map_err(Error::io("open", blob))?;
        let (limits, program) = (self.import_limits()?, self.reader()?);
        let stop = Some(signals.as_fd());
        let options = unpack::Options { what, limits, program, progress: &|_| {}, stop };
        let archive = file.try_clone().map_err(Error::io("open", blob))?;
        let (summary, found) = unpack::apply(archive, &draft, &options)?;
        if found != layer.diff_id {
            let why = format!("it is not what it should be: {found}, and not {}", layer.diff_id);
            return Err(Error::Image { what: what.to_owned(), why });
        }
        fault::point("base-pull.after-unpack")?;
        file.sync_all().map_err(Error::io("sync", blob))?;
        let kept = stage.path().join("blob");
        std::fs::rename(blob, &kept).map_err(Error::io("keep", blob))?;
        let record = LayerRecord {
            version: FORMAT,
            created: chrono::Utc::now(),
            parent: below.cloned(),
            diff_id: layer.diff_id.clone(),
            digest: layer.blob.digest.clone(),
            size: layer.blob.size,
            media_type: layer.blob.media_type.clone(),
            rest: Default::default(),
        };
        stage.write("layer.json", &record)?;
        // A snapshot of it, and not itself made read-only: the one is durable when it is made, the other is not.
        btrfs::snapshot_read_only(&draft, &stage.path().join("root"))?;
        stage::destroy(&draft)?;
        fault::point("base-pull.layer-staged")?;
        self.publish_image_part(stage, &self.pool.paths.layer(&layer.chain))?;
        fault::point("base-pull.layer-published")?;
        Ok(summary)
    }

    /// Keeps an image's manifest and configuration, as they came.
    pub(super) fn keep_manifest(&self, reference: &str, image: &Image) -> Result<()> {
        let dir = self.pool.paths.manifest(&image.digest);
        if dir.exists() {
            return Ok(());
        }
        let stage = self.pool.stage()?;
        for (name, bytes) in [("manifest.json", &image.manifest), ("config.json", &image.config)] {
            let path = stage.path().join(name);
            sys::file::create_synced(&path, bytes).map_err(Error::io("write", &path))?;
        }
        let record = ManifestRecord {
            version: FORMAT,
            created: chrono::Utc::now(),
            reference: reference.to_owned(),
            media_type: image.media_type.clone(),
            chains: image.layers.iter().map(|layer| layer.chain.clone()).collect(),
            rest: Default::default(),
        };
        stage.write("image.json", &record)?;
        self.publish_image_part(stage, &dir)
    }

    /// Gives what is staged its name. One that is there is the same: its name is its digest.
    fn publish_image_part(&self, stage: Stage, dir: &Path) -> Result<()> {
        if let Err(_same) = stage.try_publish(dir)? {
            return Ok(());
        }
        let all = dir.parent().unwrap_or(dir);
        sys::file::sync_dir(all).map_err(Error::io("sync", all))
    }

    /// Collects layers and manifests that nothing was made from which is still there.
    pub(in crate::ops) fn gc_images(&self, collection: &mut Collection) -> Result<()> {
        let paths = &self.pool.paths;
        // Somebody who pulls holds it, and has layers that no base needs yet.
        let Ok(Some(_lock)) = sys::flock::try_lock_dir(&paths.images()) else { return Ok(()) };
        let Some(needed) = self.needed_images()? else { return Ok(()) };
        let (mut chains, mut owners) = (HashSet::new(), Vec::new());
        for dir in dirs(&paths.manifests())? {
            let read: Option<ManifestRecord> = record::read(&dir.join("image.json"))?;
            let Some(record) = read else { continue };
            if needed.iter().any(|digest| paths.manifest(digest) == dir) {
                chains.extend(record.chains.iter().map(|chain| paths.layer(chain)));
                continue;
            }
            let owner = format!("image {}", record.reference);
            collection.free(Item::new("manifest of an image", &owner, &dir), || self.remove_part(&dir));
            owners.push((owner, record.chains));
        }
        for dir in dirs(&paths.layers())? {
            if chains.contains(&dir) {
                continue;
            }
            let has = |chains: &[Digest]| chains.iter().any(|chain| paths.layer(chain) == dir);
            let owner = owners.iter().find(|(_, chains)| has(chains)).map(|(owner, _)| owner.as_str());
            let owner = owner.unwrap_or("an image that is not there");
            collection.free(Item::new("layer of an image", owner, &dir), || self.remove_part(&dir));
        }
        Ok(())
    }

    fn remove_part(&self, dir: &Path) -> Result<()> {
        let Some(_lock) = self.pool.lock(dir, Mode::Exclusive)? else { return Ok(()) };
        self.pool.remove(dir, || Ok(()))
    }

    /// The manifests of all images that a base or a spark was made from. None if that cannot be told: a record that
    /// cannot be read may be mended.
    fn needed_images(&self) -> Result<Option<Vec<Digest>>> {
        let mut needed = Vec::new();
        let mut note = |image: Option<FromImage>| needed.extend(image.map(|image| image.digest));
        for base in names_in(&self.pool.paths.bases())? {
            match record::read::<BaseRecord>(&self.pool.paths.base(&base).join("base.json")) {
                Ok(record) => note(record.and_then(|record| record.image)),
                Err(_) => return Ok(None),
            }
        }
        let mut sparks: Vec<PathBuf> = self.pool.trashed()?.into_iter().map(|entry| entry.path).collect();
        for project in names_in(&self.pool.paths.projects())? {
            sparks.extend(self.sparks_of(&project)?.iter().map(|spark| self.dir(spark)));
        }
        for spark in sparks {
            match record::read::<SparkRecord>(&spark.join("spark.json")) {
                Ok(record) => note(record.and_then(|record| record.options.image)),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(needed))
    }
}

fn dirs(path: &Path) -> Result<Vec<PathBuf>> {
    let mut all = super::super::gc::entries(path)?;
    all.sort();
    Ok(all)
}
