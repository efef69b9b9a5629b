//! Programs that are run as somebody else, with one directory of ours in their sight.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;

use super::confine::Confinement;

/// A user of the host, by numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Makes `command` run as a confined user who sees the directory `from` at `at`, however closed the way to `from` is to that
/// user. Nobody else sees it there: the mount ends with the program. The program is told to end when this thread does.
///
/// # Errors
/// `InvalidInput` for a path with a NUL.
pub fn as_user(
    command: &mut Command,
    ids: &Ids,
    (from, at): (&Path, &Path),
    confinement: Arc<Confinement>,
) -> io::Result<()> {
    let (from, at) = (CString::new(from.as_os_str().as_bytes())?, CString::new(at.as_os_str().as_bytes())?);
    let ids = ids.clone();
    let become_them = move || {
        super::mount::unshare()?;
        rustix::mount::mount_bind(from.as_c_str(), at.as_c_str())?;
        confinement.leave_network()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        super::exec::become_user(ids.uid, ids.gid, &ids.groups)?;
        // A change of user resets it. Not SIGKILL, so that git removes its lock files.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        confinement.enforce()
    };
    // SAFETY: only system calls, on memory that was made before: nothing allocates and no lock is taken.
    unsafe { command.pre_exec(become_them) };
    Ok(())
}

/// Makes `command` run as a user that gains no privileges.
pub fn as_plain_user(command: &mut Command, ids: &Ids) {
    let ids = ids.clone();
    let become_them = move || {
        super::exec::become_user(ids.uid, ids.gid, &ids.groups)?;
        super::exec::set_no_new_privs()
    };
    // SAFETY: only system calls, on memory that was made before: nothing allocates and no lock is taken.
    unsafe { command.pre_exec(become_them) };
}

/// Starts a program that outlives this process and has nothing of its caller: no descriptor, session, terminal, working
/// directory or environment but `env`. Nobody waits for it: its parent is who adopts orphans.
///
/// # Errors
/// Those of fork(2) and execve(2).
pub fn detached(program: &Path, args: &[&str], env: &[(&str, &Path)]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg0("spark").args(args).env_clear().envs(env.iter().copied()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let leave = || {
        rustix::process::setsid()?;
        // SAFETY: the numbers are plain. All descriptors but the streams are closed by execve(2); until then the one stays
        // open by which a failure is reported.
        if unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } != 0 {
            return Err(io::Error::last_os_error());
        }
        super::process::become_orphan()
    };
    // SAFETY: only system calls: nothing allocates and no lock is taken.
    unsafe { command.pre_exec(leave) };
    command.spawn()?.wait().map(drop)
}
