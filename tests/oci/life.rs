//! The life of a container, and what is refused in it.

use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::{Host, cgroups};
use crate::common::wait_for;

const SLEEP: &[&str] = &["sleep", "1000"];

#[test]
fn a_container_is_created_started_ended_and_deleted() {
    let host = Host::new();
    host.configure(SLEEP, |c| c["annotations"] = json!({"a": "b"}));
    let pid_file = host.dir().join("pid");
    assert_eq!(host.quietly(&["create", "--pid-file", pid_file.to_str().unwrap(), "c1"]), 0);
    let state = host.state("c1");
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("c1")));
    assert_eq!(state["bundle"], host.bundle().to_str().unwrap());
    assert_eq!(state["annotations"], json!({"a": "b"}));
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    host.oci(&["start", "c1"]).ok();
    assert_eq!(host.state("c1")["status"], "running");
    let list: Value = serde_json::from_str(&host.oci(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&json!("c1"), &json!("running")));

    host.oci(&["kill", "c1", "KILL"]).ok();
    assert!(wait_for(|| host.state("c1")["status"] == "stopped"));
    assert!(host.state("c1").get("pid").is_none());
    host.oci(&["delete", "c1"]).ok();
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
    assert!(cgroups("c1").is_empty());
}

#[test]
fn what_its_state_does_not_allow_is_refused() {
    let host = Host::new();
    host.configure(SLEEP, |_| {});
    host.start("c");
    let refused = |args: &[&str], words: &str| {
        let out = host.oci(args);
        // runc's, where 1 could be the command's own.
        let status = if args[0] == "exec" { 255 } else { 1 };
        assert_eq!(out.status(), status, "{args:?}");
        assert!(out.stderr().contains(words), "{args:?}: {}", out.stderr());
    };
    refused(&["start", "c"], "it is running");
    refused(&["create", "c"], "exists already");
    refused(&["delete", "c"], "it is running");
    refused(&["resume", "c"], "it is running");
    refused(&["kill", "c", "NOPE"], "is no signal");
    host.oci(&["pause", "c"]).ok();
    assert_eq!(host.state("c")["status"], "paused");
    refused(&["exec", "c", "true"], "it is paused");
    refused(&["pause", "c"], "it is paused");
    host.oci(&["resume", "c"]).ok();
    host.oci(&["kill", "c", "9"]).ok();
    assert!(wait_for(|| host.state("c")["status"] == "stopped"));
    // What containerd and podman look for.
    refused(&["kill", "c", "TERM"], "container not running");
    refused(&["exec", "c", "true"], "it is stopped");
    refused(&["start", "c"], "it is stopped");
    host.oci(&["delete", "c"]).ok();
    for verb in ["state", "start", "delete", "pause", "resume", "kill"] {
        refused(&[verb, "c"], "container `c` does not exist");
    }
    host.oci(&["delete", "--force", "c"]).ok();
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let host = Host::new();
    let pid_file = host.dir().join("pid");
    let create = ["create", "--pid-file", pid_file.to_str().unwrap(), "failing"];
    host.configure(&["nosuch"], |_| {});
    let out = host.oci(&create);
    assert_eq!(out.status(), 1);
    assert!(out.stderr().contains("executable file not found in $PATH"), "{}", out.stderr());
    host.configure(SLEEP, |c| c["process"]["cwd"] = json!("/nosuch"));
    assert_eq!(host.oci(&create).status(), 1);
    host.configure(SLEEP, |c| c["mounts"][0]["source"] = json!(7));
    assert_eq!(host.oci(&create).status(), 1);
    host.configure(SLEEP, |c| c["root"]["path"] = json!("nosuch"));
    let out = host.oci(&create);
    let said = format!("cannot find the root filesystem {}/nosuch", host.bundle().display());
    assert!(out.status() == 1 && out.stderr().contains(&said), "{}", out.stderr());
    // It is made, and then its pid cannot be told.
    host.configure(SLEEP, |_| {});
    assert_eq!(host.quietly(&["create", "--pid-file", "/proc/nosuch/pid", "failing"]), 1);
    assert!(!pid_file.exists());
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
    assert_eq!(std::fs::read_dir(host.run().join("containers")).unwrap().count(), 0);
    assert!(cgroups("failing").is_empty());
}

#[test]
fn hooks_run_in_order_and_know_the_bundle() {
    let host = Host::new();
    let log = host.out("log");
    let hook = |name: &str, at: &Path| {
        let script = format!(
            "echo {name} $(tr -d '\\n' | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/') >>{}",
            at.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    host.configure(&["true"], |c| {
        let inside = Path::new("/out/log");
        c["hooks"] = json!({
            "prestart": hook("prestart", &log),
            "createRuntime": hook("createRuntime", &log),
            "createContainer": hook("createContainer", &log),
            "startContainer": hook("startContainer", inside),
            "poststart": hook("poststart", &log),
            "poststop": hook("poststop", &log),
        });
    });
    host.start("c");
    assert!(wait_for(|| host.state("c")["status"] == "stopped"));
    host.oci(&["delete", "c"]).ok();
    let bundle = host.bundle();
    let lines = std::fs::read_to_string(&log).unwrap();
    let mut names = Vec::new();
    for line in lines.lines() {
        let (name, where_) = line.split_once(' ').unwrap();
        assert_eq!(Path::new(where_), bundle, "{line}");
        names.push(name);
    }
    // The program starts while poststart hooks run, after startContainer was done or not.
    names.sort_by_key(|n| {
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
            .iter()
            .position(|o| o == n)
    });
    assert_eq!(
        names,
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    );
    assert!(
        lines.starts_with("prestart") && lines.trim_end().lines().last().unwrap().starts_with("poststop")
    );
}

/// Where mounts are made before, this process is in a mount namespace of its own, and its hooks are not.
#[test]
fn hooks_beside_the_container_are_in_the_callers_mount_namespace() {
    let host = Host::new();
    let log = host.dir().join("namespaces");
    let script = format!("echo $(readlink /proc/self/ns/mnt) $1 $HOW >>{}", log.display());
    let hook =
        json!([{"path": "/bin/sh", "args": ["other-name", "-c", script, "sh", "-x"], "env": ["HOW=so"]}]);
    host.configure(&["true"], |c| {
        let mount =
            json!({"destination": "/out", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
        c["mounts"].as_array_mut().unwrap().push(mount);
        c["hooks"] = json!({"prestart": hook, "createRuntime": hook, "poststart": hook});
    });
    host.oci(&["run", "c"]).ok();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), format!("{} -x so\n", own.display()).repeat(3));
    // Nothing of it is left on the host.
    assert_eq!(std::fs::read_dir(host.run().join("stage")).unwrap().count(), 0);
}

#[test]
fn a_pidfd_of_what_was_made_goes_to_whoever_asks_for_it() {
    use std::os::fd::{AsFd, AsRawFd};
    let host = Host::new();
    host.configure(SLEEP, |_| {});
    let socket = host.dir().join("pidfd");
    let listener = sparks::sys::net::listen_unix(&socket).unwrap();
    let received = || {
        let fd = sparks::sys::net::receive_descriptor(listener.as_fd()).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        info.lines().find_map(|line| line.strip_prefix("Pid:\t")).unwrap().parse::<i32>().unwrap()
    };
    let socket = socket.to_str().unwrap();
    assert_eq!(host.quietly(&["create", "--no-mount-fallback", "--pidfd-socket", socket, "c"]), 0);
    assert_eq!(received(), host.pid("c"));
    host.oci(&["start", "c"]).ok();
    let pid_file = host.dir().join("pid");
    let exec = [
        "exec",
        "-d",
        "--pidfd-socket",
        socket,
        "--pid-file",
        pid_file.to_str().unwrap(),
        "c",
        "sleep",
        "1000",
    ];
    assert_eq!(host.quietly(&exec), 0);
    assert_eq!(received().to_string(), std::fs::read_to_string(&pid_file).unwrap());
    // Where nobody listens, nothing is left.
    assert_eq!(host.quietly(&["create", "--pidfd-socket", "/nosuch/socket", "d"]), 1);
    assert_eq!(host.oci(&["list", "-q"]).ok(), "c\n");
}

#[test]
fn real_time_signals_reach_the_container() {
    let host = Host::new();
    let script =
        "trap 'echo got 37 >/out/said; exit 7' 37; echo ready >/out/said; while :; do sleep 0.05; done";
    host.configure(&["sh", "-c", script], |_| {});
    let said = |text: &str| wait_for(|| std::fs::read_to_string(host.out("said")).is_ok_and(|t| t == text));
    host.start("c");
    assert!(said("ready\n"));
    host.oci(&["kill", "c", "SIGRTMIN+3"]).ok();
    assert!(said("got 37\n"));
    host.oci(&["delete", "--force", "c"]).ok();
    // One that the runtime itself gets is passed on.
    std::fs::remove_file(host.out("said")).unwrap();
    let mut run = host.command(&["run", "d"]).spawn().unwrap();
    assert!(said("ready\n"));
    std::process::Command::new("kill").args(["-37", &run.id().to_string()]).status().unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(7));
    assert!(said("got 37\n"));
}

/// podman gives `create` and `start` two different environments.
#[test]
fn the_default_root_does_not_depend_on_the_environment() {
    let host = Host::new();
    host.configure(SLEEP, |_| {});
    let id = format!("default-root-{}", std::process::id());
    let was_there = Path::new("/run/spark/containers").exists();
    let oci = |run: Option<&Path>, args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_spark-oci"));
        command.args(args).arg(&id).current_dir(host.bundle()).env_remove("SPARK_RUN");
        command.envs(run.map(|run| ("SPARK_RUN", run)));
        let null = std::process::Stdio::null;
        command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success()
    };
    assert!(oci(Some(host.run()), &["create"]));
    let started = oci(None, &["start"]);
    let state = oci(Some(&host.run().join("other")), &["state"]);
    let deleted = oci(None, &["delete", "--force"]);
    if !was_there {
        // Where others came meanwhile, they stay.
        for dir in ["/run/spark/containers", "/run/spark"] {
            let _ = std::fs::remove_dir(dir);
        }
    }
    assert!(started && state && deleted, "{started} {state} {deleted}");
}

#[test]
fn in_a_chroot_that_is_no_mount_point_the_error_says_so() {
    let host = Host::new();
    host.configure(SLEEP, |_| {});
    let script = r#"
        mkdir $0/root; cd $0/root
        for dir in usr proc sys run dev etc; do mkdir $dir; mount --rbind /$dir $dir; done
        for dir in bin sbin lib lib64; do ln -s usr/$dir $dir; done
        mkdir bundle; mount --rbind $1 bundle; touch oci; mount --bind $2 oci
        exec chroot . /oci --root /run/nosuch-root --log /dev/null create --bundle /bundle c
    "#;
    let oci = env!("CARGO_BIN_EXE_spark-oci");
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-ec", script]).arg(host.dir()).arg(host.bundle()).arg(oci);
    let out = crate::common::Output::of("chroot", command.env("SPARK_RUN", host.run()));
    let _ = std::fs::remove_dir("/run/nosuch-root");
    assert!(out.stderr().contains("`/` is not a mount point"), "{}", out.stderr());
    assert!(out.stderr().contains("mount --bind DIR DIR"), "{}", out.stderr());
}

#[test]
fn a_poststop_hook_that_fails_is_told_of_and_everything_is_gone() {
    let host = Host::new();
    host.configure(&["true"], |c| {
        c["hooks"] = json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]});
    });
    host.start("c");
    assert!(wait_for(|| host.state("c")["status"] == "stopped"));
    assert_eq!(host.oci(&["delete", "c"]).status(), 1);
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
}

#[test]
fn a_container_in_the_foreground_gives_its_status_and_is_gone() {
    let host = Host::new();
    host.configure(&["sh", "-c", "echo out; echo err >/dev/stderr; exit 7"], |_| {});
    let out = host.oci(&["run", "c"]);
    assert_eq!((out.status(), out.stdout().as_str(), out.stderr().as_str()), (7, "out\n", "err\n"));
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
    assert_eq!(host.oci(&["run", "--keep", "c"]).status(), 7);
    assert_eq!(host.state("c")["status"], "stopped");
    host.oci(&["delete", "c"]).ok();
    host.configure(SLEEP, |_| {});
    assert_eq!(host.quietly(&["run", "--detach", "c"]), 0);
    assert_eq!(host.state("c")["status"], "running");
}

#[test]
fn a_container_in_the_foreground_has_the_callers_terminal() {
    let host = Host::new();
    host.configure(&["sh", "-c", "tty; ls -l /dev/console | cut -c1; stty size"], |c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = json!({"height": 11, "width": 22});
    });
    let oci = format!("{} --root {}", env!("CARGO_BIN_EXE_spark-oci"), host.root().display());
    let line = format!("stty rows 33 cols 44; exec {oci} run c");
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).current_dir(host.bundle()).env("SPARK_RUN", host.run());
    // At the end of its input script(1) types something, and where that is echoed is a matter of time.
    let (input, _keyboard) = std::io::pipe().unwrap();
    let out = script.stdin(input).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).replace('\r', "");
    assert!(text.contains("/dev/pts/0\nc\n"), "{text:?}");
    assert!(out.status.success());
}

/// What libcontainer's processes say goes into the error, and no line of theirs beside it.
#[test]
fn a_failure_is_one_error_that_has_the_reason() {
    let host = Host::new();
    host.configure(&["true"], |c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/x", "type": "nosuchfs", "source": "none"}));
    });
    let failed = host.oci(&["create", "odd"]);
    let said = failed.stderr();
    assert!(said.starts_with("error: ") && said.contains("nosuchfs") && said.contains("ENODEV"), "{said}");
    assert!(said.lines().skip(1).all(|line| line.starts_with("hint: ")), "{said}");
    host.configure(&["/bin/true"], |_| {});
    assert_eq!(host.oci(&["run", "even"]).stderr(), "");
}
