//! Sizes, sparse files, compression, damage, and names of every kind.

use super::*;

#[test]
fn sizes_that_cannot_be_are_refused_before_anything_is_written() {
    let mut h = Tar::header(b"big", EntryType::Regular, 0);
    h.set_size(u64::MAX / 2);
    Place::new().refuses(&tar().add(h, b"").end(), "larger than any");
    let mut h = Tar::header(b"big", EntryType::Regular, 0);
    h.set_size(1 << 40);
    let place = Place::new();
    let e = place
        .unpack_limited(&tar().add(h, b"").end(), Limits { bytes: 1 << 20, ..Limits::default() })
        .unwrap_err();
    assert!(e.to_string().contains("room"), "{e}");
    Place::new().refuses(&tar().pax(&[(b"size", b"99999999999999999999")]).file("x", "").end(), "number");
    let many = Limits { entries: 2, ..Limits::default() };
    let e = Place::new()
        .unpack_limited(&tar().file("a", "").file("b", "").file("c", "").end(), many)
        .unwrap_err();
    assert!(e.to_string().contains("`c`"), "{e}");
}

#[test]
fn a_header_that_would_fill_the_memory_is_refused() {
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNULongName, EntryType::GNULongLink]
    {
        Place::new().refuses(&tar().add(Tar::header(b"h", kind, 1 << 33), b"").end(), "too large");
    }
    let mut endless = tar();
    for _ in 0..100 {
        endless = endless.pax(&[(b"comment", b"x")]);
    }
    Place::new().refuses(&endless.file("x", "").end(), "without end");
}

fn sparse(real: u64, pieces: &[(u64, u64)], stored: u64) -> Header {
    let mut h = Tar::header(b"s", EntryType::GNUSparse, stored);
    let gnu = h.as_gnu_mut().unwrap();
    gnu.set_real_size(real);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(pieces) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    h
}

#[test]
fn sparse_files_are_sparse_and_their_maps_are_checked() {
    let place = Place::new();
    let size = 1 << 33;
    let summary =
        place.unpack(&tar().add(sparse(size, &[(512, 3), (1 << 32, 2)], 5), b"abcde").end()).unwrap();
    let meta = fs::metadata(place.root().join("s")).unwrap();
    assert_eq!((meta.len(), summary.bytes), (size, 5));
    assert!(meta.blocks() < 1000);
    let mut start = [0; 515];
    fs::File::open(place.root().join("s")).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start[510..], b"\0\0abc");
    let place = Place::new();
    place.unpack(&tar().add(sparse(4096, &[(4096, 0)], 0), b"").end()).unwrap();
    assert_eq!(fs::read(place.root().join("s")).unwrap(), [0; 4096]);
    for (real, pieces) in
        [(1 << 50, vec![(0u64, 5u64)]), (10, vec![(4, 3), (2, 2)]), (10, vec![(8, 5)]), (100, vec![(0, 50)])]
    {
        Place::new().refuses(&tar().add(sparse(real, &pieces, 5), b"abcde").end(), "sparse");
    }
}

#[test]
fn pax_sparse_files_of_version_1_are_read() {
    let place = Place::new();
    let mut data = b"2\n1\n2\n9\n1\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abc");
    let records: &[(&[u8], &[u8])] = &[
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"real"),
        (b"GNU.sparse.realsize", b"12"),
    ];
    let h = Tar::header(b"GNUSparseFile.0/real", EntryType::Regular, data.len() as u64);
    place.unpack(&tar().pax(records).add(h, &data).file("after", "ok").end()).unwrap();
    assert_eq!(fs::read(place.root().join("real")).unwrap(), b"\0ab\0\0\0\0\0\0c\0\0");
    assert_eq!(place.text("after"), "ok");
}

fn compressed(kind: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match kind {
        "gzip" => {
            flate2::read::GzEncoder::new(data, flate2::Compression::fast()).read_to_end(&mut out).unwrap()
        }
        "xz" => liblzma::read::XzEncoder::new(data, 1).read_to_end(&mut out).unwrap(),
        _ => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut out, 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap();
            0
        }
    };
    out
}

#[test]
fn every_compression_is_read_and_its_damage_noticed() {
    let noise: String =
        (0..5000u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let plain = tar().file("a", &noise).end();
    for kind in ["gzip", "xz", "zstd"] {
        let whole = compressed(kind, &plain);
        let place = Place::new();
        place.unpack(&whole).unwrap();
        assert_eq!(place.text("a"), noise, "{kind}");
        for cut in [7, whole.len() / 2, whole.len() - 1] {
            assert!(Place::new().unpack(&whole[..cut]).is_err(), "{kind} cut at {cut}");
        }
        let mut flipped = whole.clone();
        let at = if kind == "gzip" { whole.len() - 6 } else { whole.len() / 2 };
        flipped[at] ^= 0x55;
        assert!(Place::new().unpack(&flipped).is_err(), "{kind} flipped");
    }
}

#[test]
fn an_archive_that_is_cut_off_or_damaged_is_refused() {
    let whole = tar().file("a", "x").end();
    for cut in [1, 100, 511, 513, 700, 1024, 1300] {
        Place::new().refuses(&whole[..cut], if cut < 512 { "not a tar" } else { "too early" });
    }
    Place::new().refuses(b"", "not a tar");
    Place::new().refuses(&[b'x'; 2048], "not a tar");
    Place::new().refuses(b"BZh91AY", "bzip2");
    let mut wrong = tar().file("a", "x").file("b", "x").end();
    wrong[1024] ^= 1;
    Place::new().refuses(&wrong, "checksum");
}

#[test]
fn long_and_odd_names_are_kept_byte_for_byte() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let gnu = Tar::header(b"././@LongLink", EntryType::GNULongName, long.len() as u64 + 1);
    let odd = b"n\xff\n\x1b[31m";
    let archive = tar().add(gnu, format!("{long}\0").as_bytes()).file("short", "1");
    let archive = archive
        .pax(&[(b"path", odd)])
        .file("x", "2")
        .add(Tar::header(b"raw\xfe", EntryType::Regular, 0), b"");
    place.unpack(&archive.end()).unwrap();
    assert_eq!(place.text(&long), "1");
    assert!(place.root().join(std::ffi::OsStr::from_bytes(odd)).exists());
    assert!(place.root().join(std::ffi::OsStr::from_bytes(b"raw\xfe")).exists());
    let too_long = "a/".repeat(2100);
    Place::new().refuses(&tar().pax(&[(b"path", too_long.as_bytes())]).file("x", "").end(), "too long");
    Place::new().refuses(&tar().pax(&[(b"path", &[b'n'; 256])]).file("x", "").end(), "too long");
    let bad = tar().pax(&[(b"path", b"\x1b[2J/../x")]).file("x", "").end();
    let e = Place::new().unpack(&bad).unwrap_err().to_string();
    assert!(!e.contains('\x1b'), "{e:?}");
}

#[test]
fn attributes_of_the_user_are_kept_and_those_of_the_host_dropped() {
    let place = Place::new();
    let records: &[(&[u8], &[u8])] = &[
        (b"SCHILY.xattr.user.note", b"a\nb\0c"),
        (b"SCHILY.xattr.security.selinux", b"label"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    let summary = place.unpack(&tar().pax(records).file("x", "").end()).unwrap();
    let file = fs::File::open(place.root().join("x")).unwrap();
    // Some filesystems for temporary files have no user attributes: then it is counted.
    match summary.xattrs_dropped {
        2 => assert_eq!(tree::xattr(&file, b"user.note").unwrap().unwrap(), b"a\nb\0c"),
        n => assert_eq!(n, 3),
    }
    let names = tree::xattr_names(&file).unwrap();
    assert!(!names.iter().any(|n| n.starts_with(b"trusted.")));
}
