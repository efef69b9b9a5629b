//! What `docker save` and `podman save` write: `manifest.json`, configurations, and layers as tar archives.

use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::blobs::{Files, unreadable};
use super::json;
use super::manifest::{
    Config, Descriptor, MOST, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of, shown,
};
use crate::image::reading::{Plain, Source};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Vec<String>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Finds the image of a name; the only one if none is given. Returns a manifest of ours, since there is none, the
/// configuration as it came, and the name of each layer's file. A layer may be compressed, and is taken without its
/// compression: what the configuration says of it is then the digest of its blob. `limit` is the most bytes of one, and
/// processes of `program` decompress.
pub(super) fn find(
    files: &Files,
    name: Option<&str>,
    limit: u64,
    program: &Path,
) -> Result<(Manifest, Vec<u8>, Vec<String>), String> {
    let text =
        files.read("manifest.json", MOST).map_err(|e| format!("it is not what `docker save` writes: {e}"))?;
    let items: Vec<Item> = json::read(&text).map_err(|e| format!("its manifest.json is damaged: {e}"))?;
    let item = choose(&items, name)?;
    let bytes = files.read(&item.config, MOST)?;
    let config = Config::parse(&bytes, item.layers.len())?;
    let mut layers = Vec::new();
    for (layer, diff_id) in item.layers.iter().zip(&config.rootfs.diff_ids) {
        let size = files.open(layer).and_then(|(from, size)| plain_size(from, size, limit, program));
        let size = size.map_err(|e| unreadable(layer, &e))?;
        layers.push(Descriptor::new(OCI_LAYER, diff_id.clone(), size));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor::new(OCI_CONFIG, digest_of(&bytes), bytes.len() as u64),
        layers,
        annotations: Default::default(),
    };
    Ok((manifest, bytes, item.layers.clone()))
}

/// The bytes of an archive without its compression.
fn plain_size(from: impl Source + 'static, size: u64, limit: u64, program: &Path) -> io::Result<u64> {
    match Plain::of(program, from)? {
        Plain::AsItIs(_) => Ok(size),
        plain => match io::copy(&mut plain.take(limit.saturating_add(1)), &mut io::sink())? {
            size if size > limit => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            size => Ok(size),
        },
    }
}

fn choose<'a>(items: &'a [Item], name: Option<&str>) -> Result<&'a Item, String> {
    let has = || {
        let names: Vec<String> = items.iter().flat_map(|i| &i.repo_tags).take(16).map(|n| shown(n)).collect();
        format!("it has: {}", names.join(", "))
    };
    match (name, items) {
        (_, []) => Err("it has no images".into()),
        (None, [one]) => Ok(one),
        (None, more) => Err(format!("it has {} images, and none was named; {}", more.len(), has())),
        (Some(name), items) => {
            // `app` is `app:latest`, and whatever registry was put before it.
            let tagged = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
                name.to_owned()
            } else {
                format!("{name}:latest")
            };
            let is = |tag: &String| *tag == tagged || tag.ends_with(&format!("/{tagged}"));
            let found = items.iter().find(|i| i.repo_tags.iter().any(is));
            found.ok_or_else(|| format!("it has no image `{}`; {}", shown(name), has()))
        }
    }
}
