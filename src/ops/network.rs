//! Networks of sparks: an address for life, a place in the project's network while it runs, published ports.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use super::Sparks;
use super::ports::chosen_anew;
use super::spark::SparkId;
use crate::bundle::spec;
use crate::domain::egress::{Egress, Host};
use crate::domain::name::Name;
use crate::domain::options::{Network, SparkOptions};
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, SparkRecord};
use crate::domain::subnet::NetworkRecord;
use crate::error::{Error, Result};
use crate::net::{Lack, Member, Nets, Place, Router, names};
use crate::pool::{names_in, record};
use crate::runtime::launch::Wiring;
use crate::runtime::live;
use crate::sys;

/// How many sparks a command that is about something else looks at: `spark gc` looks at all.
const LOOKS: usize = 32;

/// The network of a spark that starts: what this process does about it, and what its helper does.
pub(super) struct Wire {
    pub here: Here,
    pub helper: Box<dyn Wiring>,
}

/// In this process, while the helper makes the container.
#[derive(Debug)]
pub(super) struct Here {
    nets: Nets,
    member: Member,
    router: Router,
    program: Option<PathBuf>,
    done: File,
}

impl Here {
    /// The spark's place in the network.
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    /// Lets the spark into its network, and tells the helper.
    pub(super) fn join(mut self) -> Result<()> {
        self.nets.join(&self.member, &self.router, self.program.as_deref())?;
        // The helper may have failed, and says why itself.
        let _ = self.done.write_all(b"+");
        Ok(())
    }
}

/// In the helper. Nothing of the spark runs before its ports and its name are known.
#[derive(Debug)]
struct Helper {
    member: Member,
    router: Router,
    /// The other process's end of the pipe, which a fork has too.
    done: RawFd,
    wait: File,
}

impl Wiring for Helper {
    fn begin(&self) {
        // So that the pipe ends with the other process.
        sys::exec::let_go(&[self.done]);
    }

    fn outside(&self, pid: i32) -> Result<()> {
        let mut byte = [0];
        let joined = (&self.wait).read(&mut byte).map_err(Error::sys("wait for the network"))?;
        if joined == 0 {
            return Err(Error::Network { what: "its network could not be set up".into(), hint: None });
        }
        let inside = sys::netns::of(pid).map_err(Error::sys("open the spark's network"))?;
        self.router.plug(&self.member, inside)
    }

    fn inside(&self) -> Result<()> {
        self.router.set_up_inside(&self.member)
    }
}

/// What a spark's `/etc/resolv.conf` says.
pub(super) fn resolv_conf(network: Network, project: &Name) -> String {
    match network {
        Network::Project => names::for_spark(&names::Servers::of_host(), project),
        Network::Host | Network::None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    }
}

impl Sparks {
    pub(super) fn nets(&self) -> Nets {
        Nets::of(&self.pool.place.run)
    }

    /// Mends what the network of a spark that is about to be entered lacks. It is entered all the same if that fails.
    pub(super) fn look_after_network(&self, record: &SparkRecord) {
        if record.options.network == Network::Project
            && let Err(e) = self.nets().look_after(self.context.program.as_deref())
        {
            tracing::warn!("{e}");
        }
    }

    /// What the networks of the sparks that run lack, and what to type. Changes nothing.
    pub(super) fn problem_of_networks(&self) -> Option<String> {
        match self.nets().lacks() {
            Ok(lacks) => told(&lacks).map(|told| format!("{told}; `spark gc` mends that")),
            Err(e) => Some(format!("cannot tell whether the network works: {e}")),
        }
    }

    /// What is known of the network of a project, and what tells it from all others. A damaged record is made anew: the
    /// addresses may be others then.
    fn network_of(&self, project: &Name) -> Result<(Id, Option<NetworkRecord>)> {
        let path = self.pool.paths.network(project);
        let known = record::read::<NetworkRecord>(&path).unwrap_or_default();
        if let Some(id) = known.as_ref().and_then(|known| known.id.clone()) {
            return Ok((id, known));
        }
        if let Ok(Some(project)) = self.project_record(project) {
            return Ok((project.id, known));
        }
        // The project's record is damaged, so that this one has to say it.
        let id = Id::generate();
        let new = known.unwrap_or_default();
        let new = NetworkRecord { id: Some(id.clone()), ..new };
        record::replace(&path, &new)?;
        Ok((id, Some(new)))
    }

    /// Gives a new spark the number that it keeps, if it is to have a network.
    pub(super) fn give_address(&self, project: &Name, record: &mut SparkRecord) -> Result<()> {
        if record.options.network == Network::Project {
            let (network, _) = self.network_of(project)?;
            record.address = Some(self.claim_number(project, &network, record)?);
        }
        Ok(())
    }

    /// The number that a spark has, if nobody else has that, else another one.
    fn claim_number(&self, project: &Name, network: &Id, record: &SparkRecord) -> Result<u16> {
        self.nets().claim_number(network, &record.id, record.address, || self.numbers_of(project))
    }

    pub(super) fn give_address_back(&self, spark: &SparkId, record: &SparkRecord) {
        if let Some(number) = record.address
            && let Ok((network, _)) = self.network_of(&spark.project)
        {
            self.nets().release_number(&network, &record.id, number);
        }
    }

    /// What all records of a project say.
    fn numbers_of(&self, project: &Name) -> Vec<(Id, u16)> {
        let sparks = self.sparks_of(project).unwrap_or_default();
        sparks.iter().filter_map(|s| self.record(s).ok()).filter_map(|r| Some((r.id, r.address?))).collect()
    }

    /// Prepares the network of a spark that is about to start. The caller holds its exclusive lock.
    pub(super) fn wire(&self, spark: &SparkId, record: &SparkRecord) -> Result<Option<Wire>> {
        if record.options.network != Network::Project {
            return Ok(None);
        }
        let nets = self.nets();
        let (network, known) = self.network_of(&spark.project)?;
        let number = self.claim_number(&spark.project, &network, record)?;
        if record.address != Some(number) {
            let given = SparkRecord { address: Some(number), ..record.clone() };
            record::replace(&SparkPaths(&self.dir(spark)).record(), &given)?;
        }
        let known = known.unwrap_or_default();
        let member = self.member(spark, record, &network, &known)?;
        let used = || self.blocks(Some(&spark.project));
        let place = Place { number, had: known.subnet.clone() };
        let (member, router, subnet) = nets.reserve(member, &place, &used, |id| self.namespace_of(id))?;
        let options = &record.options;
        if member.ports != options.ports {
            (self.context.warn)(&chosen_anew(record, &member));
            let (ports, chosen_ports) = (member.ports.clone(), member.chosen.clone());
            let options = SparkOptions { ports, chosen_ports, ..options.clone() };
            let given = SparkRecord { address: Some(number), options, ..record.clone() };
            record::replace(&SparkPaths(&self.dir(spark)).record(), &given)?;
        }
        if known.subnet != subnet || known.id.is_none() {
            let new = NetworkRecord { id: Some(network), subnet, ..known };
            record::replace(&self.pool.paths.network(&spark.project), &new)?;
        }
        let (wait, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Error::sys("make a pipe")(e.into()))?;
        let helper = Helper {
            member: member.clone(),
            router: router.clone(),
            done: done.as_raw_fd(),
            wait: wait.into(),
        };
        let here = Here { nets, member, router, program: self.context.program.clone(), done: done.into() };
        Ok(Some(Wire { here, helper: Box::new(helper) }))
    }

    /// The network namespace of a spark that runs.
    fn namespace_of(&self, id: &Id) -> Option<std::os::fd::OwnedFd> {
        let live = live::read(&self.pool.place.bundle(id))?;
        let namespace = sys::netns::of(live.init.pid).ok()?;
        // It may have ended, and its number be another's.
        live.init.alive().then_some(namespace)
    }

    /// Makes anew what the networks of running sparks lack. Returns what that was.
    pub(super) fn mend_networks(&self) -> Result<Vec<Lack>> {
        let program = self.context.program.as_deref();
        self.nets().mend_all(program, &|| self.blocks(None), |id| self.namespace_of(id))
    }

    /// A spark as a member of its project's network, before it has addresses.
    fn member(
        &self,
        spark: &SparkId,
        record: &SparkRecord,
        network: &Id,
        known: &NetworkRecord,
    ) -> Result<Member> {
        let options = &record.options;
        let (egress, names) = resolved(options.egress.clone().or_else(|| known.egress.clone()))?;
        Ok(Member {
            id: record.id.clone(),
            project_id: network.clone(),
            project: spark.project.clone(),
            name: spark.name.clone(),
            hostname: Some(spec::hostname(options, &spark.name)),
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            ports: options.ports.clone(),
            chosen: options.chosen_ports.clone(),
            egress,
            names,
            allow_host: options.allow_host,
            has_route6: false,
            mtu: 0,
        })
    }

    /// The blocks of all projects but one.
    fn blocks(&self, but: Option<&Name>) -> HashSet<Ipv4Addr> {
        let projects = names_in(&self.pool.paths.projects()).unwrap_or_default();
        let others = projects.iter().filter(|p| Some(*p) != but).map(|p| self.pool.paths.network(p));
        others
            .filter_map(|path| record::read::<NetworkRecord>(&path).ok().flatten())
            .flat_map(|record| record.subnet.blocks)
            .collect()
    }

    /// Removes the networks of sparks that have ended by themselves or were killed; where many run, of some of them. Costs one
    /// look into a directory where there are none.
    pub fn collect_networks(&self) -> Result<()> {
        self.left_networks(LOOKS).iter().try_for_each(|id| self.drop_network(id))
    }

    /// The sparks that have a network and no use for it, of so many.
    pub(super) fn left_networks(&self, most: usize) -> Vec<Id> {
        self.nets().without_device(most).into_iter().filter(|id| self.is_over(id).is_some()).collect()
    }

    /// All sparks that have a network and no use for it, whether their devices are there or not: somebody may keep the network
    /// namespace of a spark that has ended.
    pub(super) fn ended_networks(&self) -> Vec<Id> {
        self.nets().ids().into_iter().filter(|id| self.is_over(id).is_some()).collect()
    }

    pub(super) fn drop_network(&self, id: &Id) -> Result<()> {
        match self.is_over(id) {
            Some(_lock) => self.nets().leave(id),
            None => Ok(()),
        }
    }

    /// The lock of a spark that does not run and that nobody starts. None if that cannot be said.
    fn is_over(&self, id: &Id) -> Option<Option<std::os::fd::OwnedFd>> {
        if live::read(&self.pool.place.bundle(id)).is_some() {
            return None;
        }
        match self.pool.find_container(id.as_str()) {
            Ok(None) => Some(None),
            Ok(Some(found)) => {
                let dir = self.pool.paths.spark(&found.project, &found.name);
                let lock = sys::flock::try_lock_dir(&dir).ok().flatten()?;
                // It may have been started in between.
                live::read(&self.pool.place.bundle(id)).is_none().then_some(Some(lock))
            }
            Err(_) => None,
        }
    }
}

/// What sparks cannot do, in words. None if they can do all.
pub(super) fn told(lacks: &[Lack]) -> Option<String> {
    let effects: Vec<&str> = lacks.iter().map(|lack| lack.effect()).collect();
    (!effects.is_empty()).then(|| effects.join("; "))
}

type Resolved = (Option<Vec<(crate::domain::subnet::Cidr, Option<u16>)>>, Vec<(String, std::net::IpAddr)>);

/// Rules with addresses in the place of names. What a name means is decided here, once: inside, it means the same.
fn resolved(egress: Option<Egress>) -> Result<Resolved> {
    let Some(Egress::Only(allowed)) = egress else { return Ok((None, Vec::new())) };
    let (mut nets, mut names) = (Vec::new(), Vec::new());
    for to in allowed {
        match to.host {
            Host::Net(net) => nets.push((net, to.port)),
            Host::Name(name) => {
                let found = (name.as_str(), 0).to_socket_addrs().map_err(|e| Error::Network {
                    what: format!("cannot find the address of `{name}`, which `--egress` allows: {e}"),
                    hint: Some("give its address instead of its name".into()),
                })?;
                for ip in found.map(|a| a.ip().to_canonical()) {
                    nets.push((ip.into(), to.port));
                    if !names.contains(&(name.clone(), ip)) {
                        names.push((name.clone(), ip));
                    }
                }
            }
        }
    }
    Ok((Some(nets), names))
}
