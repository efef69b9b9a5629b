//! What a spark is made with, and whether it is so.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use sparks::domain::options::Changes;
use sparks::ops::create::{Request, Source};

use crate::common::{Machine, wait_for};
use crate::inside::{bare, init, machine, root, sh};

fn lines(machine: &Machine, name: &str, script: &str) -> Vec<String> {
    let output = machine.spark(&["exec", "-T", name, "sh", "-c", script]).ok();
    output.lines().map(str::to_owned).collect()
}

/// Nothing but the base is there, and nothing half-made.
#[track_caller]
fn nothing_is_left(machine: &Machine) {
    assert_eq!(machine.spark(&["list", "-aq"]).ok(), "");
    assert_eq!(machine.staged().len(), 0);
    assert_eq!(machine.spark(&["list", "--deleted", "--json"]).json(), serde_json::json!([]));
    assert_eq!(machine.spark(&["gc", "--dry-run", "--json"]).json(), serde_json::json!([]));
}

/// A file of a spark's cgroup, as either version of cgroups calls it.
fn cgroup(machine: &Machine, name: &str, controller: &str, v1: &str, v2: &str) -> String {
    let info = machine.spark(&["info", name, "--json"]).json();
    let path = info["oci"]["cgroup"].as_str().unwrap().trim_start_matches('/').to_owned();
    let top = Path::new("/sys/fs/cgroup");
    let old = top.join(controller).join(&path).join(v1);
    let file = if old.exists() { old } else { top.join(path).join(v2) };
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.trim().to_owned()
}

/// A number of a file of `KEY NUMBER` lines.
fn counter(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}: {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn the_environment_is_sane_and_what_was_asked_for() {
    let machine = machine();
    std::fs::write(machine.work().join("env"), "# comment\n\nA=file\nexport B=a b = c\n").unwrap();
    bare(&machine, "web", &["--env-file", "env", "-e", "A=1", "-e", "PATH=/own:/bin", "-e", "EMPTY="]);
    bare(&machine, "plain", &[]);
    let show = "echo $A; echo $B; echo $PATH; echo ${EMPTY-unset}";
    assert_eq!(lines(&machine, "web", show), ["1", "a b = c", "/own:/bin", ""]);
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert_eq!(lines(&machine, "web", show), ["1", "a b = c", "/own:/bin", ""], "also at the next start");
    let mut env = lines(&machine, "plain", "env");
    env.sort();
    assert_eq!(
        env,
        [
            "HOME=/root",
            "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/spark/bin",
            "PWD=/root",
            "SHLVL=1",
            "TERM=xterm-256color",
            "USER=root"
        ]
    );

    std::fs::write(machine.work().join("bad"), "A=1\n\nnot a variable\n").unwrap();
    let output = machine.spark(&["create", "bad", "--env-file", "bad"]);
    assert_eq!(output.status(), 2);
    assert!(output.stderr().contains("environment file bad: line 3: "), "{}", output.stderr());
    let output = machine.spark(&["create", "bad", "--env-file", "missing"]);
    assert_eq!(output.status(), 1);
    assert!(output.stderr().contains("missing"), "{}", output.stderr());
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "plain\nweb\n");
}

#[test]
fn directories_and_files_of_the_host_are_mounted_as_asked() {
    let machine = machine();
    let work = machine.work();
    std::fs::create_dir(work.join("dir")).unwrap();
    std::fs::write(work.join("dir/file"), "of a directory\n").unwrap();
    std::fs::write(work.join("single"), "a file\n").unwrap();
    for missing in ["type=bind,src=nowhere,dst=/in", "src=dir/file/below,dst=/in"] {
        let output = machine.spark(&["create", "web", "--mount", missing, "--json"]);
        assert_eq!(output.status(), 1);
        assert!(output.stderr().contains(&work.display().to_string()), "{}", output.stderr());
        nothing_is_left(&machine);
    }
    bare(
        &machine,
        "web",
        &[
            "--mount",
            "type=bind,src=dir,dst=/in/deep",
            "--mount",
            "src=dir,dst=/read,ro",
            "--mount",
            "src=single,dst=/etc/single",
            "--mount",
            "src=single,dst=/ro-single,ro",
        ],
    );
    for _ in 0..2 {
        let show = "cat /in/deep/file /read/file /etc/single /ro-single; stat -c %u /in/deep /read";
        let text = "of a directory\nof a directory\na file\na file\n0\n0\n";
        assert_eq!(sh(&machine, "web", "0", show).ok(), text);
        sh(
            &machine,
            "web",
            "0",
            "echo new >>/in/deep/new; echo more >>/etc/single; sed -i /more/d /in/deep/file",
        )
        .ok();
        for denied in ["echo x >/read/x", "rm /read/file", "echo x >>/ro-single", "mount -o remount,rw /read"]
        {
            assert_ne!(sh(&machine, "web", "0", denied).status(), 0, "{denied}");
        }
        assert!(std::fs::read_to_string(work.join("dir/new")).unwrap().starts_with("new\n"));
        assert_eq!(std::fs::read_to_string(work.join("single")).unwrap(), "a file\nmore\n");
        std::fs::write(work.join("single"), "a file\n").unwrap();
        machine.spark(&["stop", "web", "-t", "0"]).ok();
    }
    // One that has gone by the next start is named, and the spark stays as it was.
    std::fs::remove_dir_all(work.join("dir")).unwrap();
    let output = machine.spark(&["resume", "web"]);
    assert!(output.status() == 1 && output.stderr().contains("dir"), "{}", output.stderr());
    assert_eq!(machine.spark(&["info", "web", "--json"]).json()["state"], "stopped");
    std::fs::create_dir(work.join("dir")).unwrap();
    machine.spark(&["resume", "web"]).ok();
}

#[test]
fn the_network_is_the_hosts_or_none() {
    let machine = machine();
    bare(&machine, "none", &["--network", "none"]);
    bare(&machine, "hosts", &["--network", "host"]);
    assert_eq!(lines(&machine, "none", "ls /sys/class/net"), ["lo"]);
    let links = lines(&machine, "none", "ip -o link");
    assert!(links.len() == 1 && links[0].contains("UP"), "{links:?}");
    sh(&machine, "none", "0", "ping -c 1 127.0.0.1").ok();
    assert_eq!(lines(&machine, "none", "grep -v '^#' /etc/resolv.conf || true"), [""; 0]);

    let of_host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(
        sh(&machine, "hosts", "0", "readlink /proc/self/ns/net").ok().trim(),
        of_host.to_str().unwrap()
    );
    // What /sys shows is of that network, too. Devices of other tests come and go.
    let links = || -> BTreeSet<String> {
        let names = std::fs::read_dir("/sys/class/net").unwrap().map(|e| e.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    };
    let before = links();
    let shown = lines(&machine, "hosts", "ls -1 /sys/class/net").into_iter().collect();
    let stayed: BTreeSet<String> = &before & &links();
    assert!(stayed.len() > 1 && stayed.is_subset(&shown), "{stayed:?}, {shown:?}");
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(sh(&machine, "hosts", "0", "cat /etc/resolv.conf").ok(), resolv);
    for name in ["none", "hosts"] {
        let output = sh(&machine, name, "0", "mkdir /sys/fs/cgroup/x || echo x >/sys/class/net/lo/ifalias");
        assert_ne!(output.status(), 0, "{name}: /sys is read-only");
    }
}

#[test]
fn limits_stand_in_the_cgroup_and_hold() {
    let machine = machine();
    bare(&machine, "small", &["--memory", "64M", "--cpus", "0.5", "--pids", "64"]);
    bare(&machine, "plain", &[]);
    for _ in 0..2 {
        let of = |controller, v1, v2| cgroup(&machine, "small", controller, v1, v2);
        assert_eq!(of("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
        let cpu = of("cpu", "cpu.cfs_quota_us", "cpu.max");
        assert!(["50000", "50000 100000"].contains(&cpu.as_str()), "{cpu}");
        assert_eq!(of("pids", "pids.max", "pids.max"), "64");
        machine.spark(&["stop", "small", "-t", "0"]).ok();
        machine.spark(&["resume", "small"]).ok();
    }
    assert_eq!(cgroup(&machine, "plain", "pids", "pids.max", "pids.max"), "4096");

    let before = init(&machine, "small");
    let hog = "awk 'BEGIN { x = \"x\"; while (1) x = x x }'";
    let output = sh(&machine, "small", "0", &format!("exec {hog}"));
    assert_eq!(output.status(), 128 + 9, "{}", output.stderr());
    assert_eq!(init(&machine, "small"), before, "the spark lives on");

    std::fs::write(root(&machine, "small").join("bomb"), "#!/bin/sh\nsh /bomb & sh /bomb & wait\n").unwrap();
    machine.spark(&["exec", "-d", "small", "sh", "/bomb"]).ok();
    let refused = || counter(&cgroup(&machine, "small", "pids", "pids.events", "pids.events"), "max ");
    assert!(wait_for(|| refused() > 10), "the bomb goes off");
    let current = cgroup(&machine, "small", "pids", "pids.current", "pids.current");
    assert!(current.parse::<u32>().unwrap() <= 64, "{current}");
    assert_eq!(machine.spark(&["exec", "plain", "echo", "well"]).ok(), "well\n");
    let throttled = || counter(&cgroup(&machine, "small", "cpu", "cpu.stat", "cpu.stat"), "nr_throttled ");
    assert!(wait_for(|| throttled() > 0), "and gets no more than half a processor");
    machine.spark(&["stop", "small", "-t", "1"]).ok();
    assert_eq!(machine.spark(&["exec", "small", "echo", "again"]).ok(), "again\n");
}

#[test]
fn a_spark_has_a_user_and_a_directory_that_exist_or_says_which_does_not() {
    let machine = machine();
    let shown = |name: &str| lines(&machine, name, "echo $(id -u):$(id -g) $PWD");
    for (name, user, expected) in [
        ("named", "nobody", "65534:65534 /"),
        ("number", "4711", "4711:0 /"),
        ("both", "4711:12", "4711:12 /"),
    ] {
        bare(&machine, name, &["--user", user]);
        assert_eq!(shown(name), [expected], "{user}");
    }
    bare(&machine, "there", &["--workdir", "/etc"]);
    assert_eq!(shown("there"), ["0:0 /etc"]);

    bare(&machine, "nowhere", &["--workdir", "/no/such/dir"]);
    let output = machine.spark(&["exec", "nowhere", "true"]);
    assert_eq!(output.status(), 125);
    assert!(output.stderr().contains("/no/such/dir"), "{}", output.stderr());
    assert_eq!(machine.spark(&["exec", "nowhere", "-w", "/", "mkdir", "-p", "/no/such/dir"]).status(), 0);
    assert_eq!(shown("nowhere"), ["0:0 /no/such/dir"]);

    for (args, what) in [
        (&["exec", "there", "-u", "ghost", "true"][..], "ghost"),
        (&["exec", "there", "-u", "root:ghosts", "true"], "ghosts"),
        (&["exec", "-", "-u", "ghost", "true"], "ghost"),
    ] {
        let output = machine.spark(&[&args[..1], &["--json"], &args[1..]].concat());
        assert_eq!(output.status(), 125, "{args:?}");
        assert!(output.fails_with("not_found").contains(what), "{args:?}");
    }
}

#[test]
fn a_spark_has_a_host_name_and_an_identity_of_its_own() {
    let machine = machine();
    bare(&machine, "web", &["--hostname", "box.example", "--label", "a=1", "--label", "role=x=y"]);
    bare(&machine, "other", &[]);
    for (name, hostname) in [("web", "box.example"), ("other", "other")] {
        let script = "hostname; cat /etc/hostname; grep -c localhost /etc/hosts";
        assert_eq!(lines(&machine, name, script)[..2], [hostname, hostname]);
        let hosts = lines(&machine, name, "cat /etc/hosts");
        assert!(hosts.iter().any(|l| l.split_whitespace().nth(1) == Some(hostname)), "{hosts:?}");
        assert!(hosts.contains(&"127.0.0.1\tlocalhost".to_owned()), "{hosts:?}");
    }
    let id = |name: &str| lines(&machine, name, "cat /etc/machine-id").concat();
    let (web, other) = (id("web"), id("other"));
    assert!(web.len() == 32 && web.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{web}");
    assert_ne!(web, other);
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    machine.spark(&["rename", "web", "renamed"]).ok();
    assert_eq!(id("renamed"), web);
    assert_eq!(lines(&machine, "renamed", "hostname"), ["box.example"], "a name that was asked for stays");

    let labels = serde_json::json!({ "a": "1", "role": "x=y" });
    assert_eq!(machine.spark(&["info", "renamed", "--json"]).json()["options"]["labels"], labels);
    let rows = machine.spark(&["list", "--json"]).json();
    assert_eq!((&rows[0]["name"], &rows[0]["labels"]), (&"other".into(), &serde_json::json!({})));
    assert_eq!((&rows[1]["name"], &rows[1]["labels"]), (&"renamed".into(), &labels));
    assert!(machine.spark(&["list"]).ok().contains("a=1,role=x=y"));
}

#[test]
fn shared_memory_is_in_memory_and_tmp_is_on_disk() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let script =
        "stat -f -c %T /dev/shm; stat -c '%a %u' /dev/shm /tmp; echo x >/dev/shm/x && cat /dev/shm/x";
    assert_eq!(lines(&machine, "web", script), ["tmpfs", "1777 0", "1777 0", "x"]);
    let devices = lines(&machine, "web", "stat -c %d / /tmp /dev/shm; echo kept >/tmp/file");
    assert!(devices[0] == devices[1] && devices[0] != devices[2], "{devices:?}");
    assert_eq!(sh(&machine, "web", "1000", "echo y >/dev/shm/y; echo y >/tmp/y; cat /tmp/y").ok(), "y\n");
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    assert_eq!(lines(&machine, "web", "ls /dev/shm; cat /tmp/file"), ["kept"]);
}

#[test]
fn a_bundle_template_is_the_hosts_own_or_hardened_and_an_unknown_one_is_refused() {
    let machine = machine();
    let output = machine.spark(&["create", "web", "--bundle", "nope", "--json"]);
    assert!(output.fails_with("not_found").contains("nope"));
    for bad in ["../default", "/etc", ""] {
        assert_ne!(machine.spark(&["create", "web", "--bundle", bad]).status(), 0, "{bad}");
    }
    nothing_is_left(&machine);

    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles/default/config.json");
    let mut template: Value = serde_json::from_slice(&std::fs::read(template).unwrap()).unwrap();
    template["process"]["env"].as_array_mut().unwrap().push("OF_TEMPLATE=1".into());
    let files = serde_json::json!([{ "type": "RLIMIT_NOFILE", "soft": 55, "hard": 99 }]);
    template["process"]["rlimits"] = files.clone();
    template["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 80 << 20 });
    // Where the operations of this machine look for templates.
    let dir = machine.work().with_file_name("templates").join("own");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), template.to_string()).unwrap();
    let changes = Changes { bundle: Some("own".into()), ..Changes::default() };
    let name = Some("web".parse().unwrap());
    let request = Request { name, source: Source::Base(None), changes, start: false };
    let plan = machine.sparks().plan(&request).unwrap();
    let env = plan.config["process"]["env"].as_array().unwrap();
    assert!(env.contains(&"OF_TEMPLATE=1".into()), "{env:?}");
    assert_eq!(plan.config["hostname"], "web");
    // Its limits come before the defaults.
    assert_eq!(plan.config["process"]["rlimits"], files);
    assert_eq!(plan.config["linux"]["resources"]["memory"]["limit"], 80 << 20);

    bare(&machine, "hard", &["--hardened"]);
    let status = "grep -E '^(NoNewPrivs|CapEff|CapBnd|CapPrm|CapAmb)' /proc/self/status | cut -f 2 | sort -u";
    assert_eq!(lines(&machine, "hard", status), ["0000000000000000", "1"]);
    assert_eq!(machine.spark(&["info", "hard", "--json"]).json()["options"]["bundle"], "hardened");
}

#[test]
fn a_spark_is_made_without_a_start_or_only_shown_if_that_was_asked_for() {
    let machine = machine();
    let projects = || {
        let entries = std::fs::read_dir(machine.pool().join("projects")).map(|d| d.count());
        entries.unwrap_or_default()
    };
    let before = projects();
    let args = ["-P", "fresh", "create", "web", "--dry-run", "--memory", "1G", "--hostname", "box"];
    let shown = machine.spark(&args).ok();
    assert!(shown.contains("project: fresh") && shown.contains("from: minimal"), "{shown}");
    let plan = machine.spark(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(plan["config"]["hostname"], "box");
    assert_eq!(plan["config"]["linux"]["resources"]["memory"]["limit"], 1 << 30);
    assert_eq!(projects(), before, "not even the project is made");
    nothing_is_left(&machine);

    let output = machine.spark(&["create", "web", "--no-start", "-q"]);
    assert_eq!((output.ok().as_str(), output.stderr().as_str()), ("", ""));
    let info = machine.spark(&["info", "web", "--json"]).json();
    assert_eq!(info["state"], "stopped");
    assert!(info["pid"].is_null() && info["oci"]["bundle"].is_null(), "{info}");
    assert!(!machine.place().run.join("oci").join(info["oci"]["id"].as_str().unwrap()).exists());
    assert_eq!(machine.spark(&["create", "loud"]).ok(), "loud\n");
    machine.spark(&["create", "web", "--dry-run", "--json"]).fails_with("exists");
    assert_eq!(lines(&machine, "web", "echo works"), ["works"]);
}

/// Whether it is made from a base or a spark, or only shown: a new spark is checked in one way, and what is refused makes nothing.
#[test]
fn create_fork_and_a_dry_run_refuse_the_same_and_make_nothing() {
    let machine = machine();
    machine.spark(&["create", "web", "--no-start"]).ok();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("127.0.0.1:{}:80", held.local_addr().unwrap().port());
    let made = || {
        machine.spark(&["project", "list", "--json"]).ok() + &machine.spark(&["list", "-a", "--json"]).ok()
    };
    let before = made();
    for (options, code, why) in [
        (&["--run"] as &[&str], "usage", "it is not from an image"),
        (&["--publish-exposed"], "usage", "it is not from an image"),
        (&["--disk", "1G"], "not_supported", "this pool counts nothing"),
        (&["-p", &port], "network", "is taken by"),
    ] {
        for command in [
            &["create", "-P", "fresh", "new"] as &[&str],
            &["create", "new"],
            &["create", "new", "--from", "web"],
            &["create", "new", "--dry-run"],
            &["create", "new", "--from", "web", "--dry-run"],
            &["fork", "web", "new"],
        ] {
            let command = [&["--json"], command, options].concat();
            let output = machine.spark(&command);
            let said = output.fails_with(code);
            assert!(said.contains(why) || output.stderr().contains(why), "{command:?}: {said}");
            assert_eq!(made(), before, "{command:?}");
        }
    }
    machine.spark(&["--json", "-P", "fresh", "create", "new", "--base", "none"]).fails_with("not_found");
    assert_eq!(made(), before);
}

#[test]
fn a_dry_run_without_a_base_makes_none() {
    let machine = Machine::new();
    let output = machine.spark(&["create", "web", "--dry-run"]);
    assert!(output.stderr().contains("spark base bootstrap"), "{}", output.stderr());
    assert_eq!(machine.spark(&["base", "list", "--json"]).json(), serde_json::json!([]));
}
