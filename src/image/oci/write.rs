//! Images as they go out: a manifest and configuration of what there was and one layer more, written to a layout, to an
//! archive, or ready for a registry.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::blobs::Files;
use super::layout::blob;
use super::manifest::{
    DOCKER_MANIFEST, Descriptor, Index, MOST, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, REF_NAME, digest_of,
    oci_type,
};
use crate::domain::image::{Digest, Platform};
use crate::image::pack::Packer;
use crate::image::reading::Plain;
use crate::sys::output::Output;

/// A finished image, its layers in files.
#[derive(Debug)]
pub struct Whole {
    pub manifest: Vec<u8>,
    pub media_type: String,
    pub config: Vec<u8>,
    /// The lowest first.
    pub layers: Vec<(Descriptor, PathBuf)>,
}

/// A layer that was packed.
#[derive(Debug)]
pub struct NewLayer {
    pub diff_id: Digest,
    pub digest: Digest,
    pub size: u64,
    pub path: PathBuf,
    /// When, and how it came to be, for the image's history: given, so that the same layer makes the same image.
    pub created: String,
    pub created_by: String,
}

/// Writes and hashes.
#[derive(Debug)]
struct Hashed<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn new(out: W) -> Hashed<W> {
        Hashed { out, hash: Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A layer while it is packed: the archive goes in.
#[derive(Debug)]
pub struct LayerFile {
    inner: Hashed<GzEncoder<Hashed<io::BufWriter<File>>>>,
    path: PathBuf,
}

impl LayerFile {
    /// Begins a new file.
    pub fn create(path: &Path) -> io::Result<LayerFile> {
        let file = Hashed::new(io::BufWriter::with_capacity(256 << 10, File::create(path)?));
        // No time, no name, and no system that would tell one host's from another's.
        let zip = GzBuilder::new().mtime(0).operating_system(255).write(file, Compression::new(6));
        Ok(LayerFile { inner: Hashed::new(zip), path: path.to_owned() })
    }

    /// The end of it.
    pub fn finish(self, created: String, created_by: String) -> io::Result<NewLayer> {
        let diff_id = Digest::of_hash(&self.inner.hash.finalize());
        let mut file = self.inner.out.finish()?;
        file.flush()?;
        let digest = Digest::of_hash(&file.hash.finalize());
        Ok(NewLayer { diff_id, digest, size: file.size, path: self.path, created, created_by })
    }
}

impl Write for LayerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Whole {
    /// The image of a manifest and a configuration, with the layers that are here. The pool has each layer once, with
    /// the compression that it came with first. A manifest that names another compression of a layer is rewritten
    /// to name the blob that is here, so that an image never refers to a blob that it does not contain. Returns how many
    /// layers that were.
    ///
    /// # Errors
    /// If the manifest or the configuration is not JSON, or the manifest has another number of layers.
    pub fn new(
        manifest: Vec<u8>,
        media_type: String,
        config: Vec<u8>,
        layers: Vec<(Descriptor, PathBuf)>,
    ) -> serde_json::Result<(Whole, usize)> {
        let mut named: Value = serde_json::from_slice(&manifest)?;
        let blobs = named["layers"].as_array_mut().filter(|blobs| blobs.len() == layers.len());
        let blobs = blobs.ok_or_else(|| {
            serde::de::Error::custom(format!(
                "the image has {} layers, and its manifest has not",
                layers.len()
            ))
        })?;
        let mut others = 0;
        for (blob, (here, _)) in blobs.iter_mut().zip(&layers) {
            if blob["digest"] != json!(here.digest) {
                // Annotations describe the bytes of the other blob, such as the table of contents in it.
                *blob = serde_json::to_value(here)?;
                others += 1;
            }
        }
        let mut whole = Whole { manifest, media_type, config, layers };
        if others > 0 {
            whole.manifest = serde_json::to_vec(&named)?;
            // Docker's words have none for zstd.
            whole.use_oci_words(true)?;
        }
        Ok((whole, others))
    }

    /// An image of one layer.
    pub fn of(layer: NewLayer) -> serde_json::Result<Whole> {
        let platform = Platform::default();
        let config = json!({
            "created": layer.created,
            "architecture": platform.architecture,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["/bin/sh"],
            },
            "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [],
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG },
            "layers": [],
        });
        let media_type = OCI_MANIFEST.to_owned();
        let empty = Whole { manifest: Vec::new(), media_type, config: Vec::new(), layers: Vec::new() };
        empty.with(manifest, config, layer)
    }

    /// The image with a layer upon those that it has.
    pub fn and(self, layer: NewLayer) -> serde_json::Result<Whole> {
        let manifest = serde_json::from_slice(&self.manifest)?;
        let config = serde_json::from_slice(&self.config)?;
        self.with(manifest, config, layer)
    }

    /// The image with a layer in the place of those that it has.
    pub fn instead(mut self, layer: NewLayer) -> serde_json::Result<Whole> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest)?;
        let mut config: Value = serde_json::from_slice(&self.config)?;
        manifest["layers"] = json!([]);
        config["rootfs"]["diff_ids"] = json!([]);
        config["history"] = json!([]);
        self.layers.clear();
        self.with(manifest, config, layer)
    }

    fn with(mut self, mut manifest: Value, mut config: Value, layer: NewLayer) -> serde_json::Result<Whole> {
        config["created"] = json!(layer.created);
        push(&mut config["rootfs"]["diff_ids"], json!(layer.diff_id));
        complete_history(&mut config["history"], self.layers.len());
        let history = json!({ "created": layer.created, "created_by": layer.created_by });
        push(&mut config["history"], history);
        self.config = serde_json::to_vec(&config)?;
        let kind = match self.media_type == DOCKER_MANIFEST {
            true => "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
            false => format!("{OCI_LAYER}+gzip"),
        };
        let blob = Descriptor::new(&kind, layer.digest, layer.size);
        manifest["config"]["digest"] = json!(digest_of(&self.config));
        manifest["config"]["size"] = json!(self.config.len());
        push(&mut manifest["layers"], serde_json::to_value(&blob)?);
        self.layers.push((blob, layer.path));
        self.manifest = serde_json::to_vec(&manifest)?;
        Ok(self)
    }

    /// Puts the OCI's media types in the place of docker's. `force` does so for layers of a manifest that is the OCI's
    /// already.
    fn use_oci_words(&mut self, force: bool) -> serde_json::Result<()> {
        if self.media_type != DOCKER_MANIFEST && !force {
            return Ok(());
        }
        let mut manifest: Value = serde_json::from_slice(&self.manifest)?;
        manifest["mediaType"] = json!(OCI_MANIFEST);
        manifest["config"]["mediaType"] = json!(OCI_CONFIG);
        for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
            let kind = layer["mediaType"].as_str().map(oci_type);
            layer["mediaType"] = json!(kind);
        }
        self.manifest = serde_json::to_vec(&manifest)?;
        self.media_type = OCI_MANIFEST.into();
        Ok(())
    }

    /// What its configuration is known by.
    pub fn config_blob(&self) -> Descriptor {
        let kind = match self.media_type == DOCKER_MANIFEST {
            true => "application/vnd.docker.container.image.v1+json",
            false => OCI_CONFIG,
        };
        Descriptor::new(kind, digest_of(&self.config), self.config.len() as u64)
    }
}

/// Gives each of so many layers an entry of the history. Images may have no history, or one that is too short, and
/// readers of an image that is built upon them count the entries that have a layer.
fn complete_history(history: &mut Value, layers: usize) {
    let mut entries = match history.take() {
        Value::Array(entries) => entries,
        _ => Vec::new(),
    };
    let mut missing = layers;
    entries.retain(Value::is_object);
    for entry in entries.iter_mut().filter(|entry| entry["empty_layer"] != json!(true)) {
        match missing.checked_sub(1) {
            Some(left) => missing = left,
            None => entry["empty_layer"] = json!(true),
        }
    }
    entries.resize(entries.len() + missing, json!({}));
    *history = Value::Array(entries);
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = Value::Array(vec![item]),
    }
}

/// Does what it is given, as somebody else maybe.
pub type Doing<'a> = dyn Fn(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()> + 'a;

/// Writes an image into a layout, which is made if it is not there, under a name, which another image may have had. The
/// index is replaced last: until then nothing has changed. Layers' files are opened by who calls, and
/// everything is written by `write`.
pub fn layout(whole: Whole, dir: &Path, tag: &str, write: &Doing<'_>) -> io::Result<()> {
    let mut whole = whole;
    whole.use_oci_words(false)?;
    let blobs = dir.join("blobs/sha256");
    write(&mut || {
        std::fs::create_dir_all(&blobs)?;
        if !dir.join("oci-layout").exists() {
            replace(&dir.join("oci-layout"), &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
        }
        Ok(())
    })?;
    let at = |digest: &Digest| dir.join(blob(digest));
    for (layer, path) in &whole.layers {
        let mut file = File::open(path)?;
        write(&mut || match is_there(&at(&layer.digest), layer) {
            true => Ok(()),
            false => replace(&at(&layer.digest), &mut file),
        })?;
    }
    let manifest = Descriptor::new(OCI_MANIFEST, digest_of(&whole.manifest), whole.manifest.len() as u64);
    write(&mut || {
        replace(&at(&digest_of(&whole.config)), &mut &whole.config[..])?;
        replace(&at(&manifest.digest), &mut &whole.manifest[..])?;
        let mut index = match Files::dir(dir).map(|files| files.read("index.json", MOST)) {
            Ok(Ok(text)) => serde_json::from_slice::<Index>(&text)?,
            _ => Index { schema_version: 2, media_type: None, manifests: Vec::new() },
        };
        index.manifests.retain(|m| m.annotations.get(REF_NAME).is_none_or(|name| name != tag));
        let annotations = [(REF_NAME.to_owned(), tag.to_owned())].into();
        index.manifests.push(Descriptor { annotations, ..manifest.clone() });
        replace(&dir.join("index.json"), &mut &serde_json::to_vec(&index)?[..])
    })
}

/// Whether a blob is in a file, whole: what was interrupted or damaged may have its size.
fn is_there(path: &Path, blob: &Descriptor) -> bool {
    let hash = || -> io::Result<Digest> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() != blob.size {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut hashed = Hashed::new(io::sink());
        io::copy(&mut file.take(blob.size), &mut hashed)?;
        Ok(Digest::of_hash(&hashed.hash.finalize()))
    };
    hash().is_ok_and(|digest| digest == blob.digest)
}

/// Writes a file whole or not at all.
///
/// # Errors
/// `Unsupported` where something else than a file has the name: in a layout nothing else belongs there.
fn replace(path: &Path, from: &mut dyn Read) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        let what = format!("{} is not a regular file", path.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let new = Output::open(path)?;
    io::copy(from, &mut new.file())?;
    new.finish()
}

/// Writes an image as `docker save` does, under a name. Processes of `program` decompress its layers.
pub fn docker_archive(whole: &Whole, name: &str, program: &Path, out: impl Write) -> io::Result<()> {
    let config = digest_of(&whole.config);
    let config = format!("{}.json", config.hex());
    let mut packer = Packer::new(out);
    packer.file(&config, whole.config.len() as u64, &whole.config[..])?;
    let mut names = Vec::new();
    for (layer, path) in &whole.layers {
        let name = format!("{}.tar", layer.digest.hex());
        let open = || Plain::of(program, File::open(path)?);
        // Without compression, and its size comes first.
        let size = io::copy(&mut open()?, &mut io::sink())?;
        if !names.contains(&name) {
            packer.file(&name, size, open()?)?;
        }
        names.push(name);
    }
    let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": names }]);
    let manifest = serde_json::to_vec(&manifest)?;
    packer.file("manifest.json", manifest.len() as u64, &manifest[..])?;
    packer.finish()?.flush()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_given_one_entry_for_each_layer() {
        let entry = |by: &str| json!({ "created_by": by });
        let empty = json!({ "created_by": "e", "empty_layer": true });
        for (history, layers, wanted) in [
            (Value::Null, 2, json!([{}, {}])),
            (json!("text"), 1, json!([{}])),
            (json!([]), 1, json!([{}])),
            (json!([null, entry("a")]), 2, json!([entry("a"), {}])),
            (json!([empty, entry("a"), empty]), 1, json!([empty, entry("a"), empty])),
            (
                json!([entry("a"), entry("b")]),
                1,
                json!([entry("a"), { "created_by": "b", "empty_layer": true }]),
            ),
        ] {
            let mut completed = history.clone();
            complete_history(&mut completed, layers);
            assert_eq!(completed, wanted, "{history} for {layers}");
        }
    }

    #[test]
    fn a_manifest_that_names_other_blobs_is_rewritten_to_those_that_are_here() {
        let digest = |text: &str| digest_of(text.as_bytes());
        let blob = |kind: &str, text: &str| Descriptor::new(kind, digest(text), text.len() as u64);
        let docker = "application/vnd.docker.image.rootfs.diff.tar";
        let zstd = json!({ "mediaType": format!("{OCI_LAYER}+zstd"), "digest": digest("z"), "size": 1,
            "annotations": { "toc": "of z" } });
        let manifest = json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": { "mediaType": "c" },
            "layers": [blob(docker, "a"), zstd] });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let whole = |second: Descriptor| {
            let layers = vec![(blob(docker, "a"), PathBuf::new()), (second, PathBuf::new())];
            Whole::new(bytes.clone(), DOCKER_MANIFEST.into(), b"{}".to_vec(), layers).unwrap()
        };
        let (same, others) = whole(blob(docker, "z"));
        assert_eq!((same.manifest, others), (bytes.clone(), 0), "unchanged, byte for byte");
        let (other, others) = whole(blob(docker, "plain"));
        let written: Value = serde_json::from_slice(&other.manifest).unwrap();
        assert_eq!((others, other.media_type.as_str()), (1, OCI_MANIFEST));
        assert_eq!(written["layers"], json!([blob(OCI_LAYER, "a"), blob(OCI_LAYER, "plain")]));
        let one = vec![(blob(docker, "a"), PathBuf::new())];
        assert!(Whole::new(bytes, DOCKER_MANIFEST.into(), Vec::new(), one).is_err());
    }
}
