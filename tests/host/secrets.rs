//! Secrets in sparks: how they get there, who wins, what follows a change, and what happens without them.

use std::process::Stdio;

use serde_json::json;

use crate::common::vault::Vault;
use crate::common::{Machine, Output, wait_for};

/// Runs `spark` with something to read, and variables of the caller's.
fn spark(machine: &Machine, args: &[&str], input: &str, env: &[(&str, &str)]) -> Output {
    let file = machine.work().join("input");
    std::fs::write(&file, input).unwrap();
    let mut command = machine.command(args);
    command.envs(env.iter().copied()).stdin(std::fs::File::open(&file).unwrap());
    let output = Output::of(&args.join(" "), &mut command);
    std::fs::remove_file(file).unwrap();
    output
}

fn inside(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

#[test]
fn a_secret_is_a_file_and_a_variable_unless_one_of_them_is_chosen() {
    let machine = Machine::new().with_base();
    let env = [("A", "one"), ("B", "two\n"), ("C", "three")];
    let args =
        ["create", "web", "--user", "1000:100", "--secret", "BOTH=env://A", "--secret", "FILE:file=env://B"];
    spark(&machine, &[&args[..], &["--secret", "VARIABLE:env=env://C"]].concat(), "", &env).ok();
    let said = inside(
        &machine,
        "web",
        "echo $BOTH.$FILE.$VARIABLE; cd /run/secrets; ls; cat BOTH FILE; stat -c '%a %u %g' FILE",
    );
    assert_eq!(said, "one..three\nBOTH\nFILE\nonetwo\n400 1000 100\n");
    // The variables are any command's, the files its user's.
    let other =
        machine.spark(&["exec", "-u", "1001", "web", "--", "sh", "-c", "echo $BOTH; cat /run/secrets/BOTH"]);
    assert_eq!((other.stdout().as_str(), other.status()), ("one\n", 1));
    let mounts = inside(&machine, "web", "grep /run/secrets /proc/mounts");
    assert!(mounts.starts_with("none /run/secrets tmpfs rw,nosuid,nodev,noexec"), "{mounts}");
    // A variable given to the command wins over the spark's secret, and a secret given to the command over both.
    let said = machine.spark(&["exec", "-e", "BOTH=mine", "web", "--", "sh", "-c", "echo $BOTH"]).ok();
    assert_eq!(said, "mine\n");
    let args = ["exec", "-e", "BOTH=mine", "--secret", "BOTH=env://B", "web", "--", "sh", "-c", "echo $BOTH"];
    assert_eq!(spark(&machine, &args, "", &env).ok(), "two\n");
    spark(&machine, &["--json", "exec", "--secret", "X:file=env://A", "web", "true"], "", &env)
        .fails_with("usage");
}

#[test]
fn values_go_with_the_last_spark_or_project_that_they_were_of() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "-P", "p", "web", "--no-start"]).ok();
    spark(&machine, &["secrets", "set", "--spark", "p/web", "T"], "v", &[]).ok();
    spark(&machine, &["secrets", "set", "-P", "p", "T"], "v", &[]).ok();
    let stored = || std::fs::read_dir(machine.place().root.join("secrets")).unwrap().count();
    machine.spark(&["create", "fork", "--from", "p/web", "--no-start"]).ok();
    machine.spark(&["delete", "p/web"]).ok();
    machine.spark(&["gc"]).ok();
    assert_eq!(stored(), 2, "what is in the trash has them still");
    machine.spark(&["delete", "--now", "fork"]).ok();
    machine.spark(&["gc"]).ok();
    assert_eq!(stored(), 2);
    machine.spark(&["undelete", "-P", "p", "web"]).ok();
    machine.spark(&["delete", "--now", "p/web"]).ok();
    let collected = machine.spark(&["--json", "gc"]).json();
    assert_eq!(collected[0]["what"], "stored secret");
    machine.spark(&["project", "delete", "p"]).ok();
    machine.spark(&["gc"]).ok();
    assert_eq!(stored(), 0);
}

#[test]
fn a_newline_at_the_end_is_the_files_and_not_the_variables() {
    let machine = Machine::new().with_base();
    spark(&machine, &["secrets", "set", "KEY"], "-----BEGIN\nx\n", &[]).ok();
    machine.spark(&["create", "web"]).ok();
    assert_eq!(
        inside(&machine, "web", "printf %s. \"$KEY\"; cat /run/secrets/KEY"),
        "-----BEGIN\nx.-----BEGIN\nx\n"
    );
}

#[test]
fn all_sparks_have_the_projects_secrets_and_a_sparks_own_win() {
    let machine = Machine::new().with_base();
    spark(&machine, &["secrets", "set", "SHARED"], "all", &[]).ok();
    spark(&machine, &["secrets", "set", "TOKEN"], "project", &[]).ok();
    machine.spark(&["create", "web", "--no-start"]).ok();
    machine.spark(&["create", "-P", "other", "foreign"]).ok();
    spark(&machine, &["secrets", "set", "--spark", "web", "TOKEN"], "own", &[]).ok();
    machine.spark(&["create", "app"]).ok();
    assert_eq!(inside(&machine, "web", "echo $SHARED $TOKEN"), "all own\n");
    assert_eq!(inside(&machine, "app", "echo $SHARED $TOKEN"), "all project\n");
    assert_eq!(
        inside(&machine, "other/foreign", "echo .$SHARED; ls /run/secrets 2>/dev/null | wc -l"),
        ".\n0\n"
    );
    let list = machine.spark(&["--json", "secrets", "list", "--spark", "web"]).json();
    assert_eq!(
        list[0],
        json!({"key": "SHARED", "ref": "age://default/SHARED", "as": "both", "of": "project"})
    );
    assert_eq!((&list[1]["of"], list.as_array().unwrap().len()), (&json!("spark"), 2));

    // Without its own it has the project's again. A value goes out of the store with the last who refers to it.
    let store = machine.place().root.join("secrets");
    assert!(store.join("default/TOKEN.age").is_file());
    let id = machine.spark(&["--json", "info", "web"]).json()["id"].as_str().unwrap().to_owned();
    machine.spark(&["secrets", "delete", "--spark", "web", "TOKEN"]).ok();
    assert!(!store.join(&id).exists());
    machine.spark(&["secrets", "refresh", "web"]).ok();
    assert_eq!(inside(&machine, "web", "echo $TOKEN"), "project\n");
    machine.spark(&["secrets", "set", "--spark", "app", "ALIAS", "age://default/TOKEN"]).ok();
    machine.spark(&["secrets", "delete", "TOKEN"]).ok();
    assert!(store.join("default/TOKEN.age").is_file(), "another secret refers to it");
    machine.spark(&["secrets", "delete", "--spark", "app", "ALIAS"]).ok();
    assert!(!store.join("default/TOKEN.age").exists());
    machine.spark(&["--json", "secrets", "delete", "TOKEN"]).fails_with("not_found");
}

#[test]
fn a_fork_takes_references_along_and_gets_the_values_of_its_own_time() {
    let machine = Machine::new().with_base();
    let vault = Vault::new(&machine, json!({"dev": {"db": {"password": "old", "user": "u"}}}));
    let refs = ["--secret", "PW=op://dev/db/password", "--secret", "DBUSER=op://dev/db/user"];
    vault.spark(&machine, &[&["create", "web"], &refs[..]].concat()).ok();
    assert_eq!(vault.calls().len(), 1, "one call for all references");
    vault.change(|state| state["vaults"]["dev"]["db"]["password"] = "new".into());
    vault.spark(&machine, &["fork", "-n", "3", "web", "runner"]).ok();
    assert_eq!(vault.calls().len(), 1, "one call for all forks");
    assert_eq!(inside(&machine, "web", "echo $PW $DBUSER"), "old u\n");
    for runner in ["runner-1", "runner-3"] {
        assert_eq!(inside(&machine, runner, "echo $PW $DBUSER; cat /run/secrets/PW"), "new u\nnew");
    }
    // A base has none, and nothing of the tmpfs.
    machine.spark(&["base", "save", "web", "mine"]).ok();
    machine.spark(&["create", "plain", "--base", "mine"]).ok();
    assert_eq!(inside(&machine, "plain", "echo .$PW; test -e /run/secrets || echo none"), ".\nnone\n");
    assert!(vault.calls().is_empty(), "an exec asks nobody: it reads what was delivered");
}

#[test]
fn a_refresh_replaces_each_file_at_once_and_the_next_command_sees_it() {
    let machine = Machine::new().with_base();
    let value = |letter: &str| letter.repeat(50_000);
    spark(&machine, &["secrets", "set", "TOKEN"], &value("a"), &[]).ok();
    machine.spark(&["create", "web"]).ok();
    // Reads until it is told to stop, and says what it has seen: whole values only.
    let script = "until test -e /stop; do tr -d '\\n' < /run/secrets/TOKEN | md5sum; done | sort | uniq -c > /seen; touch /done";
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", script]).ok();
    for letter in ["b", "a", "b", "a", "b"] {
        spark(&machine, &["secrets", "set", "TOKEN"], &value(letter), &[]).ok();
        machine.spark(&["secrets", "refresh", "web"]).ok();
    }
    inside(&machine, "web", "touch /stop");
    assert!(wait_for(|| machine.spark(&["exec", "web", "--", "test", "-e", "/done"]).status() == 0));
    let seen = inside(&machine, "web", "cat /seen");
    assert!((1..=2).contains(&seen.lines().count()), "a file was neither the old nor the new one:\n{seen}");
    assert_eq!(inside(&machine, "web", "printf %.3s $TOKEN"), "bbb");

    // What goes, goes from the files too; what comes to a spark that had none is there at once.
    machine.spark(&["secrets", "delete", "TOKEN"]).ok();
    machine.spark(&["secrets", "set", "OTHER:env", "file:///etc/hostname"]).ok();
    let refreshed = machine.spark(&["--json", "secrets", "refresh", "web"]).json();
    assert_eq!((&refreshed[0]["secrets"], &refreshed[0]["running"]), (&json!(1), &json!(true)));
    assert_eq!(inside(&machine, "web", "ls -A /run/secrets; echo .$TOKEN; test -n \"$OTHER\""), ".env\n.\n");
    machine.spark(&["create", "late", "-P", "other"]).ok();
    machine.spark(&["secrets", "set", "-P", "other", "LATE", "file:///etc/hostname"]).ok();
    machine.spark(&["secrets", "refresh", "other/late"]).ok();
    inside(&machine, "other/late", "test -n \"$LATE\" && cmp /run/secrets/LATE /run/secrets/LATE");
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(machine.spark(&["--json", "secrets", "refresh", "web"]).json()[0]["running"], json!(false));
}

#[test]
fn without_its_secrets_nothing_is_started_and_nothing_ended() {
    let machine = Machine::new().with_base();
    let missing = ["--secret", "T=env://NOT_SET"];
    for verb in [&["create", "web"][..], &["exec", "-"]] {
        let command: &[&str] = if verb[0] == "exec" { &["--", "true"] } else { &[] };
        let all = [&["--json"], verb, &missing[..], command].concat();
        let said = machine.spark(&all).fails_with("secret");
        assert_eq!(said, "cannot get the secret env://NOT_SET: the variable is not set");
        assert_eq!(machine.spark(&["--json", "list"]).json(), json!([]));
    }
    let env = [("NOW_SET", "x")];
    spark(&machine, &["create", "web", "--secret", "T=env://NOW_SET"], "", &env).ok();
    machine.spark(&["snapshot", "create", "web", "s"]).ok();
    machine.spark(&["--json", "fork", "web", "runner"]).fails_with("secret");
    machine.spark(&["--json", "fork", "-n", "2", "web", "runner"]).fails_with("secret");
    // A restore would have to start it again: it is refused before anything is ended.
    let pid = machine.spark(&["--json", "info", "web"]).json()["pid"].clone();
    machine.spark(&["--json", "snapshot", "restore", "web", "s"]).fails_with("secret");
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["pid"], pid);
    // What runs needs nobody.
    assert_eq!(inside(&machine, "web", "echo $T"), "x\n");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["--json", "resume", "web"]).fails_with("secret");
    let failed = machine.spark(&["exec", "web", "--", "true"]);
    assert_eq!(failed.status(), 125, "{}", failed.stderr());
    assert_eq!(machine.spark(&["--json", "list"]).json().as_array().unwrap().len(), 1);
    assert_eq!(machine.spark(&["--json", "info", "web"]).json()["state"], "stopped");
    assert!(machine.staged().is_empty());
    assert_eq!(spark(&machine, &["exec", "web", "--", "sh", "-c", "echo $T"], "", &env).ok(), "x\n");
}

#[test]
fn what_a_spark_does_to_its_files_deceives_only_itself() {
    let machine = Machine::new().with_base();
    spark(&machine, &["secrets", "set", "T"], "value", &[]).ok();
    machine.spark(&["create", "web"]).ok();
    let broken = [
        "rm -f /run/secrets/T",
        "ln -sf /etc/passwd /run/secrets/T",
        "rm -f /run/secrets/T; mkfifo /run/secrets/T",
        "rm -f /run/secrets/T; mkdir /run/secrets/T",
        "head -c 400000 /dev/zero > /run/secrets/T",
    ];
    for script in broken {
        inside(&machine, "web", &format!("rm -rf /run/secrets/T; {script}"));
        let said = machine.spark(&["--json", "exec", "web", "true"]).fails_with("secret");
        assert!(said.starts_with("the secret T cannot be read"), "{script}: {said}");
        // A directory is not replaced by a file: then the spark has to be started anew.
        if machine.spark(&["secrets", "refresh", "web"]).status() != 0 {
            machine.spark(&["stop", "web"]).ok();
        }
        assert_eq!(inside(&machine, "web", "echo $T"), "value\n");
    }
    inside(&machine, "web", "mv /run /old && mkdir -p /run/secrets && echo mine > /run/secrets/T");
    let said = machine.spark(&["--json", "exec", "web", "true"]).fails_with("secret");
    assert!(said.contains("no longer what was mounted there"), "{said}");
    machine.spark(&["stop", "web"]).ok();
    assert_eq!(inside(&machine, "web", "echo $T"), "value\n");
    // A link where they are to be is refused: it could lead to a data volume, which snapshots reach.
    inside(&machine, "web", "mv /run /older && mkdir /elsewhere && ln -s /elsewhere /run");
    machine.spark(&["stop", "web"]).ok();
    let failed = machine.spark(&["--json", "resume", "web"]);
    assert!(failed.status() != 0 && failed.stderr().contains("leads through a link"), "{}", failed.stderr());
}

#[test]
fn variables_of_the_caller_stay_outside() {
    let machine = Machine::new().with_base();
    let env = [
        ("OP_SERVICE_ACCOUNT_TOKEN", "ops_x"),
        ("OP_SESSION_my", "y"),
        ("SPARK_AGE_PASSPHRASE", "z"),
        ("A", "b"),
    ];
    spark(&machine, &["create", "web", "--secret", "S=env://A"], "", &env).ok();
    for command in ["env", "tr '\\0' '\\n' < /proc/1/environ"] {
        let said = spark(&machine, &["exec", "web", "--", "sh", "-c", command], "", &env).ok();
        assert!(!said.contains("OP_") && !said.contains("SPARK_"), "{said}");
    }
}

#[test]
fn the_supervisor_of_a_command_has_no_value_in_its_memory() {
    let machine = Machine::new().with_base();
    let value = format!("canary{}", std::process::id());
    spark(&machine, &["secrets", "set", "T"], &value, &[]).ok();
    machine.spark(&["create", "web"]).ok();
    let mut command = machine.command(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "touch /up; until test -e /end; do sleep 0.02; done",
    ]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let up = machine.pool().join("projects/default/sparks/web/root/up");
    assert!(wait_for(|| up.exists()));
    let found = in_memory(child.id(), value.as_bytes());
    inside(&machine, "web", "touch /end");
    assert!(child.wait().unwrap().success());
    assert!(!found, "the value is in the memory of `spark exec`");
    // The search does find what is there.
    let control = format!("canary{}", std::process::id());
    assert!(in_memory(std::process::id(), control.as_bytes()));
}

/// Whether a process has bytes in memory that it may write to.
fn in_memory(pid: u32, wanted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut content = vec![0; (to - from).min(64 << 20) as usize];
        let read = memory.read_at(&mut content, from).unwrap_or(0);
        memchr::memmem::find(&content[..read], wanted).is_some()
    })
}

#[test]
fn a_stream_from_elsewhere_brings_no_reference_along() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start", "--secret", "T=file:///etc/shadow"]).ok();
    let stream = machine.work().join("stream");
    let mut send = machine.command(&["send", "web"]);
    send.stdout(std::fs::File::create(&stream).unwrap());
    Output::of("send web", &mut send).ok();
    let mut receive = machine.command(&["receive", "copy"]);
    let received = Output::of("receive copy", receive.stdin(std::fs::File::open(&stream).unwrap()));
    received.ok();
    assert!(
        received.stderr().contains("left out the secret T, which was file:///etc/shadow"),
        "{}",
        received.stderr()
    );
    assert_eq!(machine.spark(&["--json", "secrets", "list", "--spark", "copy"]).json(), json!([]));
    assert_eq!(inside(&machine, "copy", "ls /run/secrets 2>/dev/null | wc -l"), "0\n");
}
