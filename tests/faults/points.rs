//! Every fault point fails, dies alone, and dies with its helper: all or nothing, no orphan, the next command works.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::LazyLock;

use crate::common::Machine;
use crate::{data, images, leftovers, oci, pool, secrets, snapshots, transfer};

/// A verb as it is made to fail.
pub(crate) struct Scenario {
    /// Fault points with these beginnings are on its way.
    pub(crate) points: &'static [&'static str],
    pub(crate) args: &'static [&'static str],
    /// Makes what the verb needs. The same after every fault.
    pub(crate) before: fn(&Machine),
    /// Finds all or nothing, does the same again, and removes everything.
    pub(crate) after: fn(&Machine),
}

/// Ports of the host that were free when the first of them was asked for, below those that connections get. `PORT0` and
/// `PORT1` in arguments.
static PORTS: LazyLock<[u16; 2]> = LazyLock::new(|| {
    let first = 20_000 + (std::process::id() % 500) as u16 * 20;
    let mut free = (first..first + 20).filter(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok());
    [free.next().unwrap(), free.next().unwrap()]
});

const CREATE: Scenario = Scenario {
    points: &["create.", "start.", "net-join."],
    args: &["create", "web", "-p", "127.0.0.1:PORT0:80"],
    before: |_| {},
    after: |m| {
        if exists(m, "web") {
            // It was not acknowledged, but it is all there.
            m.spark(&["exec", "web", "--", "sh", "-c", "test -x /bin/sh && echo x > /marker"]).ok();
            m.spark(&["--json", "create", "web"]).fails_with("exists");
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["create", "web"]).ok();
        m.spark(&["exec", "web", "--", "true"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const EPHEMERAL: Scenario = Scenario {
    points: &["create.", "start."],
    args: &["exec", "-", "--", "true"],
    before: |_| {},
    after: |m| {
        assert_eq!(m.spark(&["--json", "list"]).json(), serde_json::json!([]));
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
        m.spark(&["exec", "-", "--", "true"]).ok();
    },
};

const RESUME: Scenario = Scenario {
    points: &["start."],
    args: &["resume", "web"],
    before: |m| {
        marked(m);
        m.spark(&["stop", "web"]).ok();
    },
    after: |m| {
        m.spark(&["resume", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const STOP: Scenario = Scenario {
    points: &["stop.", "net-leave."],
    args: &["stop", "web"],
    before: marked,
    after: |m| {
        m.spark(&["stop", "web"]).ok();
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["state"], "stopped");
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const PORT: Scenario = Scenario {
    points: &["port."],
    args: &["port", "open", "web", "127.0.0.1:PORT1:80"],
    before: marked,
    after: |m| {
        let at = format!("127.0.0.1:{}", PORTS[1]);
        m.spark(&["port", "open", "web", &format!("{at}:80")]).ok();
        assert_eq!(m.spark(&["--json", "port", "web"]).json()[0]["host"], at);
        m.spark(&["stop", "web"]).ok();
        m.spark(&["resume", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const DELETE: Scenario = Scenario {
    points: &["delete.", "stop."],
    args: &["delete", "-f", "web"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            m.spark(&["delete", "-f", "web"]).ok();
        } else {
            m.spark(&["--json", "delete", "-f", "web"]).fails_with("not_found");
        }
        m.spark(&["undelete", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const DELETE_NOW: Scenario = Scenario {
    points: &["delete-now.", "destroy.", "stop.", "delete.ended", "delete.discarded"],
    args: &["delete", "-f", "--now", "web"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            still_marked(m, "web");
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["--json", "delete", "-f", "--now", "web"]).fails_with("not_found");
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
    },
};

const GC: Scenario = Scenario {
    points: &["gc."],
    args: &["gc"],
    before: |m| {
        m.spark(&["create", "web", "--no-start"]).ok();
        m.spark(&["delete", "--keep", "1ms", "web"]).ok();
    },
    after: |m| assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([])),
};

const RENAME: Scenario = Scenario {
    points: &["rename."],
    args: &["rename", "web", "app"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            assert!(!exists(m, "app"));
            m.spark(&["rename", "web", "app"]).ok();
        }
        assert!(exists(m, "app") && !exists(m, "web"));
        assert_eq!(m.spark(&["--json", "info", "app"]).json()["state"], "running");
        still_marked(m, "app");
        m.spark(&["delete", "-f", "--now", "app"]).ok();
    },
};

const SET: Scenario = Scenario {
    points: &["set."],
    args: &["set", "web", "--pids", "60", "--memory", "80M", "--idle-stop", "never"],
    before: |m| {
        marked(m);
        m.spark(&["set", "web", "--pids", "50", "--memory", "64M"]).ok();
    },
    after: |m| {
        // Of the limits that are recorded and those that are in force, each is the old or the new, whole.
        let info = m.spark(&["--json", "info", "web"]).json();
        for limits in [&info["limits"], &info["options"]["limits"]] {
            let known = [(50, 64 << 20), (60, 80 << 20)];
            assert!(known.iter().any(|(p, m)| limits["pids"] == *p && limits["memory"] == *m), "{limits}");
        }
        let recorded = info["options"]["limits"].clone();
        m.spark(&["stop", "web"]).ok();
        m.spark(&["resume", "web"]).ok();
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["limits"], recorded);
        m.spark(&["set", "web", "--pids", "60", "--memory", "80M"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const UP_ON_CONNECT: Scenario = Scenario {
    points: &["up-on-connect."],
    args: &["up-on-connect", "web", "8080:80", "--install", "units", "--", "new"],
    before: |m| {
        m.spark(&["create", "web", "--no-start"]).ok();
        std::fs::create_dir(m.work().join("units")).unwrap();
    },
    after: |m| {
        let units = || {
            let read = |kind| std::fs::read_to_string(m.work().join("units").join(kind)).ok();
            ["spark-default.web.8080.socket", "spark-default.web.8080.service"].map(read)
        };
        // No socket without its service, which does nothing alone.
        assert!(units()[0].is_none(), "{:?}", units());
        let args = ["up-on-connect", "web", "8080:80", "--install", "units", "--"];
        m.spark(&[&args[..], &["new"]].concat()).ok();
        let [socket, service] = units();
        assert!(socket.is_some() && service.unwrap().contains("-- new\n"));
        m.spark(&["delete", "--now", "web"]).ok();
        std::fs::remove_dir_all(m.work().join("units")).unwrap();
    },
};

const UNDELETE: Scenario = Scenario {
    points: &["undelete."],
    args: &["undelete", "web"],
    before: |m| {
        marked(m);
        m.spark(&["delete", "-f", "web"]).ok();
    },
    after: |m| {
        if !exists(m, "web") {
            m.spark(&["undelete", "web"]).ok();
        }
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
        still_marked(m, "web");
        // What brought it back a crash may have left half-done: it can go and come once more all the same.
        m.spark(&["delete", "-f", "web"]).ok();
        m.spark(&["undelete", "web"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

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

const OWN: &[&Scenario] = &[
    &CREATE,
    &EPHEMERAL,
    &RESUME,
    &STOP,
    &PORT,
    &DELETE,
    &DELETE_NOW,
    &GC,
    &RENAME,
    &SET,
    &UP_ON_CONNECT,
    &UNDELETE,
    &CP,
    &BASE_IMPORT,
    &BASE_DELETE,
    &images::BASE_PULL,
    &images::CREATE_RUN,
    &images::STOP_RUN,
    &CREATE_CLONE,
    &PULL,
    &PROJECT_CREATE,
    &PROJECT_DELETE,
    &snapshots::SNAPSHOT,
    &snapshots::SNAPSHOT_DELETE,
    &snapshots::RESTORE,
    &snapshots::UNDO,
    &snapshots::FORK,
    &snapshots::PICK,
    &snapshots::BASE_SAVE,
    &transfer::SEND,
    &transfer::RECEIVE,
    &transfer::INCREMENT,
    &pool::GROW,
];

fn all() -> impl Iterator<Item = &'static Scenario> {
    OWN.iter().copied().chain(data::ALL).chain(secrets::ALL)
}

impl Scenario {
    fn covers(&self, point: &str) -> bool {
        self.points.iter().any(|p| point.starts_with(p))
    }

    pub(crate) fn run(&self) {
        let machine = Machine::new().with_base();
        // A spark that nothing happens to.
        machine.spark(&["create", "-P", "bystander", "other"]).ok();
        machine.spark(&["exec", "bystander/other", "--", "sh", "-c", "echo safe > /marker"]).ok();
        let other = machine.spark(&["--json", "info", "bystander/other"]).json()["pid"].clone();
        machine.spark(&["stop", "bystander/other"]).ok();
        assert!(other.is_i64());
        let mut hit = 0;
        for point in points().iter().filter(|p| self.covers(p)) {
            for mode in ["fail", "die", "die-all"] {
                eprintln!("{:?} with {point}={mode}", self.args);
                (self.before)(&machine);
                let cgroups = leftovers::all_cgroups();
                let args: Vec<String> = self.args.iter().map(with_ports).collect();
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let mut command = machine.command(&args);
                if let Ok(stream) = File::open(machine.work().join("stdin")) {
                    command.stdin(stream);
                }
                let out =
                    command.env("SPARK_FAULT", format!("{point}={mode}")).process_group(0).output().unwrap();
                let said = String::from_utf8_lossy(&out.stderr);
                assert!(!out.status.success(), "{:?} passed {point}={mode}: {said}", self.args);
                if mode == "fail" {
                    assert!(said.contains("fault point"), "{said}");
                }
                hit += 1;
                leftovers::none_after_gc(&machine, &cgroups);
                (self.after)(&machine);
                leftovers::none_after_gc(&machine, &cgroups);
                let list = machine.spark(&["--json", "list", "-P", "bystander"]).json();
                assert_eq!((&list[0]["name"], &list[0]["state"]), (&"other".into(), &"stopped".into()));
            }
        }
        assert!(hit > 0, "no fault point is on the way of {:?}", self.args);
        let said = machine.spark(&["exec", "bystander/other", "--", "cat", "/marker"]).ok();
        assert_eq!(said, "safe\n");
    }
}

fn with_ports(arg: &&str) -> String {
    let arg = arg.replace("PORT0", &PORTS[0].to_string());
    arg.replace("PORT1", &PORTS[1].to_string())
}

/// The names of all fault points, from the source.
pub(crate) fn points() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for rest in text.split("fault::point(").skip(1) {
            let name = rest.trim_start().strip_prefix('"').and_then(|r| r.split('"').next());
            let name =
                name.unwrap_or_else(|| panic!("{}: a fault point's name is a literal", path.display()));
            assert!(found.insert(name.to_owned()), "two fault points are named {name}");
        }
    }
    found
}

pub(crate) fn exists(machine: &Machine, spark: &str) -> bool {
    let out = machine.spark(&["--json", "info", spark]);
    if out.status() != 0 {
        out.fails_with("not_found");
    }
    out.status() == 0
}

pub(crate) fn marked(machine: &Machine) {
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["exec", "web", "--", "sh", "-c", "echo kept > /marker"]).ok();
}

#[track_caller]
pub(crate) fn still_marked(machine: &Machine, spark: &str) {
    assert_eq!(machine.spark(&["exec", spark, "--", "cat", "/marker"]).ok(), "kept\n");
}

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
fn every_fault_point_has_a_scenario() {
    let points = points();
    assert!(points.len() > 25, "{points:?}");
    let without: Vec<_> =
        points.iter().filter(|p| !all().any(|s| s.covers(p)) && !p.starts_with(oci::POINTS)).collect();
    assert!(without.is_empty(), "fault points that no scenario passes: {without:?}");
}

#[test]
fn a_create_that_fails_anywhere_makes_all_of_it_or_nothing() {
    CREATE.run();
}

#[test]
fn an_ephemeral_spark_is_gone_wherever_its_making_failed() {
    EPHEMERAL.run();
}

#[test]
fn a_resume_that_fails_anywhere_leaves_a_spark_that_can_be_resumed() {
    RESUME.run();
}

#[test]
fn a_stop_that_fails_anywhere_can_be_repeated() {
    STOP.run();
}

#[test]
fn a_port_that_fails_to_be_opened_can_be_opened() {
    PORT.run();
}

#[test]
fn a_delete_that_fails_anywhere_loses_nothing() {
    DELETE.run();
}

#[test]
fn a_delete_now_that_fails_anywhere_leaves_all_or_nothing() {
    DELETE_NOW.run();
}

#[test]
fn a_gc_that_fails_anywhere_can_be_repeated() {
    GC.run();
}

#[test]
fn a_rename_that_fails_anywhere_leaves_one_name_and_a_running_spark() {
    RENAME.run();
}

#[test]
fn a_set_that_fails_anywhere_leaves_limits_whole_and_starts_with_the_recorded_ones() {
    SET.run();
}

#[test]
fn units_that_cannot_be_installed_leave_no_socket() {
    UP_ON_CONNECT.run();
}

#[test]
fn an_undelete_that_fails_anywhere_leaves_it_in_the_trash_or_back() {
    UNDELETE.run();
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
