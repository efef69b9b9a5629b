//! What a command's process tells its maker before it is executed: its terminal, and why it could not go on.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::sys::deadline::{self, Deadline};

/// The maker's end.
#[derive(Debug)]
pub struct Receiver(OwnedFd);

/// The command's end: close-on-exec, so that nothing more comes once it is executed.
#[derive(Debug)]
pub struct Sender(OwnedFd);

/// What was told.
#[derive(Debug, Default)]
pub struct Report {
    /// The other side of its terminal.
    pub master: Option<OwnedFd>,
    /// It was about to be executed.
    pub ready: bool,
    /// The step that failed. If there is none and it was not ready, it was killed on the way.
    pub failed: Option<(u8, io::Error)>,
}

/// Makes both ends. Messages keep their bounds.
pub fn channel() -> io::Result<(Receiver, Sender)> {
    let (from, to) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Receiver(from), Sender(to)))
}

impl Receiver {
    /// Waits until the command is executed or has failed, and adds what it tells to `report`. The sender must not be open in
    /// this process any more. After a deadline it may be called again.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn receive(&self, report: &mut Report, deadline: Deadline) -> io::Result<()> {
        loop {
            deadline::readable(&self.0, deadline)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 8];
            let mut place = [IoSliceMut::new(&mut bytes)];
            let got = rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(&self.0, &mut place, &mut control, RecvFlags::CMSG_CLOEXEC)
            })?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    report.master = fds.next();
                }
            }
            match &bytes[..got.bytes] {
                [] => return Ok(()),
                [0, 0] => report.ready = true,
                [step, a, b, c, d] => {
                    let errno = i32::from_ne_bytes([*a, *b, *c, *d]);
                    report.failed = Some((*step, io::Error::from_raw_os_error(errno)));
                }
                _ => {}
            }
        }
    }
}

impl Sender {
    /// Hands over a terminal.
    pub fn master(&self, master: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [master];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        // One byte: nothing at all would mean the end.
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Says that nothing is left to do but to execute it.
    pub fn ready(&self) -> io::Result<()> {
        rustix::net::send(&self.0, &[0, 0], SendFlags::NOSIGNAL).map(drop).map_err(Into::into)
    }

    /// Says what went wrong. If nobody listens any more, nobody is told.
    pub fn failed(&self, step: u8, e: &io::Error) {
        let errno = e.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        let message = [step, errno[0], errno[1], errno[2], errno[3]];
        let _ = rustix::net::send(&self.0, &message, SendFlags::NOSIGNAL);
    }
}

impl AsRawFd for Sender {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_terminal_and_a_failure_come_through_and_the_end_is_the_end() {
        let (from, to) = channel().unwrap();
        to.master(std::io::stdin().as_fd()).unwrap();
        to.ready().unwrap();
        to.failed(3, &io::Error::from_raw_os_error(libc::ENOENT));
        drop(to);
        let mut report = Report::default();
        from.receive(&mut report, Deadline::inside()).unwrap();
        assert!(report.master.is_some() && report.ready);
        let (step, e) = report.failed.unwrap();
        assert_eq!((step, e.raw_os_error()), (3, Some(libc::ENOENT)));

        let (from, to) = channel().unwrap();
        to.ready().unwrap();
        // Who was stopped on its way is waited for no longer than that, and may be waited for again.
        let (mut report, none) = (Report::default(), Deadline::after(Duration::ZERO));
        assert_eq!(from.receive(&mut report, none).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(report.ready);
        drop(to);
        let mut report = Report::default();
        from.receive(&mut report, Deadline::inside()).unwrap();
        assert!(report.master.is_none() && report.failed.is_none() && !report.ready);
    }
}
