//! What differs between two trees by path: what a layer of an image has to write, and what it has to hide.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::compare::{Tree, kind};
use super::memory::Memory;
use super::{File, Kind, MOST, between};
use crate::error::{Error, Result};

/// What a layer does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Writes what is there now, without what is in it.
    Write,
    /// Hides what was there.
    Hide,
}

/// Finds what a layer over `before` has to do so that `after` comes out. Directories stand before what is in them, and
/// with all that is written or hidden stand the directories that it is in, since their times have changed. Nothing
/// where the two do not differ, times aside.
///
/// # Errors
/// As [`between`]; `not_supported` also if what the layer writes is too much to be held in memory.
pub fn layer(before: &Path, after: &Path) -> Result<BTreeMap<Vec<u8>, Step>> {
    let changes = between(before, after)?.changes;
    // What was held before is given back by now, but for the list.
    let memory = Memory::new(MOST);
    let mut found = Found { a: Tree::open(before)?, b: Tree::open(after)?, steps: BTreeMap::new(), memory };
    for change in &changes {
        found.look(&change.path)?;
        let Some(from) = &change.from else { continue };
        found.look(from)?;
        // What is in a renamed directory has other paths now, and is not told of. Where it was may be another one.
        if change.kind == Kind::Renamed && change.file == File::Directory {
            found.look_inside(&change.path)?;
            found.look_inside(from)?;
        }
    }
    found.add_parents()?;
    Ok(found.steps)
}

struct Found {
    a: Tree,
    b: Tree,
    steps: BTreeMap<Vec<u8>, Step>,
    memory: Memory,
}

fn there(stat: Result<Stat>) -> Result<Option<Stat>> {
    match stat {
        Ok(stat) => Ok(Some(stat)),
        Err(Error::Io { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn is_dir(stat: &Option<Stat>) -> bool {
    stat.as_ref().is_some_and(|stat| kind(stat) == FileType::Directory)
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(b"", |slash| &path[..slash])
}

impl Found {
    /// One path, whatever is in it.
    fn look(&mut self, path: &[u8]) -> Result<()> {
        if self.steps.contains_key(path) {
            return Ok(());
        }
        let Some(now) = there(self.b.stat(path))? else {
            // What is in a directory that is gone goes with it.
            if there(self.a.stat(path))?.is_some() && is_dir(&there(self.b.stat(parent(path)))?) {
                self.add(path, Step::Hide)?;
            }
            return Ok(());
        };
        self.add(path, Step::Write)?;
        if kind(&now) == FileType::RegularFile && now.st_nlink > 1 {
            // A layer that has one of its names only would make two files of it.
            for other in self.b.paths_of(now.st_ino)? {
                self.add(&other, Step::Write)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &[u8], step: Step) -> Result<()> {
        self.memory.take::<(Vec<u8>, Step)>(path.len())?;
        self.steps.insert(path.to_owned(), step);
        Ok(())
    }

    /// All paths in a directory, on either side.
    fn look_inside(&mut self, path: &[u8]) -> Result<()> {
        let mut todo = vec![path.to_owned()];
        while let Some(dir) = todo.pop() {
            let (was, is) = (there(self.a.stat(&dir))?, there(self.b.stat(&dir))?);
            if !is_dir(&is) {
                continue;
            }
            let mut names = self.b.names(&dir, &self.memory)?;
            if is_dir(&was) {
                names.extend(self.a.names(&dir, &self.memory)?);
            }
            for name in names {
                let child = if dir.is_empty() { name } else { [&dir[..], &name].join(&b'/') };
                self.look(&child)?;
                self.memory.take::<Vec<u8>>(child.len())?;
                todo.push(child);
            }
        }
        Ok(())
    }

    fn add_parents(&mut self) -> Result<()> {
        let mut parents = BTreeSet::new();
        for path in self.steps.keys() {
            let mut at = &path[..];
            while !at.is_empty() {
                at = parent(at);
                if self.steps.contains_key(at) || !parents.insert(at.to_owned()) {
                    continue;
                }
                self.memory.take::<(Vec<u8>, Step)>(2 * at.len())?;
            }
        }
        self.steps.extend(parents.into_iter().map(|path| (path, Step::Write)));
        Ok(())
    }
}
