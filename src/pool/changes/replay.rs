//! A send stream replayed on names alone: which names went, came and moved, and what was touched on the way.
//!
//! The kernel gives things passing names (`o257-9-0`), renames a file by a second link and an unlink, and empties a
//! directory that it deletes under another name. Only the first and the last name of everything counts. Of the
//! files that were there before, those and only those appear here that the stream speaks of.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::memory::Memory;
use crate::error::{Error, Result};
use crate::pool::stream::Command;

/// More than fit in a path.
const MAX_DEPTH: usize = 4096;

/// The top directory, and the name that it does not have.
const TOP: usize = 0;

/// A name in a directory: where it was, and where it is.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) node: usize,
    /// The directory's node, and the name there. None if it was not there, or is there no longer.
    pub(super) before: Option<Place>,
    pub(super) after: Option<Place>,
}

pub(super) type Place = (usize, Rc<[u8]>);

/// Names in a directory, as far as they are known. No number where there was one, and is no longer.
type Children = HashMap<Rc<[u8]>, Option<usize>>;

/// A file, directory or whatever else has names.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Whether it was not there before.
    pub(super) new: bool,
    /// The first of its names; of a directory the only one.
    link: usize,
    /// Most have none.
    children: Option<Box<Children>>,
    /// Whether any of its attributes may have changed.
    pub(super) touched: bool,
    /// Whether its bytes may have.
    pub(super) written: bool,
}

/// All that a stream has spoken of.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    memory: Rc<Memory>,
}

impl Node {
    fn child(&self, name: &[u8]) -> Option<&Option<usize>> {
        self.children.as_ref()?.get(name)
    }
}

impl Replay {
    pub(super) fn new(memory: Rc<Memory>) -> Replay {
        let top = Link { node: TOP, before: None, after: None };
        Replay { nodes: vec![Node::default()], links: vec![top], memory }
    }

    /// Applies one command.
    ///
    /// # Errors
    /// `corrupt` if it speaks of what cannot be there.
    pub(super) fn apply(&mut self, command: &Command) -> Result<()> {
        use Command as C;
        match command {
            C::Subvol { .. } | C::Snapshot { .. } | C::End => {}
            C::MkFile { path }
            | C::MkDir { path }
            | C::MkNod { path, .. }
            | C::MkFifo { path }
            | C::MkSock { path }
            | C::Symlink { path, .. } => {
                let node = self.add_node(true)?;
                self.name(node, path)?;
            }
            C::Link { path, link } => {
                let node = self.find(link)?.1;
                self.name(node, path)?;
            }
            C::Rename { path, to } => {
                let link = self.unname(path)?;
                self.place(link, to)?;
            }
            C::Unlink { path } | C::RmDir { path } => {
                self.unname(path)?;
            }
            C::Write { path, .. } | C::Clone { path, .. } | C::UpdateExtent { path, .. } => {
                let node = self.find(path)?.1;
                self.nodes[node].written = true;
            }
            // The kernel truncates also what keeps its size, and of two links that it takes for one it tells no
            // more than that their times differ: what it means is seen when the two are compared.
            C::Utimes { path, .. }
            | C::Truncate { path, .. }
            | C::Chmod { path, .. }
            | C::Chown { path, .. }
            | C::SetXattr { path, .. }
            | C::RemoveXattr { path, .. } => {
                let node = self.find(path)?.1;
                self.nodes[node].touched = true;
            }
        }
        Ok(())
    }

    /// Where a name was before everything.
    pub(super) fn path_before(&self, place: &Place) -> Result<Vec<u8>> {
        self.path_of(place, |link| link.before.as_ref())
    }

    /// Where a name is now.
    pub(super) fn path_after(&self, place: &Place) -> Result<Vec<u8>> {
        self.path_of(place, |link| link.after.as_ref())
    }

    /// Where what is at a path now was before, if it was anywhere.
    pub(super) fn origin(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut dir = TOP;
        let mut before = Some(Vec::new());
        let mut parts = path.split(|b| *b == b'/');
        for part in parts.by_ref() {
            match self.nodes[dir].child(part) {
                Some(Some(link)) => {
                    let link = &self.links[*link];
                    before = link.before.as_ref().map(|place| self.path_before(place)).transpose()?;
                    dir = link.node;
                }
                // Nothing was said of it, so it is where it was, and so is all that is in it.
                None if !self.nodes[dir].new => {
                    let rest = [part].into_iter().chain(parts);
                    let whole = before.iter().map(Vec::as_slice).filter(|p| !p.is_empty()).chain(rest);
                    return Ok(Some(whole.collect::<Vec<_>>().join(&b'/')));
                }
                _ => return Ok(None),
            }
        }
        Ok(before)
    }

    /// Whether a directory, or the one that it was made in, has the path that it had.
    pub(super) fn stays(&self, mut dir: usize) -> Result<bool> {
        loop {
            let link = &self.links[self.nodes[dir].link];
            match (&link.before, &link.after) {
                _ if dir == TOP => return Ok(true),
                (Some(before), Some(after)) => {
                    return Ok(self.path_before(before)? == self.path_after(after)?);
                }
                (None, Some(after)) => dir = after.0,
                (_, None) => return Ok(false),
            }
        }
    }

    fn path_of(&self, place: &Place, at: impl Fn(&Link) -> Option<&Place>) -> Result<Vec<u8>> {
        let mut parts = vec![&*place.1];
        let mut dir = place.0;
        while dir != TOP {
            let (parent, name) = at(&self.links[self.nodes[dir].link])
                .filter(|_| parts.len() < MAX_DEPTH)
                .ok_or_else(|| absurd("puts something into a directory that is not there", &place.1))?;
            parts.push(name);
            dir = *parent;
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    /// The link and the node of a path as it is now.
    fn find(&mut self, path: &[u8]) -> Result<(usize, usize)> {
        let mut found = (TOP, TOP);
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let link = self.child(found.1, part)?.ok_or_else(|| absurd("has lost", path))?;
            found = (link, self.links[link].node);
        }
        Ok(found)
    }

    fn child(&mut self, dir: usize, name: &[u8]) -> Result<Option<usize>> {
        if let Some(known) = self.nodes[dir].child(name) {
            return Ok(*known);
        }
        if self.nodes[dir].new {
            return Ok(None);
        }
        // Nothing was said of it yet, so it is where it was.
        let node = self.add_node(false)?;
        let name: Rc<[u8]> = name.into();
        let place = Some((dir, Rc::clone(&name)));
        let link = self.add_link(Link { node, before: place.clone(), after: place })?;
        self.set_child(dir, name, Some(link))?;
        Ok(Some(link))
    }

    /// Adds a node whose first name is the next one that is added.
    fn add_node(&mut self, new: bool) -> Result<usize> {
        self.memory.take::<Node>(0)?;
        self.nodes.push(Node { new, link: self.links.len(), ..Node::default() });
        Ok(self.nodes.len() - 1)
    }

    fn add_link(&mut self, link: Link) -> Result<usize> {
        self.memory.take::<Link>(0)?;
        self.links.push(link);
        Ok(self.links.len() - 1)
    }

    /// Says what has a name in a directory. Returns what had it.
    fn set_child(&mut self, dir: usize, name: Rc<[u8]>, link: Option<usize>) -> Result<Option<usize>> {
        let children = self.nodes[dir].children.get_or_insert_default();
        if !children.contains_key(&name) {
            self.memory.take::<(Rc<[u8]>, Option<usize>)>(name.len() + 2 * size_of::<usize>())?;
        }
        Ok(children.insert(name, link).flatten())
    }

    fn name(&mut self, node: usize, path: &[u8]) -> Result<()> {
        let link = self.add_link(Link { node, before: None, after: None })?;
        self.place(link, path)
    }

    /// Puts a link where nothing is.
    fn place(&mut self, link: usize, path: &[u8]) -> Result<()> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let dir = self.find(parent)?.1;
        let name: Rc<[u8]> = name.into();
        if self.set_child(dir, Rc::clone(&name), Some(link))?.is_some() {
            return Err(absurd("has two of", path));
        }
        self.links[link].after = Some((dir, name));
        Ok(())
    }

    /// Takes a link away from where it is.
    fn unname(&mut self, path: &[u8]) -> Result<usize> {
        let link = self.find(path)?.0;
        if let Some((dir, name)) = self.links[link].after.take() {
            self.set_child(dir, name, None)?;
        }
        Ok(link)
    }
}

fn absurd(what: &str, path: &[u8]) -> Error {
    Error::corrupt(Path::new("the send stream"), format!("it {what} `{}`", path.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Command as C;

    fn replayed(commands: &[Command]) -> Result<Replay> {
        let mut replay = Replay::new(Rc::new(Memory::new(1 << 20)));
        commands.iter().try_for_each(|command| replay.apply(command)).map(|()| replay)
    }

    fn rename(path: &str, to: &str) -> Command {
        C::Rename { path: path.into(), to: to.into() }
    }

    #[test]
    fn passing_names_leave_no_trace() {
        let replay = replayed(&[
            C::MkDir { path: b"o300-9-0".into() },
            rename("old", "o257-9-0"),
            rename("o300-9-0", "old"),
            rename("o257-9-0", "old/in"),
            C::MkFile { path: b"o301-9-0".into() },
            C::Unlink { path: b"o301-9-0".into() },
        ])
        .unwrap();
        let ends: Vec<_> = replay
            .links
            .iter()
            .map(|l| {
                let before = l.before.as_ref().map(|p| replay.path_before(p).unwrap());
                (before, l.after.as_ref().map(|p| replay.path_after(p).unwrap()))
            })
            .filter(|ends| *ends != (None, None))
            .collect();
        let (old, inside) = (b"old".to_vec(), b"old/in".to_vec());
        assert_eq!(ends, [(None, Some(old.clone())), (Some(old), Some(inside))]);
    }

    #[test]
    fn names_are_counted_whether_they_came_or_went_or_were_passing() {
        let name = |n: u32| format!("{n:0>200}").into_bytes();
        type Speak = fn(Vec<u8>) -> Vec<Command>;
        let ways: [Speak; 4] = [
            |path| vec![C::MkFile { path }],
            |path| vec![C::Unlink { path }],
            |path| vec![C::MkDir { path: path.clone() }, C::RmDir { path }],
            |path| vec![C::Truncate { path, size: 0 }],
        ];
        for speak in ways {
            let commands: Vec<Command> = (0..10_000).flat_map(|n| speak(name(n))).collect();
            let e = replayed(&commands).unwrap_err();
            assert_eq!(e.code(), crate::error::Code::NotSupported, "{e}");
            replayed(&commands[..1000]).unwrap();
        }
    }

    #[test]
    fn a_stream_that_contradicts_itself_is_corrupt() {
        let (new, inside) = (C::MkDir { path: b"d".into() }, C::MkFile { path: b"d/f".into() });
        for commands in [
            vec![new.clone(), new.clone()],
            vec![new.clone(), C::Unlink { path: b"d/f".into() }],
            vec![new.clone(), C::RmDir { path: b"d".into() }, inside.clone()],
            vec![new, inside, rename("d", "d/f/d")],
            vec![rename("a", "b"), rename("a", "c")],
        ] {
            let e = replayed(&commands).unwrap_err();
            assert_eq!(e.code(), crate::error::Code::Corrupt, "{commands:?}: {e}");
        }
    }
}
