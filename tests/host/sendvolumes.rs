//! Sparks that go from one pool to another together with their data volumes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::{Machine, tree};
use crate::receive::{
    Receiver, UUID, UUID_TEXT, clone, file, header, record, sealed, section, section_of, subvolume,
    subvolume_of, uuid_of, write,
};
use crate::send::{receive, send};

/// A machine with a spark that has the volume `own` to itself and shares `ours` with another.
fn sender() -> Machine {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--no-start", "-v", "own:/own:ro", "-v", "ours:/ours"]).ok();
    machine.spark(&["create", "other", "--no-start", "-v", "ours:/ours"]).ok();
    mark(&machine, "web", "own", "one");
    std::fs::write(volume(&machine, "ours").join("f"), "everybody's").unwrap();
    std::fs::write(volume(&machine, "own").join("large"), vec![1; 1 << 20]).unwrap();
    machine
}

fn directory(machine: &Machine, spark: &str) -> PathBuf {
    machine.pool().join("projects/default/sparks").join(spark)
}

fn volume(machine: &Machine, name: &str) -> PathBuf {
    machine.pool().join("projects/default/data").join(name).join("fs")
}

/// Writes to the root of a spark and to a volume of it.
fn mark(machine: &Machine, spark: &str, name: &str, text: &str) {
    for top in [directory(machine, spark).join("root"), volume(machine, name)] {
        std::fs::write(top.join("mark"), text).unwrap();
    }
}

#[track_caller]
fn has(machine: &Machine, spark: &str, name: &str, text: &str) {
    for top in [directory(machine, spark).join("root"), volume(machine, name)] {
        assert_eq!(std::fs::read_to_string(top.join("mark")).unwrap(), text, "{}", top.display());
    }
}

fn volumes(machine: &Machine, spark: &str) -> Value {
    machine.spark(&["--json", "info", spark]).json()["options"]["volumes"].clone()
}

fn copy(machine: &Machine, snapshot: &str, name: &str) -> PathBuf {
    directory(machine, "web").join("snapshots").join(snapshot).join("data").join(name)
}

/// Whatever a receive that failed could have left something in, without the times of directories.
fn all(machine: &Machine) -> String {
    let all = tree(&machine.pool().join("projects"));
    let timeless = |line: &str| -> Vec<String> {
        let parts = line.split(' ').enumerate().filter(|(n, _)| *n != 3);
        parts.map(|(_, part)| part.to_owned()).collect()
    };
    all.lines().map(|line| timeless(line).join(" ") + "\n").collect()
}

#[test]
fn own_volumes_go_with_a_spark_and_follow_it_through_increments() {
    let (a, b) = (sender(), Machine::new());
    let out = a.command(&["send", "web"]).stderr(Stdio::piped()).stdout(Stdio::null()).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("left out data volume `ours`"), "{said}");
    let (first, stream) = send(&a, &["web"]);
    let out = receive(&b, &[], &stream);
    assert_eq!(out.ok(), "web\n");
    assert!(out.stderr().contains("left out data volume `ours`"), "{}", out.stderr());
    has(&b, "web", "own", "one");
    assert_eq!(volumes(&b, "web"), json!([{ "volume": "own", "path": "/own", "ro": true }]));
    assert_eq!(tree(&copy(&a, &first, "own")), tree(&copy(&b, &first, "own")));
    assert_eq!(b.spark(&["--json", "data", "list"]).json().as_array().unwrap().len(), 1);

    let seen = |machine: &Machine| machine.spark(&["exec", "web", "--", "cat", "/mark", "/own/mark"]).ok();
    assert_eq!((seen(&a), seen(&b)), ("oneone".into(), "oneone".into()));

    mark(&a, "web", "own", "two");
    let (second, increment) = send(&a, &["web", "--since", &first]);
    assert!(increment.len() < 4096, "{} of {}", increment.len(), stream.len());
    mark(&b, "web", "own", "mine");
    let before = all(&b);
    let cut = &increment[..increment.len() - 40];
    receive(&b, &["--json"], cut).fails_with("corrupt");
    assert!(all(&b) == before);
    let out = receive(&b, &["--json"], &increment).json();
    assert_eq!(out["restored"]["volumes"], json!(["own"]));
    has(&b, "web", "own", "two");
    assert_eq!((&out["restored"]["state"], seen(&b)), (&json!("running"), "twotwo".into()));
    b.spark(&["undo", "web"]).ok();
    has(&b, "web", "own", "mine");
    assert_eq!(seen(&b), "minemine");

    // Snapshots that were received are restored as any other, and are parents all the same.
    mark(&a, "web", "own", "three");
    let (third, increment) = send(&a, &["web", "--since", &second]);
    receive(&b, &["--no-restore"], &increment).ok();
    has(&b, "web", "own", "mine");
    for (snapshot, text) in [(&third, "three"), (&first, "one"), (&second, "two")] {
        b.spark(&["snapshot", "restore", "web", snapshot]).ok();
        has(&b, "web", "own", text);
    }
    // From there on to a third place, and into a spark beside it.
    let (_, onward) = send(&b, &[&format!("web@{third}")]);
    receive(&b, &["next"], &onward).ok();
    has(&b, "next", "own-next", "three");
    has(&b, "web", "own", "two");
}

#[test]
fn a_volume_whose_name_is_taken_gets_another_and_keeps_it() {
    let (a, b) = (sender(), Machine::new());
    for name in ["own", "own-web", "ours"] {
        b.spark(&["data", "create", name]).ok();
        std::fs::write(volume(&b, name).join("mark"), "theirs").unwrap();
    }
    let (first, stream) = send(&a, &["web"]);
    let out = receive(&b, &[], &stream);
    out.ok();
    assert!(out.stderr().contains("`own` is `own-web-2` here"), "{}", out.stderr());
    assert_eq!(volumes(&b, "web"), json!([{ "volume": "own-web-2", "path": "/own", "ro": true }]));
    mark(&a, "web", "own", "two");
    let (_, increment) = send(&a, &["web", "--since", &first]);
    receive(&b, &[], &increment).ok();
    has(&b, "web", "own-web-2", "two");
    for name in ["own", "own-web", "ours"] {
        assert_eq!(std::fs::read_to_string(volume(&b, name).join("mark")).unwrap(), "theirs");
    }
}

#[test]
fn an_increment_carries_a_volume_whole_that_its_parent_does_not_hold() {
    let (a, b) = (sender(), Machine::new());
    let (first, stream) = send(&a, &["web"]);
    receive(&b, &[], &stream).ok();
    a.spark(&["delete", "--now", "other"]).ok();
    mark(&a, "web", "ours", "two");
    std::fs::write(volume(&a, "own").join("mark"), "two").unwrap();
    let (second, increment) = send(&a, &["web", "--since", &first]);
    let out = receive(&b, &[], &increment);
    out.ok();
    assert!(out.stderr().contains("`web` has no data volume `ours`"), "{}", out.stderr());
    has(&b, "web", "own", "two");
    assert_eq!(tree(&copy(&a, &second, "ours")), tree(&copy(&b, &second, "ours")));
    // As the notice says.
    b.spark(&["data", "create", "ours"]).ok();
    b.spark(&["data", "attach", "ours", "web", "/ours"]).ok();
    b.spark(&["snapshot", "restore", "web", &second]).ok();
    has(&b, "web", "ours", "two");
    mark(&a, "web", "ours", "three");
    let (_, increment) = send(&a, &["web", "--since", &second]);
    receive(&b, &[], &increment).ok();
    has(&b, "web", "ours", "three");
}

#[test]
fn a_volume_made_anew_under_the_same_name_arrives_as_it_is() {
    let (a, b) = (sender(), Machine::new());
    let (first, stream) = send(&a, &["web"]);
    receive(&b, &[], &stream).ok();
    a.spark(&["data", "detach", "own", "web"]).ok();
    a.spark(&["data", "delete", "own"]).ok();
    a.spark(&["data", "create", "own"]).ok();
    a.spark(&["data", "attach", "own", "web", "/own"]).ok();
    std::fs::write(volume(&a, "own").join("other"), "new").unwrap();
    mark(&a, "web", "own", "new");
    let (second, increment) = send(&a, &["web", "--since", &first]);
    receive(&b, &[], &increment).ok();
    has(&b, "web", "own", "new");
    assert_eq!(tree(&copy(&a, &second, "own")), tree(&copy(&b, &second, "own")));
    assert_eq!(tree(&volume(&a, "own")), tree(&volume(&b, "own")));
}

#[test]
fn a_volume_that_others_have_meanwhile_does_not_change_under_them() {
    let (a, b) = (sender(), Machine::new().with_base());
    let (first, stream) = send(&a, &["web"]);
    receive(&b, &[], &stream).ok();
    b.spark(&["create", "reader", "--no-start", "-v", "own:/own"]).ok();
    mark(&a, "web", "own", "two");
    let (second, increment) = send(&a, &["web", "--since", &first]);
    let before = all(&b);
    let message = receive(&b, &["--json"], &increment).fails_with("wrong_state");
    assert!(message.contains("attached to `reader`"), "{message}");
    assert!(all(&b) == before);
    receive(&b, &["--no-restore"], &increment).ok();
    has(&b, "web", "own", "one");
    assert_eq!(std::fs::read_to_string(copy(&b, &second, "own").join("mark")).unwrap(), "two");
}

#[test]
fn a_copy_that_was_written_to_is_nobodys_parent() {
    let (a, b) = (sender(), Machine::new());
    let (first, stream) = send(&a, &["web"]);
    receive(&b, &[], &stream).ok();
    let (_, increment) = send(&a, &["web", "--since", &first]);
    sparks::pool::btrfs::set_writable(&copy(&b, &first, "own")).unwrap();
    receive(&b, &["--json"], &increment).fails_with("corrupt");
    assert!(b.staged().is_empty());
}

const COPY: [u8; 16] = [8; 16];
const COPY_TEXT: &str = "08080808-0808-0808-0808-080808080808";

/// What a section says of a volume.
fn told(name: &str, path: &str) -> Value {
    json!({ "kind": "volume", "volume": name, "path": path, "uuid": COPY_TEXT })
}

/// The send stream of a volume.
fn content(commands: &[Vec<u8>]) -> Vec<u8> {
    subvolume_of(&COPY, None, commands)
}

fn with(volumes: &[Vec<u8>]) -> Vec<u8> {
    let root = section("root", &subvolume(&[]));
    sealed(&[record(1, header().to_string().as_bytes()), root, volumes.concat()].concat())
}

#[test]
fn no_volume_of_a_stranger_is_where_it_must_not_be() {
    let r = Receiver::new();
    let good = section_of(&told("v", "/data"), &content(&[file("f")]));
    let bad = |what: Value| with(&[section_of(&what, &content(&[]))]);
    for path in ["/a/../../etc", "..", "data", "/", "/proc/x", "/dev", "", "/a\u{0}b"] {
        r.refuses("corrupt", &bad(told("v", path)));
    }
    for name in ["..", "../v", "/v", "", "a/b", "V"] {
        r.refuses("corrupt", &bad(told(name, "/data")));
    }
    // Twice by name, twice at one place, however it is spelled.
    let second = |name: &str, path: &str| section_of(&told(name, path), &content(&[]));
    r.refuses("corrupt", &with(&[good.clone(), second("v", "/other")]));
    r.refuses("corrupt", &with(&[good.clone(), second("w", "/data")]));
    r.refuses("corrupt", &with(&[good.clone(), second("w", "/./data/")]));
    let many = |count: usize| -> Vec<Vec<u8>> {
        (0..count).map(|n| second(&format!("v{n}"), &format!("/v{n}"))).collect()
    };
    r.refuses("corrupt", &with(&many(65)));
    // Parts of it missing, of another type, or another subvolume's.
    for missing in ["volume", "path", "uuid"] {
        let mut what = told("v", "/data");
        what.as_object_mut().unwrap().remove(missing);
        r.refuses("corrupt", &bad(what));
    }
    let mut other = told("v", "/data");
    other["uuid"] = json!(UUID_TEXT);
    r.refuses("corrupt", &bad(other));
    // Out of its order, and after the end.
    let head = record(1, header().to_string().as_bytes());
    let root = section("root", &subvolume(&[]));
    r.refuses("not_supported", &sealed(&[head.clone(), good.clone(), root].concat()));
    r.refuses("not_supported", &with(&[good.clone(), section("root", &subvolume(&[]))]));
    r.refuses("corrupt", &[with(&[]), good.clone()].concat());
    r.refuses("corrupt", &with(&[good.clone(), good[..good.len() - 5].to_vec()]));

    // What the header says of volumes means nothing here.
    let mut claims = header();
    claims["spark"]["options"] = json!({ "volumes": [{ "volume": "theirs", "path": "/theirs" }] });
    r.machine.spark(&["data", "create", "theirs"]).ok();
    let root = section("root", &subvolume(&[]));
    let stream = sealed(&[record(1, claims.to_string().as_bytes()), root, good, many(63).concat()].concat());
    receive(&r.machine, &[], &stream).ok();
    let has = volumes(&r.machine, "evil");
    assert_eq!((has.as_array().unwrap().len(), &has[0]), (64, &json!({ "volume": "v", "path": "/data" })));
    assert_eq!(std::fs::read(volume(&r.machine, "v").join("f")).unwrap(), b"");
}

#[test]
fn a_volume_takes_data_from_its_own_parent_and_from_nowhere_else() {
    let r = Receiver::new();
    let share = |from: &[u8; 16]| content(&[file("f"), clone("f", (from, "g"), 4096)]);
    for from in [&UUID, &[9; 16]] {
        let message = r.refuses("corrupt", &with(&[section_of(&told("v", "/data"), &share(from))]));
        assert!(message.contains("not its parent"), "{message}");
    }
    // A whole stream has no parents.
    let mut what = told("v", "/data");
    what["parent"] = json!(UUID_TEXT);
    r.refuses("corrupt", &with(&[section_of(&what, &content(&[]))]));

    // A parent that the receiver has, but of another volume: what `v` holds is not for `w`.
    let (a, b) = (Machine::new().with_base(), Machine::new());
    a.spark(&["create", "web", "--no-start", "-v", "v:/v", "-v", "w:/w"]).ok();
    let (first, stream) = send(&a, &["web"]);
    receive(&b, &[], &stream).ok();
    let uuid = |path: &Path| sparks::pool::btrfs::info(path).unwrap().uuid;
    let snapshot = directory(&a, "web").join("snapshots").join(&first);
    let id: Value = serde_json::from_slice(&std::fs::read(snapshot.join("snapshot.json")).unwrap()).unwrap();
    let mut increment = header();
    increment["parent"] = json!({ "name": first, "id": id["id"], "uuid": uuid(&snapshot.join("root")) });
    let root = section("root", &subvolume_of(&UUID, Some(&uuid_of(&snapshot.join("root"))), &[]));
    let stream = |name: &str, parent: &Path| {
        let mut what = told(name, "/data");
        what["parent"] = json!(uuid(parent));
        let volume = section_of(&what, &subvolume_of(&COPY, Some(&uuid_of(parent)), &[]));
        sealed(&[record(1, increment.to_string().as_bytes()), root.clone(), volume].concat())
    };
    let before = all(&b);
    for (name, parent) in [("w", "data/v"), ("v", "data/w"), ("v", "root"), ("new", "data/v")] {
        let message =
            receive(&b, &["--json", "web"], &stream(name, &snapshot.join(parent))).fails_with("corrupt");
        assert!(message.contains("no such parent"), "{message}");
        assert!(b.staged().is_empty());
    }
    assert!(all(&b) == before);
    receive(&b, &["--json", "web"], &stream("w", &snapshot.join("data/w"))).ok();
}

#[test]
fn the_content_of_all_volumes_is_bounded_together() {
    let machine = Machine::with_pool(256 << 20);
    // One piece again and again, so that it is never the disk itself that is full.
    let piece = write("f", 0, &[0; 48 << 10]);
    let pieces: Vec<Vec<u8>> = (0..1500).map(|_| piece.clone()).collect();
    let large = content(&[&[file("f")], &pieces[..]].concat());
    let of = |count: usize| {
        let section = |n| section_of(&told(&format!("v{n}"), &format!("/v{n}")), &large);
        with(&(0..count).map(section).collect::<Vec<_>>())
    };
    receive(&machine, &["--json"], &of(4)).fails_with("no_space");
    assert!(machine.staged().is_empty());
    assert_eq!(machine.spark(&["--json", "data", "list"]).json(), json!([]));
    receive(&machine, &[], &of(1)).ok();
}
