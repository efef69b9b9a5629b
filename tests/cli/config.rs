//! Configuration files: what they say, and what is said of their mistakes.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::Machine;
use crate::transcript::Transcript;

fn repository(dir: &Path) {
    let done =
        Command::new("git").args(["init", "-q"]).arg(dir).env("HOME", "/nonexistent").status().unwrap();
    assert!(done.success(), "these tests need git");
}

#[test]
fn every_value_says_where_it_came_from() {
    let mut t = Transcript::new();
    t.run("config");
    t.machine.configure(
        "memory = \"1G\"\nproject = \"mine\"\n[env]\nLANG = \"C.UTF-8\"\nA = \"user\"\n[secrets]\nTOKEN = \"op://v/i/f\"\n\
         [secret-commands]\npass = [\"pass\", \"show\"]\n",
    );
    t.run("config");
    t.cd("shop");
    repository(&t.machine.work().join("shop"));
    std::fs::write(
        t.machine.work().join("shop/.spark.toml"),
        "memory = \"2G\"\nidle-stop = 600\n[env]\nA = \"repo\"\n",
    )
    .unwrap();
    t.cd("shop/below");
    t.run("config");
    t.run_with("config --json -P other", |c| _ = c.env("SPARK_BASE", "minimal").env("SPARK_LOG", "warn"));
    t.matches("config");
}

#[test]
fn each_mistake_names_file_and_line() {
    let mut t = Transcript::new();
    t.cd("shop");
    let top = t.machine.work().join("shop");
    repository(&top);
    let file = top.join(".spark.toml");
    for text in [
        "\nmemroy = \"1G\"\n",
        "[create]\nbase = \"x\"\n",
        "memory = true\n",
        "memory = \"lots\"\n",
        "memory = \"1G\"\nmemory = \"2G\"\n",
        "memory = \n",
        "network = \"host\"\n",
        "mounts = [\"type=bind,src=/,dst=/host\"]\n",
        "# c\n[secrets]\nTOKEN = \"op://v/i/f\"\n",
        "[secret-commands]\nx = [\"sh\"]\n",
        "[trash]\nkeep = 0\n",
        "pids = 100000\n",
    ] {
        std::fs::write(&file, text).unwrap();
        t.run("create web");
    }
    t.run("create web --json");
    // What no repository has a say in goes on.
    t.run("list");
    std::fs::write(&file, vec![b'#'; 70_000]).unwrap();
    t.run("create web");
    std::fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    t.run("create web");
    std::fs::remove_file(&file).unwrap();
    symlink("/etc/passwd", &file).unwrap();
    t.run("create web");
    std::fs::remove_file(&file).unwrap();
    symlink("../../../../../../etc/passwd", &file).unwrap();
    t.run("create web");
    std::fs::remove_file(&file).unwrap();
    t.machine.configure("trash.kep = \"1h\"\n");
    t.run("delete web");
    let own = t.machine.home().join(".config/spark/config.toml");
    std::fs::write(&own, "").unwrap();
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o666)).unwrap();
    t.run("create web");
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o644)).unwrap();
    chown(&own, Some(1234), None).unwrap();
    t.run("create web");
    t.run_with("create web", |c| _ = c.env("SPARK_CONFIG", "nope.toml"));
    assert_eq!(
        t.machine.spark(&["list", "-aq"]).status(),
        1,
        "the user's own file counts everywhere outside"
    );
    // What mends things goes on.
    t.machine.spark(&["gc"]).ok();
    t.machine.spark(&["pool", "info"]).ok();
    t.matches("config_errors");
}

/// One key, set at every level, and one level taken away after the other. The host's file is another one in a mount
/// namespace of the command's own.
#[test]
fn flag_environment_repository_user_and_system_come_in_this_order() {
    let machine = Machine::new();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    for base in ["by-flag", "by-environment", "by-repository", "by-user", "by-system"] {
        machine.spark(&["base", "bootstrap", "minimal", base]).ok();
    }
    let top = machine.work().join("shop");
    repository(&top);
    let etc = machine.home().join("etc/spark");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("config.toml"), "base = \"by-system\"\n").unwrap();
    std::fs::write(top.join(".spark.toml"), "base = \"by-repository\"\n").unwrap();
    machine.configure("base = \"by-user\"\n");
    let mut n = 0;
    let mut made_from = |flag: bool, environment: bool| {
        n += 1;
        let name = format!("s{n}");
        let mut args = vec!["create", &name, "--no-start"];
        if flag {
            args.extend(["--base", "by-flag"]);
        }
        let spark = machine.command(&args);
        let script = "mount -t overlay none -o lowerdir=\"$0\":/etc /etc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(machine.home().join("etc"));
        command.arg(spark.get_program()).args(spark.get_args()).current_dir(&top);
        for (key, value) in spark.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if environment {
            command.env("SPARK_BASE", "by-environment");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let info = machine.spark(&["info", "-P", "shop", &name, "--json"]).json();
        info["origin"]["name"].as_str().unwrap().to_owned()
    };
    assert_eq!(made_from(true, true), "by-flag");
    assert_eq!(made_from(false, true), "by-environment");
    assert_eq!(made_from(false, false), "by-repository");
    std::fs::remove_file(top.join(".spark.toml")).unwrap();
    assert_eq!(made_from(false, false), "by-user");
    machine.configure("");
    assert_eq!(made_from(false, false), "by-system");
    std::fs::remove_file(etc.join("config.toml")).unwrap();
    assert_eq!(made_from(false, false), "minimal");
}
