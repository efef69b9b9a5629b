//! What of the host git reaches: a program in C that parses what strangers wrote.
//!
//! It has the rights of its user, and of those only what a call needs: programs and libraries of the host to read, the
//! repository to read, and the staged directory to write. There is no network, and no system call that leads out. Files are
//! Landlock's matter, so a kernel without Landlock leaves git the files of its user; all else holds there too.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::Git;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::confine::{Access, Confinement, Files, Filter};

/// What a call reaches besides the staged directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Reads the repository.
    Repository,
    /// Also writes its objects.
    Objects,
    /// Also writes its refs, and what else is in its git directory.
    Refs,
    /// Reads configuration and nothing else. Any file may be included in that.
    Configuration,
    /// Reads the work tree as its owner does: with the owner's configuration, and the programs that it names as filters.
    WorkTree,
}

/// Programs and libraries of the host.
const PROGRAMS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"];
/// What programs and libraries read. Nothing of these is a secret.
const READ: [&str; 13] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/gitconfig",
    "/etc/gitattributes",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
];

/// How far alternates of alternates are followed, and how many there may be: git follows as many.
const DEPTH: usize = 5;
const ALTERNATES: usize = 256;
/// Largest list of alternates.
const LIST: u64 = 64 << 10;

/// Root in a repository of its own reads and writes what other users left there. Nothing else of root's rights is needed.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// What is the same for every call of a [`Git`].
#[derive(Debug, Clone)]
pub(super) struct Walls {
    network: Arc<OwnedFd>,
    filter: Arc<Filter>,
}

impl Walls {
    pub(super) fn new() -> Result<Walls> {
        let network = sys::confine::empty_network().map_err(Error::sys("make a network namespace"))?;
        let filter = Filter::of_program().map_err(Error::sys("make a filter of system calls"))?;
        Ok(Walls { network: Arc::new(network), filter: Arc::new(filter) })
    }
}

/// The host's git, as it is found in `PATH`.
pub(super) fn program() -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    sys::host::directories().into_iter().map(|dir| dir.join("git")).find(is_program)
}

impl Git {
    /// What a call is confined to that works at `at`.
    pub(super) fn confinement(&self, reach: Reach, at: &Path) -> Result<Arc<Confinement>> {
        if let Some(made) = self.made.borrow().get(&reach) {
            return Ok(made.clone());
        }
        let mut files = Files::none().map_err(Error::sys("confine git"))?;
        for (path, access) in self.files(reach, at)? {
            files = files.add(&path, access).map_err(Error::io("show to git", &path))?;
        }
        let made = Arc::new(Confinement {
            network: Some(self.walls.network.clone()),
            files: files.ready(),
            filter: self.walls.filter.clone(),
            capabilities: KEPT,
            // A limit of 1 keeps the kernel from running a program of the host's for a crash, and 0 does not: core(5).
            limits: vec![(Resource::Core, 1)],
        });
        self.made.borrow_mut().insert(reach, made.clone());
        Ok(made)
    }

    fn files(&self, reach: Reach, at: &Path) -> Result<Vec<(PathBuf, Access)>> {
        let mut all = self.of_host();
        all.push((self.dir.clone(), Access::Write));
        match reach {
            Reach::Configuration => all.push(("/".into(), Access::Read)),
            Reach::Repository | Reach::Objects | Reach::Refs => {
                let settings = Settings::of_repository(self)?;
                all.extend(self.of_repository(reach));
                all.extend(settings.files.into_iter().map(|path| (path, Access::Read)));
            }
            Reach::WorkTree => {
                let settings = Settings::of_owner(self, at)?;
                all.extend(self.of_repository(reach));
                all.push((at.to_owned(), Access::Read));
                all.extend(settings.files.into_iter().map(|path| (path, Access::Read)));
                // git-lfs keeps the content of a file in the git directory.
                if settings.has_filters {
                    all.push((self.repository.clone(), Access::Write));
                }
                if settings.runs_owners_programs {
                    all.push(("/".into(), Access::Run));
                }
            }
        }
        Ok(all)
    }

    /// What every program of the host needs, git included.
    fn of_host(&self) -> Vec<(PathBuf, Access)> {
        let programs = PROGRAMS.iter().map(|path| (path.into(), Access::Run));
        let mut all: Vec<(PathBuf, Access)> =
            programs.chain(READ.iter().map(|path| (path.into(), Access::Read))).collect();
        all.push(("/dev/null".into(), Access::Write));
        for program in [Some(self.program.clone()), self.program.canonicalize().ok()].into_iter().flatten() {
            if PROGRAMS.iter().any(|dir| program.starts_with(dir)) {
                continue;
            }
            // In a directory of its own, git has its other programs beside it.
            let prefix = program.parent().and_then(Path::parent).filter(|prefix| {
                ["libexec/git-core", "lib/git-core"].iter().any(|below| prefix.join(below).is_dir())
            });
            all.push((prefix.unwrap_or(&program).to_owned(), Access::Run));
        }
        all
    }

    /// The git directory, and what it consists of elsewhere.
    fn of_repository(&self, reach: Reach) -> Vec<(PathBuf, Access)> {
        let write_if = |is| if is { Access::Write } else { Access::Read };
        let whole = write_if(reach == Reach::Refs);
        let mut all = vec![(self.repository.clone(), whole)];
        // `git-new-workdir` and others make git directories of links to another one's parts.
        all.extend(links(&self.repository).into_iter().map(|target| (target, whole)));
        if let Ok(objects) = self.repository.join("objects").canonicalize()
            && is_objects(&objects)
        {
            all.push((objects.clone(), write_if(reach == Reach::Objects)));
            let mut others = Vec::new();
            alternates(&objects, DEPTH, &mut others);
            all.extend(others.into_iter().map(|path| (path, Access::Read)));
        }
        // In a linked work tree and in a submodule it is a file, which says where the git directory is.
        let dot_git = self.source.ancestors().map(|dir| dir.join(".git")).find(|path| path.exists());
        all.extend(dot_git.filter(|path| path.is_file()).map(|path| (path, Access::Read)));
        all
    }
}

/// Whether a directory holds objects of git. An archive may name any directory as one.
fn is_objects(dir: &Path) -> bool {
    ["pack", "info"].iter().any(|below| dir.join(below).is_dir())
}

/// What links in a git directory lead to in other git directories.
fn links(git_dir: &Path) -> Vec<PathBuf> {
    let is_git_dir =
        |dir: &Path| dir.join("HEAD").is_file() && dir.join("refs").is_dir() && dir.join("objects").is_dir();
    let Ok(entries) = std::fs::read_dir(git_dir) else { return Vec::new() };
    let links = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let targets = links.filter_map(|entry| entry.path().canonicalize().ok());
    targets.filter(|target| target.parent().is_some_and(is_git_dir)).collect()
}

/// Directories of objects that are another one's `objects/info/alternates`.
fn alternates(objects: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for line in list(&objects.join("info/alternates")) {
        let Ok(path) = objects.join(line).canonicalize() else { continue };
        if found.len() < ALTERNATES && is_objects(&path) && !found.contains(&path) {
            found.push(path.clone());
            if depth > 0 {
                alternates(&path, depth - 1, found);
            }
        }
    }
}

/// The lines of a list of alternates; none of a file that is not a small one.
fn list(path: &Path) -> Vec<PathBuf> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let text = file.and_then(|file| sys::file::read_bounded(file, LIST)).unwrap_or_default();
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternates_are_followed_and_only_directories_of_objects_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        for name in ["a/info", "b/info", "b/pack", "home/keys"] {
            std::fs::create_dir_all(top.join(name)).unwrap();
        }
        let secret = top.join("home");
        std::fs::write(top.join("a/info/alternates"), format!("# a comment\n../b\n{}\n", secret.display()))
            .unwrap();
        std::fs::write(top.join("b/info/alternates"), "../a\n../gone\n").unwrap();
        let mut found = Vec::new();
        alternates(&top.join("a"), DEPTH, &mut found);
        assert_eq!(found, [top.join("b"), top.join("a")]);
    }
}
