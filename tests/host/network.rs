//! Networks of projects.

use std::process::Command;

use crate::common::{Output, is_running, wait_for};
use crate::netns::{BEYOND4, BEYOND6, HOST4, HOST6, Host, inside};

const SPARKS: [&str; 6] = ["one/a", "one/b", "one/c", "two/a", "two/b", "two/c"];

/// Every spark of two projects tries every other, by both families: those of its project answer, and no other.
fn try_all_pairs(host: &Host) {
    for spark in SPARKS {
        host.talker(spark, &[]);
    }
    let at: Vec<_> = SPARKS.iter().map(|spark| host.addresses(spark)).collect();
    let targets: Vec<String> =
        at.iter().flat_map(|(v4, v6)| [format!("{v4} 80"), format!("{v6} 80")]).collect();
    for from in SPARKS {
        let heard = host.hears(from, &targets);
        let expected: Vec<&str> =
            SPARKS.iter().flat_map(|to| [if to[..3] == from[..3] { *to } else { "-" }; 2]).collect();
        assert_eq!(heard, expected, "what {from} hears");
    }
}

#[test]
fn sparks_reach_those_of_their_project_and_no_others() {
    let host = Host::new();
    let before = host.state();
    try_all_pairs(&host);
    let names = ["b 80", "b.one.spark 80", "b.two.spark 80", "c 80"].map(str::to_owned);
    assert_eq!(host.hears("one/a", &names), ["one/b", "one/b", "-", "one/c"]);
    // The router, the host's end of its uplink, the host, what clouds have; and beyond, which is the control.
    let other = host.addresses("two/a").0;
    let own = host.addresses("one/a").0;
    let uplink = host.on_host(&["ip", "-4", "-o", "addr", "show", "up", "scope", "global"]);
    let uplink = uplink.lines().find(|line| line.contains("spk-")).unwrap();
    let uplink = uplink.split_whitespace().nth(3).unwrap().split('/').next().unwrap();
    let refused = [
        "169.254.1.1 7000".into(),
        format!("{uplink} 7000"),
        format!("{HOST4} 7000"),
        format!("{HOST6} 7000"),
        "169.254.169.254 80".into(),
    ];
    assert_eq!(host.hears("one/a", &refused), ["-"; 5]);
    assert_eq!(host.hears("one/a", &[format!("{BEYOND4} 80"), format!("{BEYOND6} 80")]), ["beyond"; 2]);
    // Nobody from beyond gets in unasked, though the packets come.
    host.ok("ip", &["-n", &host.netns("i"), "route", "add", "10.128.0.0/9", "via", HOST4]);
    assert_eq!(
        (host.heard_by("i", &format!("{own} 80")), host.heard_by("h", &format!("{own} 80"))),
        ("".into(), "one/a".into())
    );

    host.spark(&["create", "three/a", "--allow-host"]).ok();
    let allowed = [format!("{HOST4} 7000"), "169.254.169.254 80".into(), format!("{other} 80")];
    assert_eq!(host.hears("three/a", &allowed), ["host", "beyond", "-"]);
    host.spark(&[&["stop", "three/a"], &SPARKS[..]].concat()).ok();
    host.is_again(&before);
}

#[test]
fn a_host_that_drops_forwarded_packets_lets_those_of_sparks_pass_and_is_left_as_it_was() {
    let host = Host::new();
    let docker = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; \
                  add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER; \
                  add rule ip filter DOCKER-USER ip daddr 198.51.100.2 tcp dport 81 drop; \
                  add rule ip filter DOCKER-USER counter return; \
                  add table ip6 filter; add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }";
    host.on_host(&["nft", docker]);
    // Bridged packets go through these chains too where this is set.
    for family in ["ip", "ip6"] {
        host.on_host(&["sh", "-c", &format!("echo 1 > /proc/sys/net/bridge/bridge-nf-call-{family}tables")]);
    }
    let before = host.state();
    try_all_pairs(&host);
    let beyond = [format!("{BEYOND4} 80"), format!("{BEYOND6} 80"), format!("{BEYOND4} 81")];
    assert_eq!(
        host.hears("one/a", &beyond),
        ["beyond", "beyond", "-"],
        "what the administrator drops stays dropped"
    );
    host.spark(&[&["stop"], &SPARKS[..]].concat()).ok();
    host.is_again(&before);
}

#[test]
fn any_user_of_a_spark_may_ping_and_serve_low_ports() {
    let host = Host::new();
    host.spark(&["create", "web", "--user", "1000", "-p", "8080:80"]).ok();
    // A socket for echo requests, which the ping of busybox does not know of.
    let pings = |spark: &str| {
        let pid = host.spark(&["--json", "info", spark]).json()["pid"].to_string();
        let mut ask = Command::new("nsenter");
        ask.args(["-t", &pid, "-n", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]);
        ask.args([
            "/usr/bin/python3",
            "-c",
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)",
        ]);
        Output::of("python3", &mut ask).ok()
    };
    pings("web");
    host.talk("web");
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "web");
    host.spark(&["create", "--network", "none", "alone"]).ok();
    pings("alone");
    let range = || std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let before = range();
    host.spark(&["create", "--network", "host", "open"]).ok();
    assert_eq!(range(), before);
}

/// With the rules that were for them.
#[test]
fn bridges_of_an_earlier_version_go_with_their_last_spark() {
    let host = Host::new();
    host.spark(&["create", "web"]).ok();
    let run = host.machine.place().run;
    let hash = |bytes: &[u8]| {
        use sha2::Digest;
        sha2::Sha256::digest(bytes)[..5].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let run = run.as_os_str().as_encoded_bytes();
    let (bridge, table) = (hash(&[run, b"\0default"].concat()), format!("spark-{}", hash(run)));
    let name = format!("spk-{bridge}");
    let now = host.state();
    host.on_host(&["ip", "link", "add", &name, "type", "bridge"]);
    host.on_host(&[
        "ip",
        "link",
        "add",
        &format!("spq-{bridge}"),
        "master",
        &name,
        "type",
        "veth",
        "peer",
        "name",
        "sps",
    ]);
    host.on_host(&["ip", "link", "add", "spvold", "master", &name, "type", "veth", "peer", "name", "inside"]);
    for family in ["inet", "bridge", "netdev"] {
        host.on_host(&["nft", "add", "table", family, &table]);
    }
    let before = host.state();
    assert!(!host.spark(&["gc"]).ok().contains("earlier version"));
    host.is_again(&before);
    host.on_host(&["ip", "link", "del", "spvold"]);
    assert!(host.spark(&["gc"]).ok().contains("bridge of an earlier version"));
    host.is_again(&now);
    assert_eq!(host.hears_at("web", &format!("{BEYOND4} 80")), "beyond");
}

/// It forwards for sparks, and rules that may be flushed are not what keeps it from more.
#[test]
fn a_host_that_forwarded_nothing_forwards_for_sparks_alone() {
    let host = Host::new();
    host.on_host(&["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"]);
    for family in [&["addr", "add", "203.0.113.1/24"][..], &["addr", "add", "2001:db8:2::1/64", "nodad"]] {
        host.on_host(&[&["ip"], family, &["dev", "lan0"]].concat());
    }
    for device in ["lan0", "lan1"] {
        host.on_host(&["ip", "link", "set", device, "up"]);
    }
    host.spark(&["create", "web"]).ok();
    let (v4, v6) = host.addresses("web");
    let forwards = |to: &str, from: &str| {
        let mut ask = inside(&host.netns("h"));
        ask.args(["ip", "route", "get", to, "from", from, "iif", "up0"]).output().unwrap().status.success()
    };
    for _ in 0..2 {
        assert!(forwards(&v4, BEYOND4) && forwards(&v6, BEYOND6), "the control");
        assert!(!forwards("203.0.113.7", BEYOND4) && !forwards("2001:db8:2::7", BEYOND6));
        host.on_host(&["nft", "flush", "ruleset"]);
    }
}

#[test]
fn what_a_spark_does_with_its_own_device_gets_it_nowhere() {
    let host = Host::new();
    for spark in ["one/a", "two/a", "two/b"] {
        host.talker(spark, &[]);
    }
    let pid = host.spark(&["--json", "info", "one/a"]).json()["pid"].to_string();
    let own = host.addresses("one/a").0;
    let other = host.addresses("two/a").0;
    let with = |args: &[&str]| {
        Output::of(&args.join(" "), Command::new("nsenter").args(["-t", &pid, "-n"]).args(args))
    };
    let ping = |to: &str| with(&["ping", "-c1", "-W1", to]).status() == 0;
    assert!(wait_for(|| ping(BEYOND4)), "the control");
    // As a spark of the other project, as another one of its own, and with another card.
    let neighbour = format!("{}/9", other.rsplit_once('.').unwrap().0.to_owned() + ".77");
    with(&["ip", "addr", "add", &neighbour, "dev", "eth0"]).ok();
    assert!(!ping(&other));
    with(&["ip", "addr", "del", &neighbour, "dev", "eth0"]).ok();
    let spoofed = own.rsplit_once('.').unwrap().0.to_owned() + ".99";
    with(&["ip", "addr", "add", &format!("{spoofed}/20"), "dev", "eth0"]).ok();
    assert_eq!(with(&["ping", "-c1", "-W1", "-I", &spoofed, BEYOND4]).status(), 1);
    assert!(wait_for(|| ping(BEYOND4)));
    with(&["ip", "link", "set", "eth0", "address", "06:00:00:00:00:99"]).ok();
    assert!(!ping(BEYOND4));
}

#[test]
fn rules_for_what_leaves_let_that_pass_and_nothing_else() {
    let host = Host::new();
    host.talker("web", &[]);
    let tries =
        [format!("{BEYOND4} 80"), format!("{BEYOND4} 81"), format!("{BEYOND6} 80"), "web 80".to_owned()];
    for (name, rules, heard) in [
        ("all", "all", ["beyond", "other", "beyond", "web"]),
        ("none", "deny", ["-", "-", "-", "web"]),
        ("net", "allow=198.51.100.0/24", ["beyond", "other", "-", "web"]),
        ("port", "allow=198.51.100.2:81,[2001:db8:1::/48]:80", ["-", "other", "beyond", "web"]),
        ("elsewhere", "allow=203.0.113.0/24,198.51.100.2:82", ["-", "-", "-", "web"]),
    ] {
        host.spark(&["create", name, "--egress", rules]).ok();
        assert_eq!(host.hears(name, &tries), heard, "{rules}");
    }
    // A name means what it meant when the spark started, and is known inside.
    host.spark(&["create", "named", "--egress", "allow=localhost:80"]).ok();
    assert!(host.spark(&["exec", "named", "--", "cat", "/etc/hosts"]).ok().contains("127.0.0.1\tlocalhost"));
    assert_eq!(host.hears_at("named", &tries[0]), "-");
    host.spark(&["--json", "create", "lost", "--egress", "allow=no-such-name.invalid"]).fails_with("network");
    assert!(host.spark(&["--json", "info", "lost"]).status() != 0);
}

#[test]
fn a_spark_keeps_its_address_and_the_others_know_its_name() {
    let host = Host::new();
    for spark in ["a", "b"] {
        host.talker(spark, &[]);
    }
    let (a, b) = (host.addresses("a"), host.addresses("b"));
    assert_ne!(a, b);
    host.spark(&["rename", "b", "c"]).ok();
    assert_eq!(host.hears("a", &["c 80".into(), "b 80".into()]), ["b", "-"]);
    host.spark(&["stop", "c"]).ok();
    assert_eq!(host.hears_at("a", "c 80"), "-");
    host.spark(&["create", "d"]).ok();
    host.spark(&["resume", "c"]).ok();
    assert_eq!((host.addresses("a"), host.addresses("c")), (a.clone(), b.clone()));
    assert_ne!(host.addresses("d"), b);
    host.spark(&["delete", "-f", "--now", "d"]).ok();
}

#[test]
fn a_spark_that_ended_by_itself_leaves_nothing_once_a_command_ran() {
    let host = Host::new();
    let before = host.state();
    host.talker("web", &["-p", "8080:80"]);
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "web");
    let pid = host.spark(&["--json", "info", "web"]).json()["pid"].to_string();
    host.ok("kill", &["-9", &pid]);
    assert!(
        wait_for(|| !host.on_router(&["ip", "-o", "link"]).contains("spv")),
        "the device goes with the namespace"
    );
    assert!(wait_for(|| !is_running(pid.parse().unwrap())));
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "");
    host.spark(&["list"]).ok();
    host.is_again(&before);
}

/// Without a word to anybody, since nothing of ours runs then. A message would come a second later, when the first segment is
/// sent again.
#[test]
fn a_published_port_of_a_spark_that_ended_by_itself_refuses_at_once() {
    let host = Host::new();
    host.talker("web", &["-p", "8080:80", "--idle-stop", "1s"]);
    host.talker("other", &[]);
    let ways = [HOST4, HOST6, "127.0.0.1"];
    let connect = |which: &str, to: &str, port: &str| {
        let mut command = inside(&host.netns(which));
        let out = command.args(["busybox", "nc", "-w", "60", to, port]).stdin(std::process::Stdio::null());
        let out = out.output().unwrap();
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    let which = |to: &str| if to == "127.0.0.1" { "h" } else { "i" };
    for end in ["idle", "killed"] {
        for to in ways {
            assert_eq!(connect(which(to), to, "8080"), "web\n", "{to}");
        }
        let pid = host.spark(&["--json", "info", "web"]).json()["pid"].to_string();
        // No command of ours from here on: it would take the port back.
        let port = format!("spv{}", id_of(&host, "web")[14..].to_lowercase());
        match end {
            "idle" => drop(host.spark(&["exec", "web", "--", "sh", "-c", "kill -9 -1"]).ok()),
            _ => drop(host.ok("kill", &["-9", &pid])),
        }
        assert!(wait_for(|| !host.on_router(&["ip", "-o", "link"]).contains(&port)));
        for to in ways {
            assert!(connect(which(to), to, "8080").contains("Connection refused"), "{end}, {to}");
        }
        host.spark(&["resume", "web"]).ok();
        host.talk("web");
    }
}

fn id_of(host: &Host, spark: &str) -> String {
    host.spark(&["--json", "info", spark]).json()["id"].as_str().unwrap().to_owned()
}

/// Without the router's translation a spark sends with its own address, and answers to the host pass. A piece of a packet has no
/// ports by which it would be known as an answer.
#[test]
fn a_piece_of_a_packet_from_the_host_lets_nothing_but_answers_back() {
    let host = Host::new();
    for (spark, options) in [("plain", &[][..]), ("open", &["--allow-host"])] {
        host.spark(&[&["create", spark], options].concat()).ok();
    }
    // A datagram that fits into no frame, and what comes to a port of the host.
    let talk = "import socket, sys\n\
                heard = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
                heard.bind(('::', 7777))\n\
                sent = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
                for to in sys.argv[1:]:\n    sent.sendto(bytes(4000), (to, 9))\n\
                print(sent.getsockname()[1], flush=True)\n\
                while True:\n    print(heard.recv(100).decode(), flush=True)\n";
    // A header that says that the packet is a piece, though the only one; UDP for that port is in it.
    let send = "import socket, struct, sys\n\
                own, to, word = sys.argv[1:]\n\
                udp = struct.pack('!HHHH', 5555, 7777, 8 + len(word), 0) + word.encode()\n\
                address = lambda a: socket.inet_pton(socket.AF_INET6, a)\n\
                summed = address(own) + address(to) + struct.pack('!II', len(udp), 17) + udp + bytes(len(udp) % 2)\n\
                sum = 0\n\
                for (n,) in struct.iter_unpack('!H', summed):\n    sum += n\n\
                while sum >> 16:\n    sum = (sum & 0xffff) + (sum >> 16)\n\
                udp = udp[:6] + struct.pack('!H', 0xffff ^ sum) + udp[8:]\n\
                raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 44)\n\
                raw.sendto(struct.pack('!BBHI', 17, 0, 0, 1) + udp, (to, 0))\n";
    let (plain, open) = (host.addresses("plain").1, host.addresses("open").1);
    let uplink = host.on_host(&["ip", "-6", "-o", "addr", "show", "up", "scope", "global"]);
    let uplink = uplink.lines().find(|line| line.contains("spk-")).unwrap();
    let uplink = uplink.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    let log = host.machine.work().join("heard");
    let mut talks = inside(&host.netns("h"));
    talks.args(["sh", "-c", "exec /usr/bin/python3 -c \"$0\" \"$@\" >\"$LOG\"", talk, &plain]);
    host.background({
        talks.env("LOG", &log);
        talks
    });
    let heard = |what: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(what));
    assert!(wait_for(|| std::fs::read_to_string(&log).is_ok_and(|text| text.contains('\n'))));
    let piece = |spark: &str, own: &str, word: &str| {
        let pid = host.spark(&["--json", "info", spark]).json()["pid"].to_string();
        let mut python = Command::new("nsenter");
        python.args(["-t", &pid, "-n", "/usr/bin/python3", "-c", send, own, &uplink, word]);
        Output::of("python3", &mut python).ok();
    };
    // The control: that it arrives from a spark that may.
    assert!(wait_for(|| {
        piece("open", &open, "allowed");
        heard("allowed")
    }));
    host.on_router(&["nft", "flush", "ruleset"]);
    piece("plain", &plain, "stranger");
    // The same way is taken by what the host is told later, which shows that the first has had its time.
    let restored = host.spark(&["gc"]).ok();
    assert!(restored.contains("packet filter that was flushed"), "{restored}");
    assert!(wait_for(|| {
        piece("open", &open, "later");
        heard("later")
    }));
    assert!(!heard("stranger"), "{}", std::fs::read_to_string(&log).unwrap());
}

/// Whoever takes the router away, or a part of it: the next start makes it anew, and those that run are in it.
#[test]
fn a_router_that_was_lost_is_made_anew_with_the_sparks_that_run() {
    let host = Host::new();
    let before = host.state();
    for spark in ["one/a", "one/b", "two/a"] {
        host.talker(spark, &[]);
    }
    let mounts = |what: &str| {
        let path = host.machine.place().run.join("net").join(what);
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", host.mounts())).arg("umount").arg(path);
        drop(Output::of("umount", &mut command).ok());
    };
    let at = host.addresses("one/b").0;
    let uplink = host.on_host(&["sh", "-c", "basename /proc/sys/net/ipv4/conf/spk-*"]);
    for (n, lost) in ["the uplink", "the namespace", "the barrier"].into_iter().enumerate() {
        match lost {
            "the uplink" => drop(host.on_host(&["ip", "link", "del", uplink.trim()])),
            "the namespace" => mounts("router"),
            _ => mounts("barrier"),
        }
        host.spark(&["create", &format!("one/new{n}")]).ok();
        let tries = [format!("{at} 80"), "b 80".into(), format!("{BEYOND4} 80"), format!("{HOST4} 7000")];
        assert_eq!(host.hears("one/a", &tries), ["one/b", "one/b", "beyond", "-"], "without {lost}");
        assert_eq!(host.hears_at("two/a", &tries[0]), "-", "without {lost}");
    }
    host.spark(&["stop", "one/a", "one/b", "one/new0", "one/new1", "one/new2", "two/a"]).ok();
    host.is_again(&before);
}

/// Docker, and firewalls of others, that come when sparks run already, or put their chains in anew.
#[test]
fn chains_of_others_that_come_later_let_sparks_pass_after_gc_or_the_next_start() {
    let host = Host::new();
    let beyond = || host.hears_unseen("web", &[format!("{BEYOND4} 80"), format!("{BEYOND6} 80")]);
    let hook = "type filter hook forward priority 0; policy";
    let docker = format!(
        "table ip filter {{ chain DOCKER-USER {{ }}; chain FORWARD {{ {hook} drop; jump DOCKER-USER; }}; }}"
    );
    let fire = format!(
        "table inet fire {{ chain last {{ {hook} accept; iifname \"lo\" accept; reject with icmpx admin-prohibited; }}; }}"
    );
    for (rules, table, heard) in [(docker, "ip filter", ["-", "beyond"]), (fire, "inet fire", ["-", "-"])] {
        let apply = || host.on_host(&["nft", &format!("add table {table}; delete table {table}; {rules}")]);
        apply();
        let with_rules = host.state();
        host.on_host(&["nft", &format!("delete table {table}")]);
        host.spark(&["create", "web"]).ok();
        assert_eq!(beyond(), ["beyond"; 2]);
        apply();
        assert_eq!(beyond(), heard, "the control: {rules}");
        assert!(host.spark(&["gc", "--dry-run"]).ok().contains("drops what sparks send"));
        host.spark(&["gc"]).ok();
        assert_eq!(beyond(), ["beyond"; 2], "after gc: {rules}");
        assert!(!host.spark(&["gc"]).ok().contains("packet filter"));
        apply();
        assert_eq!(beyond(), heard, "the control: {rules}");
        host.spark(&["create", "other"]).ok();
        assert_eq!(beyond(), ["beyond"; 2], "after a start: {rules}");
        host.spark(&["delete", "-f", "--now", "web", "other"]).ok();
        host.is_again(&with_rules);
        host.on_host(&["nft", &format!("delete table {table}")]);
    }
}

#[test]
fn two_hundred_sparks_leave_the_host_as_it_was() {
    let host = Host::new();
    let before = host.state();
    host.spark(&["create", "web"]).ok();
    host.spark(&["fork", "-n", "199", "web", "w"]).ok();
    assert_eq!(host.on_router(&["ip", "-o", "link"]).matches(": spv").count(), 200);
    assert!(!host.on_host(&["ip", "-o", "link"]).contains("spv"));
    let names = host.spark(&["--json", "list", "-q"]).json();
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names.len(), 200);
    host.spark(&[&["stop"], &names[..]].concat()).ok();
    host.is_again(&before);
    assert!(host.on_host(&["ip", "netns", "list"]).lines().all(|l| l.starts_with("spt-")));
}
