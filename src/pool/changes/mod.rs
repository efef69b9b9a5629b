//! What differs between two read-only subvolumes, in time proportional to what differs.
//!
//! The kernel compares the two as it would to send one to who has the other: where they share a part of a tree, it
//! does not look at it. Its stream, without data, tells which names and files to compare; comparing them tells
//! what to report. Two subvolumes of no common origin compare as well, and take as long as they are large.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{FileType, Stat};

use super::btrfs;
use super::stream::Reader;
use crate::error::{Error, Result};
use crate::sys;

mod compare;
mod layer;
mod memory;
mod own;
mod replay;
mod walk;

use compare::{Look, Tree, compare, kind};
pub use layer::{Step, layer};
use memory::Memory;
pub use own::own_bytes;
use replay::{Place, Replay};

/// Bytes that a comparison may hold: with what the program needs besides, and tables that grow, less than 256 MiB.
const MOST: u64 = 160 << 20;

/// Everything that differs, by path, and how many commands of the kernel's it took to find it: none where the
/// kernel gave up, and both trees were walked through.
#[derive(Debug)]
pub struct Changes {
    pub changes: Vec<Change>,
    pub commands: u64,
}

/// One path that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    /// Below the top, which is the empty path. Of what is deleted, the path it had.
    pub path: Vec<u8>,
    /// Where it was, if it was renamed.
    pub from: Option<Vec<u8>>,
    /// Whether something else was at `path` before, that a rename has replaced.
    pub replaced: bool,
    /// What differs besides the name.
    pub what: Vec<What>,
    /// What it is, or was.
    pub file: File,
    /// Bytes of a regular file before and after.
    pub size_before: Option<u64>,
    pub size_after: Option<u64>,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Added,
    Modified,
    Deleted,
    Renamed,
}

/// In what a file differs from what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Its bytes, where it points to, or its device number.
    Content,
    /// It is a directory and was a file, or the like.
    Type,
    Mode,
    Owner,
    /// Extended attributes, among them file capabilities and access control lists.
    Xattr,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum File {
    File,
    Directory,
    Symlink,
    Device,
    Fifo,
    Socket,
}

/// Finds what differs between two read-only subvolumes. Times alone do not count, and what is in a renamed directory
/// is not renamed.
///
/// # Errors
/// `denied` if one of the two is writable, `not_supported` if too much differs to be held in memory.
pub fn between(before: &Path, after: &Path) -> Result<Changes> {
    let (a, b) = (Tree::open(before)?, Tree::open(after)?);
    let memory = Rc::new(Memory::new(MOST));
    let mut found = match replayed(&b, btrfs::info(before)?.id, &memory) {
        Ok((replay, commands)) => {
            tracing::debug!(commands, names = replay.links.len(), "replayed what differs");
            let changes =
                Reduction { a: &a, b: &b, replay: &replay, memory: &memory, found: Vec::new() }.reduce()?;
            Changes { changes, commands }
        }
        Err(Error::Sys { source, .. }) if source.raw_os_error() == Some(libc::EIO) => {
            tracing::debug!("the kernel cannot tell the two apart: walking through both");
            Changes { changes: walk::walk(&a, &b, &Memory::new(MOST))?, commands: 0 }
        }
        Err(e) => return Err(e),
    };
    // Not the stable sort, which takes half as much memory again: no two have one path and one kind.
    found.changes.sort_unstable_by(|x, y| (&x.path, x.kind).cmp(&(&y.path, y.kind)));
    Ok(found)
}

/// What the kernel tells of the way from `parent` to another one, and in how many commands.
fn replayed(b: &Tree, parent: u64, memory: &Rc<Memory>) -> Result<(Replay, u64)> {
    let options =
        sys::btrfs::SendOptions { parent: Some(parent), clone_sources: Vec::new(), no_file_data: true };
    let sending = sys::btrfs::send(b.top()?, options).map_err(Error::sys("begin to send"))?;
    // The kernel writes a command at a time, a pipe gives what it has.
    let mut reader = Reader::new(std::io::BufReader::with_capacity(64 << 10, sending))?;
    let mut replay = Replay::new(Rc::clone(memory));
    let mut commands = 0;
    while let Some(command) = reader.next()? {
        replay.apply(&command)?;
        commands += 1;
    }
    Ok((replay, commands))
}

struct Reduction<'a> {
    a: &'a Tree,
    b: &'a Tree,
    replay: &'a Replay,
    memory: &'a Memory,
    found: Vec<Change>,
}

/// A name that went, or came.
struct Name<'a> {
    place: &'a Place,
    node: usize,
    path: Rc<[u8]>,
    stat: Stat,
}

/// What a name was, and what it is.
type Pair<'a> = (Name<'a>, Name<'a>);

/// Names that went, and for which nothing was found yet that they could have become.
struct Gone<'a> {
    names: Vec<Option<Name<'a>>>,
    by_inode: HashMap<u64, Vec<usize>>,
    by_place: HashMap<&'a Place, usize>,
    by_path: HashMap<Rc<[u8]>, usize>,
}

/// What the three tables hold of one name.
type GoneEntry<'a> = (u64, Vec<usize>, [usize; 4], &'a Place, usize, Rc<[u8]>, usize);

impl<'a> Gone<'a> {
    fn new(names: Vec<Name<'a>>) -> Gone<'a> {
        let mut by_inode: HashMap<u64, Vec<usize>> = HashMap::new();
        for (i, name) in names.iter().enumerate() {
            by_inode.entry(name.stat.st_ino).or_default().push(i);
        }
        let by_place = names.iter().enumerate().map(|(i, name)| (name.place, i)).collect();
        let by_path = names.iter().enumerate().map(|(i, name)| (Rc::clone(&name.path), i)).collect();
        Gone { names: names.into_iter().map(Some).collect(), by_inode, by_place, by_path }
    }

    /// Another name of an inode that is still there.
    fn take_inode(&mut self, inode: u64) -> Option<Name<'a>> {
        let index = self.by_inode.get_mut(&inode)?.pop()?;
        self.names[index].take()
    }

    /// What was where something else is now: in that directory, whatever it is called now, or at that path, if no
    /// directory was renamed to there.
    fn take_replaced(&mut self, new: &Name<'_>, replay: &Replay) -> Result<Option<Name<'a>>> {
        let index = match self.by_place.get(new.place) {
            None if replay.stays(new.place.0)? => self.by_path.get(&new.path),
            index => index,
        };
        Ok(index.and_then(|index| self.names[*index].take()))
    }
}

impl<'a> Reduction<'a> {
    fn reduce(mut self) -> Result<Vec<Change>> {
        let (mut gone, mut came, mut moved, mut added) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let replay = self.replay;
        self.same_place(b"", b"", self.look(0))?;
        for link in &replay.links {
            match (&link.before, &link.after) {
                (Some(before), None) => {
                    self.memory.take::<GoneEntry<'_>>(0)?;
                    gone.push(self.name_before(before, link.node)?);
                }
                (None, Some(after)) if replay.nodes[link.node].new => {
                    added.push(self.added(after, link.node)?);
                }
                (None, Some(after)) => came.push(self.name_after(after, link.node)?),
                (Some(before), Some(after)) if before != after => {
                    moved.push((self.name_before(before, link.node)?, self.name_after(after, link.node)?));
                }
                (Some(place), Some(_)) => {
                    let node = &replay.nodes[link.node];
                    if node.touched || node.written {
                        let (from, to) = (replay.path_before(place)?, replay.path_after(place)?);
                        self.same_place(&from, &to, self.look(link.node))?;
                    }
                }
                (None, None) => {}
            }
        }
        let mut gone = Gone::new(gone);
        // A file is renamed by a link and an unlink, maybe of another one of its names.
        for name in came {
            match gone.take_inode(name.stat.st_ino) {
                Some(from) => moved.push((from, name)),
                None => added.push(self.added(name.place, name.node)?),
            }
        }
        let (moved, others) = self.same_files(moved)?;
        for (from, to) in others {
            self.tell(alone(Kind::Deleted, &from))?;
            added.push(self.added(to.place, to.node)?);
        }
        for (from, to) in moved {
            let replaced = gone.take_replaced(&to, replay)?.is_some();
            self.renamed(&from, &to, replaced)?;
        }
        for (place, node) in added {
            let name = self.found_after(place, node)?;
            match gone.take_replaced(&name, replay)? {
                Some(old) => self.replaced(&old, &name)?,
                None => self.tell(alone(Kind::Added, &name))?,
            }
        }
        for name in gone.names.into_iter().flatten() {
            self.tell(alone(Kind::Deleted, &name))?;
        }
        self.other_names()?;
        Ok(self.found)
    }

    fn tell(&mut self, change: Change) -> Result<()> {
        self.memory.take::<Change>(change.path.len() + change.from.as_ref().map_or(0, Vec::len))?;
        self.found.push(change);
        Ok(())
    }

    /// Tells of a file that is not as it was under each of its names: the kernel writes to one of them.
    fn other_names(&mut self) -> Result<()> {
        let differs = |c: &Change| c.size_before.is_some() && c.size_after.is_some() && !c.what.is_empty();
        let mut linked = Vec::new();
        for change in self.found.iter().filter(|c| differs(c)) {
            let stat = self.b.stat(&change.path)?;
            if stat.st_nlink > 1 {
                self.memory.take::<u64>(0)?;
                linked.push(stat.st_ino);
            }
        }
        if linked.is_empty() {
            return Ok(());
        }
        let mut told: HashSet<Vec<u8>> = HashSet::new();
        for change in self.found.iter().filter(|c| c.kind != Kind::Deleted) {
            self.memory.take::<Vec<u8>>(change.path.len())?;
            told.insert(change.path.clone());
        }
        for inode in linked {
            for other in self.b.paths_of(inode)? {
                let before = self.replay.origin(&other)?;
                if let Some(before) = before.filter(|_| !told.contains(&other)) {
                    self.memory.take::<Vec<u8>>(other.len())?;
                    self.same_place(&before, &other, Look { content: true, attributes: true })?;
                    told.insert(other);
                }
            }
        }
        Ok(())
    }

    /// Tells renamed files from pairs of two. The kernel knows a file by its number and the transaction it was made
    /// in, and two forks that make files at the same time give them the same. A directory stays renamed: what is
    /// in it was compared as such.
    fn same_files(&self, pairs: Vec<Pair<'a>>) -> Result<(Vec<Pair<'a>>, Vec<Pair<'a>>)> {
        let (mut same, mut others) = (Vec::new(), Vec::new());
        for (from, to) in pairs {
            let directories = [&from, &to].iter().all(|name| kind(&name.stat) == FileType::Directory);
            let is_same = directories || self.a.born(&from.path)? == self.b.born(&to.path)?;
            if is_same { same.push((from, to)) } else { others.push((from, to)) }
        }
        Ok((same, others))
    }

    fn name_before(&self, place: &'a Place, node: usize) -> Result<Name<'a>> {
        let path = self.replay.path_before(place)?;
        self.memory.take::<Name<'_>>(path.len())?;
        Ok(Name { place, node, stat: self.a.stat(&path)?, path: path.into() })
    }

    fn name_after(&self, place: &'a Place, node: usize) -> Result<Name<'a>> {
        let name = self.found_after(place, node)?;
        self.memory.take::<Name<'_>>(name.path.len())?;
        Ok(name)
    }

    /// A name that is looked at and not kept.
    fn found_after(&self, place: &'a Place, node: usize) -> Result<Name<'a>> {
        let path = self.replay.path_after(place)?;
        Ok(Name { place, node, stat: self.b.stat(&path)?, path: path.into() })
    }

    fn added(&self, place: &'a Place, node: usize) -> Result<(&'a Place, usize)> {
        self.memory.take::<(&Place, usize)>(0)?;
        Ok((place, node))
    }

    /// Reports what has the name it had, if anything but a time differs.
    fn same_place(&mut self, before: &[u8], after: &[u8], look: Look) -> Result<()> {
        let (a, b) = (self.a.stat(before)?, self.b.stat(after)?);
        let what = compare((self.a, before, &a), (self.b, after, &b), look)?;
        if what.is_empty() {
            return Ok(());
        }
        self.tell(change(Kind::Modified, after.to_owned(), what, (Some(&a), Some(&b))))
    }

    fn renamed(&mut self, from: &Name<'_>, to: &Name<'_>, replaced: bool) -> Result<()> {
        let mut look = self.look(to.node);
        // It may have been written to under another of its names.
        look.content |= to.stat.st_nlink > 1;
        let what = compare((self.a, &from.path, &from.stat), (self.b, &to.path, &to.stat), look)?;
        let change = change(Kind::Renamed, to.path.to_vec(), what, (Some(&from.stat), Some(&to.stat)));
        self.tell(Change { from: Some(from.path.to_vec()), replaced, ..change })
    }

    /// Reports what was made anew where something was, unless it is the same again.
    fn replaced(&mut self, old: &Name<'_>, new: &Name<'_>) -> Result<()> {
        let look = Look { content: true, attributes: true };
        let what = compare((self.a, &old.path, &old.stat), (self.b, &new.path, &new.stat), look)?;
        if what.is_empty() {
            return Ok(());
        }
        self.tell(change(Kind::Modified, new.path.to_vec(), what, (Some(&old.stat), Some(&new.stat))))
    }

    fn look(&self, node: usize) -> Look {
        let node = &self.replay.nodes[node];
        Look { content: node.written, attributes: node.touched }
    }
}

fn alone(kind: Kind, name: &Name<'_>) -> Change {
    let (before, after) = match kind {
        Kind::Deleted => (Some(&name.stat), None),
        _ => (None, Some(&name.stat)),
    };
    change(kind, name.path.to_vec(), Vec::new(), (before, after))
}

fn change(kind: Kind, path: Vec<u8>, what: Vec<What>, stats: (Option<&Stat>, Option<&Stat>)) -> Change {
    let size = |stat: Option<&Stat>| {
        stat.filter(|s| compare::kind(s) == FileType::RegularFile).map(|s| s.st_size as u64)
    };
    let file = stats.1.or(stats.0).map_or(File::File, file_of);
    Change {
        kind,
        path,
        from: None,
        replaced: false,
        what,
        file,
        size_before: size(stats.0),
        size_after: size(stats.1),
    }
}

fn file_of(stat: &Stat) -> File {
    match kind(stat) {
        FileType::Directory => File::Directory,
        FileType::Symlink => File::Symlink,
        FileType::CharacterDevice | FileType::BlockDevice => File::Device,
        FileType::Fifo => File::Fifo,
        FileType::Socket => File::Socket,
        _ => File::File,
    }
}
