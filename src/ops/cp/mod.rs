//! `cp`: files into, out of and between sparks, on the filesystems themselves, so that it is the same whether a
//! spark runs.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

pub(super) use self::node::At;
use self::node::Node;
pub(super) use self::tree::{AsRoot, Copier};
use self::whose::{Place, Side};
use super::{Observer, Sparks, transfer};
use crate::domain::location::Location;
use crate::error::{Error, Result};
use crate::image::Summary;
use crate::sys::output;
use crate::{fault, sys};

mod meta;
mod node;
mod place;
mod there;
mod tree;
mod view;
mod whose;

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Whoever had the original: inside a spark, ids are as on disk.
    Kept,
    /// The same without set-id bits and capabilities: for files that more than this spark can reach.
    WithoutPrivileges,
    /// One user and group of the host. What a tenant made gets no privileges there.
    Is(u32, u32),
}

impl Sparks {
    /// Copies files and trees to where `target` says, by the rules of `docker cp`: into a directory that is there, else
    /// under that name; what ends in `/.` is a directory's content. A file replaces a file, whole; directories are
    /// merged, and one that was there keeps its owner and mode. Links are copied and never followed. What is mounted in a
    /// spark is read and written where it comes from, and never replaced.
    ///
    /// # Errors
    /// `not_found`; `wrong_state` where a directory would replace something else or the other way round, where something is
    /// mounted that cannot be copied to, and where the spark was restored or deleted meanwhile. What was copied before stays.
    pub fn cp(&self, sources: &[Location], target: &Location, observer: &dyn Observer) -> Result<Summary> {
        check(sources, target)?;
        if let Some(number) = stream_of(target) {
            return self.cp_to_stream(sources, (target, number), observer);
        }
        let _room = if target.spark().is_some() { Some(self.room()?) } else { None };
        let to = self.side_of(target)?;
        if sources.len() > 1 {
            refuse_unless_directory(&to, target)?;
        }
        let mut copier = Copier::new(Owner::Kept, observer, OsString::new(), target.written());
        copier.to_host = matches!(to, Side::Host);
        copier.made = (sources.len() > 1).then(HashSet::new);
        for source in sources {
            self.cp_one(source, (&to, target), &mut copier)?;
        }
        fault::point("cp.before-sync")?;
        if !copier.reached.is_empty() {
            observer.step("writing to disk", None);
        }
        for files in &copier.reached {
            sys::tree::sync_filesystem(&*files.top).map_err(Error::io("sync", target.written()))?;
        }
        copier.summary.notices().for_each(|notice| observer.notice(&notice));
        copier.refuse_covered()?;
        Ok(copier.summary)
    }

    fn cp_one(
        &self,
        source: &Location,
        (to, target): (&Side, &Location),
        copier: &mut Copier<'_>,
    ) -> Result<()> {
        let into = target_of(to, target, parts(source.bytes()).copied_as)?;
        copier.owner = into.files.as_ref().map_or_else(caller, |files| files.owner);
        let first = copier.reached.len();
        copier.reached.extend(into.files.clone());
        copier.mounted = into.mounted;
        copier.from = source.written().into();
        let to_at = At { dir: into.dir.as_fd(), name: &into.name };
        if let Some(number) = stream_of(source) {
            let file = output::duplicate(number).map_err(Error::io("open", source.written()))?;
            copier.stream(&file, to_at)?;
            return self.refuse_changed(to, &copier.reached[first..], true);
        }
        let side = self.side_of(source)?;
        let from = source_of(&side, source)?;
        if let Side::Inside(inside) = &side {
            inside.left_out(source).iter().for_each(|notice| copier.observer.notice(notice));
        }
        copier.seen_as_root = from.files.as_ref().and_then(|files| files.seen_as_root);
        copier.mounted_files =
            from.mounted.into_iter().filter_map(|(path, what)| what.file().map(|f| (path, f))).collect();
        let done = copier.copy(At { dir: from.dir.as_fd(), name: &from.name }, to_at);
        // Why it failed, maybe; and if it did not, it may have gone where nobody looks for it.
        self.refuse_changed(to, &copier.reached[first..], true)?;
        self.refuse_changed(&side, from.files.as_slice(), false)?;
        done
    }

    fn refuse_changed(&self, side: &Side, files: &[view::Files], is_target: bool) -> Result<()> {
        files.iter().try_for_each(|files| self.refuse_taken_away(side, files, is_target))
    }

    /// Writes a file to what the caller left open, such as `/dev/stdout`.
    fn cp_to_stream(
        &self,
        sources: &[Location],
        (target, number): (&Location, i32),
        observer: &dyn Observer,
    ) -> Result<Summary> {
        let [source] = sources else {
            return Err(Error::usage(format!("several sources cannot be written to {target}")));
        };
        let mut out = output::duplicate(number).map_err(Error::io("open", target.written()))?;
        let side = self.side_of(source)?;
        let from = source_of(&side, source)?;
        let opened = match from.mounted.get(&b""[..]).cloned().and_then(view::What::file) {
            Some(mounted) => node::open_mounted(&mounted),
            None => node::open(At { dir: from.dir.as_fd(), name: &from.name }),
        };
        let Node::File(file, _) = opened.map_err(Error::io("open", source.written()))? else {
            return Err(Error::Usage {
                message: format!("{source} is not a file, and {target} is a stream"),
                hint: Some(
                    "for a directory, run tar inside, such as `spark exec -T web -- tar -C / -c etc`".into(),
                ),
            });
        };
        observer.step(&format!("copying {source}"), None);
        let copied = sys::copy::stream(&file, &mut out);
        self.refuse_changed(&side, from.files.as_slice(), false)?;
        let bytes = copied.map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => Error::sys(transfer::WRITE)(e),
            _ => Error::io("copy", source.written())(e),
        })?;
        Ok(Summary { entries: 1, bytes, ..Summary::default() })
    }
}

/// The number of a descriptor that the caller left open, if a location is one.
fn stream_of(location: &Location) -> Option<i32> {
    location.spark().is_none().then(|| output::descriptor(Path::new(location.path()))).flatten()
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
    refuse_one_name_twice(sources)?;
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

/// The second of two would replace what was copied of the first.
fn refuse_one_name_twice(sources: &[Location]) -> Result<()> {
    let mut names: HashMap<&[u8], &Location> = HashMap::new();
    for source in sources {
        if let Some(name) = parts(source.bytes()).copied_as
            && let Some(first) = names.insert(name, source)
        {
            return Err(Error::Usage {
                message: format!("{first} and {source} would get the same name"),
                hint: Some("copy them one by one, each under a name of its own".into()),
            });
        }
    }
    Ok(())
}

/// Several sources need a directory to be copied into.
fn refuse_unless_directory(to: &Side, target: &Location) -> Result<()> {
    let place = target_of(to, target, None)?;
    if place.name == b"." {
        return Ok(());
    }
    let there = sys::tree::stat(&place.dir, &place.name);
    let e = there.err().unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOTDIR));
    Err(Error::io("copy into", target.written())(e))
}

fn source_of(side: &Side, source: &Location) -> Result<Place> {
    let parts = parts(source.bytes());
    let Side::Inside(inside) = side else {
        let dir = open_host(parts.dir, OFlags::PATH | OFlags::DIRECTORY);
        let dir = dir.map_err(Error::io("open the directory of", source.written()))?;
        return Ok(Place { dir, name: parts.name.to_vec(), files: None, mounted: HashMap::new() });
    };
    inside.source(source, parts.name == b".")
}

/// The directory to copy into, and the name that the copy gets in it.
fn target_of(to: &Side, target: &Location, name: Option<&[u8]>) -> Result<Place> {
    let (parts, path) = (parts(target.bytes()), target.bytes());
    if let Side::Inside(inside) = to {
        return inside.target(target, name, parts.name == b".");
    }
    let place = |dir, name: &[u8]| Place { dir, name: name.to_vec(), files: None, mounted: HashMap::new() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    // An earlier copy may have put a link of a spark's there, which must not choose where the next one goes.
    let follow = if parts.name == b"." { OFlags::empty() } else { OFlags::NOFOLLOW };
    match open_host(path, flags | follow) {
        Ok(dir) => Ok(place(dir, name.unwrap_or(b"."))),
        Err(e)
            if parts.name != b"."
                && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            if open_host(path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
                return Err(Error::Usage {
                    message: format!("{target} is a link to a directory"),
                    hint: Some(format!("if it is to be followed, write `{target}/`")),
                });
            }
            let dir = open_host(parts.dir, flags);
            dir.map(|dir| place(dir, parts.name))
                .map_err(Error::io("open the directory of", target.written()))
        }
        Err(e) => Err(Error::io("open", target.written())(e)),
    }
}

fn open_host(path: &[u8], flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Who called: what comes out of a spark belongs to that one.
fn caller() -> Owner {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = sys::process::sudo_user().zip(sys::process::sudo_group()).unwrap_or(me);
    Owner::Is(uid, gid)
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
