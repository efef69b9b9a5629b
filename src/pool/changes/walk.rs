//! The slow way: both trees walked from end to end, name by name.
//!
//! The kernel gives up (`EIO`, "inconsistent snapshot") on two forks that made a file of one number in one
//! transaction at one tick of its clock, under two names: it takes the two for one file that has not changed, and
//! then finds that it has. Here no file is believed to be the same because it looks so.

use std::collections::BTreeSet;

use rustix::fs::{FileType, Stat};

use super::compare::{Look, Tree, compare, kind};
use super::memory::Memory;
use super::{Change, Kind, change};
use crate::error::Result;

/// A path to look at, and on which sides it is.
type Todo = (Vec<u8>, [bool; 2]);

/// Finds what differs by path. What was renamed is deleted in one place and added in another.
pub(super) fn walk(a: &Tree, b: &Tree, memory: &Memory) -> Result<Vec<Change>> {
    let look = Look { content: true, attributes: true };
    let mut found = Vec::new();
    let mut todo: Vec<Todo> = vec![(Vec::new(), [true, true])];
    memory.take::<Todo>(0)?;
    while let Some((path, [is_before, is_after])) = todo.pop() {
        memory.give_back::<Todo>(path.len());
        let before = is_before.then(|| a.stat(&path)).transpose()?;
        let after = is_after.then(|| b.stat(&path)).transpose()?;
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
            memory.take::<Change>(path.len())?;
            found.push(change(kind, path.clone(), what, stats));
        }
        let (left, right) = (names(a, &path, stats.0, memory)?, names(b, &path, stats.1, memory)?);
        for name in left.union(&right) {
            let child = if path.is_empty() { name.clone() } else { [&path[..], name].join(&b'/') };
            memory.take::<Todo>(child.len())?;
            todo.push((child, [&left, &right].map(|side| side.contains(name))));
        }
        left.iter().chain(&right).for_each(|name| memory.give_back::<Vec<u8>>(name.len()));
    }
    Ok(found)
}

fn names(tree: &Tree, path: &[u8], stat: Option<&Stat>, memory: &Memory) -> Result<BTreeSet<Vec<u8>>> {
    match stat {
        Some(stat) if kind(stat) == FileType::Directory => tree.names(path, memory),
        _ => Ok(BTreeSet::new()),
    }
}
