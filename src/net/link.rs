//! Devices, through rtnetlink: a pair of Ethernet devices per spark, and the uplink between the router's namespace and the
//! host.
//!
//! Nobody asks for addresses of Ethernet: both ends of a pair have the same one, and no ARP, so that whatever is sent by one
//! arrives at the other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{GATEWAY4, GATEWAY6, Member, rules, sysctl};
use crate::domain::subnet::{Cidr, Transit};
use crate::error::{Error, Result};
use crate::sys;

/// The device inside.
const INSIDE: &str = "eth0";
/// The router's end of the uplink.
pub(super) const UPLINK: &str = "up";

/// Runs requests, one after the other, in the network namespace that this thread is in.
pub(super) fn netlink<T>(
    action: &'static str,
    work: impl AsyncFnOnce(&Handle) -> Result<T, rtnetlink::Error>,
) -> Result<T> {
    let failed = Error::sys(action);
    let run = || -> io::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(&handle).await.map_err(|e| match e {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other.to_string()),
            })
        })
    };
    run().map_err(failed)
}

/// All devices of this thread's namespace.
fn devices() -> Result<Vec<LinkMessage>> {
    netlink("list network devices", async |handle| handle.link().get().execute().try_collect().await)
}

/// The numbers of those of some kinds; a card has none, and the loopback device is none.
pub(super) fn of_kinds(kinds: &[&str]) -> Result<Vec<u32>> {
    let kind = |device: &LinkMessage| {
        let infos = device.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        infos.into_iter().flatten().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        })
    };
    let mut found = devices()?;
    found.retain(|device| {
        let is_loopback = device.header.flags.contains(LinkFlags::Loopback);
        !is_loopback && kinds.contains(&kind(device).as_deref().unwrap_or_default())
    });
    Ok(found.iter().map(|device| device.header.index).collect())
}

/// The names and numbers of those whose names begin so.
pub(super) fn beginning_with(prefix: &str) -> Result<Vec<(String, u32)>> {
    let named = devices()?.into_iter().filter_map(|device| Some((name_of(&device)?, device.header.index)));
    Ok(named.filter(|(name, _)| name.starts_with(prefix)).collect())
}

fn name_of(device: &LinkMessage) -> Option<String> {
    device.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

pub(super) fn exists(name: &str) -> bool {
    sys::net::index_of(name).is_ok()
}

/// The number of a device of this thread's namespace.
pub(super) fn index(name: &str) -> Result<u32> {
    sys::net::index_of(name).map_err(Error::sys("find a network device"))
}

/// No duplicate is looked for, which would take a second: every address is its owner's alone.
async fn address(handle: &Handle, index: u32, ip: IpAddr, prefix: u8) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(index, ip, prefix);
    if ip.is_ipv6() {
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.replace().execute().await
}

/// A route to a network, by a device or to nowhere.
fn route(to: &Cidr, kind: RouteType, device: Option<u32>) -> RouteMessage {
    let mut message = match to.address {
        IpAddr::V4(ip) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, to.prefix).kind(kind).build()
        }
        IpAddr::V6(ip) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, to.prefix).kind(kind).build()
        }
    };
    if let Some(device) = device {
        message.attributes.push(RouteAttribute::Oif(device));
        if to.address.is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
    }
    message
}

/// The networks of both families that the kernel speaks.
fn families(nets: &[Cidr]) -> impl Iterator<Item = &Cidr> {
    let ipv6 = sysctl::has_ipv6();
    nets.iter().filter(move |net| ipv6 || net.address.is_ipv4())
}

/// A spark's pair of devices has one address of Ethernet.
fn pair(
    name: &str,
    peer: LinkMessageBuilder<LinkUnspec>,
    mac: [u8; 6],
    mtu: u32,
) -> LinkMessageBuilder<LinkVeth> {
    let peer = peer.address(mac.to_vec()).mtu(mtu).arp(false).build();
    LinkVeth::new(name, INSIDE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(mac.to_vec())
        .arp(false)
        .mtu(mtu)
}

/// Makes the uplink, from within the router's namespace: `host` is the host's.
pub(super) fn make_uplink(name: &str, mac: [u8; 6], host: BorrowedFd<'_>, mtu: u32) -> Result<()> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(name.to_owned()).setns_by_fd(host.as_raw_fd());
    let link = pair(UPLINK, peer, mac, mtu).build();
    netlink("make the uplink of sparks", async |handle| handle.link().add(link).execute().await)
}

/// Sets up the router's end of the uplink, and what sparks have for a gateway.
pub(super) fn set_up_router(transit: &Transit) -> Result<()> {
    let (up, lo) = (index(UPLINK)?, index("lo")?);
    let ipv6 = sysctl::has_ipv6();
    netlink("set up the uplink of sparks", async |handle| {
        handle.link().change(LinkUnspec::new_with_index(lo).up().build()).execute().await?;
        address(handle, lo, GATEWAY4.into(), 32).await?;
        for n in [2, 3] {
            address(handle, up, transit.v4(n).into(), Transit::PREFIX4).await?;
            if ipv6 {
                address(handle, up, transit.v6(n).into(), Transit::PREFIX6).await?;
            }
        }
        handle.link().change(LinkUnspec::new_with_index(up).up().build()).execute().await?;
        let way = RouteMessageBuilder::<Ipv4Addr>::new().gateway(transit.v4(1)).output_interface(up);
        handle.route().add(way.build()).execute().await?;
        if ipv6 {
            let way = RouteMessageBuilder::<Ipv6Addr>::new().gateway(transit.v6(1)).output_interface(up);
            handle.route().add(way.build()).execute().await?;
        }
        Ok(())
    })
}

/// Sets up the host's end of the uplink.
pub(super) fn set_up_host(name: &str, transit: &Transit) -> Result<()> {
    sysctl::of_uplink(name)?;
    let index = index(name)?;
    netlink("set up the uplink of sparks", async |handle| {
        address(handle, index, transit.v4(1).into(), Transit::PREFIX4).await?;
        if sysctl::has_ipv6() {
            address(handle, index, transit.v6(1).into(), Transit::PREFIX6).await?;
        }
        handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
        for net in families(&transit.nets()) {
            let way = route(net, RouteType::Unicast, Some(index));
            handle.route().add(rules::in_own_table(way)).replace().execute().await?;
        }
        Ok(())
    })
}

/// Has the host find a project's sparks beyond the uplink.
pub(super) fn find_networks(uplink: &str, nets: &[Cidr], from: &Transit) -> Result<()> {
    let index = index(uplink)?;
    netlink("make the route to a project", async |handle| {
        for net in families(nets) {
            let mut way = route(net, RouteType::Unicast, Some(index));
            handle.route().add(rules::in_own_table(way.clone())).replace().execute().await?;
            if net.address.is_ipv4() {
                let source = rtnetlink::packet_route::route::RouteAddress::Inet(from.v4(1));
                way.attributes.push(RouteAttribute::PrefSource(source));
            }
            handle.route().add(way).replace().execute().await?;
        }
        Ok(())
    })
}

/// Whether the host finds an address beyond a device.
pub(super) fn leads_to(device: &str, ip: Ipv4Addr) -> Result<bool> {
    let by = RouteAttribute::Oif(index(device)?);
    let ask = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build();
    netlink("ask for the route to a spark", async |handle| {
        match handle.route().get(ask).execute().try_next().await {
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(false), // to nowhere
            found => Ok(found?.is_some_and(|way| way.attributes.contains(&by))),
        }
    })
}

/// What the host does with packets to an address; none if it has no way there.
pub(super) fn kind_of(ip: IpAddr) -> Result<Option<RouteType>> {
    let ask = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    netlink("ask for the route to an address", async |handle| {
        match handle.route().get(ask).execute().try_next().await {
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            found => Ok(found?.map(|way| way.header.kind)),
        }
    })
}

/// All addresses of this thread's namespace.
pub(super) fn addresses() -> Result<Vec<IpAddr>> {
    let all: Vec<_> = netlink("list the addresses of the host", async |handle| {
        handle.address().get().execute().try_collect().await
    })?;
    let of = |attribute: AddressAttribute| match attribute {
        AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(ip),
        _ => None,
    };
    Ok(all.into_iter().flat_map(|message: AddressMessage| message.attributes).filter_map(of).collect())
}

/// In the router's namespace: what is for a spark of a project that does not run goes nowhere.
pub(super) fn bound_networks(nets: &[Cidr]) -> Result<()> {
    netlink("make the route to a project", async |handle| {
        for net in families(nets) {
            handle.route().add(route(net, RouteType::Prohibit, None)).replace().execute().await?;
        }
        Ok(())
    })
}

/// Takes the routes to a project away, in this thread's namespace. Those that are not there are as well.
pub(super) fn forget_networks(nets: &[Cidr], device: Option<&str>) -> Result<()> {
    let device = match device.map(sys::net::index_of) {
        Some(Err(_)) => return Ok(()),
        found => found.and_then(std::result::Result::ok),
    };
    let kind = if device.is_some() { RouteType::Unicast } else { RouteType::Prohibit };
    netlink("remove the route to a project", async |handle| {
        for net in families(nets) {
            let way = route(net, kind, device);
            let own = device.map(|_| rules::in_own_table(way.clone()));
            for way in own.into_iter().chain([way]) {
                match handle.route().del(way).execute().await {
                    Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ESRCH => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    })
}

/// The names of what is attached to a bridge of this thread's namespace.
pub(super) fn ports_of(bridge: &str) -> Result<Vec<String>> {
    let bridge = LinkAttribute::Controller(index(bridge)?);
    let ports = devices()?.into_iter().filter(|device| device.attributes.contains(&bridge));
    Ok(ports.filter_map(|port| name_of(&port)).collect())
}

/// Removes a device of this thread's namespace. One that is not there is as well.
pub(super) fn remove(name: &str) -> Result<()> {
    let Ok(index) = sys::net::index_of(name) else { return Ok(()) };
    let removed = netlink("remove a network device", async |handle| handle.link().del(index).execute().await);
    match removed {
        Err(Error::Sys { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Makes a spark's pair of devices, from within the router's namespace: the other end is in the namespace `inside`. It is
/// down, so that nothing passes yet.
pub(super) fn plug(member: &Member, inside: BorrowedFd<'_>) -> Result<u32> {
    let peer =
        LinkMessageBuilder::<LinkUnspec>::new().name(INSIDE.to_owned()).setns_by_fd(inside.as_raw_fd());
    let link = pair(&member.device(), peer, member.mac(), member.mtu).build();
    netlink("make a network device for the spark", async |handle| handle.link().add(link).execute().await)?;
    index(&member.device())
}

/// Lets packets pass between a spark's device and others.
pub(super) fn open(member: &Member, device: u32) -> Result<()> {
    netlink("set up a network device for the spark", async |handle| {
        handle.link().change(LinkUnspec::new_with_index(device).up().build()).execute().await?;
        for net in families(&[Cidr::from(IpAddr::V4(member.v4)), Cidr::from(IpAddr::V6(member.v6))]) {
            handle.route().add(route(net, RouteType::Unicast, Some(device))).replace().execute().await?;
        }
        Ok(())
    })
}

/// Sets up the device of a spark, from within its network namespace.
pub(super) fn set_up_inside(member: &Member) -> Result<()> {
    let index = index(INSIDE)?;
    let ipv6 = sysctl::has_ipv6();
    let (v4, v6) = (member.v4, member.v6);
    sysctl::inside(INSIDE);
    netlink("set up the network device of the spark", async |handle| {
        address(handle, index, v4.into(), 32).await?;
        if ipv6 {
            address(handle, index, v6.into(), 128).await?;
        }
        handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
        let way = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY4).onlink().output_interface(index);
        handle.route().add(way.build()).execute().await?;
        if ipv6 {
            // To what is local everywhere; to everywhere only where the host has a way there too.
            let to = if member.has_route6 { (Ipv6Addr::UNSPECIFIED, 0) } else { (LOCAL6, 7) };
            let way = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to.0, to.1);
            let way = way.gateway(GATEWAY6).onlink().output_interface(index);
            handle.route().add(way.build()).execute().await?;
        }
        Ok(())
    })
}

/// What a spark had from a router that is gone.
pub(super) fn clear_inside() -> Result<()> {
    remove(INSIDE)
}

/// The first of the addresses that are local to a place (RFC 4193), 7 bits of which are theirs.
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0);
