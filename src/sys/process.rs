//! Processes that are certainly the ones meant: a pid with its start time, and pidfds.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

pub use rustix::process::Pid;
use rustix::process::{PidfdFlags, Signal};

use super::deadline::Deadline;

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessId {
    /// Identifies a process that is running now.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        Ok(ProcessId { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// Whether it is alive. A zombie is not.
    pub fn alive(&self) -> bool {
        matches!(stat(self.pid), Ok((start, state)) if start == self.start_time && !matches!(state, b'Z' | b'X'))
            && boot_id().is_ok_and(|b| b == self.boot_id)
    }

    /// Opens a pidfd, if the process is still the one meant. Signals and waits through it cannot reach another.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let fd = pidfd_open(self.pid)?;
        if self.alive() { Ok(fd) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }
}

/// Opens a pidfd of a process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether a process has a controlling terminal.
pub fn has_terminal(pid: i32) -> bool {
    field(pid, 7).is_some_and(|tty| tty != 0)
}

fn start_time(pid: i32) -> io::Result<u64> {
    stat(pid).map(|(start, _)| start)
}

/// The fields of `/proc/PID/stat` after the command's name, from number 3 on.
fn fields(pid: i32) -> io::Result<Vec<String>> {
    // More than the kernel ever writes there, which it does at once.
    let mut text = [0; 2048];
    let length = std::fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut text)?;
    let text = &text[..length];
    // The name may hold anything, parentheses and spaces included: the rest begins after its last.
    let rest = text.iter().rposition(|b| *b == b')').map(|i| &text[i + 1..]).unwrap_or_default();
    Ok(String::from_utf8_lossy(rest).split_ascii_whitespace().map(str::to_owned).collect())
}

fn field(pid: i32, number: usize) -> Option<i64> {
    fields(pid).ok()?.get(number - 3)?.parse().ok()
}

fn stat(pid: i32) -> io::Result<(u64, u8)> {
    let fields = fields(pid)?;
    let state = fields.first().and_then(|f| f.bytes().next());
    let start = fields.get(19).and_then(|f| f.parse().ok());
    state.zip(start).map(|(state, start)| (start, state)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What field 9 of `/proc/PID/stat` has of a process that is on its way out (`PF_EXITING` of `linux/sched.h`).
const EXITING: i64 = 0x4;

/// Whether a process has ended, or has begun to.
pub fn is_ending(id: &ProcessId) -> bool {
    !id.alive() || field(id.pid, 9).is_none_or(|flags| flags & EXITING != 0)
}

/// Waits until a process that mostly waits does so: what it does next, it decides with what is there now. If one of its own pid
/// namespace traces it and lets it stand, that is as good: whoever has come in has waited for this, too, and so it has decided
/// with the tracer there.
///
/// # Errors
/// `ESRCH` if it has ended or is about to, `ETIMEDOUT` if it is busy until the deadline.
pub fn wait_asleep(id: &ProcessId, deadline: Deadline) -> io::Result<()> {
    loop {
        let (start, state) = stat(id.pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        if start != id.start_time || is_ending(id) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if state == b'S' || state == b't' && is_traced_from_inside(id.pid) {
            return Ok(());
        }
        if deadline.has_passed() {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        super::deadline::pause(Duration::from_micros(200))?;
    }
}

/// Whether the tracer of a process is in the same pid namespace.
fn is_traced_from_inside(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse::<i32>().ok());
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    tracer.is_some_and(|tracer| namespace(tracer).is_some() && namespace(tracer) == namespace(pid))
}

/// Whether somebody has stopped a process, or traces it and lets it stand.
pub fn is_stopped(pid: i32) -> bool {
    stat(pid).is_ok_and(|(_, state)| matches!(state, b'T' | b't'))
}

/// The processes of a process group.
pub fn group(leader: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| field(*pid, 5) == Some(leader.into())).collect()
}

fn boot_id() -> io::Result<String> {
    static BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    if let Some(id) = BOOT.get() {
        return Ok(id.clone());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT.get_or_init(|| id).clone())
}

/// Whether this process has one thread, as whoever forks without executing has to be sure of.
pub fn single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").map(|tasks| tasks.count() == 1).unwrap_or(false)
}

/// Signals the process of a pidfd.
pub fn signal(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// Signals the process of a pidfd by the signal's number: any of them, and 0 only asks whether it may be signalled.
pub fn signal_number(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: plain numbers, and no siginfo_t: the kernel fills one in as kill(2) does.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals the process of a pidfd with a value, as `sigqueue(3)` does.
pub fn signal_with_value(pidfd: impl AsFd, signal: i32, value: i32) -> io::Result<()> {
    // SAFETY: a siginfo_t is plain data for which all zeros are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    info.si_signo = signal;
    info.si_code = libc::SI_QUEUE;
    // Of the union after si_code, `_rt` is pid, uid and value: two 32-bit words and the value.
    let union = [std::process::id() as i32, 0, value];
    // SAFETY: the kernel's siginfo_t is 128 bytes, `_rt` starts at byte 16 on 64-bit Linux, and 12 bytes fit.
    unsafe {
        let at = std::ptr::from_mut(&mut info).cast::<u8>().add(16).cast::<[i32; 3]>();
        at.write_unaligned(union);
    }
    // SAFETY: `info` is a valid siginfo_t that outlives the call; the kernel only reads it.
    let r =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, &info, 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals a child that has not been reaped, and everything in its process group.
pub fn signal_group(leader: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes plain numbers.
    let r = unsafe { libc::kill(-leader, signal) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Signals a child that has not been reaped, by the signal's number: the real-time ones have no name.
pub fn signal_child(pid: i32, signal: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill(2) takes plain numbers, and that of a `Pid` is above 0, so no group is meant.
    let r = unsafe { libc::kill(pid.as_raw_pid(), signal) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Kills a child that has not been reaped.
pub fn kill_child(pid: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

impl Ended {
    /// As a shell would have it: the status, or 128 + the signal.
    pub fn status(self) -> i32 {
        match self {
            Ended::Exited(n) => n,
            Ended::Signaled(n) => 128 + n,
        }
    }
}

/// Reaps a child that has ended. `None` if it has not.
pub fn try_reap(pid: i32) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int. WNOHANG: it returns at once.
    let r = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
    match r {
        0 => Ok(None),
        r if r < 0 => Err(io::Error::last_os_error()),
        _ if libc::WIFSIGNALED(status) => Ok(Some(Ended::Signaled(libc::WTERMSIG(status)))),
        _ => Ok(Some(Ended::Exited(libc::WEXITSTATUS(status)))),
    }
}

/// Runs `work` in a forked child and returns its pid. The child ends with what `work` returns and never
/// returns here. It is killed if this process ends before it: it has the caller's descriptors, and a caller that reads from
/// us would wait for it.
///
/// # Errors
/// Refused in a process with more than one thread: the child would inherit locks that nobody releases.
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    let parent = rustix::process::getpid();
    let bound = move || match end_with(parent) {
        Ok(()) => work(),
        Err(_) => 101,
    };
    // SAFETY: fork(2) takes nothing; what the child may do is up to `fork_with`.
    fork_with(|| unsafe { libc::fork() }, bound)
}

/// The same with a child that outlives this process: in a session of its own, and with none of its descriptors but one.
pub fn fork_apart(kept: BorrowedFd<'_>, work: impl FnOnce() -> i32) -> io::Result<i32> {
    let leave = || -> io::Result<()> {
        rustix::process::setsid()?;
        super::exec::leave_streams(true)?;
        super::exec::close_others(kept.as_raw_fd())
    };
    let apart = move || if leave().is_ok() { work() } else { 101 };
    // SAFETY: fork(2) takes nothing; what the child may do is up to `fork_with`.
    fork_with(|| unsafe { libc::fork() }, apart)
}

/// Has the kernel kill this process when its parent ends.
///
/// # Errors
/// `ESRCH` if that has ended already.
fn end_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// Whether this process has one thread, once those that were joined have left: joining one waits until it has let go of
/// its memory, and for a moment it is there still.
fn alone_soon() -> bool {
    // On a busy host that moment lasts until the thread has had its turn.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !single_threaded() {
        if Instant::now() > deadline {
            return false;
        }
        // Nobody tells of that moment, and it is shorter than a timer.
        std::thread::yield_now();
    }
    true
}

/// `call` returns twice, as fork(2) does.
fn fork_with(call: impl FnOnce() -> i32, work: impl FnOnce() -> i32) -> io::Result<i32> {
    if !alone_soon() {
        return Err(io::Error::other("cannot fork a process with several threads"));
    }
    // There is one thread, so the child is a complete process that may do anything.
    match call() {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            super::deadline::pay_no_attention();
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: _exit(2) takes a plain number. Destructors and buffers belong to the parent.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(pid),
    }
}

/// The same with a child that is born in the pid namespace of another process, and in a cgroup of version 2 if that is
/// given. Its pid is the one here.
pub fn fork_into(
    pidfd: impl AsFd,
    cgroup: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> i32,
) -> io::Result<i32> {
    let own = pidfd_open(std::process::id() as i32)?;
    bear_children_in(&pidfd)?;
    let forked = fork_with(|| clone_into(cgroup), work);
    // What this process forks later is the host's again.
    bear_children_in(&own)?;
    forked
}

/// Runs `work` in a process that outlives this one, and that nobody here waits for: its parent is who adopts orphans. It is
/// born in a cgroup of version 2 if that is given. Whatever it does not close it has from this process.
///
/// # Errors
/// Those of fork(2) and clone3(2), as [`fork`] has them.
pub fn fork_orphan(cgroup: Option<BorrowedFd<'_>>, work: impl FnOnce() -> i32) -> io::Result<()> {
    let between = fork(|| match fork_with(|| clone_into(cgroup), work) {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
    })?;
    match super::deadline::reap(between, Deadline::inside())? {
        Some(Ended::Exited(0)) => Ok(()),
        Some(Ended::Exited(error)) => Err(io::Error::from_raw_os_error(error)),
        _ => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Between a fork and an execution: goes on in a child, while this process ends. So nobody who waits for this process waits
/// for what is executed, and who adopts orphans becomes its parent. Makes system calls only.
pub(super) fn become_orphan() -> io::Result<()> {
    // SAFETY: fork(2) takes nothing. This process has one thread and is about to execute.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        _ => exit_now(0),
    }
}

/// As fork(2) does, but into a cgroup. Moving there later has the kernel wait for all processors, some milliseconds.
fn clone_into(cgroup: Option<BorrowedFd<'_>>) -> i32 {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: all zeros are a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: `args` is valid for its size. Without CLONE_VM the child has a copy of this memory and stack.
    unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) as i32 }
}

/// Chooses the pid namespace of children to come: that of another process.
fn bear_children_in(pidfd: impl AsFd) -> io::Result<()> {
    // SAFETY: setns(2) takes plain numbers.
    let r = unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), libc::CLONE_NEWPID) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does something to files as another user and group, without the privileges of root.
///
/// # Errors
/// `EPERM` where this process may not become that user.
pub fn as_ids<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let is_hidden = super::exec::is_undumpable()?;
    // SAFETY: the two calls take plain numbers and change this thread alone; they return what was set before.
    let become_it = |user: u32, group: u32| unsafe {
        libc::syscall(libc::SYS_setfsgid, group);
        libc::syscall(libc::SYS_setfsuid, user);
        // The only way to learn whether it took effect: to ask for what no user can be.
        let done = libc::syscall(libc::SYS_setfsuid, u32::MAX) as u32 == user;
        // Either call has made it what `fs.suid_dumpable` says, which is 2 where systemd collects core dumps.
        done && (!is_hidden || super::exec::set_undumpable().is_ok())
    };
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let done = become_it(uid, gid).then(work);
    become_it(user, group);
    done.ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))
}

/// Has this thread run on some processors only. Returns the mask of those of the first 64.
pub fn run_on(processors: &[usize]) -> io::Result<u64> {
    let mut set = rustix::thread::CpuSet::new();
    for processor in processors {
        if *processor >= rustix::thread::CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        set.set(*processor);
    }
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok((0..64).filter(|n| set.is_set(*n)).fold(0, |mask, n| mask | 1 << n))
}

/// Becomes a process of another execution domain, such as `PER_LINUX32`, if it is not one already.
pub fn set_personality(domain: u32) -> io::Result<()> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: personality(2) takes a plain number, and this one changes nothing.
    if unsafe { libc::personality(ASK) } as u32 == domain {
        return Ok(());
    }
    // SAFETY: as before.
    let r = unsafe { libc::personality(domain.into()) };
    if r >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process at once, without destructors.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes a plain number and does not return.
    unsafe { libc::_exit(status) }
}

/// The caller's own user behind `sudo`, if there is one.
pub fn sudo_user() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

/// The group of [`sudo_user`].
pub fn sudo_group() -> Option<u32> {
    std::env::var("SUDO_GID").ok()?.parse().ok()
}

/// Whether this is the host's root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_an_earlier_one_with_its_number_is_not() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.alive());
        let earlier = ProcessId { start_time: me.start_time - 1, ..me.clone() };
        assert!(!earlier.alive());
        assert!(earlier.open().is_err());
        let before_reboot = ProcessId { boot_id: "x".into(), ..me };
        assert!(!before_reboot.alive());
    }
}
