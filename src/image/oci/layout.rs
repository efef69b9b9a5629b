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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::image::oci::manifest::PlatformField;

    #[test]
    fn entries_of_one_name_are_for_several_platforms_and_of_several_names_one_is_chosen() {
        let entry = |id: &str, name: Option<&str>, architecture: Option<&str>| Descriptor {
            annotations: name.map(|n| (REF_NAME.to_owned(), n.to_owned())).into_iter().collect(),
            platform: architecture.map(|a| PlatformField {
                architecture: a.into(),
                os: "linux".into(),
                variant: None,
            }),
            ..Descriptor::new("", digest_of(id.as_bytes()), 1)
        };
        let choose = |entries: &[Descriptor], tag: Option<&str>, platform: &str| {
            let index = Index { manifests: entries.to_vec(), ..Index::default() };
            super::entry(&index, tag, &platform.parse().unwrap()).map(|d| d.digest.clone())
        };
        let (amd, arm) = (entry("amd", None, Some("amd64")), entry("arm", None, Some("arm64")));
        for (platform, wanted) in [("linux/amd64", &amd), ("linux/arm64", &arm)] {
            let pair = [amd.clone(), arm.clone()];
            assert_eq!(choose(&pair, None, platform).unwrap(), wanted.digest);
            let named = pair.map(|d| Descriptor { annotations: entry("", Some("v"), None).annotations, ..d });
            assert_eq!(choose(&named, Some("v"), platform).unwrap(), wanted.digest);
            assert_eq!(choose(&named, None, platform).unwrap(), wanted.digest);
        }
        // A single one is taken for what it is.
        assert_eq!(choose(std::slice::from_ref(&arm), None, "linux/amd64").unwrap(), arm.digest);
        assert!(
            choose(&[amd.clone(), arm], None, "linux/s390x")
                .unwrap_err()
                .contains("linux/amd64, linux/arm64")
        );
        // One name twice: the same image is one, and the first is taken if the name was given, as skopeo does.
        let (v, w, again) =
            (entry("v", Some("v"), None), entry("w", Some("w"), None), entry("x", Some("v"), None));
        assert_eq!(choose(&[v.clone(), v.clone()], None, "linux/amd64").unwrap(), v.digest);
        assert_eq!(choose(&[v.clone(), again.clone()], Some("v"), "linux/amd64").unwrap(), v.digest);
        let why = choose(&[v.clone(), again, w.clone()], None, "linux/amd64").unwrap_err();
        assert_eq!(why, "it has 3 images, and none was named; it has: v, w");
        assert_eq!(
            choose(&[v.clone(), w], Some("x"), "linux/amd64").unwrap_err(),
            "it has no image `x`; it has: v, w"
        );
        assert!(choose(&[amd, v], None, "linux/amd64").unwrap_err().contains("none was named"));
    }
}
