//! `cp`: what is kept, where it goes, and that nothing inside leads it out.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType};
use sparks::domain::location::Location;
use sparks::sys::tree::{set_xattr, xattr_names};

use crate::common::{Machine, tree};
use crate::inside::{bare, machine, output_in_time, root};

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A machine with a stopped spark `web`.
pub(crate) fn with_web() -> Machine {
    let machine = machine();
    bare(&machine, "web", &["--no-start"]);
    machine
}

pub(crate) fn cp(machine: &Machine, from: &str, to: &str) -> crate::common::Output {
    machine.spark(&["--json", "cp", from, to])
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, 0o620.into(), 0).unwrap();
}

/// A tree with one of everything that is kept.
fn everything(top: &Path) {
    fs::create_dir_all(top.join("deep/er")).unwrap();
    fs::write(top.join("deep/file"), vec![7; 300_000]).unwrap();
    fs::hard_link(top.join("deep/file"), top.join("again")).unwrap();
    fs::write(top.join("set-id"), "x").unwrap();
    symlink("/etc/shadow", top.join("absolute")).unwrap();
    symlink("deep", top.join("to-dir")).unwrap();
    fs::hard_link(top.join("absolute"), top.join("deep/same-link")).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"bad\xff\x1b[31m\nname")), "").unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 20 << 20).unwrap();
    fifo(&top.join("deep/fifo"));
    for (path, id) in [("deep", 1000), ("deep/file", 65535), ("absolute", 33), ("deep/fifo", 5)] {
        lchown(top.join(path), Some(id), Some(id + 1 - id / 65535)).unwrap();
    }
    for (path, mode) in [("deep", 0o2750), ("deep/er", 0), ("set-id", 0o6755)] {
        fs::set_permissions(top.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    set_xattr(File::open(top.join("set-id")).unwrap(), b"user.note", b"a\nb").unwrap();
    set_xattr(File::open(top.join("set-id")).unwrap(), b"security.capability", &CAPABILITY).unwrap();
    for path in ["deep/er", "deep", "sparse", "absolute", "deep/fifo", ""] {
        let touch =
            Command::new("touch").args(["-h", "-d", "2001-02-03 04:05:06.7"]).arg(top.join(path)).status();
        assert!(touch.unwrap().success());
    }
}

pub(crate) fn location(path: impl AsRef<OsStr>) -> Location {
    Location::parse(path.as_ref()).unwrap()
}

pub(crate) fn no_temporary_names(top: &Path) {
    let found = Command::new("find").arg(top).args(["-name", ".spark-new-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn what_goes_in_and_from_spark_to_spark_is_the_same_in_everything() {
    let machine = with_web();
    bare(&machine, "db", &[]);
    let source = machine.work().join("source");
    everything(&source);
    let copied = cp(&machine, "source", "web:/srv/").json();
    assert_eq!((&copied["entries"], &copied["xattrs_dropped"]), (&12.into(), &0.into()), "{copied}");
    let inside = root(&machine, "web").join("srv/source");
    assert_eq!(tree(&inside), tree(&source));
    assert!(fs::metadata(inside.join("sparse")).unwrap().blocks() < 1000, "holes stay holes");

    cp(&machine, "web:/srv/source", "db:copy").ok();
    assert_eq!(tree(&root(&machine, "db").join("copy")), tree(&source), "into a running one");
    no_temporary_names(&machine.pool());
}

#[test]
fn what_comes_out_belongs_to_the_caller_and_has_no_privileges() {
    let machine = with_web();
    let inside = root(&machine, "web").join("source");
    everything(&inside);
    let mut command = machine.command(&["--json", "cp", "web:/source", "out"]);
    let output = command.env("SUDO_UID", "1234").env("SUDO_GID", "2345").output().unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["entries"], &summary["privileges_dropped"]), (&12.into(), &3.into()), "{summary}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 set-id bits or capabilities were dropped"));
    let out = machine.work().join("out");
    let listed = Command::new("find").arg(&out).args(["-printf", "%U:%G %m\n"]).output().unwrap();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let mode = line.strip_prefix("1234:2345 ").unwrap_or_else(|| panic!("{line}"));
        assert_eq!(u32::from_str_radix(mode, 8).unwrap() & 0o6000, 0, "{line}");
    }
    assert_eq!(xattr_names(File::open(out.join("set-id")).unwrap()).unwrap(), [b"user.note"]);
    assert_eq!(
        fs::metadata(out.join("again")).unwrap().ino(),
        fs::metadata(out.join("deep/file")).unwrap().ino()
    );
    assert_eq!(fs::read_link(out.join("absolute")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(
        fs::metadata(out.join("deep")).unwrap().mtime(),
        fs::metadata(inside.join("deep")).unwrap().mtime()
    );
    assert!(fs::metadata(out.join("sparse")).unwrap().blocks() < 1000, "holes stay holes");
}

#[test]
fn ids_that_a_spark_does_not_have_become_nobody() {
    let machine = with_web();
    fs::write(machine.work().join("file"), "x").unwrap();
    lchown(machine.work().join("file"), Some(100_000), Some(12)).unwrap();
    let copied = cp(&machine, "file", "web:/file").json();
    assert_eq!(copied["ids_mapped"], 1);
    let meta = fs::metadata(root(&machine, "web").join("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65534, 12));
}

#[test]
fn names_are_given_as_docker_does() {
    let machine = with_web();
    let inside = root(&machine, "web").join("t");
    fs::create_dir_all(machine.work().join("d/sub")).unwrap();
    fs::write(machine.work().join("d/sub/f"), "f").unwrap();
    fs::write(machine.work().join("f"), "f").unwrap();
    symlink("d", machine.work().join("link")).unwrap();
    for (from, to, made) in [
        ("f", "web:/t/new", "new"),
        ("f", "web:/t/dir", "dir/f"),
        ("f", "web:/t/dir/", "dir/f"),
        ("f", "web:t/dir/.", "dir/f"),
        ("f", "web:/t/to-dir", "dir/f"),
        ("d", "web:/t/new", "new/sub/f"),
        ("d", "web:/t/dir", "dir/d/sub/f"),
        ("d/", "web:/t/dir", "dir/d/sub/f"),
        ("d/.", "web:/t/dir", "dir/sub/f"),
        ("d/.", "web:/t/new", "new/sub/f"),
        ("d/sub/..", "web:/t/dir", "dir/sub/f"),
        ("link/", "web:/t/dir", "dir/link/sub/f"),
        ("link/.", "web:/t/dir", "dir/sub/f"),
        ("./f", "web:/t/../../../t/new", "new"),
    ] {
        fs::create_dir_all(inside.join("dir")).unwrap();
        symlink("/t/dir", inside.join("to-dir")).unwrap();
        cp(&machine, from, to).ok();
        assert_eq!(fs::read(inside.join(made)).ok(), Some(b"f".to_vec()), "{from} {to}");
        fs::remove_dir_all(&inside).unwrap();
    }
    fs::create_dir_all(&inside).unwrap();
    cp(&machine, "link", "web:/t").ok();
    assert_eq!(fs::read_link(inside.join("link")).unwrap(), Path::new("d"), "a link is copied as one");
    machine.spark(&["cp", "f", "d", "web:/t"]).ok();
    assert!(inside.join("f").exists() && inside.join("d/sub/f").exists());
    cp(&machine, "web:/t/.", "./a:b").ok();
    assert!(machine.work().join("a:b/d/sub/f").exists());
}

#[test]
fn what_is_replaced_is_replaced_whole_and_a_directory_that_was_there_stays_as_it_is() {
    let machine = with_web();
    let inside = root(&machine, "web");
    fs::create_dir_all(machine.work().join("etc")).unwrap();
    fs::set_permissions(machine.work().join("etc"), PermissionsExt::from_mode(0o700)).unwrap();
    lchown(machine.work().join("etc"), Some(5), Some(5)).unwrap();
    for name in ["file", "link"] {
        fs::write(machine.work().join("etc").join(name), "new").unwrap();
    }
    fifo(&machine.work().join("etc/fifo"));
    symlink("to", machine.work().join("etc/linked")).unwrap();
    fs::write(inside.join("etc/file"), "old").unwrap();
    fs::write(inside.join("etc/linked"), "old").unwrap();
    fs::write(inside.join("etc/stays"), "old").unwrap();
    symlink("stays", inside.join("etc/link")).unwrap();
    fifo(&inside.join("etc/fifo"));
    let reader = File::open(inside.join("etc/file")).unwrap();
    let output = output_in_time(machine.command(&["cp", "etc", "web:/"]), b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::io::read_to_string(reader).unwrap(), "old", "who has it open keeps what was there");
    for name in ["file", "link"] {
        assert_eq!(fs::read(inside.join("etc").join(name)).unwrap(), b"new", "{name}");
    }
    assert_eq!(fs::read(inside.join("etc/stays")).unwrap(), b"old", "not through a link");
    assert_eq!(fs::read_link(inside.join("etc/linked")).unwrap(), Path::new("to"));
    let etc = fs::metadata(inside.join("etc")).unwrap();
    assert_eq!((etc.uid(), etc.mode() & 0o7777), (0, 0o755));
    no_temporary_names(&inside);
}

#[test]
fn what_cannot_be_is_refused_and_leaves_no_temporary_names() {
    let machine = with_web();
    let inside = root(&machine, "web");
    fs::create_dir_all(machine.work().join("d/sub")).unwrap();
    fs::write(machine.work().join("f"), "f").unwrap();
    fs::create_dir_all(inside.join("t/f")).unwrap();
    fs::create_dir_all(inside.join("u/d")).unwrap();
    fs::write(inside.join("u/d/sub"), "file").unwrap();
    symlink("/t", inside.join("u/to-dir")).unwrap();
    let trees = || ["t", "u"].map(|dir| tree(&inside.join(dir)));
    let before = trees();
    for (from, to, code) in [
        ("f", "web:/t", "wrong_state"),
        ("d", "web:/u", "wrong_state"),
        ("d", "web:/u/d/sub", "wrong_state"),
        ("f", "web:/nope/f", "not_found"),
        ("f", "web:/nope/", "not_found"),
        ("nope", "web:/t", "not_found"),
        ("web:/nope", ".", "not_found"),
        ("web:/u/d/sub/x", ".", "not_found"),
        ("wbe:/t", ".", "not_found"),
        ("web@nope:/t", ".", "not_found"),
        ("f", "web@nope:/t", "usage"),
        ("f", "d", "usage"),
        ("f", "Web:/t", "usage"),
        ("f", "web:", "usage"),
        ("web:/t", "-", "usage"),
        ("web:/t", "web:/t/f", "usage"),
        ("web:/t", "web:/t", "usage"),
        ("web:/t", "web:/", "usage"),
        ("web:/", "web:/t/f", "usage"),
        ("/", "web:/t/f", "usage"),
    ] {
        let message = cp(&machine, from, to).fails_with(code);
        assert!(!message.is_empty());
        assert_eq!(trees(), before, "{from} {to}: {message}");
    }
    machine.spark(&["--json", "cp", "f", "d", "web:/new"]).fails_with("not_found");
    assert_eq!(trees(), before);
    assert!(!inside.join("new").exists());
}

#[test]
fn between_sparks_and_out_of_a_snapshot_extents_are_shared() {
    let machine = with_web();
    bare(&machine, "db", &["--no-start"]);
    let file = root(&machine, "web").join("file");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    fs::write(&file, "changed").unwrap();
    cp(&machine, "web@before:/file", "db:/file").ok();
    let copy = root(&machine, "db").join("file");
    assert_eq!(fs::read(&copy).unwrap(), vec![7; 1 << 20]);
    let extents = Command::new("filefrag").arg("-v").arg(&copy).output().unwrap();
    let extents = String::from_utf8_lossy(&extents.stdout).into_owned();
    let lines: Vec<&str> = extents.lines().filter(|l| l.contains("..")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.contains("shared")), "{extents}");
}

#[test]
fn no_link_leads_out_of_a_spark() {
    let machine = with_web();
    let inside = root(&machine, "web");
    let canary = machine.work().join("canary");
    fs::create_dir_all(canary.join("d")).unwrap();
    fs::write(canary.join("d/file"), "of the host").unwrap();
    fs::write(machine.work().join("file"), "new").unwrap();
    let before = tree(&canary);
    let up = format!("{}{}", "../".repeat(20), canary.display());
    let magic = format!("/proc/self/root{}", canary.display());
    for to in [canary.to_str().unwrap(), &up, &magic] {
        for (name, target) in [("dir", format!("{to}/d")), ("file", format!("{to}/d/file"))] {
            let _ = fs::remove_file(inside.join(name));
            symlink(target, inside.join(name)).unwrap();
        }
        // What is in /proc, only the running spark has.
        let code = if to.starts_with("/proc") { "wrong_state" } else { "not_found" };
        for path in ["web:/dir/file", "web:/dir/", "web:/dir/.", "web:/dir/../d/file"] {
            cp(&machine, path, "out").fails_with(code);
        }
        for path in ["web:/dir/file", "web:/dir/", "web:/dir/new"] {
            assert_ne!(cp(&machine, "file", path).status(), 0, "{path}");
        }
        cp(&machine, "web:/dir", "out").ok();
        assert!(cp(&machine, "web:/file", "out").fails_with("usage").contains("a link to a directory"));
        assert_eq!(tree(&canary), before, "a link that was copied out is not followed by the next copy");
        fs::remove_file(machine.work().join("out")).unwrap();
        cp(&machine, "web:/file", "out").ok();
        cp(&machine, "web:/etc/passwd", "out").ok();
        assert!(fs::symlink_metadata(machine.work().join("out")).unwrap().is_file(), "nor is one to a file");
        cp(&machine, "web:/file", "out").ok();
        assert!(fs::symlink_metadata(machine.work().join("out")).unwrap().is_symlink(), "copied as a link");
        fs::remove_file(machine.work().join("out")).unwrap();
        cp(&machine, "file", "web:/file").ok();
        cp(&machine, "file", "web:/dir").ok();
        assert!(inside.join("file").symlink_metadata().unwrap().is_file(), "put in the place of the link");
        assert_eq!(tree(&canary), before, "{to}");
        fs::remove_file(inside.join("dir")).unwrap();
    }
}

#[test]
fn fifos_block_nobody_and_sockets_and_devices_are_left_out() {
    let machine = with_web();
    let inside = root(&machine, "web").join("t");
    fs::create_dir_all(&inside).unwrap();
    fifo(&inside.join("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(machine.work().join("socket")).unwrap();
    for args in [["cp", "web:/t/fifo", "alone"], ["cp", "web:/t", "out"], ["cp", "out/fifo", "web:/t/fifo"]] {
        let output = output_in_time(machine.command(&args), b"");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    rustix::fs::mknodat(
        CWD,
        inside.join("device"),
        FileType::CharacterDevice,
        0o666.into(),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let copied = cp(&machine, "web:/t", "out2").json();
    assert_eq!((&copied["left_out"], &copied["entries"]), (&1.into(), &2.into()));
    for path in ["socket", "/dev/zero"] {
        let said = cp(&machine, path, "web:/t").fails_with("not_supported");
        assert!(said.contains(path) && said.contains("a device or a socket"), "{said}");
    }
    assert!(!machine.work().join("out2/device").exists() && !inside.join("socket").exists());
}

#[test]
fn a_path_in_a_data_volume_is_in_the_volume_and_not_below_it() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "-v", "files:/srv/data", "--no-start"]).ok();
    let work = machine.work();
    fs::create_dir_all(work.join("d/sub")).unwrap();
    fs::write(work.join("d/sub/f."), "one").unwrap();
    cp(&machine, "d/.", "web:/srv/data").ok();
    let volume = machine.pool().join("projects/default/data/files/fs");
    assert_eq!(fs::read_to_string(volume.join("sub/f.")).unwrap(), "one");
    machine.spark(&["create", "db", "-v", "files:/mnt", "--no-start"]).ok();
    assert_eq!(machine.spark(&["exec", "db", "--", "cat", "/mnt/sub/f."]).ok(), "one");
    cp(&machine, "db:/mnt/./sub/../sub/f.", "out").ok();
    assert_eq!(fs::read_to_string(work.join("out")).unwrap(), "one");
    fs::create_dir(work.join("into")).unwrap();
    cp(&machine, "web:/srv/data", "into").ok();
    assert_eq!(fs::read_to_string(work.join("into/data/sub/f.")).unwrap(), "one");
    cp(&machine, "web:/srv/data/sub/", "into").ok();
    assert!(work.join("into/sub/f.").exists());
    // Of the root alone, that is said.
    let out = machine.spark(&["cp", "web:/srv", "root-of"]);
    out.ok();
    assert!(out.stderr().contains("data volume `files` at /srv/data is not copied"), "{}", out.stderr());
    // A snapshot has its own, or says that it has none.
    machine.spark(&["snapshot", "create", "web", "with", "--data", "copy"]).ok();
    machine.spark(&["snapshot", "create", "web", "without", "--data", "share"]).ok();
    fs::write(volume.join("sub/f."), "two").unwrap();
    cp(&machine, "web@with:/srv/data/sub/f.", "old").ok();
    assert_eq!(fs::read_to_string(work.join("old")).unwrap(), "one");
    cp(&machine, "web@without:/srv/data/sub/f.", "old").fails_with("usage");
}
