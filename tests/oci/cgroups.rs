//! Where a container is in the hierarchies of cgroups, and what it sees of them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bundle::{Host, cgroups};
use crate::common::wait_for;

/// The tops of all hierarchies.
fn tops() -> Vec<PathBuf> {
    let fs = Path::new("/sys/fs/cgroup");
    if fs.join("cgroup.procs").exists() {
        return vec![fs.to_owned()];
    }
    let entries = std::fs::read_dir(fs).unwrap().flatten();
    let dirs = entries.filter(|e| e.file_type().unwrap().is_dir()).map(|e| e.path());
    dirs.filter(|top| top.join("cgroup.procs").exists()).collect()
}

/// Lets the container write to what it sees of cgroups.
fn writable(config: &mut Value) {
    for mount in config["mounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["type"] == "cgroup") {
        mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
    }
}

/// The cgroups of a process, and those that are mounted where it is, as the host numbers and names them.
fn places(pid: &str) -> (Vec<String>, Vec<String>) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let own = read("cgroup").lines().map(|l| l.splitn(3, ':').nth(2).unwrap().to_owned()).collect();
    let is_cgroup = |line: &&str| line.split(" - ").nth(1).unwrap().starts_with("cgroup");
    let mounts = read("mountinfo");
    let seen = mounts.lines().filter(is_cgroup).map(|l| l.split(' ').nth(3).unwrap().to_owned()).collect();
    (own, seen)
}

#[test]
fn a_container_and_its_commands_are_in_a_cgroup_of_its_own_in_every_hierarchy() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], writable);
    let pid_file = host.dir().join("pid");
    let path = pid_file.to_str().unwrap();
    for id in ["placed", "placed-run"] {
        let mut standing_by = None;
        if id == "placed" {
            host.start(id);
        } else {
            let mut run = host.command(&["run", id]);
            standing_by = Some(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            assert!(wait_for(
                || host.oci(&["list", "-q"]).ok().contains(id) && host.state(id)["status"] == "running"
            ));
        }
        assert_eq!(host.quietly(&["exec", "-d", "--pid-file", path, id, "sleep", "1000"]), 0);
        for pid in [host.pid(id).to_string(), std::fs::read_to_string(path).unwrap()] {
            let (own, seen) = places(&pid);
            assert!(own.len() >= tops().len() && !seen.is_empty(), "{own:?} {seen:?}");
            let is_own = |place: &String| place.starts_with(&format!("/spark-oci-{id}-"));
            assert!(own.iter().all(is_own), "{pid} is in {own:?}");
            assert!(seen.iter().all(is_own), "{pid} sees {seen:?}");
        }
        assert_eq!(cgroups(id).len(), tops().len());
        if let Some(run) = &standing_by {
            // It is no process of the container's.
            assert_eq!(places(&run.id().to_string()).0, places("self").0);
        }
        host.oci(&["delete", "--force", id]).ok();
        standing_by.map(|mut run| run.wait().unwrap());
        assert!(cgroups(id).is_empty(), "{:?}", cgroups(id));
    }
}

#[test]
fn a_container_that_may_write_cgroups_reaches_none_but_those_below_its_own() {
    let host = Host::new();
    let foreign: Vec<PathBuf> = tops().iter().map(|top| top.join("spark-oci-of-others")).collect();
    for dir in &foreign {
        std::fs::create_dir(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let script = "find /sys/fs/cgroup -name 'spark-oci-*' >/out/seen
        for procs in $(find /sys/fs/cgroup -name cgroup.procs); do
            mkdir ${procs%/*}/spark-oci-of-others/x ${procs%/*}/made
        done 2>/dev/null
        touch /out/ready
        exec sleep 1000";
    host.configure(&["sh", "-c", script], writable);
    host.start("reach");
    let ready = wait_for(|| host.out("ready").exists());
    let seen = std::fs::read_to_string(host.out("seen")).unwrap_or_default();
    let made_there = foreign.iter().any(|dir| dir.join("x").exists());
    let at_top: Vec<PathBuf> = tops().iter().map(|top| top.join("made")).filter(|dir| dir.exists()).collect();
    let made = cgroups("reach").iter().filter(|dir| dir.join("made").exists()).count();
    host.oci(&["delete", "--force", "reach"]).ok();
    let theirs = foreign.iter().flat_map(|dir| [dir.join("x"), dir.join("made"), dir.clone()]);
    for dir in theirs.chain(at_top.iter().cloned()) {
        let _ = std::fs::remove_dir(dir);
    }
    assert!(ready && !made_there && at_top.is_empty() && seen.is_empty(), "{seen} {at_top:?}");
    assert!(made > 0, "it could make no cgroup at all");
    assert!(cgroups("reach").is_empty(), "{:?}", cgroups("reach"));
}
