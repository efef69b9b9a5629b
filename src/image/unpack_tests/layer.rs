//! Layers over layers.

use super::*;

impl Place {
    fn layer(&self, archive: &[u8]) -> Result<Summary> {
        let (limits, program) = (Limits::default(), Path::new(""));
        let options = Options { what: "an image", limits, program, progress: &|_| {}, stop: None };
        let result = apply(io::Cursor::new(archive.to_vec()), &self.root(), &options);
        self.nothing_outside_changed();
        result.map(|(summary, _)| summary)
    }

    fn layer_refused(&self, archive: &[u8], why: &str) {
        let e = self.layer(archive).unwrap_err();
        assert!(
            matches!(e, Error::Image { .. }) && e.to_string().contains(why),
            "`{e}` does not say `{why}`"
        );
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_whiteout_hides_what_is_below_and_nothing_of_its_own_layer() {
    let place = Place::new();
    place.layer(&tar().dir("d", 0o755).file("d/a", "1").file("d/b", "1").file("top", "1").end()).unwrap();
    let upper = tar().file("d/.wh.a", "").file(".wh.top", "").file("d/c", "2").file(".wh.never-was", "");
    place.layer(&upper.end()).unwrap();
    assert_eq!((place.names("d"), place.names("")), (vec!["b".into(), "c".into()], vec!["d".to_owned()]));
    // Whichever comes first.
    for archive in [tar().file("d/b", "3").file("d/.wh.b", ""), tar().file("d/.wh.b", "").file("d/b", "3")] {
        place.layer(&archive.end()).unwrap();
        assert_eq!(place.text("d/b"), "3");
    }
}

#[test]
fn an_opaque_directory_keeps_only_what_its_own_layer_has() {
    for marker_first in [true, false] {
        let place = Place::new();
        place.layer(&tar().file("d/old/er/x", "1").file("d/both/old", "1").file("d/f", "1").end()).unwrap();
        let upper = tar().dir("d", 0o755);
        let upper = if marker_first { upper.file("d/.wh..wh..opq", "") } else { upper };
        let upper = upper.file("d/both/new", "2").file("d/mine", "2");
        let upper = if marker_first { upper } else { upper.file("d/.wh..wh..opq", "") };
        place.layer(&upper.end()).unwrap();
        assert_eq!(
            (place.names("d"), place.names("d/both")),
            (vec!["both".into(), "mine".into()], vec!["new".to_owned()])
        );
    }
    let place = Place::new();
    place.layer(&tar().file("a/b", "1").file("c", "1").end()).unwrap();
    place.layer(&tar().file(".wh..wh..opq", "").file("d", "2").end()).unwrap();
    assert_eq!(place.names(""), ["d"]);
}

#[test]
fn a_whole_tree_gives_way_to_a_file_and_a_file_to_a_tree() {
    let place = Place::new();
    place.layer(&tar().file("t/a/b/c", "1").file("f", "1").symlink("l", "../outside").end()).unwrap();
    place.layer(&tar().file("t", "2").file("f/a", "2").dir("l", 0o755).file("l/x", "2").end()).unwrap_err();
    let place = Place::new();
    place.layer(&tar().file("t/a/b/c", "1").file("f", "1").symlink("l", "../outside").end()).unwrap();
    place
        .layer(&tar().file("t", "2").dir("f", 0o755).file("f/a", "2").dir("l", 0o755).file("l/x", "2").end())
        .unwrap();
    assert_eq!((place.text("t"), place.text("f/a"), place.text("l/x")), ("2".into(), "2".into(), "2".into()));
}

#[test]
fn a_hard_link_to_a_file_below_is_one_and_a_changed_file_is_none_any_more() {
    let place = Place::new();
    place.layer(&tar().file("a", "1").hard("b", "a").end()).unwrap();
    place.layer(&tar().hard("c", "a").file("b", "2").end()).unwrap();
    let inode = |name: &str| fs::metadata(place.root().join(name)).unwrap().ino();
    assert!(inode("a") == inode("c") && inode("a") != inode("b"));
    assert_eq!((place.text("a"), place.text("b")), ("1".into(), "2".into()));
}

#[test]
fn a_directory_has_only_the_attributes_that_the_last_layer_says() {
    let place = Place::new();
    let with = |name: &[u8]| tar().pax(&[(&[b"SCHILY.xattr.", name].concat(), b"1")]).dir("d", 0o755).end();
    place.layer(&with(b"user.old")).unwrap();
    place.layer(&with(b"user.new")).unwrap();
    let fd = fs::File::open(place.root().join("d")).unwrap();
    assert_eq!(tree::xattr_names(&fd).unwrap(), [b"user.new".to_vec()]);
}

#[test]
fn the_time_of_a_directory_is_that_of_the_last_layer_that_has_it() {
    let place = Place::new();
    place.layer(&tar().dir("d", 0o755).file("d/a", "1").dir("e", 0o755).end()).unwrap();
    let time = |name: &str| fs::metadata(place.root().join(name)).unwrap().mtime();
    place.layer(&tar().file("d/b", "2").file("d/.wh.a", "").end()).unwrap();
    assert_eq!((time("d"), time("e")), (1_000_000_000, 1_000_000_000));
}

#[test]
fn nothing_is_hidden_or_written_through_a_link_of_a_layer_below() {
    let outside = Place::new().outside();
    for target in ["../outside", &outside] {
        let place = Place::new();
        place.layer(&tar().symlink("l", target).end()).unwrap();
        for name in ["l/canary", "l/.wh.canary", "l/dir/.wh.canary", "l/.wh..wh..opq", "l/dir/.wh..wh..opq"] {
            place.layer_refused(&tar().file(name, "").end(), "which is a symbolic link to");
        }
        place.layer_refused(&tar().hard("h", "l/canary").end(), "which is a symbolic link to");
        place.layer(&tar().file(".wh.l", "").end()).unwrap();
        assert!(place.names("").is_empty());
    }
}

#[test]
fn a_whiteout_that_climbs_out_is_refused() {
    for name in [".wh..", ".wh...", "a/.wh...", "../.wh.outside", "a/../../.wh.outside", ".wh."] {
        let place = Place::new();
        place.layer(&tar().file("a/x", "1").end()).unwrap();
        let e = place.layer(&tar().file(name, "").end()).unwrap_err();
        assert!(matches!(e, Error::Image { .. }), "{name}: {e}");
        assert_eq!(place.names("a"), ["x"]);
    }
}

#[test]
fn the_digest_is_that_of_the_archive_without_its_compression() {
    let archive = tar().file("a", "1").end();
    let zipped = zstd::encode_all(&archive[..], 3).unwrap();
    for bytes in [&archive, &zipped] {
        let place = Place::new();
        let (limits, program) = (Limits::default(), Path::new(""));
        let options = Options { what: "an image", limits, program, progress: &|_| {}, stop: None };
        let (_, digest) = apply(io::Cursor::new(bytes.clone()), &place.root(), &options).unwrap();
        assert_eq!(digest, crate::image::oci::digest_of(&archive));
    }
}

#[test]
fn an_empty_layer_is_one() {
    Place::new().layer(&[0; 1024]).unwrap();
    Place::new().layer(b"").unwrap();
    Place::new().layer_refused(b"x", "not a tar archive");
}

#[test]
fn a_layer_may_end_without_saying_so_but_not_in_the_middle() {
    let whole = tar().file("a", "1").file("b", "2").end();
    let place = Place::new();
    place.layer(&whole[..2048]).unwrap();
    assert_eq!(place.names(""), ["a", "b"]);
    for end in [2047, 1536, 1535, 1000] {
        Place::new().layer_refused(&whole[..end], "ends too early");
    }
    Place::new().refuses(&whole[..2048], "ends too early");
}
