//! Published ports.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::common::{Killed, Output, wait_for};
use crate::netns::{BEYOND4, BEYOND6, HOST4, HOST6, Host, inside};

#[test]
fn ports_lead_to_a_spark_and_follow_it_through_stop_and_resume() {
    let host = Host::new();
    host.talker(
        "web",
        &["-p", "8080:80", "-p", "127.0.0.1:8090:80", "-p", "8053:80/udp", "-p", "9000-9002:80-82"],
    );
    let reached = |host: &Host| {
        for at in [format!("{HOST4} 8080"), format!("{HOST6} 8080"), format!("{HOST4} 9000")] {
            assert_eq!(host.heard_by("i", &at), "web", "{at}");
        }
        for at in ["127.0.0.1 8080", "127.0.0.1 8090", &format!("{HOST4} 8080")] {
            assert_eq!(host.heard_by("h", at), "web", "{at}");
        }
        assert_eq!(host.heard_by("i", &format!("{HOST4} 8090")), "");
        assert_eq!(host.heard_by("i", &format!("{HOST4} 9001")), "", "nobody listens there");
    };
    reached(&host);
    let pid = host.spark(&["--json", "info", "web"]).json()["pid"].to_string();
    let mut echo = Command::new("nsenter");
    echo.args(["-t", &pid, "-n", "socat", "UDP4-RECVFROM:80,fork", "EXEC:cat"]);
    host.background(echo);
    let send = || {
        let mut send = inside(&host.netns("i"));
        send.args(["sh", "-c", &format!("echo datagram | socat -t 2 - UDP4:{HOST4}:8053")]);
        Output::of("socat", &mut send).stdout()
    };
    assert!(wait_for(|| send() == "datagram\n"), "UDP");
    // Another project gets nowhere through the host's address, and nobody takes a port twice.
    host.spark(&["create", "two/a"]).ok();
    assert_eq!(host.hears_at("two/a", &format!("{HOST4} 8080")), "-");
    let told = host.spark(&["--json", "create", "other", "-p", "127.0.0.1:8080:80"]).fails_with("network");
    assert!(told.contains("spark `web`"), "{told}");
    let told = host.spark(&["--json", "create", "other", "-p", "7000:80"]).fails_with("network");
    assert!(told.contains("busybox") || told.contains("process"), "{told}");
    assert_eq!(host.spark(&["--json", "list", "-q"]).json(), serde_json::json!(["web"]));

    host.spark(&["stop", "web"]).ok();
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "");
    host.spark(&["create", "other", "-p", "8080:80"]).ok();
    let told = host.spark(&["--json", "resume", "web"]).fails_with("network");
    assert!(told.contains("spark `other`"), "{told}");
    host.spark(&["port", "close", "other", "8080:80"]).ok();
    host.spark(&["resume", "web"]).ok();
    host.talk("web");
    reached(&host);

    host.spark(&["port", "open", "web", "8070:80"]).ok();
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8070")), "web");
    let opened = host.spark(&["port", "open", "web", "8080:82/udp", "127.0.0.1:8060-8061:60-61"]);
    assert_eq!(
        opened.stderr(),
        "web: published on every address of the host: 8080:82/udp\nweb: published on 127.0.0.1: 8060-8061:60-61\n"
    );
    let told = host.spark(&["--json", "port", "close", "web", "8080"]).fails_with("network");
    assert!(told.contains("`8080:80`") && told.contains("`8080:82/udp`"), "{told}");
    let told = host.spark(&["--json", "port", "close", "web", "8081"]).fails_with("network");
    assert!(told.contains("port 8081"), "{told}");
    host.spark(&["port", "close", "web", "8080/tcp"]).ok();
    assert_eq!(host.heard_by("i", &format!("{HOST4} 8080")), "");
    host.spark(&["port", "close", "web", "8080", "8060-8061", "9000"]).ok();
    let forked = host.spark(&["fork", "web", "copy"]);
    assert!(forked.stderr().contains("8070:80, 9001-9002:81-82"), "{}", forked.stderr());
    assert_eq!(host.spark(&["--json", "port", "copy"]).json(), serde_json::json!([]));
    let all = host.spark(&["--json", "port", "list"]).json();
    assert_eq!(all, host.spark(&["--json", "port"]).json());
    let row = serde_json::json!({"name": "web", "host": "8070", "spark": 80, "protocol": "tcp"});
    assert!(all.as_array().unwrap().contains(&row), "{all}");
    host.spark(&["port", "list", "web"]).ok();
}

/// The ports of the host that a spark has.
fn ports_of(host: &Host, spark: &str) -> Vec<String> {
    let rows = host.spark(&["--json", "port", "list", spark]).json();
    rows.as_array().unwrap().iter().map(|row| row["host"].as_str().unwrap().to_owned()).collect()
}

/// A process of the host that says a word at a port.
fn program(host: &Host, port: &str, word: &str) {
    let mut listen = inside(&host.netns("h"));
    listen.args(["busybox", "nc", "-ll", "-p", port, "-e", "echo", word]);
    host.background(listen);
    let listens = || host.on_host(&["ss", "-Hltn", &format!("sport = :{port}")]).contains(port);
    assert!(wait_for(listens));
}

#[test]
fn a_free_port_is_chosen_and_told_and_kept_until_somebody_takes_it() {
    let host = Host::new();
    let made = host.spark(&["create", "web", "-p", "80", "-p", "127.0.0.1:0:80-82"]);
    let ports = ports_of(&host, "web");
    assert!(ports.iter().all(|port| !port.ends_with(":0") && port != "0"), "{ports:?}");
    let told = format!("web: published on every address of the host: {}:80\n", ports[0]);
    assert!(made.stderr().contains(&told), "{}", made.stderr());
    assert!(made.stderr().contains("web: published on 127.0.0.1: "), "{}", made.stderr());
    host.talk("web");
    let reached = |port: &str| host.heard_by("i", &format!("{HOST4} {port}"));
    assert_eq!(reached(&ports[0]), "web");
    assert_eq!(host.heard_by("h", &ports[1].replace(':', " ")), "web");
    host.spark(&["stop", "web"]).ok();
    host.spark(&["resume", "web"]).ok();
    assert_eq!(ports_of(&host, "web"), ports, "it keeps them");
    host.spark(&["stop", "web"]).ok();

    // A process of the host has the first, and a spark the second.
    program(&host, &ports[0], "program");
    host.spark(&["create", "other", "-p", &format!("{}:80", ports[1])]).ok();
    let resumed = host.spark(&["resume", "web"]);
    let now = ports_of(&host, "web");
    assert!(now[0] != ports[0] && now[1] != ports[1] && now[2..] == ports[2..], "{ports:?} {now:?}");
    let told = resumed.stderr();
    assert!(told.contains(&format!("{}:80", ports[0])) && told.contains(&format!("{}:80", now[0])), "{told}");
    host.talk("web");
    assert_eq!((reached(&now[0]), reached(&ports[0])), ("web".into(), "program".into()));
    // One that was named is not given up for another.
    host.spark(&["stop", "web"]).ok();
    host.spark(&["port", "open", "web", &format!("{}:80", now[0])]).ok();
    program(&host, &now[0], "program");
    let told = host.spark(&["--json", "resume", "web"]).fails_with("network");
    assert!(told.contains("busybox"), "{told}");
}

#[test]
fn forks_of_one_command_get_a_free_port_each() {
    let host = Host::new();
    host.spark(&["create", "web"]).ok();
    let made = host.spark(&["fork", "-n", "2", "web", "copy", "-p", "80"]);
    let ports = ["copy-1", "copy-2"].map(|spark| ports_of(&host, spark).concat());
    for (spark, port) in ["copy-1", "copy-2"].iter().zip(&ports) {
        host.talk(spark);
        assert_eq!(host.heard_by("i", &format!("{HOST4} {port}")), *spark);
        assert!(made.stderr().contains(&format!("{spark}: published on")), "{}", made.stderr());
    }
    host.spark(&["--json", "fork", "-n", "2", "web", "x", "-p", "8080:80"]).fails_with("usage");
}

#[test]
fn a_port_is_published_on_the_addresses_that_are_named_and_on_no_other() {
    let host = Host::new();
    let at = [&format!("{HOST4}:1000:80"), &format!("[{HOST6}]:1001:80"), "127.0.0.2:1002:80"];
    let all = ["0.0.0.0:1003:80", "[::]:1004:80"];
    let ports: Vec<&str> = at.into_iter().chain(all).flat_map(|port| ["-p", port]).collect();
    host.talker("web", &ports);
    for (which, address, port, heard) in [
        ("i", HOST4, "1000", "web"),
        ("i", HOST6, "1000", ""),
        ("h", "127.0.0.1", "1000", ""),
        ("h", HOST4, "1000", "web"),
        ("i", HOST6, "1001", "web"),
        ("h", HOST6, "1001", "web"),
        ("i", HOST4, "1001", ""),
        ("h", "127.0.0.2", "1002", "web"),
        ("h", "127.0.0.1", "1002", ""),
        ("i", HOST4, "1003", "web"),
        ("h", "127.0.0.1", "1003", "web"),
        ("i", HOST6, "1003", ""),
        ("i", HOST6, "1004", "web"),
        ("i", HOST4, "1004", ""),
    ] {
        assert_eq!(host.heard_by(which, &format!("{address} {port}")), heard, "{which}: {address} {port}");
    }
}

#[test]
fn ports_that_cannot_be_published_are_refused_with_the_reason() {
    let host = Host::new();
    for (options, code, why) in [
        (&["-p", "203.0.113.77:8080:80"][..], "network", "203.0.113.77: it is not an address of this host"),
        (&["-p", "[2001:db8:1::77]:8080:80"], "network", "it is not an address of this host"),
        (&["-p", "224.0.0.1:8080:80"], "network", "it is a multicast address"),
        (&["-p", "[ff02::1]:8080:80"], "network", "it is a multicast address"),
        (&["-p", "255.255.255.255:8080:80"], "network", "it is a broadcast address"),
        (&["-p", "198.51.100.255:8080:80"], "network", "it is a broadcast address"),
        (&["-p", "[::1]:8080:80"], "usage", "publish on 127.0.0.1"),
        (
            &["-p", "8080:80", "--network", "none"],
            "usage",
            "`8080:80` cannot be published with `--network none`",
        ),
        (&["-p", "80", "--network", "host"], "usage", "cannot be published with `--network host`"),
        (
            &["-p", "8080:80", "-p", "127.0.0.1:8080:81"],
            "usage",
            "port 127.0.0.1:8080/tcp of the host is named twice",
        ),
        (&["-p", "8080-8081:80-81", "-p", "8081:80"], "usage", "named twice"),
        (&["-p", "1-4097:1-4097"], "usage", "at most 4096 ports, and these are 4097"),
        (&["-p", "7000:80"], "network", "is taken by process"),
    ] {
        let told = host.spark(&[&["--json", "create", "web"], options].concat()).fails_with(code);
        assert!(told.contains(why), "{options:?}: {told}");
    }
    host.spark(&["create", "none", "--network", "none"]).ok();
    let told = host.spark(&["--json", "port", "open", "none", "8080:80"]).fails_with("wrong_state");
    assert!(told.contains("--network none"), "{told}");
    let told = host.spark(&["--json", "fork", "none", "copy", "-p", "8080:80"]).fails_with("usage");
    assert!(told.contains("--network none"), "{told}");
    assert_eq!(host.spark(&["--json", "list", "-q"]).json(), serde_json::json!(["none"]));
    // An address that the host had when it was published.
    host.on_host(&["ip", "addr", "add", "203.0.113.77/32", "dev", "lo"]);
    host.spark(&["create", "web", "-p", "203.0.113.77:8080:80"]).ok();
    host.spark(&["stop", "web"]).ok();
    host.on_host(&["ip", "addr", "del", "203.0.113.77/32", "dev", "lo"]);
    let told = host.spark(&["--json", "resume", "web"]).fails_with("network");
    assert!(told.contains("203.0.113.77: it is not an address"), "{told}");
}

/// What docs/network.md says about it.
#[test]
fn a_program_that_binds_a_published_port_later_gets_nothing_of_it_while_the_spark_runs() {
    let host = Host::new();
    host.talker("web", &["-p", "8080:80"]);
    program(&host, "8080", "program");
    let heard = || {
        [("i", HOST4), ("h", HOST4), ("h", "127.0.0.1")]
            .map(|(which, at)| host.heard_by(which, &format!("{at} 8080")))
    };
    assert_eq!(heard(), ["web"; 3]);
    host.spark(&["stop", "web"]).ok();
    assert_eq!(heard(), ["program"; 3]);
    let told = host.spark(&["--json", "resume", "web"]).fails_with("network");
    assert!(told.contains("busybox"), "{told}");
}

/// Sends what it is told to, from one port and address to any, and writes down what it hears from where.
struct Datagrams {
    child: Killed,
    log: PathBuf,
}

impl Datagrams {
    fn new(host: &Host, name: &str, mut entered: Command, port: &str) -> Datagrams {
        const TALK: &str = "import socket, sys, threading\n\
            own = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)\n\
            own.bind(('::', int(sys.argv[1])))\n\
            def hear():\n    while True:\n        word, at = own.recvfrom(100)\n        print(word.decode(), at[0], at[1], flush=True)\n\
            threading.Thread(target=hear, daemon=True).start()\n\
            print('ready', flush=True)\n\
            for line in sys.stdin:\n    to, port, word = line.split()\n    own.sendto(word.encode(), (to, int(port)))\n    print('sent', word, flush=True)\n";
        let log = host.machine.work().join(format!("heard-{name}"));
        let out = std::fs::File::create(&log).unwrap();
        entered.args(["/usr/bin/python3", "-c", TALK, port]).stdin(Stdio::piped()).stdout(out);
        let talker = Datagrams { child: Killed(entered.spawn().unwrap()), log };
        assert!(wait_for(|| talker.heard("ready")));
        talker
    }

    fn in_spark(host: &Host, spark: &str) -> Datagrams {
        let mut entered = Command::new("nsenter");
        entered.args(["-t", &host.spark(&["--json", "info", spark]).json()["pid"].to_string(), "-n"]);
        Datagrams::new(host, spark, entered, "80")
    }

    fn say(&mut self, to: &str, port: &str, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{to} {port} {word}").unwrap();
        assert!(wait_for(|| self.heard(&format!("sent {word}\n"))));
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn heard(&self, what: &str) -> bool {
        self.text().contains(what)
    }
}

#[test]
fn datagrams_of_a_flow_that_runs_go_where_the_port_is_published_now() {
    let host = Host::new();
    host.spark(&["create", "one"]).ok();
    host.spark(&["create", "two"]).ok();
    let [mut one, mut two] = ["one", "two"].map(|spark| Datagrams::in_spark(&host, spark));
    let mut peer = Datagrams::new(&host, "peer", inside(&host.netns("i")), "5555");
    let ways = [format!("::ffff:{HOST4}"), HOST6.to_owned()];
    let mut say = |word: &str| {
        for to in &ways {
            peer.say(to, "8053", word);
        }
    };
    // Once at each address: there is no second try.
    let both = |talker: &Datagrams, word: &str| {
        let heard = format!("\n{word} ");
        assert!(wait_for(|| talker.text().matches(&heard).count() == 2), "{word}: {}", talker.text());
    };
    say("unpublished");
    host.spark(&["port", "open", "one", "8053:80/udp"]).ok();
    say("first");
    both(&one, "first");
    host.spark(&["port", "close", "one", "8053"]).ok();
    host.spark(&["port", "open", "two", "8053:80/udp"]).ok();
    say("moved");
    both(&two, "moved");
    host.spark(&["port", "close", "two", "8053"]).ok();
    say("closed");
    host.spark(&["port", "open", "one", "8053:80/udp"]).ok();
    say("again");
    both(&one, "again");
    // With a stop of one spark and the start of another.
    host.spark(&["stop", "one"]).ok();
    host.spark(&["create", "three", "-p", "8053:80/udp"]).ok();
    let three = Datagrams::in_spark(&host, "three");
    say("stopped");
    both(&three, "stopped");
    // A flow that is published by the table that is made anew.
    host.on_host(&["nft", "flush", "ruleset"]);
    say("flushed");
    host.spark(&["gc"]).ok();
    say("mended");
    both(&three, "mended");
    for (talker, words) in
        [(&one, &["moved", "closed"][..]), (&two, &["closed", "again"]), (&three, &["flushed"])]
    {
        assert!(words.iter().all(|word| !talker.heard(word)), "{}", talker.text());
    }
    for (spark, talker) in [("two", &mut two), ("one", &mut one)] {
        assert!(!talker.heard("flushed"), "{spark}");
    }
}

/// A spark that had a port goes on answering, and a sender's address inside is nobody's beyond.
#[test]
fn a_spark_that_has_a_port_no_longer_answers_nobody_in_its_name() {
    let host = Host::new();
    for spark in ["one", "two"] {
        host.spark(&["create", spark]).ok();
    }
    let [mut one, mut two] = ["one", "two"].map(|spark| Datagrams::in_spark(&host, spark));
    let mut peer = Datagrams::new(&host, "peer", inside(&host.netns("i")), "5555");
    host.spark(&["port", "open", "one", "8053:80/udp"]).ok();
    for (to, back) in
        [(format!("::ffff:{HOST4}"), format!("::ffff:{BEYOND4}")), (HOST6.into(), BEYOND6.into())]
    {
        peer.say(&to, "8053", &format!("to-{to}"));
        assert!(wait_for(|| one.heard(&format!("to-{to}"))));
        one.say(&back, "5555", "answer");
        assert!(wait_for(|| peer.heard(&format!("answer {to} 8053"))), "the control: {}", peer.text());
        host.spark(&["port", "close", "one", "8053"]).ok();
        host.spark(&["port", "open", "two", "8053:80/udp"]).ok();
        one.say(&back, "5555", "stale");
        peer.say(&to, "8053", &format!("new-{to}"));
        assert!(wait_for(|| two.heard(&format!("new-{to}"))), "{} {}", two.text(), one.text());
        two.say(&back, "5555", "fresh");
        assert!(wait_for(|| peer.heard(&format!("fresh {to} 8053"))), "{}", peer.text());
        assert!(!peer.heard("stale"), "{}", peer.text());
        host.spark(&["port", "close", "two", "8053"]).ok();
        host.spark(&["port", "open", "one", "8053:80/udp"]).ok();
    }
}

/// Sparks find each other by name. A published port is for others.
#[test]
fn the_host_reaches_published_ports_and_sparks_are_refused_there_at_once() {
    const TRY: &str = "import socket, sys\n\
        for to in sys.argv[1:]:\n    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
        \x20       own = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, kind)\n\
        \x20       own.settimeout(30)\n\
        \x20       try:\n            own.connect((to, 8080))\n            own.send(b'word')\n            print(own.recv(9).decode().strip())\n\
        \x20       except OSError as e:\n            print(type(e).__name__)\n";
    let host = Host::new();
    host.talker("web", &["-p", "8080:80", "-p", "8080:80/udp"]);
    host.spark(&["create", "near"]).ok();
    host.spark(&["create", "two/far"]).ok();
    host.spark(&["create", "open", "--allow-host"]).ok();
    let pid = |spark: &str| host.spark(&["--json", "info", spark]).json()["pid"].to_string();
    let mut echo = Command::new("nsenter");
    echo.args(["-t", &pid("web"), "-n", "socat", "UDP6-RECVFROM:80,fork", "EXEC:cat"]);
    host.background(echo);
    let tries = |mut entered: Command, to: &[&str]| {
        entered.args(["/usr/bin/python3", "-c", TRY]).args(to);
        let text = Output::of("tries", &mut entered).ok();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = |to: &[&str]| tries(inside(&host.netns("h")), to);
    assert!(wait_for(|| own(&[HOST4]) == ["web", "word"]));
    assert_eq!(own(&[HOST4, HOST6, "127.0.0.1"]), ["web", "word", "web", "word", "web", "word"]);
    assert_eq!(own(&["::1"]), ["ConnectionRefusedError"; 2]);
    for spark in ["web", "near", "two/far", "open"] {
        let mut entered = Command::new("nsenter");
        entered.args(["-t", &pid(spark), "-n"]);
        assert_eq!(tries(entered, &[HOST4, HOST6]), ["ConnectionRefusedError"; 4], "{spark}");
    }
}

/// What a command did, as the kernel saw it.
fn traced(host: &Host, args: &[&str]) -> Vec<String> {
    let inner = host.command(args);
    let log = host.machine.work().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o"]).arg(&log).arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => strace.env(key, value),
            None => strace.env_remove(key),
        };
    }
    Output::of("strace", &mut strace).ok();
    std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_thousand_ports_are_published_in_one_transaction_and_no_call_for_each() {
    let host = Host::new();
    host.talker("web", &["-p", "8080:80"]);
    let count = |calls: &[String], what: &str| calls.iter().filter(|call| call.contains(what)).count();
    let few = traced(&host, &["port", "open", "web", "20000-20009:80-89", "20000-20009:80-89/udp"]);
    let many = traced(&host, &["port", "open", "web", "30000-30999:80-1079", "30000-30999:80-1079/udp"]);
    for calls in [&few, &many] {
        assert_eq!(count(calls, "/libnftables.so"), 1, "runs of nft");
    }
    for file in ["/proc/net/tcp\"", "/proc/net/tcp6", "/proc/net/udp\"", "/proc/net/udp6"] {
        assert_eq!(count(&few, file), count(&many, file), "{file}");
    }
    let (few, many) = (few.len(), many.len());
    assert!(many < few + 990, "{few} calls for 20 ports, {many} for 2000");
    assert_eq!(host.heard_by("i", &format!("{HOST4} 30000")), "web");
    assert_eq!(host.heard_by("i", &format!("{HOST6} 20000")), "web");
    let closed = traced(&host, &["port", "close", "web", "30000-30999/tcp", "30000-30999/udp"]);
    assert!(closed.len() < few + 990, "{few} calls for 20 ports, {} to close 2000", closed.len());
    assert_eq!(host.heard_by("i", &format!("{HOST4} 30000")), "");
}
