//! What must not be there once `spark gc` has run, whatever happened before.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{Machine, cgroups, claims, containers, wait_for};

/// Runs `gc`, and finds everything of this machine to be a spark's that is there.
#[track_caller]
pub(crate) fn none_after_gc(machine: &Machine, known_before: &BTreeSet<String>) {
    machine.spark(&["gc"]).ok();
    let left = machine.spark(&["--json", "gc", "--dry-run"]).json();
    assert_eq!(left, serde_json::json!([]), "a second gc finds something");
    assert!(machine.staged().is_empty(), "{:?}", machine.staged());

    let (all, running) = ids(machine);
    let place = machine.place();
    let found: BTreeSet<String> = containers(&place.run).into_iter().collect();
    assert_eq!(found, running, "containers that are no running spark's");
    for dir in ["bundles", "oci"] {
        let odd: Vec<_> =
            entries(&place.run.join(dir)).into_iter().filter(|n| !running.contains(n)).collect();
        assert!(odd.is_empty(), "{dir}: {odd:?}");
    }
    assert_eq!(claims(&place.run).len(), running.len(), "ranges of ids");
    let indexed: BTreeSet<String> = entries(&place.index()).into_iter().collect();
    assert!(indexed.is_subset(&all), "an index entry is no spark's: {indexed:?}, {all:?}");
    assert!(entries(&place.ephemeral()).is_empty(), "{:?}", entries(&place.ephemeral()));
    let expected = if is_used_by_networks(machine) { 3 } else { 1 };
    assert_eq!(mounts(machine), expected, "only the pool, and the router with its programs, are mounted");

    let members: BTreeSet<String> = entries(&place.run.join("net/members")).into_iter().collect();
    assert!(members.is_subset(&running), "networks of sparks that do not run: {members:?}");
    let links: Vec<String> = entries(Path::new("/sys/class/net")).into_iter().collect();
    let nets = sparks::net::Nets::of(&place.run);
    let is_used = !nets.members().is_empty();
    assert_eq!(links.contains(&nets.uplink()), is_used, "the uplink");
    for what in ["router", "barrier", "projects"] {
        let left = entries(&place.run.join("net").join(what));
        let there = place.run.join("net").join(what).is_file() || !left.is_empty();
        assert_eq!(there, is_used, "{what} of the network: {left:?}");
    }

    // An emptied cgroup is somebody's who is about to remove it, or nobody's.
    let orphaned = || {
        let mut new = all_cgroups();
        new.retain(|id| !known_before.contains(id) && !running.contains(id));
        new.retain(|id| {
            cgroups(id)
                .iter()
                .all(|d| std::fs::read_to_string(d.join("cgroup.procs")).is_ok_and(|t| t.is_empty()))
        });
        new
    };
    assert!(wait_for(|| orphaned().is_empty()), "cgroups: {:?}", orphaned());
    let processes = || {
        let mut pids = processes_inside(machine);
        pids.retain(|pid| !running.iter().any(|id| crate::common::processes(id).contains(pid)));
        pids
    };
    assert!(wait_for(|| processes().is_empty()), "processes: {:?}", processes());
}

/// The cgroups that are there: those of other installations of this host too.
pub(crate) fn all_cgroups() -> BTreeSet<String> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
    let tops = hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]).map(|h| h.join("spark"));
    tops.flat_map(|top| entries(&top)).filter(|n| n.len() == 26).collect()
}

/// The ids of all sparks, and of those that run.
fn ids(machine: &Machine) -> (BTreeSet<String>, BTreeSet<String>) {
    let list = machine.spark(&["--json", "list", "-a"]).json();
    let rows = list.as_array().unwrap().iter();
    let id = |row: &serde_json::Value| row["id"].as_str().unwrap_or_default().to_owned();
    let lives = |row: &&serde_json::Value| row["state"] == "running" || row["state"] == "paused";
    (rows.clone().map(id).collect(), rows.filter(lives).map(id).collect())
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn mounts(machine: &Machine) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (root, run) = (machine.place().root, machine.place().run);
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(Path::new);
    points.filter(|p| p.starts_with(&root) || p.starts_with(&run)).count()
}

/// Processes in another mount namespace than ours that see this machine's pool: a spark's, or a helper's.
fn processes_inside(machine: &Machine) -> Vec<i32> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let pool = machine.pool();
    let line = table.lines().find(|l| l.split(' ').nth(4).map(Path::new) == Some(&pool)).unwrap();
    let source = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap();
    let source = format!(" {source} ");
    let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|n| n.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns != ours)
            && std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|t| t.contains(&source))
    })
    .collect()
}

fn is_used_by_networks(machine: &Machine) -> bool {
    !sparks::net::Nets::of(&machine.place().run).members().is_empty()
}
