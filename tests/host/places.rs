//! The pool: made once, on what there is, found again after a reboot, and of use when it is full or read-only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{Machine, Output, wait_for};

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn error(output: &Output) -> Value {
    assert_ne!(output.status(), 0, "{}", output.stdout());
    serde_json::from_str::<Value>(&output.stderr()).unwrap_or_else(|e| panic!("{e}: {}", output.stderr()))
        ["error"]
        .clone()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

/// A sparse file.
fn disk(mebibytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::File::create(&path).unwrap().set_len(mebibytes << 20).unwrap();
    (dir, path)
}

/// A loop device, detached again. Made before the machine that uses it, and so gone after it.
struct Device(String, #[allow(dead_code, reason = "its file goes with it")] tempfile::TempDir);

impl Device {
    fn new(mebibytes: u64) -> Device {
        let (dir, path) = disk(mebibytes);
        Device(run("losetup", &["-f", "--show", path.to_str().unwrap()]), dir)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn unmount(machine: &Machine) {
    let gone = || {
        rustix::mount::unmount(machine.pool(), rustix::mount::UnmountFlags::NOFOLLOW).is_ok()
            || !sparks::sys::file::is_mount_point(&machine.pool()).unwrap()
    };
    assert!(wait_for(gone));
    assert_eq!(fs::read_dir(machine.pool()).unwrap().count(), 0);
}

fn mounts_of(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |l: &&str| l.split(' ').nth(4) == dir.to_str();
    table.lines().filter(of).map(str::to_owned).collect()
}

/// A pool of this size with the minimal base.
fn machine(size: &str) -> Machine {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", size]).ok();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine
}

#[test]
fn a_pool_is_closed_to_others_and_mounted_as_it_should_be() {
    let machine = Machine::without_pool();
    fs::remove_dir(machine.place().root).unwrap();
    machine.spark(&["pool", "init", "--size", "300M"]).ok();
    for dir in [machine.place().root, machine.pool()] {
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
    }
    assert_eq!(mode(&machine.place().loop_image()), 0o600);
    let mount = mounts_of(&machine.pool()).concat();
    assert!(mount.contains("noatime") && !mount.contains("nobarrier"), "{mount}");
    let df = run("btrfs", &["filesystem", "df", machine.pool().to_str().unwrap()]);
    // Of so small a pool, data and metadata are together.
    for kind in ["Data+Metadata", "System"] {
        assert!(df.lines().any(|l| l.starts_with(&format!("{kind}, single:"))), "{df}");
    }
}

#[test]
fn a_device_that_holds_a_filesystem_is_not_overwritten() {
    let device = Device::new(300);
    run("mkfs.btrfs", &["-q", "-L", "precious", &device.0]);
    let machine = Machine::without_pool();
    let error = error(&machine.spark(&["--json", "pool", "init", "--device", &device.0]));
    assert_eq!(error["code"], "internal", "{error}");
    assert!(error["message"].as_str().unwrap().contains("existing filesystem"), "{error}");
    assert_eq!(run("blkid", &["-p", "-s", "LABEL", "-o", "value", &device.0]), "precious");
    assert!(!machine.place().root.join("pool.json").exists());
    // Nothing is decided yet.
    machine.spark(&["pool", "init", "--size", "256M"]).ok();
}

#[test]
fn a_pool_that_cannot_be_mounted_is_not_made_anew() {
    let machine = machine("256M");
    unmount(&machine);
    let image = machine.place().loop_image();
    let aside = image.with_extension("aside");
    fs::rename(&image, &aside).unwrap();
    for line in ["list", "create x", "pool init", "pool info", "gc"] {
        let words: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
        let error = error(&machine.spark(&words));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("pool.btrfs") && message.contains("it is gone"), "{line}: {error}");
    }
    assert!(!image.exists() && fs::read_dir(machine.pool()).unwrap().count() == 0);
    fs::rename(&aside, &image).unwrap();

    let source = machine.place().root.join("pool.json");
    let good = fs::read(&source).unwrap();
    for (content, hint) in [("{", ""), ("", ""), ("{\"version\": 99, \"kind\": \"loop\"}", "upgrade")] {
        fs::write(&source, content).unwrap();
        for line in ["list", "create x", "pool init", "pool info"] {
            let words: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
            let error = error(&machine.spark(&words));
            assert_eq!(error["code"], "corrupt", "{line}: {error}");
            assert!(error["message"].as_str().unwrap().contains("pool.json"), "{error}");
            assert!(error["hint"].as_str().unwrap_or_default().contains(hint), "{error}");
        }
    }
    fs::write(&source, good).unwrap();
    assert!(machine.spark(&["base", "list"]).ok().contains("minimal"));
}

#[test]
fn a_pool_grows_while_a_spark_runs_and_never_shrinks() {
    let machine = machine("256M");
    machine.spark(&["create", "web"]).ok();
    let size = || {
        let fs = rustix::fs::statvfs(machine.pool()).unwrap();
        fs.f_blocks * fs.f_frsize
    };
    assert!(size() <= 256 << 20);
    machine.spark(&["pool", "grow", "700M"]).ok();
    assert!(size() > 690 << 20 && size() <= 700 << 20, "{}", size());
    let error = error(&machine.spark(&["--json", "pool", "grow", "300M"]));
    assert_eq!(error["code"], "usage", "{error}");
    assert!(size() > 690 << 20);
    machine.spark(&["pool", "grow", "700M"]).ok();
    assert_eq!(machine.spark(&["exec", "web", "echo", "works"]).ok(), "works\n");
    let info = machine.spark(&["pool", "info", "--json"]).json();
    assert_eq!(info["size"].as_u64().unwrap(), size(), "{info}");
    assert_eq!((&info["source"]["kind"], &info["default_base"]), (&"loop".into(), &"minimal".into()));
    assert!(machine.spark(&["pool", "info"]).ok().contains("loop"));
}

#[test]
fn what_is_too_small_for_a_pool_is_refused_and_leaves_nothing() {
    let machine = Machine::without_pool();
    assert_eq!(error(&machine.spark(&["--json", "pool", "init", "--size", "255M"]))["code"], "usage");
    let root = machine.place().root;
    run("mount", &["-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", root.to_str().unwrap()]);
    for line in ["create x", "pool init", "base bootstrap minimal"] {
        let words: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
        let error = error(&machine.spark(&words));
        assert_eq!(error["code"], "no_space", "{line}: {error}");
        assert!(error["hint"].as_str().unwrap().contains("free at least"), "{error}");
    }
    assert!(!root.join("pool.json").exists() && !machine.place().loop_image().exists());
}
