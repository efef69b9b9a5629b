//! Sockets that the kernel closes when their processes have been killed.
//!
//! It takes some milliseconds for each packet socket, one after the other, and a process is there until its last socket is
//! closed. Root inside may have thousands. As long as they become fewer, a wait for the process goes on.

use std::os::fd::OwnedFd;

use crate::sys::deadline::Deadline;
use crate::sys::{file, netns};

/// The sockets in a network, and a deadline that is put off while the kernel closes them.
#[derive(Debug)]
pub struct Closing {
    /// `None` if it is the host's: others close sockets there.
    network: Option<OwnedFd>,
    /// How many there were at the last look.
    sockets: Option<u64>,
    /// When the wait for what was killed is given up.
    pub deadline: Deadline,
}

impl Closing {
    /// The sockets in the network of a process, which is about to be killed.
    pub fn of(pid: i32) -> Closing {
        let is_own =
            |network: &OwnedFd| netns::own().and_then(|own| file::same(own, network)).unwrap_or(true);
        let network = netns::of(pid).ok().filter(|network| !is_own(network));
        Closing { network, sockets: None, deadline: Deadline::killed() }
    }

    /// Whether the wait is given up: the time is over, and no socket has been closed since the last look.
    pub fn is_over(&mut self) -> bool {
        let before = self.sockets;
        self.sockets = self.network.as_ref().and_then(|network| netns::sockets(network).ok());
        if let (Some(before), Some(now)) = (before, self.sockets)
            && now < before
        {
            tracing::info!(sockets = now, "the kernel closes sockets of killed processes");
            self.deadline = Deadline::killed();
        }
        self.deadline.has_passed()
    }
}
