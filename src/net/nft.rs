//! Our tables of the kernel's packet filter: text for `nft -f`, whose every word is a checked name, address or number.
//!
//! The chains are those of `table.nft` and never change; sparks are elements of sets and maps. One transaction puts a
//! spark in, and one takes it out.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::Member;
use crate::domain::port::Published;
use crate::domain::subnet::Cidr;
use crate::error::{Error, Result};

const CHAINS: &str = include_str!("table.nft");

/// Runs a script as one transaction.
///
/// # Errors
/// `host` without `nft`; `network` with its words.
pub(super) fn run(script: &str) -> Result<()> {
    call(&["-f", "-"], script).map(drop)
}

/// Runs `nft` and returns what it prints.
pub(super) fn call(args: &[&str], input: &str) -> Result<String> {
    let failed = |source| Error::Sys { action: "run nft", source };
    let mut child = Command::new("nft")
        .args(args)
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::Host {
                what: "project networks need the program `nft`".into(),
                hint: "`apt-get install nftables`, or give the spark `--network none`".into(),
                source: None,
            },
            _ => failed(e),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end before it has read all: then its own words say why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::Network {
        what: format!("the packet filter refused: {}", words.lines().next().unwrap_or_default()),
        hint: Some("see what this host lacks with `spark doctor`".into()),
    })
}

/// Whether both tables are there.
pub(super) fn there(table: &str) -> bool {
    ["inet", "bridge"].iter().all(|family| call(&["-t", "list", "table", family, table], "").is_ok())
}

/// All tables anew, in one transaction, with these members. Returns whether the kernel refuses what comes to sinks.
///
/// # Errors
/// As of [`run`].
pub(super) fn rebuild(table: &str, members: &[Member]) -> Result<bool> {
    let mut script = remove(table);
    script.push_str(&CHAINS.replace("TABLE", table));
    let mut seen = Vec::new();
    let mut sinks = String::new();
    for member in members {
        if !seen.contains(&&member.bridge) {
            seen.push(&member.bridge);
            script.push_str(&script_of("add", table, &of_project(member)));
            sinks.push_str(&sink(table, &member.bridge));
        }
        script.push_str(&script_of("add", table, &of_member(member)));
    }
    // Some kernel, such as Debian 12's, cannot refuse there: then it takes a second until somebody notices.
    match run(&(script.clone() + &sinks)) {
        Ok(()) => Ok(true),
        Err(_) => run(&script).map(|()| false),
    }
}

/// Refuses what comes to the sink of a bridge.
fn sink(table: &str, bridge: &str) -> String {
    let [_, end] = super::link::sink_of(bridge);
    if !super::link::exists(&end) {
        return String::new();
    }
    let chain = format!("chain netdev {table} {bridge}");
    let rule = format!("add rule netdev {table} {bridge} meta l4proto");
    format!(
        "add table netdev {table}\n\
         add {chain} {{ type filter hook ingress device \"{end}\" priority 0; policy drop; }}\n\
         flush {chain}\n\
         {rule} tcp reject with tcp reset\n\
         {rule} {{ udp, sctp }} reject with icmpx port-unreachable\n"
    )
}

/// No tables, whether they were there or not.
pub(super) fn remove(table: &str) -> String {
    ["inet", "bridge", "netdev"]
        .map(|f| format!("add table {f} {table}\ndelete table {f} {table}\n"))
        .concat()
}

/// A member in, with its project.
pub(super) fn put_in(table: &str, member: &Member) -> String {
    let mut script =
        script_of("add", table, &of_project(member)) + &script_of("add", table, &of_member(member));
    if !super::link::sinks(&member.bridge) {
        script.push_str(&sink(table, &member.bridge));
    }
    script
}

/// A member out; the last of its project, with that.
pub(super) fn take_out(table: &str, member: &Member, last: bool) -> String {
    let mut script = script_of("delete", table, &of_member(member));
    if last {
        script.push_str(&script_of("delete", table, &of_project(member)));
        // It may have gone with its device.
        let chain = format!("chain netdev {table} {}\n", member.bridge);
        script.push_str(&format!("add table netdev {table}\nadd {chain}delete {chain}"));
    }
    script
}

/// From one member to the same with other ports.
pub(super) fn change(table: &str, old: &Member, new: &Member) -> String {
    let mut script = String::new();
    for (verb, from, other) in [("delete", old, new), ("add", new, old)] {
        let ports: Vec<Element> =
            from.ports.iter().filter(|p| !other.ports.contains(p)).flat_map(|p| published(from, p)).collect();
        script.push_str(&script_of(verb, table, &ports));
    }
    script
}

/// An element: the table's family, the set, and its text.
type Element = (&'static str, &'static str, String);

fn script_of(verb: &str, table: &str, elements: &[Element]) -> String {
    let mut script = String::new();
    for (family, set, text) in elements {
        let _ = writeln!(script, "{verb} element {family} {table} {set} {{ {text} }}");
    }
    script
}

fn of_project(member: &Member) -> Vec<Element> {
    let bridge = &member.bridge;
    vec![
        ("inet", "bridges", format!("\"{bridge}\"")),
        ("inet", "same", format!("\"{bridge}\" . \"{bridge}\" : accept")),
        ("inet", "nets4", member.subnet.net4().to_string()),
        ("inet", "nets6", member.subnet.net6().to_string()),
    ]
}

fn of_member(member: &Member) -> Vec<Element> {
    let (v4, v6) = (member.v4(), member.v6());
    let (port, mac) = (member.port(), member.mac_text());
    let mut all: Vec<Element> = vec![
        ("bridge", "ports", format!("\"{port}\"")),
        ("bridge", "from4", format!("\"{port}\" . {mac} . {v4}")),
        ("bridge", "from6", format!("\"{port}\" . {mac} . {v6}")),
    ];
    if member.allow_host {
        all.push(("inet", "host4", v4.to_string()));
        all.push(("inet", "host6", v6.to_string()));
    }
    if let Some(allowed) = &member.egress {
        all.push(("inet", "deny4", v4.to_string()));
        all.push(("inet", "deny6", v6.to_string()));
        for (net, port) in reduced(allowed) {
            let (with, without, from): (_, _, IpAddr) = match net.address {
                IpAddr::V4(_) => ("allowport4", "allow4", v4.into()),
                IpAddr::V6(_) => ("allowport6", "allow6", v6.into()),
            };
            all.push(match port {
                None => ("inet", without, format!("{from} . {net}")),
                Some(port) => ("inet", with, format!("{from} . {net} . {port}")),
            });
        }
    }
    all.extend(member.ports.iter().flat_map(|port| published(member, port)));
    all
}

/// The kernel takes no network within another in one set.
fn reduced(allowed: &[(Cidr, Option<u16>)]) -> Vec<(Cidr, Option<u16>)> {
    let mut kept: Vec<(Cidr, Option<u16>)> = Vec::new();
    let mut sorted = allowed.to_vec();
    sorted.sort_by_key(|(net, _)| net.prefix);
    for (net, port) in sorted {
        if !kept.iter().any(|(wider, other)| *other == port && wider.covers(&net)) {
            kept.push((net, port));
        }
    }
    kept
}

fn published(member: &Member, port: &Published) -> Vec<Element> {
    let (protocol, host, inside) = (port.protocol, port.host, port.spark);
    let to4 = format!("{} . {inside}", member.v4());
    let to6 = format!("{} . {inside}", member.v6());
    let any4 = ("inet", "any4", format!("{protocol} . {host} : {to4}"));
    let any6 = ("inet", "any6", format!("{protocol} . {host} : {to6}"));
    match port.ip {
        None => vec![any4, any6],
        Some(ip) if ip.is_unspecified() && ip.is_ipv4() => vec![any4],
        Some(ip) if ip.is_unspecified() => vec![any6],
        Some(ip) if ip.is_ipv4() => vec![("inet", "at4", format!("{ip} . {protocol} . {host} : {to4}"))],
        Some(ip) => vec![("inet", "at6", format!("{ip} . {protocol} . {host} : {to6}"))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_networks_within_another_one_is_kept() {
        let allowed = |t: &str, port| (t.parse::<Cidr>().unwrap(), port);
        let kept = reduced(&[
            allowed("10.1.0.0/16", None),
            allowed("10.0.0.0/8", None),
            allowed("10.1.0.0/16", Some(80)),
            allowed("10.0.0.0/8", None),
        ]);
        assert_eq!(kept, [allowed("10.0.0.0/8", None), allowed("10.1.0.0/16", Some(80))]);
    }
}
