//! `cp`: files into, out of and between sparks, on the filesystems themselves, so that it is the same whether a
//! spark runs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::OFlags;

pub(super) use self::node::At;
pub(super) use self::tree::{AsRoot, Copier};
use self::whose::{Place, Tree};
use super::{Observer, Sparks};
use crate::domain::location::Location;
use crate::domain::volume::Attached;
use crate::error::{Error, Result};
use crate::image::Summary;
use crate::{fault, sys};

mod node;
mod place;
mod tree;
mod whose;

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Whoever had the original: inside a spark, ids are as on disk.
    Kept,
    /// One user and group of the host. What a tenant made gets no privileges there.
    Is(u32, u32),
}

impl Sparks {
    /// Copies files and trees to where `target` says, by the rules of `docker cp`: into a directory that is there, else
    /// under that name; what ends in `/.` is a directory's content. A file replaces a file, whole; directories are
    /// merged, and one that was there keeps its owner and mode. Links are copied and never followed.
    ///
    /// # Errors
    /// `not_found`; `wrong_state` where a directory would replace something else or the other way round. What was copied
    /// before stays.
    pub fn cp(&self, sources: &[Location], target: &Location, observer: &dyn Observer) -> Result<Summary> {
        check(sources, target)?;
        let _room = if target.spark().is_some() { Some(self.room()?) } else { None };
        let to = self.place_of(target)?;
        if sources.len() > 1 {
            to.tree
                .open(&to.path, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(Error::io("copy into", target.written()))?;
        }
        let mut summary = Summary::default();
        for source in sources {
            let place = self.place_of(source)?;
            for Attached { volume, path, .. } in &place.below {
                let path = path.display();
                observer.notice(&format!(
                    "data volume `{volume}` at {path} is not copied: it is not in the root"
                ));
            }
            let from = parts(&place.path);
            let dir = place.tree.open(from.dir, OFlags::PATH | OFlags::DIRECTORY);
            let dir = dir.map_err(Error::io("open the directory of", source.written()))?;
            let (to_dir, to_name) = target_of(&to, target, parts(source.bytes()).copied_as)?;
            let mut copier = Copier::new(owner_in(&to.tree), observer, source.written(), target.written());
            copier.summary = summary;
            copier
                .copy(At { dir: dir.as_fd(), name: from.name }, At { dir: to_dir.as_fd(), name: to_name })?;
            summary = copier.summary;
        }
        fault::point("cp.before-sync")?;
        if let Tree::Inside(root) = &to.tree {
            observer.step("writing to disk", None);
            sys::tree::sync_filesystem(root).map_err(Error::io("sync", target.written()))?;
        }
        summary.notices().for_each(|notice| observer.notice(&notice));
        Ok(summary)
    }
}

/// Refuses what the words alone show to be wrong: nothing in a spark, no path, a snapshot to be written.
pub fn check(sources: &[Location], target: &Location) -> Result<()> {
    let usage = |message: String, hint: &str| Err(Error::Usage { message, hint: Some(hint.into()) });
    for location in sources.iter().chain([target]) {
        match location.bytes() {
            b"" => return usage(format!("`{location}` has no path"), "write it like `web:/etc/hosts`"),
            b"-" => {
                let hint = "run tar inside, such as `spark exec -T web -- tar -C / -c etc`";
                return usage("`cp` reads and writes no streams".into(), hint);
            }
            _ => {}
        }
    }
    if target.spark().is_some_and(|s| s.snapshot.is_some()) {
        return usage(
            format!("cannot copy to {target}: a snapshot does not change"),
            "copy to the spark itself",
        );
    }
    if target.spark().is_none()
        && let Some(host) = sources.iter().find(|s| s.spark().is_none())
    {
        let hint = "name a spark on one side, such as `web:/tmp`; between paths of the host it is `cp -a`";
        return usage(format!("neither {host} nor {target} is in a spark"), hint);
    }
    Ok(())
}

/// A path in parts.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    dir: &'a [u8],
    /// `.` where the path means a directory and follows a link to it: it ends in `/`, `.` or `..`.
    name: &'a [u8],
    /// What a copy is called in a directory. None where the content alone is meant.
    copied_as: Option<&'a [u8]>,
}

fn parts(path: &[u8]) -> Parts<'_> {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
    let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let name = &path[start..end];
    match name {
        b"" | b"." | b".." => Parts { dir: path, name: b".", copied_as: None },
        _ if end < path.len() => Parts { dir: path, name: b".", copied_as: Some(name) },
        _ => Parts { dir: if start == 0 { b"." } else { &path[..start] }, name, copied_as: Some(name) },
    }
}

/// The directory to copy into, and the name that the copy gets in it.
fn target_of<'a>(to: &'a Place, target: &Location, name: Option<&'a [u8]>) -> Result<(File, &'a [u8])> {
    let (parts, path, to) = (parts(&to.path), &to.path, &to.tree);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    // An earlier copy may have put a link of a spark's there, which must not choose where the next one goes.
    let follow =
        if matches!(to, Tree::Host) && parts.name != b"." { OFlags::NOFOLLOW } else { OFlags::empty() };
    match to.open(path, flags | follow) {
        Ok(dir) => Ok((dir, name.unwrap_or(b"."))),
        Err(e)
            if parts.name != b"."
                && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            if to.open(path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
                return Err(Error::Usage {
                    message: format!("{target} is a link to a directory"),
                    hint: Some(format!("if it is to be followed, write `{target}/`")),
                });
            }
            let dir = to.open(parts.dir, flags);
            Ok((dir.map_err(Error::io("open the directory of", target.written()))?, parts.name))
        }
        Err(e) => Err(Error::io("open", target.written())(e)),
    }
}

fn owner_in(to: &Tree) -> Owner {
    match to {
        Tree::Inside(_) => Owner::Kept,
        Tree::Host => {
            let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let (uid, gid) = sys::process::sudo_user().zip(sys::process::sudo_group()).unwrap_or(me);
            Owner::Is(uid, gid)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_means_a_directory_and_a_dot_its_content() {
        for (path, dir, name, copied_as) in [
            ("/etc/hosts", "/etc/", "hosts", Some("hosts")),
            ("hosts", ".", "hosts", Some("hosts")),
            ("/etc", "/", "etc", Some("etc")),
            ("/etc//", "/etc//", ".", Some("etc")),
            ("/etc/.", "/etc/.", ".", None),
            ("a/..", "a/..", ".", None),
            ("/", "/", ".", None),
            ("//", "//", ".", None),
            (".", ".", ".", None),
        ] {
            let expected =
                Parts { dir: dir.as_bytes(), name: name.as_bytes(), copied_as: copied_as.map(str::as_bytes) };
            assert_eq!(parts(path.as_bytes()), expected, "{path}");
        }
    }
}
