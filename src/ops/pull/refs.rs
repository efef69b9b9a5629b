//! The branches of a repository that nobody trusts, read as the plain files that they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{file, tree};

/// Most branches, and most directories that they are in.
pub(super) const MOST: usize = 10_000;
/// Largest `packed-refs` and `shallow`: a line is some hundred bytes at most.
const LARGEST: u64 = 16 << 20;
/// Largest file of one branch: an id and a line end.
const LARGEST_ONE: u64 = 4096;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Refs {
    /// By name without `refs/heads/`: the id of the commit.
    pub branches: BTreeMap<String, String>,
    /// What is no branch: a name or content that git would not write, a link, a symbolic reference.
    pub left_out: usize,
}

/// Reads the branches of a git directory. `length` is that of an id in hexadecimal.
///
/// # Errors
/// With the path below the git directory, where something is not what git makes, or is too much.
pub(super) fn read(git_dir: &OwnedFd, length: usize) -> Result<Refs, (String, io::Error)> {
    let mut refs = Refs::default();
    let packed = read_file(git_dir, "packed-refs").map_err(|e| ("packed-refs".to_owned(), e))?;
    for line in packed.split(|b| *b == b'\n') {
        // A comment, or what the tag above it leads to.
        if line.is_empty() || line[0] == b'#' || line[0] == b'^' {
            continue;
        }
        let (id, name) = line.split_at(line.len().min(length));
        let Some(name) = name.strip_prefix(b" refs/heads/") else {
            // Tags and remote branches are not asked for.
            refs.left_out += usize::from(!name.starts_with(b" refs/"));
            continue;
        };
        refs.add(name, id, length).map_err(|e| ("packed-refs".to_owned(), e))?;
    }
    refs.loose(git_dir, length)?;
    refs.drop_what_is_below_a_branch();
    Ok(refs)
}

/// The commits at which history was cut off, one a line, as `shallow` has them.
pub(super) fn shallow(git_dir: &OwnedFd, length: usize) -> io::Result<String> {
    let text = read_file(git_dir, "shallow")?;
    let lines = text.split(|b| *b == b'\n').filter_map(|line| id(line, length));
    Ok(lines.map(|id| format!("{id}\n")).collect())
}

/// Nothing where there is no such file.
fn read_file(git_dir: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    match tree::open_file(git_dir, name.as_bytes()) {
        Ok(file) => file::read_bounded(file, LARGEST),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

impl Refs {
    fn add(&mut self, branch: &[u8], content: &[u8], length: usize) -> io::Result<()> {
        let name = branch_name(branch);
        match (name, id(content, length)) {
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
    fn loose(&mut self, git_dir: &OwnedFd, length: usize) -> Result<(), (String, io::Error)> {
        let (mut todo, mut seen) = (vec![Vec::new()], 0);
        while let Some(path) = todo.pop() {
            let full = [b"refs/heads".as_slice(), &path].concat();
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
                let content = tree::open_file(&dir, &name).and_then(|f| file::read_bounded(f, LARGEST_ONE));
                self.add(&child[1..], content.unwrap_or_default().trim_ascii_end(), length).map_err(at)?;
            }
        }
        Ok(())
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

fn id(text: &[u8], length: usize) -> Option<String> {
    let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    let fits = text.len() == length && text.iter().all(hex) && text.iter().any(|b| *b != b'0');
    fits.then(|| String::from_utf8_lossy(text).into_owned())
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
            refs.add(name.as_bytes(), &one, 40).unwrap();
        }
        refs.add(b"zero", &[b'0'; 40], 40).unwrap();
        refs.add(b"link", b"ref: refs/heads/a", 40).unwrap();
        refs.drop_what_is_below_a_branch();
        assert_eq!(refs.branches.keys().collect::<Vec<_>>(), ["a", "a-b", "b/c"]);
        assert_eq!(refs.left_out, 4);
    }
}
