//! The slow way: both trees walked from end to end, name by name.
//!
//! The kernel gives up (`EIO`, "inconsistent snapshot") on two forks that made a file of one number in one
//! transaction at one tick of its clock, under two names: it takes the two for one file that has not changed, and
//! then finds that it has. Here no file is believed to be the same because it looks so.

use std::collections::BTreeSet;

use rustix::fs::{FileType, Stat};

use super::compare::{Look, Tree, compare, kind};
use super::{Change, Kind, change};
use crate::error::Result;

/// Finds what differs by path. What was renamed is deleted in one place and added in another.
pub(super) fn walk(a: &Tree, b: &Tree) -> Result<Vec<Change>> {
    let look = Look { content: true, attributes: true };
    let mut found = Vec::new();
    let mut todo = vec![(Vec::new(), Some(a.stat(b"")?), Some(b.stat(b"")?))];
    while let Some((path, before, after)) = todo.pop() {
        let stats = (before.as_ref(), after.as_ref());
        let told = match stats {
            (Some(x), Some(y)) => {
                let what = compare((a, &path, x), (b, &path, y), look)?;
                (!what.is_empty()).then_some((Kind::Modified, what))
            }
            (Some(_), None) => Some((Kind::Deleted, Vec::new())),
            _ => Some((Kind::Added, Vec::new())),
        };
        if let Some((kind, what)) = told {
            found.push(change(kind, path.clone(), what, stats));
        }
        let (left, right) = (names(a, &path, stats.0)?, names(b, &path, stats.1)?);
        for name in left.union(&right) {
            let child = if path.is_empty() { name.clone() } else { [&path[..], name].join(&b'/') };
            let stat = |tree: &Tree, names: &BTreeSet<_>| {
                names.contains(name).then(|| tree.stat(&child)).transpose()
            };
            let (x, y) = (stat(a, &left)?, stat(b, &right)?);
            todo.push((child, x, y));
        }
    }
    Ok(found)
}

fn names(tree: &Tree, path: &[u8], stat: Option<&Stat>) -> Result<BTreeSet<Vec<u8>>> {
    match stat {
        Some(stat) if kind(stat) == FileType::Directory => tree.names(path),
        _ => Ok(BTreeSet::new()),
    }
}
