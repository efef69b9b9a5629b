//! Names that are none, and files of ours that somebody or something has damaged.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sparks::domain::name::{Name, SparkRef};

use crate::common::{Machine, Output};

/// A machine with the minimal base.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine
}

fn spark_dir(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(name)
}

fn id(machine: &Machine, name: &str) -> String {
    machine.spark(&["info", name, "--json"]).json()["id"].as_str().unwrap().to_owned()
}

fn state(machine: &Machine, name: &str) -> String {
    machine.spark(&["info", name, "--json"]).json()["state"].as_str().unwrap().to_owned()
}

fn bundle(machine: &Machine, name: &str) -> PathBuf {
    machine.place().run.join("bundles").join(id(machine, name))
}

#[track_caller]
fn error(output: &Output) -> Value {
    assert_ne!(output.status(), 0, "{}", output.stdout());
    serde_json::from_str::<Value>(&output.stderr()).unwrap_or_else(|e| panic!("{e}: {}", output.stderr()))
        ["error"]
        .clone()
}

/// The error is `corrupt`, names this path, and gives advice that holds these words.
#[track_caller]
fn corrupt(output: &Output, path: &Path, hint: &str) {
    let error = error(output);
    assert_eq!(error["code"], "corrupt", "{error}");
    assert!(error["message"].as_str().unwrap().contains(path.to_str().unwrap()), "{error}");
    assert!(error["hint"].as_str().unwrap_or_default().contains(hint), "{error}");
}

fn exec(machine: &Machine, name: &str, line: &str) -> String {
    machine.spark(&["exec", name, "sh", "-c", line]).ok().trim_end().to_owned()
}

#[test]
fn a_nul_is_in_no_name() {
    for bad in ["a\0b", "\0", "web\0", "p\0/web"] {
        assert!(bad.parse::<Name>().is_err() && bad.parse::<SparkRef>().is_err(), "{bad:?}");
        assert!(serde_json::from_value::<Name>(json!(bad)).is_err());
    }
    let machine = Machine::new();
    let error = machine.sparks().undelete("web\0", None).unwrap_err();
    assert_eq!(error.code().as_str(), "not_found");
    assert!(!error.to_string().contains('\0'));
}

#[test]
fn a_damaged_project_harms_no_other() {
    let machine = machine();
    machine.spark(&["create", "a/web"]).ok();
    machine.spark(&["create", "b/web"]).ok();
    for content in ["{", "", "{\"version\": 99}"] {
        fs::write(machine.pool().join("projects/a/project.json"), content).unwrap();
        assert_eq!(exec(&machine, "b/web", "echo works"), "works");
        machine.spark(&["stop", "-t", "0", "b/web"]).ok();
        let list = machine.spark(&["list", "-a", "--json"]).json();
        assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
        machine.spark(&["create", "b/new", "--no-start"]).ok();
        machine.spark(&["delete", "--now", "b/new"]).ok();
    }
}

#[test]
fn what_is_damaged_in_the_index_is_found_again_from_the_records() {
    let machine = machine();
    for name in ["web", "db"] {
        machine.spark(&["create", name]).ok();
    }
    let entry = |name: &str| machine.place().index().join(id(&machine, name));
    let pool = sparks::pool::Pool::open(&machine.place()).unwrap().unwrap();
    let find = |name: &str| {
        let found = pool.find_container(&id(&machine, name)).unwrap();
        found.map(|f| f.name.to_string())
    };
    let of_db = fs::read(entry("db")).unwrap();
    for content in [Some(&b"garbage"[..]), Some(b""), Some(&of_db), None] {
        match content {
            Some(content) => fs::write(entry("web"), content).unwrap(),
            None => fs::remove_file(entry("web")).unwrap(),
        }
        assert_eq!(find("web").as_deref(), Some("web"));
        let now: Value = serde_json::from_slice(&fs::read(entry("web")).unwrap()).unwrap();
        assert_eq!(now["name"], "web");
        assert_eq!(exec(&machine, "web", "echo works"), "works");
    }
    // Of no spark, and under no id: named, collected, and nothing else is.
    let gone = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    fs::write(machine.place().index().join(gone), &of_db).unwrap();
    let items = machine.spark(&["gc", "--json"]).json();
    assert!(items.to_string().contains(gone), "{items}");
    assert!(!machine.place().index().join(gone).exists());
    assert_eq!((find("web").as_deref(), find("db").as_deref()), (Some("web"), Some("db")));
}

#[test]
fn garbage_among_the_ephemeral_sparks_deletes_nobodys_spark() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let dir = machine.place().ephemeral();
    fs::create_dir_all(dir.join("directory")).unwrap();
    fs::write(dir.join("garbage"), "garbage").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    // Somebody dead says that `web` was his.
    let id = id(&machine, "web");
    let owner = json!({"pid": 1, "start_time": 1, "boot_id": "of yesterday"});
    let entry = json!({"spark": {"project": "default", "name": "web", "id": id}, "owner": owner});
    fs::write(dir.join(&id), entry.to_string()).unwrap();
    let traversal = json!({"spark": {"project": "..", "name": "../web", "id": id}, "owner": owner});
    fs::write(dir.join("01ARZ3NDEKTSV4RRFFQ69G5FAV"), traversal.to_string()).unwrap();
    assert_eq!(state(&machine, "web"), "running");
    machine.spark(&["gc"]).ok();
    assert_eq!(exec(&machine, "web", "echo works"), "works");
    assert!(!dir.join(&id).exists());
    assert_eq!(machine.spark(&["exec", "-", "echo", "works"]).ok(), "works\n");
}

#[test]
fn a_bundle_edited_by_hand_is_honoured_and_a_damaged_one_is_made_anew() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let config = bundle(&machine, "web").join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["env"].as_array_mut().unwrap().push("BY_HAND=yes".into());
    fs::write(&config, spec.to_string()).unwrap();
    assert_eq!(exec(&machine, "web", "echo $BY_HAND"), "yes");
    for what in ["not JSON", "missing", "empty", "filter"] {
        let path = match what {
            "filter" => config.with_file_name("seccomp.bpf"),
            _ => config.clone(),
        };
        match what {
            "not JSON" => fs::write(&path, "{").unwrap(),
            "empty" => fs::write(&path, "").unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let output = machine.spark(&["--json", "exec", "web", "true"]);
        corrupt(&output, &path, "when the spark is stopped and resumed");
        assert_eq!(output.status(), 125);
        machine.spark(&["stop", "web", "-t", "0"]).ok();
        machine.spark(&["resume", "web"]).ok();
        assert_eq!(exec(&machine, "web", "echo works$BY_HAND"), "works", "{what}");
    }
}

#[test]
fn a_spark_whose_sign_of_life_is_damaged_is_started_once() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let sign = bundle(&machine, "web").join("init.json");
    let good: Value = serde_json::from_slice(&fs::read(&sign).unwrap()).unwrap();
    // This test's own process, as if it had got the number of an earlier one.
    let mut other = good.clone();
    other["init"]["pid"] = std::process::id().into();
    let mut earlier = good.clone();
    earlier["init"]["boot_id"] = "of yesterday".into();
    for content in ["garbage".to_owned(), String::new(), other.to_string(), earlier.to_string()] {
        fs::write(&sign, &content).unwrap();
        assert_eq!(state(&machine, "web"), "stopped", "{content}");
        assert_eq!(exec(&machine, "web", "echo works"), "works", "{content}");
        let info = machine.spark(&["info", "web", "--json"]).json();
        let cgroup = PathBuf::from(info["oci"]["cgroup"].as_str().unwrap());
        let running = sparks::runtime::live::processes(&cgroup);
        assert_eq!(running, [info["pid"].as_i64().unwrap() as i32], "{content}");
    }
}

#[test]
fn what_libcontainer_remembers_may_be_damaged_and_sparks_end_and_start_all_the_same() {
    let machine = machine();
    let damage = || {
        let path = machine.place().oci().join(id(&machine, "web")).join("state.json");
        fs::write(path, "garbage").unwrap();
    };
    machine.spark(&["create", "web"]).ok();
    damage();
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert_eq!(exec(&machine, "web", "echo works"), "works");
    for line in [&["stop", "web", "-t", "0"] as &[&str], &["resume", "web"]] {
        machine.spark(&["pause", "web"]).ok();
        damage();
        machine.spark(line).ok();
        machine.spark(&["stop", "web", "-t", "0"]).ok();
        assert_eq!(exec(&machine, "web", "echo works"), "works");
    }
    damage();
    let (bundle, container) = (bundle(&machine, "web"), machine.place().oci().join(id(&machine, "web")));
    machine.spark(&["delete", "-f", "web"]).ok();
    assert!(!bundle.exists() && !container.exists());
}

#[test]
fn a_bundle_of_a_spark_that_is_gone_is_named_and_collected() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let gone = machine.place().run.join("bundles/01ARZ3NDEKTSV4RRFFQ69G5FAV");
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("config.json"), "{}").unwrap();
    for line in [&["gc", "--dry-run", "--json"] as &[&str], &["gc", "--json"]] {
        assert!(gone.exists());
        let items = machine.spark(line).json();
        assert_eq!(items.as_array().unwrap().len(), 1, "{items}");
        assert_eq!(items[0]["path"], gone.to_str().unwrap());
        assert_eq!(items[0]["owner"], "no spark");
    }
    assert!(!gone.exists());
    assert_eq!(exec(&machine, "web", "echo works"), "works");
}

#[test]
fn what_is_no_spark_among_the_sparks_is_passed_over() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let sparks = spark_dir(&machine, "");
    fs::write(sparks.join("file"), "").unwrap();
    fs::create_dir(sparks.join("Not A Name")).unwrap();
    fs::create_dir(sparks.join(".hidden")).unwrap();
    std::os::unix::fs::symlink("web", sparks.join("link")).unwrap();
    let list = machine.spark(&["list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    machine.spark(&["gc"]).ok();
    assert_eq!(error(&machine.spark(&["--json", "info", "file"]))["code"], "not_found");
    assert_eq!(error(&machine.spark(&["--json", "delete", "file"]))["code"], "not_found");
    assert_eq!(error(&machine.spark(&["--json", "create", "file"]))["code"], "exists");
    for left in ["file", "Not A Name", ".hidden"] {
        assert!(sparks.join(left).exists());
    }
}

#[test]
fn what_gc_cannot_free_is_named_and_keeps_nothing_else_from_being_freed() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let index = machine.place().index();
    // A directory under a name that no spark has, and one in the place of a spark's entry.
    let junk = index.join("junk");
    let entry = index.join(id(&machine, "web"));
    fs::remove_file(&entry).unwrap();
    for dir in [&junk, &entry] {
        fs::create_dir(dir).unwrap();
    }
    // Leftovers that are collected before the index, after it, and last.
    let left = [
        machine.pool().join("staging/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        index.join("01ARZ3NDEKTSV4RRFFQ69G5FAW"),
        machine.place().secrets().join("gone/KEY.age"),
    ];
    fs::create_dir(&left[0]).unwrap();
    fs::create_dir_all(left[2].parent().unwrap()).unwrap();
    for file in &left[1..] {
        fs::write(file, "{}").unwrap();
    }
    for line in [&["--json", "gc", "--dry-run"] as &[&str], &["--json", "gc"]] {
        let output = machine.spark(line);
        assert_eq!(output.status(), 1, "{line:?}: {}", output.stderr());
        let items: Value = serde_json::from_str(&output.stdout()).unwrap();
        let paths: Vec<&str> =
            items.as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
        assert_eq!(paths, left.each_ref().map(|path| path.to_str().unwrap()), "{line:?}");
        let errors: Vec<Value> =
            output.stderr().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for dir in [&junk, &entry] {
            let named =
                |error: &&Value| error["error"]["message"].as_str().unwrap().contains(dir.to_str().unwrap());
            assert_eq!(errors.iter().filter(named).count(), 1, "{errors:?}");
        }
        assert_eq!(errors.len(), 2, "{errors:?}");
    }
    assert!(left.iter().all(|path| !path.exists()));
    // Nor do they keep anybody from the spark, or from the lists.
    assert_eq!(exec(&machine, "web", "echo works"), "works");
    for line in [
        &["list", "-a"] as &[&str],
        &["top", "--once"],
        &["du"],
        &["stop", "-t", "0", "web"],
        &["resume", "web"],
    ] {
        machine.spark(line).ok();
    }
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
}
