//! `top` and `du`: what the sparks are doing, once and live, and what they hold.

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Machine, is_running, wait_for};
use crate::console::Screen;
use crate::inside::{bare, machine, sh};

fn top(machine: &Machine, name: &str) -> Value {
    let all = machine.spark(&["top", "--json"]).json();
    all.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
}

#[test]
fn a_look_shows_every_spark_and_what_it_uses() {
    let machine = machine();
    assert_eq!(machine.spark(&["top"]).ok(), "");
    bare(&machine, "busy", &["--network", "none", "--memory", "64M"]);
    bare(&machine, "idle", &["--network", "host"]);
    bare(&machine, "off", &["--no-start"]);
    machine.spark(&["pause", "idle"]).ok();
    machine.spark(&["-P", "other", "create", "far", "--base", "minimal", "--no-start"]).ok();
    machine.spark(&["exec", "-d", "busy", "--", "sh", "-c", "sleep 1000 & while :; do :; done"]).ok();
    assert!(wait_for(|| top(&machine, "busy")["cpu_percent"].as_f64().unwrap() > 1.0));
    let row = top(&machine, "busy");
    // The first process, the two of the command, and the keeper of its log.
    assert_eq!((&row["state"], &row["pids"]), (&"running".into(), &4.into()));
    assert_eq!(row["memory_limit_bytes"], 64 << 20);
    let memory = row["memory_bytes"].as_u64().unwrap();
    assert!(memory > 4096 && memory < 64 << 20, "{memory}");
    // A network of its own with nothing but loopback, which does not count.
    sh(&machine, "busy", "0", "ping -c 1 127.0.0.1").ok();
    let row = top(&machine, "busy");
    assert_eq!((&row["received_bytes"], &row["sent_bytes"]), (&0.into(), &0.into()));
    let row = top(&machine, "idle");
    assert_eq!((&row["state"], row.get("received_bytes")), (&"paused".into(), None), "it has the host's");
    let row = top(&machine, "off");
    assert_eq!((&row["state"], row.get("pids")), (&"stopped".into(), None));
    assert_eq!(row["cpu_percent"], Value::Null);

    let text = machine.spark(&["top"]).ok();
    let titles: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        titles,
        ["NAME", "STATE", "CPU%", "MEMORY", "LIMIT", "PIDS", "RECEIVED", "SENT", "OWN"],
        "{text}"
    );
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(machine.spark(&["top", "-a"]).ok().contains("far"));
    assert!(machine.spark(&["exec", "busy", "true"]).status() == 0, "nothing was held");
    std::fs::write(machine.pool().join("projects/default/sparks/off/spark.json"), "{").unwrap();
    assert_eq!(top(&machine, "off")["state"], "broken");
    assert_eq!(machine.spark(&["top", "--interval", "1ms"]).status(), 2);
}

#[test]
fn it_ends_with_its_terminal() {
    let machine = Machine::new().with_base();
    let spark = machine.command(&["top"]);
    let line = format!("exec {} top", spark.get_program().to_str().unwrap());
    // A terminal whose owner can be killed.
    let mut owner = std::process::Command::new("script");
    owner.args(["-q", "-f", "-c", &line, "/dev/null"]).stdin(std::process::Stdio::piped());
    owner.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut owner = owner.env("TERM", "xterm").stdout(std::process::Stdio::null()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", owner.id());
    let child = || std::fs::read_to_string(&children).unwrap().trim().parse::<i32>().ok();
    let is_live = |pid| {
        std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.contains("poll"))
            && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("spark"))
    };
    assert!(wait_for(|| child().is_some_and(is_live)));
    let pid = child().unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let ended = wait_for(|| !is_running(pid));
    if !ended {
        let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    assert!(ended, "it runs on without a terminal");
}

#[test]
fn own_bytes_are_what_a_spark_wrote_and_has_still() {
    const MIB: u64 = 1 << 20;
    let machine = machine();
    bare(&machine, "web", &[]);
    let own = |name: &str| top(&machine, name)["own_bytes"].as_u64().unwrap();
    assert!(own("web") < MIB, "what its base holds is not its own: {}", own("web"));
    let write = |name: &str, file: &str, mib: u64| {
        let script = format!("dd if=/dev/urandom of={file} bs=1M count={mib} conv=fsync");
        sh(&machine, name, "0", &script).ok();
    };
    write("web", "/a", 8);
    assert!((8 * MIB..9 * MIB).contains(&own("web")), "{}", own("web"));
    // A fork begins with nothing of its own, and what it writes is not the other's.
    machine.spark(&["fork", "web", "app"]).ok();
    assert!(own("app") < MIB, "{}", own("app"));
    write("app", "/b", 4);
    assert!((4 * MIB..5 * MIB).contains(&own("app")), "{}", own("app"));
    assert!((8 * MIB..9 * MIB).contains(&own("web")), "{}", own("web"));
    // A state gone back to is what it wrote too.
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    write("web", "/c", 4);
    assert!((12 * MIB..13 * MIB).contains(&own("web")), "{}", own("web"));
    machine.spark(&["snapshot", "restore", "web", "s"]).ok();
    assert!((8 * MIB..9 * MIB).contains(&own("web")), "{}", own("web"));
    sh(&machine, "web", "0", "rm /a; sync").ok();
    assert!(own("web") < MIB, "{}", own("web"));
}

#[test]
fn on_a_terminal_it_is_live_and_leaves_the_terminal_as_it_was() {
    let machine = machine();
    bare(&machine, "web", &[]);
    bare(&machine, "hungry", &[]);
    sh(&machine, "hungry", "0", "dd if=/dev/zero of=/dev/shm/x bs=1M count=20").ok();
    let mut screen = Screen::new(&machine, &["top", "--interval", "100ms"]);
    screen.sees("\x1b[?1049h");
    // Blanks are jumped over.
    screen.sees("sparks,");
    screen.sees("hungry");
    screen.sees("web");
    screen.sees("quit");
    screen.type_in("m");
    // What changes on the screen is drawn anew, and what was made meanwhile comes.
    // No letter of it is where another name has the same, which would not be drawn again.
    bare(&machine, "fresh", &["--no-start"]);
    screen.sees("fresh");
    screen.sees("stopped");
    screen.resize(6, 50);
    // All of it, for a screen of another size.
    screen.sees("sparks,");
    screen.sees("hungry");
    screen.sees("web");
    screen.type_in("q");
    let (status, shown) = screen.ends();
    assert_eq!(status, 0);
    assert!(shown.contains("\x1b[?1049l"), "{shown:?}");

    for end in ["\x03", "TERM"] {
        let mut screen = Screen::new(&machine, &["top"]);
        screen.sees("sparks,");
        match end {
            "TERM" => screen.signal(Signal::TERM),
            key => screen.type_in(key),
        }
        let (status, shown) = screen.ends();
        assert!(status == 0 && shown.contains("\x1b[?1049l"), "{end}: {shown:?}");
    }
    let mut screen = Screen::new(&machine, &["top", "--once"]);
    screen.sees("NAME");
    assert_eq!(screen.ends().0, 0);
}

#[test]
fn du_tells_what_only_one_spark_holds_from_what_it_shares() {
    const MIB: u64 = 1 << 20;
    let machine = machine();
    assert_eq!(machine.spark(&["du", "--json"]).json(), serde_json::json!([]));
    bare(&machine, "web", &[]);
    let held = |name: &str| {
        let row = machine.spark(&["du", name, "--json"]).json()[0].clone();
        [row["own_bytes"].as_u64().unwrap() / MIB, row["shared_bytes"].as_u64().unwrap() / MIB]
    };
    let write = |name: &str, file: &str, mib: u64| {
        let script = format!("dd if=/dev/urandom of={file} bs=1M count={mib} conv=fsync");
        sh(&machine, name, "0", &script).ok();
    };
    let [none, base] = held("web");
    assert_eq!(none, 0, "all that it has is its base's");
    write("web", "/a", 8);
    assert_eq!(held("web"), [8, base]);
    machine.spark(&["fork", "web", "app"]).ok();
    write("app", "/b", 4);
    assert_eq!((held("web"), held("app")), ([0, base + 8], [4, base + 8]));
    // What a snapshot of it holds is its own.
    write("web", "/c", 2);
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    sh(&machine, "web", "0", "rm /a /c; sync").ok();
    assert_eq!(held("web"), [2, base + 8]);
    // The trash is somebody too, until it is emptied.
    machine.spark(&["delete", "-f", "app"]).ok();
    assert_eq!(held("web"), [2, base + 8]);
    machine.spark(&["undelete", "app"]).ok();
    machine.spark(&["delete", "--now", "app"]).ok();
    assert_eq!(held("web"), [10, base]);

    let text = machine.spark(&["du"]).ok();
    assert!(text.starts_with("NAME  OWN ") && text.lines().count() == 2, "{text}");
    assert!(machine.spark(&["du", "-a"]).ok().starts_with("PROJECT  NAME"));
    machine.spark(&["du", "nobody", "--json"]).fails_with("not_found");
}
