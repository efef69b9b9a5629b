//! Pools: made once, on what there is, and there again after a reboot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Machine, containers};

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

fn state(machine: &Machine, spark: &str) -> serde_json::Value {
    machine.spark(&["--json", "info", spark]).json()["state"].clone()
}

fn mounts_below(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir))).count()
}

/// A loop device, gone with the test.
struct Device(String, PathBuf);

impl Device {
    fn new(machine: &Machine, size: u64) -> Device {
        let file = machine.work().join("disk");
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        Device(run("losetup", &["-f", "--show", file.to_str().unwrap()]), file)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Still mounted, it goes when that does.
        let _ = Command::new("losetup").args(["-d", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Waits for commands that were started side by side.
fn all_succeed(children: Vec<std::process::Child>) {
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn of_many_that_start_at_once_one_makes_the_pool_and_all_use_it() {
    let machine = Machine::without_pool();
    let start =
        |args: &[&str]| machine.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let init = ["pool", "init", "--size", "512M"];
    let children: Vec<_> = (0..6).map(|n| if n % 3 == 2 { start(&["list"]) } else { start(&init) }).collect();
    all_succeed(children);
    assert_eq!(mounts_below(&machine.place().root), 1);
    let names = std::fs::read_dir(machine.place().root).unwrap().flatten().map(|e| e.file_name());
    let mut names: Vec<_> = names.map(|n| n.into_string().unwrap()).filter(|n| n != "state").collect();
    names.sort();
    assert_eq!(names, ["pool", "pool.btrfs", "pool.json"]);

    let machine = machine.with_base();
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|n| {
            machine
                .command(&["create", "-P", "fresh", n])
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    all_succeed(children);
    let list = machine.spark(&["--json", "list", "-P", "fresh"]).json();
    let running = list.as_array().unwrap().iter().filter(|r| r["state"] == "running").count();
    assert_eq!(running, 6);
    let ids: std::collections::BTreeSet<i64> = names
        .iter()
        .map(|n| {
            machine.spark(&["--json", "info", &format!("fresh/{n}")]).json()["oci"]["first_id"]
                .as_i64()
                .unwrap()
        })
        .collect();
    assert_eq!(ids.len(), 6, "two share a range of ids");
}

#[test]
fn after_a_reboot_sparks_are_stopped_and_resume_with_their_files() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["create", "idle", "--no-start"]).ok();
    sh(&machine, "web", "echo kept > /file; sync");
    let machine_id = sh(&machine, "web", "cat /etc/machine-id");
    machine.spark(&["exec", "-d", "web", "--", "sleep", "1000"]).ok();
    machine.reboot();
    assert_eq!(std::fs::read_dir(machine.place().run).unwrap().count(), 0);
    assert_eq!(mounts_below(&machine.place().root), 0);

    assert_eq!(machine.spark(&["list", "-q"]).ok(), "idle\nweb\n", "mounted again without being asked");
    assert_eq!((state(&machine, "web"), state(&machine, "idle")), ("stopped".into(), "stopped".into()));
    assert_eq!(machine.spark(&["--json", "gc", "--dry-run"]).json(), serde_json::json!([]));
    assert_eq!(sh(&machine, "web", "cat /file"), "kept\n");
    assert_eq!(sh(&machine, "web", "cat /etc/machine-id"), machine_id);
    assert_eq!(containers(&machine.place().run).len(), 1);

    // A power failure leaves `/run` on no host; one that was copied along is not believed either.
    let run = machine.place().run;
    let id = containers(&run).remove(0);
    let init = run.join("bundles").join(&id).join("init.json");
    let text = std::fs::read_to_string(&init).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["init"]["boot_id"] = "another boot".into();
    std::fs::write(&init, other.to_string()).unwrap();
    assert_eq!(state(&machine, "web"), "stopped");
    std::fs::write(&init, text).unwrap();
    assert_eq!(state(&machine, "web"), "running");
}

#[test]
fn commands_at_once_after_a_reboot_mount_the_pool_once() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    machine.reboot();
    let children: Vec<_> = (0..6)
        .map(|_| {
            machine
                .command(&["exec", "web", "echo", "x"])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    all_succeed(children);
    assert_eq!(mounts_below(&machine.place().root), 1);
}

#[test]
fn a_pool_has_the_size_it_was_given_and_grows_by_one_command() {
    let machine = Machine::without_pool();
    assert_eq!(machine.spark(&["pool", "info"]).status(), 1);
    assert_eq!(machine.spark(&["pool", "init", "--size", "100M"]).status(), 2);
    let info = machine.spark(&["--json", "pool", "init", "--size", "300M"]).json();
    assert_eq!(info["size"], 300 << 20);
    let again = machine.spark(&["--json", "pool", "init", "--size", "900M"]).json();
    assert_eq!(again["size"], 300 << 20, "there is one already");
    let machine = machine.with_base();
    machine.spark(&["create", "web"]).ok();
    assert_eq!(machine.spark(&["pool", "grow", "200M"]).status(), 2, "it does not shrink");
    assert_eq!(machine.spark(&["pool", "grow"]).status(), 2);
    assert_eq!(machine.spark(&["--json", "pool", "grow", "600M"]).json()["size"], 600 << 20);
    assert_eq!(sh(&machine, "web", "echo well"), "well\n", "while sparks run");
    let allocated = machine.spark(&["--json", "pool", "info"]).json()["allocated"].as_u64().unwrap();
    assert!(allocated >= 600 << 20, "the image is not allocated: {allocated}");
    machine.reboot();
    assert_eq!(machine.spark(&["--json", "pool", "info"]).json()["size"], 600 << 20);
}

#[test]
fn a_pool_on_a_device_is_found_by_its_filesystem_after_a_reboot_and_grows_with_it() {
    let machine = Machine::without_pool();
    let device = Device::new(&machine, 400 << 20);
    let info = machine.spark(&["--json", "pool", "init", "--device", &device.0]).json();
    assert_eq!((&info["size"], &info["source"]["kind"]), (&(400 << 20).into(), &"device".into()));
    assert!(!machine.place().loop_image().exists());
    let machine = machine.with_base();
    machine.spark(&["create", "web"]).ok();
    sh(&machine, "web", "echo kept > /file");
    machine.reboot();
    assert_eq!(sh(&machine, "web", "cat /file"), "kept\n");
    std::fs::File::options().write(true).open(&device.1).unwrap().set_len(600 << 20).unwrap();
    run("losetup", &["-c", &device.0]);
    assert_eq!(machine.spark(&["--json", "pool", "grow"]).json()["size"], 600 << 20);
    // What holds a filesystem is not formatted.
    let other = Machine::without_pool();
    let out = other.spark(&["pool", "init", "--device", &device.0]);
    assert_eq!(out.status(), 1, "{}", out.stdout());
    assert_eq!(other.spark(&["pool", "init", "--device", "/dev/nowhere"]).status(), 1);
    assert_eq!(sh(&machine, "web", "cat /file"), "kept\n");
    machine.spark(&["stop", "web"]).ok();
    machine.reboot();
}

#[test]
fn on_btrfs_the_pool_is_a_directory_of_it() {
    let (disk, machine) = (Machine::new(), Machine::without_pool());
    let root = disk.pool().join("somewhere");
    let spark = |args: &[&str]| {
        let out = machine.command(args).env("SPARK_ROOT", &root).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let info: serde_json::Value = serde_json::from_str(&spark(&["--json", "pool", "init"])).unwrap();
    assert_eq!(info["source"]["kind"], "directory");
    assert!(!root.join("pool.btrfs").exists());
    assert_eq!(mounts_below(&root), 0);
    spark(&["base", "bootstrap", "minimal"]);
    spark(&["create", "web"]);
    assert_eq!(spark(&["exec", "web", "--", "sh", "-c", "echo kept > /file; cat /file"]), "kept\n");
    spark(&["stop", "web"]);
    assert_eq!(spark(&["exec", "web", "cat", "/file"]), "kept\n");
    let out = machine.command(&["--json", "pool", "grow", "10G"]).env("SPARK_ROOT", &root).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("not_supported"));
    spark(&["delete", "-f", "--now", "web"]);
}

#[test]
fn a_pool_whose_making_was_cut_short_is_made_by_the_next_command() {
    let machine = Machine::without_pool();
    let place = machine.place();
    std::fs::write(place.root.join(".new-pool.btrfs"), vec![7; 100_000]).unwrap();
    machine.spark(&["pool", "init", "--size", "300M"]).ok();
    // As a crash would leave it between the mount and the last file.
    std::fs::remove_file(place.pool().join("layout.json")).unwrap();
    std::fs::remove_dir(place.pool().join("trash")).unwrap();
    machine.spark(&["pool", "init"]).ok();
    assert_eq!(mounts_below(&place.root), 1);
    let machine = machine.with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["delete", "-f", "web"]).ok();
    machine.spark(&["undelete", "web"]).ok();
}
