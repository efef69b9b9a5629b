//! The console socket: libcontainer hands over a terminal's master through it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// A listening console socket. Dropping it removes it.
#[derive(Debug)]
pub struct ConsoleSocket {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Makes one in a directory that only root enters.
    pub fn new(below: &Path) -> io::Result<ConsoleSocket> {
        let dir = tempfile::Builder::new().prefix(".tty-").tempdir_in(below)?;
        let listener = UnixListener::bind(dir.path().join("s"))?;
        Ok(ConsoleSocket { dir, listener })
    }

    /// Where to connect.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Takes the master that was sent. Call it after the sender has reported success: then it is in the queue.
    pub fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&stream, &mut [io::IoSliceMut::new(&mut name)], &mut control, flags)?;
        let found = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        found.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no terminal was sent"))
    }
}
