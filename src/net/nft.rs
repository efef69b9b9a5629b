//! Our tables of the kernel's packet filter: text for `nft -f`, whose every word is a checked name, address or number.
//!
//! They translate addresses and publish ports, and keep nobody apart: see `barrier`. Their chains never change. Only
//! published ports are elements of maps, each change of which is a transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use super::Member;
use super::router::Router;
use crate::domain::port::Published;
use crate::domain::subnet::Transit;
use crate::error::{Error, Result};

const HOST: &str = include_str!("host.nft");
const ROUTER: &str = include_str!("router.nft");
/// Connections to beyond that a spark may have at once, of each family: what the kernel remembers of one is a third of a KiB.
const FLOWS: u32 = 16384;

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

/// Whether the table is there.
pub(super) fn there(table: &str) -> bool {
    call(&["-t", "list", "table", "inet", table], "").is_ok()
}

/// The host's table anew, in one transaction, with the ports of these members.
///
/// # Errors
/// As of [`run`].
pub(super) fn rebuild(table: &str, router: &Router, members: &[Member]) -> Result<()> {
    let mut script = remove(table);
    script.push_str(
        &with_addresses(HOST, &router.transit).replace("TABLE", table).replace("UPLINK", &router.uplink),
    );
    script.push_str(&script_of("add", table, members.iter().flat_map(ports_of)));
    run(&script)
}

/// The table of the router's namespace.
pub(super) fn of_router(transit: &Transit) -> String {
    "add table inet spark\ndelete table inet spark\n".to_owned()
        + &with_addresses(ROUTER, transit).replace("FLOWS", &FLOWS.to_string())
}

fn with_addresses(chains: &str, transit: &Transit) -> String {
    chains
        .replace("PLAIN4", &transit.v4(2).to_string())
        .replace("TRUSTED4", &transit.v4(3).to_string())
        .replace("PLAIN6", &transit.v6(2).to_string())
        .replace("TRUSTED6", &transit.v6(3).to_string())
}

/// No table, whether it was there or not.
pub(super) fn remove(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Takes ports of a member back, and publishes others.
pub(super) fn change(table: &str, member: &Member, gone: &[Published], new: &[Published]) -> String {
    let of = |ports: &[Published]| ports.iter().flat_map(|port| published(member, port)).collect::<Vec<_>>();
    script_of("delete", table, of(gone)) + &script_of("add", table, of(new))
}

/// An element: the map, and its text.
type Element = (&'static str, String);

/// One command for each map, which is much quicker than one for each element.
fn script_of(verb: &str, table: &str, elements: impl IntoIterator<Item = Element>) -> String {
    let mut maps: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (map, text) in elements {
        maps.entry(map).or_default().push(text);
    }
    let mut script = String::new();
    for (map, texts) in maps {
        let _ = writeln!(script, "{verb} element inet {table} {map} {{ {} }}", texts.join(", "));
    }
    script
}

fn ports_of(member: &Member) -> Vec<Element> {
    member.ports.iter().flat_map(|port| published(member, port)).collect()
}

fn published(member: &Member, port: &Published) -> Vec<Element> {
    let (protocol, host, inside) = (port.protocol, port.host, port.spark);
    let to4 = format!("{} . {inside}", member.v4);
    let to6 = format!("{} . {inside}", member.v6);
    let any4 = ("any4", format!("{protocol} . {host} : {to4}"));
    let any6 = ("any6", format!("{protocol} . {host} : {to6}"));
    match port.ip {
        None => vec![any4, any6],
        Some(ip) if ip.is_unspecified() && ip.is_ipv4() => vec![any4],
        Some(ip) if ip.is_unspecified() => vec![any6],
        Some(ip) if ip.is_ipv4() => vec![("at4", format!("{ip} . {protocol} . {host} : {to4}"))],
        Some(ip) => vec![("at6", format!("{ip} . {protocol} . {host} : {to6}"))],
    }
}
