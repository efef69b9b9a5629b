//! The same for secrets: the references, the store, and the files of running sparks.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::common::Machine;
use crate::dumps::Stopped;
use crate::points::{Scenario, exists, marked, still_marked};

pub(crate) const ALL: &[&Scenario] = &[&CREATE, &RESUME, &SET, &DELETE, &REFRESH];

fn inside(m: &Machine) -> String {
    m.spark(&["exec", "web", "--", "sh", "-c", "echo $T; cat /run/secrets/T; ls -A /run/secrets"]).ok()
}

/// What is set from standard input, which the command that is made to fail reads too.
fn value(m: &Machine, value: &str) {
    std::fs::write(m.work().join("stdin"), value).unwrap();
}

fn set(m: &Machine) {
    let mut command = m.command(&["secrets", "set", "T"]);
    command.stdin(std::fs::File::open(m.work().join("stdin")).unwrap());
    assert!(command.status().unwrap().success());
}

fn end(m: &Machine) {
    let _ = std::fs::remove_file(m.work().join("stdin"));
    m.spark(&["delete", "-f", "--now", "web"]).ok();
    let stored = m.place().root.join("secrets/default/T.age");
    if !m.spark(&["secrets", "list"]).ok().is_empty() {
        m.spark(&["secrets", "delete", "T"]).ok();
        assert!(!stored.exists());
    }
}

const CREATE: Scenario = Scenario {
    points: &["secrets-start."],
    args: &["create", "web", "--secret", "T=file:///etc/hostname"],
    before: |_| {},
    after: |m| {
        if exists(m, "web") {
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["create", "web", "--secret", "T=file:///etc/hostname"]).ok();
        let host = std::fs::read_to_string("/etc/hostname").unwrap();
        assert_eq!(inside(m), format!("{host}{host}T\n"));
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const RESUME: Scenario = Scenario {
    points: &["secrets-start."],
    args: &["resume", "web"],
    before: |m| {
        value(m, "v\n");
        set(m);
        marked(m);
        m.spark(&["stop", "web"]).ok();
    },
    after: |m| {
        m.spark(&["resume", "web"]).ok();
        still_marked(m, "web");
        assert_eq!(inside(m), "v\nv\nT\n");
        end(m);
    },
};

const SET: Scenario = Scenario {
    points: &["secrets-set."],
    args: &["secrets", "set", "T"],
    before: |m| value(m, "v\n"),
    after: |m| {
        // Not recorded, it is as if it had never been set, but for what nobody refers to.
        assert_eq!(m.spark(&["--json", "secrets", "list"]).json(), serde_json::json!([]));
        set(m);
        m.spark(&["create", "web"]).ok();
        assert_eq!(inside(m), "v\nv\nT\n");
        end(m);
    },
};

const DELETE: Scenario = Scenario {
    points: &["secrets-delete."],
    args: &["secrets", "delete", "T"],
    before: |m| {
        value(m, "v\n");
        set(m);
    },
    after: |m| {
        if m.spark(&["secrets", "list"]).ok().is_empty() {
            m.spark(&["--json", "secrets", "delete", "T"]).fails_with("not_found");
            set(m);
        }
        m.spark(&["secrets", "check"]).ok();
        m.spark(&["create", "web"]).ok();
        end(m);
    },
};

const REFRESH: Scenario = Scenario {
    points: &["secrets-refresh."],
    args: &["secrets", "refresh", "web"],
    before: |m| {
        value(m, "old\n");
        set(m);
        marked(m);
        value(m, "new\n");
        set(m);
    },
    after: |m| {
        // Both are of one time: a command reads its variables from the files.
        let said = inside(m);
        assert!(said == "old\nold\nT\n" || said == "new\nnew\nT\n", "{said}");
        m.spark(&["secrets", "refresh", "web"]).ok();
        assert_eq!(inside(m), "new\nnew\nT\n");
        still_marked(m, "web");
        end(m);
    },
};

#[test]
fn a_create_with_secrets_that_fails_anywhere_makes_all_of_it_or_nothing() {
    CREATE.run();
}

#[test]
fn a_resume_with_secrets_that_fails_anywhere_can_be_repeated() {
    RESUME.run();
}

#[test]
fn a_secret_that_fails_to_be_set_is_set_or_not() {
    SET.run();
}

#[test]
fn a_secret_that_fails_to_be_deleted_is_there_or_not() {
    DELETE.run();
}

#[test]
fn a_refresh_that_fails_anywhere_leaves_whole_files() {
    REFRESH.run();
}

#[test]
fn what_a_killed_refresh_wrote_aside_is_gone_after_the_next() {
    let m = Machine::new().with_base();
    value(&m, "v");
    set(&m);
    m.spark(&["create", "web", "--secret", "OTHER=file:///etc/hostname"]).ok();
    let mut refresh = m.command(&["secrets", "refresh", "web"]);
    refresh.env("SPARK_FAULT", "secrets-start.written=die");
    assert!(!refresh.status().unwrap().success());
    let aside = || m.spark(&["exec", "web", "--", "sh", "-c", "ls -A /run/secrets/.new"]).stdout();
    assert_eq!(aside(), "OTHER\nT\n");
    m.spark(&["secrets", "delete", "T"]).ok();
    m.spark(&["secrets", "refresh", "web"]).ok();
    assert_eq!(aside(), "");
    assert_eq!(m.spark(&["exec", "web", "--", "ls", "-A", "/run/secrets"]).ok(), "OTHER\n");
}

#[test]
fn a_value_that_is_set_while_another_command_deletes_it_is_there_or_it_was_not_set() {
    let machine = Machine::new().with_base();
    value(&machine, "old\n");
    set(&machine);
    value(&machine, "new\n");
    let mut command = machine.command(&["secrets", "set", "T"]);
    command.stdin(std::fs::File::open(machine.work().join("stdin")).unwrap());
    let setting = Stopped::at(command.env("SPARK_FAULT", "secrets-set.stored=stop"));
    let mut deleting = machine.command(&["-v", "secrets", "delete", "T"]);
    let mut deleting = deleting.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It takes the name away, and waits with the value.
    let mut said = BufReader::new(deleting.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("waiting for another command")), "it did not wait");
    setting.goes_on();
    assert!(deleting.wait().unwrap().success());
    assert_eq!(machine.spark(&["exec", "-", "--", "sh", "-c", "echo $T"]).ok(), "new\n");
}
