//! Streams that a stranger has made: refused as a whole, whatever they try.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::Digest;

use crate::common::{Machine, tree};
use crate::send::{receive, send};

pub(crate) const UUID: [u8; 16] = [7; 16];
pub(crate) const UUID_TEXT: &str = "07070707-0707-0707-0707-070707070707";
const ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

const UUID_OF: u16 = 1;
const CTRANSID: u16 = 2;
const SIZE: u16 = 4;
const MODE: u16 = 5;
const UID: u16 = 6;
const GID: u16 = 7;
const RDEV: u16 = 8;
const XATTR_NAME: u16 = 13;
const XATTR_DATA: u16 = 14;
const PATH: u16 = 15;
const PATH_TO: u16 = 16;
const PATH_LINK: u16 = 17;
const OFFSET: u16 = 18;
const DATA: u16 = 19;
const CLONE_UUID: u16 = 20;
const CLONE_CTRANSID: u16 = 21;
const CLONE_PATH: u16 = 22;
const CLONE_OFFSET: u16 = 23;
const CLONE_LEN: u16 = 24;

/// One command of a send stream.
fn command(number: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (kind, value) in attributes {
        payload.extend(kind.to_le_bytes());
        payload.extend((value.len() as u16).to_le_bytes());
        payload.extend(*value);
    }
    let mut out = (payload.len() as u32).to_le_bytes().to_vec();
    out.extend(number.to_le_bytes());
    out.extend([0; 4]);
    let sum = !crc32c::crc32c_append(crc32c::crc32c_append(!0, &out), &payload);
    out[6..].copy_from_slice(&sum.to_le_bytes());
    out.extend(payload);
    out
}

pub(crate) fn file(path: &str) -> Vec<u8> {
    command(3, &[(PATH, path.as_bytes())])
}

fn dir(path: &str) -> Vec<u8> {
    command(4, &[(PATH, path.as_bytes())])
}

fn link(path: &str, target: &Path) -> Vec<u8> {
    command(8, &[(PATH, path.as_bytes()), (PATH_LINK, target.as_os_str().as_encoded_bytes())])
}

pub(crate) fn write(path: &str, offset: u64, data: &[u8]) -> Vec<u8> {
    command(15, &[(PATH, path.as_bytes()), (OFFSET, &offset.to_le_bytes()), (DATA, data)])
}

fn truncate(path: &str, size: u64) -> Vec<u8> {
    command(17, &[(PATH, path.as_bytes()), (SIZE, &size.to_le_bytes())])
}

fn chmod(path: &str, mode: u64) -> Vec<u8> {
    command(18, &[(PATH, path.as_bytes()), (MODE, &mode.to_le_bytes())])
}

fn chown(path: &str, id: u64) -> Vec<u8> {
    command(19, &[(PATH, path.as_bytes()), (UID, &id.to_le_bytes()), (GID, &id.to_le_bytes())])
}

fn xattr(path: &str, name: &[u8], value: &[u8]) -> Vec<u8> {
    command(13, &[(PATH, path.as_bytes()), (XATTR_NAME, name), (XATTR_DATA, value)])
}

fn node(path: &str, mode: u64, device: u64) -> Vec<u8> {
    command(5, &[(PATH, path.as_bytes()), (MODE, &mode.to_le_bytes()), (RDEV, &device.to_le_bytes())])
}

pub(crate) fn clone(path: &str, from: (&[u8; 16], &str), length: u64) -> Vec<u8> {
    command(
        16,
        &[
            (PATH, path.as_bytes()),
            (OFFSET, &0u64.to_le_bytes()),
            (CLONE_LEN, &length.to_le_bytes()),
            (CLONE_UUID, from.0),
            (CLONE_CTRANSID, &1u64.to_le_bytes()),
            (CLONE_PATH, from.1.as_bytes()),
            (CLONE_OFFSET, &0u64.to_le_bytes()),
        ],
    )
}

/// A whole send stream with these commands.
pub(crate) fn subvolume(commands: &[Vec<u8>]) -> Vec<u8> {
    subvolume_of(&UUID, None, commands)
}

/// A send stream of the subvolume of a UUID, whole or relative to a parent.
pub(crate) fn subvolume_of(uuid: &[u8; 16], parent: Option<&[u8; 16]>, commands: &[Vec<u8>]) -> Vec<u8> {
    let transaction = 1u64.to_le_bytes();
    let mut what: Vec<(u16, &[u8])> = vec![(PATH, b"root"), (UUID_OF, uuid), (CTRANSID, &transaction)];
    if let Some(parent) = parent {
        what.extend([(CLONE_UUID, &parent[..]), (CLONE_CTRANSID, &transaction)]);
    }
    let first = command(1 + u16::from(parent.is_some()), &what);
    [b"btrfs-stream\0", &1u32.to_le_bytes()[..], &first, &commands.concat(), &command(21, &[])].concat()
}

/// A subvolume's UUID as a send stream has it.
pub(crate) fn uuid_of(top: &Path) -> [u8; 16] {
    let hex = sparks::pool::btrfs::info(top).unwrap().uuid.replace('-', "");
    std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind], &(payload.len() as u32).to_le_bytes()[..], payload].concat()
}

pub(crate) fn header() -> Value {
    json!({
        "spark": { "name": "evil", "id": ID, "options": {} },
        "snapshot": { "name": "s", "id": ID, "uuid": UUID_TEXT },
    })
}

/// A stream of these records, with everything around them as it should be.
pub(crate) fn sealed(records: &[u8]) -> Vec<u8> {
    sealed_from([records.to_vec()])
}

/// The same of pieces, which may be too much for memory.
fn sealed_from(pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut start = b"spark-stream".to_vec();
    start.extend(1u32.to_le_bytes());
    let mut encoder = zstd::stream::Encoder::new(start, 3).unwrap();
    for piece in pieces {
        encoder.write_all(&piece).unwrap();
    }
    let mut out = encoder.finish().unwrap();
    let sum = sha2::Sha256::digest(&out);
    out.extend(sum);
    out
}

pub(crate) fn section(kind: &str, content: &[u8]) -> Vec<u8> {
    section_of(&json!({ "kind": kind }), content)
}

/// A section that says more than its kind.
pub(crate) fn section_of(what: &Value, content: &[u8]) -> Vec<u8> {
    let mut out = record(2, what.to_string().as_bytes());
    for chunk in content.chunks(100_000) {
        out.extend(record(3, chunk));
    }
    out.extend(record(3, b""));
    out
}

fn stream(header: &Value, commands: &[Vec<u8>]) -> Vec<u8> {
    let root = section("root", &subvolume(commands));
    sealed(&[record(1, header.to_string().as_bytes()), root].concat())
}

/// A pool, and a file and a directory outside of it that nobody may touch.
pub(crate) struct Receiver {
    pub(crate) machine: Machine,
    victim: PathBuf,
    before: String,
}

impl Receiver {
    pub(crate) fn new() -> Receiver {
        let machine = Machine::new();
        let victim = machine.work().join("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("f"), "mine").unwrap();
        let before = tree(&victim);
        Receiver { machine, victim, before }
    }

    /// It is refused, and there is nothing of it anywhere.
    #[track_caller]
    pub(crate) fn refuses(&self, code: &str, stream: &[u8]) -> String {
        let message = receive(&self.machine, &["--json"], stream).fails_with(code);
        assert!(self.machine.staged().is_empty(), "{message}");
        assert_eq!(self.machine.spark(&["--json", "list", "-a"]).json(), json!([]), "{message}");
        assert_eq!(self.machine.spark(&["--json", "data", "list"]).json(), json!([]), "{message}");
        assert_eq!(tree(&self.victim), self.before, "{message}");
        message
    }
}

#[test]
fn a_stream_made_by_hand_is_taken_if_it_is_honest() {
    let r = Receiver::new();
    let commands = [
        dir("d"),
        file("d/f"),
        write("d/f", 0, &[1; 8192]),
        file("g"),
        clone("g", (&UUID, "d/f"), 8192),
        truncate("g", 1 << 50),
        chown("g", 4_000_000_000),
        chmod("", 0o751),
        node("gone", 0o20000, 0),
        link("l", Path::new("../../../../etc")),
        xattr("l", b"security.selinux", b"x"),
    ];
    let out = receive(&r.machine, &[], &stream(&header(), &commands));
    assert_eq!(out.ok(), "evil\n");
    assert!(out.stderr().contains("1 files of users or groups beyond 65535"), "{}", out.stderr());
    let root = r.machine.pool().join("projects/default/sparks/evil/root");
    use std::os::unix::fs::MetadataExt;
    let g = root.join("g").metadata().unwrap();
    assert_eq!((g.len(), g.uid(), g.gid()), (1 << 50, 65534, 65534));
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o751);
    assert_eq!(std::fs::read(root.join("d/f")).unwrap(), [1; 8192]);
}

#[test]
fn no_path_leads_out_of_the_new_root() {
    let r = Receiver::new();
    let out = r.victim.join("f");
    let above = "../".repeat(20);
    for path in
        [format!("..{}", out.display()), out.display().to_string(), format!("{above}x"), "d/../../x".into()]
    {
        r.refuses("corrupt", &stream(&header(), &[dir("d"), file(&path)]));
        r.refuses("corrupt", &stream(&header(), &[dir("d"), write(&path, 0, b"x")]));
    }
    // Links that the stream itself has planted, relative ones and absolute ones.
    let to_file = link("l", &out);
    let to_dir = link("l", &r.victim);
    let to_top = link("l", Path::new(&above));
    let f = |work: Vec<u8>| stream(&header(), &[to_file.clone(), file("own"), work]);
    let d = |work: Vec<u8>| stream(&header(), &[to_dir.clone(), file("own"), work]);
    for bad in [
        f(write("l", 0, b"x")),
        f(truncate("l", 0)),
        f(chmod("l", 0o777)),
        f(xattr("l", b"user.a", b"x")),
        f(clone("l", (&UUID, "own"), 4096)),
        f(clone("own", (&UUID, "l"), 4096)),
        d(file("l/new")),
        d(dir("l/new")),
        d(write("l/f", 0, b"x")),
        d(chmod("l/f", 0o777)),
        d(chown("l/f", 1000)),
        d(command(9, &[(PATH, b"l/f"), (PATH_TO, b"stolen")])),
        d(command(9, &[(PATH, b"own"), (PATH_TO, b"l/f")])),
        d(command(10, &[(PATH, b"stolen"), (PATH_LINK, b"l/f")])),
        d(command(11, &[(PATH, b"l/f")])),
        d(command(12, &[(PATH, b"l")])),
        stream(&header(), &[to_top, file("l/x")]),
    ] {
        r.refuses("corrupt", &bad);
    }
}

#[test]
fn data_comes_from_the_stream_or_its_parent_and_from_nowhere_else() {
    let r = Receiver::new();
    let commands = [file("f"), clone("f", (&[9; 16], "etc/shadow"), 4096)];
    let message = r.refuses("corrupt", &stream(&header(), &commands));
    assert!(message.contains("not its parent"), "{message}");
    // A real subvolume of this pool: what another spark holds.
    let m = Machine::new().with_base();
    m.spark(&["create", "web", "--no-start"]).ok();
    let root = m.pool().join("projects/default/sparks/web/root");
    std::fs::write(root.join("secret"), [1; 4096]).unwrap();
    let (name, _) = send(&m, &["web"]);
    for top in [root.clone(), root.join("../snapshots").join(name).join("root")] {
        let commands = [file("f"), clone("f", (&uuid_of(&top), "secret"), 4096)];
        receive(&m, &["--json"], &stream(&header(), &commands)).fails_with("corrupt");
    }
    // A parent is what the receiver finds under the name that the header gives, and no other.
    let mut increment = header();
    increment["parent"] = json!({ "name": "s", "id": ID, "uuid": UUID_TEXT });
    receive(&m, &["--json", "web"], &stream(&increment, &[])).fails_with("not_found");
    assert!(m.staged().is_empty());
}

#[test]
fn a_stream_is_what_its_header_says() {
    let r = Receiver::new();
    let mut other = header();
    other["snapshot"]["uuid"] = json!("09090909-0909-0909-0909-090909090909");
    r.refuses("corrupt", &stream(&other, &[]));
    for (field, value) in [("name", "../evil"), ("name", "."), ("id", "../../x")] {
        let mut bad = header();
        bad["spark"][field] = json!(value);
        r.refuses("corrupt", &stream(&bad, &[]));
        let mut bad = header();
        bad["snapshot"][field] = json!(value);
        r.refuses("corrupt", &stream(&bad, &[]));
    }
    for options in [
        json!({ "hostname": "a\nb" }),
        json!({ "hostname": "../x" }),
        json!({ "env": { "A=B": "x" } }),
        json!({ "env": { "A": "x\u{0}" } }),
        json!({ "workdir": "relative" }),
        json!({ "user": "a\u{1b}[31m" }),
        json!({ "labels": { "": "x" } }),
        json!({ "network": "all" }),
        json!(7),
    ] {
        let mut bad = header();
        bad["spark"]["options"] = options.clone();
        let message = r.refuses("corrupt", &stream(&bad, &[]));
        assert!(!message.contains(['\u{1b}', '\n']), "{options}");
    }
    let mut bad = header();
    bad["spark"]["options"] = json!({ "bundle": "privileged", "mounts": [{ "src": "/", "dst": "/mnt" }] });
    receive(&r.machine, &[], &stream(&bad, &[])).ok();
    let info = r.machine.spark(&["--json", "info", "evil"]).json();
    assert_eq!((info["options"].get("bundle"), info["options"].get("mounts")), (None, None));
}

#[test]
fn no_size_is_unbounded() {
    let r = Receiver::new();
    let head = record(1, header().to_string().as_bytes());
    // Records and commands that are longer than any.
    let mut large = header();
    large["x"] = json!("x".repeat(2 << 20));
    r.refuses("corrupt", &stream(&large, &[]));
    r.refuses("corrupt", &sealed(&[&[1], &u32::MAX.to_le_bytes()[..]].concat()));
    let long = [b"btrfs-stream\0", &1u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[0; 6]].concat();
    r.refuses("corrupt", &sealed(&[head.clone(), section("root", &long)].concat()));
    // Ranges that no file has.
    for bad in [
        write("f", u64::MAX - 1, b"xx"),
        write("f", i64::MAX as u64, b"xx"),
        truncate("f", u64::MAX),
        clone("f", (&UUID, "f"), u64::MAX),
        clone("f", (&UUID, "f"), 0),
        clone("f", (&UUID, "f"), 1 << 40),
    ] {
        r.refuses("corrupt", &stream(&header(), &[file("f"), bad]));
    }
    // A small stream that becomes more than there is room for: 1.2 GB of zeros in a pool of 1 GiB.
    let zeros = vec![0; 48 << 10];
    let whole = subvolume(&[file("f")]);
    let (first, end) = whole.split_at(whole.len() - command(21, &[]).len());
    let start = [&head, &record(2, br#"{"kind":"root"}"#), &record(3, first)].map(|r| r.to_vec()).concat();
    let bytes = (0..25_000u64).map(|i| record(3, &write("f", i * (48 << 10), &zeros)));
    let rest = [record(3, end), record(3, b"")].concat();
    let bomb = sealed_from([start].into_iter().chain(bytes).chain([rest]));
    assert!(bomb.len() < 8 << 20, "{}", bomb.len());
    r.refuses("no_space", &bomb);
    // A window that would take gigabytes to decode.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&head).unwrap();
    let mut wide = [b"spark-stream", &1u32.to_le_bytes()[..], &encoder.finish().unwrap()].concat();
    wide.extend(sha2::Sha256::digest(&wide));
    r.refuses("corrupt", &wide);
}

#[test]
fn what_no_spark_sends_is_refused() {
    let r = Receiver::new();
    let head = record(1, header().to_string().as_bytes());
    let root = section("root", &subvolume(&[]));
    for bad in [
        node("sda", 0o60660, 0x800),
        node("null", 0o20666, 0x103),
        node("file", 0o100644, 0),
        file("a/b"),
        write("none", 0, b"x"),
        command(22, &[(PATH, b"f"), (OFFSET, &0u64.to_le_bytes()), (SIZE, &1u64.to_le_bytes())]),
        command(99, &[]),
        [file("f"), file("f")].concat(),
        [command(7, &[(PATH, b"s")]), write("s", 0, b"x")].concat(),
        [command(6, &[(PATH, b"p")]), write("p", 0, b"x")].concat(),
        [file("f"), xattr("f", b"security.capability", b"nonsense")].concat(),
    ] {
        r.refuses("corrupt", &stream(&header(), &[bad]));
    }
    let mut altered = file("f");
    *altered.last_mut().unwrap() ^= 1;
    let message = r.refuses("corrupt", &stream(&header(), &[altered]));
    assert!(message.contains("checksum of a command"), "{message}");
    // Records out of their order, missing, twice, or of a kind that is to come.
    for (code, records) in [
        ("corrupt", vec![]),
        ("corrupt", vec![root.clone()]),
        ("corrupt", vec![head.clone()]),
        ("corrupt", vec![head.clone(), head.clone(), root.clone()]),
        ("corrupt", vec![head.clone(), record(9, b""), root.clone()]),
        ("corrupt", vec![head.clone(), section("root", &[subvolume(&[]), vec![0]].concat())]),
        ("corrupt", vec![head.clone(), section("root", &subvolume(&[])[..40])]),
        ("not_supported", vec![head.clone(), root.clone(), root.clone()]),
        ("not_supported", vec![head.clone(), section("data", b""), root.clone()]),
        ("not_supported", vec![head.clone(), section("root", b"btrfs-stream\0\x02\0\0\0")]),
    ] {
        r.refuses(code, &sealed(&records.concat()));
    }
    let honest = sealed(&[head, root].concat());
    let mut newer = honest.clone();
    newer[12] = 2;
    r.refuses("not_supported", &newer);
    let mut unsealed = honest.clone();
    *unsealed.last_mut().unwrap() ^= 1;
    r.refuses("corrupt", &unsealed);
    r.refuses("corrupt", &[honest.clone(), honest.clone()].concat());
    receive(&r.machine, &[], &honest).ok();
}
