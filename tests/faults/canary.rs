//! A value that is looked for everywhere, and must be nowhere: set through every source, delivered in every way, through a
//! whole life and a crash at every fault point on its way.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use memchr::memmem;
use serde_json::json;

use crate::common::vault::{Connect, PassStore, TOKEN, Vault};
use crate::common::{Machine, Output};
use crate::points::points;

/// A whole life. Whoever adds a verb that comes near a value adds a line.
const LIFE: &[&[&str]] = &[
    &[
        "create",
        "web",
        "--secret",
        "A=file://CANARY",
        "--secret",
        "B:env=env://CANARY",
        "--secret",
        "C:file=op://v/i/f",
    ],
    &["secrets", "set", "--spark", "web", "STORED"],
    &["secrets", "set", "--spark", "web", "PASS", "pass://canary"],
    &["secrets", "set", "--spark", "web", "CMD", "cmd://canary"],
    &["secrets", "set", "PROJECT"],
    &["secrets", "list", "--spark", "web"],
    &["secrets", "check", "--spark", "web"],
    &["secrets", "refresh", "web"],
    &[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "test \"$A\" = \"$STORED\" && test \"$B\" = \"$PASS\" && test \"$A\" = \"$CMD\" && cat /run/secrets/C >/dev/null",
    ],
    &["exec", "web", "--secret", "X=env://CANARY", "--", "sh", "-c", "test \"$X\" = \"$A\""],
    &["exec", "-", "--secret", "X=file://CANARY", "--", "sh", "-c", "test \"$X\" = \"$PROJECT\""],
    &["exec", "-d", "web", "--", "sleep", "1000"],
    &["--json", "exec", "web", "--secret", "X=env://CANARY", "--", "sh", "-c", "test \"$X\" = \"$A\""],
    &["--json", "secrets", "check", "--spark", "web"],
    &["--json", "info", "web"],
    &["--json", "create", "--dry-run", "never", "--secret", "X=env://CANARY"],
    &["info", "web"],
    &["config"],
    &["du"],
    &["port", "web"],
    &["snapshot", "create", "web", "s"],
    &["fork", "web", "copy"],
    &["base", "save", "web", "mine"],
    &["create", "of-mine", "--base", "mine"],
    &["diff", "web@s", "copy"],
    &["cp", "web:/etc", "out"],
    &["logs", "web"],
    &["list", "-a"],
    &["tree"],
    &["pause", "web"],
    &["secrets", "refresh", "web"],
    &["resume", "web"],
    &["snapshot", "restore", "web", "s"],
    &["undo", "web"],
    &["rename", "web", "app"],
    &["stop", "app"],
    &["resume", "app"],
    &["rename", "app", "web"],
    &["send", "web"],
    &["delete", "-f", "copy", "of-mine"],
    &["undelete", "copy"],
    &["project", "info"],
    &["gc"],
];

/// Commands that are made to fail, and the fault points on their way.
const CRASHES: &[(&[&str], &[&str])] = &[
    (
        &["create", "crash", "--secret", "A=file://CANARY", "--secret", "B:env=op://v/i/f"],
        &["create.", "start.", "secrets-start."],
    ),
    (&["exec", "-", "--secret", "A=env://CANARY", "--", "true"], &["start.", "secrets-start."]),
    (&["secrets", "set", "PROJECT"], &["secrets-set."]),
    (&["secrets", "refresh", "web"], &["secrets-refresh."]),
    (&["snapshot", "create", "web", "crash"], &["snapshot."]),
    (&["fork", "web", "crash"], &["secrets-start."]),
    (&["base", "save", "web", "crash"], &["base-save."]),
    (&["snapshot", "restore", "web", "s"], &["restore."]),
    (&["send", "web"], &["send."]),
    (&["stop", "web"], &["stop."]),
];

#[test]
fn a_value_is_in_nothing_but_what_it_is_delivered_to() {
    let life = Life::new();
    for args in LIFE {
        let output = life.run(args, &[]);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The files are in memory, and nothing else reads them.
    assert!(!life.run(&["cp", "web:/run/secrets", "delivered"], &[]).status.success());
    // Connect is asked where there is no `op`.
    let connect =
        Connect::serve(vec![("v", "i", json!({"fields": [{"id": "f", "label": "f", "value": life.value}]}))]);
    let nowhere = life.machine.work().display().to_string();
    let env = [("PATH", &*nowhere), ("OP_CONNECT_HOST", &*connect.address), ("OP_CONNECT_TOKEN", TOKEN)];
    let asked = life.run(&["secrets", "check", "-P", "connected"], &env);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    life.run(&["exec", "-P", "connected", "-", "--secret", "X=op://v/i/nope", "true"], &env);
    assert!(connect.asked().len() >= 3);

    let mut hit = 0;
    for (args, beginnings) in CRASHES {
        for point in points().iter().filter(|p| beginnings.iter().any(|b| p.starts_with(b))) {
            // A panic takes its time, to say where it was: only where there are values in memory.
            let with_values = ["secrets-", "start."].iter().any(|b| point.starts_with(b));
            for mode in ["fail", "die", "panic"].into_iter().take(if with_values { 3 } else { 2 }) {
                let output = life.run(args, &[("SPARK_FAULT", &format!("{point}={mode}"))]);
                hit += usize::from(!output.status.success());
                life.machine.spark(&["delete", "-f", "--now", "crash"]);
                life.machine.spark(&["base", "delete", "crash"]);
                life.machine.spark(&["snapshot", "delete", "web", "crash"]);
            }
        }
    }
    assert!(hit > 60, "only {hit} commands were made to fail");
    life.machine.spark(&["gc"]).ok();

    // What is in files of the pool is found there, in every form: without this the rest would say nothing.
    let control = Forms::of("CONTROL-4d1f8a77c2");
    let root = life.machine.pool().join("projects/default/sparks/web/root");
    std::fs::write(root.join("control"), control.all().concat()).unwrap();
    let forms = Forms::of(&life.value);
    let machine = life.end();
    let image = std::fs::File::open(machine.place().loop_image()).unwrap();
    assert_eq!(control.missing(&image), Vec::<&str>::new(), "the search does not find what is there");
    assert_eq!(forms.found(&image), Vec::<&str>::new(), "a value is in the pool");
}

/// A machine, a value, and all that was said.
struct Life {
    machine: Machine,
    value: String,
    file: std::path::PathBuf,
    vault: Vault,
    pass: PassStore,
}

impl Life {
    fn new() -> Life {
        let machine = Machine::with_pool(512 << 20).with_base();
        let value = format!("CANARY-{}", sparks::domain::spark::Id::generate());
        let file = machine.work().parent().unwrap().join("canary");
        std::fs::write(&file, &value).unwrap();
        let vault = Vault::new(&machine, json!({"v": {"i": {"f": value}}}));
        let pass = PassStore::new("canary", &value);
        machine.configure(&format!("[secret-commands]\ncanary = [\"cat\", \"{}\"]\n", file.display()));
        machine.spark(&["secrets", "set", "-P", "connected", "X", "op://v/i/f"]).ok();
        Life { machine, value, file, vault, pass }
    }

    /// Runs a command with all that it logs, and searches what it said and what there is of it in the run directory.
    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> std::process::Output {
        let file = self.file.display().to_string();
        let args: Vec<String> =
            args.iter().map(|a| a.replace("file://CANARY", &format!("file://{file}"))).collect();
        let args: Vec<&str> = ["-vv"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let mut command = self.vault.command(&self.machine, &args);
        command.env("CANARY", &self.value).env("RUST_BACKTRACE", "full");
        self.pass.environment(&mut command);
        command.envs(env.iter().copied()).stdin(std::fs::File::open(&self.file).unwrap());
        let output = Output::of(&args.join(" "), &mut command).output;
        let forms = Forms::of(&self.value);
        for said in [&output.stdout, &output.stderr] {
            assert!(!forms.any_in(said), "{args:?} said it: {}", String::from_utf8_lossy(said));
        }
        if args.contains(&"send") && output.status.success() {
            // After the magic word and the version; the sum follows.
            let mut plain = Vec::new();
            let frame = zstd::stream::read::Decoder::new(&output.stdout[16..]).unwrap();
            frame.single_frame().read_to_end(&mut plain).unwrap();
            assert!(plain.len() > 1000 && !forms.any_in(&plain), "the stream holds it");
        }
        let calls = serde_json::to_vec(&self.vault.calls()).unwrap();
        assert!(!forms.any_in(&calls), "`op` was told: {}", String::from_utf8_lossy(&calls));
        let found = files_with(&forms, &self.machine.place().run);
        assert!(found.is_empty(), "{args:?} left it in {found:?}");
        output
    }

    /// Ends all that runs, as a reboot does, and searches what is beside the pool.
    fn end(self) -> Machine {
        let forms = Forms::of(&self.value);
        // That it finds something in the run directory, too.
        let control = self.machine.place().run.join("bundles/control");
        std::fs::write(&control, &self.value).unwrap();
        assert_eq!(files_with(&forms, &self.machine.place().run), [control.display().to_string()]);
        std::fs::remove_file(control).unwrap();
        self.machine.reboot();
        let root = self.machine.place().root;
        for beside in ["secrets", "state"] {
            assert!(root.join(beside).is_dir());
            assert_eq!(files_with(&forms, &root.join(beside)), Vec::<String>::new());
        }
        // What was copied out of a spark, among other things.
        assert!(self.machine.work().join("out").is_dir());
        assert_eq!(files_with(&forms, &self.machine.work()), Vec::<String>::new());
        if Path::new("/run/systemd/journal/socket").exists() {
            let said =
                Command::new("journalctl").args(["--since", "-15min", "-o", "export"]).output().unwrap();
            assert!(!forms.any_in(&said.stdout), "the journal has it");
        }
        self.machine
    }
}

/// The regular files below a directory that hold a value.
fn files_with(forms: &Forms, top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if meta.is_file() && std::fs::read(&path).is_ok_and(|content| forms.any_in(&content)) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// A value as it may be written down.
pub(crate) struct Forms(Vec<(&'static str, Vec<u8>)>);

impl Forms {
    pub(crate) fn of(value: &str) -> Forms {
        let hex: String = value.bytes().map(|b| format!("{b:02x}")).collect();
        let mut forms = vec![
            ("plain", value.as_bytes().to_vec()),
            ("UTF-16", value.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("HEX", hex.to_uppercase().into_bytes()),
            ("hex", hex.into_bytes()),
        ];
        for (name, skipped) in [("base64", 0), ("base64 + 1", 1), ("base64 + 2", 2)] {
            // Of what stands before it, and of what follows, it depends only at its ends.
            let whole = base64(&[&[0; 2][..skipped], value.as_bytes()].concat());
            forms.push((name, whole[4..whole.len() - 4].to_vec()));
        }
        Forms(forms)
    }

    fn all(&self) -> Vec<&[u8]> {
        self.0.iter().map(|(_, bytes)| &**bytes).collect()
    }

    /// How often a value is in bytes, in any form.
    pub(crate) fn count(&self, content: &[u8]) -> usize {
        self.0.iter().map(|(_, bytes)| memmem::find_iter(content, bytes).count()).sum()
    }

    fn any_in(&self, content: &[u8]) -> bool {
        self.0.iter().any(|(_, bytes)| memmem::find(content, bytes).is_some())
    }

    /// Which of them are in a sparse file.
    fn found(&self, mut image: &std::fs::File) -> Vec<&'static str> {
        const CHUNK: usize = 8 << 20;
        let mut found = Vec::new();
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        // The first byte at or after `at` that is no hole.
        while let Ok(data) = rustix::fs::seek(image, rustix::fs::SeekFrom::Data(at)) {
            image.seek(SeekFrom::Start(data)).unwrap();
            let mut filled = 0;
            while filled < CHUNK {
                match image.read(&mut buffer[filled..]).unwrap() {
                    0 => break,
                    n => filled += n,
                }
            }
            for (name, bytes) in &self.0 {
                if memmem::find(&buffer[..filled], bytes).is_some() && !found.contains(name) {
                    found.push(*name);
                }
            }
            if filled < CHUNK {
                break;
            }
            // One that lies across the end is whole in the next.
            at = data + (CHUNK - 1024) as u64;
        }
        found
    }

    fn missing(&self, image: &std::fs::File) -> Vec<&'static str> {
        let found = self.found(image);
        self.0.iter().map(|(name, _)| *name).filter(|name| !found.contains(name)).collect()
    }
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize])
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[test]
fn the_forms_of_a_value_are_those_that_others_write() {
    assert_eq!(base64(b"Man and Ma"), b"TWFuIGFuZCBNYQAA");
    let forms = Forms::of("a longer value");
    for before in ["", "x", "xy"] {
        assert!(forms.any_in(&base64(format!("{before}a longer value and more").as_bytes())), "{before}");
    }
    assert!(!forms.any_in(b"a longer valu"));
}
