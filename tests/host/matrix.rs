//! Who reaches whom by what kind of packet, with the rules of the packet filter and without.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::common::wait_for;
use crate::netns::{BEYOND4, BEYOND6, HOST4, HOST6, Host, inside};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/packets.py");

/// Kinds of packets by their letters in the table. All have the sender's own address but those that are spoofed.
const KINDS: [(char, &str); 5] = [('T', "tcp"), ('U', "udp"), ('I', "icmp"), ('R', "raw"), ('S', "spoofed")];

/// What arrives: from whom, to whom, and with the rules as made, without those of the host, of the router, of both. Both families.
/// `host` is each of its addresses, also one that it has got later. `closed` is where clouds tell a machine its secrets, and what is
/// behind other bridges of the host.
#[rustfmt::skip]
const TABLE: [(&str, &str, [&str; 4]); 12] = [
    ("plain",   "its project",    ["TUIR", "TUIR", "TUIR", "TUIR"]),
    ("plain",   "other projects", ["",     "",     "",     ""]),
    ("plain",   "host",           ["",     "",     "",     ""]),
    ("plain",   "loopback",       ["",     "",     "",     ""]),
    ("plain",   "closed",         ["",     "",     "",     ""]),
    ("plain",   "beyond",         ["TUIR", "UIR",  "",     ""]),
    ("trusted", "its project",    ["TUIR", "TUIR", "TUIR", "TUIR"]),
    ("trusted", "other projects", ["",     "",     "",     ""]),
    ("trusted", "host",           ["TUIR", "TUIR", "",     ""]),
    ("trusted", "loopback",       ["",     "",     "",     ""]),
    ("trusted", "closed",         ["TUIR", "UIR",  "",     ""]),
    ("trusted", "beyond",         ["TUIR", "UIR",  "",     ""]),
];
const FLUSHED: [&[&str]; 4] = [&[], &["host"], &["router"], &["host", "router"]];

const SPARKS: [&str; 5] = ["one/a", "one/b", "one/trusted", "two/a", "two/b"];
const LATER4: &str = "203.0.113.9";
const LATER6: &str = "2001:db8:9::9";
const CONTAINER4: &str = "172.17.0.2";
const CONTAINER6: &str = "fd00:d0c::2";

/// A place that packets are sent to.
struct Target {
    kind: &'static str,
    /// Who hears them there.
    at: &'static str,
    address: String,
}

struct Matrix {
    host: Host,
    addresses: BTreeMap<&'static str, (String, String)>,
    pids: BTreeMap<&'static str, String>,
    targets: Vec<Target>,
    rounds: usize,
    /// They end with their standard input.
    ears: Vec<Child>,
}

impl Drop for Matrix {
    fn drop(&mut self) {
        for ear in &mut self.ears {
            drop(ear.stdin.take());
            let _ = ear.wait();
        }
    }
}

impl Matrix {
    fn new() -> Matrix {
        let host = Host::new();
        make_container(&host);
        for spark in SPARKS {
            let options: &[&str] = match spark {
                "one/trusted" => &["--allow-host"],
                // So that packets of 127.0.0.1 may go by the uplink.
                "one/b" => &["-p", "127.0.0.1:8080:80"],
                _ => &[],
            };
            host.spark(&[&["create", spark], options].concat()).ok();
        }
        host.on_host(&["ip", "addr", "add", &format!("{LATER4}/32"), "dev", "lo"]);
        host.on_host(&["ip", "addr", "add", &format!("{LATER6}/128"), "dev", "lo", "nodad"]);
        let pid = |spark| host.spark(&["--json", "info", spark]).json()["pid"].to_string();
        let pids: BTreeMap<_, _> = SPARKS.iter().map(|spark| (*spark, pid(*spark))).collect();
        let addresses: BTreeMap<_, _> = SPARKS.iter().map(|spark| (*spark, host.addresses(spark))).collect();
        let mut matrix = Matrix { host, addresses, pids, targets: Vec::new(), rounds: 0, ears: Vec::new() };
        matrix.targets = matrix.targets();
        for at in ["h", "i", "c"].into_iter().chain(SPARKS) {
            let mut hear = matrix.within(at);
            hear.args(["/usr/bin/python3", "-u", SCRIPT, "hear"]).stdin(Stdio::piped());
            hear.stdout(std::fs::File::create(matrix.log(at)).unwrap());
            matrix.ears.push(hear.spawn().unwrap());
        }
        for at in ["h", "i", "c"].into_iter().chain(SPARKS) {
            assert!(wait_for(|| matrix.heard(at).contains("ready")), "{at}");
        }
        matrix
    }

    fn targets(&self) -> Vec<Target> {
        let up = self.host.on_host(&["sh", "-c", "ip -o addr show | grep spk-"]);
        let own = up.lines().map(|line| line.split_whitespace().nth(3).unwrap().split('/').next().unwrap());
        let mut all: Vec<Target> = own
            .filter(|address| !address.starts_with("fe80"))
            .chain([HOST4, HOST6, LATER4, LATER6, "172.17.0.1", "fd00:d0c::1"])
            .map(|address| Target { kind: "host", at: "h", address: address.to_owned() })
            .collect();
        let more = [
            ("loopback", "h", ["127.0.0.1", "::1"]),
            ("closed", "i", ["169.254.169.254", "fd00:ec2::254"]),
            ("closed", "c", [CONTAINER4, CONTAINER6]),
            ("beyond", "i", [BEYOND4, BEYOND6]),
        ];
        for (kind, at, addresses) in more {
            all.extend(addresses.map(|address| Target { kind, at, address: address.to_owned() }));
        }
        for (spark, (v4, v6)) in &self.addresses {
            all.extend([v4, v6].map(|address| Target { kind: "spark", at: spark, address: address.clone() }));
        }
        all
    }

    /// Runs something in the network of a spark, or in one of the test's own, without a command of ours.
    fn within(&self, at: &str) -> Command {
        let Some(pid) = self.pids.get(at) else { return inside(&self.host.netns(at)) };
        let mut command = Command::new("nsenter");
        command.args(["-t", pid, "-n"]);
        command
    }

    fn log(&self, at: &str) -> std::path::PathBuf {
        self.host.machine.work().join(format!("heard-{}", at.replace('/', "-")))
    }

    fn heard(&self, at: &str) -> String {
        std::fs::read_to_string(self.log(at)).unwrap_or_default()
    }

    /// All tries of a spark, each with its word, and what the table calls the target. The last one is what nobody refuses.
    fn tries(&self, from: &'static str) -> Vec<(serde_json::Value, &'static str, &'static str)> {
        let (own4, own6) = &self.addresses[from];
        let mut all = Vec::new();
        let mut add = |kind: &str, to: &str, source: &str, at, row| {
            let word = format!("<{}-{from}-{kind}-{to}-{source}>", self.rounds);
            all.push((serde_json::json!({"kind": kind, "to": to, "from": source, "word": word}), at, row));
        };
        for target in self.targets.iter().filter(|target| target.at != from) {
            let (to, is6) = (&*target.address, target.address.contains(':'));
            let row = match target.kind {
                "spark" if target.at[..3] == from[..3] => "its project",
                "spark" => "other projects",
                kind => kind,
            };
            // What is for the loopback device leaves a spark as a frame only.
            for (_, kind) in KINDS.iter().filter(|(letter, _)| row != "loopback" || "RS".contains(*letter)) {
                let of = |spark: &str| if is6 { &self.addresses[spark].1 } else { &self.addresses[spark].0 };
                let sources: Vec<&str> = match *kind {
                    "spoofed" if is6 => vec![of("one/b"), of("two/b"), HOST6, BEYOND6, "::1"],
                    "spoofed" => vec![of("one/b"), of("two/b"), HOST4, BEYOND4, "127.0.0.1"],
                    _ if is6 => vec![own6],
                    _ => vec![own4],
                };
                for source in sources
                    .into_iter()
                    .filter(|source| *kind != "spoofed" || (*source != own4 && *source != own6))
                {
                    add(kind, to, source, target.at, row);
                }
            }
        }
        for to in ["239.255.0.1", "224.0.0.1", "ff02::1", "ff05::1"] {
            add("multicast", to, "", "nobody", "");
        }
        add("frame", "0.0.0.0", "", "nobody", "");
        for (v4, _) in self.addresses.values() {
            add("arp", v4, "", "nobody", "");
        }
        all
    }

    /// Sends everything from everybody, and compares what has arrived with a column of the table.
    fn check(&mut self, column: usize) {
        self.rounds += 1;
        let mut wrong = Vec::new();
        for from in SPARKS {
            let tries = self.tries(from);
            self.send(from, &tries.iter().map(|(what, ..)| what.clone()).collect::<Vec<_>>());
            let places = ["h", "i", "c"].into_iter().chain(SPARKS);
            let heard: BTreeMap<&str, BTreeSet<String>> =
                places.map(|at| (at, self.heard(at).lines().map(str::to_owned).collect())).collect();
            let who = if from == "one/trusted" { "trusted" } else { "plain" };
            for (what, at, row) in &tries {
                let word = what["word"].as_str().unwrap().trim_matches(['<', '>']);
                let found: Vec<&str> =
                    heard.iter().filter(|(_, words)| words.contains(word)).map(|(place, _)| *place).collect();
                let letter = KINDS.iter().find(|(_, kind)| what["kind"] == *kind).map(|(letter, _)| *letter);
                let line = TABLE.iter().find(|line| line.0 == who && line.1 == *row);
                let arrives =
                    line.is_some_and(|line| letter.is_some_and(|letter| line.2[column].contains(letter)));
                let expected: Vec<&str> = arrives.then_some(*at).into_iter().collect();
                if found != expected {
                    wrong.push(format!("{word}: heard at {found:?}, expected at {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "flushed: {:?}\n{}", FLUSHED[column], wrong.join("\n"));
    }

    /// Returns when all that arrives of this has arrived.
    fn send(&self, from: &str, tries: &[serde_json::Value]) {
        let mut send = self.within(from);
        send.args(["/usr/bin/python3", SCRIPT, "send"]).stdin(Stdio::piped());
        let mut child = send.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&serde_json::to_vec(tries).unwrap()).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        // A receiver tells of this when it has told of all that it had before.
        let end = format!("end-{}-{from}", self.rounds);
        for ear in &self.ears {
            writeln!(ear.stdin.as_ref().unwrap(), "{end}").unwrap();
        }
        for at in ["h", "i", "c"].into_iter().chain(SPARKS) {
            assert!(wait_for(|| self.heard(at).contains(&end)), "{at} {end}");
        }
    }

    /// Whether a datagram of a spark arrives at the host.
    fn reaches_host(&mut self, from: &'static str) -> bool {
        self.rounds += 1;
        let word = format!("{}-{from}-control", self.rounds);
        let what = serde_json::json!({"kind": "udp", "to": HOST4, "word": format!("<{word}>")});
        self.send(from, &[what]);
        self.heard("h").contains(&word)
    }
}

/// What Docker's bridge is to the host, with a container that has published nothing.
fn make_container(host: &Host) {
    let (h, c) = (host.netns("h"), host.netns("c"));
    host.ok("ip", &["netns", "add", &c]);
    host.ok("ip", &["-n", &c, "link", "set", "lo", "up"]);
    host.on_host(&["ip", "link", "add", "docker0", "type", "bridge"]);
    host.ok(
        "ip",
        &[
            "-n", &h, "link", "add", "vc0", "master", "docker0", "type", "veth", "peer", "name", "eth0",
            "netns", &c,
        ],
    );
    let own = [(&h, "docker0", "172.17.0.1", "fd00:d0c::1"), (&c, "eth0", CONTAINER4, CONTAINER6)];
    for (ns, device, v4, v6) in own {
        host.ok("ip", &["-n", ns, "addr", "add", &format!("{v4}/16"), "dev", device]);
        host.ok("ip", &["-n", ns, "addr", "add", &format!("{v6}/64"), "dev", device, "nodad"]);
        host.ok("ip", &["-n", ns, "link", "set", device, "up"]);
    }
    host.on_host(&["ip", "link", "set", "vc0", "up"]);
    host.ok("ip", &["-n", &c, "route", "add", "default", "via", "172.17.0.1"]);
    host.ok("ip", &["-n", &c, "-6", "route", "add", "default", "via", "fd00:d0c::1"]);
    host.ok("ip", &["-n", &host.netns("i"), "addr", "add", "fd00:ec2::254/128", "dev", "lo", "nodad"]);
}

/// Rules of the packet filter are for translating only: without them sparks reach less, and nothing more.
#[test]
fn rules_that_somebody_flushed_open_nothing_and_are_there_again_after_gc() {
    let mut matrix = Matrix::new();
    // The kernel's own table of neighbours is made by packets that may be lost meanwhile.
    matrix.host.on_host(&["ping", "-c1", CONTAINER4]);
    matrix.host.on_host(&["ping", "-c1", CONTAINER6]);
    for (column, flushed) in FLUSHED.iter().enumerate() {
        for whose in *flushed {
            match *whose {
                "host" => matrix.host.on_host(&["nft", "flush", "ruleset"]),
                _ => matrix.host.on_router(&["nft", "flush", "ruleset"]),
            };
        }
        matrix.check(column);
        // That the probe works is shown by the rows of what arrives, and here by what arrives at the host: from the spark that may,
        // or from any if nothing is at the uplink.
        if !flushed.contains(&"router") {
            assert!(matrix.reaches_host("one/trusted"));
        }
        let beyond = [format!("{BEYOND4} 80"), format!("{BEYOND6} 80")];
        if *flushed == ["host"] {
            // Whoever enters a spark mends the host's rules.
            assert_eq!(matrix.host.hears("one/a", &beyond), ["beyond"; 2]);
        } else if !flushed.is_empty() {
            assert!(matrix.host.spark(&["gc"]).ok().contains("packet filter that was flushed"));
        }
        assert_eq!(matrix.host.hears_unseen("one/a", &beyond), ["beyond"; 2]);
        assert!(!matrix.host.spark(&["gc"]).ok().contains("packet filter"));
    }
    matrix.host.on_host(&["nft", "flush", "ruleset"]);
    matrix.host.on_router(&["nft", "flush", "ruleset"]);
    assert!(!matrix.reaches_host("one/a"));
    matrix.host.on_host(&["sh", "-c", "tc filter del dev $(basename /proc/sys/net/ipv4/conf/spk-*) ingress"]);
    assert!(matrix.reaches_host("one/a"), "nothing but the barrier keeps it from the host");
}
