//! Questions that the host's resolvers answer.
//!
//! The sockets were made in the host's network namespace before the process gave up its rights, so a resolver on the host's
//! loopback device is reached too. They hear nothing but port 53. Each question has a socket of its own while it is under way.
//! The kernel gives the socket a random port when it is connected, and takes answers from the resolver alone; the question has a
//! random id, and an answer has to repeat the question.
//!
//! There is room for a number of questions at once. A spark may use a part of it. If there is no room, the spark that has
//! most questions under way loses its oldest one to a spark that has fewer.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::message::{Answer, Code, MAX_ANSWER, Query};
use crate::sys::sockets;

/// Questions that can be under way at once by UDP.
const BY_UDP: usize = 128;
/// The same by TCP.
const BY_TCP: usize = 16;
/// Of them, how many can be of one spark.
const OF_ONE: usize = 64;
/// How long one resolver is waited for. Programs ask again after 5 seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How many times resolvers are asked one question, if none answers.
const TRIES: usize = 3;
/// How long a resolver that did not answer comes after the others.
const TO_RECOVER: Duration = Duration::from_secs(30);
/// Most resolvers that are used.
const MOST_SERVERS: usize = 8;
/// The port of resolvers.
pub(super) const PORT: u16 = 53;

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub asker: Ipv4Addr,
    pub way: Way,
}

/// The way that a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To a socket with this number, from this port.
    Udp { socket: usize, port: u16 },
    /// On a connection with this number.
    Tcp(u64),
}

/// A question that has an answer.
#[derive(Debug)]
pub(super) struct Done {
    pub origin: Origin,
    pub answer: Vec<u8>,
}

/// The host's resolvers, and what they are asked at this moment.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<Server>,
    udp: Pool,
    tcp: Pool,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failed: Option<Instant>,
}

/// Sockets that wait to be used.
#[derive(Debug)]
struct Pool {
    v4: Vec<OwnedFd>,
    v6: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Pending {
    origin: Origin,
    query: Query,
    id: u16,
    /// The resolvers to ask, the next one last.
    left: Vec<SocketAddr>,
    server: SocketAddr,
    socket: OwnedFd,
    transfer: Transfer,
    deadline: Instant,
    /// What a resolver said that could not answer.
    failure: Option<Vec<u8>>,
}

/// How far a question is.
#[derive(Debug)]
enum Transfer {
    Datagram,
    Stream { out: Vec<u8>, sent: usize, got: Vec<u8> },
}

/// What became of a step.
enum Step {
    /// Nothing to do until the socket is ready.
    Waits,
    Answered(Vec<u8>),
    Failed,
}

impl Pool {
    fn new(count: usize, is_stream: bool) -> io::Result<Pool> {
        let some =
            |is_ipv4| (0..count).map(|_| sockets::hearing_one_port(is_ipv4, is_stream, PORT)).collect();
        let v6: io::Result<Vec<OwnedFd>> = some(false);
        let v6 = match v6 {
            // A host without IPv6 has no resolver there.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Vec::new(),
            made => made?,
        };
        Ok(Pool { v4: some(true)?, v6 })
    }

    fn of(&mut self, address: SocketAddr) -> &mut Vec<OwnedFd> {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// Takes a socket back. What it has not read yet is dropped, and so is its port.
    fn give_back(&mut self, socket: OwnedFd, used_for: SocketAddr) {
        let _ = rustix::net::connect_unspec(&socket);
        let mut rest = [0; 1];
        // Each error is told once, and each datagram is read once. More may have come only before the port was given up.
        for _ in 0..1024 {
            if let Err(Errno::AGAIN | Errno::NOTCONN) =
                rustix::net::recv(&socket, &mut rest, RecvFlags::DONTWAIT)
            {
                break;
            }
        }
        self.of(used_for).push(socket);
    }
}

impl Upstream {
    /// Makes the sockets, in the network namespace of this process.
    pub(super) fn new() -> io::Result<Upstream> {
        let (udp, tcp) = (Pool::new(BY_UDP, false)?, Pool::new(BY_TCP, true)?);
        Ok(Upstream { servers: Vec::new(), udp, tcp, pending: Vec::new() })
    }

    /// Uses other resolvers from now on: a list of addresses with ports, one a line.
    pub(super) fn set_servers(&mut self, text: &str) {
        let addresses = text.lines().filter_map(|line| line.parse::<SocketAddr>().ok());
        self.servers = addresses.take(MOST_SERVERS).map(|address| Server { address, failed: None }).collect();
    }

    /// Asks a question. Returns an answer at once if there is nobody to ask or no room.
    pub(super) fn ask(&mut self, origin: Origin, query: Query, now: Instant) -> Option<Done> {
        let is_stream = matches!(origin.way, Way::Tcp(_));
        let failed = |query: &Query| Some(Done { origin, answer: query.answer(Code::ServerFailure, &[]) });
        let left = self.order(now);
        if left.is_empty() || !self.make_room(origin.asker, is_stream) {
            return failed(&query);
        }
        let Ok(id) = sockets::random().map(u16::from_ne_bytes) else { return failed(&query) };
        self.begin(origin, query, id, left, None, now).err()
    }

    /// The resolvers in the order in which they are asked: those that failed lately come last. The next one is at the end.
    fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let is_slow =
            |server: &&Server| server.failed.is_some_and(|failed| now.duration_since(failed) < TO_RECOVER);
        let (slow, good): (Vec<&Server>, Vec<&Server>) = self.servers.iter().partition(is_slow);
        let all: Vec<SocketAddr> = good.into_iter().chain(slow).map(|server| server.address).collect();
        let mut order: Vec<SocketAddr> = all.iter().cycle().take(TRIES.max(all.len())).copied().collect();
        if all.is_empty() {
            order.clear();
        }
        order.reverse();
        order
    }

    /// Makes room for one more question of a spark. False if the spark has its share under way.
    fn make_room(&mut self, asker: Ipv4Addr, is_stream: bool) -> bool {
        let is_same_way = |p: &Pending| matches!(p.transfer, Transfer::Stream { .. }) == is_stream;
        let mut count: HashMap<Ipv4Addr, usize> = HashMap::new();
        for pending in self.pending.iter().filter(|p| is_same_way(p)) {
            *count.entry(pending.origin.asker).or_default() += 1;
        }
        let own = count.get(&asker).copied().unwrap_or(0);
        let (most, share) = if is_stream { (BY_TCP, BY_TCP / 2) } else { (BY_UDP, OF_ONE) };
        if own >= share {
            return false;
        }
        if count.values().sum::<usize>() < most {
            return true;
        }
        let Some((largest, has)) = count.into_iter().max_by_key(|(_, has)| *has) else { return true };
        let oldest = |p: &Pending| is_same_way(p) && p.origin.asker == largest;
        match self.pending.iter().position(oldest) {
            // Who asked gets no answer, and asks again.
            Some(at) if has > own + 1 => {
                let pending = self.pending.remove(at);
                self.release(pending);
                true
            }
            _ => false,
        }
    }

    fn release(&mut self, pending: Pending) {
        let pool = match pending.transfer {
            Transfer::Datagram => &mut self.udp,
            Transfer::Stream { .. } => &mut self.tcp,
        };
        pool.give_back(pending.socket, pending.server);
    }

    /// Sends a question to the next of the resolvers that can be reached.
    fn begin(
        &mut self,
        origin: Origin,
        query: Query,
        id: u16,
        mut left: Vec<SocketAddr>,
        failure: Option<Vec<u8>>,
        now: Instant,
    ) -> Result<(), Done> {
        let is_stream = matches!(origin.way, Way::Tcp(_));
        let text = query.passed_on(id);
        while let Some(server) = left.pop() {
            let pool = if is_stream { &mut self.tcp } else { &mut self.udp };
            // A host without IPv6 has no socket for such a resolver.
            let Some(socket) = pool.of(server).pop() else { continue };
            let connected = rustix::net::connect(&socket, &server);
            let begun = match connected {
                Ok(()) | Err(Errno::INPROGRESS) if is_stream => Ok(()),
                Ok(()) => rustix::net::send(&socket, &text, SendFlags::DONTWAIT).map(drop),
                Err(e) => Err(e),
            };
            if begun.is_err() {
                pool.give_back(socket, server);
                self.note(server, Some(now));
                continue;
            }
            let transfer = if is_stream {
                let out = [&(text.len() as u16).to_be_bytes()[..], &text].concat();
                Transfer::Stream { out, sent: 0, got: Vec::new() }
            } else {
                Transfer::Datagram
            };
            let deadline = now + PATIENCE;
            self.pending.push(Pending {
                origin,
                query,
                id,
                left,
                server,
                socket,
                transfer,
                deadline,
                failure,
            });
            return Ok(());
        }
        let answer = match failure {
            Some(said) => query.handed_on(said, !is_stream),
            None => query.answer(Code::ServerFailure, &[]),
        };
        Err(Done { origin, answer })
    }

    fn note(&mut self, server: SocketAddr, failed: Option<Instant>) {
        for known in self.servers.iter_mut().filter(|known| known.address == server) {
            known.failed = failed;
        }
    }

    /// What to wait for, in the order of [`Upstream::go_on`].
    pub(super) fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.pending.iter().map(|pending| {
            let flags = match &pending.transfer {
                Transfer::Stream { out, sent, .. } if *sent < out.len() => PollFlags::OUT,
                _ => PollFlags::IN,
            };
            (pending.socket.as_fd(), flags)
        })
    }

    /// When the next resolver has been waited for long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.deadline).min()
    }

    /// Goes on with each question whose socket is ready or whose time is up. `ready` is in the order of [`Upstream::waits`].
    pub(super) fn go_on(&mut self, ready: &[bool], now: Instant) -> Vec<Done> {
        let mut done = Vec::new();
        // From the end, since those that are done go.
        for at in (0..ready.len().min(self.pending.len())).rev() {
            let is_late = self.pending[at].deadline <= now;
            let step = if ready[at] { self.pending[at].step() } else { Step::Waits };
            match step {
                Step::Waits if !is_late => {}
                Step::Answered(answer) => done.push(self.finish(at, answer)),
                Step::Waits | Step::Failed => done.extend(self.try_next(at, now)),
            }
        }
        done
    }

    fn finish(&mut self, at: usize, answer: Vec<u8>) -> Done {
        let pending = self.pending.remove(at);
        let is_datagram = matches!(pending.transfer, Transfer::Datagram);
        let done = Done { origin: pending.origin, answer: pending.query.handed_on(answer, is_datagram) };
        self.note(pending.server, None);
        self.release(pending);
        done
    }

    /// Asks the next resolver. The new question stands at the end, so those that are looked at later keep their places.
    fn try_next(&mut self, at: usize, now: Instant) -> Option<Done> {
        let mut pending = self.pending.remove(at);
        self.note(pending.server, Some(now));
        let (origin, query, id) = (pending.origin, pending.query.clone(), pending.id);
        let (left, failure) = (std::mem::take(&mut pending.left), pending.failure.take());
        self.release(pending);
        self.begin(origin, query, id, left, failure, now).err()
    }

    /// Forgets the questions of a connection that is gone.
    pub(super) fn forget(&mut self, way: Way) {
        while let Some(at) = self.pending.iter().position(|pending| pending.origin.way == way) {
            let pending = self.pending.remove(at);
            self.release(pending);
        }
    }
}

impl Pending {
    /// Sends or reads what can be now.
    fn step(&mut self) -> Step {
        let judge = |query: &Query, id: u16, failure: &mut Option<Vec<u8>>, answer: Vec<u8>| match query
            .judge(&answer, id)
        {
            Answer::Good => Step::Answered(answer),
            Answer::Foreign => Step::Waits,
            Answer::Failed => {
                *failure = Some(answer);
                Step::Failed
            }
        };
        match &mut self.transfer {
            Transfer::Datagram => {
                let mut buffer = [0; 4096];
                match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                    Ok((_, length)) => {
                        let answer = buffer[..length.min(buffer.len())].to_vec();
                        judge(&self.query, self.id, &mut self.failure, answer)
                    }
                    Err(Errno::AGAIN | Errno::INTR) => Step::Waits,
                    Err(_) => Step::Failed,
                }
            }
            Transfer::Stream { out, sent, .. } if *sent < out.len() => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match rustix::net::send(&self.socket, &out[*sent..], flags) {
                    Ok(n) => *sent += n,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Step::Failed,
                }
                Step::Waits
            }
            Transfer::Stream { got, .. } => {
                let mut buffer = [0; 4096];
                match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => return Step::Failed,
                    Ok((_, length)) => got.extend(&buffer[..length]),
                    Err(Errno::AGAIN | Errno::INTR) => return Step::Waits,
                    Err(_) => return Step::Failed,
                }
                let Some((length, rest)) = got.split_first_chunk::<2>() else { return Step::Waits };
                let length = usize::from(u16::from_be_bytes(*length));
                if rest.len() < length {
                    return if rest.len() > MAX_ANSWER { Step::Failed } else { Step::Waits };
                }
                let answer = rest[..length].to_vec();
                match judge(&self.query, self.id, &mut self.failure, answer) {
                    // A connection carries the answer to its question, or it is of no use.
                    Step::Waits => Step::Failed,
                    step => step,
                }
            }
        }
    }
}
