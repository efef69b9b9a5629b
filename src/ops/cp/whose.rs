//! Where a location is: on the host, or among the files of a spark or of a snapshot, as the spark sees them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Mode as Bits, OFlags, ResolveFlags};

use super::super::Sparks;
use super::super::spark::{Opened, SparkId};
use super::Owner;
use super::view::{Files, Found, View, What, mount_points};
use crate::bundle::{etc, template};
use crate::domain::location::Location;
use crate::domain::name::Name;
use crate::domain::options::BindMount;
use crate::domain::place::{SnapshotPaths, SparkPaths, VolumePaths};
use crate::domain::secret;
use crate::domain::volume::{Attached, Data};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::runtime::live::Live;
use crate::runtime::secrets;
use crate::sys;
use crate::sys::flock::Mode;

/// Whose files a location is among.
pub(super) enum Side {
    Host,
    Inside(Inside),
}

/// The files of a spark, or of a snapshot of one.
pub(super) struct Inside {
    pub(super) spark: SparkId,
    pub(super) snapshot: Option<Name>,
    pub(super) view: View,
    /// What is mounted that a copy of what is around it leaves out, and what to say of it.
    mounts: Vec<(PathBuf, String)>,
}

/// A directory, and the name in it that a location means.
pub(super) struct Place {
    pub(super) dir: File,
    pub(super) name: Vec<u8>,
    /// The files that it is among; none of the host's.
    pub(super) files: Option<Files>,
    /// What is mounted at and below it, by the path from there.
    pub(super) mounted: HashMap<Vec<u8>, What>,
}

impl Sparks {
    /// Finds the files that a location is among, and opens them: from then on nothing that becomes of the names matters.
    pub(super) fn side_of(&self, location: &Location) -> Result<Side> {
        let Some(source) = location.spark() else { return Ok(Side::Host) };
        let id = self.resolve(&source.spark)?;
        // Only until all is open: a long copy keeps nobody from stopping or deleting the spark, or taking a snapshot.
        let opened = self.open_spark(&id, Mode::Shared)?;
        match &source.snapshot {
            Some(snapshot) => self.of_snapshot(id, snapshot).map(Side::Inside),
            None => self.of_spark(&opened).map(Side::Inside),
        }
    }

    fn of_snapshot(&self, spark: SparkId, name: &Name) -> Result<Inside> {
        let root = self.snapshot_root(&spark, name)?;
        let mut view = View::new(subvolume(&root)?);
        let mut mounts = Vec::new();
        for kept in self.snapshot_record(&spark, name)?.volumes {
            let Attached { volume, path, .. } = kept.attached;
            let what = match kept.data {
                Data::Copy => {
                    let fs = SnapshotPaths(&self.snapshot_dir(&spark, name)).volume(&volume);
                    What::Dir { files: subvolume(&fs)?, closed: None }
                }
                _ => What::Hidden(format!("where data volume `{volume}` is, of which it holds no copy")),
            };
            view.mount(&path, what).map_err(Error::io("follow", &path))?;
            mounts.push((path, of_volume(&volume)));
        }
        Ok(Inside { spark, snapshot: Some(name.clone()), view, mounts })
    }

    /// What a spark sees, or is going to see when it starts, in the order in which a start mounts it.
    fn of_spark(&self, opened: &Opened) -> Result<Inside> {
        let options = &opened.record.options;
        let (bundle, live) = (self.bundle(&opened.record), self.live(&opened.record));
        let mut view = View::new(subvolume(&SparkPaths(&opened.dir).root())?);
        let mut planned: Vec<(PathBuf, What)> = Vec::new();
        let mut mounts = Vec::new();
        for file in etc::FILES {
            let why = "which Sparks writes at each start".to_owned();
            let what = match live {
                Some(_) => What::File(bundle.join("etc").join(file), why),
                None => What::Hidden(why),
            };
            planned.push((Path::new("/etc").join(file), what));
        }
        let dirs = self.shared_dirs(&opened.id.project);
        for (dir, (name, _)) in dirs.iter().zip(options.shared_in_effect().mounts()) {
            planned.push((Path::new("/spark").join(name), shared(dir)));
        }
        for wanted in &options.mounts {
            planned.push((wanted.dst.clone(), bound(wanted)));
            let src = wanted.src.display();
            mounts.push((wanted.dst.clone(), format!("{src} of the host, mounted at")));
        }
        // Of a template that cannot be read nothing can start, and so nothing is mounted.
        let template = options.bundle.as_deref().unwrap_or("default");
        let spec = template::load(template, &self.context.templates).ok();
        for mount in spec.iter().flat_map(|spec| spec.mounts().iter().flatten()) {
            let why = "which only the running spark has".to_owned();
            planned.push((mount.destination().clone(), What::Hidden(why)));
        }
        planned.extend(self.volumes_seen(opened)?);
        mounts.extend(options.volumes.iter().map(|v| (v.path.clone(), of_volume(&v.volume))));
        if secrets::any(&bundle) || !self.wanted(&opened.id.project, &options.secrets)?.is_empty() {
            let why = "which holds the spark's secrets, in memory alone".to_owned();
            planned.push((secret::DIR.into(), What::Hidden(why)));
        }
        for (at, what) in planned {
            view.mount(&at, what).map_err(Error::io("follow", &at))?;
        }
        for at in live.iter().flat_map(mounted_in) {
            view.mounted_inside(&at);
        }
        Ok(Inside { spark: opened.id.clone(), snapshot: None, view, mounts })
    }

    /// The data volumes of a spark, opened while no restore can exchange them.
    fn volumes_seen(&self, opened: &Opened) -> Result<Vec<(PathBuf, What)>> {
        let fs = |volume: &Name| VolumePaths(&self.home_of(&opened.id, volume)).fs();
        let mut volumes = opened.record.options.volumes.clone();
        let there: Vec<Attached> =
            volumes.iter().filter(|v| btrfs::is_subvolume(&fs(&v.volume))).cloned().collect();
        let _held = self.hold_volumes(&opened.id, &there)?;
        volumes.sort_by_key(|v| v.path.components().count());
        let seen = volumes.into_iter().map(|Attached { volume, path, .. }| {
            let what = match subvolume(&fs(&volume)) {
                Ok(files) => What::Dir { files, closed: None },
                Err(e) => What::Hidden(format!("where data volume `{volume}` is missing: {e}")),
            };
            (path, what)
        });
        Ok(seen.collect())
    }

    /// Fails if files that were opened are no longer those of their spark. Of what was read, only a deletion matters.
    pub(super) fn refuse_taken_away(&self, side: &Side, files: &Files, is_target: bool) -> Result<()> {
        let Side::Inside(inside) = side else { return Ok(()) };
        if !files.is_subvolume {
            return Ok(());
        }
        let fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*files.top));
        let now = std::fs::read_link(&fd).map_err(Error::sys("find the files that were opened"))?;
        let top =
            std::fs::canonicalize(&self.pool.paths.top).map_err(Error::io("find", &self.pool.paths.top))?;
        let spark = &inside.spark;
        let changed = |what: &str, hint: String| Error::WrongState {
            action: if is_target { "copy to" } else { "copy from" },
            kind: "spark",
            name: spark.to_string(),
            state: format!("not what it was: it was {what} meanwhile"),
            hint,
        };
        match fate(&now, &top) {
            Fate::Freed => {
                Err(changed("deleted", format!("see whether there is another with `spark list {spark}`")))
            }
            Fate::Trashed if is_target => {
                Err(changed("deleted", format!("bring it back with `spark undelete {spark}`")))
            }
            Fate::Kept if is_target && inside.snapshot.is_none() => {
                Err(changed("restored", "copy again; what was copied is in its undo snapshot".into()))
            }
            _ => Ok(()),
        }
    }
}

/// What has become of a subvolume that was opened.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    InPlace,
    /// In a snapshot now: a restore has put another one in its place.
    Kept,
    Trashed,
    Freed,
}

/// Reads the fate of a subvolume from where it is now, in a pool.
fn fate(now: &Path, pool: &Path) -> Fate {
    if now.as_os_str().as_bytes().ends_with(b" (deleted)") {
        return Fate::Freed;
    }
    let Ok(path) = now.strip_prefix(pool) else { return Fate::InPlace };
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().as_bytes()).collect();
    match parts[..] {
        [b"trash", ..] => Fate::Trashed,
        // It is being removed.
        [b"staging", ..] => Fate::Freed,
        [b"projects", _, b"sparks" | b"data", _, b"snapshots", ..] => Fate::Kept,
        _ => Fate::InPlace,
    }
}

impl Inside {
    /// Opens what is to be read. `is_dir` says that the location ends as only directories do.
    pub(super) fn source(&self, location: &Location, is_dir: bool) -> Result<Place> {
        let view = &self.view;
        let follow = Error::io("follow", location.written());
        let path = view.walk(Path::new(location.path()), is_dir).map_err(follow)?;
        let (files, rest) = match view.find(&path) {
            Found::Files(files, rest) => (files, rest),
            Found::Mounted(file @ What::File(..), at) if at == path => {
                let dir = open_in(view.root(), Path::new(""), OFlags::PATH);
                let dir = dir.map_err(Error::io("open the directory of", location.written()))?;
                let mounted = [(Vec::new(), file.clone())].into();
                return Ok(Place { dir, name: b".".to_vec(), files: None, mounted });
            }
            Found::Mounted(what, at) => return Err(self.unreadable(location, what, at)),
        };
        let whole = rest.as_os_str().is_empty();
        let (dir, name) = match (whole || is_dir, rest.parent(), rest.file_name()) {
            (false, Some(dir), Some(name)) => (dir.to_owned(), name.as_bytes().to_vec()),
            _ => (rest.clone(), b".".to_vec()),
        };
        let dir = open_in(files, &dir, OFlags::PATH | OFlags::DIRECTORY);
        let dir = dir.map_err(Error::io("open the directory of", location.written()))?;
        let mounted = view.below(&path).filter(|(below, _)| !below.is_empty());
        let mounted = mounted.map(|(below, what)| (below, what.clone())).collect();
        Ok(Place { dir, name, files: Some(files.clone()), mounted })
    }

    fn unreadable(&self, location: &Location, what: &What, at: &Path) -> Error {
        let why = what.closed().unwrap_or_default();
        match &self.snapshot {
            Some(_) => Error::Usage {
                message: format!("cannot copy {location}: it is below {}, {why}", at.display()),
                hint: Some(format!("copy from the volume as it is now: `{}:{}`", self.spark, at.display())),
            },
            None => Error::WrongState {
                action: "copy from",
                kind: "path",
                name: location.to_string(),
                state: format!("in the mount {}, {why}", at.display()),
                hint: format!(
                    "read it inside: `spark exec -T {} -- cat {}`",
                    self.spark,
                    location.path().display()
                ),
            },
        }
    }

    /// Opens where something is to be written: into a directory that is there, under `name` if it has one, or else under
    /// the name that the location ends in.
    pub(super) fn target(&self, location: &Location, name: Option<&[u8]>, is_dir: bool) -> Result<Place> {
        let (view, written) = (&self.view, location.written());
        let path = Path::new(location.path());
        let into = view.walk(path, true).map_err(Error::io("follow", &written))?;
        if let Found::Files(files, rest) = view.find(&into) {
            match open_in(files, &rest, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => {
                    let path = name
                        .map_or_else(|| into.clone(), |name| into.join(std::ffi::OsStr::from_bytes(name)));
                    let name = name.unwrap_or(b".").to_vec();
                    return self.placed(location, (dir, name, files), &path);
                }
                Err(e) if !is_dir && is_no_directory(&e) => {}
                Err(e) => return Err(Error::io("open", &written)(e)),
            }
        } else if is_dir {
            return Err(self.unwritable(location, &into));
        }
        // The name itself, and not where a link of that name leads.
        let path = view.walk(path, false).map_err(Error::io("follow", &written))?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::io("open", &written)(io::ErrorKind::NotFound.into()));
        };
        let Found::Files(files, rest) = view.find(dir) else { return Err(self.unwritable(location, dir)) };
        let dir = open_in(files, &rest, OFlags::RDONLY | OFlags::DIRECTORY);
        let dir = dir.map_err(Error::io("open the directory of", &written))?;
        self.placed(location, (dir, name.as_bytes().to_vec(), files), &path)
    }

    /// A place whose path, without links, is `path`.
    fn placed(
        &self,
        location: &Location,
        (dir, name, files): (File, Vec<u8>, &Files),
        path: &Path,
    ) -> Result<Place> {
        if self.view.closed(path).is_some() {
            return Err(self.unwritable(location, path));
        }
        let open = name == b".";
        let mounted = self.view.below(path).filter(|(below, _)| !(open && below.is_empty()));
        let mounted = mounted.map(|(below, what)| (below, what.clone())).collect();
        Ok(Place { dir, name, files: Some(files.clone()), mounted })
    }

    fn unwritable(&self, location: &Location, path: &Path) -> Error {
        let (at, why) = self.view.closed(path).unwrap_or((path, "which is mounted"));
        Error::WrongState {
            action: "copy to",
            kind: "path",
            name: location.to_string(),
            state: format!("in the mount {}, {why}", at.display()),
            hint: "choose a path outside of the mount".into(),
        }
    }

    /// What a copy of a path leaves out, in words.
    pub(super) fn left_out(&self, location: &Location) -> Vec<String> {
        let around = self.view.walk(Path::new(location.path()), true).unwrap_or_default();
        let below = |at: &&(PathBuf, String)| at.0.starts_with(&around) && at.0 != around;
        let notice = |(at, what): &(PathBuf, String)| {
            format!("{what} {} is not copied: it is not in the root", at.display())
        };
        self.mounts.iter().filter(below).map(notice).collect()
    }
}

fn of_volume(volume: &Name) -> String {
    format!("data volume `{volume}` at")
}

fn is_no_directory(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn open_in(files: &Files, path: &Path, flags: OFlags) -> io::Result<File> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    sys::beneath::open_with(&*files.top, path, flags, Bits::empty())
}

fn files(top: OwnedFd, owner: Owner) -> Files {
    Files { top: Rc::new(top), owner, seen_as_root: None, is_subvolume: false }
}

/// The files of a subvolume of the pool.
fn subvolume(path: &Path) -> Result<Files> {
    let top = sys::file::open_dir(path).map_err(Error::io("open", path))?;
    Ok(Files { is_subvolume: true, ..files(top, Owner::Kept) })
}

/// A directory that sparks share. It may be read-only inside: this is how the host's user writes into it.
fn shared(dir: &Path) -> What {
    match sys::file::open_dir(dir) {
        Ok(top) => What::Dir { files: files(top, Owner::WithoutPrivileges), closed: None },
        Err(e) => What::Hidden(format!("which cannot be opened: {e}")),
    }
}

/// A directory or file of the host. Who owns a directory is root inside, and whoever writes into it there is that owner.
fn bound(wanted: &BindMount) -> What {
    let src = wanted.src.display();
    let opened = rustix::fs::openat2(
        CWD,
        &wanted.src,
        OFlags::PATH | OFlags::CLOEXEC,
        Bits::empty(),
        // As at a start: the very path that was named.
        ResolveFlags::NO_SYMLINKS,
    );
    let meta = opened.map_err(io::Error::from).map(File::from).and_then(|top| Ok((top.metadata()?, top)));
    match meta {
        Err(e) => What::Hidden(format!("which is {src} of the host and cannot be opened: {e}")),
        Ok((meta, _)) if !meta.is_dir() => {
            What::File(wanted.src.clone(), format!("which is the file {src} of the host"))
        }
        Ok((meta, top)) => {
            let (owner, seen_as_root) = match meta.uid() {
                0 => (Owner::WithoutPrivileges, None),
                uid => (Owner::Is(uid, meta.gid()), Some((uid, meta.gid()))),
            };
            // To be read, and to be synced.
            let top = match sys::tree::open_child(&top, b".") {
                Ok(top) => top,
                Err(e) => {
                    return What::Hidden(format!("which is {src} of the host and cannot be opened: {e}"));
                }
            };
            let closed = wanted.ro.then(|| format!("which is {src} of the host, read-only"));
            What::Dir { files: Files { seen_as_root, ..files(top, owner) }, closed }
        }
    }
}

/// Where something is mounted in a running spark.
fn mounted_in(live: &Live) -> Vec<PathBuf> {
    /// Longer than any honest one; the rest of a longer one is not looked at.
    const MOST: u64 = 16 << 20;
    let path = format!("/proc/{}/mountinfo", live.init.pid);
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, MOST), &mut text));
    // By number: it is the spark's own only if PID 1 is still that process.
    if read.is_ok() && live.init.alive() { mount_points(&text).collect() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_subvolume_is_read_from_where_it_is() {
        for (path, expected) in [
            ("projects/p/sparks/s/root", Fate::InPlace),
            ("projects/snapshots/sparks/snapshots/root", Fate::InPlace),
            ("projects/p/sparks/s/snapshots/undo-1/root", Fate::Kept),
            ("projects/p/data/v/snapshots/undo-1/root", Fate::Kept),
            ("projects/p/data/v/fs", Fate::InPlace),
            ("trash/01J/root", Fate::Trashed),
            ("staging/x/root", Fate::Freed),
            ("projects/p/sparks/s/root (deleted)", Fate::Freed),
        ] {
            assert_eq!(fate(&Path::new("/pool").join(path), Path::new("/pool")), expected, "{path}");
        }
    }
}
