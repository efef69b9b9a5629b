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
mod closed;
mod host;
mod link;
pub mod names;
mod nft;
mod ports;
mod projects;
mod router;
mod rules;
mod sysctl;

use names::Names;
pub use router::Router;

/// What the names of the host's ends of all uplinks begin with, whoever's they are: the rules of one installation keep away
/// from those of another.
const PREFIX: &str = "spk-";

/// The file of the state of the packet filter's rules when they were last looked at.
const RULES: &str = "rules";

/// Whom sparks take for their gateway. It is the router's, and nobody's beyond.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A spark that has a network.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    pub id: Id,
    pub project: Name,
    pub name: Name,
    /// Its host name inside.
    pub hostname: Option<String>,
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

    /// Those whose device is gone: they ended by themselves, or are about to begin. At most so many are looked at, some others
    /// each time: every command looks, and none is to take longer where many run.
    pub fn without_device(&self, most: usize) -> Vec<Id> {
        let mut ids: Vec<Id> = ids_in(&self.dir_of_members()).collect();
        if ids.is_empty() {
            return ids;
        }
        let Some(router) = self.router() else { return ids };
        if ids.len() > most {
            let first = std::process::id() as usize % ids.len();
            ids.rotate_left(first);
            ids.truncate(most);
        }
        let look = || {
            ids.retain(|id| !link::exists(&device_of(id)));
            Ok(ids)
        };
        router.inside(look).unwrap_or_else(|e| {
            tracing::warn!("{e}");
            Vec::new()
        })
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

    /// Makes room for a spark: the router, its project, its ports. `had` is the subnet that the project had, and `used` are those
    /// of other projects. `inside` finds the network namespace of a spark that runs: sparks are connected anew where the
    /// router was lost. Nothing of the spark runs yet.
    pub fn reserve(
        &self,
        mut member: Member,
        had: Option<Subnet>,
        used: impl Fn() -> Vec<Subnet>,
        inside: impl Fn(&Id) -> Option<OwnedFd>,
    ) -> Result<(Member, Router)> {
        let _lock = self.lock()?;
        // Before anything is made: so somebody knows whose it is.
        self.save(&member)?;
        fault::point("net-join.reserved")?;
        let router = self.router_for(&used, inside)?;
        member.subnet = self.project_for(&member, had, &used, &router)?;
        member.has_route6 = host::has_route6();
        member.mtu = host::mtu();
        if member.ports.is_empty() {
            self.save(&member)?;
            return Ok((member, router));
        }
        let _host = host::lock()?;
        ports::refuse_taken(&member.ports, &self.member_path(&member.id))?;
        // Before the claims: without it they count for nothing.
        self.save(&member)?;
        ports::claim(&member.ports, &self.member_path(&member.id))?;
        Ok((member, router))
    }

    /// The router. Where it was lost, it is made anew, and the members that run are connected to it.
    fn router_for(
        &self,
        used: impl Fn() -> Vec<Subnet>,
        inside: impl Fn(&Id) -> Option<OwnedFd>,
    ) -> Result<Router> {
        if let Some(router) = self.router() {
            return Ok(router);
        }
        let _host = host::lock()?;
        let router = self.make_router(&used())?;
        let members = self.members();
        nft::rebuild(&self.table, &router, &members)?;
        host::acquire(&router.uplink)?;
        fault::point("net-join.router-forwards")?;
        for subnet in self.projects() {
            router.add_project(&subnet)?;
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
        self.mend(router, true)?;
        if !member.ports.is_empty() {
            if nft::run(&nft::change(&self.table, member, &[], &member.ports)).is_err() {
                // A crash left some.
                nft::rebuild(&self.table, router, &self.members())?;
            }
            self.take_loopback(router)?;
        }
        fault::point("net-join.published")?;
        self.names().enter(&router.known(member))?;
        fault::point("net-join.told")?;
        self.answer_names(router, program)?;
        fault::point("net-join.answered")
    }

    /// The names of sparks.
    pub fn names(&self) -> Names {
        Names::of(&self.dir)
    }

    /// Has questions for names answered.
    fn answer_names(&self, router: &Router, program: Option<&Path>) -> Result<()> {
        match program {
            Some(program) => self.names().ensure_runs(router.namespace(), program),
            None => {
                tracing::warn!(
                    "names of sparks are not found: nothing says where the program is that answers"
                );
                Ok(())
            }
        }
    }

    /// Mends what a spark that runs needs: rules that somebody has flushed, and the process that answers questions for names, if
    /// that was killed. Does nothing if there is no router.
    pub fn look_after(&self, program: Option<&Path>) -> Result<()> {
        let seen = std::fs::read_to_string(self.dir.join(RULES)).unwrap_or_default();
        let now = sys::nft::generation().ok().map(|now| now.to_string());
        // That of the router's namespace, which nobody comes to by chance, is looked at with it.
        let has_rules = now.as_deref() == seen.split(' ').next();
        if has_rules && self.names().is_current() {
            return Ok(());
        }
        let Some(router) = self.router() else { return Ok(()) };
        if !has_rules {
            let _lock = self.lock()?;
            self.mend(&router, true)?;
        }
        self.answer_names(&router, program)
    }

    /// Packets of 127.0.0.1 go by the uplink while somebody publishes a port there, and not longer.
    fn take_loopback(&self, router: &Router) -> Result<()> {
        let is_there = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let mut own = ports::claims().into_iter().filter(|(_, file)| file.starts_with(&self.dir));
        sysctl::take_loopback(&router.uplink, own.any(|(port, _)| port.ip.is_none_or(is_there)))
    }

    /// Looks whether rules are as they were left, and says what is not, and whose that is; with `fix`, it is made anew.
    fn mend(&self, router: &Router, fix: bool) -> Result<Vec<(&'static str, &'static str)>> {
        let some = ids_in(&self.dir_of_members()).find_map(|id| self.member(&id));
        let severed = some.is_some_and(|member| router.is_severed(&member));
        if severed && fix {
            let _host = host::lock()?;
            router.reconnect(&self.projects())?;
        }
        let severed = severed.then_some(("way from the host that was taken away", "project networks"));
        let seen = self.dir.join(RULES);
        let now = generations(router);
        if now.is_some() && std::fs::read_to_string(&seen).ok() == now {
            return Ok(severed.into_iter().collect());
        }
        router.barrier.let_leave_by(&host::cards()?)?;
        let lacks = !nft::there(&self.table);
        let lacks_inside = router.inside(|| Ok(!nft::there("spark")))?;
        let cut = host::is_cut()?;
        if fix {
            if lacks {
                nft::rebuild(&self.table, router, &self.members())?;
            }
            if lacks_inside {
                router.inside(|| nft::run(&nft::of_router(&router.transit)))?;
            }
            if cut || !host::forwards_for(&router.uplink) {
                let _host = host::lock()?;
                host::acquire(&router.uplink)?;
            }
            if let Some(now) = generations(router) {
                sys::file::replace_volatile(&seen, now.as_bytes()).map_err(Error::io("write", &seen))?;
            }
        }
        let flushed =
            (lacks || lacks_inside).then_some(("packet filter that was flushed", "project networks"));
        let cut = cut.then_some(("chain of the packet filter that drops what sparks send", "somebody else"));
        Ok(severed.into_iter().chain(flushed).chain(cut).collect())
    }

    /// Takes a spark out of everything, its project with the last one, and the router with the last of all. One that is in
    /// nothing is as well.
    pub fn leave(&self, id: &Id) -> Result<()> {
        let path = self.member_path(id);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let last = ids_in(&self.dir_of_members()).all(|other| other == *id);
        let member = self.member(id);
        if let Some(member) = &member {
            self.names().leave(id, member.v4())?;
            self.disconnect(member, last)?;
            if last || !member.ports.is_empty() {
                let _host = host::lock()?;
                ports::claim(&[], &path)?;
                if last {
                    host::release(&self.uplink())?;
                } else if let Some(router) = self.router() {
                    self.take_loopback(&router)?;
                }
            }
        }
        fault::point("net-leave.left")?;
        sys::file::remove(&path).map_err(Error::io("remove", path))
    }

    /// Takes a spark's devices and rules away, and what nobody needs any more.
    fn disconnect(&self, member: &Member, last: bool) -> Result<()> {
        let last_of_project = self.leave_project(member)?;
        fault::point("net-leave.left-project")?;
        if last {
            nft::run(&nft::remove(&self.table))?;
            fault::point("net-leave.unfiltered")?;
            self.remove_router()?;
        } else if let Some(router) = self.router() {
            router.unplug(member)?;
            if !member.ports.is_empty()
                && nft::run(&nft::change(&self.table, member, &member.ports, &[])).is_err()
            {
                // Some of it is out already.
                let others: Vec<Member> = self.members().into_iter().filter(|m| m.id != member.id).collect();
                nft::rebuild(&self.table, &router, &others)?;
            }
            if last_of_project {
                router.remove_project(&member.subnet)?;
                fault::point("net-leave.project-removed")?;
            }
        }
        if last_of_project { self.forget_project(&member.project) } else { Ok(()) }
    }

    /// Gives a spark another name in its project.
    pub fn rename(&self, id: &Id, name: &Name) -> Result<()> {
        if !self.member_path(id).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let Some(mut member) = self.member(id) else { return Ok(()) };
        self.names().rename(id, member.v4(), name)?;
        member.name = name.clone();
        self.save(&member)
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
        let Some(router) = self.router() else { return Ok(true) };
        if nft::run(&nft::change(&self.table, &new, &old.ports, &new.ports)).is_err() {
            nft::rebuild(&self.table, &router, &self.members())?;
        }
        self.take_loopback(&router)?;
        Ok(true)
    }

    /// Whether the packet filter lacks our tables though somebody needs them, or a chain of somebody else, made or flushed
    /// since, drops what sparks send; with `fix`, not afterwards.
    pub fn lacks_rules(&self, fix: bool) -> Result<Vec<(&'static str, &'static str)>> {
        if ids_in(&self.dir_of_members()).next().is_none() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        match self.router() {
            Some(router) => self.mend(&router, fix),
            _ => Ok(Vec::new()),
        }
    }

    /// Takes everybody out, whatever runs still: for a host that this installation goes away from.
    pub fn remove_all(&self) -> Result<()> {
        self.members().iter().try_for_each(|member| self.leave(&member.id))
    }
}

/// The states of the rules in the host's namespace and in the router's.
fn generations(router: &Router) -> Option<String> {
    let inside = router.inside(|| Ok(sys::nft::generation().ok())).ok()??;
    Some(format!("{} {inside}", sys::nft::generation().ok()?))
}

/// The names of files that are ids of sparks.
fn ids_in(dir: &Path) -> impl Iterator<Item = Id> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn within<T>(namespace: &OwnedFd, work: impl FnOnce() -> Result<T>) -> Result<T> {
    sys::netns::within(namespace, work).map_err(Error::sys("enter the spark's network"))?
}
