//! The OCI image layout, in a directory or in an archive: `oci-layout`, `index.json` and `blobs/sha256/`.

use super::blobs::Files;
use super::manifest::{Descriptor, Document, Index, MOST, Manifest, REF_NAME, digest_of, parse, shown};
use crate::domain::image::{Digest, Platform};

/// Where a layout has a blob.
pub(super) fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read(files: &Files, wanted: &Descriptor) -> Result<Vec<u8>, String> {
    let bytes = files.read(&blob(&wanted.digest), MOST)?;
    if digest_of(&bytes) != wanted.digest || bytes.len() as u64 != wanted.size {
        return Err(format!("its {} is something else", wanted.digest));
    }
    Ok(bytes)
}

/// Finds the image of a name; the only one if none is given. Returns the manifest and the configuration, as they came.
pub(super) fn find(
    files: &Files,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<(Vec<u8>, Manifest, Vec<u8>), String> {
    files.read("oci-layout", 4096).map_err(|e| format!("it is not in the OCI image layout: {e}"))?;
    let index: Index = serde_json::from_slice(&files.read("index.json", MOST)?)
        .map_err(|e| format!("its index is damaged: {e}"))?;
    let mut wanted = entry(&index, tag)?.clone();
    // An index may be in an index, as `podman` writes it. More of them are a game.
    for _ in 0..3 {
        let bytes = read(files, &wanted)?;
        match parse(&bytes)? {
            Document::Index(inner) => wanted = inner.choose(platform)?.clone(),
            Document::Manifest(manifest) => {
                let config = read(files, &manifest.config)?;
                return Ok((bytes, manifest, config));
            }
        }
    }
    Err("its indexes lead on and on".into())
}

fn entry<'a>(index: &'a Index, tag: Option<&str>) -> Result<&'a Descriptor, String> {
    let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
    let has = || {
        let names: Vec<String> =
            index.manifests.iter().filter_map(name).map(|n| shown(&n)).take(16).collect();
        if names.is_empty() { "none has a name".to_owned() } else { format!("it has: {}", names.join(", ")) }
    };
    match tag {
        Some(tag) => {
            let found = index.manifests.iter().find(|d| name(d).as_deref() == Some(tag));
            found.ok_or_else(|| format!("it has no image `{}`; {}", shown(tag), has()))
        }
        None => match index.manifests.as_slice() {
            [] => Err("it has no images".into()),
            [one] => Ok(one),
            more => Err(format!("it has {} images, and none was named; {}", more.len(), has())),
        },
    }
}
