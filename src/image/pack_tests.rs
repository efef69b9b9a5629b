#![allow(clippy::unwrap_used)]

use super::*;
use crate::image::unpack;

#[test]
fn a_record_counts_its_own_length_where_that_gets_a_digit_more() {
    for value in [0, 1, 85, 86, 87, 88, 984, 985, 986, 987] {
        let mut pax = Vec::new();
        record(&mut pax, b"path", &vec![b'x'; value]);
        let text = String::from_utf8(pax.clone()).unwrap();
        assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), pax.len());
    }
}

#[test]
fn times_before_1970_are_written_as_they_are_read() {
    assert_eq!(time(-2, 750_000_000), "-1.25");
    assert_eq!(time(-2, 0), "-2");
    assert_eq!(time(-1, 1), "-0.999999999");
    assert_eq!((time(5, 0), time(5, 10)), ("5".into(), "5.00000001".into()));
}

#[test]
fn a_tree_deeper_than_any_path_is_packed() {
    let top = tempfile::tempdir().unwrap();
    let mut dir = crate::sys::file::open_dir(top.path()).unwrap();
    let name = [b'd'; 200];
    for _ in 0..50 {
        tree::make_dir(&dir, &name).unwrap();
        dir = tree::open_child(&dir, &name).unwrap();
    }
    tree::create_file(&dir, b"bottom").unwrap();
    tree::make_dir(crate::sys::file::open_dir(top.path()).unwrap(), b"e").unwrap();
    let (bytes, _) = pack_all(top.path(), Vec::new(), Holes::Filled, &|_| {}).unwrap();
    let back = tempfile::tempdir().unwrap();
    let options = unpack::Options {
        what: "it",
        limits: crate::image::Limits::default(),
        program: Path::new(""),
        progress: &|_| {},
        stop: None,
    };
    assert_eq!(unpack::unpack(io::Cursor::new(bytes.clone()), back.path(), &options).unwrap().entries, 53);
    let fd = crate::sys::file::open_dir(back.path()).unwrap();
    let deep = tree::open_dir(&fd, &[&name[..]; 50].join(&b'/')).unwrap();
    assert_eq!((tree::names(deep).unwrap(), tree::names(fd).unwrap().len()), (vec![b"bottom".to_vec()], 2));
    tree::clear(crate::sys::file::open_dir(back.path()).unwrap()).unwrap();
    tree::clear(crate::sys::file::open_dir(top.path()).unwrap()).unwrap();
}

#[test]
fn what_was_packed_unpacks_to_the_same_and_twice_to_the_same_bytes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let top = from.path();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    std::fs::create_dir(top.join("d".repeat(120))).unwrap();
    std::fs::write(top.join(&long), "long").unwrap();
    std::os::unix::fs::symlink("x".repeat(300), top.join("link")).unwrap();
    std::fs::write(top.join("b"), vec![9; 70_000]).unwrap();
    std::fs::hard_link(top.join("b"), top.join("c")).unwrap();
    std::fs::write(top.join(".wh.x"), "").unwrap();
    let sparse = File::create(top.join(&long).with_file_name("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 4 << 20).unwrap();
    let pack = || pack_all(top, Vec::new(), Holes::Kept, &|_| {}).unwrap();
    let ((bytes, packed), (again, _)) = (pack(), pack());
    assert_eq!(packed.markers, 1);
    assert!(bytes == again);
    let limits = crate::image::Limits::default();
    let options =
        unpack::Options { what: "it", limits, program: Path::new(""), progress: &|_| {}, stop: None };
    unpack::unpack(io::Cursor::new(bytes.clone()), to.path(), &options).unwrap();
    assert_eq!(std::fs::read(to.path().join(&long)).unwrap(), b"long");
    let meta = |dir: &Path, name: &str| std::fs::symlink_metadata(dir.join(name)).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(meta(to.path(), "b").ino(), meta(to.path(), "c").ino());
    for name in ["b", "link", "c", &long] {
        let (a, b) = (meta(top, name), meta(to.path(), name));
        assert_eq!((a.mtime(), a.mtime_nsec(), a.mode()), (b.mtime(), b.mtime_nsec(), b.mode()), "{name}");
    }
    assert!(!to.path().join(".wh.x").exists());
    let unpacked = to.path().join(&long).with_file_name("sparse");
    assert!(
        std::fs::read(&unpacked).unwrap()
            == std::fs::read(unpacked.strip_prefix(to.path()).map(|p| top.join(p)).unwrap()).unwrap()
    );
    assert!(bytes.len() < 1 << 20, "holes were written as zeros: {} bytes", bytes.len());
    // An image's layer has zeros in their place, and no more of them than anybody waits for.
    let filled = || pack_all(top, io::sink(), Holes::Filled, &|_| {});
    assert!(filled().is_ok());
    sparse.set_len(MOST_ZEROS + (4 << 20)).unwrap();
    assert!(matches!(filled(), Err(Error::NotSupported { .. })));
}
