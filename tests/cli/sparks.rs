//! The life of sparks.

use crate::common::wait_for;
use crate::transcript::Transcript;

#[test]
fn a_spark_is_made_listed_and_shown() {
    let mut t = Transcript::new();
    t.run("list");
    t.run("list --json");
    t.run("create web");
    t.run("create web");
    t.run("create db --no-start --label tier=data -e A=1 -w /srv -u nobody --memory 512M --json");
    t.run("create");
    t.run("create quiet -q");
    t.run("create -");
    t.run("create shop/web");
    t.run("create plan --dry-run --cpus 1.5");
    t.run("create bad --base nope");
    t.run("create bad --mount type=bind,src=/does/not/exist,dst=/x");
    t.run("ls");
    t.run("list -a");
    t.run("list -q");
    t.run("list -aq --json");
    t.run("list -P shop --json");
    t.run("info web");
    t.run("info db");
    t.run("info web --json");
    t.run("info wbe");
    t.matches("create_list_info");
}

#[test]
fn the_plan_as_json_holds_the_oci_configuration() {
    let t = Transcript::new();
    let plan = t.machine.spark(&["create", "web", "--dry-run", "--json"]).json();
    assert_eq!(plan["name"], "web");
    assert_eq!(plan["config"]["ociVersion"].as_str().unwrap().split('.').next(), Some("1"));
    assert!(plan["config"]["linux"]["uidMappings"].is_array(), "{plan}");
    assert_eq!(t.machine.spark(&["list", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn commands_run_in_sparks() {
    let mut t = Transcript::new();
    t.run("create web");
    t.run("exec web echo hello");
    t.run("exec web -- sh -c 'echo out; echo err >&2; exit 3'");
    t.run("exec -e A=1 -e A=2 -w /tmp -u nobody web -- sh -c 'echo $A $PWD $(id -u)'");
    t.run("exec - -- sh -c 'hostname | cut -c 1-4; echo $PWD'");
    t.run("exec - --base nope true");
    t.run("exec web --pids 64 true");
    t.run("exec web -w /does/not/exist true");
    t.run("exec web -u nobody2 true");
    t.run("exec web -u nobody:staff2 true");
    t.run("exec web nope");
    t.run("exec web --json nope");
    t.run("exec web");
    t.run("exec -d - true");
    t.run("console web -- sh -c 'echo no terminal; exit 5'");
    t.run("console nope");
    t.run("list -q");
    t.matches("exec_console");
}

#[test]
fn limits_and_labels_are_set_and_what_cannot_be_is_said() {
    let mut t = Transcript::new();
    t.run("create web -q --no-start --memory 64M --label a=b");
    t.run("set web --memory 128M --cpus 1.5 --pids 100 --io 20M --unlabel a --label c=d");
    t.run("info web");
    t.run("set web --memory none --cpus none --pids none --io none");
    t.run("info web --json");
    t.run("set web");
    t.run("set web --memory 1K");
    t.run("set web --pids 1");
    t.run("set web --io slow");
    t.run("set web --disk 1G");
    t.run("set nobody web --memory 1G");
    t.run("create big --disk 1G");
    t.run("top");
    t.matches("set");
}

#[test]
fn sparks_stop_resume_and_pause() {
    let mut t = Transcript::new();
    t.run("create web");
    t.run("pause web");
    t.run("pause web");
    t.run("list");
    t.run("resume web");
    t.run("resume web");
    t.run("stop web -t 1");
    t.run("stop web");
    t.run("pause web");
    t.run("list");
    t.run("resume web nope --json");
    t.run("stop nope web");
    t.run("stop web -t soon");
    t.matches("stop_resume_pause");
}

#[test]
fn sparks_are_deleted_brought_back_and_renamed() {
    let mut t = Transcript::new();
    t.run("create web");
    t.run("delete web");
    t.run("delete -f web");
    t.run("delete web");
    t.run("list --deleted");
    t.run("list --deleted --json");
    t.run("list --deleted -q");
    t.run("undelete wbe");
    t.run("undelete web");
    t.run("rename web shop");
    t.run("rename web shop");
    t.run("create web --no-start");
    t.run("rename web shop");
    t.run("rename web Web");
    t.run("rm web shop nope --json");
    t.run("create web --no-start");
    t.run("undelete web");
    t.run("undelete web --as old --json");
    t.run("rm --now web old");
    t.run("list --deleted");
    t.matches("delete_undelete_rename");
}

#[test]
fn detached_commands_write_to_the_log() {
    let mut t = Transcript::new();
    t.run("create web");
    t.run("logs web");
    let pid = t.machine.spark(&["exec", "-d", "web", "--", "sh", "-c", "echo one; echo two >&2; echo three"]);
    assert!(pid.ok().trim().parse::<i32>().unwrap() > 1);
    assert!(wait_for(|| t.machine.spark(&["logs", "web"]).ok().contains("three")));
    let json = t.machine.spark(&["exec", "-d", "web", "--json", "--", "true"]).json();
    assert!(json["pid"].as_i64().unwrap() > 1);
    t.run("logs web");
    t.run("logs web -n 1");
    t.run("logs web --json");
    t.run("logs web --json -f");
    t.run("logs nope");
    t.run("exec -d web nope");
    t.matches("logs");
}

#[test]
fn gc_names_what_it_frees() {
    let mut t = Transcript::new();
    t.run("gc");
    t.run("gc --json");
    let half_made = t.machine.pool().join("staging/01ARZ3NDEKTSV4RRFFQ69G5FAV");
    std::fs::create_dir(&half_made).unwrap();
    t.run("gc --dry-run");
    t.run("gc --dry-run --json");
    assert!(half_made.exists());
    t.run("gc");
    assert!(!half_made.exists());
    t.run("gc");
    t.matches("gc");
}

#[test]
fn files_are_copied_and_what_is_wrong_is_said() {
    let mut t = Transcript::new();
    let work = t.machine.work();
    std::fs::create_dir_all(work.join("dir/sub")).unwrap();
    std::fs::write(work.join("file"), "content").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, work.join("dir/fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(work.join("dir/socket")).unwrap();
    t.run("create web --no-start");
    t.run("cp file web:/srv");
    t.run("cp file dir/. web:/srv/ --json");
    t.run("cp web:/srv/file - ");
    t.run("cp web:/srv/file out");
    t.run("cp file web:/srv/no/such/directory");
    t.run("cp file web:/no/");
    t.run("cp web:/nothing .");
    t.run("cp dir web:/srv/file");
    t.run("cp file web:/srv");
    t.run("cp web:/srv/sub file");
    t.run("cp file file2 web:/srv/new");
    t.run("cp file out");
    t.run("cp file Web:/srv");
    t.run("cp file web:");
    t.run("cp file wbe:/srv");
    t.run("cp file web@before:/srv");
    t.run("cp web@before:/srv/file .");
    t.run("cp web:/ web:/srv");
    t.run("cp web:/srv/file");
    t.matches("cp");
}
