//! What sparks share: `/spark/bin`, `/spark/all`, `/spark/proj`, and directories of the host.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use crate::inside::{USER, bare, machine, sh, spark};

const DIRS: [&str; 3] = ["bin", "all", "proj"];

#[test]
fn files_look_the_same_to_every_spark_whatever_its_ids() {
    let machine = machine();
    spark(&machine, "one", &[]);
    spark(&machine, "two", &[]);
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
    spark(&machine, "one", &[]);
    bare(&machine, "other/two", &[]);
    sh(&machine, "one", "0", "echo x > /spark/proj/secret; echo x > /spark/all/known").ok();
    assert_eq!(sh(&machine, "other/two", "0", "ls /spark/proj /spark/all").ok().matches("known").count(), 1);
    assert!(!sh(&machine, "other/two", "0", "ls /spark/proj").ok().contains("secret"));
}

#[test]
fn a_planted_set_uid_program_gives_nothing_in_another_spark() {
    let machine = machine();
    spark(&machine, "evil", &[]);
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
    spark(&machine, "rw", &[]);
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
