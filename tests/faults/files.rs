//! Fault points on the ways of what sparks come from and lead to: bases, repositories, projects, copied files.

use std::path::Path;

use crate::common::Machine;
use crate::points::{Scenario, exists, marked, still_marked};

pub(crate) const ALL: &[&Scenario] =
    &[&CP, &BASE_IMPORT, &BASE_EXPORT, &BASE_DELETE, &CREATE_CLONE, &PULL, &PROJECT_CREATE, &PROJECT_DELETE];

const CP: Scenario = Scenario {
    points: &["cp."],
    args: &["cp", "rootfs", "web:/"],
    before: |m| {
        marked(m);
        rootfs(m);
        m.spark(&["exec", "web", "--", "sh", "-c", "mkdir -p /rootfs/bin && echo old > /rootfs/bin/sh"]).ok();
    },
    after: |m| {
        let bin = m.pool().join("projects/default/sparks/web/root/rootfs/bin");
        let names: Vec<_> = std::fs::read_dir(&bin).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["sh"], "no temporary name is left");
        let sh = std::fs::read(bin.join("sh")).unwrap();
        assert!(sh == b"old\n" || sh == vec![7; 100_000], "half a file of {} bytes", sh.len());
        m.spark(&["cp", "rootfs", "web:/"]).ok();
        assert_eq!(std::fs::read(bin.join("sh")).unwrap(), vec![7; 100_000]);
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const BASE_IMPORT: Scenario = Scenario {
    points: &["base-import."],
    args: &["base", "import", "rootfs", "mine"],
    before: rootfs,
    after: |m| {
        if base_exists(m) {
            base_is_whole(m);
            m.spark(&["base", "delete", "mine"]).ok();
        }
        m.spark(&["base", "import", "rootfs", "mine"]).ok();
        base_is_whole(m);
        m.spark(&["base", "delete", "mine"]).ok();
    },
};

/// Nothing stays beside the file that is written, not even if the command is killed.
const BASE_EXPORT: Scenario = Scenario {
    points: &["base-export."],
    args: &["base", "export", "mine", "--tar", "out/base.tar"],
    before: |m| {
        rootfs(m);
        m.spark(&["base", "import", "rootfs", "mine"]).ok();
        std::fs::create_dir_all(m.work().join("out")).unwrap();
        std::fs::write(m.work().join("out/base.tar"), "older").unwrap();
    },
    after: |m| {
        let out = m.work().join("out");
        let names =
            || -> Vec<_> { std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect() };
        assert_eq!(names(), ["base.tar"]);
        assert_eq!(std::fs::read(out.join("base.tar")).unwrap(), b"older");
        m.spark(&["base", "export", "mine", "--tar", "out/base.tar"]).ok();
        assert_eq!(names(), ["base.tar"]);
        assert!(std::fs::metadata(out.join("base.tar")).unwrap().len() > 100_000);
        m.spark(&["base", "delete", "mine"]).ok();
    },
};

const BASE_DELETE: Scenario = Scenario {
    points: &["base-delete."],
    args: &["base", "delete", "mine"],
    before: |m| {
        rootfs(m);
        m.spark(&["base", "import", "rootfs", "mine"]).ok();
    },
    after: |m| {
        if base_exists(m) {
            base_is_whole(m);
            m.spark(&["base", "delete", "mine"]).ok();
        }
        assert!(!base_exists(m));
        m.spark(&["base", "import", "rootfs", "mine"]).ok();
        m.spark(&["base", "delete", "mine"]).ok();
    },
};

const CREATE_CLONE: Scenario = Scenario {
    points: &["create."],
    args: &["create", "web", "--clone", "shop"],
    before: repository,
    after: |m| {
        if exists(m, "web") {
            m.spark(&["exec", "web", "--", "grep", "-q", "one", "/work/shop/a.txt"]).ok();
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["create", "web", "--clone", "shop"]).ok();
        m.spark(&["exec", "web", "--", "test", "-d", "/work/shop/.git/objects"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const PULL: Scenario = Scenario {
    points: &["pull."],
    args: &["pull", "web"],
    before: |m| {
        repository(m);
        m.spark(&["create", "web", "--no-start", "--clone", "shop"]).ok();
    },
    after: |m| {
        assert_eq!(git(m, &["for-each-ref", "refs/spark"]), "", "all or nothing");
        m.spark(&["pull", "web"]).ok();
        let pulled = git(m, &["rev-parse", "refs/spark/web/main", "main"]);
        assert_eq!(pulled.lines().next(), pulled.lines().last());
        git(m, &["update-ref", "-d", "refs/spark/web/main"]);
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const PROJECT_CREATE: Scenario = Scenario {
    points: &["project-create."],
    args: &["create", "-P", "shop", "web"],
    before: |_| {},
    after: |m| {
        assert_eq!(m.spark(&["--json", "list", "-P", "shop"]).json(), serde_json::json!([]));
        m.spark(&["create", "-P", "shop", "web"]).ok();
        m.spark(&["delete", "-f", "--now", "shop/web"]).ok();
        m.spark(&["project", "delete", "shop"]).ok();
    },
};

const PROJECT_DELETE: Scenario = Scenario {
    points: &["project-delete."],
    args: &["project", "delete", "shop"],
    before: |m| {
        m.spark(&["create", "-P", "shop", "web", "--no-start"]).ok();
        m.spark(&["delete", "--now", "shop/web"]).ok();
    },
    after: |m| {
        if m.spark(&["project", "info", "shop"]).status() == 0 {
            m.spark(&["project", "delete", "shop"]).ok();
        }
        m.spark(&["--json", "project", "delete", "shop"]).fails_with("not_found");
    },
};

fn rootfs(machine: &Machine) {
    let root = machine.work().join("rootfs");
    if !root.exists() {
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/sh"), vec![7; 100_000]).unwrap();
    }
}

/// A repository with one commit, `shop` in the working directory.
fn repository(machine: &Machine) {
    if !machine.work().join("shop").exists() {
        std::fs::create_dir(machine.work().join("shop")).unwrap();
        git(machine, &["init", "--quiet", "-b", "main"]);
        std::fs::write(machine.work().join("shop/a.txt"), "one").unwrap();
        git(machine, &["add", "."]);
        git(machine, &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "one"]);
    }
}

fn git(machine: &Machine, args: &[&str]) -> String {
    let mut command = std::process::Command::new("git");
    let output = command.current_dir(machine.work().join("shop")).args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn base_exists(machine: &Machine) -> bool {
    let list = machine.spark(&["--json", "base", "list"]).json();
    list.as_array().unwrap().iter().any(|b| b["name"] == "mine")
}

fn base_is_whole(machine: &Machine) {
    let base = machine.spark(&["--json", "base", "info", "mine"]).json();
    assert_eq!((&base["broken"], &base["subvolume"]["read_only"]), (&serde_json::Value::Null, &true.into()));
    let sh = Path::new(base["path"].as_str().unwrap()).join("bin/sh");
    assert_eq!(std::fs::read(sh).unwrap(), vec![7; 100_000]);
    machine.spark(&["create", "frommine", "--base", "mine", "--no-start"]).ok();
    machine.spark(&["delete", "--now", "frommine"]).ok();
}

#[test]
fn a_copy_that_fails_anywhere_leaves_old_files_or_new_ones() {
    CP.run();
}

#[test]
fn a_base_import_that_fails_anywhere_makes_a_whole_base_or_none() {
    BASE_IMPORT.run();
}

#[test]
fn a_base_export_that_fails_anywhere_leaves_the_older_file_and_nothing_beside_it() {
    BASE_EXPORT.run();
}

#[test]
fn a_base_delete_that_fails_anywhere_leaves_a_whole_base_or_none() {
    BASE_DELETE.run();
}

#[test]
fn a_create_with_a_clone_that_fails_anywhere_makes_all_of_it_or_nothing() {
    CREATE_CLONE.run();
}

#[test]
fn a_pull_that_fails_anywhere_changes_no_branch() {
    PULL.run();
}

#[test]
fn a_project_that_fails_to_be_made_is_whole_or_not_there() {
    PROJECT_CREATE.run();
}

#[test]
fn a_project_delete_that_fails_anywhere_can_be_repeated() {
    PROJECT_DELETE.run();
}
