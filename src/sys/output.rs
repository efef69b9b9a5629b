//! Files that the caller names to be written: what is no regular file is written into and never replaced, and a regular
//! file appears whole or not at all.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::inherited::umask;
use super::new_file::NewFile;

/// A place to write one file to.
#[derive(Debug)]
pub struct Output(Kind);

#[derive(Debug)]
enum Kind {
    /// An open descriptor, a device or a fifo: what is written is there at once.
    Stream(File),
    /// A file that has not got its name yet, and the name.
    New(NewFile<Arc<OwnedFd>>, Vec<u8>),
}

impl Output {
    /// Opens a place to write to. `-` is standard output, `/dev/fd/N` is what the caller left open as `N`. A link to a
    /// regular file is replaced and not followed. A new file has the mode that the caller's umask leaves it, and one that is
    /// replaced keeps its mode.
    ///
    /// # Errors
    /// `ENXIO` for a socket, `EISDIR` for a directory.
    pub fn open(path: &Path) -> io::Result<Output> {
        if let Some(number) = descriptor(path) {
            return Ok(Output(Kind::Stream(duplicate(number)?)));
        }
        match std::fs::metadata(path).map(|there| there.file_type()) {
            Ok(kind) if kind.is_dir() => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            Ok(kind) if !kind.is_file() => return open_node(path).map(|file| Output(Kind::Stream(file))),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mode = match std::fs::symlink_metadata(path) {
            Ok(there) if there.is_file() => there.permissions().mode() & 0o777,
            _ => 0o666 & !umask(),
        };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Empty behind a slash, which is no file's name.
        let name = path.as_os_str().as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let new = NewFile::create(Arc::new(super::file::open_dir(dir)?))?;
        let output = Output(Kind::New(new, name.to_vec()));
        output.file().set_permissions(PermissionsExt::from_mode(mode))?;
        Ok(output)
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        match &self.0 {
            Kind::Stream(file) => file,
            Kind::New(new, _) => &new.file,
        }
    }

    /// Makes a new file durable and gives it its name.
    pub fn finish(self) -> io::Result<()> {
        match self.0 {
            Kind::Stream(_) => Ok(()),
            Kind::New(new, name) => {
                new.file.sync_all()?;
                new.place(&name)
            }
        }
    }
}

/// The number of the caller's open descriptor that a path names.
pub fn descriptor(path: &Path) -> Option<i32> {
    match path.to_str()? {
        "-" | "/dev/stdout" => Some(1),
        "/dev/stdin" => Some(0),
        "/dev/stderr" => Some(2),
        path => path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?.parse().ok(),
    }
}

/// A descriptor of this process's own for a file that the caller left open.
///
/// # Errors
/// `EBADF` if there is none.
pub fn duplicate(number: i32) -> io::Result<File> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is not negative, and the borrow ends before the call returns. If nothing is open under it, the call
    // fails with EBADF.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(File::from(rustix::io::fcntl_dupfd_cloexec(inherited, 3)?))
}

/// Opens a device or a fifo to write into it. A fifo waits for its reader.
fn open_node(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    // It could have become a regular file, whose content would be overwritten in place.
    let kind = file.metadata()?.file_type();
    let is_node = kind.is_char_device() || kind.is_block_device() || kind.is_fifo();
    if is_node { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    fn write(path: &Path, content: &str) -> io::Result<()> {
        let output = Output::open(path)?;
        output.file().write_all(content.as_bytes())?;
        output.finish()
    }

    #[test]
    fn a_file_is_whole_or_not_there_and_keeps_its_mode_and_a_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let half = Output::open(&path).unwrap();
        half.file().write_all(b"half").unwrap();
        // Nothing is there, also if this process is killed now.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(half);
        write(&path, "whole").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o666 & !umask());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        symlink("out", dir.path().join("link")).unwrap();
        write(&dir.path().join("link"), "again").unwrap();
        assert!(!dir.path().join("link").is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        write(&path, "again").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap(), mode(&path)), ("again".into(), 0o600));
        assert_eq!(write(dir.path(), "x").unwrap_err().raw_os_error(), Some(libc::EISDIR));
    }

    #[test]
    fn on_a_filesystem_without_files_that_have_no_name_a_file_has_another_one_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let named = |dir: &Path| {
            let new = NewFile::create_named(Arc::new(crate::sys::file::open_dir(dir).unwrap())).unwrap();
            Output(Kind::New(new, "out".into()))
        };
        for (n, content) in ["one", "two"].into_iter().enumerate() {
            let output = named(dir.path());
            output.file().write_all(content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), n + 1);
            output.finish().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        drop(named(dir.path()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nodes_are_written_into_and_sockets_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = fifo.clone();
        let reader = std::thread::spawn(move || std::fs::read_to_string(reader).unwrap());
        write(&fifo, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(write(&socket, "x").unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    }

    #[test]
    fn what_the_caller_left_open_is_named_by_its_number() {
        for (path, number) in [("-", Some(1)), ("/dev/fd/63", Some(63)), ("/dev/null", None), ("x", None)] {
            assert_eq!(descriptor(Path::new(path)), number, "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("x")).unwrap();
        write(Path::new(&format!("/dev/fd/{}", file.as_raw_fd())), "numbered").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("x")).unwrap(), "numbered");
        assert_eq!(write(Path::new("/dev/fd/999999"), "x").unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
