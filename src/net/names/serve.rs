//! The process that answers: one loop around poll(2).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::answer::{self, Reply};
use super::clients::{Came, Clients};
use super::message::{MAX_QUERY, Query, Unusable};
use super::records::Records;
use super::upstream::{Done, Origin, Upstream, Way};
use super::{PORT, UPSTREAM};
use crate::sys;
use crate::sys::sockets;

/// Sockets for questions by UDP. Askers are divided among them by their addresses.
const SOCKETS: u32 = 16;
/// Messages that are taken from a socket before it is the next one's turn.
const AT_A_TIME: usize = 32;
/// Questions that one spark may ask in a second by UDP, and as many at once after a quiet second. More are dropped: they
/// would take the host's processors, and not those that the spark may use.
const A_SECOND: f64 = 2000.0;
/// Askers whose rate is remembered.
const MOST_ASKERS: usize = 4096;
/// Where no event tells of changes, how often they are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Most bytes of the list of the host's resolvers.
const MAX_LIST: u64 = 64 << 10;

/// Everything that the process has.
#[derive(Debug)]
pub(super) struct Resolver {
    records: Records,
    /// As long as this file has a name, the process goes on.
    lock: File,
    /// Tells of changes of the directory, if the kernel had one more for us.
    watch: Option<OwnedFd>,
    udp: Vec<OwnedFd>,
    tcp: OwnedFd,
    clients: Clients,
    upstream: Upstream,
    rates: HashMap<Ipv4Addr, Rate>,
}

/// How much a spark may ask at this moment.
#[derive(Debug)]
struct Rate {
    left: f64,
    at: Instant,
}

impl Resolver {
    /// Opens all that the process needs, as root: the sockets that ask in the network namespace that it is in, and those that
    /// listen in the one that it joins, that of the router. `dir` is the directory of names, which becomes `/`.
    pub(super) fn open(dir: &OwnedFd, lock: OwnedFd, router: &OwnedFd, at: Ipv4Addr) -> io::Result<Resolver> {
        let upstream = Upstream::new()?;
        sys::exec::join_some(router, libc::CLONE_NEWNET)?;
        let address = SocketAddr::from((at, PORT));
        Ok(Resolver {
            records: Records::in_dir(Path::new("/")),
            lock: lock.into(),
            watch: watch(dir).ok(),
            udp: sockets::listen_for_datagrams(address, SOCKETS)?,
            tcp: sockets::listen_for_connections(address)?,
            clients: Clients::default(),
            upstream,
            rates: HashMap::new(),
        })
    }

    /// Answers until the process is not wanted any more.
    ///
    /// # Errors
    /// Those of poll(2) and fstat(2).
    pub(super) fn serve(&mut self) -> io::Result<()> {
        self.read_servers();
        loop {
            let ready = self.poll()?;
            let now = Instant::now();
            let (first, rest) = ready.split_at(2 + self.udp.len());
            let (pending, clients) = rest.split_at(self.upstream.waits().count());
            let (watch, tcp, udp) = (first[0], first[1], &first[2..]);
            if (watch || self.watch.is_none()) && !self.look()? {
                return Ok(());
            }
            let done = self.upstream.go_on(pending, now);
            let came = self.clients.go_on(clients, now);
            done.into_iter().for_each(|done| self.hand_on(done, now));
            came.into_iter().for_each(|came| self.take(came, now));
            for socket in udp.iter().enumerate().filter(|(_, ready)| **ready).map(|(n, _)| n) {
                self.read_datagrams(socket, now);
            }
            if tcp {
                self.accept(now);
            }
        }
    }

    /// Waits until something can be done. Tells for the watch, the listeners, the questions under way and the connections whether
    /// it is one of them.
    fn poll(&self) -> io::Result<Vec<bool>> {
        let deadline = self.upstream.deadline().into_iter().chain(self.clients.deadline()).min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = if self.watch.is_none() { Some(left.unwrap_or(LOOK).min(LOOK)) } else { left };
        // A moment later, so that a time is up when it is looked at.
        let left = left.map(|left| left + Duration::from_millis(1));
        let left = left.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: l.subsec_nanos().into() });
        let nothing = self.lock.as_fd();
        let watch =
            self.watch.as_ref().map_or((nothing, PollFlags::empty()), |fd| (fd.as_fd(), PollFlags::IN));
        let listeners = std::iter::once(&self.tcp).chain(&self.udp).map(|fd| (fd.as_fd(), PollFlags::IN));
        let all =
            std::iter::once(watch).chain(listeners).chain(self.upstream.waits()).chain(self.clients.waits());
        let mut fds: Vec<PollFd<'_>> = all.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, left.as_ref()))?;
        Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
    }

    /// Looks at what has changed in the directory. False if this process is not wanted any more.
    fn look(&mut self) -> io::Result<bool> {
        if let Some(watch) = &self.watch {
            // What happened does not matter, only that something did.
            let mut events = [MaybeUninit::uninit(); 4096];
            while inotify::Reader::new(watch, &mut events).next().is_ok() {}
        }
        self.read_servers();
        Ok(rustix::fs::fstat(&self.lock)?.st_nlink > 0)
    }

    fn read_servers(&mut self) {
        let list =
            File::open(Path::new("/").join(UPSTREAM)).and_then(|f| sys::file::read_bounded(f, MAX_LIST));
        // If it cannot be read, those known so far stay.
        if let Ok(list) = list {
            self.upstream.set_servers(&String::from_utf8_lossy(&list));
        }
    }

    fn read_datagrams(&mut self, socket: usize, now: Instant) {
        let mut buffer = [0; MAX_QUERY];
        for _ in 0..AT_A_TIME {
            let received = rustix::net::recvfrom(&self.udp[socket], &mut buffer, RecvFlags::DONTWAIT);
            let Ok((_, length, from)) = received else { return };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let Some((IpAddr::V4(asker), port)) = from.map(|from| (from.ip(), from.port())) else { continue };
            // A message that did not fit is none of ours.
            if length < buffer.len() && self.may_ask(asker, now) {
                self.question(Origin { asker, way: Way::Udp { socket, port } }, &buffer[..length], now);
            }
        }
    }

    /// Whether a spark keeps to its rate, this question included.
    fn may_ask(&mut self, asker: Ipv4Addr, now: Instant) -> bool {
        if self.rates.len() >= MOST_ASKERS && !self.rates.contains_key(&asker) {
            self.rates.clear();
        }
        let rate = self.rates.entry(asker).or_insert(Rate { left: A_SECOND, at: now });
        rate.left = (rate.left + now.duration_since(rate.at).as_secs_f64() * A_SECOND).min(A_SECOND);
        rate.at = now;
        let may = rate.left >= 1.0;
        if may {
            rate.left -= 1.0;
        }
        may
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..AT_A_TIME {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok((socket, from)) = rustix::net::acceptfrom_with(&self.tcp, flags) else { return };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            if let Some(IpAddr::V4(asker)) = from.map(|from| from.ip())
                && let Some(gone) = self.clients.add(socket, asker, now)
            {
                self.upstream.forget(Way::Tcp(gone));
            }
        }
    }

    fn take(&mut self, came: Came, now: Instant) {
        match came {
            Came::Gone(number) => self.upstream.forget(Way::Tcp(number)),
            Came::Question { number, asker, message } => {
                self.question(Origin { asker, way: Way::Tcp(number) }, &message, now);
            }
        }
    }

    fn question(&mut self, origin: Origin, message: &[u8], now: Instant) {
        let answer = match Query::parse(message) {
            Ok(query) => match answer::answer(&self.records, origin.asker, &query) {
                Reply::Answer(answer) => answer,
                Reply::PassOn => match self.upstream.ask(origin, query, now) {
                    Some(done) => return self.hand_on(done, now),
                    None => return,
                },
            },
            Err(Unusable::Answered(answer)) => answer,
            Err(Unusable::Ignored) => return,
        };
        self.hand_on(Done { origin, answer }, now);
    }

    fn hand_on(&mut self, done: Done, now: Instant) {
        match done.origin.way {
            Way::Tcp(number) => self.clients.answer(number, &done.answer, now),
            Way::Udp { socket, port } => {
                let to = SocketAddr::from((done.origin.asker, port));
                // If there is no room for it, it is lost on its way, as datagrams may be.
                let _ = rustix::net::sendto(&self.udp[socket], &done.answer, SendFlags::DONTWAIT, &to);
            }
        }
    }
}

/// Watches a directory for files that get a name or lose it. What is below its directories is not watched.
fn watch(dir: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let names = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::DELETE;
    inotify::add_watch(&watch, path, names)?;
    Ok(watch)
}
