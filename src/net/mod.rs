//! Networks of projects: a router per installation, a pair of Ethernet devices per spark, programs of the kernel's that keep
//! projects apart, names, and published ports.
//!
//! A spark that has a network is a member: a file below `SPARK_RUN`, written before anything is made for it and removed after
//! all of it is gone, so that whatever a crash leaves, somebody knows what it was. The router is made from members, and can
//! be made anew from them.

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
mod barrier;
mod bridges;
mod chains;
mod claims;
mod closed;
mod ended;
mod flows;
mod host;
mod leftovers;
mod link;
mod listeners;
mod mending;
pub mod names;
mod nft;
mod ports;
mod projects;
mod publish;
mod router;
mod rules;
mod sysctl;

pub use chains::rules_of_firewalld;
use claims::Claims;
pub use mending::Lack;
use names::Names;
pub use ports::Settled;
pub use projects::{Place, Used};
pub use router::Router;

/// What the names of the host's ends of all uplinks begin with, whoever's they are: the rules of one installation keep away
/// from those of another.
const PREFIX: &str = "spk-";

/// Whom sparks take for their gateway. It is the router's, and nobody's beyond.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A spark that has a network.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    pub id: Id,
    /// What tells its project from all others: two may have one name.
    pub project_id: Id,
    pub project: Name,
    pub name: Name,
    /// Its host name inside.
    pub hostname: Option<String>,
    /// Its addresses. Unspecified before the networks of its project are chosen.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub ports: Vec<Published>,
    /// Those of its ports that were chosen because they were free.
    #[serde(default)]
    pub chosen: Vec<Published>,
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
    fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// The router's end of its pair of devices.
    fn device(&self) -> String {
        device_of(&self.id)
    }

    fn mac(&self) -> [u8; 6] {
        mac_of(self.id.as_str().as_bytes())
    }
}

/// 60 random bits of an id, in 15 characters.
fn device_of(id: &Id) -> String {
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
        Nets { run: run.to_owned(), dir: run.join("net"), table: format!("sparks-{name}") }
    }

    /// The name of the host's end of the uplink.
    pub fn uplink(&self) -> String {
        format!("{PREFIX}{}", self.table.trim_start_matches("sparks-"))
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
        Claims::read().sweep();
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

    /// The ids of all of them, also of those whose files are damaged.
    pub fn ids(&self) -> Vec<Id> {
        ids_in(&self.dir_of_members()).collect()
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

    /// Makes room for a spark: the router, its project, its ports. Returns the subnet that its project has. `inside` finds the
    /// network namespace of a spark that runs: sparks are connected anew where the router was lost. Nothing of the spark runs
    /// yet.
    pub fn reserve(
        &self,
        mut member: Member,
        place: &Place,
        used: Used<'_>,
        inside: impl Fn(&Id) -> Option<OwnedFd>,
    ) -> Result<(Member, Router, Subnet)> {
        let _lock = self.lock()?;
        // Before anything is made: so somebody knows whose it is. Its ports are not claimed yet.
        self.save(&Member { ports: Vec::new(), ..member.clone() })?;
        fault::point("net-join.reserved")?;
        let router = self.router_for(used, inside)?;
        let subnet = self.project_for(&member, place, used, &router)?;
        let lacks = || Error::Network { what: "its project has no address for it".into(), hint: None };
        member.v4 = subnet.v4(place.number).ok_or_else(lacks)?;
        member.v6 = subnet.v6(place.number);
        member.has_route6 = host::has_route6();
        member.mtu = host::mtu();
        if member.ports.is_empty() {
            self.save(&member)?
        } else {
            self.claim_ports(&mut member)?
        }
        Ok((member, router, subnet))
    }

    /// The router. Where it was lost, it is made anew, and the members that run are connected to it.
    fn router_for(&self, used: Used<'_>, inside: impl Fn(&Id) -> Option<OwnedFd>) -> Result<Router> {
        if let Some(router) = self.router() {
            return Ok(router);
        }
        let _host = host::lock()?;
        let router = self.make_router(&used())?;
        let members = self.members();
        self.rebuild(&router, &members)?;
        host::acquire(&router.uplink)?;
        fault::point("net-join.router-forwards")?;
        for subnet in self.projects() {
            router.add_networks(&subnet.nets_from(0))?;
        }
        for member in &members {
            // One that ended, or is about to begin, is somebody else's.
            let Some(namespace) = inside(&member.id) else { continue };
            within(&namespace, link::clear_inside)?;
            router.plug(member, &namespace)?;
            within(&namespace, || router.set_up_inside(member))?;
        }
        self.take_loopback(&router)?;
        Ok(router)
    }

    /// Publishes a spark's ports, and makes its name known. Has to be done before it runs. `program` is the program of this
    /// version, which answers questions for names: without it, names are not found.
    pub fn join(&self, member: &Member, router: &Router, program: Option<&Path>) -> Result<()> {
        let _lock = self.lock()?;
        self.mend(router)?;
        if !member.ports.is_empty() {
            self.lead(router, member, &[])?;
            self.take_loopback(router)?;
        }
        fault::point("net-join.published")?;
        self.names().enter(&router.known(member))?;
        fault::point("net-join.told")?;
        self.answer_names(router, program);
        fault::point("net-join.answered")
    }

    /// The names of sparks.
    pub fn names(&self) -> Names {
        Names::of(&self.dir)
    }

    /// Takes a spark out of everything, its project with the last one, and the router with the last of all. One that is in
    /// nothing is as well.
    pub fn leave(&self, id: &Id) -> Result<()> {
        let path = self.member_path(id);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        match self.member(id) {
            Some(member) => self.take_out(&member, &path)?,
            // Its file is damaged. What nobody else has was its own.
            None => drop(self.remove_unowned(Some(id))?),
        }
        fault::point("net-leave.left")?;
        sys::file::remove(&path).map_err(Error::io("remove", path))
    }

    fn take_out(&self, member: &Member, path: &Path) -> Result<()> {
        let last = ids_in(&self.dir_of_members()).all(|other| other == member.id);
        self.names().leave(&member.id, member.v4)?;
        self.disconnect(member, last)?;
        if last || !member.ports.is_empty() {
            let shared = host::lock()?;
            Claims::read().replace(&[], path)?;
            if last {
                host::release(&self.uplink())?;
            }
            drop(shared);
            if let Some(router) = self.router() {
                self.take_loopback(&router)?;
            }
        }
        Ok(())
    }

    /// Takes a spark's devices and rules away, and what nobody needs any more.
    fn disconnect(&self, member: &Member, last: bool) -> Result<()> {
        let left = self.leave_project(member)?;
        fault::point("net-leave.left-project")?;
        if last {
            nft::run(&nft::remove(&self.table))?;
            flows::forget(&member.ports, &member.addresses());
            fault::point("net-leave.unfiltered")?;
            self.remove_router()?;
        } else if let Some(router) = self.router() {
            router.unplug(member)?;
            if !member.ports.is_empty() {
                let without = Member { ports: Vec::new(), ..member.clone() };
                self.lead(&router, &without, &member.ports)?;
            }
            if let Some(subnet) = &left {
                router.remove_networks(subnet)?;
                fault::point("net-leave.project-removed")?;
            }
        }
        if left.is_some() { self.forget_project(&member.project_id) } else { Ok(()) }
    }

    /// Gives a spark another name in its project.
    pub fn rename(&self, id: &Id, name: &Name) -> Result<()> {
        if !self.member_path(id).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let Some(mut member) = self.member(id) else { return Ok(()) };
        self.names().rename(id, member.v4, name)?;
        member.name = name.clone();
        self.save(&member)
    }

    /// Takes everybody out, whatever runs still: for a host that this installation goes away from.
    pub fn remove_all(&self) -> Result<()> {
        self.ids().iter().try_for_each(|id| self.leave(id))
    }
}

/// The names of files that are ids of sparks.
fn ids_in(dir: &Path) -> impl Iterator<Item = Id> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn within<T>(namespace: &OwnedFd, work: impl FnOnce() -> Result<T>) -> Result<T> {
    sys::netns::within(namespace, work).map_err(Error::sys("enter the spark's network"))?
}
