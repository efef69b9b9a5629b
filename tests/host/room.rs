//! Loop images: all of their space is allocated, or the user said that it need not be.

use std::path::Path;

use crate::common::{Machine, Output};
use crate::disk::{Disk, extent, is_allocated, run};

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

/// A check of `doctor`, by its name.
fn check(machine: &Machine, name: &str) -> serde_json::Value {
    let out = machine.spark(&["--json", "doctor"]);
    let checks: serde_json::Value = serde_json::from_str(&out.stdout()).unwrap();
    checks.as_array().unwrap().iter().find(|c| c["name"] == name).cloned().unwrap_or_default()
}

/// Whether fstrim(8), which many hosts run each week, would give space of the image back to the disk.
fn can_be_trimmed(machine: &Machine) -> bool {
    let trim = std::process::Command::new("fstrim").arg(machine.pool()).output().unwrap();
    let said = String::from_utf8_lossy(&trim.stderr).into_owned();
    assert!(trim.status.success() || said.contains("discard operation is not supported"), "{said}");
    trim.status.success()
}

#[test]
fn an_image_is_allocated_and_nothing_gives_its_space_back() {
    let machine = Machine::without_pool();
    let image = machine.place().loop_image();
    let info = machine.spark(&["--json", "pool", "init", "--size", "300M"]).json();
    assert_eq!((&info["space"], &info["can_grow_bytes"]), (&"fixed".into(), &serde_json::Value::Null));
    is_allocated(&image);
    let machine = machine.with_base();
    machine.spark(&["create", "a", "--network", "none"]).ok();
    for _ in 0..2 {
        sh(&machine, "a", "dd if=/dev/zero of=/f bs=1M count=50 2>/dev/null; sync; rm /f; sync");
        run("btrfs", &["filesystem", "sync", machine.pool().to_str().unwrap()]);
        assert!(!can_be_trimmed(&machine));
        is_allocated(&image);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(machine.pool().to_str().unwrap())).unwrap();
        assert!(!line.contains("discard=") && !line.ends_with("discard"), "{line}");
        assert_eq!(check(&machine, "allocation")["ok"], true);
        assert!(check(&machine, "discard").is_null());
        machine.reboot();
        machine.spark(&["list"]).ok();
    }
}

#[test]
fn a_pool_gets_8_gib_or_half_of_what_is_free_and_no_size_is_larger_than_that() {
    let disk = Disk::new(900, "ext4");
    let free = disk.free();
    let too_large = (free + (1 << 20)).to_string();
    let refused = disk.spark(&["--json", "pool", "init", "--size", &too_large]);
    assert!(refused.fails_with("no_space").contains("are free"));
    assert!(refused.stderr().contains("--overcommit"), "{}", refused.stderr());
    assert!(free - disk.free() < 1 << 20, "something of it was left");

    disk.fill(200);
    assert_eq!(disk.spark(&["--json", "pool", "init"]).fails_with("no_space").lines().count(), 1);
    disk.empty();
    let info = disk.spark(&["--json", "pool", "init"]).json();
    assert_eq!(info["size"], (free / 2) >> 20 << 20);
    assert_eq!(info["space"], "growing");
    is_allocated(&disk.place().loop_image());

    // There is no room for more, and the pool stays as it was.
    disk.fill(10);
    let before = extent(&disk.place().loop_image());
    disk.spark(&["--json", "pool", "grow", "800M"]).fails_with("no_space");
    assert_eq!(extent(&disk.place().loop_image()), before);
    disk.empty();
    assert_eq!(disk.spark(&["--json", "pool", "grow", "700M"]).json()["size"], 700 << 20);
    is_allocated(&disk.place().loop_image());
}

#[test]
fn a_filesystem_that_cannot_allocate_is_refused_unless_overcommitted() {
    // Without extents, as NFS and many a FUSE filesystem.
    let disk = Disk::new(500, "ext3");
    let refused = disk.spark(&["--json", "pool", "init", "--size", "300M"]);
    assert!(refused.fails_with("not_supported").contains("cannot allocate"));
    assert!(refused.stderr().contains("pool init --overcommit"), "{}", refused.stderr());
    disk.spark(&["--json", "pool", "init"]).fails_with("not_supported");
    let names: Vec<_> =
        std::fs::read_dir(disk.place().root).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains("btrfs")), "{names:?}");

    let info = disk.spark(&["--json", "pool", "init", "--size", "2G", "--overcommit"]).json();
    assert_eq!((&info["space"], &info["size"]), (&"overcommit".into(), &(2_u64 << 30).into()));
    assert!(info["free"].as_u64().unwrap() < 500 << 20, "more is free than the disk has: {info}");
    assert!(disk.spark(&["pool", "info"]).ok().contains("space: overcommit"));
    let told = check(&disk, "allocation");
    assert_eq!((&told["ok"], &told["severity"]), (&false.into(), &"recommended".into()));
    assert!(told["found"].as_str().unwrap().contains("overcommitted"), "{told}");
    disk.spark(&["--json", "pool", "grow", "3G"]).fails_with("no_space");
    assert_eq!(disk.spark(&["--json", "pool", "grow", "3G", "--overcommit"]).json()["size"], 3_u64 << 30);
}

#[test]
fn a_filesystem_that_says_it_allocates_and_does_not_is_refused() {
    let machine = Machine::without_pool();
    let spark = machine.command(&["--json", "pool", "init", "--size", "300M"]);
    let mut liar = std::process::Command::new("strace");
    liar.args(["-f", "-o", "/dev/null", "-e", "inject=fallocate:retval=0"]);
    liar.arg(spark.get_program()).args(spark.get_args()).current_dir(machine.work());
    liar.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let refused = Output::of("pool init", &mut liar);
    assert!(refused.fails_with("not_supported").contains("says that it allocates"));
    assert!(!machine.place().loop_image().exists());
    assert!(!machine.place().root.join(".new-pool.btrfs").exists());
}

#[test]
fn an_overcommitted_pool_is_allocated_by_growing_it() {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", "300M", "--overcommit"]).ok();
    let machine = machine.with_base();
    machine.spark(&["create", "a", "--network", "none"]).ok();
    let (length, allocated) = extent(&machine.place().loop_image());
    assert!(allocated < length / 2);
    assert_eq!(machine.spark(&["--json", "pool", "grow", "300M"]).json()["space"], "fixed");
    is_allocated(&machine.place().loop_image());
    assert_eq!(check(&machine, "allocation")["ok"], true);
    assert!(!can_be_trimmed(&machine));
    assert_eq!(sh(&machine, "a", "echo well"), "well\n");
}

/// Makes a pool look as versions left it that made sparse images.
fn make_old(machine: &Machine) {
    let source = machine.place().root.join("pool.json");
    std::fs::write(source, r#"{"version":1,"kind":"loop"}"#).unwrap();
}

#[test]
fn a_sparse_image_of_an_older_version_is_filled_at_its_next_mount_if_there_is_room() {
    let disk = Disk::new(600, "ext4");
    disk.spark(&["pool", "init", "--size", "400M", "--overcommit"]).ok();
    disk.spark(&["base", "bootstrap", "minimal"]).ok();
    make_old(&disk);
    let image = disk.place().loop_image();
    disk.fill(100);
    disk.restart();
    let out = disk.spark(&["create", "a", "--network", "none"]);
    out.ok();
    assert!(out.stderr().contains("are not allocated"), "{}", out.stderr());
    assert!(extent(&image).1 < 300 << 20);
    assert_eq!(check(&disk, "allocation")["ok"], false);
    assert_eq!(disk.spark(&["create", "b", "--network", "none"]).stderr(), "", "it is told once a mount");

    disk.empty();
    disk.restart();
    assert_eq!(disk.spark(&["list", "-q"]).ok(), "a\nb\n");
    is_allocated(&image);
    assert_eq!(check(&disk, "allocation")["ok"], true);
    assert_eq!(sh(&disk, "a", "echo well"), "well\n");
}

#[test]
fn a_deleted_image_is_told_and_can_be_saved() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "a", "--network", "none"]).ok();
    sh(&machine, "a", "echo kept > /file");
    let image = machine.place().loop_image();
    std::fs::remove_file(&image).unwrap();
    for args in [&["exec", "a", "true"][..], &["create", "b"], &["exec", "-", "true"]] {
        let out = machine.spark(&[&["--json"], args].concat());
        assert!(out.fails_with("corrupt").contains("it was deleted"));
    }
    let told = check(&machine, "allocation");
    assert_eq!((&told["ok"], &told["severity"]), (&false.into(), &"required".into()));
    // As the hint says.
    let remedy = told["remedy"].as_str().unwrap();
    machine.spark(&["stop", "-t", "0", "a"]).ok();
    run("sh", &["-c", remedy.split('`').nth(1).unwrap()]);
    assert_eq!(sh(&machine, "a", "cat /file"), "kept\n");
    is_allocated(&image);
    assert_eq!(check(&machine, "allocation")["ok"], true);

    machine.reboot();
    std::fs::rename(&image, machine.work().join("away")).unwrap();
    assert!(machine.spark(&["--json", "list"]).fails_with("corrupt").contains("it is gone"));
    std::fs::rename(machine.work().join("away"), &image).unwrap();
    assert_eq!(sh(&machine, "a", "cat /file"), "kept\n");
}

#[test]
fn a_truncated_image_is_told_and_not_filled_up_in_silence() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "a", "--network", "none"]).ok();
    sh(&machine, "a", "echo kept > /file; sync");
    let image = machine.place().loop_image();
    let truncate = |size: &str| run("truncate", &["-s", size, image.to_str().unwrap()]);
    truncate("1000M");
    assert!(machine.spark(&["--json", "exec", "a", "true"]).fails_with("corrupt").contains("truncated"));
    assert_eq!(check(&machine, "allocation")["severity"], "required");
    machine.reboot();
    let out = machine.spark(&["--json", "list"]);
    assert!(out.fails_with("corrupt").contains("truncated"));
    assert_eq!(extent(&image).0, 1000 << 20);
    assert!(out.stderr().contains(&format!("truncate -s {}", 1 << 30)), "{}", out.stderr());
    truncate("1G");
    assert_eq!(sh(&machine, "a", "cat /file"), "kept\n");
    is_allocated(&image);
}

#[test]
fn an_image_without_its_record_is_used_and_not_made_anew() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "a", "--network", "none"]).ok();
    sh(&machine, "a", "echo kept > /file");
    machine.reboot();
    std::fs::remove_file(machine.place().root.join("pool.json")).unwrap();
    machine.spark(&["pool", "init", "--size", "300M"]).ok();
    assert_eq!(sh(&machine, "a", "cat /file"), "kept\n");
}

/// The host's own btrfs, with a limit on the subvolume that `SPARK_ROOT` is in.
fn limited(host: &Machine, limit: &str) -> std::path::PathBuf {
    let pool = host.pool();
    let root = pool.join("limited");
    if !root.exists() {
        run("btrfs", &["quota", "enable", pool.to_str().unwrap()]);
        run("btrfs", &["subvolume", "create", root.to_str().unwrap()]);
    }
    run("btrfs", &["qgroup", "limit", limit, root.to_str().unwrap()]);
    root
}

#[test]
fn a_quota_of_the_host_is_met_before_data_is_written_and_not_after() {
    let (host, machine) = (Machine::with_pool(2 << 30), Machine::without_pool());
    let root = limited(&host, "200M");
    let spark = |args: &[&str]| {
        Output::of(&args.join(" "), machine.command(args).env("SPARK_ROOT", root.join("root")))
    };
    let refused = spark(&["--json", "pool", "init", "--size", "300M"]);
    assert!(refused.fails_with("no_space").contains("quota"), "{}", refused.stderr());
    assert!(!root.join("root/.new-pool.btrfs").exists());
    limited(&host, "400M");
    spark(&["pool", "init", "--size", "300M"]).ok();
    let image = root.join("root/pool.btrfs");
    assert!(run("lsattr", &[image.to_str().unwrap()]).split(' ').next().unwrap().contains('C'));
    is_allocated(&image);
    let told = spark(&["--json", "doctor"]).stdout();
    assert!(told.contains("host snapshots") && told.contains("out of snapshots"), "{told}");
    spark(&["--json", "pool", "grow", "600M"]).fails_with("no_space");
    assert_eq!(extent(&image).0, 300 << 20);

    // What is allocated can be written, whatever the quota is now.
    limited(&host, "310M");
    spark(&["base", "bootstrap", "minimal"]).ok();
    spark(&["create", "a", "--network", "none"]).ok();
    let script = "dd if=/dev/urandom of=/f bs=1M count=200 2>/dev/null; sync; md5sum /f";
    let sum = spark(&["exec", "a", "--", "sh", "-c", script]).ok();
    spark(&["stop", "a"]).ok();
    run("umount", &[root.join("root/pool").to_str().unwrap()]);
    assert_eq!(spark(&["exec", "a", "--", "md5sum", "/f"]).ok(), sum);
    spark(&["delete", "-f", "--now", "a"]).ok();
    run("umount", &[root.join("root/pool").to_str().unwrap()]);
}

#[test]
fn doctor_says_that_a_directory_of_the_hosts_btrfs_has_no_bound() {
    let (host, machine) = (Machine::new(), Machine::without_pool());
    let root = host.pool().join("root");
    let spark = |args: &[&str]| {
        Output::of(&args.join(" "), machine.command(args).env("SPARK_ROOT", Path::new(&root)))
    };
    spark(&["pool", "init"]).ok();
    assert!(spark(&["doctor"]).stdout().contains("no bound of its own"));
    let none = Machine::without_pool();
    let on_btrfs = host.pool().join("other");
    let out = Output::of(
        "pool init",
        none.command(&["--json", "pool", "init", "--overcommit"]).env("SPARK_ROOT", on_btrfs),
    );
    out.fails_with("usage");
}
