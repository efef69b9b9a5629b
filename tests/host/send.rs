//! Sparks that go from one pool to another.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;

use crate::common::{Machine, Output, tree};

/// A machine with a spark that holds something of everything.
fn sender() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start", "-e", "A=1", "--label", "tier=front"]).ok();
    let root = root(&machine);
    std::fs::create_dir_all(root.join("d/deep/er")).unwrap();
    std::fs::write(root.join("f"), "first").unwrap();
    std::fs::write(root.join("d/big"), noise(3 << 20)).unwrap();
    std::fs::hard_link(root.join("d/big"), root.join("d/deep/same")).unwrap();
    symlink("/etc/passwd", root.join("d/link")).unwrap();
    let sparse = std::fs::File::create(root.join("d/sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    std::fs::write(root.join("d/tool"), "#!/bin/sh\n").unwrap();
    std::os::unix::fs::chown(root.join("d/tool"), Some(1000), Some(65535)).unwrap();
    std::fs::set_permissions(root.join("d/tool"), PermissionsExt::from_mode(0o6751)).unwrap();
    let tool = std::fs::File::open(root.join("d/tool")).unwrap();
    sparks::sys::tree::set_xattr(&tool, b"user.note", b"kept").unwrap();
    sparks::sys::tree::set_xattr(&tool, b"trusted.host", b"left out").unwrap();
    let dir = std::fs::File::open(root.join("d")).unwrap();
    sparks::sys::tree::make_fifo(&dir, b"fifo").unwrap();
    sparks::sys::tree::make_node(&dir, b"socket", rustix::fs::FileType::Socket).unwrap();
    sparks::sys::tree::make_node(&dir, b"whiteout", rustix::fs::FileType::CharacterDevice).unwrap();
    machine
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn root(machine: &Machine) -> PathBuf {
    machine.pool().join("projects/default/sparks/web/root")
}

fn snapshot_root(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks/web/snapshots").join(name).join("root")
}

/// The same files, but for what is not kept.
#[track_caller]
fn assert_same(a: &std::path::Path, b: &std::path::Path) {
    let text = |top| tree(top).replace(" trusted.host=left out", "");
    let (a, b) = (text(a), text(b));
    let first = a.lines().zip(b.lines()).find(|(a, b)| a != b);
    assert!(a == b, "{first:?}, {} and {} entries", a.lines().count(), b.lines().count());
}

/// Sends, and returns the snapshot's name and the stream.
pub(crate) fn send(machine: &Machine, args: &[&str]) -> (String, Vec<u8>) {
    let out = machine.spark(&[&["--json", "send"], args].concat());
    out.ok();
    let said: serde_json::Value = serde_json::from_str(&out.stderr()).unwrap();
    assert_eq!(said["bytes"], out.output.stdout.len());
    (said["snapshot"].as_str().unwrap().to_owned(), out.output.stdout)
}

pub(crate) fn receive(machine: &Machine, args: &[&str], stream: &[u8]) -> Output {
    let path = machine.work().join("stream");
    std::fs::write(&path, stream).unwrap();
    let args = [&["receive"], args].concat();
    let mut command = machine.command(&args);
    Output::of(&args.join(" "), command.stdin(std::fs::File::open(path).unwrap()))
}

fn snapshots(machine: &Machine) -> Vec<String> {
    machine.spark(&["snapshot", "list", "-q", "web"]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_spark_and_two_increments_arrive_in_another_pool_as_they_were() {
    let (a, b) = (sender(), Machine::new());
    let (first, stream) = send(&a, &["web"]);
    assert!(first.starts_with("sent-"), "{first}");
    let received = receive(&b, &[], &stream);
    assert_eq!(received.ok(), "web\n");
    assert!(received.stderr().contains("1 extended attributes were dropped"), "{}", received.stderr());
    assert_same(&snapshot_root(&a, &first), &snapshot_root(&b, &first));
    assert_same(&root(&a), &root(&b));
    let info = b.spark(&["--json", "info", "web"]).json();
    assert_eq!(info["state"], "stopped");
    assert_eq!(
        (&info["options"]["env"]["A"], &info["options"]["labels"]["tier"]),
        (&"1".into(), &"front".into())
    );
    assert_eq!(info["origin"]["kind"], "received");
    assert_ne!(info["id"], a.spark(&["--json", "info", "web"]).json()["id"]);

    // Names that trade places, a file where a directory was, data that is shared, a file that shrinks.
    let top = root(&a);
    std::fs::write(top.join("f"), "second").unwrap();
    std::fs::rename(top.join("d/deep"), top.join("moved")).unwrap();
    std::fs::remove_dir(top.join("moved/er")).unwrap();
    std::fs::write(top.join("moved/er"), "a file now").unwrap();
    std::fs::rename(top.join("d/fifo"), top.join("d/x")).unwrap();
    std::fs::rename(top.join("d/link"), top.join("d/fifo")).unwrap();
    std::fs::rename(top.join("d/x"), top.join("d/link")).unwrap();
    let (big, copy) = (top.join("d/big"), top.join("copy"));
    let copy = std::fs::File::create(copy).unwrap();
    rustix::fs::ioctl_ficlone(&copy, std::fs::File::open(big).unwrap()).unwrap();
    std::fs::File::options().write(true).open(top.join("d/sparse")).unwrap().set_len(5).unwrap();
    std::fs::remove_file(top.join("d/socket")).unwrap();
    std::fs::set_permissions(&top, PermissionsExt::from_mode(0o700)).unwrap();
    let (second, increment) = send(&a, &["web", "--since", &first]);
    assert!(increment.len() < stream.len() / 10, "{} of {}", increment.len(), stream.len());
    receive(&b, &["web"], &increment).ok();
    assert_same(&snapshot_root(&a, &second), &snapshot_root(&b, &second));
    assert_same(&root(&a), &root(&b));

    std::fs::remove_dir_all(top.join("d")).unwrap();
    std::fs::write(top.join("f"), "third").unwrap();
    a.spark(&["snapshot", "create", "web", "third"]).ok();
    std::fs::write(top.join("f"), "not sent").unwrap();
    let (third, increment) = send(&a, &["web@third", "--since", &second]);
    assert_eq!(third, "third");
    receive(&b, &["web"], &increment).ok();
    assert_same(&snapshot_root(&a, "third"), &root(&b));
    assert_eq!(std::fs::read(root(&b).join("f")).unwrap(), b"third");

    // What it was can be had back, and it is a spark as any other.
    b.spark(&["undo", "web"]).ok();
    assert_eq!(std::fs::read(root(&b).join("f")).unwrap(), b"second");
    b.spark(&["resume", "web"]).ok();
    assert_eq!(b.spark(&["exec", "web", "--", "cat", "/f"]).ok(), "second");
    assert!(b.staged().is_empty() && a.staged().is_empty());
}

#[test]
fn a_stream_makes_a_spark_of_another_name_or_project_in_the_same_pool() {
    let a = sender();
    let (_, stream) = send(&a, &["web"]);
    assert_eq!(receive(&a, &["shop/app"], &stream).ok(), "app\n");
    assert_same(&root(&a), &a.pool().join("projects/shop/sparks/app/root"));
    receive(&a, &["--json"], &stream).fails_with("exists");
    assert!(a.staged().is_empty());
}

#[test]
fn an_increment_fits_only_what_it_was_made_for() {
    let (a, b) = (sender(), Machine::new());
    let (first, stream) = send(&a, &["web"]);
    std::fs::write(root(&a).join("f"), "second").unwrap();
    let (second, increment) = send(&a, &["web", "--since", &first]);
    std::fs::write(root(&a).join("f"), "third").unwrap();
    let (_, later) = send(&a, &["web", "--since", &second]);

    receive(&b, &["--json", "web"], &increment).fails_with("not_found");
    receive(&b, &[], &stream).ok();
    // Another spark of the same snapshot's name is no parent either.
    b.spark(&["fork", "web", "other", "--no-start"]).ok();
    b.spark(&["snapshot", "create", "other", &first]).ok();
    let message = receive(&b, &["--json", "other"], &increment).fails_with("not_found");
    assert!(message.contains("parent snapshot"), "{message}");
    receive(&b, &["--json"], &later).fails_with("not_found");
    assert_eq!(std::fs::read(root(&b).join("f")).unwrap(), b"first");
    receive(&b, &[], &increment).ok();
    receive(&b, &["--json"], &increment).fails_with("exists");
    receive(&b, &[], &later).ok();
    assert_eq!(std::fs::read(root(&b).join("f")).unwrap(), b"third");

    // A copy that somebody has written to is no copy.
    std::fs::write(root(&a).join("f"), "fourth").unwrap();
    let (_, fourth) = send(&a, &["web", "--since", &first]);
    let copy = snapshot_root(&b, &first);
    sparks::pool::btrfs::set_writable(&copy).unwrap();
    receive(&b, &["--json"], &fourth).fails_with("corrupt");
    sparks::pool::btrfs::set_read_only(&copy).unwrap();
    receive(&b, &["--json"], &fourth).ok();
    assert!(b.staged().is_empty());
}

#[test]
fn since_names_an_older_snapshot_of_the_same_spark() {
    let a = sender();
    a.spark(&["snapshot", "create", "web", "one"]).ok();
    a.spark(&["snapshot", "create", "web", "two"]).ok();
    a.spark(&["--json", "send", "web@one", "--since", "two"]).fails_with("usage");
    a.spark(&["--json", "send", "web@one", "--since", "one"]).fails_with("usage");
    a.spark(&["--json", "send", "web", "--since", "none"]).fails_with("not_found");
    a.spark(&["--json", "send", "web@none"]).fails_with("not_found");
    assert_eq!(snapshots(&a), ["one", "two"]);
}

#[test]
fn a_running_spark_is_sent_as_it_is_and_one_that_receives_runs_again() {
    let (a, b) = (sender(), Machine::new());
    a.spark(&["resume", "web"]).ok();
    let (first, stream) = send(&a, &["web"]);
    assert_eq!(a.spark(&["--json", "info", "web"]).json()["state"], "running");
    receive(&b, &[], &stream).ok();
    b.spark(&["resume", "web"]).ok();
    a.spark(&["exec", "web", "--", "sh", "-c", "printf second > /f"]).ok();
    let (second, increment) = send(&a, &["web", "--since", &first]);
    b.spark(&["exec", "web", "--", "sh", "-c", "printf mine > /f"]).ok();

    receive(&b, &["--no-restore"], &increment).ok();
    assert_eq!(b.spark(&["exec", "web", "--", "cat", "/f"]).ok(), "mine");
    b.spark(&["snapshot", "delete", "web", &second]).ok();
    let received = receive(&b, &["--json"], &increment).json();
    assert_eq!((&received["snapshot"], &received["restored"]["state"]), (&second.into(), &"running".into()));
    assert_eq!(b.spark(&["exec", "web", "--", "cat", "/f"]).ok(), "second");
    b.spark(&["undo", "web"]).ok();
    assert_eq!(b.spark(&["exec", "web", "--", "cat", "/f"]).ok(), "mine");
}

#[test]
fn sending_that_fails_keeps_no_snapshot() {
    let a = sender();
    let mut command = a.command(&["--json", "send", "web"]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = Output::of("send", command.stdout(full).stderr(Stdio::piped()));
    out.fails_with("no_space");
    assert_eq!(snapshots(&a), Vec::<String>::new());
    // A reader that has had enough is no error worth a word.
    let mut child =
        a.command(&["send", "web"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stderr.len()), (Some(141), 0));
    assert_eq!(snapshots(&a), Vec::<String>::new());
}

#[test]
fn what_is_of_the_senders_host_stays_there() {
    let a = Machine::new().with_base();
    let mount = format!("src={},dst=/mnt", a.work().display());
    let git = std::process::Command::new("git").args(["init", "-q", "shop"]).current_dir(a.work()).status();
    assert!(git.unwrap().success());
    a.spark(&["create", "web", "--no-start", "--mount", &mount, "--clone", "shop"]).ok();
    let (_, stream) = send(&a, &["web"]);
    let received = receive(&a, &["copy"], &stream);
    received.ok();
    assert!(received.stderr().contains("left out the mount on /mnt"), "{}", received.stderr());
    let info = a.spark(&["--json", "info", "copy"]).json();
    assert_eq!((info["options"].get("mounts"), info["options"].get("clone")), (None, None));
    assert_eq!(info["options"]["workdir"], "/work/shop");
}

#[test]
fn a_stream_gets_no_network_of_the_host_unless_told_so() {
    let a = Machine::new().with_base();
    a.spark(&["create", "web", "--no-start", "--network", "host"]).ok();
    let (first, stream) = send(&a, &["web"]);
    let network = |spark: &str| a.spark(&["--json", "info", spark]).json()["options"]["network"].clone();
    let received = receive(&a, &["copy"], &stream);
    received.ok();
    assert_eq!(network("copy"), "project");
    assert!(received.stderr().contains("--network host"), "{}", received.stderr());
    receive(&a, &["wanted", "--network", "host"], &stream).ok();
    receive(&a, &["alone", "--network", "none"], &stream).ok();
    assert_eq!((network("wanted"), network("alone")), ("host".into(), "none".into()));
    // An increment makes no spark, and changes no options of one.
    let (_, increment) = send(&a, &["web", "--since", &first]);
    receive(&a, &["--json", "copy", "--network", "host"], &increment).fails_with("usage");
    receive(&a, &["copy"], &increment).ok();
    assert_eq!(network("copy"), "project");
}

#[test]
fn a_stream_cut_or_altered_anywhere_is_refused_and_leaves_nothing() {
    let (a, b) = (sender(), Machine::new());
    let (first, whole) = send(&a, &["web"]);
    std::fs::write(root(&a).join("f"), noise(10_000)).unwrap();
    let (_, increment) = send(&a, &["web", "--since", &first]);
    receive(&b, &["parent"], &whole).ok();
    let before = tree(&b.pool().join("projects"));
    let mut place = 12345_u64;
    let mut random = |below: usize| {
        place = place * 1_103_515_245 % 2_147_483_647;
        place as usize % below
    };
    for (name, stream) in [("new", &whole), ("parent", &increment)] {
        for round in 0..20 {
            let at = match round {
                0 => stream.len() - 1,
                1..4 => round * 8,
                _ => random(stream.len()),
            };
            let mut flipped = stream.clone();
            flipped[at] ^= 1 << random(8);
            for bad in [&stream[..at], &flipped] {
                let out = receive(&b, &["--json", name], bad);
                assert_ne!(out.status(), 0, "byte {at} of {}", stream.len());
                let code: serde_json::Value = serde_json::from_str(&out.stderr()).unwrap();
                let code = code["error"]["code"].as_str().unwrap();
                assert!(["corrupt", "not_supported", "not_found"].contains(&code), "{at}: {}", out.stderr());
                assert!(b.staged().is_empty(), "byte {at}");
            }
        }
        let longer = [&stream[..], b"\n"].concat();
        let message = receive(&b, &["--json", name], &longer).fails_with("corrupt");
        assert!(message.contains("follows"), "{message}");
        receive(&b, &["--json", name], b"").fails_with("corrupt");
    }
    assert_eq!(tree(&b.pool().join("projects")), before);
    receive(&b, &["parent"], &increment).ok();
}

#[test]
fn a_pool_that_is_too_small_says_so_and_has_nothing_left_of_it() {
    let (a, b) = (sender(), Machine::without_pool());
    b.spark(&["pool", "init", "--size", "256M"]).ok();
    std::fs::write(root(&a).join("large"), noise(1 << 20).repeat(300)).unwrap();
    let (_, stream) = send(&a, &["web"]);
    receive(&b, &["--json"], &stream).fails_with("no_space");
    assert!(b.staged().is_empty());
    assert_eq!(b.spark(&["--json", "list", "-a"]).json(), serde_json::json!([]));
}
