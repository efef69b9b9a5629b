//! Full pools: what makes room works in them, and returns when there is room.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FallocateFlags, XattrFlags};

use crate::common::{Machine, cgroups, claims, containers, processes};

/// Takes all room for data and then all for metadata, from the host, in a spark's root.
fn fill(machine: &Machine, spark: &str) {
    let root = machine.pool().join("projects/default/sparks").join(spark).join("root");
    let top = File::open(machine.pool()).unwrap();
    take_data(&root, 64 << 20);
    take_data(&root, 1 << 20);
    take_data(&root, 4096);
    // What is written later needs metadata that is not counted yet.
    for _ in 0..3 {
        take_metadata(&root);
        rustix::fs::syncfs(&top).unwrap();
        take_data(&root, 4096);
    }
}

fn take_data(root: &Path, size: u64) {
    for number in 0.. {
        let Ok(file) = File::create(root.join(format!("data-{size}-{number}"))) else { return };
        if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size).is_err() {
            return;
        }
    }
}

fn take_metadata(root: &Path) {
    for number in 0.. {
        let path = root.join(format!("metadata-{number}"));
        let Ok(file) = File::options().create(true).append(true).open(path) else { return };
        for name in 0..8 {
            let name = format!("trusted.filler.{name}");
            if rustix::fs::fsetxattr(&file, name, &[0; 15_000], XattrFlags::empty()).is_err() {
                return;
            }
        }
    }
}

fn full(size: &str) -> Machine {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", size]).ok();
    let machine = machine.with_base();
    for name in ["hog", "idle", "ant"] {
        machine.spark(&["create", name, "--no-start"]).ok();
    }
    fill(&machine, "hog");
    machine.spark(&["--json", "create", "new", "--no-start"]).fails_with("no_space");
    machine
}

/// Data and metadata in one kind of chunk, and in two.
const SIZES: [&str; 2] = ["512M", "1200M"];

#[test]
fn in_a_full_pool_sparks_are_renamed_deleted_and_brought_back() {
    for size in SIZES {
        let machine = full(size);
        for _ in 0..3 {
            machine.spark(&["rename", "idle", "busy"]).ok();
            machine.spark(&["delete", "busy"]).ok();
            assert!(machine.spark(&["list", "-q"]).ok().lines().all(|name| name != "busy"));
            machine.spark(&["undelete", "busy", "--as", "idle"]).ok();
            assert!(machine.spark(&["list", "-q"]).ok().contains("idle"));
        }
        assert!(machine.staged().is_empty(), "{:?}", machine.staged());
    }
}

#[test]
fn what_frees_a_full_pool_returns_when_there_is_room() {
    for size in SIZES {
        let machine = full(size);
        machine.spark(&["delete", "--now", "hog"]).ok();
        all_is_freed(&machine);
        machine.spark(&["create", "new", "--no-start"]).ok();

        fill(&machine, "ant");
        machine.spark(&["--json", "create", "other", "--no-start"]).fails_with("no_space");
        machine.spark(&["delete", "ant", "--keep", "1ms"]).ok();
        // As in a pool of an older version, which gets a reserve when there is room.
        std::fs::remove_dir_all(machine.pool().join("reserve")).unwrap();
        machine.spark(&["gc"]).ok();
        all_is_freed(&machine);
        machine.spark(&["create", "other", "--no-start"]).ok();
        assert_eq!(std::fs::read_dir(machine.pool().join("reserve")).unwrap().count(), 3);
    }
}

/// Nothing waits for the kernel any more: what was deleted is free.
fn all_is_freed(machine: &Machine) {
    assert_eq!(sparks::pool::btrfs::unfreed(&machine.pool()).unwrap(), [0; 0]);
}

#[test]
fn gc_gives_data_back_to_metadata_where_chunks_are_nearly_empty() {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", "1200M"]).ok();
    let machine = machine.with_base();
    machine.spark(&["create", "hog", "--no-start"]).ok();
    let root = machine.pool().join("projects/default/sparks/hog/root");
    // All chunks become chunks for data, of which almost nothing is used then.
    take_data(&root, 8 << 20);
    take_data(&root, 4096);
    let mut files: Vec<_> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("data-"));
    files.sort();
    for (number, file) in files.iter().enumerate() {
        if number % 16 != 0 {
            std::fs::remove_file(file).unwrap();
        }
    }
    rustix::fs::syncfs(File::open(&root).unwrap()).unwrap();
    for _ in 0..3 {
        take_metadata(&root);
        rustix::fs::syncfs(File::open(&root).unwrap()).unwrap();
    }
    machine.spark(&["--json", "create", "new", "--no-start"]).fails_with("no_space");
    machine.spark(&["gc"]).ok();
    machine.spark(&["create", "new", "--no-start"]).ok();
}

#[test]
fn a_start_that_fails_in_a_full_pool_leaves_no_process_and_no_cgroup() {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", "512M"]).ok();
    let machine = machine.with_base();
    machine.spark(&["create", "hog", "--no-start"]).ok();
    machine.spark(&["create", "idle", "--no-start"]).ok();
    fill(&machine, "hog");
    let run = machine.place().run;
    let mut failed = 0;
    for args in [
        &["create", "new"][..],
        &["fork", "idle", "new"],
        &["exec", "-", "--", "true"],
        &["exec", "idle", "--", "true"],
        &["resume", "idle"],
    ] {
        let out = machine.spark(&[&["--json"], args].concat());
        if out.status() == 0 {
            machine.spark(&["stop", "-t", "0", "idle"]).ok();
        } else {
            out.fails_with("no_space");
            failed += 1;
        }
        for id in containers(&run) {
            assert!(processes(&id).is_empty() && cgroups(&id).is_empty(), "{args:?} left a container: {id}");
        }
        assert!(claims(&run).is_empty(), "{args:?} left {:?}", claims(&run));
        assert!(machine.staged().is_empty(), "{args:?} left {:?}", machine.staged());
    }
    assert!(failed > 2, "the pool is not full");
}
