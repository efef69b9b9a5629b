//! Pools that grow by themselves, and what is left of data when the host's disk is full.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Machine, is_running, wait_for};
use crate::disk::{Disk, is_allocated};

fn sh(machine: &Machine, spark: &str, script: &str) -> String {
    machine.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

/// The processes that watch the room of a machine's pool.
fn watchers(machine: &Machine) -> Vec<i32> {
    let run = format!("SPARK_RUN={}\0", machine.place().run.display());
    let is_one = |pid: &i32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("cmdline").contains("\0pool\0grow\0") && read("environ").contains(&run)
    };
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(is_one).collect()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A growing pool of the smallest size on a disk that has room to grow, with a running spark `a`.
fn growing() -> Disk {
    let disk = Disk::new(1400, "ext4");
    disk.fill(450);
    let info = disk.spark(&["--json", "pool", "init"]).json();
    assert_eq!((&info["size"], &info["space"]), (&(256 << 20).into(), &"growing".into()));
    disk.spark(&["base", "bootstrap", "minimal"]).ok();
    disk.spark(&["create", "a", "--network", "none"]).ok();
    disk.empty();
    disk
}

/// The root of the spark `a`, from outside.
fn root(machine: &Machine) -> PathBuf {
    machine.pool().join("projects/default/sparks/a/root")
}

#[test]
fn a_pool_grows_under_a_writer_while_no_command_runs() {
    let disk = growing();
    let free = disk.spark(&["--json", "pool", "info"]).json()["free"].as_u64().unwrap();
    let script = format!(
        "dd if=/dev/urandom of=/f bs=1M count={} 2>/err && sync && md5sum /f > /sum; echo $? > /done.new; mv /done.new /done",
        2 * (free >> 20)
    );
    disk.spark(&["exec", "-d", "a", "--", "sh", "-c", &script]).ok();
    let done = root(&disk).join("done");
    assert!(wait_for(|| done.exists()));
    assert_eq!(
        std::fs::read_to_string(done).unwrap(),
        "0\n",
        "{:?}",
        std::fs::read_to_string(root(&disk).join("err"))
    );
    is_allocated(&disk.place().loop_image());
    let fs = rustix::fs::statvfs(&disk.place().root).unwrap();
    assert!(disk.free() >= fs.f_blocks * fs.f_frsize / 20, "the host has {} bytes left", disk.free());
    assert!(disk.spark(&["--json", "pool", "info"]).json()["size"].as_u64().unwrap() > 2 * free);
    assert_eq!(sh(&disk, "a", "md5sum /f | cmp - /sum && echo same"), "same\n");
    disk.restart();
    assert_eq!(sh(&disk, "a", "md5sum /f | cmp - /sum && echo same"), "same\n");
}

#[test]
fn the_watcher_has_nothing_of_its_caller_and_ends_with_the_last_spark() {
    let disk = growing();
    let [first] = watchers(&disk)[..] else { panic!("{:?}", watchers(&disk)) };
    disk.spark(&["create", "b", "--network", "none"]).ok();
    assert_eq!(watchers(&disk), [first], "one is enough");
    disk.spark(&["delete", "-f", "--now", "a"]).ok();
    assert_eq!(watchers(&disk), [first], "a spark runs still");

    // Killed, it is there again with the next command that enters, which has a descriptor to pass on and much to tell.
    kill(first);
    assert!(wait_for(|| !is_running(first)));
    let spark = disk.command(&["exec", "b", "true"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 9</proc/mounts; exec \"$0\" \"$@\""])
        .arg(spark.get_program())
        .args(spark.get_args());
    shell.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("OP_SECRET", "x");
    let out = shell.current_dir(disk.work()).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let [second] = watchers(&disk)[..] else { panic!("{:?}", watchers(&disk)) };
    let about = Path::new("/proc").join(second.to_string());
    let watch = disk.place().watch();
    assert!(wait_for(|| {
        let fds = std::fs::read_dir(about.join("fd")).unwrap().flatten();
        let odd = |to: PathBuf| {
            !(to == Path::new("/dev/null") || to == watch || to.starts_with("anon_inode:[pidfd]"))
        };
        !fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(odd)
    }));
    assert_eq!(std::fs::read_link(about.join("cwd")).unwrap(), Path::new("/"));
    let environ = std::fs::read_to_string(about.join("environ")).unwrap();
    assert!(environ.split_terminator('\0').all(|v| v.starts_with("SPARK_R")), "{environ:?}");
    let stat = std::fs::read_to_string(about.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!((fields[1], fields[4]), ("1", "0"), "parent and terminal: {stat}");

    disk.spark(&["stop", "-t", "0", "b"]).ok();
    assert!(wait_for(|| !is_running(second)));
    // A command that writes has one too, for as long.
    std::fs::write(disk.work().join("file"), "x").unwrap();
    disk.spark(&["cp", "file", "b:/"]).ok();
    assert!(wait_for(|| watchers(&disk).is_empty()));
}

#[test]
fn without_a_watcher_a_writer_is_told_early_and_the_next_command_makes_room() {
    let disk = growing();
    let [watcher] = watchers(&disk)[..] else { panic!("{:?}", watchers(&disk)) };
    kill(watcher);
    assert!(wait_for(|| !is_running(watcher)));
    // One exec, which finds enough room when it begins.
    let script = "echo kept > /kept; sync; dd if=/dev/urandom of=/f bs=1M count=400 2>&1; sync; cat /kept";
    let enter = || {
        let mut command = disk.command(&["exec", "a", "--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let writer = enter();
    assert!(wait_for(|| root(&disk).join("kept").exists()));
    for pid in watchers(&disk) {
        kill(pid);
    }
    let said = String::from_utf8(writer.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.contains("No space left"), "{said}");
    assert!(said.ends_with("kept\n"), "{said}");
    assert_eq!(sh(&disk, "a", "cat /kept"), "kept\n");
    let size = disk.spark(&["--json", "pool", "info"]).json()["size"].as_u64().unwrap();
    assert!(size > 256 << 20, "the command did not grow it: {size}");
    sh(&disk, "a", "dd if=/dev/urandom of=/g bs=1M count=200 2>/dev/null && sync");
}

/// Writes 20 files of 16 MiB into the pool while the host's disk fills up. Returns the sums of those that were
/// written and synced before the next began.
fn write_while_the_host_fills(disk: &Disk) -> Vec<String> {
    let script = "for i in $(seq 20); do dd if=/dev/urandom of=/f$i bs=1M count=16 2>/dev/null && md5sum /f$i > /tmp/sum && \
                  sync && cat /tmp/sum; done; true";
    let mut command = disk.command(&["exec", "a", "--", "sh", "-c", script]);
    let writer = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    disk.fill(0);
    let out = writer.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Of such files, those that are not there as they were.
fn lost(disk: &Disk, sums: &[String]) -> Vec<String> {
    let out = disk.spark(&["exec", "a", "--", "sh", "-c", "md5sum /f*"]);
    let there = out.stdout();
    sums.iter().filter(|sum| !there.lines().any(|line| line == sum.as_str())).cloned().collect()
}

#[test]
fn what_was_synced_is_there_when_the_hosts_disk_was_full() {
    let disk = Disk::new(420, "ext4");
    disk.spark(&["pool", "init", "--size", "300M"]).ok();
    disk.spark(&["base", "bootstrap", "minimal"]).ok();
    disk.spark(&["create", "a", "--network", "none"]).ok();
    let sums = write_while_the_host_fills(&disk);
    assert!((5..20).contains(&sums.len()), "{} files fit", sums.len());
    assert_eq!(lost(&disk, &sums), [""; 0]);
    sh(&disk, "a", "rm /f1; sync");
    disk.spark(&["create", "b", "--network", "none"]).ok();
    disk.spark(&["delete", "-f", "--now", "b"]).ok();
    disk.restart();
    assert_eq!(lost(&disk, &sums[1..]), [""; 0]);
    disk.empty();
    assert_eq!(sh(&disk, "a", "echo well > /f1; sync; cat /f1"), "well\n", "without a repair");
}

/// The control of the test above: the loop device does not tell that the disk is full.
#[test]
fn an_overcommitted_pool_loses_what_was_synced_when_the_hosts_disk_is_full() {
    let disk = Disk::new(420, "ext4");
    disk.spark(&["pool", "init", "--size", "2G", "--overcommit"]).ok();
    disk.spark(&["base", "bootstrap", "minimal"]).ok();
    disk.spark(&["create", "a", "--network", "none"]).ok();
    let sums = write_while_the_host_fills(&disk);
    disk.restart();
    disk.empty();
    assert!(!lost(&disk, &sums).is_empty(), "of {} nothing is lost", sums.len());
}
