//! Manifests, indexes and configurations of images: what is read of them, and what is refused.
//!
//! The OCI image specification and docker's second schema differ in the names of their media types only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::json;
use crate::domain::image::{Digest, ImageConfig, Platform};
use crate::domain::options::{check_place, parse_env, parse_inside};
use crate::domain::signal;

/// Most bytes of a manifest, an index or a configuration, as registries have it.
pub const MOST: u64 = 4 << 20;
/// Most layers: twice what docker allows.
const LAYERS: usize = 256;
/// Most volumes: far more than any image has.
const MOST_VOLUMES: usize = 128;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Hashes bytes at hand.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of_hash(&Sha256::digest(bytes))
}

/// What points to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformField>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// One that says no more than it has to.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A platform as an index has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformField {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The name under which a layout has an image.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Several images under one name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

impl Descriptor {
    /// The platform that an index gives it. Without a system or an architecture it is none.
    pub(super) fn platform(&self) -> Option<&PlatformField> {
        self.platform.as_ref().filter(|p| !p.os.is_empty() || !p.architecture.is_empty())
    }
}

/// The first entry of an index that fits best: of the platform with its variant, without one, or of any variant where
/// none was named; else the first entry that names no platform, as podman has it.
pub(super) fn choose<'a>(entries: &[&'a Descriptor], platform: &Platform) -> Result<&'a Descriptor, String> {
    let fits = |d: &&&Descriptor| {
        d.platform().is_some_and(|p| p.os == "linux" && p.architecture == platform.architecture)
    };
    let variant = |d: &Descriptor| d.platform().and_then(|p| p.variant.clone());
    let all: Vec<&Descriptor> = entries.iter().filter(fits).copied().collect();
    let exact = all.iter().find(|d| variant(d) == platform.variant);
    let plain = all.iter().find(|d| variant(d).is_none());
    let for_any = entries.iter().find(|d| d.platform().is_none());
    if let Some(found) = exact.or(plain).or(all.first()).or(for_any) {
        return Ok(found);
    }
    let has = entries.iter().filter_map(|d| d.platform()).filter(|p| p.os != "unknown");
    let has: BTreeSet<String> = has
        .take(16)
        .map(|p| {
            let variant = p.variant.iter().map(|v| format!("/{}", shown(v))).collect::<String>();
            format!("{}/{}{variant}", shown(&p.os), shown(&p.architecture))
        })
        .collect();
    match has.is_empty() {
        true => Err(format!("it has no image for {platform}")),
        false => Err(format!(
            "it is not for {platform}, but for: {}",
            has.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
}

/// What an image consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Of an image's configuration, what is used here.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    config: Option<Run>,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
}

/// Text of somebody else, for an error.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}

/// What a document is: an index, or one image.
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// Reads a manifest or an index, and says which by its content: a media type outside of it can be a lie.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        schema_version: Option<u32>,
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<IgnoredAny>,
        #[serde(default)]
        layers: Option<IgnoredAny>,
    }
    let damaged = |e: String| format!("its manifest is damaged: {e}");
    let kind: Kind = json::read(bytes).map_err(damaged)?;
    if kind.schema_version == Some(1) {
        return Err("its manifest is of docker's first schema, which nothing writes any more".into());
    }
    // One that is both would be read as one thing here and as another there (CVE-2021-41190).
    match (kind.manifests.is_some(), kind.layers.is_some()) {
        (true, true) => return Err("its manifest is an index too".into()),
        (false, false) => return Err("its manifest is neither an image nor an index of some".into()),
        _ => {}
    }
    let index = kind.manifests.is_some();
    let wanted = if index { [OCI_INDEX, DOCKER_INDEX] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
    if let Some(media_type) = kind.media_type.as_deref().filter(|t| !wanted.contains(t)) {
        return Err(format!("its manifest is of a kind that is not known: {}", shown(media_type)));
    }
    if index {
        return json::read(bytes).map(Document::Index).map_err(damaged);
    }
    let manifest: Manifest = json::read(bytes).map_err(damaged)?;
    if manifest.layers.len() > LAYERS {
        return Err(format!("it has {} layers, and {LAYERS} are the most", manifest.layers.len()));
    }
    for layer in &manifest.layers {
        let plain = [OCI_LAYER, DOCKER_LAYER].iter().any(|kind| {
            let rest = layer.media_type.strip_prefix(kind);
            rest.is_some_and(|rest| matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd"))
        });
        if !plain {
            return Err(format!(
                "a layer of it is of a kind that is not known: {}",
                shown(&layer.media_type)
            ));
        }
    }
    if manifest.config.size > MOST {
        return Err("its configuration is too large".into());
    }
    Ok(Document::Manifest(manifest))
}

impl Config {
    /// Reads one, for a manifest of so many layers.
    pub(super) fn parse(bytes: &[u8], layers: usize) -> Result<Config, String> {
        let config: Config = json::read(bytes).map_err(|e| format!("its configuration is damaged: {e}"))?;
        if config.rootfs.diff_ids.len() != layers {
            return Err(format!(
                "its manifest has {layers} layers and its configuration {}",
                config.rootfs.diff_ids.len()
            ));
        }
        if !config.os.is_empty() && config.os != "linux" {
            return Err(format!("it is for {}, and not for linux", shown(&config.os)));
        }
        Ok(config)
    }

    /// What a spark gets from it. What no command line would have taken is left out, and told.
    pub fn run(&self) -> (ImageConfig, Vec<String>) {
        let run = self.config.clone().unwrap_or_default();
        let (mut out, mut odd) = (ImageConfig::default(), Vec::new());
        for variable in run.env.unwrap_or_default() {
            match parse_env(&variable) {
                Ok((key, value)) => drop(out.env.insert(key, value)),
                Err(why) => odd.push(format!("an environment variable of the image was left out: {why}")),
            }
        }
        let workdir = run.working_dir.filter(|dir| !dir.is_empty() && dir != "/");
        match workdir.as_deref().map(parse_inside).transpose() {
            Ok(dir) => out.workdir = dir,
            Err(why) => odd.push(format!("the image's working directory was left out: {why}")),
        }
        out.user = run.user.filter(|user| !user.is_empty());
        if out.user.as_ref().is_some_and(|u| u.len() > 256 || u.chars().any(char::is_control)) {
            out.user = None;
            odd.push("the image's user was left out: it is none".into());
        }
        let whole = |argv: Option<Vec<String>>| -> Vec<String> {
            argv.unwrap_or_default().into_iter().filter(|arg| !arg.contains('\0')).collect()
        };
        (out.entrypoint, out.cmd) = (whole(run.entrypoint), whole(run.cmd));
        out.exposed_ports = run.exposed_ports.unwrap_or_default().into_keys().collect();
        for volume in run.volumes.unwrap_or_default().into_keys() {
            match check_place("its path", Path::new(&volume)) {
                Ok(()) => out.volumes.push(volume),
                Err(why) => odd.push(format!("a volume of the image was left out: {why}")),
            }
        }
        if out.volumes.len() > MOST_VOLUMES {
            out.volumes.truncate(MOST_VOLUMES);
            odd.push(format!("the image has more than {MOST_VOLUMES} volumes: the others were left out"));
        }
        let signal = run.stop_signal.filter(|signal| !signal.is_empty());
        match signal.as_deref().map(signal::number).transpose() {
            Ok(Some(0)) | Err(_) => odd.push("the image's stop signal was left out: it is none".into()),
            Ok(_) => out.stop_signal = signal,
        }
        (out, odd)
    }
}

/// The chain of each layer: a name for it and all those below it.
pub fn chains(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        };
        chains.push(chain);
    }
    chains
}

/// The name of a media type in the OCI's words.
pub(super) fn oci_type(media_type: &str) -> String {
    match media_type.strip_prefix(DOCKER_LAYER) {
        Some(rest) => format!("{OCI_LAYER}{}", rest.replace('.', "+")),
        None => media_type.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn descriptor(kind: &str) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":1}}"#, "a".repeat(64))
    }

    #[test]
    fn a_manifest_that_is_two_things_is_refused() {
        let (config, layer) = (descriptor(OCI_CONFIG), descriptor(&format!("{OCI_LAYER}+gzip")));
        let image = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        assert!(matches!(parse(image.as_bytes()), Ok(Document::Manifest(_))));
        let both = image.replacen('{', r#"{"manifests":[],"#, 1);
        let docker = image.replacen('{', &format!(r#"{{"mediaType":"{DOCKER_INDEX}","#), 1);
        let odd = image.replace("+gzip", "+encrypted");
        let first = image.replace("\"schemaVersion\":2", "\"schemaVersion\":1");
        for bad in [both, docker, odd, first, "{}".into(), "[".into()] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_an_index_the_platform_with_its_variant_is_taken_and_attestations_are_not() {
        let of = |os: &str, arch: &str, variant: Option<&str>| Descriptor {
            platform: Some(PlatformField {
                architecture: arch.into(),
                os: os.into(),
                variant: variant.map(str::to_owned),
            }),
            ..Descriptor::new(OCI_MANIFEST, digest_of(format!("{arch}{variant:?}").as_bytes()), 1)
        };
        let manifests = vec![
            of("unknown", "unknown", None),
            of("linux", "arm", Some("v6")),
            of("linux", "arm", Some("v7")),
        ];
        let index = Index { schema_version: 2, media_type: None, manifests };
        let entries: Vec<&Descriptor> = index.manifests.iter().collect();
        let choose = |text: &str| choose(&entries, &text.parse().unwrap()).map(|d| d.digest.clone());
        assert_eq!(choose("linux/arm/v7").unwrap(), index.manifests[2].digest);
        assert_eq!(choose("linux/arm").unwrap(), index.manifests[1].digest);
        let why = choose("linux/amd64").unwrap_err();
        assert_eq!(why, "it is not for linux/amd64, but for: linux/arm/v6, linux/arm/v7");
        let nowhere = super::choose(&entries[..1], &"linux/amd64".parse().unwrap()).unwrap_err();
        assert_eq!(nowhere, "it has no image for linux/amd64");
        // An entry without a platform is taken where no other fits.
        let any = Descriptor::new(OCI_MANIFEST, digest_of(b"any"), 1);
        let chosen = super::choose(&[entries[0], entries[1], &any], &"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!(chosen.digest, any.digest);
    }

    #[test]
    fn chains_are_those_of_the_specification() {
        let id = |c: &str| format!("sha256:{}", c.repeat(64)).parse::<Digest>().unwrap();
        let chains = chains(&[id("a"), id("b")]);
        assert_eq!(chains[0], id("a"));
        assert_eq!(chains[1], digest_of(format!("{} {}", id("a"), id("b")).as_bytes()));
    }

    #[test]
    fn what_no_command_line_takes_is_left_out_of_a_configuration() {
        let text = r#"{"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{"Env":["A=b=c","nope"],
            "WorkingDir":"rel","User":"a\u0007","Cmd":["x","y\u0000"],"ExposedPorts":{"80/tcp":{}},"Volumes":null}}"#;
        let (run, odd) = Config::parse(text.as_bytes(), 0).unwrap().run();
        assert_eq!(run.env, BTreeMap::from([("A".to_owned(), "b=c".to_owned())]));
        assert_eq!(run.command(), ["x"]);
        assert_eq!((run.workdir, run.user), (None, None));
        assert_eq!((run.exposed_ports, odd.len()), (vec!["80/tcp".to_owned()], 3));
        assert!(Config::parse(text.as_bytes(), 1).is_err());
        assert!(Config::parse(text.replace("linux", "windows").as_bytes(), 0).is_err());
    }
}
