//! The bundle of a spark is one that another runtime runs, and both identities lead to each other.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sparks::sys::idmap::{IdMap, namespace};
use sparks::sys::mount;

use crate::inside::{machine, root, spark};

/// Ends what `runc` started, whatever happens.
struct Runc<'a>(&'a Path, String);

impl Runc<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["300", "runc", "--root"]).arg(self.0).args(args).arg(&self.1);
        command
    }
}

impl Drop for Runc<'_> {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force"]).stderr(Stdio::null()).status();
    }
}

/// What the starter makes in a mount namespace of its own, and what must not collide with it.
fn adapt(spec: &mut Value, root: &Path, shared: &[std::path::PathBuf], id: &str) {
    spec["root"]["path"] = json!(root);
    spec["linux"]["cgroupsPath"] = json!(format!("/spark-test-{id}"));
    let mut shared = shared.iter();
    for m in spec["mounts"].as_array_mut().unwrap() {
        if m["destination"].as_str().unwrap().starts_with("/spark/") {
            m["source"] = json!(shared.next().unwrap());
        }
    }
}

#[test]
fn runc_runs_the_bundle_of_a_spark() {
    let machine = machine();
    spark(&machine, "web", &["-e", "GREETING=hello", "--network", "none"]);
    let info = machine.spark(&["info", "web", "--json"]).json();
    let bundle = Path::new(info["oci"]["bundle"].as_str().unwrap()).to_owned();
    let first = info["oci"]["first_id"].as_u64().unwrap() as u32;
    let text = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();

    // The mounts are made in a process that forks and so has to have one thread: what follows is one program.
    let run = machine.place().run.join("runc");
    let mine = machine.place().run.join("mine");
    std::fs::create_dir_all(&run).unwrap();
    let user_ns = user_namespace(first);
    let sources = [
        root(&machine, "web"),
        machine.pool().join("system/bin"),
        machine.pool().join("system/all"),
        machine.pool().join("projects/default/shared"),
    ];
    let mut mounted = Vec::new();
    for (n, source) in sources.iter().enumerate() {
        let target = mine.join(n.to_string());
        std::fs::create_dir_all(&target).unwrap();
        let tree = mount::clone_tree(source).unwrap();
        mount::set_attributes(&tree, Some(user_ns.as_fd()), mount::Limits::default()).unwrap();
        mount::attach(&tree, &target).unwrap();
        mounted.push(target);
    }
    let runc = Runc(&run, format!("test-{}", std::process::id()));
    adapt(&mut spec, &mounted[0], &mounted[1..], &runc.1);
    let copy = machine.work().join("bundle");
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(copy.join("config.json"), spec.to_string()).unwrap();

    // First as it is: the placeholder that stands for PID 1 runs, and a command joins it.
    let log = std::fs::File::create(machine.work().join("runc.log")).unwrap();
    let mut create = runc.command(&["run", "--detach", "--bundle", copy.to_str().unwrap()]);
    let status = create.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).status();
    let said = || std::fs::read_to_string(machine.work().join("runc.log")).unwrap();
    let installed = "these tests need runc: `apt-get install runc`";
    assert!(status.expect(installed).success(), "{}", said());
    let state = runc.command(&["state"]).output().unwrap();
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_eq!(state["status"], "running");
    let script = "id -u; echo $GREETING; hostname; cat /spark-mark; echo; touch /made /spark/proj/made; \
                  grep -E '^(Seccomp|CapEff):' /proc/self/status; cat /proc/self/uid_map";
    let mut exec = Command::new("timeout");
    exec.args(["300", "runc", "--root"]).arg(&run).args(["exec", &runc.1, "/bin/sh", "-c", script]);
    let output = exec.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<&str> = text.split_whitespace().collect();
    let caps = crate::inside::sh(&machine, "web", "0", "grep CapEff /proc/self/status").ok();
    let caps = caps.split_whitespace().nth(1).unwrap();
    let first = first.to_string();
    let expected =
        ["0", "hello", "web", "web", "CapEff:", caps, "Seccomp:", "2", "0", first.as_str(), "65536"];
    assert_eq!(words, expected);
    // Both see one root, and what either makes is root's.
    assert_eq!(crate::inside::sh(&machine, "web", "0", "stat -c %u /made /spark/proj/made").ok(), "0\n0\n");
    // Its own shell ends on SIGTERM.
    let mut kill = Command::new("runc");
    kill.arg("--root").arg(&run).args(["kill", &runc.1, "TERM"]);
    assert!(kill.status().unwrap().success());
    let stopped = || {
        let state = runc.command(&["state"]).output().unwrap();
        String::from_utf8_lossy(&state.stdout).contains("stopped")
    };
    assert!(crate::common::wait_for(stopped), "the bundle's process does not end on SIGTERM");
}

/// `sys::idmap` forks, and the test runner has threads: another process holds the namespace while it is opened.
fn user_namespace(first: u32) -> std::os::fd::OwnedFd {
    let refused = namespace(IdMap::range(first, 65536));
    assert!(refused.is_err(), "the test runner has threads");
    let mut holder = Command::new("unshare")
        .args(["--user", "sleep", "20"])
        .stdin(Stdio::null())
        .spawn()
        .expect("these tests need unshare: `apt-get install util-linux`");
    let proc = Path::new("/proc").join(holder.id().to_string());
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    let entered = || std::fs::read_link(proc.join("ns/user")).is_ok_and(|ns| ns != own);
    assert!(crate::common::wait_for(entered));
    for map in ["uid_map", "gid_map"] {
        std::fs::write(proc.join(map), format!("0 {first} 65536\n")).unwrap();
    }
    let ns = std::fs::File::open(proc.join("ns/user")).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    ns.into()
}

#[test]
fn a_container_id_leads_to_the_spark_and_back() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let info = || machine.spark(&["info", "web", "--json"]).json();
    let id = info()["oci"]["id"].as_str().unwrap().to_owned();
    let index = machine.place().index().join(&id);
    let read = || -> Value {
        let file = if index.is_dir() { index.join("spark.json") } else { index.clone() };
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    let entry = read();
    assert_eq!(
        (&entry["project"], &entry["name"], &entry["id"]),
        (&json!("default"), &json!("web"), &info()["id"])
    );
    // libcontainer's own record has the same pid, and the same bundle.
    let state = machine.place().oci().join(&id).join("state.json");
    let state: Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    assert_eq!(state["pid"], info()["pid"]);
    assert!(state["bundle"].as_str().unwrap().contains(&id));
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(info()["oci"]["bundle"], Value::Null);
    assert!(!machine.place().oci().join(&id).exists(), "a stopped spark has no container");
    assert_eq!(read()["name"], "web");
    machine.spark(&["rename", "web", "shop"]).ok();
    assert_eq!(read()["name"], "shop", "the index follows a rename");
    machine.spark(&["delete", "shop", "--now"]).ok();
    assert!(!index.exists(), "nothing leads to a spark that is gone");
}
