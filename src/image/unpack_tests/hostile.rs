//! Names, links and kinds of entries that want out.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_name_that_climbs_out_fails_the_import() {
    for name in ["../outside/x", "a/../../outside/x", "..", "a/..", "/../outside/x"] {
        Place::new().refuses(&tar().file(name, "x").end(), "`..` in its name");
    }
    Place::new().refuses(&tar().pax(&[(b"path", b"../outside/x")]).file("ok", "x").end(), "`..` in its name");
}

#[test]
fn an_absolute_name_is_taken_from_the_root() {
    let place = Place::new();
    let name = format!("{}/canary", place.outside());
    place.unpack(&tar().pax(&[(b"path", name.as_bytes())]).file("x", "new").end()).unwrap();
    assert_eq!(place.text(name.trim_start_matches('/')), "new");
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let place = Place::new();
    for target in ["../outside", &place.outside(), ".", "/", "sub"] {
        let place = Place::new();
        let archive = tar().dir("sub", 0o755).symlink("l", target);
        let archive = archive.file("l/canary", "dead").end();
        place.refuses(&archive, "which is a symbolic link to");
        let place = Place::new();
        place.refuses(&tar().symlink("l", target).dir("l/new", 0o755).end(), "which is a symbolic link to");
        for entry in ["l/dir/canary", "l/dir/new", "l/dir"] {
            Place::new().refuses(
                &tar().symlink("l", target).file(entry, "dead").end(),
                "which is a symbolic link to",
            );
        }
        let place = Place::new();
        place.refuses(&tar().symlink("l", target).file("l/a/b/c", "x").end(), "which is a symbolic link to");
    }
}

#[test]
fn a_file_replaces_a_symbolic_link_instead_of_following_it() {
    let place = Place::new();
    let canary = format!("{}/canary", place.outside());
    place.unpack(&tar().symlink("l", &canary).file("l", "new").end()).unwrap();
    assert_eq!(place.text("l"), "new");
    assert!(!place.root().join("l").is_symlink());
    let place = Place::new();
    place.unpack(&tar().symlink("l", "../outside").dir("l", 0o700).file("l/f", "x").end()).unwrap();
    assert_eq!(place.text("l/f"), "x");
}

#[test]
fn a_hard_link_leads_only_to_what_is_inside() {
    let place = Place::new();
    let canary = format!("{}/canary", place.outside());
    place.refuses(&tar().hard("h", &canary).end(), "not there");
    Place::new().refuses(&tar().hard("h", "/etc/passwd").end(), "not there");
    Place::new().refuses(&tar().hard("h", "../outside/canary").end(), "`..` in its name");
    Place::new().refuses(
        &tar().symlink("l", "../outside").hard("h", "l/canary").end(),
        "which is a symbolic link to",
    );
    Place::new().refuses(&tar().dir("d", 0o755).hard("h", "d").end(), "to a directory");
    Place::new().refuses(&tar().hard("h", "").end(), "hard link");
    Place::new().refuses(
        &tar().symlink("l", "../outside").hard("h", "l/dir/canary").end(),
        "which is a symbolic link to",
    );
    let place = Place::new();
    let canary = format!("{}/canary", place.outside());
    place.unpack(&tar().symlink("l", &canary).hard("h", "l").end()).unwrap();
    assert!(place.root().join("h").is_symlink());
    // Through a hard link to a symbolic link neither.
    let place = Place::new();
    let canary = format!("{}/canary", place.outside());
    place.unpack(&tar().symlink("l", &canary).hard("h", "l").file("h", "new").end()).unwrap();
    assert_eq!(place.text("h"), "new");
}

#[test]
fn hard_links_share_their_file_until_one_is_replaced() {
    let place = Place::new();
    place.unpack(&tar().file("a", "1").hard("d/b", "/a").hard("a", "a").end()).unwrap();
    let ino = |p: &str| fs::metadata(place.root().join(p)).unwrap().ino();
    assert_eq!(ino("a"), ino("d/b"));
    let place = Place::new();
    place.unpack(&tar().file("a", "1").hard("b", "a").file("b", "2").end()).unwrap();
    assert_eq!((place.text("a"), place.text("b")), ("1".into(), "2".into()));
}

#[test]
fn devices_are_left_out_and_counted_and_fifos_kept() {
    let place = Place::new();
    let mut archive = tar();
    for kind in [EntryType::Char, EntryType::Block] {
        let mut h = Tar::header(b"dev", kind, 0);
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
        archive = archive.add(h, b"");
    }
    let summary = place.unpack(&archive.add(Tar::header(b"fifo", EntryType::Fifo, 0), b"").end()).unwrap();
    assert_eq!((summary.left_out, summary.entries), (2, 1));
    assert!(!place.root().join("dev").exists());
    let fifo = fs::symlink_metadata(place.root().join("fifo")).unwrap();
    assert_eq!(fifo.mode(), libc::S_IFIFO | 0o644);
}

#[test]
fn a_device_takes_the_place_of_a_file_and_a_link_to_it_is_left_out_too() {
    let place = Place::new();
    let device = Tar::header(b"dev", EntryType::Char, 0);
    let archive =
        tar().file("dev", "old").add(device, b"").hard("h", "./dev").hard("i", "h").file("after", "x");
    let summary = place.unpack(&archive.end()).unwrap();
    assert_eq!((summary.left_out, summary.entries), (3, 2));
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 1);
    // A file of that name that comes later is one.
    let place = Place::new();
    let device = Tar::header(b"dev", EntryType::Char, 0);
    place.unpack(&tar().add(device, b"").file("dev", "new").hard("h", "dev").end()).unwrap();
    assert_eq!(place.text("h"), "new");
}

#[test]
fn set_id_bits_sticky_bits_and_times_are_kept() {
    let place = Place::new();
    let mut su = Tar::header(b"su", EntryType::Regular, 2);
    su.set_mode(0o106755);
    place.unpack(&tar().dir("tmp", 0o1777).add(su, b"hi").file("tmp/x", "later").end()).unwrap();
    let meta = |p: &str| fs::metadata(place.root().join(p)).unwrap();
    assert_eq!(meta("su").permissions().mode() & 0o7777, 0o6755);
    assert_eq!(meta("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!((meta("tmp").mtime(), meta("su").mtime()), (1_000_000_000, 1_000_000_000));
}

#[test]
fn the_later_of_two_entries_wins_whatever_they_are() {
    let place = Place::new();
    let archive = tar().file("x", "1").symlink("x", "../outside/canary").file("x", "2");
    place
        .unpack(&archive.dir("y", 0o755).symlink("y", "../outside").file("z", "1").dir("z", 0o755).end())
        .unwrap();
    assert_eq!(place.text("x"), "2");
    assert_eq!(fs::read_link(place.root().join("y")).unwrap().to_str(), Some("../outside"));
    assert!(place.root().join("z").is_dir());
}

#[test]
fn a_directory_with_content_is_not_replaced_and_its_successor_not_written_through() {
    let archive = tar().file("d/f", "1").symlink("d", "../outside").file("d/canary", "dead").end();
    Place::new().refuses(&archive, "has something in it");
    // The directory used last is kept open: it must not outlive its removal.
    let archive = tar()
        .dir("d", 0o755)
        .add(Tar::header(b"d/p", EntryType::Fifo, 0), b"")
        .file("d/p", "")
        .symlink("d/p", "x")
        .end();
    Place::new().unpack(&archive).unwrap();
    let archive = tar().dir("d/e", 0o755).symlink("d/e", "../../outside").file("d/e/canary", "dead").end();
    Place::new().refuses(&archive, "which is a symbolic link to");
}
