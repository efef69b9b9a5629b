//! A program that gets what a process writes: `binary:///PATH?KEY=VALUE`, as containerd's own shim runs it.
//!
//! It reads standard output from descriptor 3 and standard error from 4, and closes 5 when it is ready.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::reap::{Exit, Reaper};
use super::stdio::pair;
use crate::error::{Error, Result};

const SCHEME: &str = "binary://";
/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long it may take to end once there is no more to read, and again once it is told to.
const END: Duration = Duration::from_secs(12);
/// Puts descriptors where a logger looks for them. What it says itself goes nowhere.
const PLACE: &str = r#"exec "$@" 3<&0 4<&2 5>&1 0</dev/null 1>/dev/null 2>/dev/null"#;

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// The container's name, or that of a process that was executed in it.
    pub(super) id: &'a str,
    pub(super) namespace: &'a str,
    pub(super) reaper: &'a Arc<Reaper>,
}

/// A logger at work.
#[derive(Debug)]
pub(super) struct Logger {
    pid: u32,
    ended: oneshot::Receiver<Exit>,
    reaper: Arc<Reaper>,
}

/// Whether a standard stream goes to a logger.
pub(super) fn is_meant(uri: &str) -> bool {
    uri.starts_with(SCHEME)
}

impl Logger {
    /// Starts one, and waits until it is ready. Returns what to write to: as standard output, and as standard error.
    ///
    /// # Errors
    /// If it cannot be executed, or is not ready in time.
    pub(super) async fn start(uri: &str, source: Source<'_>) -> Result<(Logger, [OwnedFd; 2])> {
        let (program, arguments) = parse(uri)?;
        // The shell that makes way for it could not say that it is not there.
        std::fs::File::open(&program).map_err(Error::io("run the logger", &program))?;
        let ((from_out, out), (from_err, err), (ready, tell)) = (pair()?, pair()?, pair()?);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", PLACE, "sh"]).arg(&program).args(&arguments);
        command.env_clear().env("CONTAINER_ID", source.id).env("CONTAINER_NAMESPACE", source.namespace);
        command.stdin(Stdio::from(from_out)).stdout(Stdio::from(tell)).stderr(Stdio::from(from_err));
        let (pid, ended) =
            source.reaper.spawn_with_pid(&mut command).map_err(Error::io("run the logger", &program))?;
        // It has them now, and nobody else may: it hears the end of what it reads, and we of its readiness.
        drop(command);
        let logger = Logger { pid, ended, reaper: Arc::clone(source.reaper) };
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(Error::sys("use a pipe"))?;
        match tokio::time::timeout(READY, ready.read(&mut [0])).await {
            Ok(_) => Ok((logger, [out, err])),
            Err(_) => {
                logger.signal(libc::SIGKILL);
                let what = format!("the logger {}", program.display());
                Err(Error::Busy {
                    what,
                    why: "it does not close descriptor 5 to say that it is ready".into(),
                })
            }
        }
    }

    /// Waits until it has read all and ended. The process that it reads from has ended; what that has left running may
    /// keep the logger reading for good, so that it is told to end.
    pub(super) async fn finish(mut self) {
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            if tokio::time::timeout(END, &mut self.ended).await.is_ok() {
                return;
            }
            self.signal(signal);
        }
    }

    fn signal(&self, signal: i32) {
        // It may have ended in the meantime.
        let _ = self.reaper.signal(self.pid, signal.unsigned_abs());
    }
}

/// The program, and its arguments: keys and values in their order.
fn parse(uri: &str) -> Result<(PathBuf, Vec<String>)> {
    let wrong = || Error::usage(format!("`{}` names no logger: write binary:///PATH", uri.escape_default()));
    let rest = uri.strip_prefix(SCHEME).ok_or_else(wrong)?;
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path =
        decoded(path).filter(|path| path.starts_with('/') && !path.contains('\0')).ok_or_else(wrong)?;
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value] {
            let part = decoded(&part.replace('+', " ")).filter(|part| !part.contains('\0'));
            arguments.push(part.ok_or_else(wrong)?);
        }
    }
    Ok((path.into(), arguments))
}

/// Text with `%41` for `A`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok().filter(|d| !d.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logger_is_a_path_and_its_arguments_a_query() {
        let (path, arguments) = parse("binary:///opt/my%20log?file=/a+b%26c&verbose").unwrap();
        assert_eq!(path, PathBuf::from("/opt/my log"));
        assert_eq!(arguments, ["file", "/a b&c", "verbose", ""]);
        assert_eq!(parse("binary:///x").unwrap(), ("/x".into(), Vec::new()));
        for wrong in
            ["binary://", "binary://x", "binary:///%zz", "binary:///%+1", "binary:///a%00", "file:///x"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
