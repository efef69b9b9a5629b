//! One file of two roots, compared as text.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::text;
use crate::error::{Error, Result};
use crate::sys::{file, tree};

/// The largest file that is compared as text.
const MAX: u64 = 1 << 20;
/// How far into a file a zero byte is looked for, which no text has. As git does it.
const PROBE: usize = 8000;
/// After this long the comparison stops looking for the shortest way to say it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What differs in one file.
#[derive(Debug, serde::Serialize)]
pub struct FileDiff {
    pub path: String,
    pub before: Side,
    pub after: Side,
    /// A unified diff, empty if nothing differs. None if one of the two is not text.
    pub diff: Option<String>,
}

/// What a path is on one side.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Side {
    Absent,
    Text {
        #[serde(skip)]
        text: String,
    },
    Symlink {
        target: String,
    },
    Binary {
        size: u64,
    },
    TooLarge {
        size: u64,
    },
    Directory,
    /// A device, fifo or socket.
    Special,
}

impl Side {
    /// What of it takes part in a text diff.
    fn as_text(&self) -> Option<String> {
        match self {
            Side::Absent => Some(String::new()),
            Side::Text { text } => Some(text.clone()),
            Side::Symlink { target } => Some(format!("symbolic link to {target}\n")),
            Side::Binary { .. } | Side::TooLarge { .. } | Side::Directory | Side::Special => None,
        }
    }
}

pub(super) fn compare(before: &Path, after: &Path, path: &Path) -> Result<FileDiff> {
    let shown = text(path.as_os_str().as_bytes());
    let (before, after) = (side(before, path)?, side(after, path)?);
    if before == Side::Absent && after == Side::Absent {
        return Err(Error::NotFound { kind: "file", name: shown, in_project: None, near: Vec::new() });
    }
    let diff = match (before.as_text(), after.as_text()) {
        (Some(a), Some(b)) => Some(unified(&shown, &a, &b)),
        _ => None,
    };
    Ok(FileDiff { path: shown, before, after, diff })
}

fn unified(path: &str, before: &str, after: &str) -> String {
    let diff = similar::TextDiff::configure().timeout(PATIENCE).diff_lines(before, after);
    diff.unified_diff().header(&format!("a{path}"), &format!("b{path}")).to_string()
}

/// Reads what is at a path of a root that may be changing meanwhile: nothing is followed, and nothing blocks.
fn side(root: &Path, path: &Path) -> Result<Side> {
    let inside = path.strip_prefix("/").unwrap_or(path);
    let Some(name) = inside.file_name() else { return Ok(Side::Directory) };
    let dir = inside.parent().unwrap_or(Path::new(""));
    let top = file::open_dir(root).map_err(Error::io("open", root))?;
    let read = tree::open_dir(&top, dir.as_os_str().as_bytes()).and_then(|dir| inspect(dir, name.as_bytes()));
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Side::Absent),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => Err(Error::Usage {
            message: format!(
                "`{}` leads through a symbolic link, which is not followed",
                text(path.as_os_str().as_bytes())
            ),
            hint: Some("name the file itself".into()),
        }),
        other => other.map_err(Error::io("read", root.join(inside))),
    }
}

fn inspect(dir: impl std::os::fd::AsFd, name: &[u8]) -> io::Result<Side> {
    use rustix::fs::FileType;
    let stat = tree::stat(&dir, name)?;
    let size = stat.st_size as u64;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Side::Directory,
        FileType::Symlink => Side::Symlink { target: text(&tree::read_link(tree::open_node(dir, name)?)?) },
        FileType::RegularFile if size > MAX => Side::TooLarge { size },
        FileType::RegularFile => {
            let content = file::read_bounded(tree::open_file(dir, name)?, MAX)?;
            if content[..content.len().min(PROBE)].contains(&0) {
                Side::Binary { size }
            } else {
                Side::Text { text: text(&content) }
            }
        }
        _ => Side::Special,
    })
}
