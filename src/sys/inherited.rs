//! What a process has from its caller, in two lists.
//!
//! [`reset`] is the first list. Every program of ours calls it when it begins, so that nothing in it reaches Sparks, its
//! helpers, or a spark:
//!
//! - the actions of signals and the mask of blocked ones; what keeps a program going when its terminal closes stays in our
//!   own process (see [`STAYS_IGNORED`]), and is reset in the command
//! - the execution domain (`setarch`, `linux32`)
//! - `oom_score_adj`, of `spark` alone: the specification says that an OCI runtime does not change it unasked, and
//!   containerd sets that of its shims
//! - the umask, for files of ours; what is written for the caller has the caller's, see [`umask`]
//! - open descriptors, but for those that were passed on purpose. Rust's runtime has opened 0, 1 and 2 on `/dev/null` where
//!   they were closed
//!
//! The second list is what the command of `exec` keeps on purpose, as `nice spark exec …` says: nice value, scheduling
//! class, processors, priority at disks, and resource limits, which are never raised. What a start makes, PID 1 and the
//! service of an image, must not depend on who started it: [`leave_schedule`].

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use rustix::fs::Mode;

use super::exec::default_action;
use super::schedule::{self, Schedule};

/// Which program this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Spark,
    /// `spark-oci`, which passes descriptors on.
    Oci,
    Shim,
}

/// The umask of everything that Sparks makes for itself.
const OWN_UMASK: u32 = 0o022;

/// Who ignores one of these in a program that it starts says that the program goes on: nohup(1), a shell that starts it in
/// the background.
const STAYS_IGNORED: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Rust's runtime has set these.
const OF_RUST: [i32; 3] = [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];

static CALLERS_UMASK: OnceLock<u32> = OnceLock::new();

/// Resets what must not depend on the caller.
///
/// # Errors
/// Those of signals, the execution domain and descriptors. A score that may not be lowered stays.
pub fn reset(program: Program) -> io::Result<()> {
    let before = rustix::process::umask(Mode::from_raw_mode(OWN_UMASK));
    let _ = CALLERS_UMASK.set(before.bits());
    for signal in 1..=64 {
        if !STAYS_IGNORED.contains(&signal) && !OF_RUST.contains(&signal) {
            default_action(signal);
        }
    }
    // A limit on the size of files is an error that is told, and no signal that kills in the middle.
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    super::exec::unblock_signals()?;
    super::process::set_personality(0)?;
    if program == Program::Spark {
        reset_oom_score();
    }
    close(&passed(program))
}

/// Which permissions the caller of this program withholds from new files: for what is written into the caller's
/// directories. In a program that uses the library it is read and not set, so that no other thread sees another one.
pub fn umask() -> u32 {
    CALLERS_UMASK.get().copied().unwrap_or_else(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(OWN_UMASK)
    })
}

/// A limit that our own process meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Open descriptors.
    Files,
    /// Bytes of the main thread's stack.
    Stack,
}

/// What a limit of this process is.
pub fn limit(which: Limit) -> u64 {
    let which = match which {
        Limit::Files => rustix::process::Resource::Nofile,
        Limit::Stack => rustix::process::Resource::Stack,
    };
    rustix::process::getrlimit(which).current.unwrap_or(u64::MAX)
}

/// Does something with the umask of who called this program. The umask is one for all threads.
pub fn with_callers_umask<T>(work: impl FnOnce() -> T) -> T {
    let own = rustix::process::umask(Mode::from_raw_mode(umask()));
    let done = work();
    rustix::process::umask(own);
    done
}

fn reset_oom_score() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(SCORE).is_ok_and(|score| score.trim() != "0") {
        // Refused where somebody with more rights has set a higher one as the least.
        let _ = std::fs::write(SCORE, "0");
    }
}

/// The descriptors after the standard ones that were passed on purpose.
fn passed(program: Program) -> BTreeSet<RawFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_ours = program == Program::Oci || number("LISTEN_PID") == Some(std::process::id());
    let mut counted = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    if program == Program::Oci {
        counted = counted.saturating_add(preserved(std::env::args_os()));
    }
    let mut kept: BTreeSet<RawFd> = (3..3 + counted.min(1 << 16) as RawFd).collect();
    let texts = std::env::args_os().chain(std::env::vars_os().map(|(_, value)| value));
    let own = format!("/proc/{}/fd/", std::process::id());
    for fd in texts.flat_map(|text| named(&text, &own)) {
        if kept.insert(fd) {
            // Opened by its name, and inherited by nobody.
            // SAFETY: fcntl(2) takes plain numbers, and fails for what is not open.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    kept
}

/// The numbers of descriptors that a text names as files, as `<(…)` of shells does.
fn named(text: &OsString, own: &str) -> Vec<RawFd> {
    let text = text.as_bytes();
    let mut found = Vec::new();
    // Once over each text: all of the environment is looked through whenever a program of ours begins.
    for at in (0..text.len()).filter(|at| text[*at] == b'/') {
        for prefix in ["/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/", own] {
            let Some(rest) = text[at..].strip_prefix(prefix.as_bytes()) else { continue };
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            let number = std::str::from_utf8(&rest[..digits]).ok().and_then(|n| n.parse::<RawFd>().ok());
            found.extend(number.filter(|fd| *fd > 2));
        }
    }
    found
}

/// What `--preserve-fds` says, wherever it stands.
fn preserved(args: impl Iterator<Item = OsString>) -> u32 {
    let args: Vec<_> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let values = args.iter().enumerate().filter_map(|(at, arg)| match arg.strip_prefix("--preserve-fds") {
        Some("") => args.get(at + 1).map(String::as_str),
        Some(value) => value.strip_prefix('='),
        None => None,
    });
    values.filter_map(|value| value.parse().ok()).max().unwrap_or(0)
}

/// Closes every descriptor after the standard ones but those.
fn close(kept: &BTreeSet<RawFd>) -> io::Result<()> {
    let close = |from: RawFd, to: libc::c_uint| {
        // SAFETY: close_range(2) takes plain numbers. This program has opened nothing yet.
        let r = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let mut first = 3;
    for fd in kept {
        if *fd > first {
            close(first, *fd as libc::c_uint - 1)?;
        }
        first = fd + 1;
    }
    close(first, libc::c_uint::MAX)
}

/// Leaves the second list behind, for what must not depend on who started it: nice value, scheduling class and processors
/// are those of a process that nobody has changed, and limits are those of the host's first process, as far as this
/// process may set them.
///
/// What may not be changed stays: it is no reason not to start.
pub fn leave_schedule(init: &InitLimits) {
    let plain = Schedule::default();
    if schedule::set(&plain).is_err() {
        // Without CAP_SYS_NICE only a better nice value is refused.
        let nice = rustix::process::getpriority_process(None).unwrap_or(0);
        let _ = schedule::set(&Schedule { nice, ..plain });
    }
    let _ = schedule::set_io_priority(0, 0);
    let mut all = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    let _ = rustix::thread::sched_setaffinity(None, &all);
    for (resource, limit) in init.0.iter().enumerate() {
        let _ = limit.map(|limit| limit_as(resource as _, limit));
    }
}

/// The resource limits of the host's first process.
#[derive(Debug, Clone)]
pub struct InitLimits([Option<libc::rlimit64>; 16]);

impl InitLimits {
    /// Reads them. Call it in a process of the host's own pid namespace: in that of a spark, the first process is another.
    pub fn read() -> InitLimits {
        InitLimits(std::array::from_fn(|resource| limit_of(1, resource as _).ok()))
    }
}

fn limit_of(pid: libc::pid_t, resource: libc::c_uint) -> io::Result<libc::rlimit64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the call, which writes to it; no new limit is given.
    let r = unsafe { libc::prlimit64(pid, resource as _, std::ptr::null(), &mut limit) };
    if r == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}

/// Sets one limit of this process to that of the host's first process, within the hard limit here.
fn limit_as(resource: libc::c_uint, init: libc::rlimit64) -> io::Result<()> {
    let own = limit_of(0, resource)?;
    let rlim_max = own.rlim_max.min(init.rlim_max);
    let new = libc::rlimit64 { rlim_cur: init.rlim_cur.min(rlim_max), rlim_max };
    if (new.rlim_cur, new.rlim_max) == (own.rlim_cur, own.rlim_max) {
        return Ok(());
    }
    // SAFETY: `new` is a valid limit that outlives the call; nothing is written.
    let r = unsafe { libc::prlimit64(0, resource as _, &new, std::ptr::null_mut()) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_paths_in_any_argument() {
        let own = format!("/proc/{}/fd/", std::process::id());
        let of_us = format!("{own}7");
        for (text, expected) in [
            ("/dev/fd/63", vec![63]),
            ("--env-file=/proc/self/fd/5", vec![5]),
            ("K=file:///dev/fd/12:/dev/fd/3", vec![12, 3]),
            (&of_us, vec![7]),
            ("/dev/fd/", vec![]),
            ("/dev/fd/1", vec![]),
            ("/proc/1/fd/4", vec![]),
            ("/dev/fd/99999999999", vec![]),
        ] {
            assert_eq!(named(&text.into(), &own), expected, "{text}");
        }
    }

    #[test]
    fn the_number_of_preserved_descriptors_is_found_in_both_forms() {
        let of = |line: &str| preserved(line.split(' ').map(OsString::from));
        assert_eq!(of("spark-oci create --preserve-fds 2 id"), 2);
        assert_eq!(of("spark-oci exec --preserve-fds=5 id sh"), 5);
        assert_eq!(of("spark-oci create id"), 0);
        assert_eq!(of("spark-oci create --preserve-fds x id --preserve-fds"), 0);
    }
}
