//! Forks of sparks and snapshots, and bases saved from them.

use std::collections::BTreeSet;

use sparks::domain::name::SparkRef;
use sparks::ops::Silent;
use sparks::ops::fork::Request;

use crate::common::{Machine, wait_for};
use crate::consistency::with_databases;

fn machine() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "-e", "A=1", "--pids", "77", "--hostname", "www"]).ok();
    inside(&machine, "web", "echo old > /f");
    machine
}

fn inside(machine: &Machine, spark: &str, line: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", line]).ok().trim().to_owned()
}

fn info(machine: &Machine, spark: &str) -> serde_json::Value {
    machine.spark(&["--json", "info", spark]).json()
}

#[test]
fn a_fork_has_the_files_of_its_source_whatever_that_is_doing() {
    let machine = machine();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    inside(&machine, "web", "echo new > /f");
    for (name, before) in [("of-running", "resume"), ("of-paused", "pause"), ("of-stopped", "stop")] {
        machine.spark(&[before, "web"]).ok();
        let state = info(&machine, "web")["state"].clone();
        assert_eq!(machine.spark(&["fork", "web", name]).ok(), format!("{name}\n"));
        assert_eq!(info(&machine, "web")["state"], state);
        assert_eq!(inside(&machine, name, "cat /f"), "new");
    }
    machine.spark(&["fork", "web@s", "of-snapshot", "--no-start"]).ok();
    assert_eq!(info(&machine, "of-snapshot")["state"], "stopped");
    assert_eq!(inside(&machine, "of-snapshot", "cat /f; echo changed > /f"), "old");
    machine.spark(&["fork", "web@s", "again"]).ok();
    assert_eq!(inside(&machine, "again", "cat /f"), "old");
    // The same under another verb.
    machine.spark(&["create", "made", "--from", "web@s"]).ok();
    assert_eq!(inside(&machine, "made", "cat /f; echo $A"), "old\n1");
    assert_eq!(machine.spark(&["exec", "-", "--from", "web@s", "--", "cat", "/f"]).ok(), "old\n");
}

#[test]
fn a_fork_is_a_machine_of_its_own_with_the_options_of_its_source() {
    let machine = machine();
    machine.spark(&["fork", "web", "app", "-e", "B=2"]).ok();
    let (web, app) = (info(&machine, "web"), info(&machine, "app"));
    assert_ne!(web["id"], app["id"]);
    assert_ne!(web["oci"]["first_id"], app["oci"]["first_id"]);
    assert_eq!(app["options"]["limits"]["pids"], 77);
    assert_eq!((&app["options"]["env"]["A"], &app["options"]["env"]["B"]), (&"1".into(), &"2".into()));
    assert_eq!((&app["origin"]["name"], &app["origin"]["id"]), (&"web".into(), &web["id"]));
    assert_eq!(inside(&machine, "web", "hostname"), "www");
    assert_eq!(inside(&machine, "app", "hostname; cat /etc/hostname"), "app\napp");
    let machine_id = |spark| inside(&machine, spark, "cat /etc/machine-id");
    assert_ne!(machine_id("web"), machine_id("app"));
    assert_eq!(inside(&machine, "app", "stat -c %u:%g /f"), "0:0");
}

#[test]
fn a_fork_makes_ssh_host_keys_of_its_own() {
    let machine = with_databases();
    machine.spark(&["create", "web", "--base", "databases"]).ok();
    let keys = |spark: &str| -> BTreeSet<String> {
        let all = inside(&machine, spark, "cat /etc/ssh/ssh_host_*_key.pub | cut -d ' ' -f 1,2");
        all.lines().map(str::to_owned).collect()
    };
    let had = keys("web");
    assert!(had.len() >= 3, "{had:?}");
    machine.spark(&["fork", "web", "app"]).ok();
    // Not started, it has none, and gets them when it is.
    machine.spark(&["fork", "web", "late", "--no-start"]).ok();
    let ssh = machine.pool().join("projects/default/sparks/late/root/etc/ssh");
    let names = std::fs::read_dir(ssh).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("ssh_host_")));
    machine.spark(&["resume", "late"]).ok();
    machine.spark(&["base", "save", "web", "tpl"]).ok();
    machine.spark(&["create", "made", "--base", "tpl"]).ok();
    let mut all = had.clone();
    for spark in ["app", "late", "made"] {
        let new = keys(spark);
        assert!(new.len() == 1 && new.iter().all(|key| key.starts_with("ssh-ed25519 ")), "{spark}: {new:?}");
        inside(&machine, spark, "mkdir -p /run/sshd && /usr/sbin/sshd -t");
        assert!(new.into_iter().all(|key| all.insert(key)), "{spark} has a key of another one");
    }
    assert_eq!(keys("web"), had);
    let files = inside(&machine, "app", "stat -c '%a %u:%g' /etc/ssh/ssh_host_*");
    assert_eq!(files, "600 0:0\n644 0:0");
    inside(
        &machine,
        "app",
        "ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key | diff - /etc/ssh/ssh_host_ed25519_key.pub",
    );
}

/// A spark's own `ssh-keygen` would be waited for.
#[test]
fn no_program_of_a_spark_is_run_for_its_ssh_keys() {
    let machine = machine();
    let slow = "mkdir -p /etc/ssh /usr/sbin /usr/bin; printf '#!/bin/sh\\nexec sleep 100000\\n' > /usr/bin/ssh-keygen
        cp /usr/bin/ssh-keygen /usr/sbin/sshd; chmod 755 /usr/bin/ssh-keygen /usr/sbin/sshd";
    inside(&machine, "web", slow);
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(
        inside(&machine, "web", "ls /etc/ssh; pidof sleep || true"),
        "ssh_host_ed25519_key\nssh_host_ed25519_key.pub"
    );
}

#[test]
fn a_link_in_the_place_of_ssh_keys_leads_nowhere_and_stops_no_fork() {
    let machine = machine();
    let keys = machine.work().join("keys");
    std::fs::create_dir(&keys).unwrap();
    std::fs::write(keys.join("ssh_host_rsa_key"), "the host's").unwrap();
    inside(&machine, "web", &format!("ln -s /../../../..{} /etc/ssh", keys.display()));
    machine.spark(&["fork", "web", "app"]).ok();
    assert_eq!(std::fs::read_to_string(keys.join("ssh_host_rsa_key")).unwrap(), "the host's");
}

#[test]
fn forks_cross_projects_and_go_twenty_deep() {
    let machine = machine();
    machine.spark(&["fork", "web", "shop/web"]).ok();
    assert_eq!(inside(&machine, "shop/web", "cat /f"), "old");
    let list = machine.spark(&["--json", "list", "-P", "shop"]).json();
    assert_eq!((&list[0]["name"], &list[0]["origin"]), (&"web".into(), &"web".into()));
    machine.spark(&["fork", "shop/web", "f-0", "--no-start"]).ok();
    let (sparks, root) =
        (machine.sparks(), |n| machine.pool().join(format!("projects/default/sparks/f-{n}/root")));
    for n in 1..=20 {
        std::fs::write(root(n - 1).join(format!("made-{n}")), "x").unwrap();
        let request = Request {
            source: format!("f-{}", n - 1).parse().unwrap(),
            name: format!("f-{n}").parse::<SparkRef>().unwrap(),
            count: None,
            changes: Default::default(),
            start: false,
        };
        let made = sparks.fork(request, &Silent).unwrap();
        made.into_iter().for_each(|f| f.made.unwrap());
    }
    // Each of them lives without those before it.
    for n in 0..20 {
        machine.spark(&["delete", "--now", &format!("f-{n}")]).ok();
    }
    assert_eq!(inside(&machine, "f-20", "cat /f; ls -d /made-* | wc -l"), "old\n20");
}

#[test]
fn many_forks_start_from_one_moment() {
    let machine = machine();
    let count = "n=0; while :; do n=$((n+1)); echo $n > /n.new; mv /n.new /n; done";
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", count]).ok();
    let counted = machine.pool().join("projects/default/sparks/web/root/n");
    assert!(wait_for(|| counted.exists()));
    let names: Vec<String> = (1..=4).map(|n| format!("w-{n}")).collect();
    let made = machine.spark(&["fork", "web", "w", "--count", "4"]).ok();
    assert_eq!(made.lines().collect::<Vec<_>>(), names);
    let values: BTreeSet<String> = names.iter().map(|n| inside(&machine, n, "cat /n")).collect();
    assert_eq!(values.len(), 1, "{values:?}");
    let ids: BTreeSet<String> = names.iter().map(|n| inside(&machine, n, "cat /etc/machine-id")).collect();
    assert_eq!(ids.len(), 4);
    assert!(machine.staged().is_empty(), "{:?}", machine.staged());
}

#[test]
fn a_name_that_is_taken_makes_no_fork_at_all() {
    let machine = machine();
    machine.spark(&["create", "w-3", "--no-start"]).ok();
    let said = machine.spark(&["--json", "fork", "web", "w", "-n", "4"]).fails_with("exists");
    assert!(said.contains("w-3"), "{said}");
    machine.spark(&["--json", "fork", "web", "web"]).fails_with("exists");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "w-3\nweb\n");
    for bad in [&["-n", "0"][..], &["-n", "10001"], &["--base", "minimal"], &["--from", "web"]] {
        machine.spark(&[&["--json", "fork", "web", "x"], bad].concat()).fails_with("usage");
    }
    let long = "a".repeat(63);
    machine.spark(&["--json", "fork", "web", &long, "-n", "2"]).fails_with("invalid_name");
    machine.spark(&["--json", "fork", "nobody", "x"]).fails_with("not_found");
    machine.spark(&["--json", "fork", "web@nothing", "x"]).fails_with("not_found");
}

#[test]
fn a_snapshot_that_was_forked_can_go_and_the_fork_still_tells_of_it() {
    let machine = machine();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["fork", "web@s", "app"]).ok();
    machine.spark(&["snapshot", "delete", "web", "s"]).ok();
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
    let origin = &info(&machine, "app")["origin"];
    assert_eq!((&origin["name"], &origin["snapshot"]), (&"web".into(), &"s".into()));
    machine.spark(&["stop", "app"]).ok();
    assert_eq!(inside(&machine, "app", "cat /f"), "old");
}

#[test]
fn a_base_saved_from_a_spark_has_its_files_and_not_its_identity() {
    let machine = machine();
    let fill = "echo kept > /etc/kept; echo 0123 > /etc/machine-id.real; mkdir -p /tmp/a/b/c /var/tmp /run/x /var/lib/systemd
        echo x | tee /tmp/a/b/c/d /var/tmp/y /run/x/z /tmp/.hidden /var/lib/systemd/random-seed > /dev/null
        mkdir -p /etc/ssh; touch /etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_rsa_key.pub /etc/ssh/sshd_config
        ln -s /etc/kept /tmp/link; mkfifo /tmp/fifo; chmod 1777 /tmp";
    inside(&machine, "web", fill);
    let root = machine.pool().join("projects/default/sparks/web/root");
    std::fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    inside(&machine, "web", "echo later > /etc/kept");
    assert_eq!(machine.spark(&["base", "save", "web@s", "tpl"]).ok(), "tpl\n");
    let base = machine.spark(&["--json", "base", "info", "tpl"]).json();
    assert_eq!((&base["origin"], &base["subvolume"]["read_only"]), (&"save web@s".into(), &true.into()));
    let path = std::path::Path::new(base["path"].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(path.join("etc/machine-id")).unwrap(), "");
    for dir in ["tmp", "var/tmp", "run"] {
        assert_eq!(std::fs::read_dir(path.join(dir)).unwrap().count(), 0, "{dir}");
    }
    assert!(!path.join("var/lib/systemd/random-seed").exists());
    let ssh: Vec<_> =
        std::fs::read_dir(path.join("etc/ssh")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(ssh, ["sshd_config"]);
    machine.spark(&["create", "app", "--base", "tpl"]).ok();
    assert_eq!(inside(&machine, "app", "cat /etc/kept; stat -c %a /tmp"), "kept\n1777");
}

#[test]
fn replacing_a_base_touches_no_spark_made_from_it() {
    let machine = machine();
    machine.spark(&["base", "save", "web", "tpl"]).ok();
    machine.spark(&["create", "app", "--base", "tpl"]).ok();
    inside(&machine, "web", "echo new > /f");
    machine.spark(&["--json", "base", "save", "web", "tpl"]).fails_with("exists");
    machine.spark(&["--json", "base", "save", "web@none", "tpl", "--replace"]).fails_with("not_found");
    let old = machine.spark(&["--json", "base", "info", "tpl"]).json()["id"].clone();
    machine.spark(&["base", "save", "web", "tpl", "--replace"]).ok();
    assert_ne!(machine.spark(&["--json", "base", "info", "tpl"]).json()["id"], old);
    assert_eq!(info(&machine, "app")["origin"]["id"], old);
    assert_eq!(inside(&machine, "app", "cat /f"), "old");
    machine.spark(&["create", "next", "--base", "tpl"]).ok();
    assert_eq!(inside(&machine, "next", "cat /f"), "new");
    assert!(machine.staged().is_empty());
    machine.spark(&["base", "save", "web", "fresh", "--replace"]).ok();
}
