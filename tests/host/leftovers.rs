//! What killed commands and damaged files leave of networks.

use std::path::{Path, PathBuf};

use crate::netns::{BEYOND4, HOST4, Host};

fn net(host: &Host) -> PathBuf {
    host.machine.place().run.join("net")
}

fn id_of(host: &Host, spark: &str) -> String {
    host.spark(&["--json", "info", spark]).json()["id"].as_str().unwrap().to_owned()
}

/// What `gc` has freed, by kind.
fn freed(host: &Host, args: &[&str]) -> Vec<String> {
    let items = host.spark(&[&["--json", "gc"], args].concat()).json();
    items.as_array().unwrap().iter().map(|item| item["what"].as_str().unwrap().to_owned()).collect()
}

fn paths_in(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn addresses_of_sparks_that_are_gone_are_free_after_gc_and_no_others() {
    let host = Host::new();
    host.spark(&["create", "web"]).ok();
    host.spark(&["create", "idle", "--no-start"]).ok();
    let [claims] = paths_in(&net(&host).join("addresses")).try_into().expect("one project");
    let listed = || {
        let mut all = paths_in(&claims);
        // How many blocks the project fills.
        all.retain(|path| !path.ends_with("blocks"));
        all.sort();
        all
    };
    let before = listed();
    assert_eq!(before.len(), 2);
    std::fs::write(claims.join("77"), "01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
    // Of a command that was killed while it claimed: no process has this number.
    std::fs::write(claims.join(".new-4194305-x"), "").unwrap();
    assert_eq!(freed(&host, &["--dry-run"]), ["address", "half-written file"]);
    assert_eq!(listed().len(), 4);
    assert_eq!(freed(&host, &[]), ["address", "half-written file"]);
    assert_eq!(listed(), before);
    // Where a record cannot be read, nobody can tell whose a claim is.
    std::fs::write(claims.join("77"), "01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
    std::fs::write(host.machine.pool().join("projects/default/sparks/idle/spark.json"), "{").unwrap();
    host.spark(&["gc"]);
    assert_eq!(listed().len(), 3);
}

#[test]
fn a_spark_whose_file_of_the_network_is_damaged_leaves_nothing_and_takes_nothing_of_others() {
    let host = Host::new();
    let before = host.state();
    host.talker("one/a", &["-p", "8080:80"]);
    host.talker("one/b", &["-p", "8081:80"]);
    host.spark(&["create", "two/a", "--egress", "allow=198.51.100.2"]).ok();
    let damage =
        |spark: &str| std::fs::write(net(&host).join("members").join(id_of(&host, spark)), "{").unwrap();
    for spark in ["one/a", "two/a"] {
        damage(spark);
        host.spark(&["stop", spark]).ok();
    }
    assert_eq!(host.on_router(&["ip", "-o", "link"]).matches(": spv").count(), 1);
    assert_eq!(std::fs::read_dir(net(&host).join("projects")).unwrap().count(), 1);
    assert!(!host.on_host(&["nft", "list", "ruleset"]).contains("8080"));
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8081")), "one/b");
    assert_eq!(host.hears_unseen("one/b", &[format!("{BEYOND4} 80")]), ["beyond"]);
    assert!(freed(&host, &[]).is_empty());
    // The last one takes the router with it.
    damage("one/b");
    host.spark(&["stop", "one/b"]).ok();
    host.is_again(&before);
    assert!(!net(&host).join("router").exists());
    host.spark(&["resume", "one/a"]).ok();
    assert_eq!(host.hears_unseen("one/a", &[format!("{BEYOND4} 80")]), ["beyond"]);
}

#[test]
fn gc_removes_what_is_of_no_spark_from_the_router_and_then_the_router() {
    let host = Host::new();
    let before = host.state();
    host.talker("one/a", &[]);
    host.spark(&["create", "two/a"]).ok();
    let (id, other) = (id_of(&host, "two/a"), host.addresses("two/a").0);
    let pid = host.spark(&["--json", "info", "two/a"]).json()["pid"].to_string();
    // Somebody removes its file, and it ends without a command of ours; somebody else keeps its network.
    let mut keeper = std::process::Command::new("nsenter");
    keeper.args(["-t", &pid, "-n", "sleep", "infinity"]);
    let keeper = host.background(keeper);
    let own = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert!(crate::common::wait_for(
        || std::fs::read_link(format!("/proc/{keeper}/ns/net")).is_ok_and(|ns| ns == own)
    ));
    let file = net(&host).join("members").join(&id);
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    host.spark(&["stop", "two/a"]).ok();
    assert_eq!(host.on_router(&["ip", "-o", "link"]).matches(": spv").count(), 2, "the control");
    let kinds = [
        "network device of a spark that is gone",
        "network of a project without sparks",
        "name of a spark that is gone",
    ];
    assert_eq!(freed(&host, &["--dry-run"]), kinds);
    let found = freed(&host, &[]);
    assert!(kinds.iter().all(|kind| found.iter().any(|freed| freed == kind)), "{found:?}");
    assert!(found.iter().any(|freed| freed == "permission of a network device that is gone"), "{found:?}");
    assert_eq!(host.on_router(&["ip", "-o", "link"]).matches(": spv").count(), 1);
    assert!(!host.on_host(&["ip", "route"]).contains(other.rsplit_once('.').unwrap().0));
    assert!(freed(&host, &[]).is_empty());
    // A file without a spark, whose device is there.
    std::fs::write(&file, &kept).unwrap();
    assert_eq!(freed(&host, &[]), ["network of a spark that ended"]);
    // And nobody at all.
    let last = net(&host).join("members").join(id_of(&host, "one/a"));
    std::fs::remove_file(last).unwrap();
    host.spark(&["stop", "one/a"]).ok();
    assert_ne!(host.state(), before, "the control");
    assert_eq!(freed(&host, &[]), ["router without sparks"]);
    host.is_again(&before);
}
