//! A spark's share of the disk.

use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Machine, wait_for};
use crate::inside::{bare, machine, root, sh};

const MIB: u64 = 1 << 20;

/// A machine whose pool counts what is whose.
fn counting() -> Machine {
    let machine = Machine::without_pool();
    let info = machine.spark(&["pool", "init", "--quota", "--size", "1G", "--json"]).json();
    assert_eq!(info["quota"], true);
    machine.with_base()
}

fn used(machine: &Machine, name: &str) -> u64 {
    sh(machine, name, "0", "sync").ok();
    machine.spark(&["info", name, "--json"]).json()["disk"]["used_bytes"].as_u64().unwrap()
}

/// Writes until it is stopped, which it has to be. Returns how much there is of the file then.
#[track_caller]
fn fill(machine: &Machine, name: &str, file: &str) -> u64 {
    let output = sh(machine, name, "0", &format!("dd if=/dev/urandom of={file} bs=64k count=800"));
    assert!(output.stderr().contains("Disk quota exceeded"), "{name}: {}", output.stderr());
    sh(machine, name, "0", &format!("stat -c %s {file}")).ok().trim().parse().unwrap()
}

#[test]
fn a_runaway_writer_is_stopped_and_the_others_write_on() {
    let machine = counting();
    bare(&machine, "wild", &["--disk", "16M"]);
    bare(&machine, "calm", &[]);
    assert!(used(&machine, "wild") < MIB, "what its base holds does not count");
    let size = fill(&machine, "wild", "/big");
    assert!((12 * MIB..=16 * MIB).contains(&size), "{size}");
    let disk = machine.spark(&["info", "wild", "--json"]).json()["disk"].clone();
    assert_eq!(disk["limit_bytes"], 16 * MIB);
    sh(&machine, "calm", "0", "dd if=/dev/urandom of=/more bs=1M count=32 conv=fsync").ok();
    let calm = used(&machine, "calm");
    assert!((32 * MIB..36 * MIB).contains(&calm), "counted without a limit: {calm}");
    // It can be stopped, started, and cleaned up, full as it is.
    machine.spark(&["stop", "wild", "-t", "0"]).ok();
    sh(&machine, "wild", "0", "rm /big").ok();
    assert!(wait_for(|| used(&machine, "wild") < 2 * MIB));
    // A full spark is no full pool, for who copies into it.
    std::fs::write(machine.work().join("file"), vec![7; 40 << 20]).unwrap();
    let output = machine.spark(&["cp", "file", "wild:/copy", "--json"]);
    output.fails_with("no_space");
    assert!(output.stderr().contains("spark set NAME --disk"), "{}", output.stderr());

    machine.spark(&["set", "wild", "--disk", "64M"]).ok();
    sh(&machine, "wild", "0", "dd if=/dev/urandom of=/big bs=1M count=30 conv=fsync").ok();
    machine.spark(&["set", "wild", "--disk", "20M"]).ok();
    assert_ne!(sh(&machine, "wild", "0", "dd if=/dev/urandom of=/x bs=1M count=1 conv=fsync").status(), 0);
    machine.spark(&["set", "wild", "--disk", "none"]).ok();
    sh(&machine, "wild", "0", "dd if=/dev/urandom of=/x bs=1M count=30 conv=fsync").ok();
}

#[test]
fn many_small_files_count_too() {
    let machine = counting();
    bare(&machine, "wild", &["--disk", "4M"]);
    let script = "mkdir /d; i=0; while [ $i -lt 50000 ] && echo >/d/$i; do i=$((i+1)); done; echo $i";
    let made: u64 = sh(&machine, "wild", "0", script).ok().trim().parse().unwrap();
    assert!((100..50_000).contains(&made), "{made}");
    sh(&machine, "wild", "0", "rm -r /d; echo back >/file").ok();
}

#[test]
fn the_limit_holds_after_restore_undo_fork_pick_and_undelete() {
    let machine = counting();
    bare(&machine, "web", &["--disk", "16M"]);
    sh(&machine, "web", "0", "dd if=/dev/urandom of=/first bs=1M count=4 conv=fsync").ok();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    // What a snapshot keeps is counted on: removing it frees nothing.
    sh(&machine, "web", "0", "rm /first").ok();
    assert!(used(&machine, "web") >= 4 * MIB);
    let size = fill(&machine, "web", "/big");
    assert!(size <= 12 * MIB, "{size}");
    sh(&machine, "web", "0", "rm /big").ok();

    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert!(wait_for(|| used(&machine, "web") < 6 * MIB), "{}", used(&machine, "web"));
    let size = fill(&machine, "web", "/big");
    assert!((6 * MIB..=12 * MIB).contains(&size), "after a restore: {size}");
    sh(&machine, "web", "0", "rm /big").ok();
    machine.spark(&["undo", "web"]).ok();
    let size = fill(&machine, "web", "/big");
    assert!(size <= 12 * MIB, "after an undo: {size}");
    sh(&machine, "web", "0", "rm /big").ok();

    // A fork has as much again: what it was made from counts for that.
    machine.spark(&["fork", "web", "app"]).ok();
    assert!(used(&machine, "app") < 2 * MIB, "{}", used(&machine, "app"));
    let size = fill(&machine, "app", "/big");
    assert!((12 * MIB..=16 * MIB).contains(&size), "a fork: {size}");
    sh(&machine, "app", "0", "rm /big").ok();
    machine.spark(&["pick", "app", "--as", "web"]).ok();
    let size = fill(&machine, "web", "/more");
    assert!(size <= 16 * MIB, "after a pick: {size}");
    sh(&machine, "web", "0", "rm /more").ok();

    machine.spark(&["delete", "-f", "web"]).ok();
    machine.spark(&["gc"]).ok();
    machine.spark(&["undelete", "web"]).ok();
    let size = fill(&machine, "web", "/big");
    assert!(size <= 16 * MIB, "after an undelete: {size}");

    // When they are gone for good, so is what counted for them.
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
    machine.spark(&["delete", "-f", "--now", "app"]);
    for entry in std::fs::read_dir(machine.pool().join("trash")).unwrap() {
        let id = entry.unwrap().file_name().into_string().unwrap();
        machine.spark(&["undelete", &id, "--as", "last"]).ok();
        machine.spark(&["delete", "-f", "--now", "last"]).ok();
    }
    let freed = machine.spark(&["gc", "--json"]).json();
    assert_eq!(freed.as_array().unwrap().iter().filter(|i| i["what"] == "disk quota").count(), 2, "{freed}");
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), json!([]));
}

#[test]
fn a_subvolume_inside_counts_for_the_spark_it_is_in() {
    let machine = counting();
    bare(&machine, "web", &["--disk", "16M"]);
    // Nothing inside may make one; an archive of the host's or a copy may still have led to one.
    let nested = root(&machine, "web").join("nested");
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&nested).status().unwrap();
    assert!(made.success());
    let size = fill(&machine, "web", "/nested/big");
    assert!(size <= 16 * MIB, "{size}");
    assert_ne!(sh(&machine, "web", "0", "dd if=/dev/urandom of=/x bs=1M count=8 conv=fsync").status(), 0);
}

#[test]
fn a_pool_that_counts_nothing_refuses_a_limit_and_makes_nothing() {
    let machine = machine();
    bare(&machine, "web", &["--no-start"]);
    for args in [
        &["create", "app", "--disk", "1G"][..],
        &["create", "app", "--disk", "1G", "--no-start"],
        &["create", "app", "--disk", "1G", "--dry-run"],
        &["fork", "web", "app", "--disk", "1G"],
        &["set", "web", "--disk", "1G"],
        &["exec", "--disk", "1G", "-", "true"],
    ] {
        let output = machine.spark(&[&args[..1], &["--json"], &args[1..]].concat());
        assert!(output.fails_with("not_supported").contains("counts nothing"), "{args:?}");
        assert_eq!(machine.spark(&["list", "-q"]).ok(), "web\n", "{args:?}");
    }
    let info = machine.spark(&["info", "web", "--json"]).json();
    assert_eq!((&info["options"]["limits"], &info["disk"]), (&json!({}), &Value::Null));
    machine.spark(&["set", "web", "--disk", "none"]).ok();
    // Nor can it begin to.
    machine.spark(&["pool", "init", "--quota", "--json"]).fails_with("wrong_state");
    assert_eq!(machine.spark(&["pool", "info", "--json"]).json()["quota"], false);
}

#[test]
fn a_pool_that_counts_does_so_after_a_reboot() {
    let machine = counting();
    bare(&machine, "web", &["--disk", "8M"]);
    machine.reboot();
    let size = fill(&machine, "web", "/big");
    assert!(size <= 8 * MIB, "{size}");
    machine.spark(&["pool", "init", "--quota"]).ok();
}
