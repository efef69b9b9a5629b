//! The branches of a repository that nobody trusts, and other refs, read as the plain files that they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use crate::ops::git::Format;
use crate::ops::git::repository::{id, read_file};
use crate::sys::{file, tree};

/// Most branches, and most directories that they are in.
pub(super) const MOST: usize = 10_000;
/// Most work trees whose `HEAD` is read.
const TREES: usize = 1000;
/// What else is work of somebody, and is not fetched.
const OTHERS: [&str; 2] = ["refs/tags", "refs/notes"];
/// Largest file of one branch: an id and a line end.
const LARGEST_ONE: u64 = 4096;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Refs {
    /// By name without `refs/heads/`: the id of the commit.
    pub branches: BTreeMap<String, String>,
    /// What is no branch: a name or content that git would not write, a link, a symbolic reference.
    pub left_out: usize,
    /// Tags and notes, by full name.
    pub others: BTreeMap<String, String>,
    /// Commits that a detached `HEAD` is at, of the clone or of one of its work trees.
    pub detached: BTreeSet<String>,
    /// The newest stash, and how many there are.
    pub stash: Option<(String, usize)>,
}

/// Reads the refs of a git directory.
///
/// # Errors
/// With the path below the git directory, where a branch is not what git makes, or there are too many.
pub(super) fn read(git_dir: &OwnedFd, format: Format) -> Result<Refs, (String, io::Error)> {
    let mut refs = Refs::default();
    let packed = read_file(git_dir, "packed-refs").map_err(|e| ("packed-refs".to_owned(), e))?;
    for line in packed.split(|b| *b == b'\n') {
        // A comment, or what the tag above it leads to.
        if line.is_empty() || line[0] == b'#' || line[0] == b'^' {
            continue;
        }
        let (id, name) = line.split_at(line.len().min(format.length()));
        let Some(name) = name.strip_prefix(b" refs/heads/") else {
            refs.left_out += usize::from(!name.starts_with(b" refs/"));
            refs.add_other(name.trim_ascii_start(), id, format);
            continue;
        };
        refs.add(name, id, format).map_err(|e| ("packed-refs".to_owned(), e))?;
    }
    refs.loose(git_dir, format)?;
    refs.drop_what_is_below_a_branch();
    // What is not fetched is only told of: nothing there is a reason to fail.
    for dir in OTHERS {
        let found = files_below(git_dir, dir.as_bytes(), &mut |path, content| {
            refs.add_other(&[dir.as_bytes(), b"/", path].concat(), content, format);
            Ok(())
        });
        drop(found);
    }
    refs.heads(git_dir, format);
    refs.stash = stash(git_dir, format);
    Ok(refs)
}

/// The newest stash, and how many lines its log has.
fn stash(git_dir: &OwnedFd, format: Format) -> Option<(String, usize)> {
    let newest = read_one(&tree::open_dir(git_dir, b"refs").ok()?, b"stash");
    let newest = id(newest.trim_ascii_end(), format)?;
    let log =
        tree::open_dir(git_dir, b"logs/refs").ok().map(|dir| read_file(&dir, "stash").unwrap_or_default());
    let count = log.unwrap_or_default().split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    Some((newest, count.max(1)))
}

/// The content of a small file, or nothing.
fn read_one(dir: &OwnedFd, name: &[u8]) -> Vec<u8> {
    tree::open_file(dir, name).and_then(|f| file::read_bounded(f, LARGEST_ONE)).unwrap_or_default()
}

/// Receives the path of a file and what is in it.
type With<'a> = dyn FnMut(&[u8], &[u8]) -> io::Result<()> + 'a;

/// Calls `with` for each file below the directory `top` of a git directory: its path below that, and what is in it.
fn files_below(git_dir: &OwnedFd, top: &[u8], with: &mut With<'_>) -> Result<(), (String, io::Error)> {
    let (mut todo, mut seen) = (vec![Vec::new()], 0);
    while let Some(path) = todo.pop() {
        let full = [top, &path].concat();
        let at = |e| (full.escape_ascii().to_string(), e);
        let dir = match tree::open_dir(git_dir, &full) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(at(e)),
        };
        let names = tree::names_at_most(&dir, MOST).map_err(at)?;
        seen += names.len();
        if seen > 2 * MOST {
            return Err(at(io::Error::new(io::ErrorKind::InvalidData, "more than it may have")));
        }
        for name in names {
            let child = [&path, b"/".as_slice(), &name].concat();
            if tree::stat(&dir, &name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
                todo.push(child);
                continue;
            }
            with(&child[1..], read_one(&dir, &name).trim_ascii_end()).map_err(at)?;
        }
    }
    Ok(())
}

impl Refs {
    fn add(&mut self, branch: &[u8], content: &[u8], format: Format) -> io::Result<()> {
        let name = branch_name(branch);
        match (name, id(content, format)) {
            (Some(name), Some(id)) => drop(self.branches.insert(name, id)),
            (name, _) => {
                // What is in a file of its own counts, also where it is no branch.
                name.map(|name| self.branches.remove(&name));
                self.left_out += 1;
            }
        }
        if self.branches.len() + self.left_out > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MOST} branches")));
        }
        Ok(())
    }

    /// Those with a file of their own, which counts more than `packed-refs`.
    fn loose(&mut self, git_dir: &OwnedFd, format: Format) -> Result<(), (String, io::Error)> {
        files_below(git_dir, b"refs/heads", &mut |name, content| self.add(name, content, format))
    }

    fn add_other(&mut self, name: &[u8], content: &[u8], format: Format) {
        let Some((name, id)) = branch_name(name).zip(id(content, format)) else { return };
        if OTHERS.iter().any(|dir| name.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))) {
            self.others.insert(name, id);
        }
    }

    /// Where the `HEAD` of the clone, and of work trees that were added to it, is at a commit and not at a branch.
    fn heads(&mut self, git_dir: &OwnedFd, format: Format) {
        let added = tree::open_dir(git_dir, b"worktrees").and_then(|trees| {
            let names = tree::names_at_most(&trees, TREES)?;
            Ok(names.iter().filter_map(|name| tree::open_child(&trees, name).ok()).collect())
        });
        let added: Vec<OwnedFd> = added.unwrap_or_default();
        for dir in std::iter::once(git_dir).chain(&added) {
            self.detached.extend(id(read_one(dir, b"HEAD").trim_ascii_end(), format));
        }
    }

    /// `a` and `a/b` cannot both be: git never makes such a pair, and would fail over it.
    fn drop_what_is_below_a_branch(&mut self) {
        let below =
            |name: &str| name.match_indices('/').any(|(slash, _)| self.branches.contains_key(&name[..slash]));
        let bad: BTreeSet<String> = self.branches.keys().filter(|name| below(name)).cloned().collect();
        self.left_out += bad.len();
        self.branches.retain(|name, _| !bad.contains(name));
    }
}

/// A name that git-check-ref-format(1) takes, in UTF-8, and short enough for the host's files.
fn branch_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let bad = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let part = |p: &str| {
        !p.is_empty() && p.len() <= 200 && !p.starts_with('.') && !p.ends_with(".lock") && !p.ends_with('.')
    };
    let fits = name.len() <= 1000
        && !name.contains(bad)
        && !name.contains("..")
        && !name.contains("@{")
        && !name.starts_with('-')
        && name != "@"
        && name.split('/').all(part);
    fits.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_would_not_give_are_no_branches() {
        for good in ["main", "fix/1", "ünder", "a.b", "a@b", "x-y_z", "HEAD"] {
            assert_eq!(branch_name(good.as_bytes()).as_deref(), Some(good));
        }
        let bad = [
            "",
            "..",
            "../x",
            "a/../b",
            "a..b",
            ".a",
            "a/.b",
            "a.lock",
            "a/b.lock/c",
            "a.",
            "a b",
            "a~",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "a@{b",
            "@",
            "/a",
            "a/",
            "a//b",
            "a\nb",
            "a\x7f",
            "-a",
        ];
        for bad in bad {
            assert_eq!(branch_name(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(branch_name(b"a\xff"), None);
        assert_eq!(branch_name(&[b'a'; 300]), None);
    }

    #[test]
    fn a_branch_below_another_is_left_out() {
        let mut refs = Refs::default();
        let one = [b'1'; 40];
        for name in ["a", "a/b", "a-b", "b/c", "b/c/d"] {
            refs.add(name.as_bytes(), &one, Format::Sha1).unwrap();
        }
        refs.add(b"zero", &[b'0'; 40], Format::Sha1).unwrap();
        refs.add(b"link", b"ref: refs/heads/a", Format::Sha1).unwrap();
        refs.drop_what_is_below_a_branch();
        assert_eq!(refs.branches.keys().collect::<Vec<_>>(), ["a", "a-b", "b/c"]);
        assert_eq!(refs.left_out, 4);
    }
}
