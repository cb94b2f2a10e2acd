//! Routes, those that carry a tunnel's other end included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteIp6TunnelFlags,
        RouteIpTunnel, RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use super::{Family, Netlink, NetlinkError, PROTOCOL};

const NEW_ROUTE: u16 = 24;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
    /// To a host on the link itself.
    Link { link: u32, source: IpAddr },
    /// To a gateway on the link.
    Gateway {
        link: u32,
        gateway: IpAddr,
        source: IpAddr,
    },
    /// Through a VXLAN link in collect-metadata mode to another node.
    Tunnel {
        link: u32,
        gateway: IpAddr,
        source: IpAddr,
        vni: u32,
        remote: IpAddr,
        local: Option<IpAddr>,
    },
    /// As none of ours does.
    Foreign,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) destination: IpNetwork,
    /// Of several routes to a destination the one with the least is taken.
    pub(crate) metric: u32,
    pub(crate) hop: Hop,
}

/// The destination of a default route.
pub(crate) const ANYWHERE: IpNetwork = IpNetwork::V4(
    Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).expect("zero is a prefix length"),
);
/// The same over IPv6.
pub(crate) const ANYWHERE_V6: IpNetwork = IpNetwork::V6(
    Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).expect("zero is a prefix length"),
);
/// The main routing table (rtnetlink(7)).
pub(crate) const MAIN_TABLE: u32 = 254;

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = Family::of(self.destination.ip()).number();
        message.header.destination_prefix_length = self.destination.prefix();
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Priority(self.metric),
        ];
        if self.destination.prefix() > 0 {
            let destination = self.destination.network().into();
            message
                .attributes
                .push(RouteAttribute::Destination(destination));
        }
        match self.hop {
            Hop::Unreachable | Hop::Foreign => message.header.kind = RouteType::Unreachable,
            Hop::Link { link, source } => {
                message.header.scope = RouteScope::Link;
                message.attributes.extend([
                    RouteAttribute::Oif(link),
                    RouteAttribute::PrefSource(source.into()),
                ]);
            }
            Hop::Gateway {
                link,
                gateway,
                source,
            } => message.attributes.extend(via(link, gateway, source)),
            Hop::Tunnel {
                link,
                gateway,
                source,
                vni,
                remote,
                local,
            } => {
                message.header.flags = RouteFlags::Onlink;
                message.attributes.extend(via(link, gateway, source));
                message.attributes.extend(encapsulation(vni, remote, local));
            }
        }
        message
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let message = (kind == NEW_ROUTE)
            .then(|| RouteMessage::parse(payload).ok())
            .flatten()?;
        let anywhere = if message.header.address_family == Family::V6.number() {
            ANYWHERE_V6
        } else {
            ANYWHERE
        };
        let mut destination = anywhere.ip();
        let mut table = u32::from(message.header.table);
        let mut metric = 0;
        let (mut link, mut gateway, mut source) = (None, None, None);
        let mut tunnel = Vec::new();
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => destination = address(&to)?,
                RouteAttribute::Table(number) => table = number,
                RouteAttribute::Priority(number) => metric = number,
                RouteAttribute::Oif(index) => link = Some(index),
                RouteAttribute::Gateway(via) => gateway = address(&via),
                RouteAttribute::PrefSource(own) => source = address(&own),
                RouteAttribute::Encap(attributes) => tunnel = attributes,
                _ => {}
            }
        }
        let hop = match (message.header.kind, link, gateway, source) {
            (RouteType::Unreachable, ..) => Hop::Unreachable,
            (RouteType::Unicast, Some(link), None, Some(source)) => Hop::Link { link, source },
            (RouteType::Unicast, Some(link), Some(gateway), Some(source)) if tunnel.is_empty() => {
                Hop::Gateway {
                    link,
                    gateway,
                    source,
                }
            }
            (RouteType::Unicast, Some(link), Some(gateway), Some(source)) => {
                let (vni, remote, local) = ends(&tunnel);
                match (vni, remote) {
                    (Some(vni), Some(remote)) => Hop::Tunnel {
                        link,
                        gateway,
                        source,
                        vni,
                        remote,
                        local,
                    },
                    _ => Hop::Foreign,
                }
            }
            _ => Hop::Foreign,
        };
        Some(Self {
            table,
            destination: IpNetwork::new(destination, message.header.destination_prefix_length)
                .ok()?,
            metric,
            hop,
        })
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match *address {
        RouteAddress::Inet(ip) => Some(ip.into()),
        RouteAddress::Inet6(ip) => Some(ip.into()),
        _ => None,
    }
}

fn via(link: u32, gateway: IpAddr, source: IpAddr) -> [RouteAttribute; 3] {
    [
        RouteAttribute::Oif(link),
        RouteAttribute::Gateway(gateway.into()),
        RouteAttribute::PrefSource(source.into()),
    ]
}

/// `encap ip id VNI dst REMOTE src LOCAL`.
fn encapsulation(vni: u32, remote: IpAddr, local: Option<IpAddr>) -> [RouteAttribute; 2] {
    let (kind, tunnel) = match remote {
        IpAddr::V4(remote) => {
            let mut tunnel = vec![
                RouteIpTunnel::Id(vni.into()),
                RouteIpTunnel::Destination(remote),
            ];
            if let Some(IpAddr::V4(local)) = local {
                tunnel.push(RouteIpTunnel::Source(local));
            }
            let tunnel = tunnel.into_iter().map(RouteLwTunnelEncap::Ip).collect();
            (RouteLwEnCapType::Ip, tunnel)
        }
        IpAddr::V6(remote) => {
            // Over IPv6 a UDP checksum of zero is not accepted unless asked for (RFC 6935).
            let mut tunnel = vec![
                RouteIp6Tunnel::Id(vni.into()),
                RouteIp6Tunnel::Destination(remote),
                RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::Checksum),
            ];
            if let Some(IpAddr::V6(local)) = local {
                tunnel.push(RouteIp6Tunnel::Source(local));
            }
            let tunnel = tunnel.into_iter().map(RouteLwTunnelEncap::Ip6).collect();
            (RouteLwEnCapType::Ip6, tunnel)
        }
    };
    [
        RouteAttribute::EncapType(kind),
        RouteAttribute::Encap(tunnel),
    ]
}

/// VNI, other end and own end of a tunnel; the kernel reports an end that was not given as zero.
fn ends(tunnel: &[RouteLwTunnelEncap]) -> (Option<u32>, Option<IpAddr>, Option<IpAddr>) {
    let (mut vni, mut remote, mut local) = (None, None, None);
    for attribute in tunnel {
        match attribute {
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(id))
            | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(id)) => vni = u32::try_from(*id).ok(),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(ip)) => remote = Some((*ip).into()),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(ip)) => remote = Some((*ip).into()),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Source(ip)) => local = Some(IpAddr::V4(*ip)),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(ip)) => local = Some(IpAddr::V6(*ip)),
            _ => {}
        }
    }
    (vni, remote, local.filter(|ip| !ip.is_unspecified()))
}

impl Netlink {
    /// The routes of ours in all tables.
    pub(crate) fn routes(&mut self, family: Family) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.number();
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        let request = RouteNetlinkMessage::GetRoute(message);
        self.dump(&request, Route::parse)
    }

    /// Adds a route, or changes where the one to this destination leads, in one step.
    pub(crate) fn set_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route.message());
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes the route of ours to a destination.
    pub(crate) fn remove_route(&mut self, table: u32, to: IpNetwork) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = Family::of(to.ip()).number();
        message.header.destination_prefix_length = to.prefix();
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        // Of whatever kind and scope (fib_table_delete in the kernel).
        message.header.scope = RouteScope::NoWhere;
        message.attributes = vec![
            RouteAttribute::Table(table),
            RouteAttribute::Destination(to.network().into()),
        ];
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }
}
