//! Ranges of host ids: one per running spark, claimed for the whole host.
//!
//! Files are owned from 0 on disk, so a range belongs to a run and not to a spark. A claim is a file in a
//! directory that all installations of a host share; what a crash left is taken over by whoever wants it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::domain::ids::{FIRST, IDS, RANGES as COUNT};
use crate::error::{Error, Result};
use crate::sys;

/// The one place for the host. Not below `SPARK_RUN`: two installations must not meet in an id either.
const DIR: &str = "/run/spark-ids";

/// Claims a range for the spark whose bundle this is. Returns its first id.
pub fn claim(bundle: &Path) -> Result<u32> {
    let dir = Path::new(DIR);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir))?;
    let mut hasher = DefaultHasher::new();
    bundle.hash(&mut hasher);
    let start = (hasher.finish() % u64::from(COUNT)) as u32;
    let taken = subordinate_ids();
    let _lock = lock()?;
    for n in 0..COUNT {
        let index = (start + n) % COUNT;
        let first = FIRST + index * IDS;
        if taken.iter().any(|(from, to)| u64::from(first) < *to && *from < u64::from(first + IDS)) {
            continue;
        }
        if try_claim(&dir.join(index.to_string()), bundle)? {
            return Ok(first);
        }
    }
    Err(Error::Host {
        what: format!("all {COUNT} ranges of user ids are taken"),
        hint: "stop some sparks with `spark stop`".into(),
        source: None,
    })
}

/// Taken for every change: whoever looks under it sees no claim half-made, so an empty file is a crash's, and nobody
/// takes a range between the look at its holder and its release.
fn lock() -> Result<OwnedFd> {
    sys::flock::lock_dir(Path::new(DIR), sys::flock::Mode::Exclusive).map_err(Error::io("lock", DIR))
}

/// Claims one range, if it is free. The caller holds the lock.
fn try_claim(path: &Path, bundle: &Path) -> Result<bool> {
    match holder(path) {
        Some(owner) if owner == bundle => Ok(true),
        Some(owner) if !owner.as_os_str().is_empty() && owner.exists() => Ok(false),
        _ => {
            std::fs::write(path, bundle.as_os_str().as_encoded_bytes()).map_err(Error::io("claim", path))?;
            Ok(true)
        }
    }
}

fn holder(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    std::fs::read(path).ok().map(|b| PathBuf::from(std::ffi::OsString::from_vec(b)))
}

/// Gives a range back.
pub fn release(first: u32, bundle: &Path) {
    let path = Path::new(DIR).join((first.wrapping_sub(FIRST) / IDS).to_string());
    let Ok(_lock) = lock() else { return };
    if holder(&path).as_deref() == Some(bundle) {
        let _ = std::fs::remove_file(path);
    }
}

/// The range that a bundle has claimed, where its own record of that is lost.
pub fn claimed_by(bundle: &Path) -> Option<u32> {
    claims().find(|(_, holder)| holder == bundle).map(|(first, _)| first)
}

/// All claims of this host: first ids and bundles.
pub fn claims() -> impl Iterator<Item = (u32, PathBuf)> {
    std::fs::read_dir(DIR).into_iter().flatten().flatten().filter_map(|entry| {
        let index: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((FIRST.checked_add(index.checked_mul(IDS)?)?, holder(&entry.path())?))
    })
}

/// Ranges given to users of the host, as half-open intervals.
fn subordinate_ids() -> Vec<(u64, u64)> {
    ["/etc/subuid", "/etc/subgid"]
        .iter()
        .filter_map(|f| std::fs::read_to_string(f).ok())
        .flat_map(|text| text.lines().filter_map(parse_subordinate).collect::<Vec<_>>())
        .collect()
}

fn parse_subordinate(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(':').skip(1);
    let from: u64 = fields.next()?.parse().ok()?;
    let count: u64 = fields.next()?.parse().ok()?;
    Some((from, from + count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_subuid_is_an_interval() {
        assert_eq!(parse_subordinate("ann:100000:65536"), Some((100_000, 165_536)));
        assert_eq!(parse_subordinate("# nothing"), None);
    }
}
