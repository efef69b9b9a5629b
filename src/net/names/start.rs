//! Starting the process that answers, and ending it.
//!
//! The file `names/resolver` belongs to the process. It is marked for as long as the process lives, says which network namespace
//! that serves as soon as it is ready, and the process leaves when the file has no name any more. So a command learns with four
//! system calls whether names are answered, and ends the process by removing a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use super::serve::Resolver;
use super::{ADDRESS, RESOLVER};
use crate::domain::ids;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::flock::{self, Mode};
use crate::sys::helper::{self, Ready};

/// The role of the process.
const ROLE: &str = "answer-names";
/// Most bytes of address space. The program itself takes some 40 MiB of it.
const MEMORY: u64 = 256 << 20;
/// Descriptors that it may have open: sockets that ask and listen, connections, and a file that it reads.
const FILES: u64 = 1024;

/// Makes sure that a process answers in a network namespace. Returns when it is ready.
pub(super) fn ensure(dir: &Path, router: BorrowedFd<'_>, program: &Path) -> Result<()> {
    let wanted = namespace(router).map_err(Error::sys("look at the router's network namespace"))?;
    let path = dir.join(RESOLVER);
    let serves = || serves(&path).map_err(Error::io("look at", &path));
    if serves()?.is_some_and(|serves| serves == wanted) {
        return Ok(());
    }
    // Of several commands, one starts it. The others wait here, and find it ready.
    let _lock = flock::lock_dir(dir, Mode::Exclusive).map_err(Error::io("lock", dir))?;
    match serves()? {
        Some(serves) if serves == wanted => return Ok(()),
        // That of a router that is gone, or one whose start was not waited for: it leaves when its file is gone.
        Some(_) => sys::file::remove(&path).map_err(Error::io("remove", &path))?,
        None => {}
    }
    start(dir, router, program)
}

/// Whether a process answers, in whatever namespace.
pub(super) fn runs(dir: &Path) -> bool {
    serves(&dir.join(RESOLVER)).is_ok_and(|serves| serves.is_some_and(|serves| !serves.is_empty()))
}

/// The network namespace that the process serves. Nothing in it if it is not ready; none if there is no process.
fn serves(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !flock::is_marked(&file)? {
        return Ok(None);
    }
    let mut text = String::new();
    file.take(100).read_to_string(&mut text)?;
    Ok(Some(if text.ends_with('\n') { text } else { String::new() }))
}

fn start(dir: &Path, router: BorrowedFd<'_>, program: &Path) -> Result<()> {
    let begin = || -> io::Result<()> {
        let mut options = File::options();
        // Of one that was killed, the file is still there.
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let own = options.open(dir.join(RESOLVER))?;
        flock::mark(&own)?;
        let top = sys::file::open_dir(dir)?;
        helper::start(program, ROLE, &[own.as_fd(), top.as_fd(), router])
    };
    begin().map_err(|source| Error::Network {
        what: format!("the process that answers questions for names could not be started: {source}"),
        hint: Some("names of sparks are not found until a `spark` command can start it".into()),
    })
}

/// A network namespace, and the version of the program that serves it, in words: another version may read other files.
fn namespace(fd: impl AsFd) -> io::Result<String> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(format!("{}:{} {}\n", stat.st_dev, stat.st_ino, env!("CARGO_PKG_VERSION")))
}

/// Runs this process in the role of that name, if it is this one. `leave_cgroup` moves it away from its caller's cgroup, with
/// which it would end.
#[must_use]
pub fn run(role: &str, leave_cgroup: impl FnOnce()) -> Option<ExitCode> {
    if role != ROLE {
        return None;
    }
    let Ok(([lock, dir, router], ready)) = helper::begin() else { return Some(ExitCode::FAILURE) };
    let served = begin(ready, lock, dir, router, leave_cgroup).and_then(|mut resolver| resolver.serve());
    Some(if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn begin(
    ready: Ready,
    lock: OwnedFd,
    dir: OwnedFd,
    router: OwnedFd,
    leave_cgroup: impl FnOnce(),
) -> io::Result<Resolver> {
    // What it does not need any more, it closes when it is open.
    let open = move || -> io::Result<Resolver> {
        leave_cgroup();
        let files = Rlimit { current: Some(FILES), maximum: Some(FILES) };
        rustix::process::setrlimit(Resource::Nofile, files)?;
        let mut state = File::from(lock.try_clone()?);
        let serves = namespace(&router)?;
        let resolver = Resolver::open(&dir, lock, &router, ADDRESS)?;
        // While this process may still write.
        state.write_all(serves.as_bytes())?;
        helper::confine(ids::resolver(), &dir, MEMORY, FILES)?;
        Ok(resolver)
    };
    let (resolver, begun) = match open() {
        Ok(resolver) => (Ok(resolver), Ok(())),
        Err(e) => (Err(io::Error::from(e.kind())), Err(e)),
    };
    ready.say(&begun);
    resolver
}
