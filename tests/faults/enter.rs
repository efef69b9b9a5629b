//! Whoever is stopped or traced on the way into a spark, or in its start, keeps no other command: waits have a deadline, end on
//! the caller's signals, and hold no lock for long.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use crate::bundle::Host;
use crate::common::{Machine, cgroups, processes, wait_for};
use crate::points::points;

/// The fault points of a command on its way in.
pub(crate) const POINTS: &str = "enter.";

/// Those of a process that joins a container of a bundle.
pub(crate) const OCI: &str = "oci-enter.";

fn begin(machine: &Machine, args: &[&str], fault: &str) -> Child {
    let mut command = machine.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("SPARK_FAULT", fault);
    command.spawn().unwrap()
}

/// The same with a fiftieth of the time that a process inside may delay it.
fn begin_in_haste(machine: &Machine, args: &[&str], fault: &str) -> Child {
    let mut command = machine.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("SPARK_FAULT", fault);
    command.env("SPARK_HASTE", "50").spawn().unwrap()
}

/// The state of a process, as in `/proc/PID/stat`.
fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('-')
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits until a child of a command has been stopped. Returns its number.
#[track_caller]
fn stopped_child(command: &mut Child) -> i32 {
    let pid = command.id() as i32;
    let mut found = None;
    let there = wait_for(|| {
        assert!(command.try_wait().unwrap().is_none(), "it has ended, and its child was not stopped");
        found = children(pid).into_iter().find(|pid| state(*pid) == 'T');
        found.is_some()
    });
    assert!(there, "no child of {pid} was stopped");
    found.unwrap()
}

/// What is locked of the spark `web`.
fn lock_of(machine: &Machine) -> PathBuf {
    std::fs::canonicalize(machine.pool().join("projects/default/sparks/web")).unwrap()
}

fn has_open(pid: i32, file: &Path) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    { fds }.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == file))
}

/// Waits until a command has ended. Returns its status, and what it wrote to standard error.
#[track_caller]
fn said(mut child: Child) -> (Option<i32>, String) {
    if !wait_for(|| child.try_wait().unwrap().is_some()) {
        child.kill().unwrap();
        panic!("the command hangs");
    }
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn signal(pid: i32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn init_of(machine: &Machine, spark: &str) -> i32 {
    machine.spark(&["--json", "info", spark]).json()["pid"].as_i64().unwrap() as i32
}

/// The deadline of an entry, as its message says it.
const LATE: &str = "did not get in within 10 seconds";

#[test]
fn stop_and_delete_do_not_wait_for_a_command_that_is_stopped_anywhere_on_its_way_in() {
    let machine = Machine::new().with_base();
    let points: Vec<String> = points().into_iter().filter(|point| point.starts_with(POINTS)).collect();
    assert!(points.len() > 7, "{points:?}");
    for point in points {
        for verb in [&["stop", "-t", "0", "web"][..], &["delete", "-f", "--now", "web"]] {
            eprintln!("{verb:?} with {point}");
            if machine.spark(&["info", "web"]).status() != 0 {
                machine.spark(&["create", "web"]).ok();
            }
            let mut exec = begin(&machine, &["exec", "web", "--", "true"], &format!("{point}=stop"));
            let child = stopped_child(&mut exec);
            machine.spark(verb).ok();
            assert!(!crate::common::is_running(child), "{point}: what was on its way in is there still");
            let (status, error) = said(exec);
            // It was ended by the other command, and not by its own deadline.
            if point == "enter.ready" {
                // It had nothing to do but to execute its program, and counts as that.
                assert_eq!((status, error.as_str()), (Some(137), ""));
                continue;
            }
            assert!(status == Some(125) && !error.contains(LATE), "{point}: {status:?} {error}");
            assert!(error.contains("stopped by another command meanwhile"), "{point}: {error}");
        }
    }
}

#[test]
fn a_command_that_is_stopped_on_its_way_in_is_given_up_and_the_next_one_gets_in() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let args = ["--json", "exec", "web", "--", "true"];
    // It was stopped before, and may wait fifty times as long.
    let mut patient = begin(&machine, &args, "enter.joined=stop");
    stopped_child(&mut patient);
    let mut exec = begin_in_haste(&machine, &args, "enter.joined=stop");
    let child = stopped_child(&mut exec);
    let (status, error) = said(exec);
    assert!(
        patient.try_wait().unwrap().is_none(),
        "the deadline is not that of what a process inside delays"
    );
    assert!(status == Some(125) && error.contains(LATE) && error.contains("\"busy\""), "{status:?} {error}");
    assert!(!crate::common::is_running(child));
    signal(patient.id() as i32, libc::SIGTERM);
    assert_eq!(said(patient).0, Some(128 + libc::SIGTERM));
    machine.spark(&["exec", "web", "--", "true"]).ok();
}

#[test]
fn a_signal_of_the_caller_ends_the_wait_for_a_command_on_its_way_in() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        for args in [&["exec", "web", "--", "true"][..], &["exec", "-t", "web", "--", "true"]] {
            let mut exec = begin(&machine, args, "enter.joined=stop");
            let child = stopped_child(&mut exec);
            signal(exec.id() as i32, number);
            let (status, error) = said(exec);
            assert_eq!((status, error.as_str()), (Some(128 + number), ""));
            assert!(!crate::common::is_running(child));
        }
    }
    machine.spark(&["exec", "web", "--", "true"]).ok();
}

/// What waits for another command's lock ends on signals as well.
#[test]
fn a_signal_of_the_caller_ends_the_wait_for_a_lock() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let mut stop = begin(&machine, &["stop", "-t", "0", "web"], "stop.marked=stop");
    assert!(wait_for(|| state(stop.id() as i32) == 'T'));
    let exec = begin(&machine, &["exec", "web", "--", "true"], "");
    // It comes to the lock, and waits for that.
    assert!(wait_for(|| has_open(exec.id() as i32, &lock_of(&machine))));
    signal(exec.id() as i32, libc::SIGINT);
    assert_eq!(said(exec).0, Some(130));
    signal(stop.id() as i32, libc::SIGCONT);
    assert!(stop.wait().unwrap().success());
}

/// With `--idle-stop` a command waits for PID 1 to rest, before it has left the session of its caller.
#[test]
fn a_command_that_waits_for_pid_1_ends_on_signals_and_keeps_no_stop() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "1h"]).ok();
    signal(init_of(&machine, "web"), libc::SIGSTOP);
    let waiting = |exec: &Child| wait_for(|| !children(exec.id() as i32).is_empty());
    let exec = begin(&machine, &["exec", "web", "--", "true"], "");
    assert!(waiting(&exec));
    let child = children(exec.id() as i32)[0];
    signal(exec.id() as i32, libc::SIGINT);
    assert_eq!(said(exec), (Some(130), String::new()));
    assert!(!crate::common::is_running(child));
    let exec = begin_in_haste(&machine, &["exec", "web", "--", "true"], "");
    let (status, error) = said(exec);
    assert!(status == Some(125) && error.contains(LATE), "{status:?} {error}");
    let mut exec = begin(&machine, &["exec", "web", "--", "true"], "");
    assert!(waiting(&exec));
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    // It has begun while the spark ran, and starts it again.
    assert!(exec.wait().unwrap().success());
}

/// Traces PID 1 of a spark from within its pid namespace and cgroups, as root inside may, until it is killed.
struct Tracer(i32);

impl Tracer {
    /// `request` is `PTRACE_ATTACH`, which stops it, or `PTRACE_SEIZE`, which only stops it on its way out.
    fn of(init: i32, request: libc::c_uint, groups: &[PathBuf]) -> Tracer {
        let (ready, ready_tx) = rustix::pipe::pipe().unwrap();
        let (to, pidfd) = (ready_tx.as_raw_fd(), sparks::sys::process::pidfd_open(init).unwrap());
        // In a thread, whose children are born in that namespace from then on.
        let born = std::thread::spawn(move || trace_in(pidfd.as_raw_fd(), request, to));
        let tracer = born.join().unwrap();
        for group in groups {
            std::fs::write(group.join("cgroup.procs"), tracer.to_string()).unwrap();
        }
        let mut failed = [9];
        rustix::io::read(&ready, &mut failed).unwrap();
        assert_eq!(failed, [0], "it cannot be traced");
        Tracer(tracer)
    }
}

/// Forks a process into a pid namespace that traces PID 1 there, and says by a byte whether it could.
fn trace_in(pidfd: i32, request: libc::c_uint, to: i32) -> i32 {
    // SAFETY: the child calls nothing but system calls, with plain numbers and what is on its own stack.
    #[allow(unsafe_code)]
    unsafe {
        assert_eq!(libc::setns(pidfd, libc::CLONE_NEWPID), 0);
        let tracer = libc::fork();
        if tracer != 0 {
            return tracer;
        }
        let options = if request == libc::PTRACE_SEIZE { libc::PTRACE_O_TRACEEXIT } else { 0 };
        let done = libc::ptrace(request, 1, 0, libc::c_long::from(options));
        if request == libc::PTRACE_ATTACH {
            libc::waitpid(1, std::ptr::null_mut(), libc::__WALL);
        }
        libc::write(to, [u8::from(done != 0)].as_ptr().cast(), 1);
        loop {
            libc::pause();
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // SAFETY: plain numbers; it is a child that nobody else reaps.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

#[test]
fn a_traced_pid_1_keeps_no_command_and_no_stop() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "1h"]).ok();
    let (init, id) =
        (init_of(&machine, "web"), machine.spark(&["--json", "info", "web"]).json()["id"].clone());
    let groups = cgroups(id.as_str().unwrap());
    let tracer = Tracer::of(init, libc::PTRACE_ATTACH, &groups);
    assert_eq!(state(init), 't');
    machine.spark(&["exec", "web", "--", "true"]).ok();
    drop(tracer);
    machine.spark(&["exec", "web", "--", "true"]).ok();
    let tracer = Tracer::of(init, libc::PTRACE_SEIZE, &groups);
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert!(!crate::common::is_running(tracer.0), "what traced PID 1 is there still");
    // The kernel keeps PID 1 until this test has reaped the tracer.
    drop(tracer);
    assert!(wait_for(|| !crate::common::is_running(init)));
}

/// PID 1 stays until the commands of `exec` are reaped, which are children of `spark exec`.
#[test]
fn a_spark_exec_that_was_stopped_at_its_terminal_keeps_no_stop() {
    let machine = Machine::new().with_base();
    for args in [&["stop", "-t", "0", "web"][..], &["stop", "web"], &["delete", "-f", "--now", "web"]] {
        if machine.spark(&["info", "web"]).status() != 0 {
            machine.spark(&["create", "web"]).ok();
        }
        machine.spark(&["resume", "web"]).ok();
        let mut exec = begin(&machine, &["exec", "web", "--", "sleep", "1000"], "");
        let pid = exec.id() as i32;
        let runs = || {
            let comm = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // And `spark exec` has done all else: it has given the lock back.
            children(pid).iter().any(|child| comm(child) == "sleep\n") && !has_open(pid, &lock_of(&machine))
        };
        assert!(wait_for(runs));
        signal(pid, libc::SIGSTOP);
        assert!(wait_for(|| state(exec.id() as i32) == 'T'));
        machine.spark(args).ok();
        if args[0] == "stop" {
            assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "stopped");
            machine.spark(&["resume", "web"]).ok();
            machine.spark(&["exec", "web", "--", "true"]).ok();
        }
        signal(exec.id() as i32, libc::SIGCONT);
        assert!(!exec.wait().unwrap().success());
    }
}

/// Nobody inside can do that, but somebody on the host. A start is given up, and what it made goes.
#[test]
fn a_start_that_is_stopped_anywhere_is_given_up_and_stop_and_delete_go_on() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start"]).ok();
    let id = machine.spark(&["--json", "info", "web"]).json()["id"].as_str().unwrap().to_owned();
    let verbs = [&["stop", "web"][..], &["stop", "-t", "0", "web"], &["delete", "-f", "web"]];
    for (n, verb) in verbs.into_iter().enumerate() {
        // The helper before PID 1 runs and after, and PID 1 itself.
        let point = ["start.created=stop", "start.started=stop", "start.created=stop"][n];
        let mut resume = begin(&machine, &["resume", "web"], point);
        let helper = stopped_child(&mut resume);
        if n == 2 {
            let inside = processes(&id);
            assert!(!inside.is_empty());
            inside.into_iter().for_each(|pid| signal(pid, libc::SIGSTOP));
            signal(helper, libc::SIGCONT);
        }
        machine.spark(verb).ok();
        let (status, error) = said(resume);
        assert!(status == Some(1) && error.contains("cannot start spark `web`"), "{status:?} {error}");
        assert!(error.contains("was stopped by a signal"), "{error}");
        assert!(processes(&id).is_empty() && cgroups(&id).is_empty());
    }
}

#[test]
fn a_process_that_is_stopped_on_its_way_into_a_container_keeps_no_other_command() {
    let host = Host::new();
    for verb in [&["pause", "c"][..], &["delete", "--force", "c"]] {
        host.configure(&["sleep", "1000"], |_| {});
        host.start("c");
        let mut exec = host.command(&["exec", "c", "true"]);
        exec.stdout(Stdio::null()).stderr(Stdio::piped()).env("SPARK_FAULT", "oci-enter.joined=stop");
        let mut exec = exec.spawn().unwrap();
        let child = stopped_child(&mut exec);
        host.oci(verb).ok();
        if verb[0] == "pause" {
            // What is frozen does not end. Signals end the wait for it all the same.
            signal(exec.id() as i32, libc::SIGTERM);
            assert_eq!(exec.wait().unwrap().code(), Some(128 + libc::SIGTERM));
            host.oci(&["delete", "--force", "c"]).ok();
        } else {
            let (status, error) = said(exec);
            assert!(status == Some(255) && !error.contains("within 10 seconds"), "{status:?} {error}");
        }
        assert!(!crate::common::is_running(child));
    }
}
