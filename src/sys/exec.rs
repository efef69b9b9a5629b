//! What the process that enters a spark does to itself, in the order that `runtime::enter` gives.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(r: libc::c_long) -> io::Result<()> {
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes this process unreadable to others through `/proc` and `ptrace(2)`.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())
}

/// Whether it is.
pub fn is_undumpable() -> io::Result<bool> {
    // SAFETY: PR_GET_DUMPABLE takes nothing more.
    match unsafe { libc::prctl(libc::PR_GET_DUMPABLE) } {
        -1 => Err(io::Error::last_os_error()),
        is => Ok(is == 0),
    }
}

/// Sets the soft limit of core dumps to one byte: core(5) says that a limit of 0 does not keep the kernel from running the
/// program that a `core_pattern` names, and 1 does. No dump fits into one byte. The hard limit stays.
pub fn without_core_dumps() -> io::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Core);
    limit.current = Some(limit.maximum.map_or(1, |most| most.min(1)));
    Ok(setrlimit(Resource::Core, limit)?)
}

/// Lets this process and what it executes write no file longer than so many bytes, for good.
pub fn limit_files(bytes: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    Ok(setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
}

/// Forbids gaining privileges by executing, for good.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// Keeps permitted capabilities over the coming change of user.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: PR_SET_KEEPCAPS takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }.into())
}

/// Joins the namespaces of a process but its pid namespace, all at once: at no moment is this one in some of them
/// with the rights that it has outside.
pub fn join_namespaces(pidfd: impl AsFd) -> io::Result<()> {
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    join_some(pidfd, all)
}

/// The same with those of some kinds, as in `CLONE_NEWNET`. A namespace that this process is in already is no kind to
/// name: the kernel refuses to join a user namespace twice.
pub fn join_some(pidfd: impl AsFd, kinds: i32) -> io::Result<()> {
    // SAFETY: setns(2) takes plain numbers.
    check(unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), kinds) }.into())
}

/// Becomes a user, for good: supplementary groups, then group, then user. This thread only, so it has to be
/// the only one.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is an array of its length; the raw calls change this thread alone, as intended.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

/// Leaves all supplementary groups.
pub fn leave_groups() -> io::Result<()> {
    // SAFETY: setgroups(2) reads nothing for a count of 0.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) })
}

/// Closes every descriptor from 3 on but `kept`, also those that others in this process believe to own: nothing may
/// use or drop one afterwards. `kept` becomes close-on-exec.
pub fn close_others(kept: RawFd) -> io::Result<()> {
    close_from(3, kept)
}

/// The same from a later one on: those before it go to the program that is executed.
pub fn close_from(first: RawFd, kept: RawFd) -> io::Result<()> {
    let close = |from: RawFd, to: libc::c_uint, flags: libc::c_uint| {
        // SAFETY: close_range(2) takes plain numbers. The caller ends by execve(2) or _exit(2) alone, so no owner of
        // a closed descriptor ever comes to use or to close it.
        check(unsafe { libc::syscall(libc::SYS_close_range, from, to, flags) })
    };
    close(kept, kept as libc::c_uint, libc::CLOSE_RANGE_CLOEXEC)?;
    if kept > first {
        close(first, kept as libc::c_uint - 1, 0)?;
    }
    close(first.max(kept + 1), libc::c_uint::MAX, 0)
}

/// Has the program that is executed next find these descriptors as 0, 1, 2 and so on, and no others. Those that this process
/// has with such numbers are gone: nothing may use or drop one afterwards.
pub fn pass_on(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = RawFd::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // First out of the way of each other.
    let copies = fds.iter().map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, count)?));
    let copies = copies.collect::<io::Result<Vec<OwnedFd>>>()?;
    for (number, copy) in (0..).zip(&copies) {
        // SAFETY: dup2(2) takes plain numbers. The caller executes a program or ends, so no owner of what had the number
        // comes to use or to close it.
        if unsafe { libc::dup2(copy.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: close_range(2) takes plain numbers, and only marks here what is open.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, count, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
}

/// Puts the null device in the place of standard input and output, and of standard error if `errors` are not wanted.
pub fn leave_streams(errors: bool) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if errors {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on, in a process that has opened nothing itself yet.
pub(super) fn close_all_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes plain numbers. Nothing in this process owns one of the descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })
}

/// Closes every descriptor from `first` on and before `end`, in a process that has opened nothing itself yet.
pub(super) fn close_some(first: RawFd, end: RawFd) -> io::Result<()> {
    if first >= end {
        return Ok(());
    }
    // SAFETY: close_range(2) takes plain numbers. Nothing in this process owns one of the descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) })
}

/// Has the program that is executed next find a descriptor by its number. To be called in a process that executes or ends.
pub(super) fn keep_over_execution(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes plain numbers, and changes only what an execution does with the descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }.into())
}

/// Gives this process new namespaces of some kinds, with nothing in them. Descriptors are shared with nobody meanwhile.
pub(super) fn leave_namespaces(kinds: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the kinds that the caller names are namespaces: what is not shared any more is not the table of descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(kinds) }?)
}

/// Installs a seccomp filter made of ready instructions, with flags of seccomp(2). With `NEW_LISTENER` among them, the
/// descriptor comes back on which the system calls are heard that the filter leaves to another process.
pub fn load_filter(filter: &[u8], flags: u64) -> io::Result<Option<OwnedFd>> {
    const SIZE: usize = size_of::<libc::sock_filter>();
    if filter.is_empty() || !filter.len().is_multiple_of(SIZE) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(SIZE)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let r = load_instructions(&instructions, flags)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = RawFd::try_from(r).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for this call, so nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The same with instructions. Returns what seccomp(2) does. Makes one system call, and nothing else.
pub(super) fn load_instructions(filter: &[libc::sock_filter], flags: u64) -> io::Result<libc::c_long> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` instructions that outlive the call; the kernel checks and copies them.
    let r = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    check(r.min(0))?;
    Ok(r)
}

/// Gives this process a session keyring of its own, in place of the one that it shares with its callers: who has that in
/// hand may read the keys in it. Nothing where the kernel has no keys.
pub fn leave_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: keyctl(2) takes a plain number here, and no name for a new keyring without one.
    let r = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, no_name) };
    match io::Error::last_os_error() {
        e if r < 0 && e.raw_os_error() != Some(libc::ENOSYS) => Err(e),
        _ => Ok(()),
    }
}

/// Whether a descriptor with this number is open, and goes to a program that is executed.
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes plain numbers, and fails on what is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Gives a descriptor's inode to a user.
pub fn give_to(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    // SAFETY: fchown(2) takes plain numbers.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, u32::MAX) }.into())
}

/// Replaces this process. Returns only if that failed.
pub fn execve(path: &CStr, argv: &[CString], envp: &[&CStr]) -> io::Error {
    let list = |items: &mut dyn Iterator<Item = &CStr>| -> Vec<*const libc::c_char> {
        items.map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (list(&mut argv.iter().map(|s| &**s)), list(&mut envp.iter().copied()));
    // SAFETY: both lists are NULL-terminated and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process with an open program. Returns only if that failed.
pub fn execveat(program: impl AsFd, argv: &[CString], envp: &[CString]) -> io::Error {
    let list = |items: &[CString]| -> Vec<*const libc::c_char> {
        items.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (list(argv), list(envp));
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: the path is a string, both lists are NULL-terminated, and all strings outlive the call.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH)
    };
    io::Error::last_os_error()
}

/// Puts the default action of every signal and an empty mask back, as a fresh program expects them: Rust ignores `SIGPIPE`,
/// and callers ignore others.
pub fn reset_signals() -> io::Result<()> {
    (1..=64).for_each(default_action);
    unblock_signals()
}

/// Puts the default action of a signal back. Nothing for `SIGKILL` and `SIGSTOP`, which have no other.
pub(super) fn default_action(signal: i32) {
    // The kernel's sigaction, all zeros: SIG_DFL without flags and with an empty mask. Not signal(3), which refuses those
    // that the C library keeps to itself.
    let default = [0_u64; 4];
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: `default` is as large as the kernel's structure, which is only read; the last number is the size of a mask.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8) };
}

/// Empties the mask of blocked signals.
pub(super) fn unblock_signals() -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset(3), and no old one is asked for.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        check(libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut()).into())
    }
}

/// Borrows one of the standard streams.
pub fn standard_stream(fd: RawFd) -> BorrowedFd<'static> {
    debug_assert!((0..3).contains(&fd));
    // SAFETY: Rust's runtime makes sure that 0, 1 and 2 are open, and nothing here closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Closes inherited descriptors by number, in a process that never returns to their owner: it executes or ends.
pub fn let_go(fds: &[RawFd]) {
    for fd in fds {
        // SAFETY: close(2) takes a plain number, and the owner's copy in this process is never used or dropped.
        unsafe { libc::close(*fd) };
    }
}
