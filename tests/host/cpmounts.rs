//! `cp` and what is mounted in a spark: it is written where it comes from, or named, and never replaced.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use crate::common::{Machine, Output};
use crate::inside::{bare, machine, root, sh};

fn cp(machine: &Machine, from: &str, to: &str) -> Output {
    machine.spark(&["--json", "cp", from, to])
}

/// How many mounts a running spark has.
fn mounts(machine: &Machine, spark: &str) -> usize {
    sh(machine, spark, "0", "cat /proc/self/mountinfo").ok().lines().count()
}

#[test]
fn a_mount_is_named_and_stays_whether_the_spark_runs_or_is_going_to() {
    let machine = machine();
    let work = machine.work();
    fs::write(work.join("file"), "new").unwrap();
    fs::create_dir_all(work.join("etc/sub")).unwrap();
    for name in ["hostname", "resolv.conf", "own", "sub/own"] {
        fs::write(work.join("etc").join(name), "new").unwrap();
    }
    bare(&machine, "web", &["--network", "none"]);
    let (before, name) = (mounts(&machine, "web"), sh(&machine, "web", "0", "cat /etc/hostname").ok());
    for runs in [true, false] {
        for (path, mount) in [
            ("/etc/hostname", "/etc/hostname"),
            ("etc/../etc/./resolv.conf", "/etc/resolv.conf"),
            ("/etc/machine-id", "/etc/machine-id"),
            ("/proc/x", "/proc"),
            ("/proc", "/proc"),
            ("/proc/sys/kernel/hostname", "/proc"),
            ("/dev/shm/x", "/dev/shm"),
            ("/sys/", "/sys"),
        ] {
            let said = cp(&machine, "file", &format!("web:{path}")).fails_with("wrong_state");
            assert!(said.contains(&format!("the mount {mount},")), "{runs} {path}: {said}");
        }
        // What is beside them is copied all the same.
        let said = cp(&machine, "etc/.", "web:/etc").fails_with("wrong_state");
        assert!(said.contains("web:/etc/") && said.contains("1 more"), "{said}");
        let inside = root(&machine, "web").join("etc");
        assert_eq!(fs::read_to_string(inside.join("sub/own")).unwrap(), "new");
        assert_eq!(fs::read_to_string(inside.join("own")).unwrap(), "new");
        fs::remove_dir_all(inside.join("sub")).unwrap();
        if runs {
            assert_eq!(mounts(&machine, "web"), before);
            assert_eq!(sh(&machine, "web", "0", "cat /etc/hostname").ok(), name);
            machine.spark(&["stop", "-t", "0", "web"]).ok();
        }
    }
    assert_eq!(sh(&machine, "web", "0", "cat /etc/hostname").ok(), name);
}

#[test]
fn what_a_running_spark_sees_is_read() {
    let machine = machine();
    let work = machine.work();
    bare(&machine, "web", &["--network", "none"]);
    let name = sh(&machine, "web", "0", "cat /etc/hostname").ok();
    cp(&machine, "web:/etc/hostname", "hostname").ok();
    assert_eq!(fs::read_to_string(work.join("hostname")).unwrap(), name);
    assert_eq!(machine.spark(&["cp", "web:/etc/hostname", "/dev/stdout"]).ok(), name);
    cp(&machine, "web:/etc", "etc").ok();
    assert_eq!(fs::read_to_string(work.join("etc/hostname")).unwrap(), name);
    let said = cp(&machine, "web:/proc/version", "version").fails_with("wrong_state");
    assert!(said.contains("/proc"), "{said}");
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    let said = cp(&machine, "web:/etc/hostname", "hostname").fails_with("wrong_state");
    assert!(said.contains("/etc/hostname"), "{said}");
    assert_eq!(fs::read_to_string(work.join("hostname")).unwrap(), name);
}

#[test]
fn shared_directories_are_written_where_all_sparks_see_them() {
    let machine = machine();
    let work = machine.work();
    bare(&machine, "web", &[]);
    bare(&machine, "db", &["--no-start"]);
    fs::write(work.join("tool"), "#!/bin/sh\necho tool\n").unwrap();
    fs::set_permissions(work.join("tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    cp(&machine, "tool", "db:/spark/bin/").ok();
    assert_eq!(sh(&machine, "web", "1000:1000", "tool; stat -c %a:%u /spark/bin/tool").ok(), "tool\n755:0\n");
    cp(&machine, "tool", "web:/spark/proj/again").ok();
    cp(&machine, "db:/spark/proj/again", "out").ok();
    assert_eq!(fs::read(work.join("out")).unwrap(), fs::read(work.join("tool")).unwrap());
    fs::create_dir(work.join("bin")).unwrap();
    fs::write(work.join("bin/merged"), "").unwrap();
    cp(&machine, "bin", "web:/spark").ok();
    assert_eq!(sh(&machine, "web", "0", "ls /spark/bin").ok(), "merged\ntool\n");
    assert_eq!(fs::read_dir(root(&machine, "web").join("spark/bin")).unwrap().count(), 0);
    // Where none is mounted, it is a directory as any other.
    bare(&machine, "alone", &["--shared", "none", "--no-start"]);
    fs::create_dir_all(root(&machine, "alone").join("spark/bin")).unwrap();
    cp(&machine, "tool", "alone:/spark/bin/mine").ok();
    assert!(root(&machine, "alone").join("spark/bin/mine").exists());
}

#[test]
fn a_mounted_directory_of_the_host_is_written_as_its_owner_and_a_read_only_one_is_not() {
    let machine = machine();
    let work = machine.work();
    for dir in ["mine", "roots", "kept"] {
        fs::create_dir(work.join(dir)).unwrap();
    }
    chown(work.join("mine"), Some(1234), Some(2345)).unwrap();
    fs::write(work.join("one"), "one").unwrap();
    fs::write(work.join("file"), "new").unwrap();
    fs::set_permissions(work.join("file"), PermissionsExt::from_mode(0o6755)).unwrap();
    let at = |dir: &str| work.join(dir).display().to_string();
    let mount = |src: &str, dst: &str, end: &str| format!("type=bind,src={},dst={dst}{end}", at(src));
    let [mine, roots, kept, one] = [
        mount("mine", "/m", ""),
        mount("roots", "/srv/r", ""),
        mount("kept", "/k", ",ro"),
        mount("one", "/etc/one", ""),
    ];
    let options =
        ["--mount", &mine, "--mount", &roots, "--mount", &kept, "--mount", &one, "--network", "none"];
    bare(&machine, "web", &options);
    symlink("/m", root(&machine, "web").join("to-m")).unwrap();
    bare(&machine, "other", &["--no-start"]);
    for runs in [true, false] {
        for path in ["web:/m/x", "web:/to-m/y", "web:/srv/../m/z", "web:/srv/r/x"] {
            cp(&machine, "file", path).ok();
        }
        for (path, mount) in [("web:/k/x", "/k"), ("web:/k", "/k"), ("web:/etc/one", "/etc/one")] {
            let said = cp(&machine, "file", path).fails_with("wrong_state");
            let named = said.contains(&format!("the mount {mount}, which is"));
            assert!(named && said.contains(work.to_str().unwrap()), "{said}");
        }
        for (name, owner) in [
            ("mine/x", (1234, 2345)),
            ("mine/y", (1234, 2345)),
            ("mine/z", (1234, 2345)),
            ("roots/x", (0, 0)),
        ] {
            let meta = fs::metadata(work.join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (owner.0, owner.1, 0o755), "{name}");
            fs::remove_file(work.join(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(work.join("one")).unwrap(), "one");
        assert_eq!(fs::read_dir(root(&machine, "web").join("m")).unwrap().count(), 0, "nothing is below it");
        // In a tree, and back: what is the owner's is root's in a spark.
        fs::create_dir_all(work.join("tree/m")).unwrap();
        fs::write(work.join("tree/m/deep"), "deep").unwrap();
        cp(&machine, "tree/.", "web:/").ok();
        assert_eq!(fs::metadata(work.join("mine/deep")).unwrap().uid(), 1234);
        cp(&machine, "web:/m/deep", "other:/deep").ok();
        assert_eq!(fs::metadata(root(&machine, "other").join("deep")).unwrap().uid(), 0);
        let said = cp(&machine, "web:/m/deep", "web:/to-m/deep").fails_with("usage");
        assert!(said.contains("the same file"), "{said}");
        let out = machine.spark(&["cp", "web:/srv", "out"]);
        out.ok();
        assert!(out.stderr().contains("mounted at /srv/r is not copied"), "{}", out.stderr());
        fs::remove_dir_all(work.join("out")).unwrap();
        if runs {
            assert_eq!(sh(&machine, "web", "0", "cat /m/deep; stat -c %u /m/deep").ok(), "deep0\n");
            machine.spark(&["stop", "-t", "0", "web"]).ok();
        }
        fs::remove_file(work.join("mine/deep")).unwrap();
    }
}

#[test]
fn volumes_and_secrets_are_where_they_are_and_links_lead_as_they_do_inside() {
    let machine = machine();
    let work = machine.work();
    fs::write(work.join("file"), "new").unwrap();
    bare(&machine, "web", &["--no-start", "-v", "v:/data"]);
    let inside = root(&machine, "web");
    symlink("/data", inside.join("link")).unwrap();
    cp(&machine, "file", "web:/link/x").ok();
    let volume = machine.pool().join("projects/default/data/v/fs");
    assert_eq!(fs::read_to_string(volume.join("x")).unwrap(), "new");
    // A link in a volume leads into the root, as it does inside.
    symlink("/etc", volume.join("etc")).unwrap();
    cp(&machine, "file", "web:/data/etc/made").ok();
    assert_eq!(fs::read_to_string(inside.join("etc/made")).unwrap(), "new");
    fs::create_dir_all(work.join("tree/data")).unwrap();
    fs::write(work.join("tree/data/y"), "new").unwrap();
    cp(&machine, "tree/.", "web:/").ok();
    assert_eq!(fs::read_to_string(volume.join("y")).unwrap(), "new", "and not below it");
    assert_eq!(sh(&machine, "web", "0", "cat /data/x /data/y").ok(), "newnew");

    cp(&machine, "file", "web:/run/secrets").ok();
    bare(&machine, "db", &["--no-start", "--secret", "KEY=env://NOBODY_ASKS"]);
    let said = cp(&machine, "file", "db:/run/secrets/x").fails_with("wrong_state");
    assert!(said.contains("/run/secrets"), "{said}");
}
