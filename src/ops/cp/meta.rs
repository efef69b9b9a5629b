//! What a copy has besides its content: owner, mode, times, attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::Stat;

use super::Owner;
use super::tree::Copier;
use crate::domain::ids;
use crate::error::Result;
use crate::image;
use crate::sys::tree::{self, Mtime};

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// What a file is besides its name and content.
pub(super) struct Meta {
    pub(super) owner: (u32, u32),
    pub(super) mode: u32,
    pub(super) mtime: Mtime,
}

impl Copier<'_> {
    pub(super) fn meta(&mut self, stat: &Stat) -> Meta {
        let mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let mut meta = Meta { owner: (0, 0), mode: stat.st_mode & 0o7777, mtime };
        let ids = match self.seen_as_root {
            // As a mount of the host's shows them inside.
            Some((user, group)) => (seen(stat.st_uid, user), seen(stat.st_gid, group)),
            None => (stat.st_uid, stat.st_gid),
        };
        match self.owner {
            Owner::Kept | Owner::WithoutPrivileges => {
                meta.owner = (ids::inside(ids.0.into()), ids::inside(ids.1.into()));
                self.summary.ids_mapped += u64::from(meta.owner != ids);
            }
            Owner::Is(uid, gid) => meta.owner = (uid, gid),
        }
        if self.owner != Owner::Kept {
            self.summary.privileges_dropped += u64::from(meta.mode & SET_ID != 0);
            meta.mode &= !SET_ID;
        }
        meta
    }

    /// Gives an open file what it has besides content and time, with the attributes of `from`. Changes of owner clear set-id
    /// bits and capabilities, so that comes first.
    pub(super) fn describe(
        &mut self,
        fd: impl AsFd,
        meta: &Meta,
        from: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        tree::set_owner_and_mode(&fd, meta.owner, meta.mode)
            .map_err(self.writing("set owner and mode of"))?;
        match from {
            Some(from) => self.attributes(from, fd),
            None => Ok(()),
        }
    }

    /// Copies extended attributes. One value is held at a time: all of a file may be 128 MiB.
    fn attributes(&mut self, from: BorrowedFd<'_>, to: impl AsFd) -> Result<()> {
        for name in tree::xattr_names(from).map_err(self.reading("read attributes of"))? {
            if self.owner != Owner::Kept && name == b"security.capability" {
                self.summary.privileges_dropped += 1;
                continue;
            }
            let value = tree::xattr(from, &name).map_err(self.reading("read attributes of"))?;
            let Some(value) = value else { continue };
            let is_kept = image::keeps_value(&name, &value)
                && tree::try_set_xattr(&to, &name, &value).map_err(self.writing("set an attribute of"))?;
            self.summary.xattrs_dropped += u64::from(!is_kept);
        }
        Ok(())
    }
}

/// Nobody, inside.
const NOBODY: u32 = 65534;

/// An id of the host in a mount of which one alone is known inside, where it is root.
fn seen(id: u32, root: u32) -> u32 {
    if id == root { 0 } else { NOBODY }
}
