//! What becomes of networks when somebody takes a part of them away, or a part of them is damaged.

use std::process::Command;

use crate::common::{Output, wait_for};
use crate::netns::{BEYOND4, HOST4, Host, inside};

/// The problem that `spark info` and `spark doctor` tell of. None if both tell of none.
fn problem(host: &Host, spark: &str) -> Option<String> {
    let told =
        host.spark(&["--json", "info", spark]).json()["network"]["problem"].as_str().map(str::to_owned);
    let checks: serde_json::Value =
        serde_json::from_str(&host.spark(&["--json", "doctor"]).stdout()).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "networks").unwrap().clone();
    assert_eq!(check["ok"].as_bool().unwrap(), told.is_none(), "{check} {told:?}");
    if let Some(told) = &told {
        assert!(told.starts_with(check["found"].as_str().unwrap()), "{check} {told}");
        assert!(told.ends_with("`spark gc` mends that") && check["remedy"] == "spark gc", "{check} {told}");
    }
    told
}

#[test]
fn info_and_doctor_tell_what_running_sparks_lack_and_gc_mends_it() {
    let host = Host::new();
    host.spark(&["create", "web"]).ok();
    host.spark(&["create", "later", "--no-start"]).ok();
    assert_eq!(problem(&host, "web"), None);
    let uplink = host.on_host(&["sh", "-c", "basename /proc/sys/net/ipv4/conf/spk-*"]);
    let resolver = host.machine.place().run.join("net/names/resolver");
    let losses: [(&str, &dyn Fn()); 5] = [
        ("flushed", &|| drop(host.on_host(&["nft", "flush", "ruleset"]))),
        ("flushed", &|| drop(host.on_router(&["nft", "flush", "ruleset"]))),
        ("no way to sparks", &|| drop(host.on_host(&["ip", "link", "set", uplink.trim(), "down"]))),
        ("no names", &|| {
            std::fs::remove_file(&resolver).unwrap();
        }),
        ("router of sparks is gone", &|| drop(host.on_host(&["ip", "link", "del", uplink.trim()]))),
    ];
    for (told, lose) in losses {
        lose();
        assert!(wait_for(|| problem(&host, "web").is_some_and(|problem| problem.contains(told))), "{told}");
        host.spark(&["gc"]).ok();
        assert_eq!(problem(&host, "web"), None, "{told}");
        assert_eq!(host.hears_unseen("web", &[format!("{BEYOND4} 80")]), ["beyond"], "{told}");
        assert!(host.spark(&["exec", "web", "--", "nslookup", "web"]).status() == 0, "{told}");
    }
    // One that does not run lacks nothing.
    assert!(host.spark(&["--json", "info", "later"]).json()["network"].is_null());
}

/// With the path of this program in the place of the one that is installed.
#[test]
fn the_unit_that_follows_firewalls_is_what_systemd_takes() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/systemd/spark-network@.service");
    let text = std::fs::read_to_string(shipped).unwrap();
    assert_eq!(text.matches("=/usr/local/bin/spark gc\n").count(), 2, "at a start and at a reload");
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("spark-network@.service");
    let verify = |text: &str| {
        std::fs::write(&unit, text).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
        let verified = verified.expect("these tests need systemd-analyze: `apt-get install systemd`");
        String::from_utf8_lossy(&verified.stderr).into_owned()
    };
    let here = text.replace("/usr/local/bin/spark", env!("CARGO_BIN_EXE_spark"));
    assert_eq!(verify(&here), "");
    assert_ne!(verify(&here.replace("Type=oneshot", "Type=never")), "", "the control");
}

/// As newer versions of firewalld have them: only the process that has made such a table may change it.
#[test]
fn a_table_that_has_an_owner_keeps_no_spark_from_starting() {
    let host = Host::new();
    let rules = "add table inet fire { flags owner; }; \
                 add chain inet fire last { type filter hook forward priority 0; policy accept; }; \
                 add rule inet fire last reject with icmpx admin-prohibited";
    let mut owner = inside(&host.netns("h"));
    owner.args(["sh", "-c", &format!("(echo '{rules}'; exec sleep infinity) | nft -i")]);
    host.background(owner);
    let has_rules = || {
        let mut list = inside(&host.netns("h"));
        let listed = list.args(["nft", "list", "ruleset"]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).contains("admin-prohibited")
    };
    assert!(wait_for(has_rules));
    let said = host.spark(&["-v", "create", "web"]);
    said.ok();
    assert!(
        said.stderr().contains("`inet fire`") && said.stderr().contains("spark doctor"),
        "{}",
        said.stderr()
    );
    host.spark(&["stop", "web"]).ok();
}

#[test]
fn a_spark_starts_without_names_if_the_process_that_answers_cannot() {
    let host = Host::new();
    let resolver = host.machine.place().run.join("net/names/resolver");
    host.spark(&["create", "first"]).ok();
    // The process ends with its file, and another one cannot have a directory for it.
    std::fs::remove_file(&resolver).unwrap();
    std::fs::create_dir(&resolver).unwrap();
    let said = host.spark(&["-v", "create", "web"]);
    said.ok();
    assert!(said.stderr().contains("names of sparks are not found"), "{}", said.stderr());
    assert_eq!(host.hears_unseen("web", &[format!("{BEYOND4} 80")]), ["beyond"]);
    assert!(problem(&host, "web").unwrap().contains("no names"));
    std::fs::remove_dir(&resolver).unwrap();
    host.spark(&["exec", "web", "--", "nslookup", "web"]).ok();
    assert_eq!(problem(&host, "web"), None);
}

/// A command in a mount namespace that does not see the mounts of the router.
fn hidden(mounts: u32, host: &Host, args: &[&str]) -> Output {
    let inner = host.command(args);
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{mounts}/ns/mnt"));
    command.arg(format!("--net=/run/netns/{}", host.netns("h")));
    // The words of the host's command behind its two namespaces.
    command.args(inner.get_args().skip(2));
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    Output::of(&args.join(" "), &mut command)
}

/// The number of the host's end of the uplink: another router has another one.
fn uplink_of(host: &Host) -> String {
    let links = host.on_host(&["ip", "-o", "link"]);
    links.lines().find(|line| line.contains(": spk-")).unwrap().split(':').next().unwrap().to_owned()
}

/// As those of a unit with `PrivateMounts=yes`.
#[test]
fn commands_of_two_mount_namespaces_share_a_router() {
    let host = Host::new();
    let before = host.state();
    let mut other = Command::new("nsenter");
    other.arg(format!("--mount=/proc/{}/ns/mnt", host.mounts())).args(["unshare", "-m", "sleep", "infinity"]);
    let other = host.background(other);
    let own = std::fs::read_link(format!("/proc/{}/ns/mnt", host.mounts())).unwrap();
    let mounts = format!("/proc/{other}/ns/mnt");
    assert!(wait_for(|| std::fs::read_link(&mounts).is_ok_and(|now| now != own)
        && std::fs::read_to_string(format!("/proc/{other}/comm")).is_ok_and(|comm| comm == "sleep\n")));
    for (first, second) in [("one/a", "one/b"), ("one/c", "one/d")] {
        let is_first = first == "one/a";
        let run = |here: bool, args: &[&str]| match here == is_first {
            true => host.spark(args),
            false => hidden(other, &host, args),
        };
        run(true, &["create", first]).ok();
        let uplink = uplink_of(&host);
        run(false, &["create", second]).ok();
        assert_eq!(uplink_of(&host), uplink, "{second}");
        for spark in [first, second] {
            run(
                spark == first,
                &["exec", "-d", spark, "--", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", spark],
            )
            .ok();
        }
        let at =
            run(true, &["--json", "info", second]).json()["network"]["ipv4"].as_str().unwrap().to_owned();
        let tries = [format!("{at} 80"), format!("{BEYOND4} 80"), format!("{HOST4} 7000")];
        assert!(wait_for(|| host.hears_unseen(first, &tries) == [second, "beyond", "-"]));
        run(true, &["exec", first, "--", "nslookup", second.trim_start_matches("one/")]).ok();
        run(false, &["stop", first, second]).ok();
        host.is_again(&before);
    }
}
