//! Sparks that start from what a container of containerd's has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::daemon::{Daemon, text};
use crate::life::run;

/// A btrfs on a file, mounted for as long as this lives.
pub struct Btrfs {
    dir: tempfile::TempDir,
}

impl Btrfs {
    fn new() -> Btrfs {
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("fs"));
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        for (program, arguments) in [("mkfs.btrfs", vec!["-q"]), ("mount", vec!["-o", "loop"])] {
            let mut command = Command::new(program);
            command.args(arguments).arg(&image);
            if program == "mount" {
                command.arg(&at);
            }
            let status = command.status().unwrap();
            assert!(status.success(), "{program}");
        }
        Btrfs { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        // With all that is mounted in it.
        let _ = Command::new("umount").arg("--recursive").arg(self.path()).status();
    }
}

/// Sparks in a directory, and their end.
struct Pool<'a> {
    root: &'a Path,
    run: &'a Path,
    daemon: &'a Daemon,
}

impl Pool<'_> {
    fn spark(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "2", "600", env!("CARGO_BIN_EXE_spark")])
            .args(line.split(' '))
            .env("SPARK_ROOT", self.root)
            .env("SPARK_RUN", self.run)
            .env_remove("SPARK_PROJECT")
            .env("CONTAINERD_ADDRESS", self.daemon.socket())
            .current_dir("/");
        command
    }

    fn ok(&self, line: &str) -> String {
        let output = self.spark(line);
        assert!(output.status.success(), "spark {line}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        self.spark("delete --force --now fork");
        let _ = Command::new("umount").args(["--quiet", "--recursive"]).arg(self.root.join("pool")).status();
    }
}

/// A container on btrfs that has written a file, and a daemon that has it.
fn container(btrfs: &Btrfs) -> Daemon {
    let daemon = Daemon::with_btrfs(&btrfs.path().join("containerd"));
    let write = [
        "sh",
        "-c",
        "mkdir -p /a/b && mknod /a/b/disk b 7 0 && mknod /null c 1 3 &&
        echo kept > /file; chmod 4755 /file; exec sleep 1000",
    ];
    daemon.ok(run(&["-d", "--snapshotter", "btrfs"], "a", &write));
    crate::daemon::eventually("it has written", || {
        daemon.ctr(["task", "exec", "--exec-id", "look", "a", "test", "-u", "/file"]).status.success()
    });
    daemon
}

fn end(daemon: &Daemon) {
    daemon.say("task kill --signal KILL a");
    crate::daemon::eventually("it has ended", || daemon.state("a").as_deref() == Some("STOPPED"));
    daemon.ctr(["task", "delete", "a"]);
    daemon.say("container delete a");
    daemon.nothing_is_left();
}

/// Containers that do not run: one that has ended, and one that was never started.
fn forks_at_rest(daemon: &Daemon, pool: &Pool<'_>) {
    pool.ok("delete --force --now fork");
    daemon.say("task kill --signal KILL a");
    crate::daemon::eventually("it has ended", || daemon.state("a").as_deref() == Some("STOPPED"));
    daemon.ctr(["task", "delete", "a"]);
    daemon.nothing_is_left();
    let url = |id: &str| format!("containerd://{}/{id}", daemon.namespace);
    pool.ok(&format!("base import {} ended", url("a")));
    pool.ok("create --base ended fork");
    assert_eq!(pool.ok("exec fork -- stat -c %a-%u /file"), "4755-0\n");
    pool.ok("exec fork -- rm /file");
    daemon.say(&format!("container create --snapshotter btrfs {} c", crate::daemon::IMAGE));
    pool.ok(&format!("base import {} created", url("c")));
    assert_eq!(pool.ok("exec --base created - -- ls -d /bin/busybox /root"), "/bin/busybox\n/root\n");
    // The one goes on where it was, and the file of the fork was the fork's.
    daemon.say("task start --detach --null-io a");
    daemon.say("task exec --exec-id again a cat /file");
    // Without containerd there is nobody to ask.
    let mut alone = pool.command(&format!("base import {} x", url("c")));
    let said = text(&alone.env("CONTAINERD_ADDRESS", "/nowhere").output().unwrap().stderr);
    assert!(said.contains("there is no containerd://") && said.contains("CONTAINERD_ADDRESS"), "{said}");
    daemon.say("container delete c");
}

fn forks(daemon: &Daemon, pool: &Pool<'_>) {
    let url = format!("containerd://{}/a", daemon.namespace);
    pool.ok("pool init");
    let imported = pool.spark(&format!("base import {url} base"));
    assert_eq!(text(&imported.stdout), "base\n");
    assert!(text(&imported.stderr).contains("2 device nodes were left out"), "{}", text(&imported.stderr));
    pool.ok("create --base base fork");
    assert_eq!(pool.ok("exec fork -- stat -c %a-%u /file"), "4755-0\n");
    assert_eq!(pool.ok("exec fork -- cat /file"), "kept\n");
    // The container may make devices, and its rules keep it from using them. A spark has none on disk.
    assert_eq!(pool.ok("exec fork -- find / -xdev ( -type b -o -type c )"), "");
    daemon.say("task exec --exec-id nodes a test -b /a/b/disk -a -c /null");
    // Each goes on alone.
    pool.ok("exec fork -- rm /file");
    daemon.say("task exec --exec-id again a cat /file");
    assert!(pool.ok("base info base").contains(&url));
}

#[test]
fn a_container_is_forked_into_a_spark_on_the_same_filesystem() {
    let btrfs = Btrfs::new();
    let daemon = container(&btrfs);
    let (root, run) = (btrfs.path().join("spark"), daemon.run().to_owned());
    fs::create_dir(&root).unwrap();
    let pool = Pool { root: &root, run: &run, daemon: &daemon };
    forks(&daemon, &pool);
    // Nothing was copied: the large file of the image shares its only copy.
    let shared =
        Command::new("filefrag").arg("-v").arg(root.join("pool/bases/base/root/bin/busybox")).output();
    assert!(text(&shared.unwrap().stdout).contains("shared"));
    forks_at_rest(&daemon, &pool);
    drop(pool);
    end(&daemon);
}

#[test]
fn a_container_is_sent_to_a_pool_on_another_filesystem() {
    let btrfs = Btrfs::new();
    let daemon = container(&btrfs);
    let root = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
    let run = daemon.run().to_owned();
    let pool = Pool { root: root.path(), run: &run, daemon: &daemon };
    // What a killed import leaves is removed by the next.
    let active = btrfs.path().join("containerd/active");
    let left = active.join("spark-import-01ARZ3NDEKTSV4RRFFQ69G5FAV");
    assert!(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&left).status().unwrap().success());
    forks(&daemon, &pool);
    forks_at_rest(&daemon, &pool);
    let names = fs::read_dir(&active).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with("spark-import-")));
    drop(pool);
    end(&daemon);
}

#[test]
fn elsewhere_it_says_why_not() {
    let daemon = Daemon::new();
    daemon.ok(run(&["-d"], "a", &["sleep", "1000"]));
    let root = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
    let run = daemon.run().to_owned();
    let pool = Pool { root: root.path(), run: &run, daemon: &daemon };
    pool.ok("pool init");
    let refused = pool.spark(&format!("base import containerd://{}/a base", daemon.namespace));
    let said = text(&refused.stderr);
    assert!(said.contains("it is on overlay, and not a btrfs subvolume"), "{said}");
    assert!(said.contains("hint: use containerd's btrfs snapshotter"), "{said}");
    daemon.say(&format!("container create {} c", crate::daemon::IMAGE));
    let refused = pool.spark(&format!("base import containerd://{}/c base", daemon.namespace));
    assert!(text(&refused.stderr).contains("it is overlayfs's, and not"), "{}", text(&refused.stderr));
    daemon.say("container delete c");
    let missing = pool.spark(&format!("base import containerd://{}/b base", daemon.namespace));
    assert!(text(&missing.stderr).contains("there is no containerd://"), "{}", text(&missing.stderr));
    drop(pool);
    end(&daemon);
}
