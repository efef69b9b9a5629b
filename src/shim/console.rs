//! Terminals of containers: received over a socket, copied, resized.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// How long a runtime that has succeeded may take to hand over the terminal.
const HANDOVER: Duration = Duration::from_secs(10);
const CHUNK: usize = 32 << 10;

/// Where a runtime is to send a terminal.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    /// Keeps the short path to the socket valid.
    bundle: OwnedFd,
    name: String,
}

impl ConsoleSocket {
    /// Listens on a new socket in a bundle.
    ///
    /// A socket's path has at most 107 bytes, and the bundle's alone may be longer: it is reached through a
    /// descriptor.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn listen(bundle: &Path, name: String) -> Result<ConsoleSocket> {
        let _ = std::fs::remove_file(bundle.join(&name));
        let directory = std::fs::File::open(bundle).map_err(Error::io("open", bundle))?;
        let socket = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        let listener = UnixListener::bind(&socket).map_err(Error::io("listen on", bundle.join(&name)))?;
        Ok(ConsoleSocket { listener, bundle: directory.into(), name })
    }

    /// The path for another process.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}/{}", std::process::id(), self.bundle.as_raw_fd(), self.name).into()
    }

    /// Takes the terminal that a runtime has sent.
    ///
    /// # Errors
    /// If none comes.
    pub(super) async fn receive(self) -> Result<Terminal> {
        let attempt = async {
            let (stream, _) = self.listener.accept().await?;
            Terminal::new(receive_descriptor(&stream).await?)
        };
        match tokio::time::timeout(HANDOVER, attempt).await {
            Ok(got) => got.map_err(Error::sys("receive the terminal")),
            Err(_) => Err(Error::sys("receive the terminal")(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.bundle, self.name.as_str(), rustix::fs::AtFlags::empty());
    }
}

async fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut into = [IoSliceMut::new(&mut bytes)];
            recvmsg(stream.as_fd(), &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let received = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            received.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with it"))
        })
        .await
}

/// The outer side of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Terminal> {
        if !rustix::termios::isatty(&master) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a terminal"));
        }
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Terminal { master: super::asynchronous(master)? })
    }

    /// Sets the size of the window, in characters.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Copies what is written on the terminal until nobody has it open any more.
    pub(super) async fn copy_to(&self, to: &mut (impl AsyncWrite + Unpin)) {
        let mut buffer = vec![0; CHUNK];
        let read = async |buffer: &mut [u8]| {
            self.master.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
        };
        // The end is EIO here.
        while let Ok(got @ 1..) = read(&mut buffer).await {
            if to.write_all(&buffer[..got]).await.is_err() {
                return;
            }
        }
        let _ = to.flush().await;
    }

    /// Types.
    ///
    /// # Errors
    /// If nobody has it open any more.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written =
                self.master.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}
