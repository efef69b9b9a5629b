//! A process that reads an archive and was taken over by it tries what it likes, and the import fails.

use std::process::Stdio;

use sparks::sys::process::{pidfd_open, signal_number};

use crate::common::{Machine, is_running, wait_for};

/// What the process tries, as `sys::attack` knows it.
const ATTACKS: [&str; 10] =
    ["open", "execute", "socket", "socketpair", "trace", "kill", "user", "fork", "namespace", "code"];

#[test]
fn a_reader_that_was_taken_over_is_killed_whatever_it_tries() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("file"), "content").unwrap();
    for (archive, flag) in [("plain.tar", "-c"), ("zipped.tar.gz", "-cz")] {
        let made = std::process::Command::new("tar")
            .args([flag, "-f", archive, "file"])
            .current_dir(machine.work())
            .status();
        assert!(made.unwrap().success());
        for attack in ATTACKS {
            let mut command = machine.command(&["--json", "base", "import", archive, "b"]);
            command.env("SPARK_FAULT", format!("isolated.{attack}=attack"));
            let text = crate::common::Output::of(attack, &mut command).fails_with("image");
            assert!(text.contains("did what no reader needs, and was killed for it"), "{attack}: {text}");
            assert!(machine.staged().is_empty(), "{attack}");
        }
    }
    // Without an attack nothing of that is so.
    let mut command = machine.command(&["base", "import", "zipped.tar.gz", "b"]);
    crate::common::Output::of("import", command.env("SPARK_FAULT", "isolated.nothing=attack")).ok();
}

/// The walls of a reader but for the filter of system calls, by their names in `sys::attack`.
const WALLS: [&str; 5] = ["network", "limits", "user", "capabilities", "files"];

/// Each wall holds alone what it is there for, however the others have fallen; and the attacks are real: if none of the walls that
/// hold one stands, then it comes through.
#[test]
fn each_wall_around_a_reader_holds_alone_what_it_is_there_for() {
    let machine = Machine::new();
    let status = std::process::Command::new("tar")
        .args(["-c", "-f", "a.tar", "-T", "/dev/null"])
        .current_dir(machine.work())
        .status();
    assert!(status.unwrap().success());
    let version = sparks::sys::confine::landlock_version().expect("this test needs a kernel with Landlock");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!("connect:{}", listener.local_addr().unwrap().port());
    let import = |attack: &str, wall: &str| {
        let mut command = machine.command(&["--json", "base", "import", "a.tar", "b"]);
        command.env("SPARK_FAULT", format!("isolated.{attack}/{wall}=attack"));
        crate::common::Output::of(attack, &mut command).fails_with("image")
    };
    // Landlock rules connections since its version 4, and signals since 6.
    let since = |least, errno| if version >= least { errno } else { 0 };
    let attacks: [(&str, &[(&str, i32)]); 4] = [
        ("open", &[("limits", libc::EMFILE), ("user", libc::EACCES), ("files", libc::EACCES)]),
        ("chroot", &[("user", libc::EPERM), ("capabilities", libc::EPERM)]),
        ("reach", &[("user", libc::EPERM), ("files", since(6, libc::EPERM))]),
        (
            &connect,
            &[("network", libc::ENETUNREACH), ("limits", libc::EMFILE), ("files", since(4, libc::EACCES))],
        ),
    ];
    for (attack, held) in attacks {
        for wall in WALLS.into_iter().chain(["none"]) {
            let errno = held.iter().find(|(by, _)| *by == wall).map_or(0, |(_, errno)| *errno);
            let text = import(attack, wall);
            let came_back = format!("the attack came back with error {errno}.");
            assert!(text.contains(&came_back), "{attack}, only {wall} stands: {text}");
        }
        let text = import(attack, "filter");
        assert!(text.contains("and was killed for it"), "{attack}, only the filter stands: {text}");
    }
}

/// It reads no more, so that the end of its pipes does not end it.
#[test]
fn a_reader_that_goes_on_for_ever_ends_with_its_command() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("archive"), "no archive").unwrap();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut command = machine.command(&["base", "import", "archive", "b"]);
        command.env("SPARK_FAULT", "isolated.spin=attack").stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_confined = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("Seccomp:\t2\n")
        };
        let is_there = || children().split_whitespace().filter(|pid| is_confined(pid)).count() == 1;
        let begun = wait_for(is_there);
        let readers: Vec<i32> = children().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        signal_number(pidfd_open(pid as i32).unwrap(), signal).unwrap();
        child.wait().unwrap();
        let ended = wait_for(|| !readers.iter().any(|pid| is_running(*pid)));
        for reader in readers.iter().filter_map(|pid| pidfd_open(*pid).ok()) {
            let _ = signal_number(&reader, libc::SIGKILL);
        }
        assert!(begun && ended, "signal {signal}: begun {begun}, ended {ended}");
    }
}

#[test]
fn a_parser_of_streams_that_was_taken_over_is_killed_whatever_it_tries() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    let stream = machine.work().join("stream");
    let mut send = machine.command(&["send", "web"]);
    let sent =
        send.stdout(std::fs::File::create(&stream).unwrap()).stderr(std::process::Stdio::null()).status();
    assert!(sent.unwrap().success());
    let receive = |fault: &str, args: &[&str]| {
        let mut command = machine.command(args);
        command.env("SPARK_FAULT", fault).stdin(std::fs::File::open(&stream).unwrap());
        crate::common::Output::of(fault, &mut command)
    };
    for attack in ATTACKS {
        let fault = format!("isolated.{attack}=attack");
        let text = receive(&fault, &["--json", "receive", "copy"]).fails_with("corrupt");
        assert!(text.contains("and was killed for it"), "{attack}: {text}");
        assert!(machine.staged().is_empty(), "{attack}");
    }
    receive("isolated.nothing=attack", &["receive", "copy"]).ok();
}

/// `SPARK_FAULT` for a process that writes these bytes in the place of what it has read.
fn saying(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("isolated.says:{hex}=attack")
}

/// A record of the process that parses a stream.
fn record(kind: u8, numbers: &[u64], texts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![kind];
    (0..6).for_each(|i| bytes.extend(numbers.get(i).copied().unwrap_or_default().to_le_bytes()));
    (0..3).for_each(|i| bytes.extend((texts.get(i).map_or(0, |text| text.len()) as u32).to_le_bytes()));
    bytes.extend(texts.concat());
    bytes
}

/// The records around the commands of a stream, and one file in it.
struct Records {
    header: Vec<u8>,
    section: Vec<u8>,
    begin: Vec<u8>,
    file: Vec<u8>,
    end: Vec<u8>,
    last: Vec<u8>,
}

impl Records {
    fn new() -> Records {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let spark = format!(r#"{{"name":"evil","id":"{id}","options":{{}}}}"#);
        let uuid = "07070707-0707-0707-0707-070707070707";
        let snapshot = format!(r#"{{"name":"s","id":"{id}","uuid":"{uuid}"}}"#);
        let header = format!(r#"{{"spark":{spark},"snapshot":{snapshot}}}"#);
        Records {
            header: record(64, &[], &[header.as_bytes()]),
            section: record(65, &[], &[br#"{"kind":"root"}"#]),
            begin: record(1, &[0x0707_0707_0707_0707; 2], &[b"evil"]),
            file: record(3, &[], &[b"f"]),
            end: record(21, &[], &[]),
            last: record(66, &[], &[]),
        }
    }

    /// A stream whose commands, behind the file, are these.
    fn with(&self, commands: &[Vec<u8>]) -> Vec<u8> {
        let Records { header, section, begin, file, end, last } = self;
        [&[header, section, begin, file].map(Vec::as_slice).concat(), &commands.concat()[..], end, last]
            .concat()
    }
}

/// Commands that no parser writes, and why root's process refuses each.
fn lies(victim: &std::path::Path) -> Vec<(Vec<u8>, &'static str)> {
    let absolute = victim.as_os_str().as_encoded_bytes();
    let up: &[u8] = b"../../../../victim";
    let deep: &[u8] = b"d/../../victim";
    let most = u64::MAX;
    let mut all = Vec::new();
    for bad in [absolute, up, deep, b"a//b", b".", &b"a/".repeat(3000)] {
        for kind in 1..=22 {
            all.push((record(kind, &[], &[bad, b"f", b"x"]), "its path leads elsewhere"));
        }
        for kind in [9, 10, 16] {
            all.push((record(kind, &[], &[b"g", bad]), "its second path leads elsewhere"));
        }
    }
    for kind in [3, 9, 11, 12, 15, 17] {
        all.push((record(kind, &[], &[b"", b"f"]), "its path leads elsewhere"));
    }
    let (early, twice) = (record(21, &[], &[]), record(1, &[0x0707_0707_0707_0707; 2], &[b"evil"]));
    // A text of as many bytes, of which none comes.
    let long = |length: u32| {
        let mut bytes = record(15, &[], &[b"f"]);
        let second = bytes.len() - 1 - 8;
        bytes[second..second + 4].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    all.extend([
        (record(0, &[], &[b"f"]), "no command is of its kind"),
        (record(23, &[], &[b"f"]), "no command is of its kind"),
        (record(255, &[], &[b"f"]), "no command is of its kind"),
        (record(66, &[], &[b"f"]), "no command is of its kind"),
        (record(8, &[], &[b"l", b""]), "no command is of its kind"),
        (record(8, &[], &[b"l", b"a\0b"]), "no command is of its kind"),
        (record(13, &[], &[b"f", b"", b"x"]), "no proper name"),
        (record(13, &[], &[b"f", b"user.a\0b", b"x"]), "no proper name"),
        (record(15, &[i64::MAX as u64], &[b"f", b"x"]), "no file is so long"),
        (record(16, &[most, 1], &[b"f", b"f"]), "no file is so long"),
        (record(16, &[0, 1, 0, 0, 0, most], &[b"f", b"f"]), "no file is so long"),
        (record(17, &[most], &[b"f"]), "no file is so long"),
        (record(5, &[most, 0], &[b"n"]), "a number is too large"),
        (record(18, &[1 << 32], &[b"f"]), "a number is too large"),
        (record(19, &[0, 1 << 32], &[b"f"]), "a number is too large"),
        (record(20, &[0, 1_000_000_000], &[b"f"]), "too many nanoseconds"),
        (record(5, &[0o60600, 0x801], &[b"n"]), "is a device"),
        (record(5, &[0o20666, 0x103], &[b"n"]), "is a device"),
        (record(22, &[0, 1], &[b"f"]), "it has no data"),
        (long(u32::MAX), "a record is too long"),
        (long(64 << 10), "a record is too long"),
        (twice, "out of order"),
        (early, "out of order"),
        (Records::new().section, "no command is of its kind"),
    ]);
    all
}

#[test]
fn what_a_parser_of_streams_that_was_taken_over_writes_is_checked() {
    let machine = Machine::new();
    let victim = machine.work().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    let receive = |bytes: &[u8]| {
        let mut command = machine.command(&["--json", "receive"]);
        command.env("SPARK_FAULT", saying(bytes)).stdin(std::process::Stdio::null());
        crate::common::Output::of("receive", &mut command)
    };
    let refused = |bytes: &[u8], why: &str| {
        let text = receive(bytes).fails_with("corrupt");
        assert!(text.contains(why), "{why}: {text}");
        assert!(machine.staged().is_empty(), "{why}");
        assert_eq!(machine.spark(&["list", "-a", "-q"]).ok(), "", "{why}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine", "{why}");
    };
    let whole = Records::new();
    for (lie, why) in lies(&victim) {
        refused(&whole.with(&[lie]), why);
    }
    let Records { header, section, begin, file, end, last } = &whole;
    for order in [
        &[][..],
        &[section],
        &[header],
        &[header, header],
        &[header, begin],
        &[header, section, file],
        &[header, section, begin, file],
        &[header, section, begin, end],
        &[header, section, begin, end, file],
        &[header, section, begin, end, last, last],
    ] {
        refused(&order.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>(), "out of order");
    }
    let mut cut = whole.with(&[]);
    cut.truncate(cut.len() - 1);
    refused(&cut, "ends too early");
    // The same records without a lie are a spark.
    receive(&whole.with(&[])).ok();
    assert!(machine.pool().join("projects/default/sparks/evil/root/f").exists());
}

/// A record of the process that parses an archive.
fn piece(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], &(content.len() as u32).to_le_bytes()[..], content].concat()
}

/// An entry of an archive: its kind, mode, size, bytes of content, name and target.
fn entry(kind: u8, mode: u32, (size, content): (u64, u64), name: &[u8], link: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(mode.to_le_bytes());
    // Owner, group and time.
    out.extend([0; 8 + 8 + 8 + 4]);
    out.extend([size, content].map(u64::to_le_bytes).concat());
    for text in [name, link] {
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text);
    }
    piece(1, &out)
}

/// What no parser of an archive writes, and why root's process refuses it.
fn archives(victim: &std::path::Path) -> Vec<(Vec<u8>, &'static str)> {
    let up: &[u8] = b"../../../../victim";
    let file = |size: u64, content: u64| entry(0, 0o644, (size, content), b"f", b"");
    let content = |at: u64, bytes: &[u8]| piece(2, &[&at.to_le_bytes(), bytes].concat());
    let link = entry(2, 0o777, (0, 0), b"l", victim.parent().unwrap().as_os_str().as_encoded_bytes());
    let (none, end) = ((0, 0), piece(3, b""));
    let mut all = vec![
        (entry(0, 0o644, none, up, b""), "has `..` in its name"),
        (entry(3, 0o644, none, b"h", up), "has `..` in its name"),
        ([link.clone(), entry(0, 0o644, none, b"l/victim", b"")].concat(), "leads through"),
        ([link, entry(3, 0o644, none, b"h", b"l/victim")].concat(), "leads through"),
        (entry(0, 0o644, none, &[b'a'; 300], b""), "a name that is too long"),
        (entry(7, 0o644, none, b"f", b""), "an entry is none"),
        (entry(0, 0o200_644, none, b"f", b""), "an entry is none"),
        (file(1, 2), "an entry is none"),
        (file(u64::MAX, 0), "an entry is none"),
        ([file(1, 1), content(0, b"xy")].concat(), "outside of its file"),
        ([file(9, 1), content(9, b"x")].concat(), "outside of its file"),
        ([file(9, 2), content(5, b"x"), content(5, b"x")].concat(), "outside of its file"),
        ([file(9, 1), content(u64::MAX, b"x")].concat(), "outside of its file"),
        (file(1, 1), "it left out content"),
        (content(0, b"x"), "a record is of no kind"),
        ([&[1][..], &[0xff; 4]].concat(), "a record is of no kind"),
        (piece(9, b""), "a record is of no kind"),
    ];
    all.iter_mut().for_each(|(records, _)| records.extend(&end));
    all.push((file(0, 0), "its records have no end"));
    all.push((Vec::new(), "its records have no end"));
    all.push(([end.clone(), end].concat(), "something follows the end"));
    all
}

#[test]
fn what_a_parser_of_archives_that_was_taken_over_writes_is_checked() {
    let machine = Machine::new();
    let victim = machine.work().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    let archive = machine.work().join("a.tar");
    std::fs::write(&archive, [0; 1024]).unwrap();
    let import = |bytes: &[u8]| {
        let mut command = machine.command(&["--json", "base", "import", "a.tar", "b"]);
        crate::common::Output::of("import", command.env("SPARK_FAULT", saying(bytes)))
    };
    for (lie, why) in archives(&victim) {
        let text = import(&lie).fails_with("image");
        assert!(text.contains(why), "{why}: {text}");
        assert!(machine.staged().is_empty(), "{why}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine", "{why}");
    }
    let honest = [entry(0, 0o644, (1, 1), b"f", b""), piece(2, b"\0\0\0\0\0\0\0\0x"), piece(3, b"")].concat();
    import(&honest).ok();
}
