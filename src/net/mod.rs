//! Networks of projects: a bridge per project, a pair of Ethernet devices per spark, tables of the packet filter that keep
//! projects apart, names, and published ports.
//!
//! A spark that has a network is a member: a file below `SPARK_RUN`, written before anything is made for it and removed after
//! all of it is gone, so that whatever a crash leaves, somebody knows what it was. Devices and the filter are made from
//! members, and can be made anew from them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::domain::name::Name;
use crate::domain::port::Published;
use crate::domain::spark::Id;
use crate::domain::subnet::{Cidr, Subnet};
use crate::error::{Error, Result};
use crate::{fault, sys};

mod address;
mod chains;
mod host;
mod hosts;
mod link;
mod nft;
mod ports;
pub mod resolv;
mod sysctl;

/// What the names of all bridges begin with, whoever's they are: the rules of one installation keep away from those of another.
const PREFIX: &str = "spk-";

/// A spark that has a network.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    pub id: Id,
    pub project: Name,
    pub name: Name,
    /// Its host name inside.
    pub hostname: Option<String>,
    pub bridge: String,
    pub subnet: Subnet,
    /// Its number in the subnet.
    pub number: u16,
    pub ports: Vec<Published>,
    /// What it may reach beyond its project; everything if none.
    pub egress: Option<Vec<(Cidr, Option<u16>)>>,
    /// Names that its rules allow, and what they meant when it started.
    pub names: Vec<(String, IpAddr)>,
    pub allow_host: bool,
    /// Whether the host has a way to everywhere by IPv6.
    pub has_route6: bool,
    /// Largest packet, in bytes: what every way out of the host takes.
    pub mtu: u32,
}

impl Member {
    pub fn v4(&self) -> Ipv4Addr {
        self.subnet.v4(self.number)
    }

    pub fn v6(&self) -> Ipv6Addr {
        self.subnet.v6(self.number)
    }

    fn port(&self) -> String {
        port_of(&self.id)
    }

    fn mac(&self) -> [u8; 6] {
        mac_of(self.id.as_str().as_bytes())
    }

    fn mac_text(&self) -> String {
        self.mac().map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The host's end of a spark's pair of devices: 60 random bits of its id, in 15 characters.
fn port_of(id: &Id) -> String {
    format!("spv{}", id.as_str()[14..].to_ascii_lowercase())
}

fn hash(of: &[u8]) -> [u8; 32] {
    Sha256::digest(of).into()
}

/// An address of Ethernet that is nobody else's: locally administered, of one device.
fn mac_of(name: &[u8]) -> [u8; 6] {
    let hash = hash(name);
    [0x06, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

fn read_member(path: &Path) -> Option<Member> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The networks of one installation.
#[derive(Debug, Clone)]
pub struct Nets {
    run: PathBuf,
    dir: PathBuf,
    table: String,
}

impl Nets {
    /// Those of the installation whose volatile state is in `run`.
    pub fn of(run: &Path) -> Nets {
        let name: String =
            hash(run.as_os_str().as_encoded_bytes())[..5].iter().map(|b| format!("{b:02x}")).collect();
        Nets { run: run.to_owned(), dir: run.join("net"), table: format!("spark-{name}") }
    }

    /// The name of a project's bridge.
    pub fn bridge(&self, project: &Name) -> String {
        let mut seed = self.run.as_os_str().as_encoded_bytes().to_owned();
        seed.push(0);
        seed.extend(project.as_str().bytes());
        let hex: String = hash(&seed)[..5].iter().map(|b| format!("{b:02x}")).collect();
        format!("{PREFIX}{hex}")
    }

    fn member_path(&self, id: &Id) -> PathBuf {
        self.dir_of_members().join(id.as_str())
    }

    /// Where members are written.
    pub fn dir_of_members(&self) -> PathBuf {
        self.dir.join("members")
    }

    /// Removes what a killed command was writing about the host, whoever's it was, and claims on ports whose spark is gone.
    pub fn sweep(&self) -> Result<()> {
        // Taking it sweeps.
        let _host = host::lock()?;
        ports::sweep();
        Ok(())
    }

    /// A spark that has a network.
    pub fn member(&self, id: &Id) -> Option<Member> {
        read_member(&self.member_path(id))
    }

    /// All of them, by project and name.
    pub fn members(&self) -> Vec<Member> {
        let entries = std::fs::read_dir(self.dir_of_members()).into_iter().flatten().flatten();
        let mut all: Vec<Member> = entries.filter_map(|e| read_member(&e.path())).collect();
        all.sort_by(|a, b| (&a.project, &a.name).cmp(&(&b.project, &b.name)));
        all
    }

    /// Those whose device is gone: they ended by themselves, or are about to begin.
    pub fn without_device(&self) -> Vec<Id> {
        let entries = std::fs::read_dir(self.dir_of_members()).into_iter().flatten().flatten();
        let mut ids: Vec<Id> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        if ids.is_empty() {
            return ids;
        }
        // Every command looks here: one question, however many there are.
        match sys::net::names() {
            Ok(devices) => ids.retain(|id| !devices.contains(&port_of(id))),
            Err(e) => {
                tracing::warn!("cannot list network devices: {e}");
                ids.clear();
            }
        }
        ids
    }

    fn lock(&self) -> Result<OwnedFd> {
        let members = self.dir_of_members();
        sys::file::make_dirs(&self.run, 0o711).map_err(Error::io("create", &self.run))?;
        sys::file::make_dirs(&members, 0o700).map_err(Error::io("create", &members))?;
        sys::flock::lock_dir(&self.dir, sys::flock::Mode::Exclusive).map_err(Error::io("lock", &self.dir))
    }

    fn save(&self, member: &Member) -> Result<()> {
        let path = self.member_path(&member.id);
        let text = serde_json::to_vec(member).map_err(|e| Error::corrupt(&path, e))?;
        sys::file::replace_volatile(&path, &text).map_err(Error::io("write", path))
    }

    /// Refuses ports of the host that somebody has, but the spark with this id.
    pub fn refuse_taken(&self, ports: &[Published], id: &Id) -> Result<()> {
        if ports.is_empty() { Ok(()) } else { ports::refuse_taken(ports, &self.member_path(id)) }
    }

    /// The ports of the host that sparks have, whatever installation they are of.
    pub fn claimed() -> Vec<Published> {
        ports::claims().into_iter().map(|(port, _)| port).collect()
    }

    /// Makes room for a spark: its project's bridge, its ports. `had` is the subnet that the project had, and `used` are those
    /// of other projects. Nothing of the spark runs yet.
    pub fn reserve(
        &self,
        mut member: Member,
        had: Option<Subnet>,
        used: impl FnOnce() -> Vec<Subnet>,
    ) -> Result<Member> {
        let _lock = self.lock()?;
        let made = link::exists(&member.bridge);
        let of_project = |m: &Member| m.project == member.project && m.id != member.id;
        let others: Vec<Member> = self.members().into_iter().filter(of_project).collect();
        if others.len() >= link::PORTS {
            return Err(Error::Network {
                what: format!(
                    "the network of project `{}` is full: {} sparks are in it",
                    member.project,
                    others.len()
                ),
                hint: Some("stop some, or start it in another project or with `--network none`".into()),
            });
        }
        match others.first().map(|m| m.subnet).filter(|_| made) {
            Some(subnet) => member.subnet = subnet,
            None => {
                let _host = host::lock()?;
                // What a crash left, with nobody in it.
                link::remove(&member.bridge)?;
                member.subnet = host::choose(had, member.bridge.as_bytes(), &used())?;
                self.save(&member)?;
                fault::point("net-join.reserved")?;
                link::make_bridge(&member.bridge, &member.subnet)?;
                fault::point("net-join.bridge-made")?;
            }
        }
        member.has_route6 = host::has_route6();
        member.mtu = host::mtu();
        if member.ports.is_empty() {
            self.save(&member)?;
            return Ok(member);
        }
        let _host = host::lock()?;
        ports::refuse_taken(&member.ports, &self.member_path(&member.id))?;
        // Before the claims: without it they count for nothing.
        self.save(&member)?;
        ports::claim(&member.ports, &self.member_path(&member.id))?;
        Ok(member)
    }

    /// Puts a spark into the packet filter and into the names of its project. Has to be done before it runs.
    pub fn join(&self, member: &Member) -> Result<()> {
        let _lock = self.lock()?;
        let members = self.members();
        let forwards = host::forwards_for(&member.bridge);
        // Looking takes as long as the kernel waits, and where the host does not forward yet, it is done then.
        let cut = std::thread::scope(|scope| {
            let cut = scope.spawn(|| if forwards { host::is_cut() } else { Ok(true) });
            let mut refuses = true;
            // The first makes the tables, and so does who finds that somebody has flushed them.
            if members.len() < 2 || nft::run(&nft::put_in(&self.table, member)).is_err() {
                refuses = nft::rebuild(&self.table, &members)?;
            }
            if !link::sinks(&member.bridge) {
                link::open_sink(&member.bridge, refuses)?;
            }
            cut.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        fault::point("net-join.filtered")?;
        if cut {
            let _host = host::lock()?;
            host::acquire(&member.bridge)?;
        }
        fault::point("net-join.forwarded")?;
        self.tell(&member.project, members)?;
        fault::point("net-join.told")
    }

    /// Tells every spark of a project who is in it. The caller holds the lock.
    fn tell(&self, project: &Name, mut members: Vec<Member>) -> Result<()> {
        members.retain(|m| m.project == *project);
        let names = hosts::Names::of(&members);
        for (n, member) in members.iter().enumerate() {
            let path = self.run.join("bundles").join(member.id.as_str()).join("etc/hosts");
            hosts::rewrite(&path, &names.for_member(n, member))?;
        }
        Ok(())
    }

    /// In a helper that starts the spark: makes its devices.
    pub fn plug(&self, member: &Member, pid: i32) -> Result<()> {
        link::plug(member, pid)?;
        fault::point("net-join.plugged")
    }

    /// The same, within the spark's namespace.
    pub fn set_up_inside(&self, member: &Member) -> Result<()> {
        link::set_up_inside(member)
    }

    /// Takes a spark out of everything, and its project with the last one. One that is in nothing is as well.
    pub fn leave(&self, id: &Id) -> Result<()> {
        let path = self.member_path(id);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let others: Vec<Member> = self.members().into_iter().filter(|m| m.id != *id).collect();
        if let Some(member) = self.member(id) {
            let last = others.iter().all(|m| m.project != member.project);
            // The kernel waits for all its processors in each of them, and can do so for both at once.
            std::thread::scope(|scope| {
                let filter = scope.spawn(|| self.unfilter(&member, &others, last));
                link::remove(&member.port())?;
                fault::point("net-leave.unplugged")?;
                if last {
                    link::remove(&member.bridge)?;
                    fault::point("net-leave.bridge-removed")?;
                }
                filter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
            if last || !member.ports.is_empty() {
                let _host = host::lock()?;
                ports::claim(&[], &path)?;
                if last {
                    host::release(&member.bridge)?;
                }
            }
        }
        fault::point("net-leave.left")?;
        let project = self.member(id).map(|m| m.project);
        sys::file::remove(&path).map_err(Error::io("remove", path))?;
        project.map_or(Ok(()), |project| self.tell(&project, others))
    }

    /// Takes a spark out of the packet filter.
    fn unfilter(&self, member: &Member, others: &[Member], last: bool) -> Result<()> {
        if others.is_empty() {
            nft::run(&nft::remove(&self.table))?;
        } else if nft::run(&nft::take_out(&self.table, member, last)).is_err() {
            // Some of it is out already.
            nft::rebuild(&self.table, others)?;
        }
        fault::point("net-leave.unfiltered")
    }

    /// Gives a spark another name in its project.
    pub fn rename(&self, id: &Id, name: &Name) -> Result<()> {
        if !self.member_path(id).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let Some(mut member) = self.member(id) else { return Ok(()) };
        member.name = name.clone();
        self.save(&member)?;
        self.tell(&member.project, self.members())
    }

    /// Gives a running spark other ports. False if it has no network now.
    pub fn publish(&self, id: &Id, ports: &[Published]) -> Result<bool> {
        if !self.member_path(id).exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let Some(old) = self.member(id) else { return Ok(false) };
        let new = Member { ports: ports.to_vec(), ..old.clone() };
        let _host = host::lock()?;
        let path = self.member_path(id);
        ports::refuse_taken(&new.ports, &path)?;
        ports::claim(&new.ports, &path)?;
        self.save(&new)?;
        fault::point("port.claimed")?;
        if nft::run(&nft::change(&self.table, &old, &new)).is_err() {
            nft::rebuild(&self.table, &self.members())?;
        }
        Ok(true)
    }

    /// Whether the packet filter lacks our tables though somebody needs them; with `fix`, not afterwards.
    pub fn lacks_filter(&self, fix: bool) -> Result<bool> {
        if self.members().is_empty() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let members = self.members();
        let lacks = !members.is_empty() && !nft::there(&self.table);
        if lacks && fix {
            nft::rebuild(&self.table, &members)?;
        }
        Ok(lacks)
    }

    /// Whether a chain of somebody else, made or flushed since, drops what sparks send; with `fix`, not afterwards.
    pub fn is_cut(&self, fix: bool) -> Result<bool> {
        let Some(member) = self.members().into_iter().next() else { return Ok(false) };
        let _lock = self.lock()?;
        let cut = self.member(&member.id).is_some() && host::is_cut()?;
        if cut && fix {
            let _host = host::lock()?;
            host::acquire(&member.bridge)?;
        }
        Ok(cut)
    }

    /// Takes everybody out, whatever runs still: for a host that this installation goes away from.
    pub fn remove_all(&self) -> Result<()> {
        self.members().iter().try_for_each(|member| self.leave(&member.id))
    }
}
