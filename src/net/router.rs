//! The router of an installation: a network namespace in which the devices of all sparks end, with one uplink to the host.
//!
//! Only what is written down in `router.json`, last of all, is whole. Whatever else is found was made by a command that was
//! killed, or somebody has taken something away: then all is made anew.

use std::collections::HashSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::barrier::{self, Barrier, Closed};
use super::{GATEWAY4, Member, Nets, host, link, names, nft, sysctl};
use crate::domain::subnet::{Cidr, Subnet, Transit};
use crate::error::{Error, Result};
use crate::{fault, sys};

/// What has to be known of a router to use it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    /// The number of the host's end of the uplink.
    uplink: u32,
    /// The networks between the two ends.
    transit: Transit,
    /// The programs at devices, by their contents: another version of this program has others.
    barrier: String,
    /// The mount namespace in which its files are seen.
    #[serde(default)]
    mounts: u64,
}

/// A router that is whole.
#[derive(Debug, Clone)]
pub struct Router {
    namespace: Arc<OwnedFd>,
    pub(super) barrier: Barrier,
    pub(super) transit: Transit,
    /// The host's end of the uplink.
    pub(super) uplink: String,
}

/// The places of a router.
struct Paths {
    namespace: PathBuf,
    barrier: PathBuf,
    record: PathBuf,
}

impl Paths {
    fn of(dir: &Path) -> Paths {
        Paths { namespace: dir.join("router"), barrier: dir.join("barrier"), record: dir.join("router.json") }
    }

    /// The router's namespace and its programs, if both are seen there.
    fn open(self) -> Option<(OwnedFd, Barrier)> {
        let programs = Barrier::at(self.barrier);
        let namespace = programs.is_there().then(|| sys::netns::open(&self.namespace))?;
        Some((namespace.ok()?, programs))
    }
}

impl Nets {
    /// The router, if it is there and whole.
    pub(super) fn router(&self) -> Option<Router> {
        let paths = Paths::of(&self.dir);
        let record: Record = serde_json::from_slice(&std::fs::read(&paths.record).ok()?).ok()?;
        let uplink = self.uplink();
        let is_whole = record.barrier == barrier::VERSION
            && sys::net::index_of(&uplink).is_ok_and(|index| index == record.uplink);
        if !is_whole {
            return None;
        }
        let (namespace, programs) = paths.open().or_else(|| self.open_elsewhere(record.mounts))?;
        Some(Router { namespace: Arc::new(namespace), barrier: programs, transit: record.transit, uplink })
    }

    /// Opens a router that was made by a command in another mount namespace, for instance of a unit with `PrivateMounts=yes`: its
    /// files are mounts, which are seen only there.
    fn open_elsewhere(&self, mounts: u64) -> Option<(OwnedFd, Barrier)> {
        if sys::mount::namespace().ok()? == mounts {
            return None;
        }
        let below = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        sys::mount::roots_in(mounts).into_iter().find_map(|root| {
            // The process that answers for names has the directory `names` for its root.
            [root.join(below), root.join("..")].iter().find_map(|dir| Paths::of(dir).open())
        })
    }

    /// Makes a router where there is none that is whole. The caller holds the lock of networks and of the host.
    pub(super) fn make_router(&self, used: &HashSet<Ipv4Addr>) -> Result<Router> {
        let paths = Paths::of(&self.dir);
        self.remove_router()?;
        let uplink = self.uplink();
        let transit = host::choose_transit(uplink.as_bytes(), used)?;
        File::create(&paths.namespace).map_err(Error::io("create", &paths.namespace))?;
        let namespace = sys::netns::make(&paths.namespace).map_err(Error::io("make", &paths.namespace))?;
        fault::point("net-join.router-namespace")?;
        let programs = Barrier::at(paths.barrier);
        programs.make(&transit, IpAddr::V4(GATEWAY4))?;
        for net in transit.nets() {
            programs.close(&net, Closed::ForMost)?;
        }
        programs.let_leave_by(&host::cards()?)?;
        let router = Router { namespace: Arc::new(namespace), barrier: programs, transit, uplink };
        let mac = super::mac_of(router.uplink.as_bytes());
        let outside = sys::netns::own().map_err(Error::sys("open the host's network"))?;
        let mtu = host::mtu();
        router.inside(|| {
            sysctl::of_router()?;
            link::make_uplink(&router.uplink, mac, outside.as_fd(), mtu)?;
            router.barrier.watch_in(link::UPLINK, "from_host")?;
            nft::run(&nft::of_router(&transit))?;
            link::set_up_router(&transit)
        })?;
        fault::point("net-join.router-inside")?;
        // Before it is up.
        router.barrier.watch_in(&router.uplink, "from_router")?;
        router.barrier.watch_out(&router.uplink, "to_router")?;
        link::set_up_host(&router.uplink, &transit)?;
        fault::point("net-join.router-uplink")?;
        let record = Record {
            uplink: link::index(&router.uplink)?,
            transit,
            barrier: barrier::VERSION.into(),
            mounts: sys::mount::namespace().map_err(Error::sys("look at this mount namespace"))?,
        };
        let text = serde_json::to_vec(&record).map_err(|e| Error::corrupt(&paths.record, e))?;
        sys::file::replace_volatile(&paths.record, &text).map_err(Error::io("write", &paths.record))?;
        fault::point("net-join.router-made")?;
        Ok(router)
    }

    /// Whether something of a router is there.
    pub(super) fn has_part_of_router(&self) -> bool {
        let paths = Paths::of(&self.dir);
        link::exists(&self.uplink())
            || [paths.namespace, paths.barrier, paths.record].iter().any(|path| path.exists())
    }

    /// Removes the router, whatever of it is there.
    pub(super) fn remove_router(&self) -> Result<()> {
        let paths = Paths::of(&self.dir);
        self.names().end()?;
        sys::file::remove(&paths.record).map_err(Error::io("remove", &paths.record))?;
        link::remove(&self.uplink())?;
        fault::point("net-leave.router-uplink")?;
        Barrier::at(paths.barrier).remove()?;
        sys::mount::detach_all(&paths.namespace).map_err(Error::io("unmount", &paths.namespace))?;
        sys::file::remove(&paths.namespace).map_err(Error::io("remove", &paths.namespace))
    }
}

impl Router {
    /// The namespace that it is.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// What is known of a spark to those that answer questions for names.
    pub(super) fn known(&self, member: &Member) -> names::Record {
        let mut host = Vec::new();
        if member.allow_host {
            host.push(IpAddr::V4(self.transit.v4(1)));
            host.extend(sysctl::has_ipv6().then(|| IpAddr::V6(self.transit.v6(1))));
        }
        let may_ask = |egress: &Vec<_>| names::Servers::of_host().may_be_asked_by(egress);
        names::Record {
            id: member.id.clone(),
            project: member.project_id.to_string(),
            project_name: member.project.clone(),
            name: member.name.clone(),
            v4: member.v4,
            v6: sysctl::has_ipv6().then_some(member.v6),
            asks_beyond: member.egress.as_ref().is_none_or(may_ask),
            host,
        }
    }

    /// Does something in the router's namespace.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        sys::netns::within(&*self.namespace, work).map_err(Error::sys("enter the router of sparks"))?
    }

    /// Lets the host and the router know networks of a project.
    pub(super) fn add_networks(&self, nets: &[Cidr]) -> Result<()> {
        nets.iter().try_for_each(|net| self.barrier.close(net, Closed::ForAll))?;
        self.inside(|| link::bound_networks(nets))?;
        link::find_networks(&self.uplink, nets, &self.transit)
    }

    /// Has them forget all of a project.
    pub(super) fn remove_networks(&self, subnet: &Subnet) -> Result<()> {
        let nets = subnet.nets_from(0);
        link::forget_networks(&nets, Some(&self.uplink))?;
        self.inside(|| link::forget_networks(&nets, None))?;
        nets.iter().try_for_each(|net| self.barrier.open(net))
    }

    /// Whether the host has lost the way to sparks: an uplink that was down has no routes, and settings that somebody had read
    /// anew are those of a host without sparks. Routes go all at once, so that one spark's tells.
    pub(super) fn is_severed(&self, member: &Member) -> bool {
        !sysctl::is_uplink(&self.uplink) || !link::leads_to(&self.uplink, member.v4).unwrap_or(false)
    }

    /// Makes the way anew. The caller holds the lock of the host.
    pub(super) fn reconnect(&self, projects: &[Subnet]) -> Result<()> {
        link::set_up_host(&self.uplink, &self.transit)?;
        let nets: Vec<Cidr> = projects.iter().flat_map(|subnet| subnet.nets_from(0)).collect();
        link::find_networks(&self.uplink, &nets, &self.transit)?;
        host::acquire(&self.uplink)
    }

    /// Connects a spark, whose network namespace is `inside`: nothing passes before it is known what may.
    pub fn plug(&self, member: &Member, inside: impl AsFd) -> Result<()> {
        self.inside(|| {
            let device = link::plug(member, inside.as_fd())?;
            fault::point("net-join.plugged")?;
            self.barrier.admit(member, device)?;
            self.barrier.watch_in(&member.device(), "from_spark")?;
            fault::point("net-join.watched")?;
            link::open(member, device)
        })
    }

    /// The rest of it, from within the spark's namespace.
    pub fn set_up_inside(&self, member: &Member) -> Result<()> {
        link::set_up_inside(member)
    }

    /// Disconnects a spark.
    pub(super) fn unplug(&self, member: &Member) -> Result<()> {
        self.inside(|| link::remove(&member.device()))?;
        fault::point("net-leave.unplugged")?;
        self.barrier.dismiss(member)
    }
}
