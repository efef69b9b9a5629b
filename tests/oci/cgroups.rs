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

/// A process of another's in a cgroup, and the directory of that: gone with this.
struct Other {
    process: std::process::Child,
    dirs: Vec<PathBuf>,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let gone = |dir: &PathBuf| std::fs::remove_dir(dir).is_ok() || !dir.exists();
        // Those of the container too, should a test fail.
        let all = self.dirs.iter().map(|dir| dir.join("service")).chain(self.dirs.iter().cloned());
        let all: Vec<PathBuf> = all.collect();
        wait_for(|| all.iter().map(&gone).fold(true, |all, one| all & one));
    }
}

fn inode(dir: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir).unwrap())
}

#[test]
fn a_cgroup_that_was_there_stays_and_what_others_run_below_it_lives() {
    let dirs: Vec<PathBuf> = tops().iter().map(|top| top.join("spark-oci-parent")).collect();
    for dir in &dirs {
        std::fs::create_dir_all(dir).unwrap();
    }
    let process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut other = Other { process, dirs: dirs.clone() };
    // Gone before those cgroups are removed.
    let host = Host::new();
    let configure = |args: &[&str]| {
        host.configure(args, |c| {
            c["linux"]["cgroupsPath"] = json!("/spark-oci-parent");
            // Version 1 refuses rules for devices where there is a cgroup below.
            c["linux"]["resources"] = json!({"pids": {"limit": 50}});
            writable(c);
        });
    };
    // One that fails when libcontainer has made its cgroups, and removes them.
    configure(&["nosuch"]);
    for below in ["", "service"] {
        for dir in &dirs {
            std::fs::create_dir_all(dir.join(below)).unwrap();
        }
        let refused = host.oci(&["create", "parent"]);
        assert!(refused.stderr().contains("executable file not found"), "{}", refused.stderr());
        assert!(dirs.iter().all(|dir| dir.join(below).exists()), "{below}");
        let used = dirs
            .iter()
            .all(|dir| std::fs::write(dir.join("cgroup.procs"), other.process.id().to_string()).is_ok());
        assert!(used, "a process can be put there as before");
        for top in tops() {
            std::fs::write(top.join("cgroup.procs"), other.process.id().to_string()).unwrap();
        }
    }
    let before: Vec<u64> = dirs.iter().map(|dir| inode(dir)).collect();
    let stays = |when: &str| {
        let now: Vec<u64> = dirs.iter().map(|dir| inode(dir)).collect();
        assert_eq!(now, before, "{when}");
        let below = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap().flatten());
        let below: Vec<_> = below.filter(|e| e.path().is_dir()).map(|e| e.file_name()).collect();
        assert!(below.len() == dirs.len() && below.iter().all(|name| name == "service"), "{when}: {below:?}");
    };

    let script = "for dir in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do mkdir ${dir}made 2>/dev/null; done; exec sleep 1000";
    configure(&["sh", "-c", script]);
    host.start("parent");
    let mut placed = 0;
    for dir in &dirs {
        let procs = dir.join("service/cgroup.procs");
        // Version 1 has no processors in a new one.
        placed += usize::from(std::fs::write(procs, other.process.id().to_string()).is_ok());
    }
    assert!(placed > 0);
    // As runc has it: what is limited is the cgroup that was named.
    let limits = dirs.iter().filter_map(|dir| std::fs::read_to_string(dir.join("pids.max")).ok());
    assert_eq!(limits.collect::<Vec<_>>(), ["50\n"]);
    assert!(wait_for(|| dirs.iter().any(|dir| dir.join("made").exists())));
    let listed: Vec<u32> = serde_json::from_str(&host.oci(&["ps", "-f", "json", "parent"]).ok()).unwrap();
    assert!(!listed.is_empty() && !listed.contains(&other.process.id()), "{listed:?}");
    host.oci(&["kill", "--all", "parent", "KILL"]).ok();
    assert!(wait_for(|| host.state("parent")["status"] == "stopped"));
    host.oci(&["delete", "parent"]).ok();
    stays("after a delete");
    assert!(other.process.try_wait().unwrap().is_none());

    // Now somebody else is in there.
    assert!(host.oci(&["create", "parent"]).stderr().contains("is busy"));
    stays("after a create that was refused");
    assert!(other.process.try_wait().unwrap().is_none());
}
