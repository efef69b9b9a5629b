//! Data volumes: who sees what, at once or later, and that nothing of them leads out.

use std::os::unix::fs::{MetadataExt, symlink};

use crate::common::wait_for;
use crate::inside::{USER, bare, init, machine, root, sh, spark};

#[test]
fn two_sparks_write_to_one_volume_and_see_the_same_owners() {
    let machine = machine();
    let made = machine.spark(&["create", "one", "--base", "minimal", "-v", "shared:/data"]);
    assert!(made.stderr().contains("made data volume `shared`"), "{}", made.stderr());
    made.ok();
    bare(&machine, "two", &["-v", "shared:/srv/here"]);
    sh(&machine, "one", "0", "mkdir -m 1777 /data/all; echo one > /data/all/root").ok();
    sh(&machine, "two", USER, "echo two > /srv/here/all/user").ok();
    let look = |spark: &str, dir: &str| {
        let script = format!("cd {dir}/all && stat -c '%n %u:%g' * && cat *");
        sh(&machine, spark, "0", &script).ok()
    };
    let seen = look("one", "/data");
    assert_eq!(seen, "root 0:0\nuser 1000:1000\none\ntwo\n");
    assert_eq!(seen, look("two", "/srv/here"));
    // Both at once, and no line is lost.
    let append = "i=0; while [ $i -lt 200 ]; do echo x >> $0; i=$((i+1)); done";
    let mut writer = machine.command(&["exec", "-T", "one", "--", "sh", "-c", append, "/data/log"]);
    let mut writer = writer.spawn().unwrap();
    machine.spark(&["exec", "-T", "two", "--", "sh", "-c", append, "/srv/here/log"]).ok();
    assert!(writer.wait().unwrap().success());
    assert_eq!(sh(&machine, "one", "0", "wc -l < /data/log").ok().trim(), "400");
    let on_disk = machine.pool().join("projects/default/data/shared/fs");
    assert_eq!(std::fs::metadata(on_disk.join("all/user")).unwrap().uid(), 1000);
    assert_eq!(std::fs::metadata(&on_disk).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_read_only_volume_is_so_for_root_inside_too_however_it_was_attached() {
    let machine = machine();
    machine.spark(&["data", "create", "v"]).ok();
    bare(&machine, "writer", &["-v", "v:/data"]);
    spark(&machine, "first", &["-v", "v:/data:ro"]);
    spark(&machine, "later", &[]);
    machine.spark(&["data", "attach", "v", "later", "/data:ro"]).ok();
    sh(&machine, "writer", "0", "cp /bin/busybox /data/tool; chmod 4755 /data/tool").ok();
    for name in ["first", "later"] {
        assert!(sh(&machine, name, "0", "echo x > /data/x").stderr().contains("Read-only"), "{name}");
        for attempt in [
            "mount -o remount,rw /data",
            "mount -o remount,bind,rw /data",
            "umount /data",
            "umount -l /data",
            "unshare -Urm mount -o remount,bind,rw /data",
            "unshare -Urm umount /data",
        ] {
            assert_ne!(sh(&machine, name, "0", attempt).status(), 0, "{name}: {attempt}");
        }
        assert!(sh(&machine, name, "0", "echo x > /data/x").stderr().contains("Read-only"), "{name}");
        let mounts = sh(&machine, name, "0", "grep ' /data ' /proc/self/mounts").ok();
        assert!(mounts.contains("nosuid") && mounts.contains("nodev"), "{mounts}");
    }
}

#[test]
fn a_volume_comes_and_goes_in_a_spark_that_runs() {
    let machine = machine();
    bare(&machine, "web", &[]);
    // As well as one that is there from the start.
    bare(&machine, "early", &["-v", "early:/data"]);
    assert_eq!(machine.spark(&["--json", "data", "detach", "early", "early"]).json()["effect"], "now");
    assert!(!sh(&machine, "early", "0", "cat /proc/self/mounts").ok().contains(" /data "));
    machine.spark(&["data", "create", "v"]).ok();
    let script = "until [ -e /data/go ]; do sleep 0.05; done; echo seen > /data/answer; sleep 1000";
    machine.spark(&["exec", "-d", "web", "--", "sh", "-c", script]).ok();
    let before = init(&machine, "web");
    let said = machine.spark(&["--json", "data", "attach", "v", "web", "/data"]).json();
    assert_eq!(said["effect"], "now");
    // What ran before sees it too.
    let fs = machine.pool().join("projects/default/data/v/fs");
    std::fs::write(fs.join("go"), "").unwrap();
    assert!(wait_for(|| fs.join("answer").exists()));
    assert_eq!(init(&machine, "web"), before);
    // Also below another one, and in a paused one.
    machine.spark(&["data", "create", "w"]).ok();
    machine.spark(&["pause", "web"]).ok();
    let said = machine.spark(&["--json", "data", "attach", "w", "web", "/data/below/w"]).json();
    assert_eq!(said["effect"], "now");
    sh(&machine, "web", "0", "echo x > /data/below/w/x").ok();
    assert!(machine.pool().join("projects/default/data/w/fs/x").exists());
    assert_eq!(machine.spark(&["--json", "data", "detach", "w", "web"]).json()["effect"], "now");
    let said = machine.spark(&["--json", "data", "detach", "v", "web"]).json();
    assert_eq!(said["effect"], "now");
    assert_eq!(sh(&machine, "web", "0", "ls /data").ok(), "below\n");
    assert!(machine.spark(&["--json", "info", "web"]).json()["options"]["volumes"].is_null());
}

#[test]
fn what_is_attached_stays_over_a_stop_also_one_below_another() {
    let machine = machine();
    bare(&machine, "web", &["-v", "deep:/data/sub/deep", "-v", "v:/data", "--no-start"]);
    machine.spark(&["data", "create", "w"]).ok();
    let said = machine.spark(&["--json", "data", "attach", "w", "web", "/w"]).json();
    assert_eq!(said["effect"], "next_start");
    for round in ["1", "2"] {
        sh(&machine, "web", "0", &format!("echo {round} > /data/sub/deep/x; echo {round} > /w/x")).ok();
        machine.spark(&["stop", "web"]).ok();
        for volume in ["deep", "w"] {
            let path = machine.pool().join(format!("projects/default/data/{volume}/fs/x"));
            assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{round}\n"));
        }
    }
}

#[test]
fn nothing_planted_where_a_volume_goes_leads_out() {
    let machine = machine();
    bare(&machine, "web", &[]);
    let outside = machine.work().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let inside = root(&machine, "web");
    symlink(&outside, inside.join("absolute")).unwrap();
    symlink("../../../../../../../../../../etc", inside.join("climbing")).unwrap();
    symlink("/proc/sys/kernel", inside.join("planted")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    symlink("loop", inside.join("loop")).unwrap();
    std::fs::write(inside.join("file"), "").unwrap();
    let host_etc = std::fs::read_dir("/etc").unwrap().count();
    machine.spark(&["data", "create", "v"]).ok();
    let attach = |path: &str| machine.spark(&["--json", "data", "attach", "v", "web", path]);
    // The spark's own /proc stays its own.
    for path in ["/proc", "/proc/../data", "//proc/x", "/sys", "relative"] {
        attach(path).fails_with("usage");
    }
    for path in
        ["/absolute/x", "/absolute", "/climbing/x", "/planted", "/magic/x", "/loop/x", "/file", "/file/x"]
    {
        assert_eq!(attach(path).status(), 1, "{path}");
        let volumes = &machine.spark(&["--json", "info", "web"]).json()["options"]["volumes"];
        assert!(volumes.is_null(), "{path}: {volumes}");
    }
    assert!(sh(&machine, "web", "0", "cat /proc/sys/kernel/ostype").ok().contains("Linux"));
    assert!(!sh(&machine, "web", "0", "cat /proc/self/mounts").ok().contains("/data/v/fs"));
    // Planted later, where it has been before: the start fails rather than lead elsewhere.
    assert_eq!(attach("/there/x").json()["effect"], "now");
    machine.spark(&["stop", "web"]).ok();
    std::fs::remove_dir_all(inside.join("there")).unwrap();
    symlink(&outside, inside.join("there")).unwrap();
    machine.spark(&["--json", "resume", "web"]).fails_with("internal");
    machine.spark(&["data", "detach", "v", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir("/etc").unwrap().count(), host_etc);
}

#[test]
fn a_volume_that_a_spark_has_is_not_deleted_and_one_in_the_trash_does_not_count() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data", "--no-start"]);
    let error = machine.spark(&["--json", "data", "delete", "v"]).fails_with("wrong_state");
    assert!(error.contains("`web`"), "{error}");
    machine.spark(&["--json", "data", "create", "v"]).fails_with("exists");
    machine.spark(&["--json", "data", "attach", "v", "web", "/other"]).fails_with("wrong_state");
    machine.spark(&["--json", "data", "attach", "w", "web", "/other"]).fails_with("not_found");
    machine.spark(&["data", "create", "w"]).ok();
    machine.spark(&["--json", "data", "attach", "w", "web", "/data"]).fails_with("wrong_state");
    machine.spark(&["delete", "web"]).ok();
    machine.spark(&["data", "delete", "v", "w"]).ok();
    assert_eq!(machine.spark(&["--json", "data", "list"]).json(), serde_json::json!([]));
    // Brought back without it, it says what is missing, and how to do without.
    machine.spark(&["undelete", "web"]).ok();
    let error = machine.spark(&["--json", "resume", "web"]).fails_with("wrong_state");
    assert!(error.contains("`v`"), "{error}");
    machine.spark(&["data", "detach", "v", "web"]).ok();
    machine.spark(&["resume", "web"]).ok();
}

#[test]
fn a_volume_belongs_to_its_project_and_outlives_its_sparks() {
    let machine = machine();
    machine.spark(&["data", "create", "shop/v"]).ok();
    bare(&machine, "web", &[]);
    machine.spark(&["--json", "data", "attach", "v", "web", "/data"]).fails_with("not_found");
    let run = ["exec", "-P", "shop", "-", "--base", "minimal", "-v", "v:/data", "--", "sh", "-c"];
    machine.spark(&[&run[..], &["echo kept > /data/x"]].concat()).ok();
    assert_eq!(machine.spark(&[&run[..], &["cat /data/x"]].concat()).ok(), "kept\n");
    let list = machine.spark(&["--json", "data", "list", "-P", "shop"]).json();
    assert_eq!((&list[0]["name"], &list[0]["attached"]), (&"v".into(), &serde_json::json!([])));
    machine.spark(&["--json", "project", "delete", "shop"]).fails_with("wrong_state");
    machine.spark(&["data", "delete", "shop/v"]).ok();
    machine.spark(&["project", "delete", "shop"]).ok();
}

#[test]
fn a_volume_has_snapshots_of_its_own_and_goes_back_to_them_and_forth() {
    let machine = machine();
    bare(&machine, "web", &["-v", "v:/data"]);
    sh(&machine, "web", "0", "echo one > /data/x").ok();
    assert_eq!(machine.spark(&["data", "snapshot", "v", "s"]).ok(), "s\n");
    machine.spark(&["--json", "data", "snapshot", "v", "s"]).fails_with("exists");
    sh(&machine, "web", "0", "echo two > /data/x").ok();
    // What runs would go on with the files that it has.
    machine.spark(&["--json", "data", "restore", "v", "s"]).fails_with("wrong_state");
    machine.spark(&["pause", "web"]).ok();
    machine.spark(&["--json", "data", "restore", "v", "s"]).fails_with("wrong_state");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["--json", "data", "restore", "v", "none"]).fails_with("not_found");
    let undo = machine.spark(&["--json", "data", "restore", "v", "s"]).json()["undo"].clone();
    assert_eq!(sh(&machine, "web", "0", "cat /data/x; echo three > /data/x").ok(), "one\n");
    machine.spark(&["stop", "web"]).ok();
    machine.spark(&["data", "restore", "v", undo.as_str().unwrap()]).ok();
    assert_eq!(sh(&machine, "web", "0", "cat /data/x").ok(), "two\n");
    let info = machine.spark(&["--json", "data", "info", "v"]).json();
    assert_eq!(info["snapshots"], 3);
    machine.spark(&["data", "delete", "v@s"]).ok();
    machine.spark(&["--json", "data", "delete", "v@s"]).fails_with("not_found");
    machine.spark(&["delete", "-f", "--now", "web"]).ok();
    machine.spark(&["data", "delete", "v"]).ok();
    assert!(machine.staged().is_empty());
}
