//! A Connect server with TLS: certificates by an authority of the test's own, served by socat and so by OpenSSL.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::common::vault::{Connect, TOKEN};
use crate::common::{Killed, Machine, wait_for};
use crate::sources::{CHECK, check};

const NEW_KEY: [&str; 6] = ["-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// A certificate authority in a directory.
struct Authority {
    dir: PathBuf,
}

impl Authority {
    fn new(dir: PathBuf, name: &str) -> Authority {
        std::fs::create_dir(&dir).unwrap();
        let (authority, subject) = (Authority { dir }, format!("/CN={name}"));
        let to = ["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", &subject, "-days", "2"];
        authority.openssl("req", &[&NEW_KEY[..], &to].concat());
        authority
    }

    /// The file to trust.
    fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for a name, as in `IP:127.0.0.1`, and its key, in one file. Valid for so many days from now.
    fn certificate(&self, name: &str, days: &str) -> PathBuf {
        let alternative = format!("subjectAltName={name}");
        self.openssl(
            "req",
            &[
                &NEW_KEY[..],
                &["-keyout", "server.key", "-out", "request", "-subj", "/CN=server", "-addext", &alternative],
            ]
            .concat(),
        );
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-days", days];
        self.openssl(
            "x509",
            &[&["-req", "-in", "request", "-copy_extensions", "copy", "-out", "server.pem"][..], &by]
                .concat(),
        );
        let both: Vec<u8> = ["server.pem", "server.key"]
            .iter()
            .flat_map(|f| std::fs::read(self.dir.join(f)).unwrap())
            .collect();
        let file = self.dir.join("both.pem");
        std::fs::write(&file, both).unwrap();
        file
    }

    fn openssl(&self, verb: &str, args: &[&str]) {
        let mut command = Command::new("openssl");
        let output =
            command.arg(verb).args(args).current_dir(&self.dir).output().expect("this test needs openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Whether a certificate in a file that is valid for no day has expired: its last second is the one in which it was made.
fn has_expired(file: &Path) -> bool {
    let made = std::fs::metadata(file).unwrap().modified().unwrap();
    made.elapsed().is_ok_and(|age| age >= Duration::from_secs(1))
}

/// TLS before a server that has none.
struct Tls {
    _child: Killed,
    address: String,
}

impl Tls {
    fn before(server: &Connect, certificate: &Path) -> Tls {
        let listen = format!("OPENSSL-LISTEN:0,bind=127.0.0.1,fork,verify=0,cert={}", certificate.display());
        let to = server.address.replace("http://", "TCP:");
        let mut command = Command::new("socat");
        command.args(["-d", "-d", &listen, &to]).stderr(Stdio::piped());
        let mut child = command.spawn().expect("this test needs socat");
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or_else(|| panic!("socat: {line}"));
        // What it says later must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Tls { _child: Killed(child), address: format!("https://127.0.0.1:{port}") }
    }
}

fn server() -> Connect {
    Connect::serve(vec![("v", "i", json!({"fields": [{"id": "f", "label": "f", "value": "x"}]}))])
}

/// What `secrets check` says, for who trusts what is in a file.
fn asked(machine: &Machine, address: &str, trusted: Option<&Path>) -> Option<String> {
    let mut command = machine.command(&CHECK);
    command.env("PATH", machine.work()).env("OP_CONNECT_HOST", address).env("OP_CONNECT_TOKEN", TOKEN);
    command.env_remove("SSL_CERT_FILE").envs(trusted.map(|file| ("SSL_CERT_FILE", file)));
    check(machine, "op://v/i/f", command)
}

#[test]
fn a_certificate_counts_by_whom_it_is_for_whom_and_until_when() {
    let machine = Machine::new();
    let ours = Authority::new(machine.work().join("ca"), "ours");
    let other = Authority::new(machine.work().join("other"), "other");
    let pretender = Authority::new(machine.work().join("pretender"), "ours");
    let server = server();
    let of = |name: &str, days: &str, trusted: Option<&Path>| {
        let certificate = ours.certificate(name, days);
        assert!(days != "0" || wait_for(|| has_expired(&certificate)));
        let tls = Tls::before(&server, &certificate);
        (asked(&machine, &tls.address, trusted), server.asked().len())
    };
    let refused = |why: &str| (Some(format!(": the Connect server's certificate is refused: {why}")), 0);
    assert_eq!(of("IP:127.0.0.1", "2", Some(&ours.file())), (None, 3));
    // Not asked at all: the token has gone nowhere.
    let unknown = refused("it is by no authority that this host trusts");
    assert_eq!(of("IP:127.0.0.1", "2", None), unknown);
    assert_eq!(of("IP:127.0.0.1", "2", Some(&other.file())), unknown);
    assert_eq!(of("IP:127.0.0.1", "2", Some(&pretender.file())), unknown);
    assert_eq!(of("DNS:connect.example.org", "2", Some(&ours.file())), refused("it is for another name"));
    assert_eq!(of("IP:127.0.0.1", "0", Some(&ours.file())), refused("it has expired"));
    for nothing in [machine.work().join("none"), ours.dir.join("ca.key")] {
        let said = of("IP:127.0.0.1", "2", Some(&nothing));
        assert_eq!(said, (Some(": SSL_CERT_FILE names no file of certificates".into()), 0));
    }
}

#[test]
fn the_authorities_that_the_host_trusts_are_those_that_count() {
    let machine = Machine::new();
    let ours = Authority::new(machine.work().join("ca"), "ours");
    let server = server();
    let tls = Tls::before(&server, &ours.certificate("IP:127.0.0.1", "2"));
    let plain = machine.command(&CHECK);
    // A host with one more, as these commands see it.
    let store = "/etc/ssl/certs/ca-certificates.crt";
    let all = [std::fs::read(store).unwrap(), std::fs::read(ours.file()).unwrap()].concat();
    std::fs::write(ours.dir.join("all.pem"), all).unwrap();
    let script =
        format!("mount --bind {} {store} && PATH=/nowhere exec \"$@\"", ours.dir.join("all.pem").display());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh"]).arg(plain.get_program()).args(CHECK);
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?)))).current_dir(machine.work());
    command.env("OP_CONNECT_HOST", &tls.address).env("OP_CONNECT_TOKEN", TOKEN).env_remove("SSL_CERT_FILE");
    assert_eq!(check(&machine, "op://v/i/f", command), None);
    assert!(asked(&machine, &tls.address, None).is_some(), "it would be trusted anyway");
}

#[test]
fn a_redirection_is_not_followed_with_the_token() {
    let machine = Machine::new();
    let elsewhere = server();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let to = format!("HTTP/1.1 302 Found\r\nLocation: {}/\r\nContent-Length: 0\r\n\r\n", elsewhere.address);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
            while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let _ = stream.write_all(to.as_bytes());
        }
    });
    let said = asked(&machine, &address, None).unwrap();
    assert_eq!(
        (said.as_str(), elsewhere.asked().len()),
        (": the Connect server answered with status 302", 0)
    );
}

#[test]
fn a_token_does_not_leave_the_host_in_the_clear() {
    let machine = Machine::new();
    for address in ["http://connect.invalid:8080", "http://127.0.0.1@192.0.2.1"] {
        let said = asked(&machine, address, None).unwrap();
        assert!(said.starts_with(": OP_CONNECT_HOST is without TLS: the token"), "{said}");
    }
    assert_eq!(asked(&machine, "connect:8080", None).unwrap(), ": OP_CONNECT_HOST is no address");
    // On this host it may be, and then no proxy gets it.
    let (server, proxy) = (server(), self::server());
    let mut command = machine.command(&CHECK);
    command.env("PATH", machine.work()).env("OP_CONNECT_TOKEN", TOKEN);
    command.env("OP_CONNECT_HOST", &server.address).env_remove("NO_PROXY").env_remove("no_proxy");
    for variable in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(variable, &proxy.address);
    }
    assert_eq!(check(&machine, "op://v/i/f", command), None);
    assert_eq!((server.asked().len(), proxy.asked().len()), (3, 0));
}
