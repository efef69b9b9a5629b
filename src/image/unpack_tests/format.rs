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
    // Directories that are not in the archive count too.
    let e = Place::new().unpack_limited(&tar().file("a/b/c", "").file("d", "").end(), many).unwrap_err();
    assert!(e.to_string().contains("`d`"), "{e}");
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
    // Version 0.0 repeats its records, and a file may be a hole alone.
    let place = Place::new();
    let pieces: &[(&[u8], &[u8])] = &[
        (b"GNU.sparse.size", b"12"),
        (b"GNU.sparse.numblocks", b"2"),
        (b"GNU.sparse.offset", b"1"),
        (b"GNU.sparse.numbytes", b"2"),
        (b"GNU.sparse.offset", b"9"),
        (b"GNU.sparse.numbytes", b"1"),
    ];
    let hole: &[(&[u8], &[u8])] = &[(b"GNU.sparse.size", b"5"), (b"GNU.sparse.numblocks", b"0")];
    place.unpack(&tar().pax(pieces).file("old", "abc").pax(hole).file("hole", "").end()).unwrap();
    assert_eq!(fs::read(place.root().join("old")).unwrap(), b"\0ab\0\0\0\0\0\0c\0\0");
    assert_eq!(fs::read(place.root().join("hole")).unwrap(), [0; 5]);
}

#[test]
fn what_has_no_content_has_none_whatever_its_size_says() {
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::Char,
        EntryType::Block,
    ] {
        for in_pax in [false, true] {
            let mut h = Tar::header(b"odd", kind, if in_pax { 0 } else { 4096 });
            h.set_link_name_literal("first").unwrap();
            let archive = tar().file("first", "1");
            let archive = if in_pax { archive.pax(&[(b"size", b"4096")]) } else { archive };
            let place = Place::new();
            place.unpack(&archive.add(h, b"").file("next", "2").end()).unwrap();
            assert_eq!(place.text("next"), "2", "{kind:?}");
            assert_eq!(
                place.root().join("odd").symlink_metadata().is_ok(),
                !matches!(kind, EntryType::Char | EntryType::Block)
            );
        }
    }
}

#[test]
fn a_global_header_counts_until_another_or_an_empty_record_takes_it_back() {
    let global = |records: &[(&[u8], &[u8])]| {
        let mut bytes = tar().pax(records).0;
        bytes[156] = b'g';
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bytes[..512]);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    let mut archive = tar();
    archive.0 = global(&[(b"mtime", b"5"), (b"comment", b"c")]);
    archive = archive.file("a", "").pax(&[(b"mtime", b"6")]).file("b", "");
    archive = archive.pax(&[(b"mtime", b""), (b"SCHILY.xattr.user.e", b"")]).file("c", "");
    archive.0.extend(global(&[(b"mtime", b"7")]));
    let place = Place::new();
    place.unpack(&archive.file("d", "").end()).unwrap();
    let time = |name: &str| fs::metadata(place.root().join(name)).unwrap().mtime();
    assert_eq!(["a", "b", "c", "d"].map(time), [5, 6, 1_000_000_000, 7]);
}

#[test]
fn what_nobody_knows_is_a_file_and_old_checksums_are_signed() {
    let place = Place::new();
    let mut odd = Tar::header(b"odd", EntryType::new(b'Z'), 3);
    odd.as_old_mut().name[..4].copy_from_slice(b"od\xff\xfe");
    odd.set_cksum();
    let signed: i64 = odd.as_bytes().iter().map(|b| i64::from(*b as i8)).sum();
    let field = odd.as_old().cksum;
    let signed = signed - field.iter().map(|b| i64::from(*b as i8)).sum::<i64>() + 8 * 32;
    odd.as_old_mut().cksum.copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    let mut archive = tar();
    archive.0.extend_from_slice(odd.as_bytes());
    archive.0.extend_from_slice(b"abc");
    archive.0.resize(1024, 0);
    // POSIX, with a version that nobody gives.
    let mut prefixed = Header::new_ustar();
    prefixed.as_old_mut().name[..4].copy_from_slice(b"file");
    prefixed.as_mut_bytes()[345..348].copy_from_slice(b"dir");
    prefixed.as_mut_bytes()[263..265].copy_from_slice(b" \0");
    for field in [100, 108, 116] {
        prefixed.as_mut_bytes()[field..field + 7].copy_from_slice(b"0000000");
    }
    prefixed.set_size(1);
    place.unpack(&archive.add(prefixed, b"x").end()).unwrap();
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"od\xff\xfe");
    assert_eq!(fs::read(place.root().join(name)).unwrap(), b"abc");
    assert_eq!(place.text("dir/file"), "x");
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
fn what_is_around_a_compressed_stream_is_passed_over_or_refused() {
    let plain = tar().file("a", "x").end();
    let skippable = [&0x184d_2a5fu32.to_le_bytes()[..], &3u32.to_le_bytes(), b"xyz"].concat();
    let (gzip, zstd, xz) = (compressed("gzip", &plain), compressed("zstd", &plain), compressed("xz", &plain));
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(28).unwrap();
    wide.write_all(&plain).unwrap();
    for (name, bytes, refused) in [
        (
            "members",
            [&compressed("gzip", &plain[..600])[..], &compressed("gzip", &plain[600..])].concat(),
            None,
        ),
        ("zeros", [&gzip[..], &[0; 700]].concat(), None),
        ("an empty member", [&compressed("gzip", b"")[..], &gzip].concat(), None),
        ("garbage", [&gzip[..], b"x"].concat(), Some("follows the end")),
        ("garbage behind zeros", [&gzip[..], &[0; 700_000], b"x"].concat(), Some("follows the end")),
        ("a member behind zeros", [&gzip[..], &[0; 3], &gzip].concat(), Some("follows the end")),
        ("skippable first", [&skippable[..], &zstd].concat(), None),
        ("skippable last", [&zstd[..], &skippable].concat(), None),
        ("xz with padding", [&xz[..], &[0; 8]].concat(), None),
        ("a wide window", wide.finish().unwrap(), Some("larger than 128 MiB")),
    ] {
        match refused {
            Some(why) => Place::new().refuses(&bytes, why),
            None => {
                let place = Place::new();
                place.unpack(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(place.text("a"), "x", "{name}");
            }
        }
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
    let too_long = "a/".repeat(33_000);
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
        // A capability of version 3, of a namespace whose root is user 5.
        (b"SCHILY.xattr.security.capability", b"\x01\0\0\x03\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0"),
    ];
    let summary = place.unpack(&tar().pax(records).file("x", "").end()).unwrap();
    let file = fs::File::open(place.root().join("x")).unwrap();
    // Some filesystems for temporary files have no user attributes: then it is counted.
    match summary.xattrs_dropped {
        3 => assert_eq!(tree::xattr(&file, b"user.note").unwrap().unwrap(), b"a\nb\0c"),
        n => assert_eq!(n, 4),
    }
    let names = tree::xattr_names(&file).unwrap();
    assert!(!names.iter().any(|n| n.starts_with(b"trusted.") || n.starts_with(b"security.cap")));
}
