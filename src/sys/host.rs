//! Programs of the host.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Where the host has programs that are root's, in the order in which they are looked for. After `su` without `-`, and for
/// users, none of these is in `PATH`.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The directories in which programs of the host are looked for: those of `PATH`, and then those of root's programs.
pub fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect();
    for dir in SBIN.map(PathBuf::from) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// The value of `PATH` that has these directories.
pub fn path() -> OsString {
    // What came from PATH has no separator in it.
    std::env::join_paths(directories()).unwrap_or_default()
}

/// A program of the host by its name, which finds its own helpers too.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path());
    command
}
