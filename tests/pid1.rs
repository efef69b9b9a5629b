//! PID 1 of a spark in PID namespaces of its own. Needs root.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "it clones as the runtime does, by the system call")]

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use sparks::runtime::init::{PID1, exec, sealed};

/// For everything that has to happen at some time: only what hangs meets it.
const PATIENCE: Duration = Duration::from_secs(300);
/// A grace that nothing here outlives, in milliseconds.
const ENDLESS: i32 = 3_600_000;

/// Sets the time to idle for, in seconds.
const SIGIDLE: i32 = 50;

/// One image for all.
fn image() -> &'static OwnedFd {
    static IMAGE: OnceLock<OwnedFd> = OnceLock::new();
    IMAGE.get_or_init(|| sealed().expect("the image"))
}

fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A PID namespace with the program as its PID 1, and the processes that were entered into it.
struct Spark {
    pid: libc::pid_t,
    status: Option<i32>,
    entered: Vec<Child>,
}

impl Spark {
    fn start(args: &[&str]) -> Spark {
        let args: Vec<CString> =
            std::iter::once(&"spark-init").chain(args).map(|arg| CString::new(*arg).unwrap()).collect();
        let args: Vec<_> = args.iter().map(CString::as_c_str).collect();
        let image = image().as_fd();
        let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
        // SAFETY: without CLONE_VM this is a fork. The child makes system calls only, for `exec`
        // does not allocate.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if pid == 0 {
            exec(image, &args);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(127) };
        }
        assert!(pid > 0, "clone: {}", std::io::Error::last_os_error());
        let mut spark = Spark { pid: pid.try_into().unwrap(), status: None, entered: Vec::new() };
        let exe = format!("/proc/{pid}/exe");
        assert!(
            until(PATIENCE, || {
                assert!(!spark.ended(), "ended with {:?}", spark.status);
                fs::read_link(&exe).is_ok_and(|path| path.starts_with("/memfd:spark-init (deleted)"))
            }),
            "the program has not been executed"
        );
        spark
    }

    /// Starts a process in the namespace from outside, as nsenter does.
    fn enter(&mut self, program: &str, args: &[&str]) -> usize {
        let namespace = fs::File::open(format!("/proc/{}/ns/pid", self.pid)).unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Shells report there what a signal has ended.
            .stderr(Stdio::null());
        // In a thread, for this decides about its later children only and is over with it.
        let child = thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: the call takes a descriptor that is open and no pointers.
                    let set = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) };
                    assert_eq!(set, 0, "setns: {}", std::io::Error::last_os_error());
                    command.spawn().unwrap()
                })
                .join()
                .unwrap()
        });
        self.entered.push(child);
        self.entered.len() - 1
    }

    /// Starts a shell script in the namespace and waits for the line "ready" of it.
    fn shell(&mut self, script: &str) -> usize {
        let child = self.enter("sh", &["-c", script]);
        let output = self.entered[child].stdout.as_mut().unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    fn signal(&self, signal: i32) {
        assert!(self.status.is_none());
        // SAFETY: the process is a child that has not been waited for, so the PID is its own.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    fn queue(&self, signal: i32, value: i32) {
        assert!(self.status.is_none());
        // The C union of a pointer and an int has the int in its first bytes.
        let mut bytes = [0; size_of::<usize>()];
        bytes[..4].copy_from_slice(&value.to_ne_bytes());
        let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(usize::from_ne_bytes(bytes)) };
        // SAFETY: as for `signal`; the value is passed on, and nobody takes it for a pointer.
        assert_eq!(unsafe { libc::sigqueue(self.pid, signal, value) }, 0);
    }

    /// Whether PID 1 has ended; reaps what has been entered, as its parent has to.
    fn ended(&mut self) -> bool {
        for child in &mut self.entered {
            child.try_wait().unwrap();
        }
        if self.status.is_none() {
            let mut status = 0;
            // SAFETY: `status` is valid for writing, and the process is a child not waited for.
            match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
                0 => {}
                pid => {
                    assert_eq!(pid, self.pid);
                    self.status = Some(status);
                }
            }
        }
        self.status.is_some()
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        until(limit, || self.ended())
    }

    /// The PIDs, as seen here, of PID 1's children, zombies included.
    fn children(&self) -> Vec<libc::pid_t> {
        let parent = self.pid.to_string();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| field(*pid, "PPid").as_ref() == Some(&parent))
            .collect()
    }

    /// Whether a signal that was sent to PID 1 is not pending any more.
    fn has_taken(&self, signal: i32) -> bool {
        let pending = field(self.pid, "ShdPnd").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        pending.is_none_or(|set| set & (1 << (signal - 1)) == 0)
    }

    /// Number, and first four arguments, of the system call that PID 1 is blocked in.
    fn blocked_in(&self) -> Option<Vec<u64>> {
        let text = fs::read_to_string(format!("/proc/{}/syscall", self.pid)).ok()?;
        let number = |word: &str| match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => word.parse().ok(),
        };
        text.split_whitespace().take(5).map(number).collect()
    }

    /// Waits until PID 1 sleeps for a signal; gives the address of the timeout.
    fn timeout_address(&self) -> u64 {
        let mut address = 0;
        assert!(until(PATIENCE, || {
            let call = self.blocked_in().unwrap_or_default();
            address = call.get(3).copied().unwrap_or_default();
            call.first() == Some(&(libc::SYS_rt_sigtimedwait as u64))
        }));
        address
    }
}

impl Drop for Spark {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal(libc::SIGKILL);
            // The namespace ends only after those have been reaped that belong to this process.
            until(PATIENCE, || self.ended());
        }
    }
}

fn field(pid: libc::pid_t, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

#[test]
fn orphans_are_reaped() {
    const ORPHANS: usize = 8;
    let mut spark = Spark::start(&[]);
    spark.shell(&format!("for i in $(seq {ORPHANS}); do (sleep 60 >/dev/null &); done; echo ready"));
    assert!(until(PATIENCE, || { !spark.ended() && spark.children().len() == ORPHANS }));
    for orphan in spark.children() {
        // SAFETY: it is a sleep of this test's, a child of a PID 1 that only this test ends.
        assert_eq!(unsafe { libc::kill(orphan, libc::SIGKILL) }, 0);
    }
    assert!(until(PATIENCE, || spark.children().is_empty()));
    assert!(!spark.ended());
}

#[test]
fn sigterm_ends_it_at_once_when_nothing_else_runs() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGRTMIN() + 3, libc::SIGRTMIN() + 4] {
        for grace in [None, Some(ENDLESS)] {
            let mut spark = Spark::start(&[]);
            match grace {
                Some(grace) => spark.queue(signal, grace),
                None => spark.signal(signal),
            }
            assert!(spark.ends_within(PATIENCE), "signal {signal}");
            assert_eq!(spark.status, Some(0), "signal {signal}");
        }
    }
}

#[test]
fn sigterm_takes_as_long_as_a_process_that_was_entered_takes() {
    let mut spark = Spark::start(&[]);
    let child = spark.shell("trap 'sleep 0.3; exit 7' TERM; echo ready; while :; do sleep 0.02; done");
    let begin = Instant::now();
    spark.queue(libc::SIGTERM, ENDLESS);
    assert!(spark.ends_within(PATIENCE));
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(spark.status, Some(0));
    assert_eq!(spark.entered[child].wait().unwrap().code(), Some(7));
}

#[test]
fn sigterm_takes_as_long_as_an_orphan_takes() {
    let mut spark = Spark::start(&[]);
    // The inner shell is orphaned at once; it alone keeps the output open.
    let child = spark.shell(
        "(sh -c \"trap 'sleep 0.3; echo done; exit' TERM; echo ready; \
         while :; do sleep 0.02; done\" &)",
    );
    assert!(until(PATIENCE, || { !spark.ended() && spark.children().len() == 1 }));
    let begin = Instant::now();
    spark.queue(libc::SIGTERM, ENDLESS);
    assert!(spark.ends_within(PATIENCE));
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(spark.status, Some(0));
    let mut rest = String::new();
    let output = spark.entered[child].stdout.as_mut().unwrap();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "done\n");
}

#[test]
fn a_stopped_process_takes_notice_of_sigterm() {
    let mut spark = Spark::start(&[]);
    let child = spark.enter("sleep", &["60"]);
    let pid = spark.entered[child].id().try_into().unwrap();
    // SAFETY: it is this test's own child and has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    assert!(until(PATIENCE, || { field(pid, "State").is_some_and(|state| state.starts_with('T')) }));
    spark.queue(libc::SIGTERM, ENDLESS);
    assert!(spark.ends_within(PATIENCE));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_the_grace_that_was_sent() {
    let mut spark = Spark::start(&[]);
    spark.shell("trap '' TERM; echo ready; exec sleep 60 >/dev/null");
    let begin = Instant::now();
    spark.queue(libc::SIGTERM, 400);
    assert!(spark.ends_within(PATIENCE));
    assert!(begin.elapsed() >= Duration::from_millis(399));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn a_second_sigterm_shortens_the_grace_and_never_extends_it() {
    let mut spark = Spark::start(&[]);
    spark.shell("trap '' TERM; echo ready; exec sleep 60 >/dev/null");
    let begin = Instant::now();
    spark.queue(libc::SIGTERM, ENDLESS);
    assert!(until(PATIENCE, || spark.timeout_address() != 0));
    spark.queue(libc::SIGTERM, 3000);
    // One that waits still would keep the next away.
    assert!(until(PATIENCE, || spark.ended() || spark.has_taken(libc::SIGTERM)));
    if !spark.ended() {
        spark.queue(libc::SIGTERM, ENDLESS);
    }
    assert!(spark.ends_within(PATIENCE));
    assert!(begin.elapsed() >= Duration::from_millis(2999));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn a_grace_that_is_not_positive_is_no_grace_at_all_but_the_default() {
    for value in [0, -1] {
        let mut spark = Spark::start(&[]);
        spark.shell("trap 'sleep 0.2; exit' TERM; echo ready; while :; do sleep 0.02; done");
        let begin = Instant::now();
        spark.queue(libc::SIGTERM, value);
        assert!(spark.ends_within(PATIENCE));
        assert!(begin.elapsed() >= Duration::from_millis(200), "{value}");
    }
}

#[test]
fn sigusr1_reaches_the_processes_and_others_end_nothing() {
    let mut spark = Spark::start(&[]);
    let child = spark.shell("trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done");
    for signal in [libc::SIGQUIT, libc::SIGWINCH, libc::SIGALRM, libc::SIGUSR1] {
        spark.signal(signal);
    }
    assert!(until(PATIENCE, || {
        let gone = spark.entered[child].try_wait().unwrap();
        gone.is_some_and(|status| {
            assert_eq!(status.code(), Some(9));
            true
        })
    }));
    assert!(!spark.ended());
}

#[test]
fn a_signal_from_inside_is_heard() {
    let mut spark = Spark::start(&[]);
    spark.enter("sh", &["-c", "kill -TERM 1"]);
    assert!(spark.ends_within(PATIENCE));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn idling_ends_it_after_the_last_process_has_gone() {
    let mut spark = Spark::start(&[]);
    let child = spark.enter("cat", &[]);
    spark.queue(SIGIDLE, 1);
    // Longer than the idle time: it must not count while a process is there.
    assert!(!spark.ends_within(Duration::from_millis(1800)));
    let begin = Instant::now();
    drop(spark.entered[child].stdin.take());
    assert!(spark.ends_within(PATIENCE));
    assert!(begin.elapsed() >= Duration::from_millis(999));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn idling_does_not_end_it_without_an_idle_time() {
    for args in [&[][..], &["0"], &["soon"]] {
        let mut spark = Spark::start(args);
        // Nothing to wake it up is stronger than any time it could be watched for.
        assert_eq!(spark.timeout_address(), 0, "{args:?}");
        assert!(!spark.ended());
    }
}

#[test]
fn an_idle_time_can_be_given_and_taken_while_it_runs() {
    let mut spark = Spark::start(&[]);
    let child = spark.enter("cat", &[]);
    // Without a value, or with one that is no time, it is a signal as any other.
    spark.signal(SIGIDLE);
    spark.queue(SIGIDLE, -1);
    assert_eq!(spark.timeout_address(), 0);
    spark.queue(SIGIDLE, 1);
    assert!(until(PATIENCE, || spark.timeout_address() != 0));
    assert!(!spark.ends_within(Duration::from_millis(1200)));
    spark.queue(SIGIDLE, 0);
    assert!(until(PATIENCE, || spark.timeout_address() == 0));
    drop(spark.entered[child].stdin.take());
    assert!(!spark.ends_within(Duration::from_millis(1200)));
    spark.queue(SIGIDLE, 1);
    assert!(spark.ends_within(PATIENCE));
    assert_eq!(spark.status, Some(0));
}

#[test]
fn it_makes_no_wake_ups_when_idle() {
    let mut spark = Spark::start(&[]);
    spark.shell("(sleep 60 >/dev/null &); echo ready");
    assert!(until(PATIENCE, || { !spark.ended() && spark.children().len() == 1 }));
    // It sleeps without a timeout, so that nothing but a signal can wake it.
    assert_eq!(spark.timeout_address(), 0);
    let switches = field(spark.pid, "voluntary_ctxt_switches").unwrap();
    assert!(!spark.ends_within(Duration::from_millis(200)));
    assert_eq!(field(spark.pid, "voluntary_ctxt_switches").unwrap(), switches);
    assert_eq!(spark.timeout_address(), 0);
}

#[test]
fn nobody_can_change_the_program() {
    let own = sealed().unwrap();
    let path = format!("/proc/self/fd/{}", own.as_raw_fd());
    let refused = |error: std::io::Error| {
        let code = error.raw_os_error().unwrap();
        assert!([libc::EPERM, libc::ETXTBSY].contains(&code), "{error}");
    };
    let change = |path: &str| {
        // The seal may let it be opened, but never written.
        match fs::File::options().write(true).open(path) {
            Ok(file) => {
                refused(std::os::unix::fs::FileExt::write_at(&file, b"x", 0).unwrap_err());
                refused(file.set_len(0).unwrap_err());
            }
            Err(error) => refused(error),
        }
        for mode in [0o644, 0o554] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            refused(fs::set_permissions(path, mode).unwrap_err());
        }
        assert_eq!(fs::read(path).unwrap(), PID1);
    };
    change(&path);
    // SAFETY: the descriptor is open, and no pointers are passed.
    let added = unsafe { libc::fcntl(own.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) };
    assert_eq!(added, -1);

    let spark = Spark::start(&[]);
    change(&format!("/proc/{}/exe", spark.pid));
}

#[test]
fn it_is_small() {
    assert!(PID1.len() < 8 * 1024, "{} bytes", PID1.len());
    let spark = Spark::start(&[]);
    spark.timeout_address();
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", spark.pid)).unwrap();
    let rss = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = rss.and_then(|rss| rss.trim().strip_suffix(" kB")?.parse::<u32>().ok());
    assert!(kib.unwrap() < 100, "{text}");
    assert_eq!(field(spark.pid, "Name").unwrap(), "spark-init");
}

#[test]
fn it_runs_as_nothing_but_pid_1() {
    let image = image().as_fd();
    let flags = libc::SIGCHLD;
    // SAFETY: as in `Spark::start`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        exec(image, &[c"spark-init"]);
        // SAFETY: as in `Spark::start`.
        unsafe { libc::_exit(127) };
    }
    // It has no namespace, but nothing more is asked of it than to end.
    let mut spark = Spark { pid: pid.try_into().unwrap(), status: None, entered: Vec::new() };
    assert!(spark.ends_within(PATIENCE));
    assert_eq!(spark.status.map(|status| libc::WEXITSTATUS(status)), Some(1));
}

#[test]
fn exec_says_why_it_failed() {
    let null = fs::File::open("/dev/null").unwrap();
    let error = exec(null.as_fd(), &[c"spark-init"]);
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert_eq!(exec(null.as_fd(), &[]).raw_os_error(), Some(libc::EINVAL));
}
