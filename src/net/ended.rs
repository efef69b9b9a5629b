//! Which sparks have ended by themselves, by a look at a few of them.

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use super::{Nets, device_of};
use crate::domain::spark::Id;
use crate::sys;

/// The file that says where in the directory of members the next look begins.
const NEXT: &str = "next-look";

impl Nets {
    /// Members whose device is gone: they ended by themselves, or are about to begin. At most so many are looked at, others each
    /// time: every command looks, and no command may take longer where many run.
    pub fn without_device(&self, most: usize) -> Vec<Id> {
        let next = self.dir.join(NEXT);
        let from = std::fs::read_to_string(&next).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let Ok((ids, then)) = some_ids(&self.dir_of_members(), from, most) else { return Vec::new() };
        if then != from {
            // The worst of a file that is damaged is a look at the same ones.
            let _ = std::fs::write(&next, then.to_string());
        }
        if ids.is_empty() {
            return ids;
        }
        let Some(router) = self.router() else { return ids };
        let look = || {
            let devices = sys::net::Devices::here().map_err(crate::error::Error::sys("look at devices"))?;
            Ok(ids.into_iter().filter(|id| devices.lacks(&device_of(id))).collect())
        };
        router.inside(look).unwrap_or_else(|e| {
            tracing::warn!("{e}");
            Vec::new()
        })
    }
}

/// Up to `most` names of a directory that are ids, from a position on and then from the beginning, and the position of the next
/// one. That is 0 if these are all.
fn some_ids(dir: &Path, from: u64, most: usize) -> io::Result<(Vec<Id>, u64)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut ids: Vec<Id> = Vec::new();
    let starts = if from == 0 { &[0][..] } else { &[from, 0] };
    for start in starts {
        // Anew each time: ext4 does not come back from the end of a directory.
        let dir = match rustix::fs::open(dir, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok((Vec::new(), 0)),
            opened => opened?,
        };
        rustix::fs::seek(&dir, SeekFrom::Start(*start))?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&dir, &mut space);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let id = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
            let Some(id) = id.filter(|id| !ids.contains(id)) else { continue };
            ids.push(id);
            if ids.len() >= most {
                return Ok((ids, entry.next_entry_cookie()));
            }
        }
    }
    Ok((ids, 0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn looks_at_a_few_of_many_come_to_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(some_ids(&dir.path().join("none"), 0, 3).unwrap(), (Vec::new(), 0));
        let all: BTreeSet<Id> = (0..200).map(|_| Id::generate()).collect();
        for id in &all {
            std::fs::write(dir.path().join(id.as_str()), "").unwrap();
        }
        std::fs::write(dir.path().join("no id"), "").unwrap();
        let (mut seen, mut from) = (BTreeSet::new(), 0);
        for _ in 0..21 {
            let (ids, next) = some_ids(dir.path(), from, 10).unwrap();
            assert_eq!(ids.len(), 10);
            seen.extend(ids);
            from = next;
        }
        assert_eq!(seen, all);
        // Fewer than are looked at: all of them, wherever the last look ended.
        let (ids, next) = some_ids(dir.path(), from, 300).unwrap();
        assert_eq!((ids.into_iter().collect::<BTreeSet<_>>(), next), (all, 0));
    }
}
