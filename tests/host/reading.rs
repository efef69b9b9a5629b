//! Archives are read by processes that can do nothing else: what they may, what ends them, and what one archive may take.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Machine, is_running, wait_for};
use crate::processes::has_no_rights;

/// Bytes of an archive that is not complete.
fn begun() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("first", b"content");
    // More than what processes and pipes have in between.
    add("large", &vec![7; 8 << 20]);
    let mut whole = builder.into_inner().unwrap();
    whole.truncate(whole.len() - 1024);
    whole
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(bytes).unwrap();
    // What was written so far can be read, though the end is not there.
    zip.flush().unwrap();
    zip.get_ref().clone()
}

/// An import that has read a part of its archive, and waits for more.
struct Waiting {
    child: Child,
    /// Those that decompress and parse.
    readers: Vec<i32>,
}

impl Waiting {
    fn on(machine: &Machine) -> Waiting {
        let mut command = machine.command(&["base", "import", "-", "b"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(&zipped(&begun())).unwrap();
        let made = || machine.staged().iter().any(|staged| staged.join("root/first").exists());
        assert!(wait_for(made), "nothing was unpacked");
        let readers = children(child.id());
        assert_eq!(readers.len(), 2, "{readers:?}");
        Waiting { child, readers }
    }

    fn said(mut self) -> (std::process::ExitStatus, String) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn proc(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

#[test]
fn a_reader_has_an_id_of_its_own_no_rights_no_network_and_no_file_but_its_pipes() {
    let machine = Machine::new();
    let waiting = Waiting::on(&machine);
    let mut ids = Vec::new();
    for pid in &waiting.readers {
        ids.push(has_no_rights(*pid));
        let mut open: Vec<_> =
            std::fs::read_dir(proc(*pid).join("fd")).unwrap().map(|fd| fd.unwrap()).collect();
        open.sort_by_key(|fd| fd.file_name());
        assert_eq!(
            open.iter().map(|fd| fd.file_name().into_string().unwrap()).collect::<Vec<_>>(),
            ["0", "1", "2"]
        );
        for fd in open {
            let target = std::fs::read_link(fd.path()).unwrap();
            assert!(target.to_str().unwrap().starts_with("pipe:"), "{}", target.display());
        }
        let network = |of: &Path| std::fs::read_link(of.join("ns/net")).unwrap();
        assert_ne!(network(&proc(*pid)), network(Path::new("/proc/self")));
        let devices = std::fs::read_to_string(proc(*pid).join("net/dev")).unwrap();
        assert_eq!(devices.lines().filter(|line| line.contains(':')).count(), 1, "{devices}");
        let limits = std::fs::read_to_string(proc(*pid).join("limits")).unwrap();
        for (name, most) in [("Max open files", 0), ("Max processes", 0), ("Max file size", 0)] {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line[name.len()..].trim().starts_with(&format!("{most} ")), "{line}");
        }
        assert!(
            !limits.lines().any(|line| line.starts_with("Max address space") && line.contains("unlimited"))
        );
        assert_eq!(std::fs::read(proc(*pid).join("environ")).unwrap_or_default().len(), 0);
    }
    assert_ne!(ids[0], ids[1]);
    let (status, text) = waiting.said();
    assert_eq!(status.code(), Some(1), "{text}");
}

#[test]
fn an_import_whose_reader_is_killed_fails_and_leaves_nothing() {
    for which in [0, 1] {
        let machine = Machine::new();
        let waiting = Waiting::on(&machine);
        kill(waiting.readers[which], libc::SIGKILL);
        let (status, text) = waiting.said();
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("the process that reads it was killed"), "{text}");
        assert!(machine.staged().is_empty());
        machine.spark(&["--json", "base", "info", "b"]).fails_with("not_found");
    }
}

#[test]
fn readers_end_with_the_command_however_that_ends() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let machine = Machine::new();
        let waiting = Waiting::on(&machine);
        kill(waiting.child.id() as i32, signal);
        let mut child = waiting.child;
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert!(wait_for(|| !waiting.readers.iter().any(|pid| is_running(*pid))), "a reader is still there");
    }
}

#[test]
fn a_signal_that_ends_an_import_leaves_nothing_behind() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let machine = Machine::new();
        let mut waiting = Waiting::on(&machine);
        kill(waiting.child.id() as i32, signal);
        // Its standard input stays open: nobody waits for that.
        assert_eq!(waiting.child.wait().unwrap().signal(), Some(signal));
        assert!(machine.staged().is_empty(), "signal {signal}: {:?}", machine.staged());
    }
}

fn kill(pid: i32, signal: i32) {
    let pidfd = sparks::sys::process::pidfd_open(pid).unwrap();
    sparks::sys::process::signal_number(&pidfd, signal).unwrap();
}

/// An archive of one global header that gives tens of thousands of attributes to each of 2,000 files, in 107 KB.
fn attributes_for_all() -> Vec<u8> {
    let mut records = Vec::new();
    for n in 0..35_715 {
        let body = format!(" SCHILY.xattr.user.{n}=x\n");
        let length =
            (1..3).map(|digits| body.len() + digits).find(|l| l.to_string().len() + body.len() == *l);
        records.extend(format!("{}{body}", length.unwrap()).into_bytes());
    }
    assert!(records.len() < 1 << 20);
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    };
    let mut global = header(tar::EntryType::XGlobalHeader, records.len() as u64);
    builder.append_data(&mut global, "pax", &records[..]).unwrap();
    for n in 0..2000 {
        builder.append_data(&mut header(tar::EntryType::Regular, 0), format!("f{n}"), &[][..]).unwrap();
    }
    zipped(&builder.into_inner().unwrap())
}

#[test]
fn an_archive_of_attributes_for_all_files_is_refused_at_once_and_takes_no_room() {
    let machine = Machine::new();
    let archive = machine.work().join("bomb.tar.gz");
    std::fs::write(&archive, attributes_for_all()).unwrap();
    assert!(std::fs::metadata(&archive).unwrap().len() < 300 << 10);
    let used = || {
        let stat = rustix::fs::statvfs(machine.pool()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let before = used();
    let begun = Instant::now();
    let text = machine.spark(&["--json", "base", "import", "bomb.tar.gz", "b"]).fails_with("image");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(text.contains("its global header gives extended attributes to all that follows"), "{text}");
    assert!(used() < before + (10 << 20), "{} became {}", before, used());
    assert!(machine.staged().is_empty());
}

/// The same attributes in a header of each file: what a file may have is bounded, whoever says it.
#[test]
fn a_file_has_no_more_attributes_than_any_tool_writes() {
    let machine = Machine::new();
    let dir = machine.work().join("tree");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let fd = std::fs::File::open(&file).unwrap();
    let archive = |name: &str| {
        let made = Command::new("tar")
            .args(["--xattrs", "-cf", name, "-C", "tree", "."])
            .current_dir(machine.work())
            .status();
        assert!(made.unwrap().success());
    };
    for n in 0..64 {
        rustix::fs::fsetxattr(&fd, format!("user.{n}"), b"x", rustix::fs::XattrFlags::empty()).unwrap();
    }
    archive("some.tar");
    machine.spark(&["base", "import", "some.tar", "some"]).ok();
    rustix::fs::fsetxattr(&fd, "user.more", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    archive("more.tar");
    let text = machine.spark(&["--json", "base", "import", "more.tar", "more"]).fails_with("image");
    assert!(text.contains("`./file` has 65 extended attributes"), "{text}");
}
