//! Neighbours: which Ethernet address an IP address has on a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use portolan_model::MacAddress;

use super::{Family, Netlink, NetlinkError};

const NEW_NEIGHBOUR: u16 = 28;

/// A neighbour that is known for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: MacAddress,
}

impl Neighbour {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = Family::of(self.ip).number();
        message.header.ifindex = self.link;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(self.ip.into()),
            NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()),
        ];
        message
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let message = (kind == NEW_NEIGHBOUR)
            .then(|| NeighbourMessage::parse(payload).ok())
            .flatten()?;
        let (mut ip, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                    ip = Some(address.into());
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                    ip = Some(address.into());
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.try_into().ok().map(MacAddress);
                }
                _ => {}
            }
        }
        (message.header.state == NeighbourState::Permanent).then_some(Self {
            link: message.header.ifindex,
            ip: ip?,
            mac: mac?,
        })
    }
}

impl Netlink {
    /// The permanent IPv4 neighbours of all links.
    pub(crate) fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = Family::V4.number();
        let request = RouteNetlinkMessage::GetNeighbour(message);
        self.dump(&request, Neighbour::parse)
    }

    /// Adds a neighbour, or changes its Ethernet address.
    pub(crate) fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewNeighbour(neighbour.message());
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a neighbour.
    pub(crate) fn remove_neighbour(&mut self, link: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = Family::of(ip).number();
        message.header.ifindex = link;
        message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
        self.change(RouteNetlinkMessage::DelNeighbour(message), 0)
    }
}
