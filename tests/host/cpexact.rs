//! `cp`: that a copy holds what the source held and replaces nothing that it should not, whatever both are.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType};
use sparks::ops::{Observer, Silent};

use crate::common::{Machine, Output};
use crate::cp::{cp, location, with_web};
use crate::inside::{bare, machine, root};

fn node(path: &Path, kind: FileType, device: (u32, u32)) {
    let device = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(CWD, path, kind, 0o600.into(), device).unwrap();
}

/// Does something once, when so much of a copy is done.
struct Once<'a> {
    after: u64,
    what: &'a dyn Fn(),
    done: Cell<bool>,
}

impl<'a> Once<'a> {
    fn new(after: u64, what: &'a dyn Fn()) -> Once<'a> {
        Once { after, what, done: Cell::new(false) }
    }
}

impl Observer for Once<'_> {
    fn step(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, done: u64) {
        if done >= self.after && !self.done.replace(true) {
            (self.what)();
        }
    }
    fn notice(&self, _: &str) {}
}

#[test]
fn files_of_proc_and_sys_are_copied_as_they_read() {
    let machine = with_web();
    let inside = root(&machine, "web");
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/ostype"] {
        let copied = cp(&machine, path, "web:/copy").json();
        let expected = fs::read(path).unwrap();
        assert!(!expected.is_empty());
        assert_eq!(fs::read(inside.join("copy")).unwrap(), expected, "{path}");
        assert_eq!(copied["bytes"], expected.len());
    }
    let said = cp(&machine, "/proc/self/pagemap", "web:/endless").fails_with("internal");
    assert!(said.contains("/proc/self/pagemap"), "{said}");
    assert!(!inside.join("endless").exists());
}

#[test]
fn a_log_that_grows_is_copied_up_to_the_size_it_had_and_one_that_is_cut_off_to_its_end() {
    let machine = with_web();
    let log = tempfile::tempdir_in("/dev/shm").unwrap();
    let log = log.path().join("log");
    let size = 40 << 20;
    let grow = || {
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(&[b'b'; 1000]).unwrap();
    };
    let cut = || File::options().write(true).open(&log).unwrap().set_len(20 << 20).unwrap();
    for (change, expected) in [(&grow as &dyn Fn(), size), (&cut, 20 << 20)] {
        fs::write(&log, vec![b'a'; size]).unwrap();
        let once = Once::new(1, change);
        machine.sparks().cp(&[location(&log)], &location("web:/log"), &once).unwrap();
        assert!(once.done.get());
        let copy = fs::read(root(&machine, "web").join("log")).unwrap();
        assert_eq!(copy.len(), expected);
        assert!(copy.iter().all(|b| *b == b'a'));
    }
}

#[test]
fn a_source_that_is_the_target_and_two_sources_of_one_name_are_refused() {
    let machine = with_web();
    let inside = root(&machine, "web");
    for dir in ["one", "two", "into"] {
        fs::create_dir_all(inside.join(dir)).unwrap();
        fs::write(inside.join(dir).join("f"), dir).unwrap();
    }
    fs::hard_link(inside.join("one/f"), inside.join("one/again")).unwrap();
    symlink("f", inside.join("one/link")).unwrap();
    for (from, to) in [
        ("web:/one/f", "web:/one/f"),
        ("web:/one/f", "web:/one"),
        ("web:/one/f", "web:/two/../one/again"),
        ("web:/one/again", "web:/one/f"),
    ] {
        let said = cp(&machine, from, to).fails_with("usage");
        assert!(said.contains("the same file"), "{said}");
    }
    assert_eq!(fs::metadata(inside.join("one/f")).unwrap().nlink(), 2);
    // A link is not followed: the copy takes its place.
    cp(&machine, "web:/one/f", "web:/one/link").ok();
    assert_eq!(fs::read_to_string(inside.join("one/link")).unwrap(), "one");

    for sources in [["web:/one/f", "web:/two/f"], ["web:/one", "web:/./one/"], ["web:/one/f", "web:/one/f"]] {
        let args = [&["--json", "cp"], sources.as_slice(), &["web:/into"]].concat();
        let said = machine.spark(&args).fails_with("usage");
        assert!(said.contains("the same name"), "{said}");
    }
    // Where their names do not show it.
    let said = machine.spark(&["--json", "cp", "web:/one/.", "web:/two/.", "web:/into"]).fails_with("usage");
    assert!(said.contains("two sources"), "{said}");
    assert_eq!(fs::read_to_string(inside.join("into/f")).unwrap(), "one");
}

#[test]
fn devices_and_pipes_of_the_host_are_written_into_and_those_of_a_spark_are_not_touched() {
    let machine = with_web();
    let (work, inside) = (machine.work(), root(&machine, "web"));
    let expected = fs::read(inside.join("etc/passwd")).unwrap();
    for dir in ["t", "t/etc"] {
        fs::create_dir(work.join(dir)).unwrap();
        node(&work.join(dir).join("null"), FileType::CharacterDevice, (1, 3));
        node(&work.join(dir).join("pipe"), FileType::Fifo, (0, 0));
    }
    node(&work.join("t/block"), FileType::BlockDevice, (7, 4095));
    let listener = std::os::unix::net::UnixListener::bind(work.join("t/socket")).unwrap();
    let through = |pipe: &'static str, from: &str, to: &str| {
        let pipe = work.join(pipe);
        let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
        cp(&machine, from, to).ok();
        assert_eq!(reader.join().unwrap(), expected);
    };
    through("t/pipe", "web:/etc/passwd", "t/pipe");
    cp(&machine, "web:/etc/passwd", "t/null").ok();
    for refused in ["t/block", "t/socket"] {
        assert_ne!(cp(&machine, "web:/etc/passwd", refused).status(), 0);
    }
    // In a tree, too.
    for name in ["null", "pipe"] {
        fs::write(inside.join("etc").join(name), &expected).unwrap();
    }
    through("t/etc/pipe", "web:/etc", "t");
    symlink("/etc/passwd", inside.join("null")).unwrap();
    cp(&machine, "web:/null", "t/").fails_with("wrong_state");
    let kind = |path: &str| fs::symlink_metadata(work.join("t").join(path)).unwrap().file_type();
    assert!(kind("null").is_char_device() && kind("etc/null").is_char_device());
    assert!(kind("pipe").is_fifo() && kind("etc/pipe").is_fifo());
    assert!(kind("block").is_block_device() && kind("socket").is_socket());
    drop(listener);

    // Nobody in a spark gets the host to wait for a pipe, or to write to a device.
    fs::write(work.join("file"), "x").unwrap();
    node(&inside.join("pipe"), FileType::Fifo, (0, 0));
    node(&inside.join("device"), FileType::CharacterDevice, (1, 3));
    for (path, what) in [("web:/pipe", "a named pipe"), ("web:/device", "a device")] {
        let said = cp(&machine, "file", path).fails_with("wrong_state");
        assert!(said.contains(what), "{said}");
    }
    assert!(fs::metadata(inside.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn what_the_shell_left_open_is_read_and_written() {
    let machine = with_web();
    let inside = root(&machine, "web");
    let bash = |script: &str| {
        let spark = machine.command(&[]);
        let mut command = Command::new("bash");
        command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("spark", spark.get_program()).current_dir(machine.work());
        Output::of(script, command.args(["-c", &format!("set -e -o pipefail; {script}")]))
    };
    let passwd = fs::read_to_string(inside.join("etc/passwd")).unwrap();
    assert_eq!(bash("$spark cp web:/etc/passwd /dev/stdout").ok(), passwd);
    assert_eq!(bash("$spark cp web:/etc/passwd /dev/stdout > out; cat out").ok(), passwd);
    assert_eq!(bash("$spark cp web:/etc/passwd >(cat); wait $!").ok(), passwd);
    assert_eq!(bash("umask 027; echo text | $spark cp /dev/stdin web:/piped").ok(), "");
    let piped = fs::metadata(inside.join("piped")).unwrap();
    assert_eq!(
        (piped.mode() & 0o7777, fs::read_to_string(inside.join("piped")).unwrap()),
        (0o640, "text\n".into())
    );
    assert_eq!(bash("$spark cp <(head -c 50M /dev/zero) web:/long").ok(), "");
    assert_eq!(fs::metadata(inside.join("long")).unwrap().len(), 50 << 20);
    fs::write(inside.join("long"), vec![1; 1 << 20]).unwrap();
    let closed = bash("$spark cp web:/long /dev/stdout | head -c 1");
    assert_eq!((closed.status(), closed.stderr()), (141, String::new()));
    assert_ne!(bash("$spark cp web:/etc /dev/stdout").status(), 0);
}

#[test]
fn a_copy_into_a_spark_that_is_restored_or_deleted_meanwhile_says_so() {
    let machine = machine();
    for (args, said) in [
        (&["snapshot", "restore", "web", "s"][..], "restored"),
        (&["undo", "web"], "restored"),
        (&["delete", "-f", "--now", "web"], "deleted"),
    ] {
        if said == "restored" && args[0] == "snapshot" {
            bare(&machine, "web", &[]);
            machine.spark(&["snapshot", "create", "web", "s"]).ok();
        }
        let big = machine.work().join("big");
        fs::write(&big, vec![1; 40 << 20]).unwrap();
        let change = || _ = machine.spark(args).ok();
        let once = Once::new(1, &change);
        let e = machine.sparks().cp(&[location(&big)], &location("web:/big"), &once).unwrap_err();
        assert!(once.done.get());
        assert!(e.to_string().contains(said) && e.to_string().contains("`web`"), "{args:?}: {e}");
        assert!(!e.hint().unwrap().contains("dmesg"), "{e:?}");
    }
    // What is read from one that is freed is not all of it.
    bare(&machine, "web", &["--no-start"]);
    let inside = root(&machine, "web").join("many");
    fs::create_dir(&inside).unwrap();
    (0..2000).for_each(|n| fs::write(inside.join(format!("f{n}")), "x").unwrap());
    let change = || _ = machine.spark(&["delete", "--now", "web"]).ok();
    let once = Once::new(500, &change);
    let out = location(machine.work().join("out"));
    let e = machine.sparks().cp(&[location("web:/many")], &out, &once).unwrap_err();
    assert!(e.to_string().contains("deleted"), "{e}");
}

/// The kernel's map of a file tells which of its extents wait to be written.
#[test]
fn what_is_copied_into_a_spark_is_written_to_disk_on_the_way() {
    let machine = Machine::with_pool(3 << 30).with_base();
    bare(&machine, "web", &["--no-start"]);
    let big = tempfile::tempdir_in("/dev/shm").unwrap();
    let big = big.path().join("big");
    fs::write(&big, vec![1; 300 << 20]).unwrap();
    let pool = fs::canonicalize(machine.pool()).unwrap();
    let waiting = Cell::new(u64::MAX);
    let look = || {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path());
        let unnamed = |fd: &PathBuf| {
            fs::read_link(fd)
                .is_ok_and(|to| to.starts_with(&pool) && to.to_string_lossy().ends_with("(deleted)"))
                && fs::metadata(fd).is_ok_and(|meta| meta.is_file())
        };
        let fd = fds.into_iter().find(unnamed).expect("a file without a name");
        let number = fd.file_name().unwrap().to_str().unwrap();
        let path = format!("/proc/{}/fd/{number}", std::process::id());
        let map = Command::new("filefrag").args(["-v", "-b1"]).arg(path).output().unwrap();
        let map = String::from_utf8_lossy(&map.stdout).into_owned();
        assert!(map.contains(" found"), "{map}");
        let length = |line: &str| line.split(':').nth(3)?.trim().parse::<u64>().ok();
        waiting.set(map.lines().filter(|line| line.contains("delalloc")).filter_map(length).sum());
    };
    let once = Once::new(256 << 20, &look);
    machine.sparks().cp(&[location(&big)], &location("web:/big"), &once).unwrap();
    assert!(waiting.get() <= 32 << 20, "{} bytes wait", waiting.get());
}

#[test]
fn a_file_that_is_one_hole_takes_no_room() {
    let machine = with_web();
    let (work, inside) = (machine.work(), root(&machine, "web"));
    let sparse = File::create(work.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    fs::set_permissions(work.join("sparse"), PermissionsExt::from_mode(0o600)).unwrap();
    machine.sparks().cp(&[location(work.join("sparse"))], &location("web:/sparse"), &Silent).unwrap();
    let copy = fs::metadata(inside.join("sparse")).unwrap();
    assert_eq!((copy.len(), copy.blocks()), (1 << 30, 0));
}
