//! Several commands on one name at the same time, and makers that are killed.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::bundle::{Host, cgroups};
use crate::common::wait_for;

/// Starts a command whose streams no container keeps open. What it says goes to a file of that name.
fn begin(host: &Host, args: &[&str], said: &str) -> Child {
    let said = std::fs::File::create(host.dir().join(said)).unwrap();
    host.command(args).stdout(Stdio::null()).stderr(said).spawn().unwrap()
}

fn said(host: &Host, by: &str) -> String {
    std::fs::read_to_string(host.dir().join(by)).unwrap()
}

/// What is in the directory of the containers.
fn entries(host: &Host) -> Vec<String> {
    let entries = std::fs::read_dir(host.run().join("containers")).unwrap().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

/// Lets a hook go on that waits still, so that a test that fails does not wait for it.
struct Held(std::path::PathBuf);

impl Drop for Held {
    fn drop(&mut self) {
        let go = std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&self.0);
        let _ = go.map(|mut go| go.write_all(b"\n"));
    }
}

/// A `createRuntime` hook that says on one fifo that it is there, and goes on when it hears from another.
fn hold(host: &Host) -> Held {
    for name in ["there", "go"] {
        let path = host.dir().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }
    let script = format!("echo >{0}/there; read line <{0}/go", host.dir().display());
    host.configure(&["sleep", "1000"], |c| {
        c["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    });
    Held(host.dir().join("go"))
}

fn wait_there(host: &Host) {
    std::fs::File::open(host.dir().join("there")).unwrap().read_to_end(&mut Vec::new()).unwrap();
}

fn go(host: &Host) {
    std::fs::File::options().write(true).open(host.dir().join("go")).unwrap().write_all(b"\n").unwrap();
}

#[test]
fn of_several_that_create_one_name_exactly_one_does_and_the_others_hear_that_it_exists() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    for round in 0..5 {
        let names = ["one", "two", "three"];
        let makers = names.map(|name| (begin(&host, &["create", "raced"], name), name));
        let statuses = makers.map(|(mut maker, name)| (maker.wait().unwrap(), name));
        let lost: Vec<String> =
            statuses.iter().filter(|(s, _)| !s.success()).map(|(_, name)| said(&host, name)).collect();
        assert_eq!(lost.len(), 2, "round {round}: {lost:?}");
        assert!(lost.iter().all(|said| said.contains("exists already")), "round {round}: {lost:?}");
        assert_eq!(entries(&host), ["raced"]);
        host.oci(&["start", "raced"]).ok();
        assert_eq!(host.state("raced")["status"], "running");
        host.oci(&["delete", "--force", "raced"]).ok();
        assert!(cgroups("raced").is_empty());
    }
}

#[test]
fn one_that_is_being_made_has_its_name_and_others_are_made_meanwhile() {
    let host = Host::new();
    let _held = hold(&host);
    let mut first = begin(&host, &["create", "first"], "first");
    wait_there(&host);
    let mut second = begin(&host, &["create", "first"], "second");
    // It has read its configuration by then.
    assert!(wait_for(|| waits_for_a_lock(&second, "first")));
    let refused = host.oci(&["delete", "first"]);
    assert_eq!(refused.status(), 1);
    assert!(refused.stderr().contains("it is creating"), "{}", refused.stderr());
    host.configure(&["sleep", "1000"], |_| {});
    host.start("other");
    assert_eq!(host.oci(&["list", "-q"]).ok(), "first\nother\n");
    assert!(second.try_wait().unwrap().is_none(), "{}", said(&host, "second"));
    go(&host);
    assert!(first.wait().unwrap().success(), "{}", said(&host, "first"));
    assert!(!second.wait().unwrap().success());
    assert!(said(&host, "second").contains("exists already"), "{}", said(&host, "second"));
    assert_eq!(host.state("first")["status"], "created");
}

#[test]
fn one_that_is_being_made_is_deleted_when_it_is_there() {
    let host = Host::new();
    let _held = hold(&host);
    let mut create = begin(&host, &["create", "doomed"], "create");
    wait_there(&host);
    let mut delete = begin(&host, &["delete", "--force", "doomed"], "delete");
    // It waits in turn: what is at work is not pulled from under anybody's feet.
    assert!(wait_for(|| waits_for_a_lock(&delete, "doomed")));
    assert!(host.state("doomed")["status"] == "creating");
    go(&host);
    assert!(create.wait().unwrap().success(), "{}", said(&host, "create"));
    assert!(delete.wait().unwrap().success(), "{}", said(&host, "delete"));
    assert!(entries(&host).is_empty());
    assert!(cgroups("doomed").is_empty());
}

/// Whether a command has opened the directory that is locked by the maker.
fn waits_for_a_lock(command: &Child, id: &str) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", command.id())).into_iter().flatten().flatten();
    fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|path| path.ends_with(format!(".new-{id}")))
}

#[test]
fn what_a_create_that_was_killed_has_left_goes_with_the_next_list_create_or_delete() {
    for next in [&["list", "-q"][..], &["create", "killed"], &["delete", "killed"]] {
        let host = Host::new();
        let _held = hold(&host);
        let mut create = begin(&host, &["create", "killed"], "create");
        wait_there(&host);
        create.kill().unwrap();
        create.wait().unwrap();
        // The hook's shell outlives it, and what libcontainer forked holds the lock a moment longer.
        go(&host);
        let made = host.run().join("containers/.new-killed");
        assert!(wait_for(|| matches!(sparks::sys::flock::try_lock_dir(&made), Ok(Some(_)))));
        assert!(entries(&host).contains(&".new-killed".to_owned()));
        assert!(!cgroups("killed").is_empty());
        host.configure(&["sleep", "1000"], |_| {});
        let status = host.quietly(next);
        match next[0] {
            "create" => {
                assert_eq!(status, 0);
                assert_eq!(entries(&host), ["killed"]);
                host.oci(&["start", "killed"]).ok();
                continue;
            }
            "delete" => assert_eq!(status, 1),
            _ => assert_eq!(status, 0),
        }
        assert!(entries(&host).is_empty(), "{next:?}: {:?}", entries(&host));
        assert!(cgroups("killed").is_empty(), "{next:?}");
    }
}
