//! Changes found between random trees lead from one to the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sparks::pool::btrfs;
use sparks::pool::changes::{self, Change, Kind};

use crate::common::Machine;
use crate::diff::{lines, mode};

/// What a path is, without times and inode numbers.
pub(crate) type Sketch = BTreeMap<Vec<u8>, String>;

pub(crate) fn sketch(top: &Path) -> Sketch {
    fn walk(top: &Path, path: &Path, out: &mut Sketch) {
        let full = top.join(path);
        let meta = full.symlink_metadata().unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&full).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&full).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        let text = format!("{:o} {} {}", meta.mode(), meta.uid(), content.escape_ascii());
        out.insert(path.as_os_str().as_bytes().to_owned(), text);
        if meta.is_dir() {
            for entry in fs::read_dir(full).unwrap() {
                walk(top, &path.join(entry.unwrap().file_name()), out);
            }
        }
    }
    let mut out = Sketch::new();
    walk(top, Path::new(""), &mut out);
    out
}

/// Checks that the changes lead from one tree to the other, and that there is none too many.
pub(crate) fn check(before: &Sketch, after: &Sketch, found: &[Change]) -> Result<(), String> {
    let listed: HashMap<&[u8], &Change> =
        found.iter().filter(|c| c.kind != Kind::Deleted).map(|c| (c.path.as_slice(), c)).collect();
    let source = |path: &[u8]| -> Option<Vec<u8>> {
        let mut end = path.len();
        loop {
            match listed.get(&path[..end]) {
                Some(c) if c.kind == Kind::Added => return None,
                Some(Change { from: Some(from), .. }) => return Some([from, &path[end..]].concat()),
                _ if end == 0 => return Some(path.to_owned()),
                _ => end = path[..end].iter().rposition(|b| *b == b'/').unwrap_or(0),
            }
        }
    };
    let mut used = BTreeSet::new();
    for (path, is) in after {
        let shown = path.escape_ascii();
        let change = listed.get(path.as_slice());
        let Some(from) = source(path) else {
            if change.is_none() {
                return Err(format!("{shown} is in a new directory, and is not told"));
            }
            continue;
        };
        let was = before.get(&from).ok_or_else(|| format!("{shown} is new, and is not told"))?;
        if (was != is) != change.is_some_and(|c| !c.what.is_empty()) {
            return Err(format!("{shown}: `{was}` became `{is}`, and {change:?} is told"));
        }
        used.insert(from);
    }
    // What a rename has replaced was there, or in the directory that there is now.
    let replaced = found.iter().filter(|c| c.replaced).flat_map(|c| {
        let slash = c.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let moved = source(&c.path[..slash]).map(|dir| [&dir, &c.path[slash..]].concat());
        [Some(c.path.clone()), moved].into_iter().flatten()
    });
    let replaced: BTreeSet<Vec<u8>> = replaced.collect();
    for path in before.keys() {
        let deleted = found.iter().any(|c| c.kind == Kind::Deleted && c.path == *path);
        if deleted == used.contains(path) && !replaced.contains(path) {
            return Err(format!("{} deleted: {deleted}", path.escape_ascii()));
        }
    }
    Ok(())
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Does something at random. What the filesystem refuses is not done.
fn scramble(root: &Path, dice: &mut Dice) {
    let paths: Vec<PathBuf> = sketch(root).keys().map(|p| root.join(OsStr::from_bytes(p))).collect();
    let old = paths[dice.roll(paths.len())].clone();
    let dirs: Vec<&PathBuf> = paths.iter().filter(|p| p.is_dir()).collect();
    let new = dirs[dice.roll(dirs.len())].join(["a", "b", "c", "d"][dice.roll(4)]);
    match dice.roll(9) {
        0 => drop(fs::create_dir(new)),
        1 | 2 => drop(fs::write(new, [b"x", b"y", b"z"][dice.roll(3)])),
        3..=5 if old != root => drop(fs::rename(old, new)),
        6 if old != root => drop(fs::remove_dir_all(&old).or_else(|_| fs::remove_file(&old))),
        7 => mode(old, [0o700, 0o711][dice.roll(2)]),
        8 => drop(fs::hard_link(old, new)),
        _ => {}
    }
}

#[test]
fn whatever_is_done_the_changes_lead_from_one_tree_to_the_other() {
    let machine = Machine::new();
    let top = machine.pool();
    btrfs::create(&top.join("root")).unwrap();
    let mut dice = Dice(7);
    let mut before: Option<PathBuf> = None;
    for round in 0..150 {
        for _ in 0..dice.roll(30) {
            scramble(&top.join("root"), &mut dice);
        }
        let after = top.join(format!("snapshot-{round}"));
        btrfs::snapshot_read_only(&top.join("root"), &after).unwrap();
        if let Some(before) = before {
            let found = changes::between(&before, &after).unwrap();
            if let Err(why) = check(&sketch(&before), &sketch(&after), &found.changes) {
                let (was, is) = (sketch(&before), sketch(&after));
                panic!("round {round}: {why}\n{:#?}\nbefore {was:#?}\nafter {is:#?}", lines(&found));
            }
        }
        before = Some(after);
    }
}
