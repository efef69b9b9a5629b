//! The log of detached commands: what keeps it within its bound, and what that keeps of the host.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Machine, processes, wait_for};
use crate::inside::{USER, bare, init, machine};

/// For all logs of a spark together.
pub(crate) const MOST: u64 = 32 << 20;

pub(crate) fn web() -> Machine {
    let machine = machine();
    bare(&machine, "web", &[]);
    machine
}

fn id(machine: &Machine, spark: &str) -> String {
    machine.spark(&["info", spark, "--json"]).json()["id"].as_str().unwrap().to_owned()
}

pub(crate) fn log(machine: &Machine, spark: &str) -> PathBuf {
    machine.spark(&["info", spark, "--json"]).json()["log"].as_str().unwrap().into()
}

pub(crate) fn detach(machine: &Machine, script: &str) -> i32 {
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", script]).ok().trim().parse().unwrap()
}

/// The keepers of a spark's log.
fn keepers(id: &str) -> Vec<i32> {
    let is_keeper = |pid: &i32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|program| program.to_string_lossy().starts_with("/memfd:spark-log"))
    };
    processes(id).into_iter().filter(is_keeper).collect()
}

/// The bytes of the files that a log consists of, as it is written meanwhile.
pub(crate) fn bytes(log: &Path) -> u64 {
    let names = std::fs::read_dir(log.parent().unwrap()).unwrap().flatten();
    let logs = names.filter(|e| e.file_name().to_string_lossy().starts_with("log"));
    logs.map(|e| e.metadata().unwrap()).map(|meta| meta.len().max(meta.blocks() * 512)).sum()
}

fn status(pid: i32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap().to_owned();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn all_logs_of_a_spark_are_bounded_while_no_command_of_the_host_runs() {
    let machine = web();
    let (path, id) = (log(&machine, "web"), id(&machine, "web"));
    // Two at once: they share the bound.
    let write = "yes 0123456789abcdef | head -c 200000000; echo end of $0";
    let start = |name: &str| machine.spark(&["exec", "-d", "web", "--", "sh", "-c", write, name]).ok();
    let commands = ["one", "two"].map(|name| PathBuf::from(format!("/proc/{}", start(name).trim())));
    let mut largest = 0;
    assert!(wait_for(|| {
        largest = largest.max(bytes(&path));
        assert!(largest < MOST, "{largest} bytes");
        commands.iter().all(|command| !command.exists()) && keepers(&id).is_empty()
    }));
    assert!(largest > MOST / 4, "it kept some: {largest}");
    let output = machine.spark(&["logs", "web"]);
    let shown = output.stdout();
    assert!(shown.len() as u64 > MOST / 4 && (shown.len() as u64) < MOST, "{}", shown.len());
    assert!(shown.ends_with("end of one\n") || shown.ends_with("end of two\n"));
    assert!(output.stderr().contains("of the log are not kept any more"), "{}", output.stderr());
    let json = machine.spark(&["logs", "web", "--json"]).json();
    let kept = json["text"].as_str().unwrap().len() as u64;
    assert_eq!(kept + json["lost_bytes"].as_u64().unwrap(), 400_000_000 + 2 * "end of one\n".len() as u64);
}

#[test]
fn a_command_cannot_get_at_the_file_of_its_log() {
    let machine = web();
    let path = log(&machine, "web");
    let script = "echo first; dd if=/dev/null of=/proc/self/fd/1 bs=1 seek=1T 2>/dev/null || echo refused
        : > /dev/stdout; echo again > /dev/stdout; su -s /bin/sh nobody -c 'echo other > /dev/stderr'; echo end";
    for (user, script, end) in
        [("0", script, "end\n"), (USER, "echo mine > /dev/stdout; echo last", "last\n")]
    {
        machine.spark(&["exec", "-d", "-u", user, "web", "--", "sh", "-c", script]).ok();
        assert!(wait_for(|| machine.spark(&["logs", "web", "-n", "1"]).ok() == end));
    }
    let all = machine.spark(&["logs", "web"]).ok();
    assert_eq!(all, "first\nrefused\nagain\nother\nend\nmine\nlast\n");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
}

/// Keeps the keeper of a log from running, and lets it go on half a second later.
fn hold(id: &str) -> std::process::Child {
    let keepers = keepers(id);
    let [keeper] = keepers[..] else { panic!("{keepers:?}") };
    signal("-STOP", keeper);
    Command::new("sh").args(["-c", &format!("sleep 0.5; kill -CONT {keeper}")]).spawn().unwrap()
}

#[test]
fn what_was_written_is_in_the_log_at_once_and_when_the_spark_has_ended() {
    let machine = web();
    let id = id(&machine, "web");
    // One that is told through a pipe to write, and answers when it has.
    let script = "trap 'head -c 60000 /dev/zero | tr \"\\0\" x; echo; echo bye; exit' TERM
        mkfifo /go /done; while :; do read -r word < /go && echo \"$word\" && echo > /done; done";
    detach(&machine, script);
    assert!(wait_for(|| machine.spark(&["exec", "web", "test", "-p", "/done"]).status() == 0));
    for n in 0..3 {
        let mut held = hold(&id);
        let ask = format!("echo word-{n} > /go; read -r x < /done");
        machine.spark(&["exec", "web", "--", "sh", "-c", &ask]).ok();
        assert_eq!(machine.spark(&["logs", "web", "-n", "1"]).ok(), format!("word-{n}\n"));
        held.wait().unwrap();
    }
    let mut held = hold(&id);
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(machine.spark(&["logs", "web", "-n", "1"]).ok(), "bye\n");
    held.wait().unwrap();
}

#[test]
fn a_keeper_has_nothing_of_its_caller_and_no_rights() {
    let machine = web();
    let (path, id) = (log(&machine, "web"), id(&machine, "web"));
    // A caller with a terminal of its own would be waited for; here a pipe, an open file and a directory.
    let kept = machine.work().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let mut exec = machine.command(&["exec", "-d", "web", "--", "sleep", "1000"]);
    let mut child = exec.current_dir(&kept).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.wait().unwrap().success(), "{err}");
    let keepers = keepers(&id);
    let [keeper] = keepers[..] else { panic!("{keepers:?}") };
    let link = |name: &str| std::fs::read_link(format!("/proc/{keeper}/{name}")).unwrap();
    let fds: Vec<String> = (0..5).map(|n| link(&format!("fd/{n}")).display().to_string()).collect();
    assert!(fds[0].starts_with("pipe:"), "{fds:?}");
    assert_eq!(fds[1], path.display().to_string());
    assert_eq!(
        fds[2..4],
        [path.with_extension("1"), path.with_extension("start")].map(|p| p.display().to_string())
    );
    assert_eq!(fds[4], "anon_inode:[pidfd]", "pidfs has another name: {fds:?}");
    assert_eq!(std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count(), 5);
    // Of the host it sees nothing: root and directory are the spark's, so are all namespaces but two.
    let inside = init(&machine, "web");
    for name in ["mnt", "net", "uts", "ipc", "cgroup"] {
        let of_init = std::fs::read_link(format!("/proc/{inside}/ns/{name}")).unwrap();
        assert_eq!(link(&format!("ns/{name}")), of_init, "{name}");
    }
    let first: u32 =
        machine.spark(&["info", "web", "--json"]).json()["oci"]["first_id"].as_u64().unwrap() as u32;
    let nobody = (first + 65_534).to_string();
    assert_eq!(status(keeper, "Uid"), [nobody.as_str(); 4].join(" "));
    assert_eq!(status(keeper, "Gid"), [nobody.as_str(); 4].join(" "));
    assert_eq!(status(keeper, "Groups"), "");
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status(keeper, set), "0000000000000000");
    }
    assert_eq!((status(keeper, "NoNewPrivs"), status(keeper, "Seccomp")), ("1".into(), "2".into()));
    let limits = std::fs::read_to_string(format!("/proc/{keeper}/limits")).unwrap();
    let size = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert!(size.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() < MOST / 2, "{size}");
    assert!(std::fs::read(format!("/proc/{keeper}/environ")).unwrap().is_empty());
    let stat = std::fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(
        (fields[3], fields[4]),
        (keeper.to_string().as_str(), "0"),
        "its own session, without a terminal"
    );
    // Nobody inside sees it, and it takes little.
    let seen = machine.spark(&["exec", "web", "--", "sh", "-c", "cat /proc/[0-9]*/comm"]).ok();
    assert!(!seen.contains("spark-log"), "{seen}");
    let rss = status(keeper, "VmRSS");
    assert!(rss.trim_end_matches(" kB").parse::<u64>().unwrap() < 300, "{rss}");
}

#[test]
fn a_command_ends_without_its_keeper_and_a_keeper_without_its_command_or_its_spark() {
    let machine = web();
    let id = id(&machine, "web");
    let ended = |pid: i32| wait_for(|| !Path::new(&format!("/proc/{pid}")).exists());
    let writer = "while echo x; do sleep 0.01; done; sleep 1000";
    let command = detach(&machine, writer);
    signal("-KILL", keepers(&id)[0]);
    assert!(ended(command), "SIGPIPE ends who writes on: access is closed, not open");
    // It goes on for who has its pipe, and ends with the last of these.
    detach(&machine, "(sleep 1; echo later; mkfifo /go; read x < /go) & echo now");
    assert!(wait_for(|| machine.spark(&["logs", "web", "-n", "1"]).ok() == "later\n"));
    assert_eq!(keepers(&id).len(), 1);
    machine.spark(&["exec", "web", "--", "sh", "-c", "echo > /go"]).ok();
    assert!(wait_for(|| keepers(&id).is_empty()));
    // With the spark, whether it is stopped or its first process is killed.
    let path = log(&machine, "web");
    for end in ["stop", "kill", "pause", "delete"] {
        machine.spark(&["resume", "web"]).ok();
        for _ in 0..3 {
            detach(&machine, "yes");
        }
        assert_eq!(keepers(&id).len(), 3);
        match end {
            "kill" => {
                signal("-KILL", init(&machine, "web"));
                assert!(wait_for(|| keepers(&id).is_empty()));
            }
            "pause" => {
                machine.spark(&["pause", "web"]).ok();
                machine.spark(&["logs", "web", "-n", "1"]).ok();
                machine.spark(&["stop", "web", "-t", "0"]).ok();
            }
            "delete" => drop(machine.spark(&["delete", "-f", "web"]).ok()),
            _ => drop(machine.spark(&["stop", "web", "-t", "0"]).ok()),
        }
        assert_eq!(keepers(&id), [] as [i32; 0], "{end}");
        assert_eq!(holders(path.parent().unwrap()), [] as [PathBuf; 0], "{end}: the pool can be unmounted");
    }
}

/// What processes have open below a directory.
fn holders(dir: &Path) -> Vec<PathBuf> {
    let fds = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| std::fs::read_dir(e.path().join("fd")).ok());
    let links = fds.flat_map(|fds| fds.flatten()).filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter(|path| path.starts_with(dir) && path.to_string_lossy().contains("/log")).collect()
}

fn signal(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn names_and_files_of_a_spark_change_while_its_log_is_written() {
    let machine = web();
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    detach(&machine, "while :; do echo x; sleep 0.01; done");
    machine.spark(&["rename", "web", "app"]).ok();
    let grows = |spark: &str| {
        let path = log(&machine, spark);
        let before = path.metadata().unwrap().len();
        wait_for(|| path.metadata().unwrap().len() > before)
    };
    assert!(grows("app"), "it is the same file under the new name");
    machine.spark(&["fork", "app", "copy"]).ok();
    assert_eq!(machine.spark(&["logs", "copy"]).ok(), "", "a fork begins a log of its own");
    machine.spark(&["snapshot", "restore", "app", "before"]).ok();
    let kept = machine.spark(&["logs", "app"]).ok();
    assert!(kept.contains("x\n"), "a log is no part of a snapshot");
    machine.spark(&["exec", "-d", "app", "echo", "after"]).ok();
    assert!(wait_for(|| machine.spark(&["logs", "app"]).ok().ends_with("after\n")));
    machine.spark(&["undo", "app"]).ok();
    assert!(machine.spark(&["logs", "app"]).ok().ends_with("after\n"));
}
