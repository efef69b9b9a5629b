//! Devices, through rtnetlink: a bridge per project, a pair of Ethernet devices per spark.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{BridgeStpState, InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::{Member, PREFIX, sysctl};
use crate::domain::subnet::{PREFIX4, Subnet};
use crate::error::{Error, Result};
use crate::sys;

/// How many sparks a bridge has room for: the kernel gives it 1,023 ports, and one is its sink's.
pub(super) const PORTS: usize = 1022;

/// The device inside.
const INSIDE: &str = "eth0";

/// Runs requests, one after the other, in the network namespace that this thread is in.
fn netlink<T>(
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

pub(super) fn exists(name: &str) -> bool {
    sys::net::index_of(name).is_ok()
}

fn index(name: &str) -> Result<u32> {
    sys::net::index_of(name).map_err(Error::sys("find a network device"))
}

/// The pair of devices to which a bridge sends what is for an address that it does not know, as that of a spark that ended
/// by itself: its port, and the other end, where the packet filter refuses it.
pub(super) fn sink_of(bridge: &str) -> [String; 2] {
    let rest = bridge.strip_prefix(PREFIX).unwrap_or(bridge);
    [format!("spq-{rest}"), format!("sps-{rest}")]
}

/// Makes a project's bridge, with the first address of its networks.
pub(super) fn make_bridge(name: &str, subnet: &Subnet) -> Result<()> {
    let mac = super::mac_of(name.as_bytes());
    netlink("make a bridge", async |handle| {
        let link = LinkBridge::new(name)
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false)
            .address(mac.to_vec())
            .build();
        handle.link().add(link).execute().await
    })?;
    sysctl::of_bridge(name)?;
    let index = index(name)?;
    netlink("set up a bridge", async |handle| {
        address(handle, index, subnet.v4(1).into(), PREFIX4).await?;
        if sysctl::has_ipv6() {
            address(handle, index, subnet.v6(1).into(), 64).await?;
        }
        handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await
    })?;
    make_sink(name, index)
}

fn make_sink(bridge_name: &str, bridge: u32) -> Result<()> {
    let [port, end] = sink_of(bridge_name);
    let pair = LinkVeth::new(&port, &end).controller(bridge).build();
    netlink("make the sink of a bridge", async |handle| handle.link().add(pair).execute().await)?;
    for device in [&port, &end] {
        sysctl::of_port(device);
    }
    let port = index(&port)?;
    netlink("set up the sink of a bridge", async |handle| {
        // Nothing but what is for one address, and that is learnt from nobody.
        let closed = LinkBridgePort::new(port).learning(false).bcast_flood(false).mcast_flood(false);
        handle.link().change(closed.build()).execute().await?;
        handle.link().change(LinkUnspec::new_with_index(port).up().build()).execute().await
    })
}

/// Whether the sink of a bridge takes something.
pub(super) fn sinks(bridge: &str) -> bool {
    sys::net::is(&sink_of(bridge)[1], libc::IFF_UP).unwrap_or(false)
}

/// Whether it refuses what it takes: the other end has `NOARP` then, which nothing else sets.
fn refuses(bridge: &str) -> bool {
    sys::net::is(&sink_of(bridge)[1], libc::IFF_UP | libc::IFF_NOARP).unwrap_or(false)
}

/// Has it take something, now that the packet filter refuses that, if it can.
pub(super) fn open_sink(bridge: &str, refuses: bool) -> Result<()> {
    let end = index(&sink_of(bridge)[1])?;
    netlink("set up the sink of a bridge", async |handle| {
        handle.link().change(LinkUnspec::new_with_index(end).arp(!refuses).up().build()).execute().await
    })
}

/// No duplicate is looked for, which would take a second: every address is its spark's alone.
async fn address(handle: &Handle, index: u32, ip: IpAddr, prefix: u8) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(index, ip, prefix);
    if ip.is_ipv6() {
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await
}

/// Removes a device, and a bridge with its sink. One that is not there is as well.
pub(super) fn remove(name: &str) -> Result<()> {
    if name.starts_with(PREFIX) {
        // The other end goes along.
        remove(&sink_of(name)[0])?;
    }
    let Ok(index) = sys::net::index_of(name) else { return Ok(()) };
    match netlink("remove a network device", async |handle| handle.link().del(index).execute().await) {
        Err(Error::Sys { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// Makes a spark's pair of devices: one end in its project's bridge, the other in the namespace of `pid`.
pub(super) fn plug(member: &Member, pid: i32) -> Result<()> {
    let bridge = index(&member.bridge)?;
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE.to_owned())
        .address(member.mac().to_vec())
        .setns_by_pid(pid.unsigned_abs())
        .mtu(member.mtu)
        .build();
    let pair = LinkVeth::new(&member.port(), INSIDE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge)
        .mtu(member.mtu)
        .up()
        .build();
    netlink("make a network device for the spark", async |handle| handle.link().add(pair).execute().await)?;
    sysctl::of_port(&member.port());
    let port = index(&member.port())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    if refuses(&member.bridge) {
        addresses.push(member.v4().into());
        addresses.extend(sysctl::has_ipv6().then(|| IpAddr::from(member.v6())));
    }
    netlink("tell the bridge of a spark", async |handle| {
        // For good: the host is not to ask for one that is gone, and find no route, but to be refused by the sink.
        for ip in addresses {
            let here = handle.neighbours().add(bridge, ip).link_layer_address(&member.mac());
            here.replace().execute().await?;
        }
        // Where it is, for as long as it is there: what the bridge does not know goes to the sink and to no spark.
        let known = handle.neighbours().add_bridge(port, &member.mac()).state(NeighbourState::Noarp);
        known.flags(NeighbourFlags::Controller).execute().await?;
        handle.link().change(LinkBridgePort::new(port).flood(false).build()).execute().await
    })
}

/// Sets up the device of a spark, from within its network namespace.
pub(super) fn set_up_inside(member: &Member) -> Result<()> {
    let index = index(INSIDE)?;
    let ipv6 = sysctl::has_ipv6();
    let (v4, v6) = (member.v4(), member.v6());
    let (gateway4, gateway6) = (member.subnet.v4(1), member.subnet.v6(1));
    // An address that it gave itself would be refused where frames are checked.
    sysctl::inside(INSIDE);
    netlink("set up the network device of the spark", async |handle| {
        address(handle, index, v4.into(), PREFIX4).await?;
        if ipv6 {
            address(handle, index, v6.into(), 64).await?;
        }
        handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await?;
        let route =
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway4).output_interface(index);
        handle.route().add(route.build()).execute().await?;
        if ipv6 && member.has_route6 {
            let route =
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway6).output_interface(index);
            handle.route().add(route.build()).execute().await?;
        }
        Ok(())
    })
}
