//! Many sparks of one project: what one command does for one of them does not depend on how many there are.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::random::Random;
use crate::common::{Output, wait_for};
use crate::netns::Host;

/// How many system calls a command makes itself. What its helpers do has nothing to do with other sparks.
fn calls(host: &Host, args: &[&str]) -> usize {
    let command = host.command(args);
    let trace = host.machine.work().join("trace");
    let mut traced = Command::new("strace");
    traced.arg("-o").arg(&trace).arg(command.get_program()).args(command.get_args());
    traced.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Output::of(&args.join(" "), traced.stdin(Stdio::null())).ok();
    let trace = std::fs::read_to_string(trace).unwrap();
    // Of `nsenter` and a shell, it is the last that the process executes.
    let own = trace.rsplit_once("execve(").unwrap().1;
    own.lines().count()
}

#[test]
fn a_command_for_one_spark_costs_the_same_beside_five_and_beside_sixty() {
    let host = Host::new();
    host.spark(&["create", "web"]).ok();
    let verbs: [&[&str]; 6] = [
        &["info", "web"],
        &["exec", "web", "true"],
        &["create", "one"],
        &["stop", "one"],
        &["resume", "one"],
        &["delete", "-f", "--now", "one"],
    ];
    let count = || verbs.map(|args| calls(&host, args));
    let made = |count: &str, prefix: &str| host.spark(&["fork", "-n", count, "web", prefix]).ok();
    made("4", "few");
    let few = count();
    made("55", "many");
    let many = count();
    for ((args, few), many) in verbs.iter().zip(few).zip(many) {
        assert!(many * 5 <= few * 6, "{args:?}: {few} system calls beside 5, {many} beside 60");
        // It is looked whether 32 of the others have ended.
        assert!(many <= few + 40, "{args:?}: {few} system calls beside 5, {many} beside 60");
    }
}

/// The first 22 bits, which those of one block have in common.
fn block(v4: &str) -> u32 {
    u32::from(v4.parse::<std::net::Ipv4Addr>().unwrap()) >> 10
}

fn project_id(host: &Host, project: &str) -> String {
    host.spark(&["--json", "project", "info", project]).json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn blocks_of_a_project_are_one_network_and_each_gives_way_to_the_host_s_own_networks() {
    let host = Host::new();
    let before = host.state();
    host.talker("one/a", &[]);
    host.talker("two/x", &[]);
    // As with some thousand more sparks.
    let claims = host.machine.place().run.join("net/addresses").join(project_id(&host, "one"));
    std::fs::write(claims.join("blocks"), "8").unwrap();
    let a = host.addresses("one/a");
    // One of 8 would be in the block of the first by chance.
    let names: Vec<String> = (0..20).map(|n| format!("one/b{n}")).collect();
    let made = names.iter().find(|name| {
        host.spark(&["create", name]).ok();
        block(&host.addresses(name).0) != block(&a.0)
    });
    let b = made.unwrap().as_str();
    host.talk(b);
    let old = host.addresses(b);
    let at = |addresses: &(String, String)| [format!("{} 80", addresses.0), format!("{} 80", addresses.1)];
    let name = [format!("{} 80", b.trim_start_matches("one/"))];
    assert_eq!(host.hears("one/a", &at(&old)), [b, b]);
    assert_eq!(host.hears("one/a", &name), [b]);
    assert_eq!(host.hears(b, &at(&a)), ["one/a"; 2]);
    assert_eq!(host.hears("two/x", &at(&old)), ["-"; 2]);
    assert_eq!(host.heard_by("h", &at(&old)[0]), b);
    let all: Vec<&str> = names.iter().map(String::as_str).take_while(|name| *name != b).chain([b]).collect();
    host.spark(&[&["stop", "one/a", "two/x"], &all[..]].concat()).ok();
    host.is_again(&before);

    // One that the host's own network has come to overlap, and no other.
    let taken = format!("{}/26", old.0);
    host.on_host(&["ip", "route", "add", &taken.replace(&old.0, &first_of_26(&old.0)), "dev", "up0"]);
    host.spark(&["resume", "one/a", b]).ok();
    assert_eq!(host.addresses("one/a"), a);
    let new = host.addresses(b);
    assert_ne!(block(&new.0), block(&old.0));
    assert_eq!(new.1, old.1, "nothing has come to have its address of IPv6");
    host.talk(b);
    assert_eq!(host.hears("one/a", &at(&new)), [b, b]);
    assert_eq!(host.hears("one/a", &name), [b]);
}

fn first_of_26(v4: &str) -> String {
    std::net::Ipv4Addr::from(u32::from(v4.parse::<std::net::Ipv4Addr>().unwrap()) & !63).to_string()
}

#[test]
fn sparks_of_a_network_that_an_earlier_version_chose_keep_their_addresses() {
    let host = Host::new();
    host.spark(&["create", "--no-start", "one/a"]).ok();
    let project = host.machine.pool().join("projects/one");
    let old = r#"{"version":1,"v4":"10.180.16.0","v6":"fd12:3456::","egress":"all"}"#;
    std::fs::write(project.join("network.json"), old).unwrap();
    let path = project.join("sparks/a/spark.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["address"] = 3000.into();
    std::fs::write(&path, record.to_string()).unwrap();
    host.talker("one/b", &[]);
    host.spark(&["resume", "one/a"]).ok();
    assert_eq!(host.addresses("one/a"), ("10.180.27.184".into(), "fd12:3456::bb8".into()));
    assert!(host.addresses("one/b").0.starts_with("10.180."));
    assert_eq!(host.hears("one/a", &["b 80".to_owned()]), ["one/b"]);
    host.spark(&["stop", "one/a", "one/b"]).ok();
    host.spark(&["resume", "one/a"]).ok();
    assert_eq!(host.addresses("one/a").0, "10.180.27.184");
}

/// Runs a command that is killed at a random moment with a chance of one in 20, and else has to succeed. False if it was killed.
fn holds(mut command: Command, random: &mut Random) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let is_victim = random.below(20) == 0;
    if is_victim {
        std::thread::sleep(Duration::from_millis(random.below(300)));
        child.kill().unwrap();
    }
    let ended = child.wait_with_output().unwrap();
    let was_killed = is_victim && ended.status.code().is_none();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() || was_killed, "{command:?}: {said}");
    !was_killed
}

/// Starts and ends of a project's sparks, 16 at a time, of which each tenth is killed: none of the others fails.
/// `SPARKS_TEST_ROUNDS` says how many times 50.
#[test]
fn starts_and_stops_of_one_project_hold_beside_others_that_are_killed() {
    let rounds = std::env::var("SPARKS_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let pairs: usize = 50 * rounds;
    let host = Host::new();
    let before = host.state();
    let seed = Random::seeded().below(1 << 30);
    let commands = |n: usize| {
        let name = format!("s{n}");
        [host.command(&["create", &name]), host.command(&["stop", &name])]
    };
    let killed = AtomicUsize::new(0);
    let queue = Mutex::new((0..pairs).map(commands).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let (killed, queue) = (&killed, &queue);
            let mut random = Random::new(seed + worker);
            scope.spawn(move || {
                loop {
                    let Some(pair) = queue.lock().unwrap().pop() else { break };
                    if !pair.into_iter().all(|command| holds(command, &mut random)) {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    eprintln!("{} of {pairs} pairs were killed", killed.load(Ordering::Relaxed));
    host.spark(&["gc"]).ok();
    let names = host.spark(&["--json", "list", "-q"]).json();
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for some in names.chunks(100) {
        host.spark(&[&["delete", "-f", "--now"], some].concat()).ok();
    }
    host.is_again(&before);
    assert!(wait_for(|| host.machine.place().run.join("net/members").read_dir().unwrap().next().is_none()));
}
