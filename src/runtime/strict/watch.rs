//! What happens to a container, heard by who waits for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::state::{Container, State};
use crate::error::{Error, Result};
use crate::runtime::cgroup::{Cgroup, Notices};

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// No memory was left within the limit.
    Oom,
    /// The first process has ended.
    End,
    /// Nothing, for as long as was waited.
    Nothing,
}

/// Listens to one container.
#[derive(Debug)]
pub struct Watch {
    init: OwnedFd,
    oom: Option<Notices>,
    /// Heard, and not told yet.
    ooms: u64,
    ended: bool,
}

impl Container {
    /// Listens from now on.
    ///
    /// # Errors
    /// `wrong_state` if it has ended.
    pub fn watch(&self) -> Result<Watch> {
        let ended = || self.refused("watch", State::Stopped);
        let init = self.init().and_then(|init| init.open().ok()).ok_or_else(ended)?;
        let oom =
            Cgroup::new(&self.cgroup()?).notices().map_err(Error::sys("listen to the container's cgroup"))?;
        Ok(Watch { init, oom, ooms: 0, ended: false })
    }
}

impl Watch {
    /// Waits for the next thing that happens, until a moment. The end is always the last.
    pub fn next(&mut self, until: Instant) -> Result<Heard> {
        loop {
            if self.ooms > 0 {
                self.ooms -= 1;
                return Ok(Heard::Oom);
            }
            if self.ended {
                return Ok(Heard::End);
            }
            let left = until.saturating_duration_since(Instant::now());
            // First the end: what was killed before it is known then.
            self.ended = self.poll(left).map_err(Error::sys("listen to the container"))?;
            self.ooms = self.oom.as_mut().map_or(0, Notices::take);
            if !self.ended && self.ooms == 0 && left.is_zero() {
                return Ok(Heard::Nothing);
            }
        }
    }

    /// Waits for something to be heard. True if that is the end.
    fn poll(&self, timeout: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.init, PollFlags::IN)];
        fds.extend(self.oom.as_ref().map(|oom| PollFd::from_borrowed_fd(oom.as_fd(), PollFlags::IN)));
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(!fds[0].revents().is_empty()),
        }
    }
}
