//! Our own program, kept from those inside whom it runs for.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use super::mount::Limits;

/// This program, for a child that has not executed another.
pub const SELF: &str = "/proc/self/exe";

/// What a command line of this program begins with to be taken for `spark-oci`: the shim is that too.
pub fn words() -> Vec<&'static str> {
    let is_shim = std::env::args_os().nth(1).is_some_and(|word| word == "oci");
    if is_shim { vec!["spark-oci", "oci"] } else { vec!["spark-oci"] }
}

/// Executes this program again from a read-only mount that only this process has, unless it runs from one.
///
/// A container whose root is the host's may have us execute `/proc/self/exe`, and then open that for writing
/// (CVE-2019-5736). The file that it gets hold of is in a mount in which nothing can be written.
///
/// # Errors
/// What keeps it from being executed again; it goes on as it was.
pub fn protect() -> io::Result<()> {
    let mount = rustix::fs::statvfs(SELF)?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let tree = super::mount::clone_tree(Path::new(SELF))?;
    super::mount::set_attributes(&tree, None, Limits { read_only: true, ..Limits::default() })?;
    let string = |s: OsString| CString::new(s.into_vec()).map_err(io::Error::from);
    let argv = std::env::args_os().map(string).collect::<io::Result<Vec<_>>>()?;
    let pair = |(mut k, v): (OsString, OsString)| {
        k.push("=");
        k.push(v);
        string(k)
    };
    let envp = std::env::vars_os().map(pair).collect::<io::Result<Vec<_>>>()?;
    Err(super::exec::execveat(&tree, &argv, &envp))
}
