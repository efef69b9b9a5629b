//! A network for the process that answers questions for names: a host, a router and askers, each in a network namespace, and
//! real packets between them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sparks::domain::spark::Id;
use sparks::net::names::{ADDRESS, Names, Record};

use crate::common::{Output, wait_for};

pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const PTR: u16 = 12;
/// Where the host's resolver is: on its loopback device.
pub(crate) const LOCAL: &str = "127.0.0.53:53";
/// What it says that every name means.
pub(crate) const MEANT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));

/// The namespaces, and the resolver of an installation.
pub(crate) struct Net {
    dir: tempfile::TempDir,
    pub(crate) names: Names,
    name: String,
    /// Its servers end with it.
    ended: Arc<AtomicBool>,
}

/// What an asker was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) code: u8,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) is_cut: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Net {
    pub(crate) fn new() -> Net {
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir_in("/run").unwrap();
        let name =
            dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches("sparks-test-").to_owned();
        let net = Net { names: Names::of(&dir.path().join("net")), dir, name, ended: Arc::default() };
        for which in ["h", "r"] {
            net.ip(&["netns", "add", &net.netns(which)]);
            net.ip(&["-n", &net.netns(which), "link", "set", "lo", "up"]);
        }
        net.ip(&["-n", &net.netns("r"), "addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        net
    }

    pub(crate) fn netns(&self, which: &str) -> String {
        format!("spr-{}-{which}", self.name)
    }

    fn ip(&self, args: &[&str]) {
        Output::of(&args.join(" "), Command::new("ip").args(args)).ok();
    }

    /// The directory of names.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("net/names")
    }

    /// Starts the process if it does not run, as a command in the host's network does.
    pub(crate) fn ensure(&self) {
        self.ensure_in("r");
    }

    pub(crate) fn ensure_in(&self, which: &str) {
        let router = std::fs::File::open(format!("/run/netns/{}", self.netns(which))).unwrap();
        self.within("h", || {
            self.names.ensure_runs(router.as_fd(), env!("CARGO_BIN_EXE_spark").as_ref()).unwrap();
        });
        // The list of this machine's own resolvers is made another one.
        let list = self.dir().join("upstream");
        let state = std::fs::read_to_string(&list).unwrap().lines().next().unwrap().to_owned();
        self.use_servers_with(&state, &[LOCAL]);
    }

    fn use_servers_with(&self, state: &str, servers: &[&str]) {
        let new = self.dir().join(".new-0-test");
        std::fs::write(&new, format!("{state}\n{}\n", servers.join("\n"))).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::rename(new, self.dir().join("upstream")).unwrap();
    }

    /// Has the process ask these resolvers from now on.
    pub(crate) fn use_servers(&self, servers: &[&str]) {
        self.use_servers_with("# test", servers);
    }

    /// Runs something in one of the network namespaces.
    pub(crate) fn within<T: Send>(&self, which: &str, work: impl FnOnce() -> T + Send) -> T {
        within(&self.netns(which), work)
    }

    /// Makes the network of a spark with the address 10.128.0.`number`, and makes its name known.
    pub(crate) fn spark(
        &self,
        project: &str,
        name: &str,
        number: u8,
        change: impl FnOnce(&mut Record),
    ) -> Record {
        let ns = self.netns(name);
        let device = format!("v{number}");
        let v4 = Ipv4Addr::new(10, 128, 0, number);
        self.ip(&["netns", "add", &ns]);
        let pair = ["link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &ns];
        self.ip(&[&["-n", &self.netns("r")][..], &pair].concat());
        self.ip(&["-n", &self.netns("r"), "link", "set", &device, "up"]);
        self.ip(&["-n", &self.netns("r"), "route", "add", &format!("{v4}/32"), "dev", &device]);
        self.ip(&["-n", &ns, "link", "set", "lo", "up"]);
        self.ip(&["-n", &ns, "addr", "add", &format!("{v4}/32"), "dev", "eth0"]);
        self.ip(&["-n", &ns, "link", "set", "eth0", "up"]);
        self.ip(&["-n", &ns, "route", "add", &format!("{ADDRESS}/32"), "dev", "eth0"]);
        let mut record = Record {
            id: Id::generate(),
            project: project.to_owned(),
            project_name: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            v4,
            v6: Some(Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, number.into())),
            asks_beyond: true,
            host: Vec::new(),
        };
        change(&mut record);
        self.names.enter(&record).unwrap();
        record
    }

    /// What a spark is told by UDP. None if there is no answer within so many milliseconds.
    pub(crate) fn told_within(&self, spark: &str, name: &str, kind: u16, milliseconds: u64) -> Option<Told> {
        self.within(spark, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(milliseconds))).unwrap();
            socket.send_to(&query(name, kind), (ADDRESS, 53)).ok()?;
            let mut answer = [0; 65_535];
            let (length, from) = socket.recv_from(&mut answer).ok()?;
            assert_eq!(from, SocketAddr::from((ADDRESS, 53)));
            Some(told(&answer[..length]))
        })
    }

    /// The same, by whoever waits for it.
    pub(crate) fn told(&self, spark: &str, name: &str, kind: u16) -> Told {
        self.told_within(spark, name, kind, 20_000)
            .unwrap_or_else(|| panic!("{spark} has no answer for {name}"))
    }

    /// What a spark is told by TCP.
    pub(crate) fn told_by_tcp(&self, spark: &str, name: &str, kind: u16) -> Told {
        self.within(spark, || {
            let mut stream = TcpStream::connect((ADDRESS, 53)).unwrap();
            stream.write_all(&framed(&query(name, kind))).unwrap();
            told(&read_framed(&mut stream).unwrap())
        })
    }

    /// The process that answers.
    pub(crate) fn pid(&self) -> Option<i32> {
        let pids = Command::new("ip").args(["netns", "pids", &self.netns("r")]).output().unwrap();
        let text = String::from_utf8(pids.stdout).unwrap();
        let mut pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
        let first = pids.next();
        assert_eq!(pids.next(), None, "one process answers");
        first
    }

    pub(crate) fn kill(&self) {
        let pid = self.pid().unwrap();
        Output::of("kill", Command::new("kill").args(["-9", &pid.to_string()])).ok();
        assert!(wait_for(|| !self.names.runs()));
    }

    /// Has a resolver of the host answer at an address. Returns how many questions it was asked.
    pub(crate) fn serve(&self, at: &str, answer: fn(&[u8], bool) -> Vec<Vec<u8>>) -> Arc<AtomicUsize> {
        serve(&self.netns("h"), at, answer, &self.ended)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.names.end();
        let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let ns = line.split_whitespace().next().unwrap_or_default();
            if ns.starts_with(&self.netns("")) {
                let _ = Command::new("ip").args(["netns", "delete", ns]).status();
            }
        }
    }
}

/// Runs something in a network namespace.
fn within<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/run/netns/{netns}")).unwrap();
    std::thread::scope(|scope| {
        let run = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        };
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Has a resolver answer at an address of a network namespace, by UDP and TCP, until `ended`. Returns how many questions it was
/// asked.
pub(crate) fn serve(
    netns: &str,
    at: &str,
    answer: fn(&[u8], bool) -> Vec<Vec<u8>>,
    ended: &Arc<AtomicBool>,
) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let (udp, tcp) = within(netns, || (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap()));
    udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let (end, count) = (ended.clone(), asked.clone());
    std::thread::spawn(move || {
        let mut message = [0; 4096];
        while !end.load(Ordering::Relaxed) {
            if let Ok((length, from)) = udp.recv_from(&mut message) {
                count.fetch_add(1, Ordering::Relaxed);
                for answer in answer(&message[..length], false) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        }
    });
    let (end, count) = (ended.clone(), asked.clone());
    std::thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = tcp.accept() else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            if let Some(message) = read_framed(&mut stream) {
                count.fetch_add(1, Ordering::Relaxed);
                for answer in answer(&message, true) {
                    let _ = stream.write_all(&framed(&answer));
                }
            }
        }
    });
    asked
}

/// A question as programs send it.
pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] > 0 {
        at += 1 + usize::from(message[at]);
    }
    at + 5
}

/// The first label of the name that is asked for.
pub(crate) fn first_label(message: &[u8]) -> String {
    String::from_utf8_lossy(&message[13..13 + usize::from(message[12])]).into_owned()
}

/// An answer to a question: its code, and an address.
pub(crate) fn answer(message: &[u8], code: u8, address: Option<IpAddr>) -> Vec<u8> {
    let mut bytes = message[..question_end(message)].to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 0x80 | code;
    bytes[6..12].copy_from_slice(&[0, u8::from(address.is_some()), 0, 0, 0, 0]);
    if let Some(IpAddr::V4(ip)) = address {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(ip.octets());
    }
    bytes
}

/// What an answer says. Names in it begin with pointers, as those of everybody here.
fn told(bytes: &[u8]) -> Told {
    let count = u16::from_be_bytes([bytes[6], bytes[7]]);
    let mut at = if bytes[5] == 0 { 12 } else { question_end(bytes) };
    let mut addresses = Vec::new();
    for _ in 0..count {
        let length = usize::from(u16::from_be_bytes([bytes[at + 10], bytes[at + 11]]));
        let data = &bytes[at + 12..at + 12 + length];
        match data.len() {
            4 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).unwrap())),
            16 => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).unwrap())),
            _ => {}
        }
        at += 12 + length;
    }
    assert_eq!(bytes[..2], [0x12, 0x34], "the id of the question");
    Told { code: bytes[3] & 0xf, addresses, is_cut: bytes[2] & 2 != 0, bytes: bytes.to_vec() }
}
