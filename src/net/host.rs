//! What all installations of a host share, in `/run/spark-nets`: whose uplinks there are, and what of the host's own settings
//! was changed for them. It is put back with the last uplink.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::chains::{self, Chain};
use super::rules::{self, Family};
use super::{PREFIX, link, nft, sysctl};
use crate::domain::subnet::{self, BLOCK, Cidr, Subnet, Transit};
use crate::error::{Error, Result};
use crate::sys;

/// The one place for the host.
const DIR: &str = "/run/spark-nets";

/// Networks that projects get, in the order of preference, as first address and bits.
const POOLS: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 128, 0, 0), 9),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// What was changed.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct State {
    /// The devices that the host forwards for. Earlier versions had a bridge for each project.
    #[serde(alias = "bridges")]
    uplinks: Vec<String>,
    /// `family/device/key` and what it was.
    settings: BTreeMap<String, String>,
    /// Families and tables and chains that our rules are in.
    chains: Vec<Chain>,
}

/// Taken for every change of what is shared.
pub(super) fn lock() -> Result<OwnedFd> {
    let dir = Path::new(DIR);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir))?;
    let lock = sys::flock::lock_dir(dir, sys::flock::Mode::Exclusive).map_err(Error::io("lock", dir))?;
    sweep()?;
    Ok(lock)
}

/// Removes what any installation's killed command was writing.
fn sweep() -> Result<()> {
    let entries =
        [Path::new(DIR), &ports()].map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    for path in entries.into_iter().flatten().map(|e| e.path()) {
        if sys::file::is_abandoned(&path) {
            sys::file::remove(&path).map_err(Error::io("remove", path))?;
        }
    }
    Ok(())
}

/// Where claims on ports are.
pub(super) fn ports() -> std::path::PathBuf {
    Path::new(DIR).join("ports")
}

fn load() -> State {
    std::fs::read(Path::new(DIR).join("state.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn save(state: &State) -> Result<()> {
    let path = Path::new(DIR).join("state.json");
    let text = serde_json::to_vec(state).map_err(|e| Error::corrupt(&path, e))?;
    sys::file::replace_volatile(&path, &text).map_err(Error::io("write", path))
}

/// Chooses what a project's subnet lacks up to a block: the first of its blocks that have routes of ours, `routed`, stay. Of
/// the others, those stay that nothing else of the host has come to have. `seed` is the project's own, and `used` are blocks of
/// other projects. The caller holds the lock until the routes are there.
pub(super) fn choose(
    subnet: &mut Subnet,
    routed: usize,
    last: usize,
    seed: &[u8],
    used: impl Fn() -> HashSet<Ipv4Addr>,
) -> Result<()> {
    let taken = taken4();
    let mut others = None;
    for index in routed..subnet.blocks.len().max(last + 1) {
        if subnet.blocks.get(index).is_some_and(|had| is_free(&subnet::block_at(*had), &taken)) {
            continue;
        }
        let others = others.get_or_insert_with(&used);
        let is_nobodys = |block: &Ipv4Addr| !others.contains(block) && !subnet.blocks.contains(block);
        let chosen = block(&[seed, &index.to_be_bytes()].concat(), &taken, is_nobodys)?;
        match subnet.blocks.get_mut(index) {
            Some(had) => *had = chosen,
            None => subnet.blocks.push(chosen),
        }
    }
    if routed == 0 {
        subnet.v6 = network6((!subnet.v6.is_unspecified()).then_some(subnet.v6), seed)?;
    }
    Ok(())
}

/// Chooses the networks of an uplink.
pub(super) fn choose_transit(seed: &[u8], used: &HashSet<Ipv4Addr>) -> Result<Transit> {
    let v4 = block(seed, &taken4(), |block| !used.contains(block))?;
    Ok(Transit { v4, v6: network6(None, seed)? })
}

fn is_free(net: &Cidr, taken: &[Cidr]) -> bool {
    !taken.iter().any(|other| other.overlaps(net))
}

/// A block that nothing of the host has, and of which `is_nobodys` says so too.
fn block(seed: &[u8], taken: &[Cidr], is_nobodys: impl Fn(&Ipv4Addr) -> bool) -> Result<Ipv4Addr> {
    let hash = super::hash(seed);
    let start = u32::from_be_bytes([hash[8], hash[9], hash[10], hash[11]]);
    let all = POOLS.iter().flat_map(|(first, bits)| {
        let count = 1 << (BLOCK - bits);
        (0..count).map(move |n| {
            Ipv4Addr::from(u32::from(*first) + ((start.wrapping_add(n) % count) << (32 - BLOCK)))
        })
    });
    let mut free = all.filter(|v4| is_nobodys(v4) && is_free(&subnet::block_at(*v4), taken));
    free.next().ok_or_else(|| no_network("every network for a project is taken by this host's routes"))
}

/// A network of IPv6 of a project: the one that it had, unless something else of the host has that now.
fn network6(had: Option<Ipv6Addr>, seed: &[u8]) -> Result<Ipv6Addr> {
    let taken = routes6();
    let others = (0u8..16).map(|n| {
        let hash = super::hash(&[seed, &[n]].concat());
        let mut bytes = [0; 16];
        bytes[0] = 0xfd;
        bytes[1..8].copy_from_slice(&hash[..7]);
        Ipv6Addr::from(bytes)
    });
    let mut free = had.into_iter().chain(others).filter(|v6| is_free(&subnet::net6(*v6), &taken));
    free.next()
        .ok_or_else(|| no_network("every network of IPv6 for a project is taken by this host's routes"))
}

fn no_network(what: &str) -> Error {
    Error::Network {
        what: what.into(),
        hint: Some(
            "look at `ip route`; a spark with `--network host` or `none` needs no network of its own".into(),
        ),
    }
}

/// What of IPv4 the host has a use for itself.
fn taken4() -> Vec<Cidr> {
    routes4().into_iter().chain(resolvers()).collect()
}

/// Where the routes of IPv6 lead, but those to everything and to most of it: a network of ours is told from others there.
fn routes6() -> Vec<Cidr> {
    ways6().into_iter().map(|(net, _)| net).filter(|net| net.prefix > 16).collect()
}

/// The routes of IPv6: where they lead, and by which device.
fn ways6() -> Vec<(Cidr, String)> {
    let text = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let parsed = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        Some((Cidr { address: IpAddr::V6(address.into()), prefix }, (*fields.get(9)?).to_owned()))
    });
    parsed.collect()
}

/// Where the routes of IPv4 lead, but the default one.
fn routes4() -> Vec<Cidr> {
    let text = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let parsed = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |n: usize| u32::from_str_radix(fields.get(n)?, 16).ok().map(u32::from_be);
        let (address, mask) = (number(1)?, number(7)?);
        Some(Cidr { address: IpAddr::V4(address.into()), prefix: mask.count_ones() as u8 })
    });
    parsed.filter(|net| net.prefix > 0).collect()
}

/// The host's resolvers must not come to lie within a project's network.
fn resolvers() -> Vec<Cidr> {
    super::names::Servers::of_host().addresses().map(Cidr::from).collect()
}

/// Devices that packets of sparks may leave by: those with a route.
fn uplinks() -> (Vec<String>, Vec<String>) {
    let all4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let all6 = ways6();
    let devices = |names: Vec<&str>| {
        let mut names: Vec<String> =
            names.into_iter().filter(|n| *n != "lo" && !n.starts_with(PREFIX)).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    };
    (
        devices(all4.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect()),
        devices(all6.iter().map(|(_, device)| device.as_str()).collect()),
    )
}

/// The devices of the host that sparks may leave by, whatever routes lead there: cards, and what is made of cards alone. Not
/// bridges, tunnels and other ends of containers and machines, unless the way to everywhere goes there.
pub(super) fn cards() -> Result<Vec<u32>> {
    link::of_kinds(&["", "vlan", "bond", "team"])
}

/// Whether the host has a way to everywhere by IPv6.
pub(super) fn has_route6() -> bool {
    ways6().iter().any(|(net, device)| net.prefix == 0 && net.address.is_unspecified() && device != "lo")
}

/// What every way out takes.
pub(super) fn mtu() -> u32 {
    let (up4, up6) = uplinks();
    let sizes = up4.iter().chain(&up6).filter_map(|device| sys::net::mtu_of(device).ok());
    // What IPv6 needs at least, and what an Ethernet takes.
    sizes.min().unwrap_or(1500).clamp(1280, 1500)
}

/// Whether the host forwards for an uplink already.
pub(super) fn forwards_for(uplink: &str) -> bool {
    load().uplinks.iter().any(|name| name == uplink)
}

/// Has the host forward for an uplink. The caller holds the lock.
pub(super) fn acquire(uplink: &str) -> Result<()> {
    let mut state = load();
    state.uplinks.retain(|name| name != uplink && link::exists(name));
    state.uplinks.push(uplink.to_owned());
    let (up4, up6) = uplinks();
    let mut wanted: Vec<(String, &str)> = up4.iter().map(|d| (format!("ipv4/{d}/forwarding"), "1")).collect();
    if has_route6() {
        if sysctl::get("ipv6", "all", "force_forwarding").is_some() {
            wanted.extend(up6.iter().map(|d| (format!("ipv6/{d}/force_forwarding"), "1")));
        } else {
            // Older kernels know only all or nothing, and a host that forwards takes no routes from others unless told.
            for device in &up6 {
                if sysctl::get("ipv6", device, "accept_ra").as_deref() == Some("1") {
                    wanted.push((format!("ipv6/{device}/accept_ra"), "2"));
                }
            }
            wanted.push(("ipv6/all/forwarding".into(), "1"));
        }
    }
    wanted.retain(|(key, value)| read(key).is_some_and(|now| now != *value));
    for (key, _) in &wanted {
        if let Some(now) = read(key) {
            state.settings.entry(key.clone()).or_insert(now);
        }
    }
    let dropping = chains::dropping()?;
    for found in &dropping {
        if !state.chains.contains(&found.chain) {
            state.chains.push(found.chain.clone());
        }
    }
    save(&state)?;
    crate::fault::point("net-join.host-recorded")?;
    guard(&state)?;
    crate::fault::point("net-join.host-guarded")?;
    for (key, value) in &wanted {
        write(key, value)?;
    }
    for found in dropping.iter().filter(|found| !found.has_ours) {
        // A table may have an owner, and then nobody else may change it, as newer versions of firewalld have it.
        if let Err(e) = nft::run(&chains::entry(found)) {
            let [family, table, chain] = &found.chain;
            tracing::warn!(
                "sparks may not reach what is beyond the host: chain `{chain}` of table `{family} {table}` drops what they send, and {e}; `spark doctor` says what to do"
            );
        }
    }
    Ok(())
}

/// Whether a chain of somebody else would drop packets of sparks: it came after them, or somebody has flushed it.
pub(super) fn is_cut() -> Result<bool> {
    Ok(chains::dropping()?.iter().any(|found| !found.has_ours))
}

/// Without an uplink; with the last one, everything is put back. The caller holds the lock.
pub(super) fn release(uplink: &str) -> Result<()> {
    let mut state = load();
    state.uplinks.retain(|name| name != uplink && link::exists(name));
    if !state.uplinks.is_empty() {
        return save(&state);
    }
    for (key, was) in &state.settings {
        // A device may be gone, and then so is its setting.
        if read(key).is_some() {
            write(key, was)?;
        }
    }
    for chain in &state.chains {
        let [family, table, name] = chain;
        for handle in chains::ours_in(chain) {
            nft::run(&format!("delete rule {family} {table} {name} handle {handle}\n"))?;
        }
    }
    rules::remove_all()?;
    let path = Path::new(DIR).join("state.json");
    sys::file::remove(&path).map_err(Error::io("remove", path))
}

fn read(key: &str) -> Option<String> {
    let mut parts = key.split('/');
    sysctl::get(parts.next()?, parts.next()?, parts.next()?)
}

fn write(key: &str, value: &str) -> Result<()> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        [family, device, key] => sysctl::set(family, device, key, value),
        _ => Ok(()),
    }
}

/// A host that did not forward does so now for sparks, and still not between its own devices. Rules of routing say so, which
/// stay when somebody flushes those of the packet filter.
fn guard(state: &State) -> Result<()> {
    for (family, of) in [(Family::V4, "ipv4/"), (Family::V6, "ipv6/")] {
        let changed = state.settings.keys().filter_map(|key| key.strip_prefix(of));
        let changed =
            changed.filter_map(|key| key.split_once('/')).filter(|(_, key)| key.ends_with("forwarding"));
        let devices: Vec<&str> = changed.map(|(device, _)| device).collect();
        rules::guard(family, &devices, &state.uplinks)?;
    }
    Ok(())
}
