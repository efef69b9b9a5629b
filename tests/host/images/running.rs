//! What a spark has of its image's configuration, and what it runs of it.

use std::process::Command;

use serde_json::json;

use super::built::{busybox, layout, run, sh};
use crate::common::{Machine, wait_for};

fn log_has(machine: &Machine, spark: &str, text: &str, times: usize) {
    let log = || machine.spark(&["logs", spark]).stdout();
    assert!(wait_for(|| log().matches(text).count() == times), "{}", log());
}

#[test]
fn a_spark_has_its_images_environment_user_and_directory_and_runs_its_entrypoint_at_every_start() {
    let machine = Machine::new();
    let run = json!({ "Env": ["A=image", "B=image", "PATH=/bin"], "User": "app", "WorkingDir": "/srv",
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo ran as $(id -u) in $(pwd) with $A $B; exec sleep 1000"],
        "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/srv": {} }, "StopSignal": "SIGQUIT" });
    layout(&machine.work().join("l"), "v", &[busybox().layer()], run);
    machine.spark(&["create", "web", "--image", "oci:l:v", "-e", "B=mine", "--run"]).ok();
    log_has(&machine, "web", "ran as 1000 in /srv with image mine", 1);
    let said = machine.spark(&["exec", "web", "--", "sh", "-c", "echo $A $B $PATH $(id -u) $(pwd)"]).ok();
    assert_eq!(said, "image mine /bin:/spark/bin 1000 /srv\n");
    let image = &machine.spark(&["--json", "base", "info", "l-v"]).json()["image"];
    let config = &image["config"];
    assert_eq!((&config["exposed_ports"], &config["volumes"]), (&json!(["80/tcp"]), &json!(["/srv"])));
    assert_eq!(config["stop_signal"], "SIGQUIT");
    // Again, and in a fork too.
    machine.spark(&["stop", "-t", "10", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    log_has(&machine, "web", "ran as 1000", 2);
    machine.spark(&["fork", "web", "two"]).ok();
    log_has(&machine, "two", "ran as 1000", 1);
    // What is put in the place of its files starts it again, and with it what its image runs.
    machine.spark(&["snapshot", "create", "two", "s"]).ok();
    machine.spark(&["snapshot", "restore", "two", "s"]).ok();
    log_has(&machine, "two", "ran as 1000", 2);
    machine.spark(&["undo", "two"]).ok();
    log_has(&machine, "two", "ran as 1000", 3);
    machine.spark(&["fork", "two", "three"]).ok();
    machine.spark(&["pick", "three", "--as", "two"]).ok();
    log_has(&machine, "two", "ran as 1000", 4);
    // One that ended stays ended.
    machine.spark(&["stop", "-t", "10", "two"]).ok();
    machine.spark(&["undo", "two"]).ok();
    machine.spark(&["--json", "info", "two"]).ok();
    log_has(&machine, "two", "ran as 1000", 4);
    // A running one is not started again.
    machine.spark(&["resume", "web"]).ok();
    machine.spark(&["exec", "web", "--", "true"]).ok();
    log_has(&machine, "web", "ran as 1000", 2);
    // Without --run nothing runs.
    machine.spark(&["create", "quiet", "--image", "oci:l:v"]).ok();
    assert_eq!(machine.spark(&["logs", "quiet"]).stdout(), "");
}

#[test]
fn a_user_of_an_image_may_have_an_empty_part_and_one_that_is_not_there_is_told_at_the_pull() {
    let machine = Machine::new();
    for (tag, user, id) in [("user", "1000:", "1000:1000"), ("group", ":5", "0:5"), ("none", ":", "0:0")] {
        layout(
            &machine.work().join("l"),
            tag,
            &[busybox().layer()],
            json!({ "Env": ["PATH=/bin"], "User": user }),
        );
        machine.spark(&["create", tag, "--image", &format!("oci:l:{tag}")]).ok();
        let said = machine.spark(&["exec", tag, "--", "sh", "-c", "echo $(id -u):$(id -g)"]).ok();
        assert_eq!(said.trim(), id, "{user}");
    }
    for (tag, user, why) in [
        ("nobody", "nobody-here", "user `nobody-here` does not exist"),
        ("large", "100000", "the ids 0 to 65535"),
    ] {
        layout(&machine.work().join("l"), tag, &[busybox().layer()], json!({ "User": user }));
        let pulled = machine.spark(&["base", "pull", &format!("oci:l:{tag}")]);
        pulled.ok();
        let said = pulled.stderr();
        assert!(said.contains("nothing can run as the image's user") && said.contains(why), "{said}");
    }
}

#[test]
fn an_entrypoint_that_cannot_run_leaves_no_spark_and_at_a_resume_is_told_in_the_log() {
    let machine = Machine::new();
    let dir = machine.work().join("l");
    layout(&dir, "none", &[busybox().layer()], json!({ "Env": ["PATH=/bin"] }));
    layout(&dir, "bad", &[busybox().layer()], json!({ "Entrypoint": ["/nowhere"] }));
    layout(
        &dir,
        "good",
        &[busybox().layer()],
        json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000"] }),
    );
    let message =
        machine.spark(&["--json", "create", "web", "--image", "oci:l:none", "--run"]).fails_with("usage");
    assert!(message.contains("does not say what to run"), "{message}");
    machine.spark(&["--json", "create", "web", "--image", "oci:l:bad", "--run"]).fails_with("not_found");
    assert_eq!(machine.spark(&["--json", "list"]).json(), json!([]));
    assert!(crate::common::containers(&machine.place().run).is_empty());
    machine.spark(&["create", "web", "--image", "oci:l:good", "--run"]).ok();
    machine.spark(&["exec", "-u", "0", "web", "--", "rm", "/bin/sleep"]).ok();
    machine.spark(&["stop", "-t", "10", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    log_has(&machine, "web", "spark: cannot run `/bin/sleep`", 1);
    machine.spark(&["exec", "web", "--", "true"]).ok();
}

/// An image whose entrypoint writes down which signals it got, and how long it takes for its own is up to it.
fn trapping(machine: &Machine, tag: &str, signal: &str, after: &str) {
    let work = machine.work();
    layout(&work.join("built"), tag, &[busybox().layer()], json!({ "Env": ["PATH=/bin"] }));
    let script = format!(
        "trap 'echo term >> /said' TERM; trap 'echo own >> /said; {after}' {signal}; echo ready; while :; do sleep 0.05; done"
    );
    // As somebody else's tool writes it.
    let mut umoci = Command::new("umoci");
    umoci.current_dir(&work).args(["config", "--image", &format!("built:{tag}"), "--config.stopsignal"]);
    umoci.args([
        &format!("SIG{signal}"),
        "--config.entrypoint",
        "/bin/sh",
        "--config.cmd",
        "-c",
        "--config.cmd",
        &script,
    ]);
    run(&mut umoci);
}

#[test]
fn a_stop_ends_what_the_image_runs_by_the_images_signal_and_the_rest_by_sigterm_after_it() {
    let machine = Machine::new();
    trapping(&machine, "v", "QUIT", "echo quits >> /said; exit");
    machine.spark(&["create", "web", "--image", "oci:built:v", "--run"]).ok();
    log_has(&machine, "web", "ready", 1);
    let beside = "trap 'echo beside >> /said; exit' TERM; echo here; while :; do sleep 0.05; done";
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", beside]).ok();
    log_has(&machine, "web", "here", 1);
    machine.spark(&["stop", "-t", "60", "web"]).ok();
    let said = || machine.spark(&["exec", "web", "--", "cat", "/said"]).ok();
    assert_eq!(said(), "own\nquits\nbeside\n");
    // The exec has started it again; paused it gets the signal too, and a fork has the same.
    log_has(&machine, "web", "ready", 2);
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["stop", "-t", "60", "web"]).ok();
    assert_eq!(said(), "own\nquits\nbeside\nown\nquits\n");
    // Without a word of the image, and for one that was not to run it, it is SIGTERM as ever.
    machine.spark(&["create", "quiet", "--image", "oci:built:v"]).ok();
    machine.spark(&["exec", "-d", "quiet", "--", "sh", "-c", beside]).ok();
    log_has(&machine, "quiet", "here", 1);
    machine.spark(&["stop", "-t", "60", "quiet"]).ok();
    assert_eq!(machine.spark(&["exec", "quiet", "--", "cat", "/said"]).ok(), "beside\n");
}

#[test]
fn what_does_not_end_on_the_images_signal_is_killed_when_the_time_is_over() {
    let machine = Machine::new();
    trapping(&machine, "deaf", "INT", ":");
    machine.spark(&["create", "web", "--image", "oci:built:deaf", "--run"]).ok();
    log_has(&machine, "web", "ready", 1);
    machine.spark(&["stop", "-t", "10", "web"]).ok();
    let said = machine.spark(&["exec", "web", "--", "cat", "/said"]).ok();
    assert_eq!(said, "own\n");
    // No time at all is no signal either.
    log_has(&machine, "web", "ready", 2);
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(machine.spark(&["exec", "web", "--", "cat", "/said"]).ok(), "own\n");
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    // What is no signal is left out, and told.
    layout(&machine.work().join("l"), "odd", &[busybox().layer()], json!({ "StopSignal": "SIGNONE" }));
    let pulled = machine.spark(&["base", "pull", "oci:l:odd"]);
    pulled.ok();
    assert!(pulled.stderr().contains("the image's stop signal was left out"), "{}", pulled.stderr());
}

#[test]
fn volumes_of_an_image_are_directories_of_the_spark_and_of_its_snapshots() {
    let machine = Machine::new();
    let layer = busybox().dir("data").file("data/seed", b"seed").dir("run").symlink("var", "run").layer();
    let run = json!({ "Env": ["PATH=/bin"], "User": "app", "WorkingDir": "/new/work",
        "Volumes": { "/data": {}, "/var/lib/db": {}, "/bin/sh/x": {}, "relative": {}, "/proc/x": {} } });
    layout(&machine.work().join("l"), "v", &[layer], run);
    let pulled = machine.spark(&["base", "pull", "oci:l:v"]);
    pulled.ok();
    assert_eq!(
        pulled.stderr().matches("a volume of the image was left out").count(),
        2,
        "{}",
        pulled.stderr()
    );
    machine.spark(&["create", "web", "--image", "oci:l:v"]).ok();
    // Where the image runs too, if it does not have that.
    let said = "pwd; echo x > /var/lib/db/x && echo x > x; stat -c '%n %U %a' /data /run/lib /run/lib/db /new /new/work";
    let said = machine.spark(&["exec", "web", "--", "sh", "-c", said]).ok();
    let owners = "/data root 755\n/run/lib root 755\n/run/lib/db app 755\n/new root 755\n/new/work app 755\n";
    assert_eq!(said, format!("/new/work\n{owners}"));
    // They are files as all others: of snapshots, forks and bases.
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["exec", "web", "--", "rm", "/var/lib/db/x"]).ok();
    machine.spark(&["fork", "web@s", "two"]).ok();
    assert_eq!(machine.spark(&["exec", "two", "--", "cat", "/var/lib/db/x", "/data/seed"]).ok(), "x\nseed");
    // The base is the image as it came, and goes as that.
    machine.spark(&["base", "export", "l-v", "--oci-layout", "out:v"]).ok();
    let digest = |layout: &str| {
        sh(&machine.work(), &format!("skopeo inspect --format '{{{{.Digest}}}}' oci:{layout}:v"))
    };
    assert_eq!(digest("l"), digest("out"));
}

#[test]
fn exposed_ports_are_published_on_free_ones_of_the_loopback_device_if_one_asks_for_it() {
    let machine = Machine::new();
    let script = "while :; do echo from-$HOSTNAME | nc -l -p 7000; done";
    let layer = busybox().symlink("bin/nc", "busybox").layer();
    let run = json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh", "-c", script],
        "ExposedPorts": { "7000/tcp": {}, "7001": {}, "53/udp": {}, "9/sctp": {} } });
    layout(&machine.work().join("l"), "v", std::slice::from_ref(&layer), run);
    layout(&machine.work().join("l"), "none", &[layer], json!({}));
    let ports = |spark: &str| machine.spark(&["--json", "port", spark]).json();
    machine.spark(&["create", "plain", "--image", "oci:l:v"]).ok();
    assert_eq!(ports("plain"), json!([]));
    machine
        .spark(&[
            "create",
            "web",
            "--image",
            "oci:l:v",
            "--run",
            "--publish-exposed",
            "-p",
            "127.0.0.1:28777:7001",
        ])
        .ok();
    let shown = ["create", "shown", "--image", "oci:l:v", "--publish-exposed", "--dry-run", "--json"];
    let shown = &machine.spark(&shown).json()["options"]["ports"];
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
    let all = ports("web");
    let of = |all: &serde_json::Value, port: u16| {
        let all = all.as_array().unwrap();
        let one = all.iter().find(|p| p["spark"] == port).unwrap_or_else(|| panic!("{port} of {all:?}"));
        one["host"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap()
    };
    assert_eq!(all.as_array().unwrap().len(), 3, "{all}");
    assert_eq!(of(&all, 7001).port(), 28777);
    assert!(of(&all, 7000).ip().is_loopback() && of(&all, 53).ip().is_loopback());
    let heard = || {
        let mut text = String::new();
        let mut stream = std::net::TcpStream::connect(of(&all, 7000)).ok()?;
        std::io::Read::read_to_string(&mut stream, &mut text).ok()?;
        Some(text)
    };
    assert!(wait_for(|| heard().is_some_and(|text| text == "from-web\n")), "{all}");
    // A second one has others.
    machine.spark(&["fork", "web", "two", "--publish-exposed"]).ok();
    assert_ne!(of(&ports("two"), 7000), of(&all, 7000));
    machine.spark(&["fork", "web", "many", "-n", "2", "--publish-exposed"]).ok();
    assert_ne!(of(&ports("many-1"), 7000), of(&ports("many-2"), 7000));
    for (args, why) in [
        (&["create", "x", "--image", "oci:l:none", "--publish-exposed"][..], "its image exposes no port"),
        (
            &["create", "x", "--image", "oci:l:v", "--publish-exposed", "--network", "none"],
            "no network of its own",
        ),
    ] {
        let mut all = vec!["--json"];
        all.extend(args);
        let message = machine.spark(&all).fails_with("usage");
        assert!(message.contains(why), "{message}");
    }
}
