//! What a start makes ends with the command that starts, however that ends, and has nothing of its caller's.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Machine, is_running, wait_for};

pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

pub(crate) fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

pub(crate) fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// A machine with a spark that does not run.
fn machine() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    machine
}

/// A start under way, with a pipe for its output.
fn resume(machine: &Machine, fault: &str) -> Child {
    let mut command = machine.command(&["resume", "web"]);
    command.env("SPARK_FAULT", fault).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads what a killed command wrote, to the end: as long as anybody has the other side, there is none.
#[track_caller]
pub(crate) fn output_ends(mut child: Child) {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    for stream in [out.as_raw_fd(), err.as_raw_fd()] {
        // SAFETY: fcntl(2) on a descriptor that is open.
        #[allow(unsafe_code)]
        unsafe {
            libc::fcntl(stream, libc::F_SETFL, libc::O_NONBLOCK);
        }
    }
    let mut text = Vec::new();
    let ends = |stream: &mut dyn Read, text: &mut Vec<u8>| stream.read_to_end(text).is_ok();
    assert!(
        wait_for(|| ends(&mut out, &mut text) && ends(&mut err, &mut text)),
        "somebody has the pipe still"
    );
    child.wait().unwrap();
}

/// Whether what libcontainer made of a helper is there still: who is of its session or its group.
fn left(helper: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let group = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(2)?.parse::<i32>().ok())
    };
    pids.filter(|pid| is_running(*pid) && group(*pid) == Some(helper)).collect()
}

/// In the middle of a start, when libcontainer has a process between the helper and the container's.
#[test]
fn a_start_that_is_killed_with_its_helper_leaves_no_process_and_no_pipe_open() {
    let machine = machine();
    let mut met = 0;
    for _ in 0..40 {
        let mut child = resume(&machine, "none=none");
        let spark = child.id() as i32;
        let mut seen = None;
        while seen.is_none() && child.try_wait().unwrap().is_none() {
            let helpers = children(spark);
            let mut made =
                helpers.iter().flat_map(|helper| children(*helper).into_iter().map(|pid| (*helper, pid)));
            seen = made.find(|(_, pid)| comm(*pid).starts_with("youki"));
            if let Some((helper, _)) = seen {
                kill(spark);
                kill(helper);
            }
        }
        output_ends(child);
        if let Some((helper, pid)) = seen {
            met += 1;
            assert!(wait_for(|| !is_running(pid) && left(helper).is_empty()), "{pid} {}", comm(pid));
        }
        machine.spark(&["stop", "-t", "0", "web"]).ok();
    }
    assert!(met > 5, "the moment was met {met} times of 40");
}

/// Stops the helper where the container is made and waits for its start.
fn created(machine: &Machine) -> (Child, i32, i32) {
    let child = resume(machine, "start.created=stop");
    let mut found = None;
    assert!(wait_for(|| {
        for helper in children(child.id() as i32) {
            let stat = std::fs::read_to_string(format!("/proc/{helper}/stat")).unwrap_or_default();
            if stat.contains(") T ") {
                found = children(helper)
                    .into_iter()
                    .find(|pid| comm(*pid).starts_with("youki"))
                    .map(|i| (helper, i));
            }
        }
        found.is_some()
    }));
    let (helper, init) = found.unwrap();
    (child, helper, init)
}

#[test]
fn a_container_that_waits_for_its_start_ends_with_the_helper_or_the_command() {
    let machine = machine();
    for helper_too in [true, false] {
        let (child, helper, init) = created(&machine);
        kill(child.id() as i32);
        if helper_too {
            kill(helper);
        }
        output_ends(child);
        assert!(wait_for(|| !is_running(init) && !is_running(helper)), "with the helper: {helper_too}");
        machine.spark(&["exec", "web", "--", "true"]).ok();
        machine.spark(&["stop", "-t", "0", "web"]).ok();
    }
    // The helper alone: the command says so, and the next one works.
    let (mut child, helper, init) = created(&machine);
    kill(helper);
    assert!(!child.wait().unwrap().success());
    assert!(wait_for(|| !is_running(init)));
    machine.spark(&["exec", "web", "--", "true"]).ok();
}

#[test]
fn a_helper_and_what_it_makes_have_none_of_the_callers_descriptors() {
    let machine = machine();
    let (child, helper, init) = created(&machine);
    let links = |pid: i32| -> Vec<PathBuf> {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect()
    };
    let callers = ["stdout", "stderr"].map(|stream| {
        let fd = if stream == "stdout" { 1 } else { 2 };
        std::fs::read_link(format!("/proc/{}/fd/{fd}", child.id())).unwrap()
    });
    for pid in [helper, init] {
        let links = links(pid);
        assert!(links.contains(&Path::new("/dev/null").to_owned()), "{links:?}");
        assert!(callers.iter().all(|pipe| !links.contains(pipe)), "{pid}: {links:?}");
    }
    kill(child.id() as i32);
    output_ends(child);
    assert!(wait_for(|| !is_running(helper)));
}

/// libcontainer empties its record and then writes it.
#[test]
fn a_record_of_libcontainer_that_a_kill_emptied_is_made_anew() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    let info = machine.spark(&["info", "web", "--json"]).json();
    let dir = machine.place().oci().join(info["oci"]["id"].as_str().unwrap());
    let whole = || {
        let text = std::fs::read(dir.join("state.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).ok()
    };
    let before = whole().unwrap();
    let state = || machine.spark(&["info", "web", "--json"]).json()["state"].clone();
    for damage in ["", "{\"ociVersion\":\"1.0", "[]"] {
        for file in ["state.json", "youki_config.json"] {
            std::fs::write(dir.join(file), damage).unwrap();
            machine.spark(&["pause", "web"]).ok();
            assert_eq!(state(), "paused");
            std::fs::write(dir.join(file), damage).unwrap();
            machine.spark(&["resume", "web"]).ok();
            assert_eq!(state(), "running");
            std::fs::write(dir.join(file), damage).unwrap();
            let found = machine.spark(&["gc", "--json"]).json();
            assert_eq!(found[0]["what"], "half-written container record", "{found}");
            assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
            for key in ["id", "pid", "bundle", "annotations", "creator", "status", "ociVersion"] {
                assert_eq!(whole().unwrap()[key], before[key], "{key}");
            }
            assert_eq!(machine.spark(&["gc", "--json"]).json(), serde_json::json!([]));
        }
    }
    std::fs::write(dir.join("state.json"), "").unwrap();
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert!(!dir.exists());
}
