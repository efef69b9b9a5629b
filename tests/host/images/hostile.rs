//! Images that want out, want everything, or are not what they say.

use std::path::Path;

use serde_json::{Value, json};
use sparks::domain::image::Digest;
use sparks::image::oci::digest_of;

use super::built::{Layer, Tar, busybox, layout};
use crate::common::Machine;

/// Nothing of a pull that failed is there: no base, no stage, and of its layers only those that were whole.
fn nothing_left(machine: &Machine, layers: usize) {
    assert_eq!(machine.spark(&["--json", "base", "list"]).json(), json!([]));
    assert!(machine.staged().is_empty());
    let count =
        |dir: &str| std::fs::read_dir(machine.pool().join("images").join(dir)).map_or(0, Iterator::count);
    assert_eq!((count("layers"), count("manifests")), (layers, 0));
}

fn pull(machine: &Machine, layers: &[Layer]) -> crate::common::Output {
    let dir = machine.work().join("l");
    let _ = std::fs::remove_dir_all(&dir);
    layout(&dir, "v", layers, json!({}));
    machine.spark(&["--json", "base", "pull", "oci:l:v"])
}

fn canary(machine: &Machine) -> impl Fn() + use<> {
    let path = machine.work().join("canary");
    std::fs::write(&path, "alive").unwrap();
    move || {
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "alive");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(&path).unwrap()), 1);
    }
}

#[test]
fn a_layer_that_is_not_what_it_should_be_is_refused_and_nothing_is_left() {
    let machine = Machine::new();
    let good = busybox().layer().gzip();
    let other = digest_of(b"other");
    type Spoil = fn(&mut Layer, &Digest);
    let wrong: [(&str, Spoil); 6] = [
        ("is not what it should be", |l, _| l.blob[40] ^= 1),
        ("is not what it should be", |l, other| l.diff_id = other.clone()),
        ("cut off 100 bytes before", |l, _| l.blob.truncate(l.blob.len() - 100)),
        ("larger than the", |l, _| l.size -= 1),
        ("cut off 1 bytes before", |l, _| l.size += 1),
        // Whole by its digest, and damaged all the same.
        ("", |l, _| {
            l.blob.truncate(l.blob.len() / 2);
            (l.digest, l.size) = (digest_of(&l.blob), l.blob.len());
        }),
    ];
    for (why, spoil) in wrong {
        let mut bad = good.clone();
        spoil(&mut bad, &other);
        let message = pull(&machine, std::slice::from_ref(&bad)).fails_with("image");
        assert!(message.contains(why), "`{message}` does not say `{why}`");
        nothing_left(&machine, 0);
    }
    // Of two, the first is whole, and is kept for the next try.
    let mut bad = Tar::default().file("x", b"x").layer();
    bad.diff_id = other;
    pull(&machine, &[good.clone(), bad]).fails_with("image");
    nothing_left(&machine, 1);
    pull(&machine, &[good]).ok();
}

#[test]
fn layers_that_want_out_of_the_root_are_refused_and_reach_nothing() {
    let machine = Machine::new();
    let alive = canary(&machine);
    let path = machine.work().join("canary");
    let (dir, path) = (machine.work(), path.to_str().unwrap().to_owned());
    let dir = dir.to_str().unwrap();
    let bad: [Vec<Tar>; 7] = [
        vec![Tar::default().file("../../canary", b"dead")],
        vec![Tar::default().file("a/../../x", b"dead")],
        vec![Tar::default().symlink("l", dir).file("l/canary", b"dead")],
        vec![Tar::default().symlink("l", dir), Tar::default().file("l/canary", b"dead")],
        vec![Tar::default().symlink("l", dir), Tar::default().file("l/.wh.canary", b"")],
        vec![Tar::default().symlink("l", dir), Tar::default().file("l/.wh..wh..opq", b"")],
        vec![Tar::default().hard("h", &path)],
    ];
    for tars in bad {
        let layers: Vec<Layer> = tars.into_iter().map(Tar::layer).collect();
        let whole = layers.len() - 1;
        pull(&machine, &layers).fails_with("image");
        alive();
        nothing_left(&machine, whole);
        machine.spark(&["gc"]).ok();
    }
    // From the root an absolute name is harmless, and so is a name that comes twice.
    let twice = Tar::default()
        .file(&path[..path.len().min(90)], b"dead")
        .file("x", b"1")
        .symlink("x", &path)
        .file("x", b"2");
    pull(&machine, &[twice.layer()]).ok();
    alive();
    assert_eq!(std::fs::read_to_string(machine.pool().join("bases/l-v/root/x")).unwrap(), "2");
}

#[test]
fn a_bomb_fills_nothing_for_long_and_a_huge_hole_is_one() {
    let machine = Machine::with_pool(256 << 20);
    let zeros = vec![0; 400 << 20];
    let bomb = Tar::default().file("zeros", &zeros).layer().zstd();
    assert!(bomb.size < 1 << 20);
    drop(zeros);
    pull(&machine, &[bomb]).fails_with("no_space");
    nothing_left(&machine, 0);
    // Larger than the pool, by what is said of it alone.
    let mut liar = Tar::default().layer();
    liar.size = 1 << 40;
    pull(&machine, &[liar]).fails_with("no_space");
    nothing_left(&machine, 0);
    let dir = machine.work().join("s");
    std::fs::create_dir(&dir).unwrap();
    std::fs::File::create(dir.join("hole")).unwrap().set_len(1 << 40).unwrap();
    super::built::sh(&machine.work(), "tar -C s --format=gnu -S -cf s.tar hole");
    let blob = std::fs::read(machine.work().join("s.tar")).unwrap();
    let hole = Layer {
        size: blob.len(),
        digest: digest_of(&blob),
        diff_id: digest_of(&blob),
        blob,
        ..busybox().layer()
    };
    pull(&machine, &[hole]).ok();
    assert_eq!(std::fs::metadata(machine.pool().join("bases/l-v/root/hole")).unwrap().len(), 1 << 40);
}

#[test]
fn a_layout_that_leads_elsewhere_or_is_no_layout_is_refused() {
    let machine = Machine::new();
    let alive = canary(&machine);
    let work = machine.work();
    let dir = layout(&work.join("l"), "v", &[busybox().layer()], json!({}));
    let spoil = |change: &dyn Fn(&mut Value)| {
        let path = dir.join("index.json");
        let text = std::fs::read(&path).unwrap();
        let mut index: Value = serde_json::from_slice(&text).unwrap();
        change(&mut index);
        std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
        machine.spark(&["--json", "base", "pull", "oci:l:v"]).fails_with("image");
        std::fs::write(&path, text).unwrap();
        nothing_left(&machine, 0);
    };
    spoil(&|index| index["manifests"][0]["digest"] = json!("sha256:../../../canary"));
    spoil(&|index| index["manifests"][0]["digest"] = json!(digest_of(b"nothing")));
    spoil(&|index| index["manifests"][0]["size"] = json!(1));
    spoil(&|index| index["manifests"] = json!({}));
    // A blob that is a link is resolved with the layout as `/`.
    let manifest = blob(&dir);
    std::fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink(work.join("canary"), &manifest).unwrap();
    machine.spark(&["--json", "base", "pull", "oci:l:v"]).fails_with("image");
    alive();
    std::fs::write(work.join("x.tar"), "nothing").unwrap();
    for bad in ["oci-archive:x.tar", "docker-archive:x.tar", "oci:."] {
        machine.spark(&["--json", "base", "pull", bad]).fails_with("image");
    }
    machine.spark(&["--json", "base", "pull", "oci:nowhere"]).fails_with("not_found");
    machine.spark(&["--json", "base", "pull", "app"]).fails_with("usage");
    nothing_left(&machine, 0);
}

fn blob(dir: &Path) -> std::path::PathBuf {
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    dir.join("blobs/sha256").join(&digest[7..])
}
