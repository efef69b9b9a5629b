//! A repository of our own making, in the staged directory: to fetch from, or to put into a spark.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::Format;
use crate::error::{Error, Result};
use crate::sys::{file, tree};

/// Largest `packed-refs` and `shallow`: a line is some hundred bytes at most.
const LARGEST: u64 = 16 << 20;

/// What a repository begins with. Objects come later.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub format: Format,
    pub bare: bool,
    /// The content of `HEAD`.
    pub head: &'a str,
    /// Ids, by full name.
    pub refs: &'a BTreeMap<String, String>,
    /// Commits at which history is cut off, one a line.
    pub shallow: &'a str,
}

impl New<'_> {
    /// Makes the git directory `dir`.
    pub(crate) fn make(&self, dir: &Path) -> Result<()> {
        for below in
            ["", "info", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"]
        {
            let path = dir.join(below);
            let made = std::fs::DirBuilder::new().recursive(below.is_empty()).mode(0o755).create(&path);
            made.map_err(Error::io("create", &path))?;
        }
        // Older versions of git do not know version 1.
        let (version, extension) = match self.format {
            Format::Sha1 => (0, ""),
            Format::Sha256 => (1, "[extensions]\n\tobjectformat = sha256\n"),
        };
        let bare = self.bare;
        let config = format!(
            "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = {bare}\n{extension}"
        );
        let packed: String = self.refs.iter().map(|(name, id)| format!("{id} {name}\n")).collect();
        for (name, text) in
            [("HEAD", self.head), ("config", &config), ("packed-refs", &packed), ("shallow", self.shallow)]
        {
            let path = dir.join(name);
            if !text.is_empty() {
                std::fs::write(&path, text).map_err(Error::io("write", &path))?;
            }
        }
        Ok(())
    }
}

/// The commits at which the history of a git directory is cut off. Nothing else of the file is taken.
pub(crate) fn shallow(git_dir: &OwnedFd, format: Format) -> io::Result<Vec<String>> {
    let text = read_file(git_dir, "shallow")?;
    Ok(text.split(|b| *b == b'\n').filter_map(|line| id(line, format)).collect())
}

/// Reads a small file of a git directory; nothing where there is no such file.
pub(crate) fn read_file(git_dir: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    match tree::open_file(git_dir, name.as_bytes()) {
        Ok(file) => file::read_bounded(file, LARGEST),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// An id in hexadecimal, of something: not the one that is all zeros.
pub(crate) fn id(text: &[u8], format: Format) -> Option<String> {
    let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    let fits = text.len() == format.length() && text.iter().all(hex) && text.iter().any(|b| *b != b'0');
    fits.then(|| String::from_utf8_lossy(text).into_owned())
}
