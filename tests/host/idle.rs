//! Sparks that end when idle, and begin again.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::random::Random;
use crate::common::{Machine, cgroups, claims, containers, processes, wait_for};

fn info(machine: &Machine, name: &str) -> serde_json::Value {
    machine.spark(&["info", name, "--json"]).json()
}

fn is_stopped(machine: &Machine, name: &str) -> bool {
    info(machine, name)["state"] == "stopped"
}

#[test]
fn a_spark_without_processes_ends_and_the_next_command_resumes_it() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "30s"]).ok();
    let first = info(&machine, "web");
    assert_eq!(
        (first["state"].as_str(), first["options"]["idle_stop"].as_u64()),
        (Some("running"), Some(30))
    );
    machine.spark(&["set", "web", "--idle-stop", "1s"]).ok();
    machine.spark(&["exec", "web", "--", "sh", "-c", "echo here > /file"]).ok();
    assert!(wait_for(|| is_stopped(&machine, "web")));
    assert_eq!(info(&machine, "web")["ended"], "idle");
    assert!(machine.spark(&["info", "web"]).ok().contains("ended: idle\n"));
    assert_eq!(machine.spark(&["list", "--json"]).json()[0]["state"], "stopped");
    assert_eq!(machine.spark(&["exec", "web", "cat", "/file"]).ok(), "here\n");
    // It may have ended again by now.
    machine.spark(&["set", "web", "--idle-stop", "never"]).ok();
    machine.spark(&["resume", "web"]).ok();
    let again = info(&machine, "web");
    assert_eq!((again["state"].as_str(), &again["ended"]), (Some("running"), &serde_json::Value::Null));
    assert_ne!(again["pid"], first["pid"]);
    // One that was stopped was not idle.
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(info(&machine, "web")["ended"], serde_json::Value::Null);
}

#[test]
fn every_process_that_is_not_pid_1_keeps_a_spark() {
    let machine = Machine::new().with_base();
    for name in ["detached", "console", "orphan", "none"] {
        machine.spark(&["create", name, "--idle-stop", "1s"]).ok();
    }
    machine.spark(&["exec", "-d", "detached", "sleep", "1000"]).ok();
    machine
        .spark(&["exec", "orphan", "--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & exit"])
        .ok();
    let mut shell = machine.command(&["console", "-t", "console"]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let id = info(&machine, "console")["id"].as_str().unwrap().to_owned();
    let entered = || processes(&id).len() == 2;
    assert!(wait_for(entered), "the shell has not begun");
    let pids: Vec<_> =
        ["detached", "console", "orphan"].map(|name| info(&machine, name)["pid"].clone()).into();
    // What has none ends, and then once more: twice the time of the others.
    for _ in 0..2 {
        assert!(wait_for(|| is_stopped(&machine, "none")));
        machine.spark(&["resume", "none"]).ok();
    }
    assert!(wait_for(|| is_stopped(&machine, "none")));
    let now: Vec<_> =
        ["detached", "console", "orphan"].map(|name| info(&machine, name)["pid"].clone()).into();
    assert_eq!(now, pids);
    drop(shell.stdin.take());
    machine.spark(&["stop", "-t", "0", "console"]).ok();
    shell.wait().unwrap();
}

/// A fork idles as its source did; `never` is how not to.
#[test]
fn forks_inherit_it_and_can_do_without() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "90s", "--no-start"]).ok();
    machine.spark(&["fork", "web", "same", "--no-start"]).ok();
    machine.spark(&["fork", "web", "other", "--no-start", "--idle-stop", "never"]).ok();
    assert_eq!(info(&machine, "same")["options"]["idle_stop"], 90);
    assert_eq!(info(&machine, "other")["options"]["idle_stop"], 0);
}

#[test]
fn it_is_set_and_taken_off_while_a_spark_runs() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    machine.spark(&["create", "kept", "--idle-stop", "6s"]).ok();
    machine.spark(&["set", "kept", "--idle-stop", "never"]).ok();
    // On a machine that stood still for so long it has ended meanwhile.
    machine.spark(&["resume", "kept"]).ok();
    let pids = ["web", "kept"].map(|name| info(&machine, name)["pid"].clone());
    machine.spark(&["set", "web", "--idle-stop", "1s"]).ok();
    let said = ["web", "kept"].map(|name| info(&machine, name)["options"]["idle_stop"].clone());
    assert_eq!(said, [1, 0]);
    // Ends seven times, which is longer than the other was to stay.
    for _ in 0..7 {
        assert!(wait_for(|| is_stopped(&machine, "web")));
        machine.spark(&["resume", "web"]).ok();
    }
    assert_eq!((&info(&machine, "kept")["pid"], info(&machine, "web")["pid"] == pids[0]), (&pids[1], false));
    machine.spark(&["set", "web", "--json", "--idle-stop", "soon"]).fails_with("usage");
}

/// Commands that come at the very moment at which PID 1 leaves. A second is the shortest that it counts.
#[test]
fn no_command_fails_around_the_moment_of_an_idle_stop() {
    let machine = Machine::new().with_base();
    let names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
    for name in &names {
        machine.spark(&["create", name, "--idle-stop", "1s"]).ok();
    }
    let (ran, resumed) = std::thread::scope(|scope| {
        let work = names.iter().enumerate().map(|(n, name)| {
            let machine = &machine;
            scope.spawn(move || around_idle_stops(machine, name, n as u64))
        });
        let work: Vec<_> = work.collect();
        work.into_iter().map(|t| t.join().unwrap()).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    assert_eq!(ran, 8 * 3 * 3);
    assert!(resumed >= 8, "of {ran} commands only {resumed} met a spark that had ended");
}

/// Watches PID 1 until it is due, and runs commands around that. How many ran, and how often PID 1 was another.
fn around_idle_stops(machine: &Machine, name: &str, seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let (mut ran, mut resumed) = (0, 0);
    for round in 0..3 {
        let id = info(machine, name)["id"].as_str().unwrap().to_owned();
        let before = processes(&id);
        let due = Instant::now() + Duration::from_millis(900 + random.below(1300));
        // Two in three at the moment itself, as soon as that can be seen from outside.
        while Instant::now() < due && (round == 1 || !processes(&id).is_empty()) {
            std::thread::sleep(Duration::from_micros(300));
        }
        let commands: Vec<_> = (0..3)
            .map(|n| {
                let script = format!("echo {n}");
                let mut command = machine.command(&["exec", name, "--", "sh", "-c", &script]);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for (n, command) in commands.into_iter().enumerate() {
            let output = command.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name}: {:?}: {error}", output.status);
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\n"), "{error}");
            ran += 1;
        }
        resumed += usize::from(processes(&id) != before);
    }
    (ran, resumed)
}

/// Each is gone before PID 1 looks, which it does once a second.
#[test]
fn commands_that_come_and_go_between_two_looks_keep_a_spark() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "3s"]).ok();
    let kept = wait_for(|| {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        machine.spark(&["exec", "web", "true"]).ok();
        let first = info(&machine, "web")["pid"].clone();
        let until = Instant::now() + Duration::from_secs(7);
        while Instant::now() < until {
            machine.spark(&["exec", "web", "true"]).ok();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(400));
        }
        let same = info(&machine, "web")["pid"] == first;
        longest = longest.max(last.elapsed());
        // Where the machine was so slow that it did idle, this has shown nothing.
        assert!(same || longest > Duration::from_secs(2), "ended, and was never left alone for {longest:?}");
        same
    });
    assert!(kept);
}

#[test]
fn a_pause_is_no_idling() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--idle-stop", "3s"]).ok();
    let kept = wait_for(|| {
        machine.spark(&["exec", "web", "true"]).ok();
        let before = Instant::now();
        let first = info(&machine, "web")["pid"].clone();
        let paused = machine.spark(&["pause", "web"]);
        let before = before.elapsed();
        // A spark that had ended cannot be paused.
        if paused.status() != 0 {
            assert!(before > Duration::from_secs(2), "it ended within {before:?}: {}", paused.stderr());
            return false;
        }
        // The pause is longer than the spark may idle.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(info(&machine, "web")["state"], "paused");
        let after = Instant::now();
        machine.spark(&["resume", "web"]).ok();
        assert_eq!(machine.spark(&["exec", "web", "echo", "still"]).ok(), "still\n");
        let idle = before + after.elapsed();
        let same = info(&machine, "web")["pid"] == first;
        // If the machine was so slow that the spark idled beside the pause, this has shown nothing.
        assert!(
            same || idle > Duration::from_secs(2),
            "it ended, and was idle for {idle:?} beside the pause"
        );
        same
    });
    assert!(kept);
}

#[test]
fn a_hundred_idle_sparks_leave_nothing_running() {
    let machine = Machine::new().with_base();
    let origin = ["create", "origin", "--no-start", "--idle-stop", "1s", "--network", "none"];
    machine.spark(&origin).ok();
    machine.spark(&["fork", "-n", "100", "origin", "s"]).ok();
    let run = machine.place().run;
    let ids = containers(&run);
    assert_eq!(ids.len(), 100);
    assert!(wait_for(|| ids.iter().all(|id| processes(id).is_empty())));
    let stopped = machine.spark(&["list", "--json"]).json();
    assert!(stopped.as_array().unwrap().iter().all(|row| row["state"] == "stopped"), "{stopped}");
    let collected = machine.spark(&["gc", "--json"]).json();
    assert_eq!(collected.as_array().unwrap().len(), 100, "{collected}");
    assert!(containers(&run).is_empty() && claims(&run).is_empty());
    assert!(ids.iter().all(|id| cgroups(id).is_empty()));
}

/// All ranges of ids taken, one of them by a spark that ended by itself. In a mount namespace of the test's own: the
/// claims are the host's.
#[test]
fn what_ended_by_itself_makes_room_for_what_starts() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "idle", "--idle-stop", "1s"]).ok();
    machine.spark(&["create", "web", "--no-start"]).ok();
    assert!(wait_for(|| is_stopped(&machine, "idle")));
    let script = "cp $(grep -l \"$SPARK_RUN\" /run/spark-ids/*) . && mount -t tmpfs none /run/spark-ids && \
                  for n in $(seq 0 4095); do printf /run > /run/spark-ids/$n; done && cp [0-9]* /run/spark-ids/ && \
                  \"$0\" exec web echo well";
    let spark = machine.command(&[]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(spark.get_program()).current_dir(machine.work());
    command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "well\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(claims(&machine.place().run).len(), 1, "what was taken there is not seen here");
    machine.spark(&["stop", "-t", "0", "web"]).ok();
}

/// PID 1, held where it has decided to leave and has not left yet.
struct Leaving(i32);

impl Leaving {
    /// Waits until it is there, which `idle` lets it come to. What is traced belongs to this thread.
    fn hold(pid: i32, idle: impl FnOnce() + Send) -> Leaving {
        trace(libc::PTRACE_SEIZE, pid, libc::PTRACE_O_TRACESYSGOOD);
        trace(libc::PTRACE_INTERRUPT, pid, 0);
        std::thread::scope(|scope| {
            scope.spawn(idle);
            loop {
                let mut status = 0;
                // SAFETY: waitpid(2) writes to the status, which outlives the call.
                #[allow(unsafe_code)]
                let got = unsafe { libc::waitpid(pid, &mut status, 0) };
                assert_eq!(got, pid, "{}", std::io::Error::last_os_error());
                let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
                if call.split(' ').next() == Some(&libc::SYS_exit_group.to_string()) {
                    return Leaving(pid);
                }
                trace(libc::PTRACE_SYSCALL, pid, 0);
            }
        })
    }

    fn let_go(self) {
        trace(libc::PTRACE_DETACH, self.0, 0);
    }
}

fn trace(request: u32, pid: i32, data: i32) {
    // SAFETY: of these requests none takes a pointer.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ptrace(request, pid, 0, data) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The whole race, step by step: a command is entering while PID 1 leaves. Whether it would have begun or is still on
/// its way, it is run by the next PID 1, once.
#[test]
fn a_command_that_enters_while_pid_1_is_leaving_is_run_by_the_next() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    for time_to_begin in [Duration::ZERO, Duration::from_millis(500)] {
        machine.spark(&["set", "web", "--idle-stop", "never"]).ok();
        machine.spark(&["resume", "web"]).ok();
        let before = info(&machine, "web")["pid"].as_i64().unwrap() as i32;
        let leaving =
            Leaving::hold(before, || drop(machine.spark(&["set", "web", "--idle-stop", "1s"]).ok()));
        let script = "echo begun >> /begun; sleep 1; echo done";
        let mut command = machine.command(&["exec", "web", "--", "sh", "-c", script]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", command.id());
        assert!(wait_for(|| std::fs::read_to_string(&children).is_ok_and(|pids| !pids.is_empty())));
        std::thread::sleep(time_to_begin);
        leaving.let_go();
        let output = command.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {error}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
        assert_ne!(info(&machine, "web")["pid"], before);
    }
    assert_eq!(machine.spark(&["exec", "web", "cat", "/begun"]).ok(), "begun\nbegun\n");
}
