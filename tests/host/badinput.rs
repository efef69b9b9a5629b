//! Names, records, bases and pools that are not as they should be: a clear error, and nothing else is harmed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Machine, containers, processes};

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

fn dir(machine: &Machine, spark: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(spark)
}

fn state(machine: &Machine, spark: &str) -> String {
    let list = machine.spark(&["--json", "list"]).json();
    let row = list.as_array().unwrap().iter().find(|r| r["name"] == spark).cloned();
    row.unwrap_or_else(|| panic!("{spark} is not listed: {list}"))["state"].as_str().unwrap().to_owned()
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The rest works on while something is broken.
fn others_work(machine: &Machine) {
    assert_eq!(sh(machine, "good", "cat /marker"), "kept\n");
    machine.spark(&["create", "extra"]).ok();
    machine.spark(&["delete", "-f", "--now", "extra"]).ok();
}

fn with_good() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "good"]).ok();
    sh(&machine, "good", "echo kept > /marker");
    machine
}

#[test]
fn what_is_no_name_is_refused_everywhere_and_makes_nothing() {
    let machine = with_good();
    let long = "a".repeat(64);
    let bad = [
        "a/b/c",
        "..",
        ".",
        "../x",
        "x/..",
        "",
        &long,
        "Web",
        "-web",
        "web-",
        "käse",
        "a b",
        "a\nb",
        "a.b",
        "\u{202e}x",
    ];
    let verbs: [&[&str]; 9] = [
        &["create"],
        &["info"],
        &["stop"],
        &["resume"],
        &["delete"],
        &["rename", "good"],
        &["base", "info"],
        &["create", "-P", "p", "--base"],
        &["project", "info"],
    ];
    for name in bad {
        for verb in verbs {
            if name.contains('/') && verb != ["create"] {
                continue;
            }
            let args: Vec<&str> = verb.iter().copied().chain([name]).collect();
            let out = machine.spark(&args);
            assert_eq!(out.status(), 2, "{args:?}: {}", out.stderr());
            assert!(out.stderr().starts_with("error: "), "{args:?}: {}", out.stderr());
            assert!(!out.stderr().contains(['\u{202e}', '\u{1b}']), "unescaped: {:?}", out.stderr());
        }
    }
    assert_eq!(machine.spark(&["create", &"a".repeat(63), "--no-start"]).status(), 0);
    machine.spark(&["delete", "--now", &"a".repeat(63)]).ok();
    // What a program may ask for and a command line cannot.
    for name in ["a\0b", "\0"] {
        assert!(name.parse::<sparks::domain::name::Name>().is_err());
        assert!(name.parse::<sparks::domain::name::SparkRef>().is_err());
        assert!(machine.sparks().undelete(name, None).is_err());
    }
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"a\xff");
    let out = machine.command(&["create"]).arg::<&std::ffi::OsStr>(bytes).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(machine.spark(&["list", "-aq"]).ok(), "default/good\n");
    assert!(machine.staged().is_empty());
}

#[test]
fn a_damaged_record_breaks_its_spark_alone_and_can_be_deleted_and_brought_back() {
    let machine = with_good();
    machine.spark(&["create", "bad"]).ok();
    sh(&machine, "bad", "echo mine > /marker");
    machine.spark(&["stop", "bad"]).ok();
    let record = dir(&machine, "bad").join("spark.json");
    let whole = std::fs::read(&record).unwrap();
    let newer = String::from_utf8(whole.clone()).unwrap().replace("\"version\": 1", "\"version\": 99");
    let contents: [Option<&[u8]>; 8] = [
        Some(&whole[..whole.len() / 2]),
        Some(b""),
        Some(b"{}"),
        Some(b"not json"),
        Some(newer.as_bytes()),
        Some(&[0xff; 40]),
        Some(b"[[[[[[["),
        None,
    ];
    for content in contents {
        std::fs::remove_file(&record).unwrap();
        match content {
            Some(content) => std::fs::write(&record, content).unwrap(),
            None => std::fs::create_dir(&record).unwrap(),
        }
        assert_eq!(state(&machine, "bad"), "broken");
        for verb in [
            &["info", "bad"][..],
            &["resume", "bad"],
            &["stop", "bad"],
            &["exec", "bad", "true"],
            &["rename", "bad", "b"],
        ] {
            let args: Vec<&str> = ["--json"].iter().chain(verb).copied().collect();
            let said = machine.spark(&args).fails_with("corrupt");
            assert!(said.contains("spark.json is damaged"), "{said}");
        }
        others_work(&machine);
        machine.spark(&["gc"]).ok();
        assert_eq!(state(&machine, "bad"), "broken", "gc takes nothing that may be mended");
        machine.spark(&["delete", "bad"]).ok();
        machine.spark(&["undelete", "bad"]).ok();
        if content.is_none() {
            std::fs::remove_dir(&record).unwrap();
        }
        std::fs::write(&record, &whole).unwrap();
        assert_eq!(sh(&machine, "bad", "cat /marker"), "mine\n");
        machine.spark(&["stop", "bad"]).ok();
    }
    let hint = {
        std::fs::write(&record, &newer).unwrap();
        machine.spark(&["info", "bad"]).stderr()
    };
    assert!(hint.contains("hint: a newer spark wrote it"), "{hint}");
}

#[test]
fn a_running_spark_whose_record_is_damaged_runs_on_until_it_is_deleted_by_force() {
    let machine = with_good();
    machine.spark(&["create", "bad"]).ok();
    let good: Vec<String> =
        vec![machine.spark(&["--json", "info", "good"]).json()["id"].as_str().unwrap().into()];
    let id = machine.spark(&["--json", "info", "bad"]).json()["id"].as_str().unwrap().to_owned();
    std::fs::write(dir(&machine, "bad").join("spark.json"), "{").unwrap();
    machine.spark(&["gc"]).ok();
    assert_eq!(processes(&id).len(), 1, "gc ended it");
    machine.spark(&["--json", "delete", "bad"]).fails_with("wrong_state");
    machine.spark(&["delete", "-f", "bad"]).ok();
    assert!(processes(&id).is_empty());
    assert_eq!(containers(&machine.place().run), good);
    others_work(&machine);
}

#[test]
fn a_missing_subvolume_breaks_its_spark_alone() {
    let machine = with_good();
    machine.spark(&["create", "bad", "--no-start"]).ok();
    run("btrfs", &["subvolume", "delete", dir(&machine, "bad").join("root").to_str().unwrap()]);
    assert_eq!(state(&machine, "bad"), "broken");
    assert_eq!(machine.spark(&["--json", "info", "bad"]).json()["state"], "broken");
    let said = machine.spark(&["--json", "resume", "bad"]).fails_with("corrupt");
    assert!(said.contains("root filesystem is missing"), "{said}");
    assert_eq!(machine.spark(&["exec", "bad", "true"]).status(), 125);
    others_work(&machine);
    machine.spark(&["delete", "--now", "bad"]).ok();
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "good\n");
}

#[test]
fn a_base_that_was_removed_by_hand_stops_new_sparks_only() {
    let machine = with_good();
    machine.spark(&["base", "bootstrap", "minimal", "second"]).ok();
    let base = machine.pool().join("bases/minimal");
    run("btrfs", &["subvolume", "delete", base.join("root").to_str().unwrap()]);
    let said = machine.spark(&["--json", "create", "new"]).fails_with("corrupt");
    assert!(said.contains("bases/minimal"), "{said}");
    std::fs::remove_dir_all(&base).unwrap();
    machine.spark(&["--json", "create", "new"]).fails_with("not_found");
    machine.spark(&["create", "new", "--base", "second"]).ok();
    machine.spark(&["stop", "good"]).ok();
    assert_eq!(sh(&machine, "good", "cat /marker"), "kept\n");
    machine.spark(&["base", "default", "second"]).ok();
    others_work(&machine);
    assert!(machine.staged().is_empty());
}

#[test]
fn a_configuration_edited_by_hand_is_named_and_made_anew_at_the_next_start() {
    let machine = with_good();
    machine.spark(&["create", "bad"]).ok();
    let bundle =
        machine.spark(&["--json", "info", "bad"]).json()["oci"]["bundle"].as_str().unwrap().to_owned();
    let config = Path::new(&bundle).join("config.json");
    let whole = std::fs::read_to_string(&config).unwrap();
    let mut without: serde_json::Value = serde_json::from_str(&whole).unwrap();
    without.as_object_mut().unwrap().remove("process");
    for content in ["", "{", "[]", &whole[..100], &without.to_string()] {
        std::fs::write(&config, content).unwrap();
        let out = machine.spark(&["--json", "exec", "bad", "true"]);
        assert_eq!(out.status(), 125, "{}", out.stderr());
        assert!(out.stderr().contains("\"error\""), "{}", out.stderr());
        others_work(&machine);
    }
    std::fs::remove_file(&config).unwrap();
    assert_eq!(machine.spark(&["exec", "bad", "true"]).status(), 125);
    machine.spark(&["stop", "bad"]).ok();
    assert_eq!(sh(&machine, "bad", "echo well"), "well\n");
    // What libcontainer keeps of it, too. A command does not need that to enter.
    let id = machine.spark(&["--json", "info", "bad"]).json()["id"].as_str().unwrap().to_owned();
    for content in ["", "{", "null"] {
        std::fs::write(machine.place().oci().join(&id).join("state.json"), content).unwrap();
        machine.spark(&["exec", "bad", "true"]).ok();
        machine.spark(&["stop", "bad"]).ok();
        assert!(processes(&id).is_empty());
        assert_eq!(sh(&machine, "bad", "echo well"), "well\n");
    }
}

#[test]
fn a_damaged_layout_or_one_of_a_newer_program_is_left_alone() {
    let machine = with_good();
    let layout = machine.pool().join("layout.json");
    let whole = std::fs::read_to_string(&layout).unwrap();
    for content in ["", "{", "{\"version\": 99}"] {
        std::fs::write(&layout, content).unwrap();
        for verb in [&["list"][..], &["create", "x"], &["gc"], &["pool", "init"], &["delete", "-f", "good"]] {
            let args: Vec<&str> = ["--json"].iter().chain(verb).copied().collect();
            machine.spark(&args).fails_with("corrupt");
        }
        assert_eq!(std::fs::read_to_string(&layout).unwrap(), content);
    }
    std::fs::write(&layout, whole).unwrap();
    others_work(&machine);
}

#[test]
fn a_full_pool_says_so_and_is_emptied_by_deleting() {
    let machine = Machine::without_pool();
    machine.spark(&["pool", "init", "--size", "300M"]).ok();
    let machine = machine.with_base();
    for name in ["good", "big", "idle"] {
        machine.spark(&["create", name]).ok();
    }
    sh(&machine, "good", "echo kept > /marker");
    machine.spark(&["stop", "idle"]).ok();
    let full = machine.spark(&[
        "exec",
        "big",
        "--",
        "sh",
        "-c",
        "cat /dev/zero > /big; for i in $(seq 20000); do echo $i > /f$i || exit 1; done 2>/dev/null",
    ]);
    assert_ne!(full.status(), 0, "it is not full");
    let out = machine.spark(&["--json", "base", "bootstrap", "minimal", "more"]);
    let said = out.fails_with("no_space");
    assert!(!said.is_empty() && out.stderr().contains("spark pool grow"), "{}", out.stderr());
    assert!(machine.staged().is_empty(), "{:?}", machine.staged());
    // A small one may find room or not; it leaves nothing half-made.
    let out = machine.spark(&["--json", "create", "small", "--no-start"]);
    if out.status() != 0 {
        out.fails_with("no_space");
    }
    for args in [&["fork", "big", "copy", "--no-start"][..], &["snapshot", "create", "big", "s"]] {
        let out = machine.spark(&[&["--json"], args].concat());
        if out.status() != 0 {
            out.fails_with("no_space");
        }
    }
    assert!(machine.staged().is_empty(), "{:?}", machine.staged());
    machine.spark(&["delete", "--now", "copy"]);
    assert_eq!(sh(&machine, "good", "cat /marker"), "kept\n");
    machine.spark(&["list"]).ok();
    machine.spark(&["resume", "idle"]).ok();
    machine.spark(&["stop", "idle"]).ok();
    machine.spark(&["delete", "-f", "--now", "big"]).ok();
    machine.spark(&["base", "bootstrap", "minimal", "more"]).ok();
    others_work(&machine);
    assert!(machine.staged().is_empty());
}

#[test]
fn a_read_only_pool_is_shown_and_used_and_not_changed() {
    let machine = with_good();
    machine.spark(&["create", "idle", "--no-start"]).ok();
    let pool = machine.pool();
    let remount = |how: &str| run("mount", &["-o", how, pool.to_str().unwrap()]);
    remount("remount,ro");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "good\nidle\n");
    assert_eq!(state(&machine, "good"), "running");
    machine.spark(&["info", "good"]).ok();
    machine.spark(&["pool", "info"]).ok();
    machine.spark(&["base", "list"]).ok();
    machine.spark(&["gc", "--dry-run"]).ok();
    assert_eq!(sh(&machine, "good", "cat /marker"), "kept\n");
    let verbs: [&[&str]; 5] = [
        &["create", "new"],
        &["delete", "idle"],
        &["delete", "--now", "idle"],
        &["rename", "idle", "other"],
        &["base", "bootstrap", "minimal", "more"],
    ];
    for verb in verbs {
        let args: Vec<&str> = ["--json"].iter().chain(verb).copied().collect();
        let out = machine.spark(&args);
        out.fails_with("host");
        assert!(out.stderr().contains("the pool is read-only"), "{}", out.stderr());
    }
    machine.spark(&["stop", "good"]).ok();
    remount("remount,rw");
    assert_eq!(sh(&machine, "good", "cat /marker"), "kept\n");
    assert_eq!(sh(&machine, "idle", "echo well"), "well\n");
    others_work(&machine);
    assert!(machine.staged().is_empty());
}
