//! Images that become bases.

use std::os::fd::AsFd;
use std::path::Path;

use serde_json::{Value, json};
use sparks::sys::btrfs::unshared_bytes;
use tar::EntryType;

use super::built::{Layer, Tar, busybox, index, layout, sh};
use crate::common::{Machine, tree};
use crate::together::Running;

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Three layers in three compressions, with one of everything that layers do to each other.
fn three() -> [Layer; 3] {
    let first = busybox()
        .file("gone", b"1")
        .file("d/gone", b"1")
        .file("opaque/old", b"1")
        .file("file", b"1")
        .file("tree/a/b", b"1")
        .entry("dev/null", EntryType::Char, "", b"");
    let second = Tar::default()
        .file(".wh.gone", b"")
        .file("d/.wh.gone", b"")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"2")
        .hard("hard", "file");
    let third = Tar::default().file("tree", b"3").symlink("link", "/etc/../../../outside").file("gone", b"3");
    [first.layer(), second.layer().gzip(), third.layer().zstd()]
}

#[test]
fn an_image_is_the_same_base_from_a_layout_and_from_every_archive_and_what_umoci_makes_of_it() {
    let machine = Machine::new();
    let work = machine.work();
    layout(&work.join("app"), "v1", &three(), json!({}));
    // Others do not know zstd everywhere.
    let [first, second, zipped] = three();
    let third =
        Tar::default().file("tree", b"3").symlink("link", "/etc/../../../outside").file("gone", b"3").layer();
    assert_eq!(third.diff_id, zipped.diff_id);
    layout(&work.join("app"), "gz", &[first, second, third], json!({}));
    sh(&work, "tar -cf app.tar -C app . && skopeo copy -q oci:app:gz docker-archive:docker.tar:h.x/app:v1");
    sh(
        &work,
        "gzip -k docker.tar && umoci unpack --image app:gz umoci 2>/dev/null && rm -r umoci/rootfs/dev",
    );
    let wanted = without_dirs_times(&tree(&work.join("umoci/rootfs")));
    let sources = [
        "oci:app:v1",
        "oci:app:gz",
        "oci-archive:app.tar:v1",
        "docker-archive:docker.tar",
        "docker-archive:docker.tar.gz:app:v1",
    ];
    for (number, source) in sources.iter().enumerate() {
        let base = format!("b{number}");
        let pulled = machine.spark(&["base", "pull", source, &base]);
        assert_eq!(pulled.ok(), format!("{base}\n"));
        // Of layers that are there already, nothing is left out any more.
        let said = if number == 0 { "1 device nodes or sockets were left out\n" } else { "" };
        assert_eq!(pulled.stderr(), said, "{source}");
        let root = machine.pool().join("bases").join(&base).join("root");
        assert_eq!(without_dirs_times(&tree(&root)), wanted, "{source}");
        assert_eq!(std::fs::read_to_string(root.join("gone")).unwrap(), "3");
        assert!(!root.join("opaque/old").exists());
    }
    // However often it was pulled.
    assert_eq!(names(&machine.pool().join("images/layers")).len(), 3);
    assert!(machine.staged().is_empty());
}

/// What a layer does not say itself, such as the time of a directory that something was hidden in, is nobody's.
fn without_dirs_times(tree: &str) -> Vec<String> {
    let time = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_dir = fields.get(1).is_some_and(|mode| mode.starts_with("40"));
        if is_dir { fields[..3].join(" ") } else { line.to_owned() }
    };
    tree.lines().map(time).collect()
}

#[test]
fn images_that_begin_with_the_same_layers_share_their_bytes_and_fetch_them_once() {
    let machine = Machine::new();
    let work = machine.work();
    let common = busybox().file("large", &vec![7; 3 << 20]).layer().gzip();
    let tag = |tag: &str, content: &[u8]| {
        let own = Tar::default().file("own", content).layer();
        layout(&work.join("l"), tag, &[common.clone(), own], json!({}));
    };
    tag("one", b"1");
    tag("two", b"2");
    machine.spark(&["base", "pull", "oci:l:one"]).ok();
    // What is there already is not even looked for.
    std::fs::remove_file(work.join("l/blobs/sha256").join(common.digest.hex())).unwrap();
    machine.spark(&["base", "pull", "oci:l:two"]).ok();
    machine.spark(&["base", "delete", "l-one"]).fails_with_text("default base");
    let bases = machine.pool().join("bases");
    sh(&work, &format!("sync -f {}", bases.display()));
    let large = std::fs::File::open(bases.join("l-two/root/large")).unwrap();
    assert_eq!(unshared_bytes(large.as_fd()).unwrap(), 0);
    assert_eq!(names(&machine.pool().join("images/layers")).len(), 3);
    // The same image under another name.
    machine.spark(&["base", "pull", "oci:l:two", "again"]).ok();
    assert_eq!(
        machine.spark(&["base", "pull", "oci:l:two", "again"]).stderr(),
        "base `again` is up to date\n"
    );
}

#[test]
fn a_tag_that_means_another_image_now_changes_its_base_and_no_other() {
    let machine = Machine::new();
    let dir = machine.work().join("l");
    let image = |content: &[u8]| {
        let _ = std::fs::remove_dir_all(&dir);
        layout(&dir, "v", &[busybox().file("which", content).layer()], json!({}));
    };
    image(b"old");
    machine.spark(&["base", "pull", "oci:l:v"]).ok();
    machine.spark(&["create", "before", "--base", "l-v", "--no-start"]).ok();
    image(b"new");
    machine.spark(&["base", "pull", "oci:l:v"]).ok();
    machine.spark(&["create", "after", "--image", "oci:l:v", "--no-start"]).ok();
    let which = |spark: &str| {
        std::fs::read_to_string(machine.pool().join(format!("projects/default/sparks/{spark}/root/which")))
            .unwrap()
    };
    assert_eq!((which("before"), which("after")), ("old".into(), "new".into()));
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    machine.spark(&["--json", "base", "pull", "oci:l:v", "minimal"]).fails_with("exists");
}

#[test]
fn of_an_image_for_several_platforms_the_hosts_is_taken_or_the_one_that_was_asked_for() {
    let machine = Machine::new();
    let dir = machine.work().join("l");
    for tag in ["here", "there"] {
        layout(&dir, tag, &[busybox().file("which", tag.as_bytes()).layer()], json!({}));
    }
    let own = sparks::domain::image::Platform::default().architecture;
    index(&dir, "both", &[("there", "s390x"), ("here", &own)]);
    index(&dir, "other", &[("there", "s390x")]);
    let which = |base: &str| {
        std::fs::read_to_string(machine.pool().join(format!("bases/{base}/root/which"))).unwrap()
    };
    machine.spark(&["base", "pull", "oci:l:both", "a"]).ok();
    machine.spark(&["base", "pull", "oci:l:both", "b", "--platform", "linux/s390x"]).ok();
    assert_eq!((which("a"), which("b")), ("here".into(), "there".into()));
    let message = machine.spark(&["--json", "base", "pull", "oci:l:other"]).fails_with("image");
    assert!(message.contains("not for linux/") && message.contains("for: linux/s390x"), "{message}");
    let message = machine.spark(&["--json", "base", "pull", "oci:l"]).fails_with("image");
    assert!(message.contains("4 images, and none was named"), "{message}");
    // The entries of the inner index in the layout's own, without names: one image for several platforms.
    let text = std::fs::read(dir.join("index.json")).unwrap();
    let mut all: Value = serde_json::from_slice(&text).unwrap();
    let entries = all["manifests"].as_array_mut().unwrap();
    entries.truncate(2);
    for (entry, architecture) in entries.iter_mut().zip([own.as_str(), "s390x"]) {
        entry["annotations"] = Value::Null;
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
    }
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&all).unwrap()).unwrap();
    machine.spark(&["base", "pull", "oci:l", "c"]).ok();
    machine.spark(&["base", "pull", "oci:l", "d", "--platform", "linux/s390x"]).ok();
    assert_eq!((which("c"), which("d")), ("here".into(), "there".into()));
}

#[test]
fn layers_stay_as_long_as_a_base_or_a_spark_is_made_of_them_and_gc_names_whose_they_were() {
    let machine = Machine::new().with_base();
    layout(&machine.work().join("l"), "v", &three(), json!({}));
    machine.spark(&["base", "pull", "oci:l:v", "app"]).ok();
    machine.spark(&["create", "web", "--base", "app", "--no-start"]).ok();
    machine.spark(&["base", "delete", "app"]).ok();
    let layers = machine.pool().join("images/layers");
    machine.spark(&["gc"]).ok();
    assert_eq!(names(&layers).len(), 3);
    machine.spark(&["delete", "--now", "web"]).ok();
    let items = machine.spark(&["--json", "gc"]).json();
    let owner = format!("image oci:{}:v", machine.work().join("l").display());
    let items: Vec<_> =
        items.as_array().unwrap().iter().map(|i| (i["what"].clone(), i["owner"].clone())).collect();
    let layer = (json!("layer of an image"), json!(owner));
    assert_eq!(items, [(json!("manifest of an image"), json!(owner)), layer.clone(), layer.clone(), layer]);
    assert!(names(&layers).is_empty() && names(&machine.pool().join("images/manifests")).is_empty());
}

#[test]
fn an_image_that_four_commands_want_at_once_is_pulled_once() {
    let machine = Machine::new();
    let dir = machine.work().join("l");
    layout(&dir, "v1", &[busybox().layer()], json!({}));
    let create = |name| ["create", name, "--image", "oci:l:v1", "--network", "none", "--no-start"];
    let first = Running::stopped(&machine, &create("a"), "base-pull.fetched");
    let mut others = ["b", "c", "d"].map(|name| Running::of(&machine, &create(name), &[]));
    for other in &mut others {
        other.says("another command makes base");
    }
    // What they wait for is all that they could pull.
    assert_eq!(machine.staged().len(), 1);
    first.signal(rustix::process::Signal::CONT);
    first.end().ok();
    for other in others {
        other.end().ok();
    }
    let bases = machine.spark(&["base", "list", "--json"]).json();
    assert_eq!(bases.as_array().unwrap().len(), 1, "{bases}");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "a\nb\nc\nd\n");
}
