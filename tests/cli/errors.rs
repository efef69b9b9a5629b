//! Every code of the contract, given for real.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{Machine, Output, cgroups, wait_for};

fn machine() -> Machine {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine
}

/// The error as a program reads it: one line, on standard error, with nothing on standard output.
#[track_caller]
fn error(output: &Output) -> Value {
    assert_ne!(output.status(), 0);
    assert_eq!(output.stdout(), "");
    let line = output.stderr();
    assert_eq!(line.lines().count(), 1, "{line}");
    let error =
        serde_json::from_str::<Value>(&line).unwrap_or_else(|e| panic!("{e}: {line}"))["error"].take();
    let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["code", "message", "causes", "hint"]);
    error
}

/// A command that has to fail with a code, and advice that holds these words.
#[track_caller]
fn fails(output: &Output, code: &str, hint: &str) {
    let error = error(output);
    assert_eq!(error["code"], code, "{error}");
    let said = error["hint"].as_str().unwrap_or_default();
    assert!(said.contains(hint), "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.ends_with('.') && !message.starts_with("error"), "{message}");
}

#[test]
fn usage() {
    let machine = Machine::without_pool();
    let spark = |args: &[&str]| machine.spark(args);
    fails(&spark(&["--json", "lsit"]), "usage", "did you mean `list`?");
    fails(&spark(&["--json", "create", "web", "--memroy", "1G"]), "usage", "did you mean `--memory`?");
    fails(&spark(&["--json", "base", "improt", "a", "b"]), "usage", "did you mean `import`?");
    fails(&spark(&["--json", "stop"]), "usage", "spark stop");
    fails(&spark(&["--json", "create", "-"]), "usage", "spark exec -");
    fails(&spark(&["--json", "exec", "-d", "-", "true"]), "usage", "spark create NAME");
    fails(&spark(&["--json", "pool", "init", "--size", "1M"]), "usage", "at least 256M");
}

#[test]
fn not_found() {
    let machine = machine();
    let spark = |args: &[&str]| machine.spark(&[args, &["--json"]].concat());
    spark(&["create", "web", "--no-start"]).ok();
    for verb in ["info", "stop", "resume", "pause", "delete", "logs"] {
        let output = spark(&[verb, "wbe"]);
        let stderr = output.stderr();
        assert!(
            stderr.contains(r#""code":"not_found""#) && stderr.contains("did you mean `web`?"),
            "{verb}: {stderr}"
        );
        assert_eq!(output.status(), 1, "{verb}");
    }
    fails(&spark(&["info", "wbe"]), "not_found", "did you mean `web`?");
    fails(&spark(&["info", "elsewhere/web"]), "not_found", "spark list");
    fails(&spark(&["rename", "wbe", "x"]), "not_found", "did you mean `web`?");
    fails(&spark(&["console", "wbe"]), "not_found", "did you mean `web`?");
    fails(&machine.spark(&["--json", "exec", "wbe", "true"]), "not_found", "did you mean `web`?");
    fails(&spark(&["info", "nothing-like-it"]), "not_found", "spark list");
    fails(&spark(&["undelete", "web"]), "not_found", "spark list --deleted");
    fails(&spark(&["base", "info", "minimla"]), "not_found", "did you mean `minimal`?");
    fails(&spark(&["create", "x", "--base", "minimla"]), "not_found", "did you mean `minimal`?");
    fails(&spark(&["base", "default", "nope"]), "not_found", "spark base list");
    fails(&spark(&["project", "info", "defualt"]), "not_found", "did you mean `default`?");
    fails(&spark(&["create", "x", "--mount", "type=bind,src=/does/not/exist,dst=/x"]), "not_found", "");
    fails(&machine.spark(&["--json", "exec", "web", "nope"]), "not_found", "");
}

#[test]
fn exists() {
    let machine = machine();
    let spark = |args: &[&str]| machine.spark(&[args, &["--json"]].concat());
    for name in ["web", "db"] {
        spark(&["create", name, "--no-start"]).ok();
    }
    fails(&spark(&["create", "web"]), "exists", "spark delete web");
    fails(&spark(&["create", "web", "--dry-run"]), "exists", "spark delete web");
    fails(&spark(&["rename", "web", "db"]), "exists", "spark delete db");
    fails(&spark(&["base", "bootstrap", "minimal"]), "exists", "choose another name");
}

#[test]
fn wrong_state() {
    let machine = machine();
    let spark = |args: &[&str]| machine.spark(&[args, &["--json"]].concat());
    spark(&["create", "web"]).ok();
    let told = |output: &Output, hint: &str| {
        let stderr = output.stderr();
        assert!(stderr.contains(r#""code":"wrong_state""#) && stderr.contains(hint), "{stderr}");
        assert_eq!(output.status(), 1);
    };
    told(&spark(&["delete", "web"]), "spark delete -f web");
    spark(&["stop", "web", "-t", "0"]).ok();
    told(&spark(&["pause", "web"]), "spark resume web");
    told(&spark(&["project", "delete", "default"]), "");
    spark(&["delete", "web"]).ok();
    spark(&["create", "web", "--no-start"]).ok();
    fails(&spark(&["undelete", "web"]), "wrong_state", "spark undelete web --as NEW");
}

/// Somebody else's process, in a cgroup that somebody made below the spark's: it cannot be removed, and is not ours to end.
#[test]
fn busy() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let id = machine.spark(&["info", "web", "--json"]).json()["id"].as_str().unwrap().to_owned();
    let group = cgroups(&id).into_iter().find(|d| d.join("cgroup.procs").exists()).unwrap();
    // What waits for a disk ends when that answers, and not when it is killed.
    let disk = machine.work().join("disk");
    let on_disk = |script: &str| {
        let done = Command::new("sh").args(["-ec", script, "sh"]).arg(&disk).status().unwrap();
        assert!(done.success(), "{script}");
    };
    on_disk(
        "mkdir $1; truncate -s 16M $1.image; mkfs.ext4 -q $1.image; mount -o loop $1.image $1; fsfreeze -f $1",
    );
    let mut theirs = Command::new("touch").arg(disk.join("file")).spawn().unwrap();
    let stat = format!("/proc/{}/stat", theirs.id());
    let waits = wait_for(|| std::fs::read_to_string(&stat).unwrap().contains(") D "));
    std::fs::write(group.join("cgroup.procs"), theirs.id().to_string()).unwrap();
    let refused = machine.spark(&["--json", "stop", "web", "-t", "0"]);
    on_disk("fsfreeze -u $1");
    theirs.wait().unwrap();
    on_disk("umount $1");
    assert!(waits);
    fails(&refused, "busy", "try again");
    machine.spark(&["stop", "web"]).ok();
}

#[test]
fn invalid_name() {
    let machine = Machine::without_pool();
    let spark = |args: &[&str]| machine.spark(&[args, &["--json"]].concat());
    fails(&spark(&["create", "My_Web"]), "invalid_name", "try `my-web`");
    fails(&spark(&["rename", "web", "web-"]), "invalid_name", "");
    fails(&spark(&["list", "-P", "Shop"]), "invalid_name", "try `shop`");
    fails(&spark(&["info", "Shop/web"]), "invalid_name", "");
    assert_eq!(spark(&["create", "My_Web"]).status(), 2);
    let machine = self::machine();
    fails(&machine.spark(&["base", "bootstrap", "../etc", "--json"]), "invalid_name", "");
}

/// A filesystem of a few megabytes, unmounted again.
struct Small(tempfile::TempDir);

impl Small {
    fn new(mebibytes: u32) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mebibytes}m,mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Small(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::NOFOLLOW);
    }
}

#[test]
fn no_space() {
    let machine = Machine::without_pool();
    let small = Small::new(16);
    let mut command = machine.command(&["--json", "pool", "init"]);
    let output = Output::of("pool init", command.env("SPARK_ROOT", small.0.path()));
    fails(&output, "no_space", "free at least");

    machine.spark(&["pool", "init", "--size", "256M"]).ok();
    let rootfs = machine.work().join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    std::fs::write(rootfs.join("bin/sh"), "").unwrap();
    for i in 0..4 {
        std::fs::write(rootfs.join(i.to_string()), vec![b'x'; 100 << 20]).unwrap();
    }
    fails(&machine.spark(&["--json", "base", "import", "rootfs", "big"]), "no_space", "spark pool grow");
    assert!(machine.staged().is_empty());
    assert_eq!(machine.spark(&["base", "list", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn not_supported() {
    let machine = Machine::new();
    // On a btrfs of somebody's own, a pool is a directory.
    let inner = machine.pool().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let spark = |args: &[&str]| {
        let mut command = machine.command(args);
        Output::of("pool", command.env("SPARK_ROOT", &inner))
    };
    spark(&["pool", "init"]).ok();
    fails(&spark(&["--json", "pool", "grow", "2G"]), "not_supported", "");
}

#[test]
fn host() {
    let machine = Machine::without_pool();
    fails(&machine.spark(&["--json", "pool", "info"]), "host", "spark pool init");
    fails(&machine.spark(&["--json", "create", "x", "--dry-run"]), "host", "spark pool init");
    let machine = Machine::new();
    let mut command = machine.command(&["--json", "base", "bootstrap", "bookworm"]);
    let output = Output::of("base bootstrap", command.env("PATH", machine.work()));
    fails(&output, "host", "apt-get install mmdebstrap");
}

/// The program where everybody can execute it.
fn public() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("spark");
    std::fs::copy(env!("CARGO_BIN_EXE_spark"), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    (dir, program)
}

#[test]
fn denied() {
    let machine = machine();
    machine.spark(&["create", "web"]).ok();
    let (_dir, program) = public();
    let spark = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).uid(65534).gid(65534).current_dir("/").stdin(Stdio::null());
        command.env("SPARK_ROOT", machine.place().root).env("SPARK_RUN", machine.place().run);
        Output::of(&args.join(" "), &mut command)
    };
    for line in [
        "list",
        "info web",
        "create x",
        "pool init",
        "pool info",
        "pool grow 2G",
        "base list",
        "base bootstrap minimal",
        "project list",
        "gc",
        "exec web true",
        "exec - true",
        "console web",
        "stop web",
        "delete -f web",
        "logs web",
    ] {
        let words: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
        let output = spark(&words);
        let stderr = output.stderr();
        assert!(
            stderr.contains(r#""code":"denied""#) && stderr.contains("spark needs root"),
            "{line}: {stderr}"
        );
        assert!(stderr.contains("`sudo spark"), "{line}: {stderr}");
        let failed = if line.starts_with("exec") || line.starts_with("console") { 125 } else { 1 };
        assert_eq!(output.status(), failed, "{line}");
    }
    // What needs no rights works, and doctor says what is missing.
    spark(&["version"]).ok();
    spark(&["help", "exec"]).ok();
    let doctor = spark(&["doctor"]);
    assert_eq!(doctor.status(), 1);
    assert!(doctor.stdout().contains("FAIL  root") && doctor.stdout().contains("sudo spark doctor"));
    // Where there has never been a pool, too.
    let mut command = Command::new(&program);
    command.args(["--json", "create", "x"]).uid(65534).gid(65534).current_dir("/");
    command.env("SPARK_ROOT", "/does-not-exist/spark").env("SPARK_RUN", machine.place().run);
    fails(&Output::of("create x", &mut command), "denied", "sudo");
}

#[test]
fn corrupt() {
    let machine = machine();
    let spark = |args: &[&str]| machine.spark(&[args, &["--json"]].concat());
    spark(&["create", "web", "--no-start"]).ok();
    let record = machine.pool().join("projects/default/sparks/web/spark.json");
    std::fs::write(&record, "{").unwrap();
    fails(&spark(&["info", "web"]), "corrupt", "");
    fails(&machine.spark(&["--json", "exec", "web", "true"]), "corrupt", "");
    let list = spark(&["list"]).json();
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&"web".into(), &"broken".into()));
    assert!(machine.spark(&["list"]).ok().contains("BROKEN"));
    spark(&["delete", "web"]).ok();

    spark(&["create", "web", "--no-start"]).ok();
    std::fs::write(&record, r#"{"version": 999}"#).unwrap();
    fails(&spark(&["info", "web"]), "corrupt", "upgrade");

    std::fs::write(machine.pool().join("bases/minimal/base.json"), "{").unwrap();
    fails(&spark(&["create", "x"]), "corrupt", "spark base delete minimal");
}

#[test]
fn image() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("junk"), vec![b'x'; 4096]).unwrap();
    fails(&machine.spark(&["--json", "base", "import", "junk", "b"]), "image", "");
    fails(&machine.spark(&["--json", "base", "import", "-", "b"]), "image", "");
    assert!(machine.staged().is_empty());
}

#[test]
fn internal() {
    let machine = Machine::without_pool();
    let error = error(&machine.spark(&["--json", "pool", "init", "--device", "/dev/null"]));
    assert_eq!(error["code"], "internal", "{error}");
    assert!(error["message"].as_str().unwrap().starts_with("mkfs.btrfs failed: "), "{error}");
}

#[test]
fn as_text_an_error_has_its_causes_and_its_hint_on_lines_of_their_own() {
    let machine = machine();
    let output = machine.spark(&["info", "minimla"]);
    assert_eq!(
        output.stderr(),
        "error: spark `minimla` does not exist in project `default`\n\
         hint: list this project's sparks with `spark list`\n"
    );
    let output = machine.spark(&["create", "x", "--mount", "type=bind,src=/nowhere,dst=/x"]);
    assert_eq!(
        output.stderr(),
        "error: cannot mount /nowhere\ncaused by: No such file or directory (os error 2)\n"
    );
}

#[test]
fn one_failure_of_several_is_told_and_the_others_are_done() {
    let machine = machine();
    for name in ["a", "b"] {
        machine.spark(&["create", name]).ok();
    }
    let output = machine.spark(&["stop", "-t", "0", "a", "nope", "b", "nope2"]);
    assert_eq!(output.status(), 1);
    assert_eq!(output.stderr().matches("error: ").count(), 2, "{}", output.stderr());
    let list = machine.spark(&["list", "--json"]).json();
    assert!(list.as_array().unwrap().iter().all(|s| s["state"] == "stopped"), "{list}");
}
