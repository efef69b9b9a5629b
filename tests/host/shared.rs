//! What sparks share: `/spark/bin`, `/spark/all`, `/spark/proj`, and directories of the host.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use crate::inside::{USER, bare, machine, sh, spark};

const DIRS: [&str; 3] = ["bin", "all", "proj"];
/// Options of a spark that may write all of [`DIRS`].
const WRITABLE: &[&str] = &["--shared", "rw"];

#[test]
fn files_look_the_same_to_every_spark_whatever_its_ids() {
    let machine = machine();
    spark(&machine, "one", WRITABLE);
    spark(&machine, "two", WRITABLE);
    let look = "stat -c '%u:%g %a' /spark/*/from-root /spark/*/from-user; cat /spark/*/from-root";
    for dir in DIRS {
        sh(&machine, "one", "0", &format!("echo {dir} > /spark/{dir}/from-root")).ok();
    }
    for dir in ["all", "proj"] {
        sh(&machine, "one", USER, &format!("echo {dir} > /spark/{dir}/from-user")).ok();
    }
    // What is in everybody's PATH, only root puts there.
    assert!(sh(&machine, "one", USER, "echo > /spark/bin/x").stderr().contains("Permission denied"));
    let seen = sh(&machine, "two", "0", look).ok();
    assert_eq!(seen, sh(&machine, "one", "0", look).ok());
    let expected = "0:0 644\n".repeat(3) + &"1000:1000 644\n".repeat(2) + "all\nbin\nproj\n";
    assert_eq!(seen, expected);
    // The same user of another spark may change it, another user may not.
    sh(&machine, "two", USER, "echo more >> /spark/all/from-user").ok();
    assert!(sh(&machine, "two", USER, "echo >> /spark/all/from-root").stderr().contains("Permission denied"));
    assert!(sh(&machine, "two", USER, "rm -f /spark/all/from-root").stderr().contains("not permitted"));
    // On disk they are nobody's of the host in particular.
    let on_disk = std::fs::metadata(machine.pool().join("system/all/from-user")).unwrap();
    assert_eq!((on_disk.uid(), on_disk.gid()), (1000, 1000));
}

#[test]
fn a_project_does_not_see_what_another_shares() {
    let machine = machine();
    spark(&machine, "one", WRITABLE);
    bare(&machine, "other/two", &[]);
    sh(&machine, "one", "0", "echo x > /spark/proj/secret; echo x > /spark/all/known").ok();
    assert_eq!(sh(&machine, "other/two", "0", "ls /spark/proj /spark/all").ok().matches("known").count(), 1);
    assert!(!sh(&machine, "other/two", "0", "ls /spark/proj").ok().contains("secret"));
}

#[test]
fn a_planted_set_uid_program_gives_nothing_in_another_spark() {
    let machine = machine();
    spark(&machine, "evil", WRITABLE);
    spark(&machine, "victim", &[]);
    for dir in DIRS {
        let plant = format!("cp /bin/probe /spark/{dir}/plant; chmod 6755 /spark/{dir}/plant");
        sh(&machine, "evil", "0", &plant).ok();
        assert_eq!(sh(&machine, "victim", "0", &format!("stat -c %a /spark/{dir}/plant")).ok(), "6755\n");
        let ran = sh(&machine, "victim", USER, &format!("/spark/{dir}/plant uid")).ok();
        assert_eq!(ran, "setuid EPERM\n1000 1000\n", "{dir}");
        let mounts = sh(&machine, "victim", "0", &format!("grep ' /spark/{dir} ' /proc/self/mounts")).ok();
        assert!(mounts.contains("nosuid") && mounts.contains("nodev"), "{mounts}");
    }
    // A device planted by the host's own root is none inside.
    let node = machine.pool().join("system/all/null");
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, 0o666.into(), null)
        .unwrap();
    assert!(sh(&machine, "victim", "0", "cat /spark/all/null").stderr().contains("Permission denied"));
    // Nobody's `ls` is another's: the shared directory is the last that is searched.
    sh(&machine, "evil", "0", "printf '#!/bin/sh\\necho shadowed' > /spark/bin/ls; chmod 755 /spark/bin/ls")
        .ok();
    assert!(!sh(&machine, "victim", "0", "ls /").ok().contains("shadowed"));
}

#[test]
fn shared_directories_are_read_only_or_absent_if_asked() {
    let machine = machine();
    spark(&machine, "rw", WRITABLE);
    spark(&machine, "ro", &["--shared", "ro"]);
    spark(&machine, "none", &["--shared", "none"]);
    sh(&machine, "rw", "0", "echo x > /spark/all/x").ok();
    for dir in DIRS {
        let write = sh(&machine, "ro", "0", &format!("touch /spark/{dir}/y"));
        assert!(write.stderr().contains("Read-only file system"), "{}", write.stderr());
    }
    assert_eq!(sh(&machine, "ro", "0", "cat /spark/all/x").ok(), "x\n");
    assert_eq!(
        sh(&machine, "none", "0", "cat /spark/*/* 2>/dev/null; grep -c ' /spark' /proc/self/mounts").stdout(),
        "0\n"
    );
}

/// What one project puts there, others would run.
#[test]
fn what_all_projects_have_is_read_only_unless_the_user_says_otherwise() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let write = |name: &str, dir: &str| sh(&machine, name, "0", &format!("echo x > /spark/{dir}/kubectl"));
    let refused = |name: &str, dirs: &[&str]| {
        for dir in dirs {
            let stderr = write(name, dir).stderr();
            assert!(stderr.contains("Read-only file system"), "{name} {dir}: {stderr}");
            let remount = format!("mount -o remount,rw,bind /spark/{dir}; echo x > /spark/{dir}/kubectl");
            assert_ne!(sh(&machine, name, "0", &remount).status(), 0, "{name} {dir}");
        }
    };
    refused("web", &["bin", "all"]);
    write("web", "proj").ok();
    assert_eq!(machine.spark(&["info", "web", "--json"]).json()["options"]["shared"], "default");

    // The record of an older version, which says `rw` of every spark.
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    let record = machine.pool().join("projects/default/sparks/web/spark.json");
    let mut old: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    old["options"]["shared"] = "rw".into();
    std::fs::write(&record, old.to_string()).unwrap();
    machine.spark(&["resume", "web"]).ok();
    refused("web", &["bin", "all"]);

    // A fork of a spark that was given more has more; a received one has not.
    machine.spark(&["create", "trusted", "--base", "minimal", "--shared", "rw"]).ok();
    machine.spark(&["fork", "trusted", "fork"]).ok();
    write("fork", "bin").ok();
    machine.spark(&["stop", "trusted"]).ok();
    let (_, stream) = crate::send::send(&machine, &["trusted"]);
    let received = crate::send::receive(&machine, &["received"], &stream);
    assert!(received.stderr().contains("/spark/bin and /spark/all are writable"), "{}", received.stderr());
    machine.spark(&["resume", "received"]).ok();
    refused("received", &["bin", "all"]);

    // One that nobody vouches for does not even read what is there, whatever its record says.
    spark(&machine, "hardened", &["--hardened"]);
    assert_eq!(sh(&machine, "hardened", "0", "grep -c ' /spark' /proc/self/mounts").stdout(), "0\n");
    for args in [
        &["create", "x", "--hardened", "--shared", "ro"][..],
        &["create", "x", "--bundle", "hardened", "--shared", "rw"],
        &["create", "x", "--from", "hardened", "--shared", "rw"],
        &["fork", "hardened", "x", "--shared", "default"],
        &["create", "x", "--dry-run", "--bundle", "hardened", "--shared", "rw"],
    ] {
        assert_eq!(machine.spark(args).status(), 2, "{args:?}");
    }
    machine.configure("shared = \"rw\"\n");
    machine.spark(&["create", "configured", "--base", "minimal", "--hardened"]).ok();
    assert_eq!(sh(&machine, "configured", "0", "grep -c ' /spark' /proc/self/mounts").stdout(), "0\n");
}

/// `/etc/profile` of Debian and others sets `PATH` anew.
#[test]
fn login_shells_find_what_is_in_spark_bin() {
    let machine = machine();
    let profile =
        "export PATH=/usr/bin:/bin\nfor f in /etc/profile.d/*.sh; do [ -r \"$f\" ] && . \"$f\"; done\n";
    let with_profile = |name: &str, options: &[&str]| {
        bare(&machine, name, &[options, &["--no-start"]].concat());
        let etc = crate::inside::root(&machine, name).join("etc");
        std::fs::create_dir_all(etc.join("profile.d")).unwrap();
        std::fs::write(etc.join("profile"), profile).unwrap();
        machine.spark(&["resume", name]).ok();
        sh(&machine, name, "0", "sh -l -c 'echo $PATH'").ok()
    };
    assert_eq!(with_profile("web", &[]), "/usr/bin:/bin:/spark/bin\n");
    assert_eq!(with_profile("bare", &["--shared", "none"]), "/usr/bin:/bin\n");
    machine.configure("path = \"first\"\n");
    assert_eq!(with_profile("first", &[]), "/spark/bin:/usr/bin:/bin\n");
    machine.configure("path = \"none\"\n");
    assert_eq!(with_profile("none", &[]), "/usr/bin:/bin\n");
    // A root without the directory gets none.
    machine.configure("");
    spark(&machine, "plain", &[]);
    assert_ne!(sh(&machine, "plain", "0", "ls /etc/profile.d").status(), 0);
}

#[test]
fn a_directory_of_somebody_belongs_to_root_inside_and_what_root_makes_is_that_somebodys() {
    let machine = machine();
    let dir = machine.work().join("theirs");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "x").unwrap();
    std::fs::write(dir.join("of-root"), "x").unwrap();
    std::fs::set_permissions(dir.join("of-root"), PermissionsExt::from_mode(0o600)).unwrap();
    for path in [dir.clone(), dir.join("file")] {
        chown(path, Some(12345), Some(12345)).unwrap();
    }
    let mount = format!("type=bind,src={},dst=/theirs", dir.display());
    spark(&machine, "web", &["--mount", &mount]);
    spark(&machine, "reader", &["--mount", &format!("{mount},ro")]);
    assert_eq!(sh(&machine, "web", "0", "stat -c %u:%g /theirs /theirs/file").ok(), "0:0\n0:0\n");
    sh(&machine, "web", "0", "echo made > /theirs/new; chmod 4755 /theirs/new").ok();
    let new = std::fs::metadata(dir.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (12345, 12345));
    // The host's root is nobody here, and nobody else can make anything.
    assert!(sh(&machine, "web", "0", "cat /theirs/of-root").stderr().contains("Permission denied"));
    sh(&machine, "web", "0", "chmod 777 /theirs").ok();
    assert_ne!(sh(&machine, "web", USER, "echo > /theirs/by-user").status(), 0);
    assert!(sh(&machine, "web", "0", "chown 1000 /theirs/new").stderr().contains("Value too large"));
    let flags = sh(&machine, "web", "0", "grep ' /theirs ' /proc/self/mounts").ok();
    assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
    for user in ["0", USER] {
        let write = sh(&machine, "reader", user, "echo > /theirs/ro");
        assert!(write.stderr().contains("Read-only file system"), "{}", write.stderr());
    }
    assert_eq!(sh(&machine, "reader", "0", "cat /theirs/file").ok(), "x");
}

/// What a spark may write, it may replace by a link. The next start must not follow it.
#[test]
fn a_mount_that_a_spark_turned_into_a_link_is_refused_at_the_next_start() {
    let machine = machine();
    let (dir, secret) = (machine.work().join("tree"), machine.work().join("secret"));
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("key"), "x").unwrap();
    symlink(&dir, machine.work().join("link")).unwrap();
    let mounts = ["type=bind,src=link,dst=/tree", "type=bind,src=tree/sub,dst=/sub"];
    // A link that the user names is the user's own.
    spark(&machine, "web", &["--mount", mounts[0], "--mount", mounts[1]]);
    let swap = format!("mv /tree/sub /tree/old; ln -s {} /tree/sub", secret.display());
    sh(&machine, "web", "0", &swap).ok();
    assert!(dir.join("sub").is_symlink());
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    let message = machine.spark(&["resume", "web", "--json"]).fails_with("host");
    assert!(message.contains("leads to"), "{message}");
    std::fs::remove_file(dir.join("sub")).unwrap();
    std::fs::rename(dir.join("old"), dir.join("sub")).unwrap();
    machine.spark(&["resume", "web"]).ok();
}
