//! Questions for names: who is told what, and what one spark can do to the others.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sparks::domain::spark::Id;
use sparks::net::names::ADDRESS;

use crate::common::random::Random;
use crate::common::{Machine, is_running, wait_for};
use crate::netns::{BEYOND6, Host};
use crate::processes::{field, has_no_rights};
use crate::resolver::{A, AAAA, LOCAL, MEANT, Net, PTR, answer, first_label, framed, query, serve};

/// What two projects are known by.
const ONE: &str = "10.128.0.0";
const TWO: &str = "10.128.16.0";

/// A resolver of the host that knows every name but those that begin with `nx`.
fn knows_all(message: &[u8], _: bool) -> Vec<Vec<u8>> {
    match first_label(message) {
        label if label.starts_with("nx") => vec![answer(message, 3, None)],
        _ => vec![answer(message, 0, Some(MEANT))],
    }
}

fn never_answers(_: &[u8], _: bool) -> Vec<Vec<u8>> {
    Vec::new()
}

#[test]
fn sparks_of_one_project_find_each_other_and_other_names_come_from_a_resolver_on_the_hosts_loopback_device() {
    let net = Net::new();
    let asked = net.serve(LOCAL, knows_all);
    net.ensure();
    let (one, two) = (ONE, TWO);
    let web = net.spark(one, "web", 2, |_| {});
    let db = net.spark(one, "db", 3, |record| record.host = vec!["10.9.9.9".parse().unwrap()]);
    // The same names in another project of the same name, as another user may have.
    net.spark(two, "cache", 4, |record| record.asks_beyond = false);
    for name in ["db", "Db", "db.shop.spark"] {
        assert_eq!(net.told("web", name, A).addresses, [db.v4], "{name}");
        assert_eq!(net.told_by_tcp("web", name, AAAA).addresses, [db.v6.unwrap()], "{name}");
    }
    assert_eq!(net.told("db", "host.spark", A).addresses, ["10.9.9.9".parse::<std::net::IpAddr>().unwrap()]);
    let reverse = net.told("db", "2.0.128.10.in-addr.arpa", PTR).bytes;
    assert!(reverse.ends_with(b"\x03web\x04shop\x05spark\0"), "{reverse:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody beyond learns of them");
    // Nobody is told of another project, and who may not ask beyond gets an answer at once.
    for (spark, name) in [
        ("cache", "web"),
        ("cache", "web.shop.spark"),
        ("web", "cache.shop.spark"),
        ("web", "host.spark"),
        ("cache", "example.com"),
    ] {
        let told = net.told(spark, name, A);
        assert_eq!((told.code, told.addresses), (3, vec![]), "{spark} asks for {name}");
    }
    let reverse = net.told("cache", "2.0.128.10.in-addr.arpa", PTR);
    assert_eq!(
        (reverse.code, reverse.bytes[7]),
        (3, 0),
        "the address of another project's spark has no name"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 0, "the one who may not ask beyond does not");
    assert_eq!(net.told("web", "example.com", A).addresses, [MEANT]);
    assert_eq!(net.told_by_tcp("web", "example.com", A).addresses, [MEANT]);
    assert_eq!(net.told("web", "nx.example", A).code, 3);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    // A spark that has ended, and one with a new name.
    net.names.rename(&db.id, db.v4, &"store".parse().unwrap()).unwrap();
    assert_eq!(net.told("web", "store", A).addresses, [db.v4]);
    assert_eq!(net.told("web", "db.shop.spark", A).code, 3);
    net.names.leave(&web.id, web.v4).unwrap();
    assert_eq!(net.told("db", "web.shop.spark", A).code, 3);
    assert_eq!(net.told("web", "store", A).code, 5, "an address of nobody is refused");
}

#[test]
fn an_answer_has_to_be_to_the_question_and_from_the_resolver() {
    fn lies_first(message: &[u8], is_tcp: bool) -> Vec<Vec<u8>> {
        let good = answer(message, 0, Some(MEANT));
        if is_tcp {
            return vec![good];
        }
        let lie = answer(message, 0, Some("203.0.113.66".parse().unwrap()));
        let (mut id, mut name, mut query) = (lie.clone(), lie.clone(), lie);
        id[0] ^= 1;
        name[13] ^= 1;
        query[2] &= 0x7f;
        vec![id, name, query, vec![0; 5], good]
    }
    let net = Net::new();
    net.serve(LOCAL, lies_first);
    net.ensure();
    net.spark(ONE, "web", 2, |_| {});
    assert_eq!(net.told("web", "example.com", A).addresses, [MEANT]);
}

#[test]
fn an_answer_that_is_cut_is_asked_for_again_by_tcp() {
    fn is_large(message: &[u8], is_tcp: bool) -> Vec<Vec<u8>> {
        let mut large = answer(message, 0, Some(MEANT));
        if is_tcp {
            // Something behind the records, as signatures would be.
            large.resize(20_000, 0);
        } else {
            large[2] |= 2;
        }
        vec![large]
    }
    let net = Net::new();
    net.serve(LOCAL, is_large);
    net.ensure();
    net.spark(ONE, "web", 2, |_| {});
    assert!(net.told("web", "large.example", A).is_cut);
    let whole = net.told_by_tcp("web", "large.example", A);
    assert_eq!((whole.is_cut, whole.bytes.len(), whole.addresses), (false, 20_000, vec![MEANT]));
}

#[test]
fn a_resolver_that_is_silent_gone_or_broken_is_passed_over() {
    fn fails(message: &[u8], _: bool) -> Vec<Vec<u8>> {
        vec![answer(message, 2, None)]
    }
    let net = Net::new();
    let good = net.serve("127.0.0.10:53", knows_all);
    let silent = net.serve("127.0.0.11:53", never_answers);
    net.serve("127.0.0.12:53", fails);
    net.ensure();
    net.spark(ONE, "web", 2, |_| {});
    for (first, why) in [("127.0.0.11:53", "silent"), ("127.0.0.9:53", "gone"), ("127.0.0.12:53", "broken")] {
        net.use_servers(&[first, "127.0.0.10:53"]);
        assert_eq!(net.told("web", "example.com", A).addresses, [MEANT], "{why}");
        assert_eq!(net.told_by_tcp("web", "example.com", A).addresses, [MEANT], "{why} by TCP");
    }
    // The second question does not wait for the silent one again.
    net.use_servers(&["127.0.0.11:53", "127.0.0.10:53"]);
    net.told("web", "example.com", A);
    let before = (silent.load(Ordering::Relaxed), good.load(Ordering::Relaxed));
    net.told("web", "example.com", A);
    assert_eq!((silent.load(Ordering::Relaxed), good.load(Ordering::Relaxed)), (before.0, before.1 + 1));
    // None is left: the asker is told so, and may ask again.
    net.use_servers(&["127.0.0.9:53"]);
    assert_eq!(net.told("web", "example.com", A).code, 2);
    net.use_servers(&[]);
    assert_eq!(net.told("web", "example.com", A).code, 2);
}

#[test]
fn a_resolver_that_was_killed_leaves_nothing_open_and_the_next_command_starts_it_again() {
    let net = Net::new();
    net.serve(LOCAL, knows_all);
    net.ensure();
    let web = net.spark(ONE, "web", 2, |_| {});
    let first = net.pid().unwrap();
    net.ensure();
    assert_eq!(net.pid(), Some(first), "it is started once");
    net.kill();
    assert_eq!(net.told_within("web", "web", A, 300), None);
    assert_eq!(net.pid(), None);
    net.ensure();
    assert_ne!(net.pid().unwrap(), first);
    assert_eq!(net.told("web", "web", A).addresses, [web.v4]);
    assert_eq!(net.told("web", "example.com", A).addresses, [MEANT]);
    // It ends with the router, which is the removal of its file, and another router gets another process.
    let second = net.pid().unwrap();
    net.names.end().unwrap();
    assert!(wait_for(|| !is_running(second)), "it leaves");
    net.ensure();
    let third = net.pid().unwrap();
    std::process::Command::new("ip").args(["netns", "add", &net.netns("r2")]).status().unwrap();
    for args in [&["link", "set", "lo", "up"][..], &["addr", "add", "169.254.1.1/32", "dev", "lo"]] {
        let status = std::process::Command::new("ip").args(["-n", &net.netns("r2")]).args(args).status();
        assert!(status.unwrap().success());
    }
    net.ensure_in("r2");
    assert!(wait_for(|| !is_running(third)) && net.names.runs());
}

#[test]
fn of_many_commands_at_once_one_starts_it_and_all_find_it_ready() {
    let net = Net::new();
    net.spark(ONE, "web", 2, |_| {});
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let router = std::fs::File::open(format!("/run/netns/{}", net.netns("r"))).unwrap();
                net.names
                    .ensure_runs(std::os::fd::AsFd::as_fd(&router), env!("CARGO_BIN_EXE_spark").as_ref())
                    .unwrap();
                assert!(net.names.runs());
                assert!(net.told_within("web", "web", A, 20_000).is_some());
            });
        }
    });
    net.pid().unwrap();
}

fn proc(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

#[test]
fn the_process_has_no_rights_no_files_but_names_and_nothing_of_who_started_it() {
    let net = Net::new();
    // Locks and pipes of a command that must not be passed on.
    let (mut pipe, kept) = std::io::pipe().unwrap();
    net.ensure();
    drop(kept);
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0, "the pipe ends with the command");
    let pid = net.pid().unwrap();
    has_no_rights(pid);
    assert_ne!(field(pid, "PPid"), std::process::id().to_string(), "it is nobody's child");
    let link = |name: &str| std::fs::read_link(proc(pid).join(name)).unwrap();
    assert_eq!(link("root"), net.dir());
    let cgroup = std::fs::read_to_string(proc(pid).join("cgroup")).unwrap();
    for line in cgroup.lines().filter(|line| line.starts_with("0::") || line.contains("name=systemd")) {
        assert!(line.ends_with(":/spark/helpers"), "{cgroup}");
    }
    // Sockets, its directory and its own file.
    for fd in std::fs::read_dir(proc(pid).join("fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let shown = target.to_str().unwrap();
        let is_known = shown.starts_with("socket:")
            || ["/dev/null", "anon_inode:inotify"].contains(&shown)
            || target.starts_with(net.dir())
            || shown.starts_with("net:");
        assert!(is_known, "{shown}");
    }
    let limits = std::fs::read_to_string(proc(pid).join("limits")).unwrap();
    for (name, most) in [("Max processes", 0), ("Max file size", 0), ("Max open files", 1024)] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line[name.len()..].trim().starts_with(&format!("{most} ")), "{line}");
    }
    assert_eq!(std::fs::read(proc(pid).join("environ")).unwrap_or_default().len(), 0);
}

#[test]
fn messages_that_nobody_should_send_do_not_end_it() {
    let net = Net::new();
    net.serve(LOCAL, knows_all);
    net.ensure();
    net.spark(ONE, "web", 2, |_| {});
    let pid = net.pid();
    let mut random = Random::new(7);
    let mut message = || {
        let mut bytes = query(["web", "example.com", "web.shop.spark"][random.below(3) as usize], A);
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        bytes[11] = 1;
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, random.below(256) as u8),
                _ => bytes[at] = random.below(256) as u8,
            }
        }
        if random.below(50) == 0 {
            bytes.resize(random.below(6000) as usize, 0xc0);
        }
        bytes
    };
    let messages: Vec<Vec<u8>> = (0..3000).map(|_| message()).collect();
    net.within("web", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for (n, message) in messages.iter().enumerate() {
            let _ = socket.send_to(message, (ADDRESS, 53));
            if n % 20 == 0 {
                let mut stream = TcpStream::connect((ADDRESS, 53)).unwrap();
                let cut = framed(message).len() - n % 3;
                let _ = stream.write_all(&framed(message)[..cut]);
            }
        }
        // A length of everything, and of nothing.
        for start in [[0xff, 0xff], [0, 0]] {
            let mut stream = TcpStream::connect((ADDRESS, 53)).unwrap();
            let _ = stream.write_all(&start);
            let _ = stream.write_all(&[0; 9000]);
        }
    });
    assert_eq!(net.told("web", "example.com", A).addresses, [MEANT]);
    assert_eq!(net.told_by_tcp("web", "web", A).code, 0);
    assert_eq!(net.pid(), pid);
}

/// A spark that sends all that it can, while another one asks in peace.
#[test]
fn a_flood_of_one_spark_leaves_room_for_another() {
    let net = Net::new();
    net.serve(LOCAL, knows_all);
    net.ensure();
    net.spark(ONE, "flood", 2, |_| {});
    let web = net.spark(ONE, "web", 3, |_| {});
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lost = std::thread::scope(|scope| {
        for kind in [A, AAAA] {
            let (net, stop, sent) = (&net, &stop, &sent);
            scope.spawn(move || {
                net.within("flood", || {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let messages = [query("web", kind), query("example.com", kind)];
                    while !stop.load(Ordering::Relaxed) {
                        for message in &messages {
                            if socket.send_to(message, (ADDRESS, 53)).is_ok() {
                                sent.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            });
        }
        assert!(wait_for(|| sent.load(Ordering::Relaxed) > 100_000), "the flood flows");
        let mut lost = 0;
        for _ in 0..100 {
            for (name, address) in [("web", web.v4.into()), ("example.com", MEANT)] {
                match net.told_within("web", name, A, 2000) {
                    Some(told) => assert_eq!(told.addresses, [address]),
                    None => lost += 1,
                }
            }
            if lost > 0 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        lost
    });
    assert_eq!(lost, 0, "answers came under {} of the other's", sent.load(Ordering::Relaxed));
}

/// Questions that are never answered fill the room that there is for them.
#[test]
fn questions_of_one_spark_that_wait_leave_room_for_those_of_another() {
    fn is_slow(message: &[u8], is_tcp: bool) -> Vec<Vec<u8>> {
        if first_label(message).starts_with("slow") { Vec::new() } else { knows_all(message, is_tcp) }
    }
    let net = Net::new();
    let asked = net.serve(LOCAL, is_slow);
    net.ensure();
    for (number, name) in (2..).zip(["a", "b", "c", "web"]) {
        net.spark(ONE, name, number, |_| {});
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let (net, stop) = (&net, &stop);
            scope.spawn(move || {
                net.within(name, || {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let streams: Vec<TcpStream> = (0..16)
                        .map(|n| {
                            let mut stream = TcpStream::connect((ADDRESS, 53)).unwrap();
                            stream.write_all(&framed(&query(&format!("slow{n}.example"), A))).unwrap();
                            stream
                        })
                        .collect();
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let _ = socket.send_to(&query(&format!("slow{n}.example"), A), (ADDRESS, 53));
                        // As many as may be asked in a second.
                        std::thread::sleep(Duration::from_micros(500));
                    }
                    drop(streams);
                });
            });
        }
        assert!(wait_for(|| asked.load(Ordering::Relaxed) > 100), "all room is used");
        let begun = Instant::now();
        for _ in 0..20 {
            assert_eq!(net.told("web", "example.com", A).addresses, [MEANT]);
        }
        assert_eq!(net.told_by_tcp("web", "web", A).code, 0);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
    });
}

/// Bytes that this thread has written so far.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_start_writes_as_many_bytes_for_names_however_many_there_are() {
    let net = Net::new();
    net.ensure();
    let mut one = net.spark(ONE, "web", 2, |_| {});
    let mut count = |name: &str, number: u8| {
        one = sparks::net::names::Record {
            id: Id::generate(),
            name: name.parse().unwrap(),
            v4: [10, 128, 1, number].into(),
            ..one.clone()
        };
        let before = written();
        net.names.enter(&one).unwrap();
        let at_enter = written() - before;
        let before = written();
        net.names.leave(&one.id, one.v4).unwrap();
        let at_leave = written() - before;
        net.names.enter(&one).unwrap();
        (at_enter, at_leave)
    };
    let first = count("w100", 100);
    for number in 0..200 {
        count(&format!("x{number:03}"), number);
    }
    let last = count("w201", 201);
    assert_eq!(first, last);
    assert!(first.0 > 100 && first.0 < 2000 && first.1 == 0, "{first:?}");
}

/// What a spark reads in its file.
fn hosts_of(host: &Host, spark: &str) -> String {
    sh(host, spark, "cat /etc/hosts")
}

fn sh(host: &Host, spark: &str, script: &str) -> String {
    host.spark(&["exec", spark, "--", "sh", "-c", script]).ok()
}

#[test]
fn sparks_find_neighbours_at_once_where_the_host_has_search_domains_and_a_resolver_on_its_loopback_device() {
    let host = Host::new();
    let ended = std::sync::Arc::new(AtomicBool::new(false));
    let asked = serve(&host.netns("h"), LOCAL, knows_all, &ended);
    host.use_resolv_conf(
        "nameserver 127.0.0.53\nsearch corp.example lab.example\noptions ndots:2 timeout:30\n",
    );
    host.talker("one/a", &[]);
    host.talker("one/b", &[]);
    host.spark(&["create", "two/a"]).ok();
    host.spark(&["create", "one/deny", "--egress", "deny"]).ok();
    assert_eq!(
        sh(&host, "one/a", "cat /etc/resolv.conf"),
        "nameserver 169.254.1.1\nsearch one.spark corp.example lab.example\noptions ndots:2 timeout:30\n"
    );
    assert_eq!(host.hears("one/a", &["b 80".into(), "b.one.spark 80".into()]), ["one/b", "one/b"]);
    assert_eq!(host.hears("one/deny", &["b 80".into()]), ["one/b"]);
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody beyond learns the names of sparks");
    let lookup = |spark: &str, name: &str| host.spark(&["exec", spark, "--", "nslookup", name]).stdout();
    let said = lookup("one/a", "example.com");
    assert!(said.contains("192.0.2.77"), "{said}");
    // Neither another project nor anybody beyond, for who may not reach that.
    let before = asked.load(Ordering::Relaxed);
    assert!(before > 0);
    for (spark, name) in [("two/a", "b.one.spark"), ("one/deny", "example.com"), ("one/a", "host.one.spark")]
    {
        let said = lookup(spark, name);
        assert!(!said.contains("192.0.2.77") && !said.contains("10.128."), "{spark} {name}: {said}");
    }
    assert_eq!(host.hears("one/deny", &["example.com 80".into()]), ["-"]);
    ended.store(true, Ordering::Relaxed);
}

/// The process that answers: it is in the router's namespace.
fn answering(host: &Host) -> i32 {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let router = of(&host.router()).unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| of(&proc(*pid).join("ns/net")) == Some(router)).expect("a process answers")
}

#[test]
fn a_killed_resolver_is_started_by_the_next_command_and_names_fail_until_then() {
    let host = Host::new();
    host.talker("one/a", &[]);
    host.talker("one/b", &[]);
    let names = sparks::net::Nets::of(&host.machine.place().run).names();
    assert!(names.runs());
    let pid = answering(&host);
    // A command that is there before and after.
    let script = "ask() { nc -w 10 b 80 </dev/null 2>/dev/null || echo -; }; ask; read line; ask";
    let mut command = host.command(&["exec", "-i", "one/a", "--", "sh", "-c", script]);
    let piped = std::process::Stdio::piped;
    let mut running = command.stdin(piped()).stdout(piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(running.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "one/b");
    host.ok("kill", &["-9", &pid.to_string()]);
    assert!(wait_for(|| !names.runs()));
    running.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "-");
    running.wait().unwrap();
    assert!(!names.runs(), "nothing but a command starts it");
    assert_eq!(host.hears("one/a", &["b 80".into()]), ["one/b"]);
    assert_ne!(answering(&host), pid);
    // It ends with the router, and so with the last spark.
    let pid = answering(&host);
    host.spark(&["stop", "one/a", "one/b"]).ok();
    assert!(wait_for(|| !is_running(pid)));
}

#[test]
fn a_hosts_file_is_the_sparks_own_and_a_broken_one_harms_nobody_else() {
    let host = Host::new();
    host.talker("a", &["--add-host", "db.lan:192.0.2.7", "--add-host", "db6.lan:2001:db8::7"]);
    host.talker("b", &[]);
    let (v4, v6) = host.addresses("a");
    let file = hosts_of(&host, "a");
    for line in [
        "127.0.0.1\tlocalhost".to_owned(),
        format!("{v4}\ta a.default.spark"),
        format!("{v6}\ta a.default.spark"),
        "192.0.2.7\tdb.lan".into(),
        "2001:db8::7\tdb6.lan".into(),
    ] {
        assert!(file.lines().any(|found| found == line), "{line}: {file}");
    }
    assert!(!file.contains("\tb"), "neighbours are not in it: {file}");
    let differs = |spark: &str| host.spark(&["diff", spark]).ok().contains("/etc/hosts");
    assert!(!differs("b"), "it is no change of the spark's");
    sh(&host, "a", "echo '192.0.2.9 mine' >> /etc/hosts");
    let with = hosts_of(&host, "a");
    assert!(differs("a"));
    // Others come, go and get names; it starts anew.
    host.spark(&["create", "c"]).ok();
    host.spark(&["stop", "b"]).ok();
    host.spark(&["rename", "b", "e"]).ok();
    assert_eq!(hosts_of(&host, "a"), with);
    host.spark(&["stop", "a"]).ok();
    host.spark(&["set", "a", "--add-host", "db.lan:192.0.2.8", "--remove-host", "db6.lan"]).ok();
    host.spark(&["resume", "a"]).ok();
    let changed = with.replace("192.0.2.7", "192.0.2.8").replace("2001:db8::7\tdb6.lan\n", "");
    assert_eq!(hosts_of(&host, "a"), changed);
    host.spark(&["rename", "a", "z"]).ok();
    assert_eq!(hosts_of(&host, "z"), changed.replace("\ta a.default.spark", "\tz z.default.spark"));
    host.talker("n", &[]);
    for broken in [
        "rm /etc/hosts; mkdir /etc/hosts",
        "rm -rf /etc/hosts; ln -s hosts /etc/hosts",
        "rm /etc/hosts; mkfifo /etc/hosts",
        "rm /etc/hosts; truncate -s 9M /etc/hosts",
        "rm /etc/hosts; ln -s /proc/self/environ /etc/hosts",
        "rm -rf /etc/hosts; head -c 300000 /dev/urandom > /etc/hosts",
    ] {
        sh(&host, "z", broken);
        host.spark(&["create", "new"]).ok();
        host.spark(&["stop", "c", "z"]).ok();
        host.spark(&["resume", "c", "z"]).ok();
        // Itself, it may have no names: programs wait for a fifo.
        assert_eq!(host.hears("c", &["n 80".into()]), ["n"], "{broken}");
        host.spark(&["delete", "-f", "--now", "new"]).ok();
    }
    // A copy has a section of its own, and a base has none.
    sh(&host, "c", "echo '192.0.2.9 mine' >> /etc/hosts");
    host.spark(&["fork", "c", "copy"]).ok();
    let copied = hosts_of(&host, "copy");
    assert!(copied.contains("\tcopy copy.default.spark") && copied.ends_with("192.0.2.9 mine\n"), "{copied}");
    assert!(!copied.contains("\tc "), "{copied}");
    host.spark(&["stop", "c"]).ok();
    host.spark(&["base", "save", "c", "saved"]).ok();
    let saved = std::fs::read_to_string(host.machine.pool().join("bases/saved/root/etc/hosts")).unwrap();
    assert!(
        saved.ends_with("192.0.2.9 mine\n") && !saved.contains("Sparks") && !saved.contains("spark"),
        "{saved}"
    );
    host.spark(&["create", "without", "--network", "none", "--hostname", "box"]).ok();
    assert!(hosts_of(&host, "without").contains("127.0.1.1\tbox\n"));
}

#[test]
fn names_that_mean_the_machine_and_entries_that_hide_a_neighbour_are_refused() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none"]).ok();
    for name in ["localhost", "localhost4", "ip6-localhost", "broadcasthost", "host"] {
        for args in [
            &["create", name][..],
            &["fork", "web", name],
            &["rename", "web", name],
            &["create", name, "--dry-run"],
        ] {
            let said = machine.spark(&[&["--json"], args].concat()).fails_with("invalid_name");
            assert!(said.contains("it means the machine itself"), "{args:?}: {said}");
        }
    }
    // One that has such a name from before keeps working.
    let sparks = machine.pool().join("projects/default/sparks");
    machine.spark(&["stop", "web"]).ok();
    std::fs::rename(sparks.join("web"), sparks.join("host")).unwrap();
    machine.spark(&["exec", "host", "--", "true"]).ok();
    machine.spark(&["rename", "host", "web"]).ok();
    for (entry, why) in [
        ("web:192.0.2.1", "a spark of the project has this name"),
        ("new:192.0.2.1", "a spark of the project has this name"),
        ("x.one.spark:192.0.2.1", "names that end with `spark`"),
        ("localhost:192.0.2.1", "the machine that they run on"),
        ("db", "write NAME:ADDRESS"),
    ] {
        let said = machine.spark(&["--json", "create", "new", "--add-host", entry]).fails_with("usage");
        assert!(said.contains(why), "{entry}: {said}");
        if entry != "new:192.0.2.1" {
            machine.spark(&["--json", "set", "web", "--add-host", entry]).fails_with("usage");
        }
    }
    assert!(!sparks.join("new").exists());
}

/// Puts a program of this machine into a root, with the libraries that it loads, at the places where it looks for them.
fn bring(root: &Path, program: &str) {
    let listed = crate::common::Output::of("ldd", std::process::Command::new("ldd").arg(program)).ok();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let to = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&to);
        std::fs::copy(file, to).unwrap();
    }
}

/// The GNU C library asks in its own way: for addresses of both kinds at once, and in the order of `nsswitch.conf`.
#[test]
fn programs_of_the_gnu_c_library_find_neighbours_and_what_the_host_asks_for_by_ipv6() {
    let host = Host::new();
    let ended = std::sync::Arc::new(AtomicBool::new(false));
    let asked = serve(&host.netns("i"), &format!("[{BEYOND6}]:53"), knows_all, &ended);
    host.use_resolv_conf(&format!("nameserver {BEYOND6}\n"));
    host.spark(&["create", "one/b"]).ok();
    host.spark(&["create", "one/a", "--no-start"]).ok();
    let root = host.machine.pool().join("projects/one/sparks/a/root");
    bring(&root, "/usr/bin/getent");
    std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n").unwrap();
    host.spark(&["resume", "one/a"]).ok();
    let (v4, v6) = host.addresses("one/b");
    let found = |kind: &str, name: &str| -> Vec<String> {
        let said = host.spark(&["exec", "one/a", "--", "/usr/bin/getent", kind, name]).ok();
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    for name in ["b", "b.one.spark"] {
        let both = found("ahosts", name);
        assert!(both.contains(&v4) && both.contains(&v6), "{name}: {both:?}");
    }
    let named = host.spark(&["exec", "one/a", "--", "/usr/bin/getent", "hosts", &v4]).ok();
    assert!(named.contains("b.one.spark"), "{named}");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody beyond learns the names of sparks");
    assert!(found("ahostsv4", "example.com").contains(&MEANT.to_string()));
    assert!(asked.load(Ordering::Relaxed) > 0);
    ended.store(true, Ordering::Relaxed);
}
