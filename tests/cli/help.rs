//! What works anywhere: help, versions, completions and manual pages.

use crate::common::Machine;
use crate::transcript::{self, Transcript};

/// Every verb, and every verb's verbs.
const VERBS: &[&str] = &[
    "create",
    "list",
    "info",
    "exec",
    "console",
    "stop",
    "resume",
    "pause",
    "delete",
    "undelete",
    "rename",
    "fork",
    "snapshot",
    "snapshot create",
    "snapshot list",
    "snapshot restore",
    "snapshot delete",
    "undo",
    "pick",
    "pull",
    "diff",
    "tree",
    "send",
    "receive",
    "data",
    "data create",
    "data list",
    "data info",
    "data attach",
    "data detach",
    "data snapshot",
    "data snapshots",
    "data restore",
    "data delete",
    "logs",
    "cp",
    "gc",
    "doctor",
    "base",
    "base bootstrap",
    "base import",
    "base save",
    "base list",
    "base info",
    "base delete",
    "base default",
    "project",
    "project list",
    "project info",
    "project delete",
    "pool",
    "pool init",
    "pool info",
    "pool grow",
    "config",
    "port",
    "port list",
    "port open",
    "port close",
    "up-on-connect",
    "completion",
    "man",
    "version",
    "help",
    "help base",
    "help pool grow",
];

#[test]
fn every_verb_explains_itself() {
    let mut t = Transcript::on(Machine::without_pool());
    t.run("help");
    for verb in VERBS {
        match verb.starts_with("help") {
            true => t.run(verb),
            false => t.run(&format!("help {verb}")),
        }
        .ok();
    }
    t.matches("help");
}

#[test]
fn a_summary_is_shorter_than_the_whole_help_and_fits_a_terminal() {
    let t = Transcript::on(Machine::without_pool());
    for verb in VERBS.iter().filter(|v| !v.starts_with("help")) {
        let help = |flag: &str| {
            let mut words: Vec<&str> = verb.split(' ').collect();
            words.push(flag);
            t.machine.spark(&words).ok()
        };
        let (summary, whole) = (help("-h"), help("--help"));
        assert!(summary.lines().count() <= whole.lines().count(), "{verb}");
        for line in whole.lines() {
            assert!(line.chars().count() <= 100 && line.trim_end() == line, "{verb}: {line:?}");
        }
    }
}

#[test]
fn wrong_usage_is_explained_in_both_forms() {
    let mut t = Transcript::on(Machine::without_pool());
    for line in [
        "",
        "--json",
        "lsit",
        "lsit --json",
        "list --al",
        "list --al --json",
        "list extra",
        "stop",
        "stop --json",
        "base",
        "base --json",
        "base impotr",
        "create Web",
        "create Web --json",
        "create web --memory lots",
        "create a --network wifi",
        "create a --bundle x --hardened",
        "exec web -d --timeout 1s true",
        "help nope",
        "completion tcsh",
        "--project",
    ] {
        t.run(line);
    }
    for (variable, value) in [("SPARK_PROJECT", "Shop"), ("SPARK_BASE", "-"), ("SPARK_LOG", "a=b=c")] {
        t.run_with("list", |c| {
            c.env(variable, value);
        });
    }
    t.matches("usage");
}

#[test]
fn the_version_is_told_in_three_ways() {
    let mut t = Transcript::on(Machine::without_pool());
    t.run("version");
    t.run("version --json");
    t.run("--version");
    t.run("version 2");
    t.matches("version");
}

#[test]
fn completions_are_scripts_that_name_every_verb() {
    let machine = Machine::without_pool();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = machine.spark(&["completion", shell]).ok();
        for verb in VERBS {
            assert!(script.contains(verb.split(' ').next_back().unwrap()), "{shell} {verb}");
        }
    }
    let path = machine.work().join("spark.bash");
    std::fs::write(&path, machine.spark(&["completion", "bash"]).ok()).unwrap();
    let complete = r#"source spark.bash; COMP_WORDS=(spark cre); COMP_CWORD=1; _spark spark cre spark; echo "${COMPREPLY[@]}""#;
    let bash = std::process::Command::new("bash")
        .args(["-c", complete])
        .current_dir(machine.work())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&bash.stdout),
        "create\n",
        "{}",
        String::from_utf8_lossy(&bash.stderr)
    );
}

#[test]
fn there_is_a_manual_page_for_every_verb() {
    let mut t = Transcript::on(Machine::without_pool());
    t.run("man man1");
    t.run("man /proc/man1");
    t.run("man");
    let pages = std::fs::read_dir(t.machine.work().join("man1")).unwrap();
    let mut pages: Vec<String> = pages.map(|p| p.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let (machine, text) = t.end();
    transcript::matches(&machine, &format!("{text}{}\n", pages.join("\n")), "man");
}
