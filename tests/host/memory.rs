//! What those inside can make a command of the host hold in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::common::{Machine, Output, wait_for};
use crate::inside::root;
use crate::logs::{MOST, bytes, detach, log, web};

/// `spark` with so much address space.
fn with_memory(machine: &Machine, bytes: u64, args: &[&str]) -> Command {
    let spark = machine.command(args);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={bytes}")).arg(spark.get_program()).args(spark.get_args());
    for (key, value) in spark.get_envs() {
        value.map(|value| limited.env(key, value));
    }
    spark.get_current_dir().map(|dir| limited.current_dir(dir));
    limited
}

#[test]
fn a_log_of_any_size_is_read_in_little_memory() {
    const MEMORY: u64 = 64 << 20;
    let machine = web();
    let path = log(&machine, "web");
    // As an older version left it, and as one was truncated up then.
    let file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at("\n\u{1}é\nlast\n".as_bytes(), (1 << 40) - 10).unwrap();
    let tail = Output::of("logs", &mut with_memory(&machine, MEMORY, &["logs", "web", "-n", "2"])).ok();
    assert_eq!(tail, "\u{1}é\nlast\n");
    let json = with_memory(&machine, MEMORY, &["logs", "web", "--json"]).output().unwrap();
    assert!(json.status.success(), "{}", String::from_utf8_lossy(&json.stderr));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let text = json["text"].as_str().unwrap();
    assert!(text.ends_with("\0\n\u{1}é\nlast\n") && (text.len() as u64) < MOST, "{}", text.len());
    assert_eq!(json["lost_bytes"].as_u64().unwrap() + text.len() as u64, 1 << 40);
    // The next command brings it within the bound.
    detach(&machine, "echo new");
    assert!(wait_for(|| machine.spark(&["logs", "web", "-n", "2"]).ok() == "last\nnew\n"));
    assert!(bytes(&path) < MOST);
}

#[test]
fn what_differs_is_listed_in_little_memory_or_refused() {
    const MEMORY: u64 = 256 << 20;
    let machine = web();
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    let dir = root(&machine, "web").join("many");
    std::fs::create_dir(&dir).unwrap();
    let path = |n: u32| dir.join(format!("{n:0>220}"));
    (0..200_000).for_each(|n| drop(File::create(path(n)).unwrap()));
    let diff = |args: &[&str]| {
        let args = [&["diff", "web@before", "web"], args].concat();
        Output::of("diff", &mut with_memory(&machine, MEMORY, &args))
    };
    diff(&["--json"]).fails_with("not_supported");
    // Close to the bound, whatever way they are shown, and whether they came or went.
    (120_000..200_000).for_each(|n| std::fs::remove_file(path(n)).unwrap());
    let lines = diff(&[]).ok();
    assert_eq!(lines.lines().filter(|line| line.starts_with("A /many/0")).count(), 120_000);
    let listed = diff(&["--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), lines.lines().count());
    assert_eq!(diff(&["--stat", "--json"]).json()["added"], 120_001);
    let args = ["diff", "web", "web@before", "--stat", "--json"];
    let gone = Output::of("diff", &mut with_memory(&machine, MEMORY, &args));
    assert!(
        gone.status() == 0 && gone.json()["deleted"] == 120_001 || gone.stderr().contains("not_supported")
    );
}

#[test]
fn one_file_is_compared_in_little_memory_whatever_is_in_it_or_at_it() {
    const MEMORY: u64 = 256 << 20;
    let machine = web();
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    let top = root(&machine, "web");
    // As many lines as there may be, none of which is there twice, and all attributes that a file can have.
    let lines = |from: u32| (from..from + 160_000).map(|n| format!("{n:x}\n")).collect::<String>();
    std::fs::write(top.join("lines"), lines(0)).unwrap();
    std::fs::write(top.join("breaks"), vec![b'\n'; 1 << 20]).unwrap();
    let file = File::create(top.join("attributed")).unwrap();
    let set = |n: u32, value: &[u8]| {
        let name = format!("user.{n}");
        rustix::fs::fsetxattr(&file, name.as_str(), value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    (0..5000).for_each(|n| set(n, &[b'x'; 16_000]));
    machine.spark(&["snapshot", "create", "web", "before"]).ok();
    std::fs::write(top.join("lines"), lines(160_000)).unwrap();
    std::fs::write(top.join("breaks"), "\r\n".repeat(1 << 19)).unwrap();
    set(4999, b"another");
    let diff = |args: &[&str]| {
        let args = [&["diff", "web@before", "web"], args].concat();
        Output::of("diff", &mut with_memory(&machine, MEMORY, &args))
    };
    assert!(diff(&[]).ok().contains("M /attributed (xattr)\n"), "{}", diff(&[]).stdout());
    assert!(diff(&["/lines"]).ok().contains("+27100\n"));
    assert!(diff(&["/breaks", "--json"]).json()["diff"].as_str().unwrap().len() > 1 << 20);
}

/// A stopped spark with a file that has as many attributes as it can have, of as many bytes each as btrfs takes: 80 MB in all.
fn with_attributes() -> Machine {
    let machine = web();
    machine.spark(&["stop", "web", "-t", "0"]).ok();
    let file = File::create(root(&machine, "web").join("attributed")).unwrap();
    for n in 0..5000 {
        let name = format!("user.{n:04}");
        rustix::fs::fsetxattr(&file, name.as_str(), &[b'x'; 16_000], rustix::fs::XattrFlags::empty())
            .unwrap();
    }
    machine
}

#[test]
fn a_file_with_many_attributes_is_copied_with_all_of_them_and_exported_with_64_kib_in_little_memory() {
    const MEMORY: u64 = 64 << 20;
    let machine = with_attributes();
    machine.spark(&["create", "other", "--no-start"]).ok();
    let cp = ["cp", "web:/attributed", "other:/copy"];
    Output::of("cp", &mut with_memory(&machine, MEMORY, &cp)).ok();
    let copy = File::open(root(&machine, "other").join("copy")).unwrap();
    assert_eq!(sparks::sys::tree::xattr_names(&copy).unwrap().len(), 5000);
    assert_eq!(sparks::sys::tree::xattr(&copy, b"user.4999").unwrap().unwrap(), [b'x'; 16_000]);
    machine.spark(&["base", "save", "web", "many"]).ok();
    let tar = ["base", "export", "many", "--tar", "many.tar"];
    // Whoever writes an image has processes that limit themselves.
    let image = ["base", "export", "many", "--docker-archive", "image.tar"];
    for mut export in [with_memory(&machine, MEMORY, &tar), machine.command(&image)] {
        let exported = Output::of("export", &mut export);
        // Four of them and their names are 64 KiB.
        assert_eq!(exported.status(), 0, "{}", exported.stderr());
        assert!(exported.stderr().contains("4996 extended attributes were dropped"), "{}", exported.stderr());
    }
    machine.spark(&["base", "import", "many.tar", "again"]).ok();
}

#[test]
fn a_spark_of_any_attributes_is_sent_in_little_memory() {
    const MEMORY: u64 = 64 << 20;
    let machine = with_attributes();
    let mut send = with_memory(&machine, MEMORY, &["send", "web"]);
    let sent = send.stdout(std::process::Stdio::null()).output().unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
}
