//! `tmpcopyup`: what an image has at a place is in the memory filesystem that covers it.
//!
//! The image is nobody's to trust. All is opened from open directories, by names in them, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Stat};

use crate::sys::copy::{self, Flush};
use crate::sys::tree;

/// Directories within directories. Each costs a descriptor and some of the stack.
const DEEPEST: usize = 1000;

/// Copies the content of a directory, its owner, mode and attributes. `devices` tells whether device files are copied: a
/// container with ids of its own could have made none.
///
/// # Errors
/// `EPERM` for a device file where there are to be none; `ENOSPC` if there is too much.
pub(super) fn copy(from: impl AsFd, to: impl AsFd, devices: bool) -> io::Result<()> {
    Copy { devices }.content(&tree::open_child(from, b".")?, &tree::open_child(to, b".")?, DEEPEST)
}

struct Copy {
    devices: bool,
}

impl Copy {
    fn content(&self, from: &OwnedFd, to: &OwnedFd, deeper: usize) -> io::Result<()> {
        let deeper = deeper.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(libc::ELOOP))?;
        for name in tree::names(from)? {
            let stat = tree::stat(from, &name)?;
            self.entry(from, to, &name, &stat, deeper)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", name.escape_ascii())))?;
        }
        Ok(())
    }

    fn entry(&self, from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat, deeper: usize) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                tree::make_dir(to, name)?;
                let inner = tree::open_child(from, name)?;
                attributes(&inner, to, name)?;
                self.content(&inner, &tree::open_child(to, name)?, deeper)?;
            }
            FileType::RegularFile => {
                let (source, target) = (tree::open_file(from, name)?, tree::create_file(to, name)?);
                content(&source, &target)?;
                attributes(&source, to, name)?;
            }
            FileType::Symlink => {
                let target = tree::read_link(tree::open_node(from, name)?)?;
                tree::make_symlink(to, name, &target)?;
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                if !self.devices {
                    return Err(io::Error::from_raw_os_error(libc::EPERM));
                }
                tree::make_device(to, name, kind, stat.st_rdev)?;
            }
            kind => tree::make_node(to, name, kind)?,
        }
        let node = tree::open_node(to, name)?;
        tree::set_node_owner(&node, stat.st_uid, stat.st_gid)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            // After the owner: a change of that takes set-user-id away.
            tree::set_node_mode(&node, stat.st_mode)?;
        }
        tree::set_node_mtime(&node, (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)))
    }
}

/// The bytes of a file, and not more of one that grows.
fn content(from: &File, to: &File) -> io::Result<()> {
    copy::content(from, to, Flush::Later, &mut |_| {}).map(drop)
}

/// Extended attributes, but for those that a memory filesystem has not.
fn attributes(from: impl AsFd, to: impl AsFd, name: &[u8]) -> io::Result<()> {
    for attribute in tree::xattr_names(&from)? {
        let Some(value) = tree::xattr(&from, &attribute)? else { continue };
        match tree::set_xattr_at(&to, name, &attribute, &value) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}
