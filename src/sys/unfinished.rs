//! Files that have a temporary name until they are whole. A signal that ends this process removes them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::SeqCst};

use super::held::ENDING;

/// Whether a name is guarded. At most one is at a time.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// The process that has the file; 0 if none has. A child that it forks inherits the handler, and must leave the file alone.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// An open directory, or `AT_FDCWD`.
static DIR: AtomicI32 = AtomicI32::new(0);
/// The name in the directory, with a zero at its end. A handler of signals must not allocate, nor read what may be freed.
static NAME: [AtomicU8; libc::PATH_MAX as usize] = [const { AtomicU8::new(0) }; libc::PATH_MAX as usize];

/// While this is there, a signal of [`ENDING`] that would end this process removes a name first.
#[derive(Debug)]
pub struct Unfinished {
    /// What signals did before. `None` if the name is not guarded.
    before: Option<[Option<libc::sigaction>; ENDING.len()]>,
}

impl Unfinished {
    /// Guards a path.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; `EINVAL` if it has a zero byte.
    pub fn path(path: &Path) -> io::Result<Unfinished> {
        Unfinished::name(libc::AT_FDCWD, path.as_os_str())
    }

    /// Guards a name in an open directory, which has to stay open as long as this is there. If this process guards another
    /// name already, then this one is not guarded.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; `EINVAL` if it has a zero byte.
    pub fn name(dir: RawFd, name: &OsStr) -> io::Result<Unfinished> {
        let name = name.as_bytes();
        if name.contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if name.len() >= NAME.len() {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        if TAKEN.swap(true, SeqCst) {
            return Ok(Unfinished { before: None });
        }
        for (place, byte) in NAME.iter().zip(name.iter().chain([&0])) {
            place.store(*byte, SeqCst);
        }
        DIR.store(dir, SeqCst);
        OWNER.store(rustix::process::getpid().as_raw_nonzero().get(), SeqCst);
        Ok(Unfinished { before: Some(ENDING.map(handle)) })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(before) = &self.before else { return };
        for (signal, before) in ENDING.into_iter().zip(before) {
            if let Some(before) = before {
                // SAFETY: the action is what the kernel gave for this signal.
                unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
            }
        }
        OWNER.store(0, SeqCst);
        TAKEN.store(false, SeqCst);
    }
}

/// Handles a signal that would end this process. `None` if it would not, or if it has a handler already.
fn handle(signal: i32) -> Option<libc::sigaction> {
    // SAFETY: both actions are valid, of plain numbers and a function that calls nothing but what signal-safety(7) allows.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut before);
        if before.sa_sigaction != libc::SIG_DFL {
            return None;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = remove_and_end as extern "C" fn(i32) as usize;
        // The action is the default one again when the handler runs.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut());
        Some(before)
    }
}

extern "C" fn remove_and_end(signal: i32) {
    // SAFETY: unlinkat(2), getpid(2) and raise(3) are safe in a handler. The name has a zero at its end, and lives for ever.
    unsafe {
        if OWNER.load(SeqCst) == libc::getpid() {
            libc::unlinkat(DIR.load(SeqCst), NAME.as_ptr().cast(), 0);
        }
        // The signal is blocked until this returns, and then ends the process.
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const NAME_OF_TEST: &str =
        "sys::unfinished::tests::a_signal_that_ends_the_process_removes_the_file_and_ends_it_all_the_same";

    /// What this test does when it is run again as a process of its own.
    fn be_ended(path: &Path) {
        let signal = std::env::var("SPARK_TEST_SIGNAL").unwrap().parse().unwrap();
        // A runner in the background ignores some signals, and what it runs inherits that.
        // SAFETY: signal(2) takes plain numbers.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        let guard = Unfinished::path(path).unwrap();
        if std::env::var_os("SPARK_TEST_DROPPED").is_some() {
            drop(guard);
        }
        // SAFETY: raise(3) takes a plain number.
        unsafe { libc::raise(signal) };
    }

    #[test]
    fn a_signal_that_ends_the_process_removes_the_file_and_ends_it_all_the_same() {
        if let Some(path) = std::env::var_os("SPARK_TEST_UNFINISHED") {
            return be_ended(path.as_ref());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half");
        for (signal, dropped, stays) in [
            (libc::SIGTERM, false, false),
            (libc::SIGINT, false, false),
            (libc::SIGTERM, true, true),
            (libc::SIGUSR1, false, true),
        ] {
            std::fs::write(&path, "half").unwrap();
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args([NAME_OF_TEST, "--exact"]).env("SPARK_TEST_UNFINISHED", &path);
            again.env("SPARK_TEST_SIGNAL", signal.to_string());
            if dropped {
                again.env("SPARK_TEST_DROPPED", "");
            }
            let ended = again.output().unwrap();
            assert_eq!(ended.status.signal(), Some(signal), "{ended:?}");
            assert_eq!(path.exists(), stays, "signal {signal}, dropped {dropped}");
        }
    }
}
