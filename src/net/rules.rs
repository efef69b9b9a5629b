//! Rules of routing: with them, a host that forwards only because of sparks forwards to and from sparks only.
//!
//! A rule sends what comes in by a device to a table of routes that has sparks, and nothing else. What the host itself sends or
//! receives never comes to it.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::link::netlink;
use super::sysctl;
use crate::error::Result;

/// Our table, and the first of our priorities: behind those of VPNs, before the main table.
const TABLE: u32 = 5353;
const PRIORITY: u32 = 5350;
/// In this order: what the host sends, what sparks send, everything else, and where the first two go on.
const OWN: u32 = PRIORITY;
const SPARKS: u32 = PRIORITY + 1;
const OTHERS: u32 = PRIORITY + 2;
const ON: u32 = PRIORITY + 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// The same route in our table.
pub(super) fn in_own_table(mut way: RouteMessage) -> RouteMessage {
    way.header.table = 0;
    // Others' routes without a device are taken away by systemd-networkd, when it sets up any device.
    way.header.protocol = RouteProtocol::Kernel;
    way.attributes.push(RouteAttribute::Table(TABLE));
    way
}

/// Sends what comes in by these devices to our table; `all` is every device but the uplinks.
pub(super) fn guard(family: Family, devices: &[&str], uplinks: &[String]) -> Result<()> {
    if devices.is_empty() || (family == Family::V6 && !sysctl::has_ipv6()) {
        return Ok(());
    }
    netlink("keep the host from forwarding", async |handle| {
        handle.route().add(nowhere(family)).replace().execute().await?;
        let has = listed(handle, family).await?;
        let mut wanted: Vec<RuleMessage> = Vec::new();
        if devices.contains(&"all") {
            // The last first: the others name it.
            wanted.push(rule(family, ON, None, RuleAction::Nop));
            wanted.push(rule(family, OWN, Some("lo"), RuleAction::Goto));
            wanted.extend(uplinks.iter().map(|uplink| rule(family, SPARKS, Some(uplink), RuleAction::Goto)));
            wanted.push(rule(family, OTHERS, None, RuleAction::ToTable));
        }
        let single = devices.iter().filter(|device| **device != "all");
        wanted.extend(single.map(|device| rule(family, OTHERS, Some(device), RuleAction::ToTable)));
        for rule in wanted.into_iter().filter(|rule| !has.iter().any(|had| is_same(had, rule))) {
            let mut request = handle.rule().add();
            *request.message_mut() = rule;
            request.execute().await?;
        }
        Ok(())
    })
}

/// Takes all of them away.
pub(super) fn remove_all() -> Result<()> {
    let families = [Family::V4, Family::V6];
    netlink("let the host forward as before", async |handle| {
        for family in families.into_iter().filter(|f| *f == Family::V4 || sysctl::has_ipv6()) {
            for rule in listed(handle, family).await? {
                handle.rule().del(rule).execute().await?;
            }
            match handle.route().del(nowhere(family)).execute().await {
                // An empty table of IPv6 has a route of the kernel's own in this place, which nobody can remove.
                Err(rtnetlink::Error::NetlinkError(e))
                    if [-libc::ESRCH, -libc::ENOENT].contains(&e.raw_code()) => {}
                other => other?,
            }
        }
        Ok(())
    })
}

/// Ours that are there.
async fn listed(handle: &Handle, family: Family) -> Result<Vec<RuleMessage>, rtnetlink::Error> {
    let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
    let all: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
    Ok(all.into_iter().filter(|rule| priority(rule).is_some_and(|n| (OWN..=ON).contains(&n))).collect())
}

fn priority(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(n) => Some(*n),
        _ => None,
    })
}

fn device(rule: &RuleMessage) -> Option<&str> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_same(a: &RuleMessage, b: &RuleMessage) -> bool {
    priority(a) == priority(b) && device(a) == device(b)
}

fn rule(family: Family, priority: u32, device: Option<&str>, action: RuleAction) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    rule.header.action = action;
    // Those of others are taken away by systemd-networkd when it starts; the kernel's own are not.
    rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule.attributes.extend(device.map(|name| RuleAttribute::Iifname(name.to_owned())));
    match action {
        RuleAction::ToTable => rule.attributes.push(RuleAttribute::Table(TABLE)),
        RuleAction::Goto => rule.attributes.push(RuleAttribute::Goto(ON)),
        _ => {}
    }
    rule
}

/// The route in our table for everything that is no spark's.
fn nowhere(family: Family) -> RouteMessage {
    let way = match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::Unreachable).build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().kind(RouteType::Unreachable).build(),
    };
    in_own_table(way)
}
