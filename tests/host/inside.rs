//! What the tests of confinement share: sparks of a minimal base, with a program inside that makes system calls.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::{Machine, Output, PATIENCE};

/// A user inside, as `-u` takes it, who owns nothing.
pub(crate) const USER: &str = "1000:1000";

/// A machine with the minimal base.
pub(crate) fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine
}

/// Makes and starts a spark, with `/bin/probe` and `/spark-mark` inside.
pub(crate) fn spark(machine: &Machine, name: &str, options: &[&str]) {
    bare(machine, name, &[options, &["--no-start"]].concat());
    let root = root(machine, name);
    std::fs::copy(probe(), root.join("bin/probe")).unwrap();
    std::fs::write(root.join("spark-mark"), name).unwrap();
    machine.spark(&["resume", name]).ok();
}

/// Makes a spark, and nothing else.
pub(crate) fn bare(machine: &Machine, name: &str, options: &[&str]) {
    machine.spark(&[&["create", name, "--base", "minimal"], options].concat()).ok();
}

/// The root filesystem of a spark, in the pool.
pub(crate) fn root(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(name).join("root")
}

/// Runs a shell command in a spark as a user.
pub(crate) fn sh(machine: &Machine, spark: &str, user: &str, script: &str) -> Output {
    machine.spark(&["exec", "-T", "-u", user, spark, "--", "/bin/sh", "-c", script])
}

/// PID 1 of a spark, as the host numbers it.
pub(crate) fn init(machine: &Machine, spark: &str) -> i32 {
    machine.spark(&["info", spark, "--json"]).json()["pid"].as_i64().unwrap() as i32
}

/// The program that makes system calls, compiled once.
pub(crate) fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| compiled("probe"))
}

/// Compiles a program of this directory, static, so that it runs from any root.
pub(crate) fn compiled(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Another test program may be at it, or run it.
    let new = path.with_file_name(format!("{name}-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host").join(name).with_extension("c");
    let gcc = Command::new("gcc").args(["-static", "-O1", "-Wall", "-o"]).arg(&new).arg(source).status();
    assert!(gcc.expect("these tests need gcc: `apt-get install gcc libc6-dev`").success());
    // In a directory of whoever builds: they can remove it.
    let owner = std::fs::metadata(path.parent().unwrap()).unwrap();
    std::os::unix::fs::chown(&new, Some(owner.uid()), Some(owner.gid())).unwrap();
    std::fs::rename(new, &path).unwrap();
    path
}

/// Waits for a child, but not for ever.
pub(crate) fn output_in_time(mut command: Command, input: &[u8]) -> std::process::Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What ends at once does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            // Not its output: what it started may hold that still.
            child.wait().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Writes an executable file.
pub(crate) fn program(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}
