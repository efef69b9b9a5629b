//! What the kernel counts for each user of the host: a spark that takes all of it takes it from nobody else.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use crate::common::Machine;
use crate::inside::{bare, compiled, init, machine, root};

/// What `taker` takes, and the error when there is no more.
const KINDS: [(&str, &str); 5] = [
    ("inotify", "EMFILE"),
    ("signals", "EAGAIN"),
    ("queues", "EMFILE"),
    ("locked", "ENOMEM"),
    // Counted for the whole host, of which each spark has a share.
    ("terminals", "ENOSPC"),
];

/// Starts a program that takes, and waits for what it says: how many it has, and why no more.
fn taking(mut command: Command) -> (Child, u64, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (count, error) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{command:?}: {line:?}"));
    (child, count.parse().unwrap(), error.to_owned())
}

/// Takes one, and says what became of it: `0` if it got one.
fn takes_one(command: Command) -> String {
    let (mut child, _, error) = taking(command);
    drop(child.stdin.take());
    child.wait().unwrap();
    error
}

/// The kernel closes packet sockets one by one when their process has been killed. That takes longer than what was killed has to
/// end, and goes on.
#[test]
fn a_spark_with_many_packet_sockets_is_stopped_when_the_kernel_has_closed_them() {
    let machine = machine();
    bare(&machine, "web", &["--no-start"]);
    std::fs::copy(compiled("taker"), root(&machine, "web").join("bin/taker")).unwrap();
    machine.spark(&["resume", "web"]).ok();
    let (mut child, count, error) = taking(inside(&machine, "web", "packets", "600"));
    assert_eq!((count, &*error), (600, "0"));
    let mut stop = machine.command(&["stop", "web", "-t", "0"]);
    // Less than closing takes, even while others change networks, which makes it faster.
    crate::common::Output::of("stop", stop.env("SPARK_HASTE", "40")).ok();
    child.wait().unwrap();
    assert_eq!(machine.spark(&["info", "web", "--json"]).json()["state"], "stopped");
}

fn inside(machine: &Machine, spark: &str, kind: &str, count: &str) -> Command {
    machine.command(&["exec", "-T", spark, "--", "/bin/taker", kind, count])
}

#[test]
fn what_a_spark_takes_of_a_share_is_not_taken_from_the_host_nor_from_other_sparks() {
    let machine = machine();
    let taker = compiled("taker");
    let names = [("plain", &[][..]), ("hard", &["--hardened"]), ("other", &[])];
    for (name, options) in names {
        bare(&machine, name, &[options, &["--no-start"]].concat());
        std::fs::copy(&taker, root(&machine, name).join("bin/taker")).unwrap();
        machine.spark(&["resume", name]).ok();
    }
    for (kind, none_left) in KINDS {
        for greedy in ["plain", "hard"] {
            let (mut child, count, error) = taking(inside(&machine, greedy, kind, "0"));
            assert_eq!((count > 0, &*error), (true, none_left), "{kind} in {greedy}");
            let mut host = Command::new(&taker);
            host.args([kind, "1"]);
            assert_eq!(takes_one(host), "0", "{kind}: the host, while {greedy} has {count}");
            let other = inside(&machine, "other", kind, "1");
            assert_eq!(takes_one(other), "0", "{kind}: another spark, while {greedy} has {count}");
            // All of them, and not one command of its.
            assert_eq!(takes_one(inside(&machine, greedy, kind, "1")), none_left, "{kind} in {greedy}");
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}

/// Whom a user namespace of a process belongs to, by the host's ids.
fn owner(pid: i32) -> u32 {
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
    let namespace = File::open(format!("/proc/{pid}/ns/user")).unwrap();
    let mut owner = u32::MAX;
    // SAFETY: ioctl_nsfs(2): the kernel writes a uid_t there.
    #[allow(unsafe_code)]
    let r = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID as _, &mut owner) };
    assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
    owner
}

#[test]
fn a_spark_s_user_namespace_belongs_to_the_spark_s_own_root_however_it_is_started() {
    let machine = machine();
    let owns_itself = |name: &str, how: &str| {
        let info = machine.spark(&["info", name, "--json"]).json();
        let first = info["oci"]["first_id"].as_u64().unwrap();
        assert_eq!(u64::from(owner(init(&machine, name))), first, "{how}");
        assert_ne!(first, 0);
    };
    bare(&machine, "web", &[]);
    owns_itself("web", "create");
    machine.spark(&["fork", "web", "copy"]).ok();
    owns_itself("copy", "fork of a running one");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    owns_itself("web", "resume");
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    owns_itself("web", "resume of a paused one");
    bare(&machine, "hard", &["--hardened"]);
    owns_itself("hard", "--hardened");
    bare(&machine, "near", &["--network", "host"]);
    owns_itself("near", "--network host");
    machine.spark(&["data", "create", "vol"]).ok();
    bare(
        &machine,
        "full",
        &["-v", "vol:/data", "--mount", &format!("type=bind,src={},dst=/m", machine.work().display())],
    );
    owns_itself("full", "with volumes and mounts");
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    machine.spark(&["snapshot", "restore", "web", "before"]).ok();
    owns_itself("web", "restore");
}
