//! Streams made by hand, good and bad.

use super::*;
use crate::error::Code;

fn attribute(kind: Attribute, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((kind as u16).to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    out
}

fn number(kind: Attribute, value: u64) -> Vec<u8> {
    attribute(kind, &value.to_le_bytes())
}

fn path(path: &str) -> Vec<u8> {
    attribute(Attribute::Path, path.as_bytes())
}

fn packed(command: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let payload = attributes.concat();
    let mut out = Vec::new();
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(command.to_le_bytes());
    out.extend([0; 4]);
    let sum = checksum(&[&out, &payload]);
    out[6..].copy_from_slice(&sum.to_le_bytes());
    out.extend(payload);
    out
}

fn subvol() -> Vec<u8> {
    packed(1, &[path("root"), attribute(Attribute::Uuid, &[7; 16]), number(Attribute::Ctransid, 9)])
}

/// A stream with these commands between the first and the last.
fn stream(commands: &[Vec<u8>]) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &subvol(), &commands.concat(), &packed(21, &[])].concat()
}

fn read(stream: &[u8]) -> Result<Vec<Command>> {
    let mut reader = Reader::new(stream)?;
    let mut commands = Vec::new();
    while let Some(command) = reader.next()? {
        commands.push(command);
    }
    Ok(commands)
}

fn time(kind: Attribute, seconds: i64, nanos: u32) -> Vec<u8> {
    attribute(kind, &[&seconds.to_le_bytes()[..], &nanos.to_le_bytes()].concat())
}

/// One of every kind that carries something of its own.
fn varied() -> Vec<Vec<u8>> {
    use Attribute as A;
    vec![
        packed(4, &[path("o257-9-0"), number(A::Mode, 0)]),
        packed(9, &[path("o257-9-0"), attribute(A::PathTo, b"d")]),
        packed(5, &[path("d/n"), number(A::Mode, 0o20600), number(A::Rdev, 0x103)]),
        packed(8, &[path("d/l"), attribute(A::PathLink, b"../../etc")]),
        packed(13, &[path(""), attribute(A::XattrName, b"user.a"), attribute(A::XattrData, b"")]),
        packed(15, &[path("d/f"), number(A::FileOffset, 4096), attribute(A::Data, b"hello")]),
        packed(
            16,
            &[
                path("d/g"),
                number(A::FileOffset, 0),
                number(A::CloneLen, 5),
                attribute(A::CloneUuid, &[7; 16]),
                number(A::CloneCtransid, 9),
                attribute(A::ClonePath, b"d/f"),
                number(A::CloneOffset, 4096),
            ],
        ),
        packed(19, &[path(""), number(A::Uid, 1), number(A::Gid, u32::MAX.into())]),
        packed(20, &[path("d"), time(A::Atime, 1, 2), time(A::Mtime, -3, 4), time(A::Ctime, 5, 999_999_999)]),
        packed(22, &[path("d/f"), number(A::FileOffset, 1), number(A::Size, 2)]),
    ]
}

#[test]
fn a_stream_reads_as_it_was_written() {
    let commands = read(&stream(&varied())).unwrap();
    assert_eq!(commands[0], Command::Subvol { path: b"root".into(), uuid: [7; 16], ctransid: 9 });
    assert_eq!(commands[2], Command::Rename { path: b"o257-9-0".into(), to: b"d".into() });
    assert_eq!(commands[4], Command::Symlink { path: b"d/l".into(), link: b"../../etc".into() });
    assert_eq!(commands[6], Command::Write { path: b"d/f".into(), offset: 4096, data: b"hello".into() });
    assert_eq!(
        commands[9],
        Command::Utimes { path: b"d".into(), atime: (1, 2), mtime: (-3, 4), ctime: (5, 999_999_999) }
    );
    assert_eq!((commands.len(), commands.last()), (12, Some(&Command::End)));
}

#[test]
fn what_follows_the_end_is_left_unread() {
    let bytes = [stream(&[]), b"next".to_vec()].concat();
    let mut input = &bytes[..];
    let mut reader = Reader::new(&mut input).unwrap();
    while reader.next().unwrap().is_some() {}
    assert!(reader.next().unwrap().is_none());
    assert_eq!(input, b"next");
}

#[test]
fn a_stream_cut_off_anywhere_is_corrupt() {
    let whole = stream(&varied());
    for length in 0..whole.len() {
        let e = read(&whole[..length]).unwrap_err();
        assert_eq!(e.code(), Code::Corrupt, "{length}: {e}");
        assert!(e.to_string().contains("ends too early"), "{length}: {e}");
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let whole = stream(&varied());
    for bit in 0..whole.len() * 8 {
        let mut bad = whole.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let e = read(&bad).unwrap_err();
        assert!(matches!(e.code(), Code::Corrupt | Code::NotSupported), "{bit}: {e}");
    }
}

#[test]
fn a_command_is_bounded_before_memory_is_taken_for_it() {
    let mut bad = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    bad.extend(u32::MAX.to_le_bytes());
    bad.extend([0; 6]);
    let e = read(&bad).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the send stream is damaged: a command of 4294967295 bytes is too long (byte 17)"
    );
}

#[test]
fn a_path_leads_only_down() {
    let long = "a/".repeat(2048) + "a";
    let part = "a".repeat(256);
    for bad in ["", "/etc", "..", "a/../b", "a//b", "a/", "./a", "a\0b", &long, &part] {
        let e = read(&stream(&[packed(3, &[path(bad)])])).unwrap_err();
        assert_eq!(e.code(), Code::Corrupt, "{bad:?}");
        let link = packed(10, &[path("a"), attribute(Attribute::PathLink, bad.as_bytes())]);
        assert_eq!(read(&stream(&[link])).unwrap_err().code(), Code::Corrupt, "{bad:?}");
    }
    for good in ["a", "a/...", "..a/b\n", &"a/".repeat(2046)[..4091]] {
        read(&stream(&[packed(3, &[path(good)])])).unwrap();
    }
}

#[test]
fn what_no_kernel_would_send_is_refused() {
    use Attribute as A;
    for (bad, why) in [
        (packed(0, &[]), "command 0 is not known"),
        (packed(23, &[path("a")]), "command 23 is not known"),
        (packed(3, &[]), "Path is missing"),
        (packed(3, &[path("a"), path("b")]), "twice"),
        (packed(3, &[path("a"), vec![25, 0, 0, 0]]), "attribute 25"),
        (packed(3, &[path("a"), vec![0, 0, 0, 0]]), "attribute 0"),
        (packed(3, &[path("a"), vec![1]]), "within an attribute"),
        (packed(3, &[vec![15, 0, 9, 0, b'a']]), "longer than its command"),
        (packed(18, &[path("a"), attribute(A::Mode, &[1; 4])]), "wrong length"),
        (packed(19, &[path("a"), number(A::Uid, 1 << 32), number(A::Gid, 0)]), "Uid is too large"),
        (packed(17, &[path("a"), number(A::Size, u64::MAX)]), "Size is too large"),
        (
            packed(22, &[path("a"), number(A::FileOffset, i64::MAX as u64), number(A::Size, 1)]),
            "FileOffset is too large",
        ),
        (packed(8, &[path("a"), attribute(A::PathLink, b"")]), "points to no path"),
        (packed(14, &[path("a"), attribute(A::XattrName, b"")]), "no proper name"),
        (subvol(), "once, and first"),
    ] {
        let e = read(&stream(&[bad])).unwrap_err();
        assert!(e.code() == Code::Corrupt && e.to_string().contains(why), "{why}: {e}");
    }
    let headless = [&MAGIC[..], &VERSION.to_le_bytes(), &packed(21, &[])].concat();
    assert!(read(&headless).unwrap_err().to_string().contains("once, and first"));
}

#[test]
fn another_version_is_not_supported_and_another_file_is_no_stream() {
    let other = [&MAGIC[..], &2u32.to_le_bytes()].concat();
    assert_eq!(read(&other).unwrap_err().code(), Code::NotSupported);
    assert_eq!(read(&[b'x'; 100]).unwrap_err().code(), Code::Corrupt);
}
