//! Every fault point fails, dies alone, and dies with its helper: all or nothing, no orphan, the next command works.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::LazyLock;

use crate::common::Machine;
use crate::{data, enter, files, images, leftovers, lives, oci, pool, secrets, snapshots, transfer};

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
pub(crate) static PORTS: LazyLock<[u16; 2]> = LazyLock::new(|| {
    let first = 20_000 + (std::process::id() % 500) as u16 * 20;
    let mut free = (first..first + 20).filter(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok());
    [free.next().unwrap(), free.next().unwrap()]
});

fn all() -> impl Iterator<Item = &'static Scenario> {
    [lives::ALL, files::ALL, images::ALL, snapshots::ALL, transfer::ALL, data::ALL, secrets::ALL, pool::ALL]
        .concat()
        .into_iter()
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

#[test]
fn every_fault_point_has_a_scenario() {
    let points = points();
    assert!(points.len() > 25, "{points:?}");
    // Those that have tests of their own.
    const OTHERS: [&str; 3] = [oci::POINTS, enter::POINTS, enter::OCI];
    let without =
        points.iter().filter(|p| !all().any(|s| s.covers(p)) && !OTHERS.iter().any(|o| p.starts_with(o)));
    let without: Vec<_> = without.collect();
    assert!(without.is_empty(), "fault points that no scenario passes: {without:?}");
}
