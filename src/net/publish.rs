//! Publishing: ports of the host that lead to sparks.
//!
//! A claim keeps a port from the sparks of all installations of the host; the rules of our own table lead it. So the host's lock
//! is held for claims only, and not while the packet filter is changed.

use std::net::IpAddr;

use super::claims::Claims;
use super::listeners::Listeners;
use super::ports::{self, Settled};
use super::{Member, Nets, Router, flows, host, nft, sysctl};
use crate::domain::port::{self, Published};
use crate::domain::spark::Id;
use crate::error::Result;
use crate::fault;

impl Nets {
    /// Chooses a port of the host for each that has none yet, and another for each of the `chosen` that somebody has.
    ///
    /// # Errors
    /// `network` for one that the spark with this id cannot have; `usage` for ports that exclude one another.
    pub fn settle_ports(&self, ports: &[Published], chosen: &[Published], id: &Id) -> Result<Settled> {
        if ports.is_empty() {
            return Ok(Settled::default());
        }
        ports::settle(ports, chosen, &Claims::read(), &Listeners::of(ports), &self.member_path(id))
    }

    /// Claims the ports of a spark for it, and writes down which they are.
    pub(super) fn claim_ports(&self, member: &mut Member) -> Result<()> {
        let path = self.member_path(&member.id);
        // Processes take no lock of ours, so these need not be read under it.
        let listeners = Listeners::of(&member.ports);
        let _host = host::lock()?;
        let claims = Claims::read();
        let settled = ports::settle(&member.ports, &member.chosen, &claims, &listeners, &path)?;
        (member.ports, member.chosen) = (settled.ports, settled.chosen);
        // Before the claims: without it they count for nothing.
        self.save(member)?;
        claims.replace(&member.ports, &path)
    }

    /// Gives a running spark other ports, and returns those that it has got. None if it has no network now.
    pub fn publish(&self, id: &Id, wanted: &Settled) -> Result<Option<Settled>> {
        if !self.member_path(id).exists() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let Some(old) = self.member(id) else { return Ok(None) };
        let mut new = Member { ports: wanted.ports.clone(), chosen: wanted.chosen.clone(), ..old.clone() };
        self.claim_ports(&mut new)?;
        fault::point("port.claimed")?;
        if let Some(router) = self.router() {
            self.lead(&router, &new, &old.ports)?;
            self.take_loopback(&router)?;
        }
        Ok(Some(Settled { ports: new.ports, chosen: new.chosen }))
    }

    /// Has the packet filter lead the ports of a spark to it, which had others before, in one transaction.
    pub(super) fn lead(&self, router: &Router, member: &Member, had: &[Published]) -> Result<()> {
        let (gone, new) = (port::without(had, &member.ports), port::without(&member.ports, had));
        if nft::run(&nft::change(&self.table, member, &gone, &new)).is_err() {
            // A crash left some, or some are out already.
            let mut members = self.members();
            members.iter_mut().filter(|other| other.id == member.id).for_each(|own| own.clone_from(member));
            return self.rebuild(router, &members);
        }
        flows::forget(&[gone, new].concat(), &member.addresses());
        Ok(())
    }

    /// The host's table anew, with the ports of these members.
    pub(super) fn rebuild(&self, router: &Router, members: &[Member]) -> Result<()> {
        nft::rebuild(&self.table, router, members)?;
        let ports: Vec<Published> = members.iter().flat_map(|member| member.ports.clone()).collect();
        let sparks: Vec<IpAddr> = members.iter().flat_map(Member::addresses).collect();
        flows::forget(&ports, &sparks);
        Ok(())
    }

    /// Packets of 127.0.0.1 go by the uplink while somebody publishes a port there, and not longer.
    pub(super) fn take_loopback(&self, router: &Router) -> Result<()> {
        let is_there = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let claims = Claims::read();
        let mut own = claims.held().filter(|(_, member)| member.starts_with(&self.dir));
        sysctl::take_loopback(&router.uplink, own.any(|(port, _)| port.ip.is_none_or(is_there)))
    }
}
