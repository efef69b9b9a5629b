//! Writing a bundle to `/run`: the configuration, mount points, `/etc` files and the compiled filter.

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use sha2::{Digest as _, Sha256};

use super::spec::{Bundle, Input, hostname};
use super::{etc, seccomp};
use crate::error::{Error, Result};
use crate::sys;

/// The compiled filter, in the bundle's directory.
pub const FILTER: &str = "seccomp.bpf";
/// What the runtime library is given, below the bundle's directory.
pub const INNER: &str = "libcontainer";

/// Writes a bundle. `inner` is the configuration for the runtime library, whose root is absolute.
///
/// Directories are searchable by all: the spark's root is nobody on the host and has to get to its mount points.
pub fn write(bundle: &Bundle, inner: &mut Spec, input: &Input<'_>) -> Result<Vec<u8>> {
    let dir = input.dir;
    make(dir, 0o711)?;
    for sub in ["root", "etc"] {
        make(&dir.join(sub), 0o755)?;
    }
    make(&dir.join(INNER), 0o700)?;
    let host = hostname(input.options, input.name);
    let content = |file| etc::content(file, &host, input.id, input.options.network, input.resolv);
    let mut files: Vec<_> = etc::FILES.iter().map(|file| (*file, Cow::from(content(file)))).collect();
    files.extend(bundle.profile.as_deref().map(|profile| (etc::PROFILE, profile.into())));
    for (file, content) in files {
        let path = dir.join("etc").join(file);
        put(&path, content.as_bytes(), 0o644)?;
        chown(&path, Some(input.first_id), Some(input.first_id))
            .map_err(Error::io("change the owner of", &path))?;
    }
    if let Some(root) = inner.root_mut() {
        root.set_path(dir.join("root"));
    }
    put(&dir.join("config.json"), &json(&bundle.spec)?, 0o600)?;
    let inner = serde_json::to_vec(inner)
        .map_err(|e| Error::Sys { action: "write config.json", source: e.into() })?;
    put(&dir.join(INNER).join("config.json"), &inner, 0o600)?;
    let filter = filter_of(&bundle.spec, dir)?;
    put(&dir.join(FILTER), &filter, 0o600)?;
    Ok(filter)
}

/// Reads the process of a written bundle, and the filter. The rest of the configuration is most of it, and passed over.
pub fn read(dir: &Path) -> Result<(Process, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct OfProcess {
        process: Process,
    }
    let path = dir.join("config.json");
    let damaged = |path: &Path, why: String| Error::Corrupt {
        path: path.to_owned(),
        why,
        hint: Some("it is made anew when the spark is stopped and resumed".into()),
    };
    let content = |path: &Path| {
        fs::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => damaged(path, "it is missing".into()),
            _ => Error::io("read", path)(e),
        })
    };
    let OfProcess { process } =
        serde_json::from_slice(&content(&path)?).map_err(|e| damaged(&path, e.to_string()))?;
    let filter = content(&dir.join(FILTER))?;
    Ok((process, filter))
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    sys::file::make_dirs(dir, mode).map_err(Error::io("create", dir))
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut f| {
            // No umask has a say in it.
            f.set_permissions(PermissionsExt::from_mode(mode))?;
            f.write_all(content)
        })
        .map_err(Error::io("write", path))
}

fn json(spec: &Spec) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(spec).map_err(|e| Error::Sys { action: "write config.json", source: e.into() })
}

/// Compiling takes milliseconds, and sparks of one template share the filter: kept below `SPARK_RUN`.
fn filter_of(spec: &Spec, dir: &Path) -> Result<Vec<u8>> {
    let Some(profile) = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) else {
        return Err(Error::NotSupported { what: "the bundle has no system call filter".into(), hint: None });
    };
    let text = serde_json::to_vec(profile)
        .map_err(|e| Error::Sys { action: "describe the filter", source: e.into() })?;
    let name = cached_as(env!("CARGO_PKG_VERSION"), &text);
    let cache = dir.ancestors().nth(2).unwrap_or(dir).join("filters");
    let path = cache.join(name);
    if let Ok(found) = fs::read(&path) {
        return Ok(found);
    }
    if seccomp::notifies(profile) {
        let what = "a spark's system call filter cannot ask another process (SCMP_ACT_NOTIFY)".into();
        return Err(Error::NotSupported { what, hint: None });
    }
    let filter = seccomp::compile(profile)?;
    make(&cache, 0o700)?;
    sys::file::replace_volatile(&path, &filter).map_err(Error::io("write", &path))?;
    Ok(filter)
}

/// The name of a compiled filter in the cache: the SHA-256 of our version, a zero byte, and the profile. Whoever brings a bundle
/// chooses the profile, and must not find one that gets another's filter.
fn cached_as(version: &str, profile: &[u8]) -> String {
    let digest = Sha256::new().chain_update(version).chain_update([0]).chain_update(profile);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(forbidden: &str) -> Spec {
        let profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": [forbidden], "action": "SCMP_ACT_ERRNO" }],
        });
        let spec = serde_json::json!({ "ociVersion": "1.0.2", "linux": { "seccomp": profile } });
        serde_json::from_value(spec).unwrap()
    }

    /// The number is what `printf '1.2.3\0{}' | sha256sum` says.
    #[test]
    fn a_filter_is_cached_by_the_sha_256_of_the_version_and_of_its_profile() {
        let expected = "90bb3097feebdde13a2d5eb779229e3f8ebcc1a0f4b72fc72914f08966db5a73";
        assert_eq!(cached_as("1.2.3", b"{}"), expected);
        let run = tempfile::tempdir().unwrap();
        let bundle = run.path().join("sparks/one");
        let filters = run.path().join("filters");
        let cached = || {
            let entries = fs::read_dir(&filters).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        let profile = |spec: &Spec| serde_json::to_vec(spec.linux().as_ref().unwrap().seccomp()).unwrap();
        let (mount, reboot) = (spec("mount"), spec("reboot"));
        let filter = filter_of(&mount, &bundle).unwrap();
        assert_ne!(filter, filter_of(&reboot, &bundle).unwrap());
        let mut names = [&mount, &reboot].map(|spec| cached_as(env!("CARGO_PKG_VERSION"), &profile(spec)));
        names.sort();
        assert_eq!(cached(), names);
        assert_eq!(filter_of(&mount, &bundle).unwrap(), filter);
        assert_eq!(cached(), names);
    }
}
