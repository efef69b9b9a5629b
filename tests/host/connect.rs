//! Sparks that begin when somebody connects to them. What systemd does, a shell does here; the test VM has systemd.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{Machine, PATIENCE, wait_for};

/// A listening socket that starts a relay when somebody connects, again and again.
struct Activation<'a> {
    machine: &'a Machine,
    listener: TcpListener,
    args: Vec<&'a str>,
}

impl<'a> Activation<'a> {
    fn of(machine: &'a Machine, args: &[&'a str]) -> Activation<'a> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Activation { machine, listener, args: args.to_vec() }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Waits for somebody to connect, and starts the relay.
    fn activate(&self) -> Child {
        let mut fds = [rustix::event::PollFd::new(&self.listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let spark = self.machine.command(&self.args);
        let mut command = Command::new("sh");
        command.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\" 3<&0 </dev/null"]);
        command.arg(spark.get_program()).args(spark.get_args()).current_dir(self.machine.work());
        command.envs(spark.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(OwnedFd::from(self.listener.try_clone().unwrap())).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

/// Says something to whoever listens, and returns what they say.
fn ask(address: SocketAddr, what: &str) -> String {
    say(TcpStream::connect(address).unwrap(), what)
}

/// The same, where one is connected.
fn say(mut stream: TcpStream, what: &str) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(what.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

fn state(machine: &Machine, name: &str) -> String {
    machine.spark(&["info", name, "--json"]).json()["state"].as_str().unwrap().to_owned()
}

/// Answers each connection with what it says.
const SERVER: [&str; 3] = ["sh", "-c", "echo start >> /starts; exec nc -ll -p 7000 -e cat"];

#[test]
fn a_connection_resumes_a_spark_and_it_ends_when_nobody_is_connected() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none", "--idle-stop", "1s"]).ok();
    let args = [&["up-on-connect", "web", "7000", "--serve", "--idle", "1s", "--"][..], &SERVER].concat();
    let activation = Activation::of(&machine, &args);
    for round in 1..=2 {
        assert!(wait_for(|| state(&machine, "web") == "stopped"));
        let address = activation.address();
        let relay = std::thread::scope(|scope| {
            // All of them before the relay is there: the second round shows that none gets lost between two.
            let streams: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
            let clients = streams.into_iter().enumerate();
            let clients: Vec<_> =
                clients.map(|(n, stream)| scope.spawn(move || say(stream, &format!("hello {n}")))).collect();
            let relay = activation.activate();
            for (n, client) in clients.into_iter().enumerate() {
                assert_eq!(client.join().unwrap(), format!("hello {n}"));
            }
            relay
        });
        let output = relay.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(wait_for(|| state(&machine, "web") == "stopped"));
        assert_eq!(machine.spark(&["info", "web", "--json"]).json()["ended"], "idle");
        let starts = machine.spark(&["exec", "web", "cat", "/starts"]).ok();
        assert_eq!(starts.lines().count(), round, "one server a round");
    }
}

#[test]
fn an_open_connection_keeps_a_spark_and_a_relay_that_is_told_to_end_takes_its_server_along() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none", "--no-start"]).ok();
    let args = [&["up-on-connect", "web", "7000", "--serve", "--idle", "500ms", "--"][..], &SERVER].concat();
    let activation = Activation::of(&machine, &args);
    let mut client = TcpStream::connect(activation.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut relay = activation.activate();
    let mut said = [0; 5];
    for word in ["first", "later"] {
        client.write_all(word.as_bytes()).unwrap();
        client.read_exact(&mut said).unwrap();
        assert_eq!(said, word.as_bytes());
        // Longer than without a connection.
        std::thread::sleep(Duration::from_secs(1));
        assert!(relay.try_wait().unwrap().is_none());
    }
    let pid = sparks::sys::process::pidfd_open(relay.id() as i32).unwrap();
    sparks::sys::process::signal(&pid, rustix::process::Signal::TERM).unwrap();
    assert!(relay.wait().unwrap().success());
    assert_eq!(state(&machine, "web"), "running");
    // None but PID 1, `sh` and `ps` itself.
    let left = machine.spark(&["exec", "web", "--", "sh", "-c", "ps -o comm | grep -c '^nc$'; true"]).ok();
    assert_eq!(left, "0\n");
}

#[test]
fn a_server_that_cannot_start_hangs_up_and_says_why() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none", "--no-start"]).ok();
    for (command, why) in [
        (
            &["--", "sh", "-c", "exit 3"][..],
            "sh failed: it ended with status 3 before it listened at port 7000",
        ),
        (&["--", "nope"], "cannot run `nope` in spark `web`"),
        (&[], "port 7000 of spark `web` is busy: nothing listens there"),
    ] {
        let args = [&["up-on-connect", "web", "7000", "--serve", "--idle", "100ms"], command].concat();
        let activation = Activation::of(&machine, &args);
        let address = activation.address();
        let client = std::thread::spawn(move || {
            let mut client = TcpStream::connect(address).unwrap();
            let mut said = Vec::new();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            // Reset or closed, but ended.
            let error = client.read_to_end(&mut said).err().map(|e| e.kind());
            assert_ne!(error, Some(std::io::ErrorKind::WouldBlock), "nobody hangs up");
            said
        });
        let output = activation.activate().wait_with_output().unwrap();
        assert!(client.join().unwrap().is_empty());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{error}");
    }
    machine.spark(&["up-on-connect", "web", "7000", "--serve", "--json"]).fails_with("usage");
}

#[test]
fn a_spark_on_the_hosts_network_is_reached_there_and_its_own_port_is_refused() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "host", "--no-start"]).ok();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    drop(taken);
    let refused = machine.spark(&["up-on-connect", "web", &port, "--json"]).fails_with("usage");
    assert!(refused.contains("host's network"), "{refused}");
    let server = format!("127.0.0.1:{port}");
    let args =
        ["up-on-connect", "web", &port, "--serve", "--idle", "100ms", "--", "httpd", "-f", "-p", &server];
    let activation = Activation::of(&machine, &args);
    let address = activation.address();
    let client = std::thread::spawn(move || ask(address, "GET / HTTP/1.0\r\n\r\n"));
    let relay = activation.activate();
    let said = client.join().unwrap();
    assert!(said.starts_with("HTTP/1."), "{said}");
    assert!(relay.wait_with_output().unwrap().status.success());
}

#[test]
fn the_units_are_what_systemd_takes() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web", "--network", "none", "--no-start"]).ok();
    let dir = machine.work().join("units");
    std::fs::create_dir(&dir).unwrap();
    let at = dir.to_str().unwrap();
    let args =
        ["up-on-connect", "web", "8080:80", "--install", at, "--json", "--", "sh", "-c", "echo $A 100%"];
    let paths = machine.spark(&args).json();
    assert_eq!(
        paths,
        serde_json::json!([
            format!("{at}/spark-default.web.8080.socket"),
            format!("{at}/spark-default.web.8080.service")
        ])
    );
    let text = std::fs::read_to_string(paths[1].as_str().unwrap()).unwrap();
    let line =
        "-P default up-on-connect web 127.0.0.1:8080:80 --serve --idle 1m -- sh -c \"echo $$A 100%%\"\n";
    assert!(text.contains(line), "{text}");
    let root = format!("Environment=SPARK_ROOT={}\n", machine.place().root.display());
    assert!(text.contains(&root), "{text}");
    let verified =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(paths[0].as_str().unwrap()).output();
    let verified = verified.expect("these tests need systemd-analyze: `apt-get install systemd`");
    assert!(
        verified.status.success() && verified.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
}
