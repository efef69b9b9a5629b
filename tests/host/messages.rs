//! Errors name what failed, and advise what helps there.

use std::path::Path;
use std::process::Command;

use crate::common::{Machine, Output};

fn machine() -> Machine {
    Machine::new().with_base()
}

fn sh(machine: &Machine, line: &str) -> Output {
    let mut command = machine.command(&[]);
    let program = command.get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("SPARK", program).current_dir(machine.work());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    command.stdin(std::process::Stdio::null());
    Output::of(line, &mut shell)
}

#[test]
fn what_is_in_the_way_in_a_root_filesystem_is_named_with_the_spark() {
    let machine = machine();
    let root = machine.pool().join("projects/default/sparks/odd/root");
    let cases = [
        (
            "rm -f etc/hostname; mkdir -p etc/hostname",
            Some("/etc/hostname in its root filesystem is a directory"),
        ),
        (
            "ln -sfn hostname etc/hostname",
            Some("/etc/hostname in its root filesystem is a symbolic link that leads nowhere"),
        ),
        ("rm -rf spark; touch spark", Some("/spark in its root filesystem is a file")),
        ("rm -rf etc; touch etc", Some("/etc in its root filesystem is a file")),
        ("rm -rf proc; ln -s dev proc", Some("/proc in its root filesystem is a symbolic link")),
        ("rm -rf proc; touch proc", Some("/proc in its root filesystem is a file")),
        ("rm -rf sys; ln -s sys sys", Some("/sys in its root filesystem is a symbolic link")),
        ("rm -rf dev; mkfifo dev", Some("/dev in its root filesystem is no directory")),
        ("ln -sfn /nowhere/x etc/hostname", None),
        ("rm -f etc/hosts; mkdir -p etc/hosts", None),
        ("ln -sfn /nowhere/x etc/hosts", None),
        ("rm -rf dev; ln -s proc dev", Some("/dev in its root filesystem is a symbolic link")),
        ("chmod 0 root", None),
        ("rm -rf etc run tmp; touch run tmp", None),
        ("rm -f etc/resolv.conf; mkfifo etc/resolv.conf", None),
    ];
    for (line, expected) in cases {
        machine.spark(&["create", "odd", "--network", "none", "--no-start"]).ok();
        let done = Command::new("sh").args(["-ec", line]).current_dir(&root).status().unwrap();
        assert!(done.success(), "{line}");
        let output = machine.spark(&["exec", "odd", "true"]);
        match expected {
            None => drop(output.ok()),
            Some(expected) => {
                let hint = format!("hint: mend it in {}, or go back to one of", root.display());
                let said = output.stderr();
                assert!(
                    said.starts_with(&format!("error: cannot start spark `odd`: {expected}\n")),
                    "{said}"
                );
                assert!(said.contains(&hint) && !said.contains("doctor"), "{said}");
                assert_eq!(output.status(), 125);
            }
        }
        machine.spark(&["delete", "-f", "--now", "odd"]).ok();
    }
}

#[test]
fn a_shell_that_cannot_run_is_named_and_where_it_is_from() {
    let machine = machine();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    for shell in ["/bin/nope", "/etc", "/bin/sh -l"] {
        let line = format!("echo 'mi:x:1000:1000::/:{shell}' >>/etc/passwd");
        machine.spark(&["exec", "web", "sh", "-c", &format!("sed -i /^mi:/d /etc/passwd; {line}")]).ok();
        let output = machine.spark(&["console", "-T", "-u", "mi", "web"]);
        let said = output.stderr();
        assert!(said.contains(&format!("cannot run `{shell}` in spark `web`: ")), "{said}");
        assert!(said.contains("its /etc/passwd names this shell"), "{said}");
        assert_eq!(output.status(), if shell == "/etc" { 126 } else { 127 }, "{said}");
    }
}

#[test]
fn a_real_time_command_that_the_kernel_keeps_out_says_why() {
    let machine = machine();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    let output = sh(&machine, "chrt --fifo 1 $SPARK exec -T web true");
    // A kernel without real-time groups lets it in.
    if output.status() != 0 {
        let said = output.stderr();
        assert!(said.contains("real-time scheduling policy cannot enter a spark"), "{said}");
        assert!(said.contains("hint: give the command an ordinary one: `chrt --other 0 spark …`"), "{said}");
    }
    sh(&machine, "chrt --fifo 1 chrt --other 0 $SPARK exec -T web true").ok();
}

#[test]
fn a_full_disk_of_the_callers_is_no_reason_to_free_space_in_the_pool() {
    let machine = machine();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    machine.spark(&["exec", "web", "sh", "-c", "head -c 4000000 /dev/urandom >/big"]).ok();
    let full = machine.work().join("full");
    std::fs::create_dir(&full).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&full).status();
    assert!(mounted.unwrap().success());
    let lines = ["$SPARK cp web:/big full/x", "$SPARK list >/dev/full"];
    let said = lines.map(|line| (line, sh(&machine, line)));
    let unmounted = Command::new("umount").arg(&full).status();
    assert!(unmounted.unwrap().success());
    for (line, output) in said {
        let text = output.stderr();
        assert_eq!(output.status(), 1, "{line}: {text}");
        assert!(text.contains("No space left"), "{line}: {text}");
        // Nor is it a file of the pool that could not be written.
        assert!(!text.contains("hint:") && !text.contains("web:"), "{line}: {text}");
    }
    // In a spark it is the pool that is full.
    let hog = "$SPARK exec web sh -c 'cat /dev/zero >/hog; sync'; head -c 4000000 /dev/urandom >x; $SPARK cp x web:/x";
    let text = sh(&machine, hog).stderr();
    assert!(text.contains("hint: free space with `spark gc`"), "{text}");
}

#[test]
fn what_root_may_not_do_either_is_not_said_to_need_root() {
    let machine = machine();
    let dir = machine.work().join("closed");
    std::fs::create_dir(&dir).unwrap();
    let attribute = |how: &str| Command::new("chattr").arg(how).arg(&dir).status().unwrap();
    assert!(attribute("+i").success());
    let output = sh(&machine, "$SPARK base export minimal --tar closed/x.tar");
    assert!(attribute("-i").success());
    let said = output.stderr();
    assert!(said.contains("not permitted") || said.contains("denied"), "{said}");
    assert!(!said.contains("hint:"), "{said}");
}

#[test]
fn programs_of_root_are_found_where_path_lacks_their_directory() {
    let machine = Machine::without_pool();
    let nothing = machine.work();
    let spark = |args: &[&str]| Output::of(&args.join(" "), machine.command(args).env("PATH", &nothing));
    // Those that are only in /usr/bin are found by a PATH of users.
    let path = "/usr/bin:/bin";
    let users = |args: &[&str]| Output::of(&args.join(" "), machine.command(args).env("PATH", path));
    users(&["pool", "init", "--size", "512M"]).ok();
    users(&["pool", "grow", "600M"]).ok();
    let checks = users(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_str(&checks.stdout()).unwrap();
    let found =
        |name: &str| checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    for program in ["mkfs.btrfs", "blkid", "losetup", "nft"] {
        assert_eq!(found(program)["ok"], true, "{}", found(program));
    }
    let text = spark(&["doctor"]).stdout();
    assert!(!text.contains("not in PATH"), "{text}");
}

#[test]
fn a_chroot_whose_root_is_no_mount_point_says_so() {
    let machine = machine();
    machine.spark(&["create", "web", "--network", "none", "--no-start"]).ok();
    let line = "set -e; mkdir r; for d in /*; do
        if [ -L $d ]; then cp -a $d r$d; elif [ -d $d ]; then mkdir r$d; mount --rbind $d r$d; fi; done
        chroot r $SPARK exec web true";
    let script = format!("unshare -m --propagation private sh -c '{line}'");
    let output = sh(&machine, &script);
    let said = output.stderr();
    assert!(said.contains("`/` is not a mount point here, as in a chroot"), "{said}");
    assert!(said.contains("hint: make it one before") && !said.contains("doctor"), "{said}");
    assert!(Path::new(&machine.work()).join("r").exists());
}
