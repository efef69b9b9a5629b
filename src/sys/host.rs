//! Programs of the host, and how large it is.

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

/// Bytes of memory that the host has.
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    // Both are as wide as the machine's words.
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

/// Processes and threads that the kernel can run.
pub fn tasks() -> u64 {
    let of = |name| limit(&format!("/proc/sys/kernel/{name}"));
    of("threads-max").min(of("pid_max"))
}

/// Files that all processes of the host together may have open.
pub fn files() -> u64 {
    limit("/proc/sys/fs/file-max")
}

/// A limit of the kernel's. One that cannot be read is none.
fn limit(path: &str) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}
