//! What there is to copy, opened so that no later change of its name matters.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Dir, Stat};

use crate::sys::tree;

/// How often a name is looked at again that becomes something else between two steps.
const TRIES: u32 = 100;

/// A name in an open directory. The name `.` is the directory itself.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct At<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
}

/// An open file, or whatever else has a name.
pub(super) enum Node {
    File(File, Stat),
    Dir(Dir, Stat),
    /// A symbolic link, with its target.
    Link(Vec<u8>, Stat),
    Fifo(Stat),
    /// A device node or a socket.
    Other,
}

/// Opens what has a name now. No link is followed, and a fifo blocks nobody.
///
/// # Errors
/// `NotFound`, and `EBUSY` where it is something else whenever it is looked at.
pub(super) fn open(at: At<'_>) -> io::Result<Node> {
    for _ in 0..TRIES {
        match open_once(at) {
            Err(e) if has_changed(&e) => {}
            other => return other,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Opens a file of the host that is mounted in a spark, where it belongs to root.
pub(super) fn open_mounted(path: &Path) -> io::Result<Node> {
    let dir = crate::sys::file::open_dir(path.parent().unwrap_or(path))?;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    Ok(match open(At { dir: dir.as_fd(), name })? {
        Node::File(file, mut stat) => {
            (stat.st_uid, stat.st_gid) = (0, 0);
            Node::File(file, stat)
        }
        other => other,
    })
}

fn open_once(At { dir, name }: At<'_>) -> io::Result<Node> {
    let stat = tree::stat(dir, name)?;
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            let file = tree::open_file(dir, name)?;
            let stat = rustix::fs::fstat(&file)?;
            Node::File(file, stat)
        }
        libc::S_IFDIR => {
            let fd = tree::open_child(dir, name)?;
            let stat = rustix::fs::fstat(&fd)?;
            Node::Dir(Dir::new(fd)?, stat)
        }
        libc::S_IFLNK => {
            let node = tree::open_node(dir, name)?;
            let stat = rustix::fs::fstat(&node)?;
            if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Node::Link(tree::read_link(&node)?, stat)
        }
        libc::S_IFIFO => Node::Fifo(stat),
        _ => Node::Other,
    })
}

/// Whether an error says that it was something else a moment before.
fn has_changed(e: &io::Error) -> bool {
    match e.raw_os_error() {
        None => e.kind() == io::ErrorKind::InvalidData,
        // No directory, a link, a socket.
        Some(errno) => matches!(errno, libc::ENOTDIR | libc::ELOOP | libc::ENXIO),
    }
}

/// The next name of a directory, without `.` and `..`.
pub(super) fn next_name(dir: &mut Dir) -> Option<io::Result<Vec<u8>>> {
    loop {
        match dir.read()? {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(entry) => return Some(Ok(entry.file_name().to_bytes().to_owned())),
            Err(e) => return Some(Err(e.into())),
        }
    }
}

/// How much a progress bar counts up to: entries at and below a name. What cannot be read counts nothing, for it is
/// the copy that says so.
pub(super) fn count(at: At<'_>) -> u64 {
    let open = |at: At<'_>| tree::open_child(at.dir, at.name).ok().and_then(|fd| Dir::new(fd).ok());
    let mut levels: Vec<Dir> = open(at).into_iter().collect();
    let mut count = 1;
    while let Some(dir) = levels.last_mut() {
        match dir.read() {
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(Ok(entry)) => {
                count += 1;
                if entry.file_type().is_dir()
                    && let Ok(fd) = dir.fd()
                    && let Some(below) = open(At { dir: fd.as_fd(), name: entry.file_name().to_bytes() })
                {
                    levels.push(below);
                }
            }
            Some(Err(_)) | None => drop(levels.pop()),
        }
    }
    count
}
