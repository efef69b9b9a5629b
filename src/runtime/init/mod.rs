//! The host's side of the programs without a libc: each as bytes, as a sealed file, and its execution.
//!
//! Owns how PID 1 gets into a spark: from memory, never from a path, so that no root file
//! system has to contain it and none can replace it. Must not know anything about sparks beyond
//! that; what the programs do is in `pid1.rs` and `keeper.rs`, which are not part of this crate but
//! compiled by the build script.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;

/// PID 1: a static ELF image that needs nothing but the kernel.
pub static PID1: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pid1"));

/// The keeper of logs: another such image.
pub static KEEPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keeper"));

/// F_SEAL_EXEC, from Linux 6.3.
const SEAL_EXEC: SealFlags = SealFlags::from_bits_retain(0x20);

/// The most arguments that [`exec`] takes.
const MAX_ARGS: usize = 15;

/// Puts PID 1 into an anonymous file that nobody can change any more, not even root inside a
/// spark through `/proc/1/exe`. One file serves all sparks.
pub fn sealed() -> io::Result<OwnedFd> {
    seal(c"spark-init", PID1)
}

/// Puts a program into an anonymous file of that name, which nobody can change any more.
pub fn seal(name: &CStr, program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        // Linux before 6.3 does not know the flag, and all such files are executable there.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };

    let mut rest = program;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = &rest[written..];
    }

    // Before the seal: that fixes the executable bits alone, and the file begins as 0777.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o555))?;
    match rustix::fs::fcntl_add_seals(&file, SEAL_EXEC) {
        Err(Errno::INVAL) => {}
        other => other?,
    }
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;

    // It can be executed through this very descriptor: the kernel does not count the one that
    // memfd_create gives among the writers that make it refuse (ETXTBSY).
    Ok(file)
}

/// Replaces this process with the program in `fd`, without any environment, and returns only if
/// that fails. `args` includes the program's own name.
///
/// All signals are blocked across the change, so that none is lost before the program is ready to
/// take them. Does not allocate: it may be called in a child that was forked from a process with
/// several threads.
pub fn exec(fd: BorrowedFd<'_>, args: &[&CStr]) -> io::Error {
    if args.is_empty() || args.len() > MAX_ARGS {
        return Errno::INVAL.into();
    }
    let mut argv = [ptr::null(); MAX_ARGS + 1];
    for (slot, arg) in argv.iter_mut().zip(args) {
        *slot = arg.as_ptr();
    }
    let envp = [ptr::null::<libc::c_char>()];

    // SAFETY: an all-zero sigset_t is a valid value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = all;
    // SAFETY: both sets are valid for the calls, which touch nothing else.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    // SAFETY: the path is a string, `argv` and `envp` end with a null and their strings outlive
    // the call. `fd` is borrowed, so it is open. If the call succeeds, nothing is left to be valid.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    let error = io::Error::last_os_error();
    // SAFETY: `before` was filled in above, and no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    error
}
