//! Mounting a pool whose log btrfs cannot replay.
//!
//! The log holds what was synced since the last commit. If it is what keeps the filesystem from being mounted, it is
//! discarded: else nothing of the pool could be used. What that may have lost is told, as exactly as the log tells it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::image::run;
use super::{btrfs, names_in};
use crate::domain::place::{Place, PoolPaths, SparkPaths, VolumePaths};
use crate::error::{Error, Result};

/// The number of the tree that everything outside of sparks' roots and volumes is in.
const TOP: u64 = 5;

/// Mounts what the pool is on. Says what it did, if that took a repair.
pub fn mount(place: &Place, what: &OsStr, options: &str) -> Result<Option<String>> {
    let at = place.pool();
    let Err(first) = mount_with(what, options, &at) else { return Ok(None) };
    let Some(log) = device_of(what).and_then(|device| Some((log_root(&device)?, device))) else {
        return Err(first);
    };
    // Only if it mounts without the log, the log is the reason.
    let Ok(()) = mount_with(what, &format!("{options},ro,rescue=nologreplay"), &at) else {
        return Err(first);
    };
    let (root, device) = log;
    let lost = logged(root, &device).map(|trees| names_of(&trees, &PoolPaths { top: at.clone() }));
    let unmounted = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::NOFOLLOW);
    unmounted.map_err(|e| Error::io("unmount", &at)(e.into()))?;
    let mut discard = crate::sys::host::command("btrfs");
    discard.args(["rescue", "zero-log"]).arg(&device);
    run(discard, "install btrfs-progs: `apt-get install btrfs-progs`")?;
    mount_with(what, options, &at)?;
    let done = describe(lost);
    note(place, &done);
    Ok(Some(done))
}

fn mount_with(what: &OsStr, options: &str, at: &Path) -> Result<()> {
    let mut command = crate::sys::host::command("mount");
    command.args(["-t", "btrfs", "-o", options]).arg(what).arg(at);
    run(command, "the host cannot mount btrfs: see `spark doctor`").map(drop)
}

/// The file or device behind what is mounted.
fn device_of(what: &OsStr) -> Option<PathBuf> {
    match what.to_str().and_then(|text| text.strip_prefix("UUID=")) {
        None => Some(what.into()),
        Some(uuid) => {
            let mut find = crate::sys::host::command("blkid");
            find.args(["-U", uuid]);
            run(find, "blkid is part of util-linux").ok().map(|name| name.trim().into())
        }
    }
}

/// Where the log is, if the superblock has one. The layout is that of `struct btrfs_super_block` in
/// linux/btrfs_tree.h.
fn log_root(device: &Path) -> Option<u64> {
    const AT: u64 = 64 << 10;
    let mut block = [0; 0x68];
    File::open(device).ok()?.read_exact_at(&mut block, AT).ok()?;
    let number = |at: usize| Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?));
    let is_btrfs = block[0x40..0x48] == *b"_BHRfS_M";
    number(0x60).filter(|root| is_btrfs && *root != 0)
}

/// The trees that have something in the log. None if that cannot be told.
fn logged(root: u64, device: &Path) -> Option<BTreeSet<u64>> {
    let mut dump = crate::sys::host::command("btrfs");
    dump.args(["inspect-internal", "dump-tree", "--follow", "-b", &root.to_string()]).arg(device);
    Some(trees_in(&run(dump, "").ok()?))
}

/// Reads `item 0 key (TREE_LOG ROOT_ITEM 257) …` lines.
fn trees_in(dump: &str) -> BTreeSet<u64> {
    let of = |line: &str| line.split_once("(TREE_LOG ROOT_ITEM ")?.1.split_once(')')?.0.parse().ok();
    dump.lines().filter_map(of).collect()
}

/// What the trees are to a person.
fn names_of(trees: &BTreeSet<u64>, paths: &PoolPaths) -> Vec<String> {
    let is_logged = |path: PathBuf| btrfs::info(&path).is_ok_and(|info| trees.contains(&info.id));
    let mut names = Vec::new();
    for project in names_in(&paths.projects()).unwrap_or_default() {
        for spark in names_in(&paths.sparks(&project)).unwrap_or_default() {
            if is_logged(SparkPaths(&paths.spark(&project, &spark)).root()) {
                names.push(format!("spark `{project}/{spark}`"));
            }
        }
        for volume in names_in(&paths.volumes(&project)).unwrap_or_default() {
            if is_logged(VolumePaths(&paths.volume(&project, &volume)).fs()) {
                names.push(format!("data volume `{project}/{volume}`"));
            }
        }
    }
    if trees.contains(&TOP) {
        names.push("the last commands that made, changed, renamed or deleted something".into());
    }
    names
}

fn describe(lost: Option<Vec<String>>) -> String {
    let names = match lost {
        Some(names) if names.is_empty() => "nothing of a spark or a data volume".into(),
        Some(names) => names.join(", "),
        None => "any spark or data volume".into(),
    };
    format!(
        "the pool could not be mounted: btrfs cannot replay the log that a crash or a power cut left. The log was \
         discarded, and the pool is as at the last commit, some 30 seconds before at most. Writes that were synced \
         after that are lost, in: {names}"
    )
}

/// Keeps what was done, also for who did not see it. A pool that mounts is worth more than this.
fn note(place: &Place, done: &str) {
    let path = place.repairs();
    let written = OpenOptions::new().append(true).create(true).open(&path).and_then(|mut file| {
        writeln!(file, "{} {done}", chrono::Utc::now().to_rfc3339())?;
        file.sync_all()
    });
    if let Err(e) = written {
        tracing::warn!("cannot write {}: {e}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_in_a_log_are_read_from_what_btrfs_prints() {
        let dump = "leaf 5685248 items 2 free space 15355 generation 8 owner TREE_LOG\n\
                    \titem 0 key (TREE_LOG ROOT_ITEM 5) itemoff 15844 itemsize 439\n\
                    \t\tgeneration 8 root_dirid 0 bytenr 5636096\n\
                    \titem 1 key (TREE_LOG ROOT_ITEM 257) itemoff 15405 itemsize 439\n";
        assert_eq!(trees_in(dump), BTreeSet::from([5, 257]));
        assert!(trees_in("ERROR: cannot read\n").is_empty());
    }

    #[test]
    fn a_file_without_a_superblock_has_no_log() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(log_root(file.path()), None);
        file.as_file().set_len(1 << 20).unwrap();
        assert_eq!(log_root(file.path()), None);
    }
}
