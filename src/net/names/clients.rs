//! Connections of sparks: questions by TCP.
//!
//! A connection has one question under way at a time, and is closed if it is quiet for long or asks too much. If there is no room
//! for another one, the spark that has most loses its oldest.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::message::MAX_QUERY;

/// Connections that are open at once.
pub(super) const MOST: usize = 64;
/// Of them, how many can be of one spark.
const OF_ONE: usize = 16;
/// How long a connection may do nothing.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Clients {
    open: Vec<Client>,
    last: u64,
}

#[derive(Debug)]
struct Client {
    number: u64,
    asker: Ipv4Addr,
    socket: OwnedFd,
    got: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    /// Whether a question is under way, so that no other is read.
    waits: bool,
    deadline: Instant,
}

/// What a connection brought.
#[derive(Debug)]
pub(super) enum Came {
    Question {
        number: u64,
        asker: Ipv4Addr,
        message: Vec<u8>,
    },
    /// It is closed.
    Gone(u64),
}

impl Clients {
    /// Takes a connection. Returns the number of one that had to go for it.
    pub(super) fn add(&mut self, socket: OwnedFd, asker: Ipv4Addr, now: Instant) -> Option<u64> {
        let count = |of: Ipv4Addr| self.open.iter().filter(|client| client.asker == of).count();
        let goes = if count(asker) >= OF_ONE {
            Some(asker)
        } else if self.open.len() >= MOST {
            self.open.iter().map(|client| client.asker).max_by_key(|asker| count(*asker))
        } else {
            None
        };
        let gone = goes.and_then(|of| self.open.iter().position(|client| client.asker == of));
        let gone = gone.map(|at| self.open.remove(at).number);
        self.last += 1;
        self.open.push(Client {
            number: self.last,
            asker,
            socket,
            got: Vec::new(),
            out: Vec::new(),
            sent: 0,
            waits: false,
            deadline: now + PATIENCE,
        });
        gone
    }

    /// What to wait for, in the order of [`Clients::go_on`].
    pub(super) fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.open.iter().map(|client| {
            let flags = match (client.out.is_empty(), client.waits) {
                (false, _) => PollFlags::OUT,
                (true, false) => PollFlags::IN,
                // Only its end is reported then.
                (true, true) => PollFlags::empty(),
            };
            (client.socket.as_fd(), flags)
        })
    }

    /// When the next connection has been quiet for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.iter().map(|client| client.deadline).min()
    }

    /// Goes on with each connection that is ready or whose time is up. `ready` is in the order of [`Clients::waits`].
    pub(super) fn go_on(&mut self, ready: &[bool], now: Instant) -> Vec<Came> {
        let mut came = Vec::new();
        for at in (0..ready.len().min(self.open.len())).rev() {
            let client = &mut self.open[at];
            let goes_on = (client.deadline > now) && (!ready[at] || client.step(now).is_some());
            if !goes_on {
                came.push(Came::Gone(self.open.remove(at).number));
                continue;
            }
            if let Some(message) = self.open[at].question() {
                let Client { number, asker, .. } = self.open[at];
                came.push(Came::Question { number, asker, message });
            }
        }
        came
    }

    /// Sends an answer on the connection with a number, if that is still there.
    pub(super) fn answer(&mut self, number: u64, answer: &[u8], now: Instant) {
        if let Some(client) = self.open.iter_mut().find(|client| client.number == number) {
            let length = (answer.len() as u16).to_be_bytes();
            client.out.extend(length.iter().chain(answer));
            client.waits = false;
            client.deadline = now + PATIENCE;
        }
    }
}

impl Client {
    /// Reads or writes what can be now. None if the connection is over.
    fn step(&mut self, now: Instant) -> Option<()> {
        if !self.out.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &self.out[self.sent..], flags) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN | Errno::INTR) => return Some(()),
                Err(_) => return None,
            }
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
            }
            self.deadline = now + PATIENCE;
            return Some(());
        }
        if self.waits {
            // Nothing but its end was waited for.
            return None;
        }
        let mut buffer = [0; MAX_QUERY];
        match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return None,
            Ok((_, length)) => self.got.extend(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
        // Of what was sent ahead, no more is kept than one more question.
        let is_short = self.length().is_none_or(|length| length <= MAX_QUERY);
        (is_short && self.got.len() <= 2 * (2 + MAX_QUERY)).then_some(())
    }

    /// The length of the next message, once it is known.
    fn length(&self) -> Option<usize> {
        self.got.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)))
    }

    /// The next question, if it is there whole and none is under way.
    fn question(&mut self) -> Option<Vec<u8>> {
        let length = self.length().filter(|_| !self.waits && self.out.is_empty())?;
        if self.got.len() < 2 + length {
            return None;
        }
        let message = self.got[2..2 + length].to_vec();
        self.got.drain(..2 + length);
        self.waits = true;
        Some(message)
    }
}
