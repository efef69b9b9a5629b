//! A small filesystem as the host's disk, so that it can be filled.

use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Machine, wait_for};

/// Runs a program of the host, which has to succeed.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A machine without a pool, whose `SPARK_ROOT` is a filesystem of its own.
pub(crate) struct Disk {
    machine: Machine,
}

impl Deref for Disk {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Disk {
    /// Of so many MiB, made by `mkfs.KIND`.
    pub(crate) fn new(mebibytes: u64, kind: &str) -> Disk {
        let disk = Disk { machine: Machine::without_pool() };
        std::fs::File::create(disk.file()).unwrap().set_len(mebibytes << 20).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", disk.file().to_str().unwrap()]);
        disk.mount();
        disk
    }

    fn file(&self) -> PathBuf {
        self.work().join("disk")
    }

    fn mount(&self) {
        let root = self.place().root;
        run("mount", &["-o", "loop", self.file().to_str().unwrap(), root.to_str().unwrap()]);
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o700)).unwrap();
    }

    /// As [`Machine::reboot`], with the disk there again.
    pub(crate) fn restart(&self) {
        self.reboot();
        let file = self.file();
        assert!(wait_for(|| run("losetup", &["-n", "-O", "NAME", "-j", file.to_str().unwrap()]).is_empty()));
        self.mount();
    }

    /// Bytes that are free for everybody.
    pub(crate) fn free(&self) -> u64 {
        let fs = rustix::fs::statvfs(&self.place().root).unwrap();
        fs.f_bavail * fs.f_frsize
    }

    /// Takes all of it but so many MiB, for something else of the host's.
    pub(crate) fn fill(&self, leave: u64) {
        let size = self.free().saturating_sub(leave << 20);
        let file = self.place().root.join("ballast");
        run("fallocate", &["-l", &size.to_string(), file.to_str().unwrap()]);
    }

    /// Gives that back.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.place().root.join("ballast")).unwrap();
    }
}

/// The length of a file and the bytes that are allocated for it.
pub(crate) fn extent(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(path).unwrap();
    (file.len(), file.blocks() * 512)
}

#[track_caller]
pub(crate) fn is_allocated(path: &Path) {
    let (length, allocated) = extent(path);
    assert!(allocated >= length, "{allocated} of {length} bytes are allocated");
}
