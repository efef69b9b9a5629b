//! Projects, the pool and the host.

use std::process::{Command, Stdio};

use crate::common::Machine;
use crate::transcript::Transcript;

#[test]
fn projects_follow_repositories() {
    let mut t = Transcript::new();
    t.cd("shop/src");
    let mut git = Command::new("git");
    git.args(["init", "-q"]).arg(t.machine.work().join("shop")).stdout(Stdio::null());
    assert!(git.status().unwrap().success());
    t.run("project list");
    t.run("project list --json");
    t.run("create web --no-start");
    t.run("project list");
    t.run("project info");
    t.run("project info --json");
    t.run("project info shpo");
    t.run("project delete shop");
    t.run("rm web");
    t.run("project ls --json");
    t.run("project rm shop");
    t.run("project rm shop");
    t.run("project list -P Shop");
    t.matches("project");
}

#[test]
fn the_pool_is_made_measured_and_grown() {
    let mut t = Transcript::on(Machine::without_pool());
    t.run("pool info");
    t.run("create web --dry-run");
    t.run("list");
    t.run("info web");
    t.run("pool grow 1G");
    t.run("pool init --size 1M");
    t.run("pool init --size lots");
    t.run("pool init --size 512M");
    t.run("pool init --size 512M --json");
    t.run("pool info");
    t.run("pool info --json");
    t.run("pool grow");
    t.run("pool grow 256M");
    t.run("pool grow 1G");
    t.matches("pool");
}

#[test]
fn doctor_looks_at_everything_and_its_status_says_whether_sparks_can_run() {
    let mut t = Transcript::on(Machine::new());
    let text = t.run("doctor");
    let checks = t.run("doctor --json").output.stdout;
    let checks: serde_json::Value = serde_json::from_slice(&checks).unwrap();
    let mut failed = false;
    for (check, line) in
        checks.as_array().unwrap().iter().zip(text.stdout().lines().filter(|l| !l.starts_with(' ')))
    {
        let fields: Vec<&String> = check.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["name", "ok", "severity", "found", "remedy"]);
        failed |= check["ok"] == false && check["severity"] == "required";
        let name = check["name"].as_str().unwrap();
        assert!(line[6..].starts_with(name), "{name}: {line}");
        assert!(check["ok"] == true || check["remedy"].is_string(), "{check}");
    }
    assert_eq!(text.status(), i32::from(failed));
    assert!(checks.as_array().unwrap().len() > 10, "{checks}");
}
