//! The OCI runtime command line, in processes of their own.
//!
//! libcontainer is called only where there is one thread. So the shim executes itself as `spark-oci`, which does one
//! operation and ends; what it started becomes a child of the shim, which is a subreaper.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reap::Reaper;
use crate::error::{Error, Result};

/// This program, whatever has become of its file since.
const PROGRAM: &str = "/proc/self/exe";
/// The most that is read of what a helper logged.
const LONGEST_LOG: u64 = 1 << 20;

/// Standard input, output and error of a helper. The process that it starts has them from there.
pub(super) type Streams = [Stdio; 3];

/// Runs the OCI runtime command line for the containers of one namespace.
#[derive(Debug)]
pub(super) struct Helper {
    /// Where the runtime keeps what it knows of these containers.
    root: PathBuf,
    calls: AtomicU64,
}

/// One operation on one container.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// The operation as an error says it.
    pub(super) action: &'static str,
    pub(super) id: &'a str,
    /// Where it is run, and where it logs.
    pub(super) bundle: &'a Path,
    pub(super) arguments: Vec<OsString>,
}

impl Helper {
    pub(super) fn new(root: PathBuf) -> Helper {
        Helper { root, calls: AtomicU64::new(0) }
    }

    /// Runs one operation to its end, reaped by `reaper`.
    ///
    /// # Errors
    /// [`Error::Runtime`] with what it logged last if it fails.
    pub(super) async fn run(&self, reaper: &Arc<Reaper>, call: Call<'_>, streams: Streams) -> Result<()> {
        let log = self.log(call.bundle);
        let mut command = self.command(&call, &log);
        let [stdin, stdout, stderr] = streams;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let spawned = reaper.spawn(&mut command);
        // It holds the streams of the container, whose readers wait for their end.
        drop(command);
        let ended = spawned.map_err(Error::sys("start the OCI runtime"))?.await;
        let status = ended.map_err(|_| failed(&call, "nobody waits for it any more".into()))?.status;
        let said = last_error(&log);
        let _ = fs::remove_file(&log);
        match status {
            0 => Ok(()),
            _ => Err(failed(&call, said.unwrap_or_else(|| format!("it ended with status {status}")))),
        }
    }

    /// The same for where nothing is reaped and nothing else goes on.
    ///
    /// # Errors
    /// [`Error::Runtime`] with what it logged last if it fails.
    pub(super) fn run_alone(&self, call: Call<'_>) -> Result<()> {
        let log = self.log(call.bundle);
        let mut command = self.command(&call, &log);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().map_err(Error::sys("start the OCI runtime"))?;
        let said = last_error(&log);
        let _ = fs::remove_file(&log);
        if status.success() {
            return Ok(());
        }
        Err(failed(&call, said.unwrap_or_else(|| status.to_string())))
    }

    fn log(&self, bundle: &Path) -> PathBuf {
        bundle.join(format!("oci-{}.log", self.calls.fetch_add(1, Ordering::Relaxed)))
    }

    fn command(&self, call: &Call<'_>, log: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("oci").arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        command.args(&call.arguments).current_dir(call.bundle);
        command
    }
}

/// What the runtime can do, as the runtime specification's JSON.
///
/// # Errors
/// If it cannot be asked.
pub(super) fn features() -> io::Result<Vec<u8>> {
    let output = Command::new(PROGRAM).args(["oci", "features"]).stdin(Stdio::null()).output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(io::Error::other("it does not say its features"))
    }
}

fn failed(call: &Call<'_>, detail: String) -> Error {
    Error::Runtime { action: call.action, id: call.id.to_owned(), detail }
}

/// The last message at level `error` in a log of JSON lines.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(log).ok()?;
    io::Read::read_to_string(&mut io::Read::take(file, LONGEST_LOG), &mut text).ok()?;
    text.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_error = entry["level"].as_str()?.eq_ignore_ascii_case("error");
        is_error.then(|| entry["msg"].as_str().map(str::to_owned))?
    })
}
