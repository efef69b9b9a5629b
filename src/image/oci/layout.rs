//! The OCI image layout, in a directory or in an archive: `oci-layout`, `index.json` and `blobs/sha256/`.

use super::blobs::Files;
use super::json;
use super::manifest::{
    Descriptor, Document, Index, MOST, Manifest, REF_NAME, choose, digest_of, parse, shown,
};
use crate::domain::image::{Digest, Platform};
use std::collections::BTreeSet;

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
    let index: Index =
        json::read(&files.read("index.json", MOST)?).map_err(|e| format!("its index is damaged: {e}"))?;
    let mut wanted = entry(&index, tag, platform)?.clone();
    // An index may be in an index, as `podman` writes it. More of them are a game.
    for _ in 0..3 {
        let bytes = read(files, &wanted)?;
        match parse(&bytes)? {
            Document::Index(inner) => {
                wanted = choose(&inner.manifests.iter().collect::<Vec<_>>(), platform)?.clone();
            }
            Document::Manifest(manifest) => {
                let config = read(files, &manifest.config)?;
                return Ok((bytes, manifest, config));
            }
        }
    }
    Err("its indexes lead on and on".into())
}

/// The entry of a name; the only image if no name is given. Several entries of one name, or without any, are one image
/// for several platforms.
fn entry<'a>(index: &'a Index, tag: Option<&str>, platform: &Platform) -> Result<&'a Descriptor, String> {
    let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
    let names: BTreeSet<Option<String>> = index.manifests.iter().map(name).collect();
    let has = || {
        let shown: Vec<String> = names.iter().flatten().map(|n| shown(n)).take(16).collect();
        if shown.is_empty() { "none has a name".to_owned() } else { format!("it has: {}", shown.join(", ")) }
    };
    let of_name = |d: &&Descriptor| tag.is_none() || name(d).as_deref() == tag;
    let found: Vec<&Descriptor> = index.manifests.iter().filter(of_name).collect();
    match (found.as_slice(), tag) {
        ([], Some(tag)) => Err(format!("it has no image `{}`; {}", shown(tag), has())),
        ([], None) => Err("it has no images".into()),
        ([one], _) => Ok(one),
        (several, _)
            if several.iter().any(|d| d.platform().is_some()) && (tag.is_some() || names.len() == 1) =>
        {
            choose(several, platform)
        }
        ([first, ..], Some(_)) => Ok(first),
        ([first, more @ ..], None) if more.iter().all(|d| d.digest == first.digest) => Ok(first),
        (several, None) => Err(format!("it has {} images, and none was named; {}", several.len(), has())),
    }
}
