//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use super::{Family, Netlink, NetlinkError};

const NEW_ADDRESS: u16 = 20;

/// An address of a link, without a route of its own for the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl Address {
    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = Family::of(self.ip).number();
        message.header.prefix_len = self.prefix;
        message.header.index = self.link;
        message.attributes = vec![
            AddressAttribute::Local(self.ip),
            AddressAttribute::Address(self.ip),
            AddressAttribute::Flags(match self.ip {
                IpAddr::V4(_) => AddressFlags::Noprefixroute,
                // No one else has an address of ours. While that is asked, it would take no packets.
                IpAddr::V6(_) => AddressFlags::Noprefixroute | AddressFlags::Nodad,
            }),
        ];
        message
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let message = (kind == NEW_ADDRESS)
            .then(|| AddressMessage::parse(payload).ok())
            .flatten()?;
        let (mut local, mut address) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                _ => {}
            }
        }
        Some(Self {
            link: message.header.index,
            // On a point-to-point link `Address` is the other end; IPv6 has no `Local` elsewhere.
            ip: local.or(address)?,
            prefix: message.header.prefix_len,
        })
    }
}

impl Netlink {
    /// All addresses of all links.
    pub(crate) fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(&request, Address::parse)
    }

    /// Adds an address.
    pub(crate) fn add_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewAddress(address.message());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds an address for this machine alone, under a label by which it is found again: the link's name and
    /// what comes after it, `IFA_LABEL` of rtnetlink(7).
    pub(crate) fn add_host_address(
        &mut self,
        address: &Address,
        label: &str,
    ) -> Result<(), NetlinkError> {
        let mut message = address.message();
        message.header.scope = AddressScope::Host;
        message
            .attributes
            .push(AddressAttribute::Label(label.to_owned()));
        let request = RouteNetlinkMessage::NewAddress(message);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// All addresses under a label.
    pub(crate) fn labelled_addresses(&mut self, label: &str) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let wanted = AddressAttribute::Label(label.to_owned());
        self.dump(&request, |kind, payload| {
            let message = AddressMessage::parse(payload).ok()?;
            message.attributes.contains(&wanted).then_some(())?;
            Address::parse(kind, payload)
        })
    }

    /// Removes an address.
    pub(crate) fn remove_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::DelAddress(address.message()), 0)
    }
}
