//! What is at the target already: mounts, devices, and what this very copy has made.

use std::fs::File;
use std::io;

use rustix::fs::Stat;

use super::node::{At, Node};
use super::tree::Copier;
use super::view::What;
use crate::error::{Error, Result};
use crate::sys::{copy, tree};

impl Copier<'_> {
    /// Whether something is mounted at the target that cannot be copied to. An empty directory loses nothing there.
    pub(super) fn is_covered(&mut self, node: &Node) -> Result<bool> {
        let Some(what) = self.mounted.get(&self.path) else { return Ok(false) };
        let why = match (what, node) {
            (What::Dir { closed: None, .. }, Node::Dir(..)) => return Ok(false),
            _ => what.closed().unwrap_or("which is a directory").to_owned(),
        };
        let is_empty = match node {
            Node::Dir(dir, _) => {
                let fd = dir.fd().map_err(|e| self.reading("open")(e.into()))?;
                tree::is_empty(fd).map_err(self.reading("list"))?
            }
            _ => false,
        };
        if !is_empty {
            self.covered.push((self.here(&self.to), why));
        }
        Ok(true)
    }

    /// Fails if something was left out because of what is mounted there.
    pub(in crate::ops) fn refuse_covered(&self) -> Result<()> {
        let [(place, why), rest @ ..] = self.covered.as_slice() else { return Ok(()) };
        let more = match rest.len() {
            0 => String::new(),
            more => format!("; and so are {more} more. All else was copied"),
        };
        Err(Error::WrongState {
            action: "copy to",
            kind: "path",
            name: place.display().to_string(),
            state: format!("a mount, {why}{more}"),
            hint: "leave out what is mounted in the spark".into(),
        })
    }

    /// What has the name that a copy is to get.
    pub(super) fn existing(&self, to: At<'_>) -> Result<Option<Stat>> {
        match tree::stat(to.dir, to.name) {
            Ok(there)
                if self.made.as_ref().is_some_and(|made| made.contains(&(there.st_dev, there.st_ino))) =>
            {
                let place = self.here(&self.to);
                let message = format!("two sources would both be copied to {}", place.display());
                Err(Error::Usage { message, hint: Some("copy them one by one".into()) })
            }
            Ok(there) => Ok(Some(there)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.writing("inspect")(e)),
        }
    }

    /// Writes a file into the device or fifo that has its name, if that is the host's. False if it is to replace what is
    /// there.
    pub(super) fn is_written_into(&mut self, from: &File, stat: &Stat, to: At<'_>) -> Result<bool> {
        let Some(there) = self.existing(to)? else { return Ok(false) };
        if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
            let (from, to) = (self.here(&self.from), self.here(&self.to));
            return Err(Error::usage(format!("{} and {} are the same file", from.display(), to.display())));
        }
        let Some(node) = node_kind(&there) else { return Ok(false) };
        if !self.to_host {
            return Err(self.in_the_way("copy a file to", node));
        }
        let mut out = tree::open_node_to_write(to.dir, to.name).map_err(self.writing("write into"))?;
        self.summary.bytes += copy::stream(from, &mut out).map_err(self.writing("write into"))?;
        Ok(true)
    }

    /// Whether what is there stays, and is as good as a copy: a fifo of the host.
    pub(super) fn is_kept(&self, stat: &Stat, to: At<'_>) -> Result<bool> {
        let Some(there) = self.existing(to)? else { return Ok(false) };
        let is_fifo = |stat: &Stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO;
        match node_kind(&there) {
            Some(_) if is_fifo(&there) && is_fifo(stat) => Ok(self.to_host),
            Some(node) => Err(self.in_the_way("replace", node)),
            None => Ok(false),
        }
    }
}

/// What is no file, directory or link is, in words.
fn node_kind(stat: &Stat) -> Option<&'static str> {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Some("a named pipe"),
        libc::S_IFSOCK => Some("a socket"),
        libc::S_IFCHR | libc::S_IFBLK => Some("a device"),
        _ => None,
    }
}
