//! What is configured takes effect, in new sparks and nowhere else.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::common::{Machine, Output};

fn options(machine: &Machine, name: &str) -> serde_json::Value {
    machine.spark(&["info", name, "--json"]).json()["options"].clone()
}

#[test]
fn a_new_spark_is_as_configured_unless_its_command_says_otherwise() {
    let machine = Machine::new().with_base();
    machine.configure(
        "memory = \"64M\"\npids = 100\nnetwork = \"none\"\nworkdir = \"/tmp\"\nuser = \"1:1\"\nshared = \"ro\"\n\
         idle-stop = \"1h\"\nhardened = true\nvolumes = [\"v:/srv\"]\n[env]\nA = \"configured\"\nB = \"configured\"\n\
         [labels]\nteam = \"a\"\n",
    );
    machine.spark(&["create", "web", "-e", "B=given", "--memory", "128M", "--label", "tier=data"]).ok();
    let is = options(&machine, "web");
    let expected = serde_json::json!({
        "env": { "A": "configured", "B": "given" },
        "volumes": is["volumes"],
        "network": "none",
        "limits": { "memory": 128 << 20, "pids": 100 },
        "user": "1:1",
        "workdir": "/tmp",
        "labels": { "team": "a", "tier": "data" },
        "bundle": "hardened",
        // A hardened spark has none of them, whatever is configured.
        "shared": "default",
        "idle_stop": 3600,
    });
    assert_eq!(is, expected);
    assert_eq!(is["volumes"][0]["path"], "/srv");
    let said = machine.spark(&["exec", "web", "--", "sh", "-c", "echo $A $B $PWD; id -u"]).ok();
    assert_eq!(said, "configured given /tmp\n1\n");
    let said = machine.spark(&["exec", "-", "--idle-stop", "never", "--", "sh", "-c", "echo $A $PWD"]).ok();
    assert_eq!(said, "configured /tmp\n");
    let said = machine.spark(&["console", "-", "-T", "--", "sh", "-c", "echo $A"]).ok();
    assert_eq!(said, "configured\n");
}

#[test]
fn new_sparks_get_the_secrets_that_are_configured_and_commands_come_from_the_user_alone() {
    let machine = Machine::new().with_base();
    machine.configure(
        "[secrets]\nTOKEN = \"cmd://tool\"\n[secret-commands]\ntool = [\"echo\", \"-n\", \"word\"]\n",
    );
    machine.spark(&["create", "web"]).ok();
    assert_eq!(
        machine.spark(&["exec", "web", "--", "sh", "-c", "echo $TOKEN; cat /run/secrets/TOKEN"]).ok(),
        "word\nword"
    );
    // Inside of a repository, too, where the project is another.
    let repository = machine.work().join("shop");
    std::fs::create_dir_all(repository.join(".git")).unwrap();
    assert!(Command::new("git").args(["init", "-q"]).arg(&repository).status().unwrap().success());
    let mut exec =
        machine.command(&["exec", "-", "--secret", "A=cmd://tool", "--", "sh", "-c", "echo $A$TOKEN"]);
    assert_eq!(Output::of("exec", exec.current_dir(&repository)).ok(), "wordword\n");
    std::fs::write(repository.join(".spark.toml"), "[secret-commands]\ntool = [\"id\"]\n").unwrap();
    let mut exec = machine.command(&["exec", "-", "--", "true"]);
    assert_eq!(Output::of("exec", exec.current_dir(&repository)).status(), 125);
}

/// Whoever wrote the repository has no say in what of the host leads where.
#[test]
fn ports_of_a_repository_are_shown_with_the_command_that_publishes_them_and_not_published() {
    let machine = Machine::new().with_base();
    let repository = machine.work().join("shop");
    assert!(Command::new("git").args(["init", "-q"]).arg(&repository).status().unwrap().success());
    let wish = "127.0.0.1:47100-47101:80-81";
    std::fs::write(repository.join(".spark.toml"), format!("ports = [\"{wish}\"]\n")).unwrap();
    let run = |args: &[&str]| Output::of("spark", machine.command(args).current_dir(&repository));
    let made = run(&["create", "web", "--base", "minimal"]);
    let command = format!("spark port open web {wish}");
    assert!(made.stderr().contains(&format!("`{command}`")), "{}", made.stderr());
    assert_eq!(run(&["port", "web", "--json"]).json(), serde_json::json!([]));
    let ephemeral = run(&["exec", "-", "--base", "minimal", "--", "true"]);
    assert!(ephemeral.stderr().contains(&format!("`-p {wish}`")), "{}", ephemeral.stderr());
    // As it is typed from there.
    run(&command.split(' ').skip(1).collect::<Vec<_>>()).ok();
    assert_eq!(run(&["port", "web", "--json"]).json().as_array().unwrap().len(), 2);
    // Who names ports has read the wish.
    let chosen = run(&["create", "other", "--base", "minimal", "-p", "127.0.0.1:47110:80"]);
    assert!(!chosen.stderr().contains("asks for"), "{}", chosen.stderr());
    let rows = run(&["config", "--json"]).json();
    let row = |key: &str| rows.as_array().unwrap().iter().find(|row| row["key"] == key).cloned().unwrap();
    assert_eq!(row("wish.ports")["value"], serde_json::json!([wish]));
    assert_eq!(row("ports")["value"], serde_json::Value::Null);
}

#[test]
fn a_fork_is_like_its_source_whatever_is_configured() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start", "--memory", "64M"]).ok();
    machine.configure("memory = \"128M\"\nhardened = true\n[env]\nA = \"1\"\n");
    machine.spark(&["fork", "web", "copy", "--no-start"]).ok();
    machine.spark(&["create", "other", "--from", "web", "--no-start"]).ok();
    assert_eq!(options(&machine, "copy"), options(&machine, "web"));
    assert_eq!(options(&machine, "other"), options(&machine, "web"));
}

#[test]
fn the_order_of_spark_bin_in_path_is_configured() {
    let machine = Machine::new().with_base();
    let path = |order: &str| {
        machine.configure(&format!("path = \"{order}\"\n"));
        machine.spark(&["exec", "-", "--", "sh", "-c", "echo $PATH"]).ok().trim().to_owned()
    };
    let rest = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(path("first"), format!("/spark/bin:{rest}"));
    assert_eq!(path("last"), format!("{rest}:/spark/bin"));
    assert_eq!(path("none"), rest);
    machine.configure("path = \"first\"\n[env]\nPATH = \"/bin\"\n");
    assert_eq!(machine.spark(&["exec", "-", "--", "sh", "-c", "echo $PATH"]).ok(), "/bin\n");
}

#[test]
fn the_trash_keeps_as_long_as_is_configured() {
    let machine = Machine::new().with_base();
    machine.configure("trash.keep = \"10d\"\n");
    let days = |args: &[&str]| {
        machine.spark(&["create", "web", "--no-start"]).ok();
        let gone = machine.spark(args).json();
        let until: chrono::DateTime<chrono::Utc> = gone[0]["until"].as_str().unwrap().parse().unwrap();
        ((until - chrono::Utc::now()).num_hours() + 1) / 24
    };
    assert_eq!(days(&["delete", "web", "--json"]), 10);
    assert_eq!(days(&["delete", "web", "--keep", "2d", "--json"]), 2);
}

/// The user behind `sudo` has a file of their own, read with no more rights than they have.
#[test]
fn behind_sudo_the_users_own_file_counts_and_opens_nothing_to_them() {
    let machine = Machine::new().with_base();
    let mut passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    passwd += &format!("ann:x:54321:54321::{}:/bin/sh\n", machine.home().display());
    let etc = machine.work().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("passwd"), passwd).unwrap();
    // The way to the home has to be hers.
    std::fs::set_permissions(machine.home().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    machine.configure("memory = \"64M\"\n");
    let file = machine.home().join(".config/spark/config.toml");
    chown(&file, Some(54321), Some(54321)).unwrap();
    let behind_sudo = |args: &[&str]| {
        let spark = machine.command(args);
        let script = "mount -t overlay none -o lowerdir=\"$0\":/etc /etc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(&etc).arg(spark.get_program()).args(spark.get_args());
        command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("HOME", "/root").env("SUDO_UID", "54321").env("SUDO_GID", "54321");
        command.current_dir(machine.work());
        Output::of(&args.join(" "), &mut command)
    };
    let shown = behind_sudo(&["config", "--json"]).json();
    let memory = shown.as_array().unwrap().iter().find(|row| row["key"] == "memory").unwrap();
    assert_eq!((memory["value"].as_str(), memory["line"].as_u64()), (Some("64M"), Some(1)));
    // A link to what only root can read.
    let secret = machine.work().join("secret");
    std::fs::write(&secret, "hush = 1\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    let refused = behind_sudo(&["config", "--json"]);
    assert!(!refused.stderr().contains("hush"), "{}", refused.stderr());
    refused.fails_with("denied");
}

#[test]
fn each_worktree_has_its_own_file_and_outside_of_all_the_project_is_configured() {
    let machine = Machine::new().with_base();
    machine.configure("project = \"mine\"\n");
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=n", "-c", "user.email=e@x"]).args(args).current_dir(machine.work());
        assert!(command.env("HOME", machine.home()).output().unwrap().status.success(), "{args:?}");
    };
    git(&["init", "-q", "shop"]);
    git(&["-C", "shop", "commit", "-q", "--allow-empty", "-m", "first"]);
    git(&["-C", "shop", "worktree", "add", "-q", "../other"]);
    for (dir, size) in [("shop", "64M"), ("other", "128M")] {
        std::fs::write(machine.work().join(dir).join(".spark.toml"), format!("memory = \"{size}\"\n"))
            .unwrap();
    }
    let made = |dir: &str| {
        let below = machine.work().join(dir);
        std::fs::create_dir_all(&below).unwrap();
        let name = format!("s{}", dir.len());
        let run = |args: &[&str]| Output::of(dir, machine.command(args).current_dir(&below));
        run(&["create", &name, "--no-start"]).ok();
        let info = run(&["info", &name, "--json"]).json();
        let memory = info["options"]["limits"]["memory"].as_u64().map(|bytes| bytes >> 20);
        (info["project"].as_str().unwrap().to_owned(), memory)
    };
    assert_eq!(made("shop/a/b"), ("shop".into(), Some(64)));
    assert_eq!(made("other"), ("shop".into(), Some(128)));
    assert_eq!(made("shop/.git"), ("shop".into(), None), "a git directory is in no work tree");
    assert_eq!(made("elsewhere"), ("mine".into(), None));
}
