//! Links: bridges, VXLAN links in collect-metadata mode, veth pairs.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
};
use portolan_model::MacAddress;

use super::{Netlink, NetlinkError};

const NEW_LINK: u16 = 16;

/// What a link is, as far as the overlay cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bridge,
    /// A VXLAN link; `filtered`: with `external vnifilter`, so that it can share its port.
    Vxlan {
        port: u16,
        filtered: bool,
    },
    Veth,
    /// A routing domain: its members are links of routers, not ports.
    Vrf,
    Other,
}

/// What is before the IP header on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Ethernet,
    Loopback,
    /// Nothing, or what only this kind of link has: tunnels, `wg0`, `ppp0`.
    Other,
}

/// A link that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) framing: Framing,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) up: bool,
    /// The index of the bridge or bond that it is a port of, or of its VRF.
    pub(crate) master: Option<u32>,
    pub(crate) alias: Option<String>,
}

/// A link to be made.
#[derive(Debug)]
pub(crate) struct NewLink<'a> {
    pub(crate) name: &'a str,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddress>,
    /// The index of the bridge that it is to be a port of.
    pub(crate) bridge: Option<u32>,
    pub(crate) peer: Option<Peer<'a>>,
    pub(crate) kind: Kind,
}

/// The other end of a veth pair.
#[derive(Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddress,
    /// The namespace in which it is from the start; `None` is that of the node's end.
    pub(crate) netns: Option<BorrowedFd<'a>>,
}

impl NewLink<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(self.name.to_owned()),
            LinkAttribute::Mtu(self.mtu),
        ];
        if let Some(mac) = self.mac {
            message
                .attributes
                .push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if let Some(bridge) = self.bridge {
            message.attributes.push(LinkAttribute::Controller(bridge));
        }
        message
            .attributes
            .push(LinkAttribute::LinkInfo(self.info()));
        message
    }

    fn info(&self) -> Vec<LinkInfo> {
        match self.kind {
            Kind::Bridge => vec![
                LinkInfo::Kind(InfoKind::Bridge),
                // No multicast crosses the bridge's ports but ARP's broadcasts.
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ],
            Kind::Vxlan { port, filtered } => vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::Port(port),
                    InfoVxlan::Learning(false),
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Vnifilter(filtered),
                ])),
            ],
            Kind::Veth | Kind::Vrf | Kind::Other => {
                let mut info = vec![LinkInfo::Kind(InfoKind::Veth)];
                if let Some(peer) = &self.peer {
                    let mut message = LinkMessage::default();
                    message.attributes = vec![
                        LinkAttribute::IfName(peer.name.to_owned()),
                        LinkAttribute::Mtu(self.mtu),
                        LinkAttribute::Address(peer.mac.0.to_vec()),
                    ];
                    let netns = peer.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd()));
                    message.attributes.extend(netns);
                    info.push(LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message))));
                }
                info
            }
        }
    }
}

impl Link {
    fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let message = (kind == NEW_LINK)
            .then(|| LinkMessage::parse(payload).ok())
            .flatten()?;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Other,
            framing: match message.header.link_layer_type {
                LinkLayerType::Ether => Framing::Ethernet,
                LinkLayerType::Loopback => Framing::Loopback,
                _ => Framing::Other,
            },
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(info) => link.kind = kind_of(&info),
                _ => {}
            }
        }
        Some(link)
    }
}

fn kind_of(info: &[LinkInfo]) -> Kind {
    for part in info {
        match part {
            LinkInfo::Kind(InfoKind::Bridge) => return Kind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => return Kind::Veth,
            LinkInfo::Kind(InfoKind::Vrf) => return Kind::Vrf,
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let port = data.iter().find_map(|d| match d {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                return Kind::Vxlan {
                    port: port.unwrap_or_default(),
                    filtered: data.contains(&InfoVxlan::CollectMetadata(true))
                        && data.contains(&InfoVxlan::Vnifilter(true)),
                };
            }
            _ => {}
        }
    }
    Kind::Other
}

/// A change of a link that is there.
fn set(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

impl Netlink {
    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        // Without the statistics, which are half of the answer.
        let brief = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let request = RouteNetlinkMessage::GetLink(set(0, vec![brief]));
        self.dump(&request, Link::parse)
    }

    /// Makes a link, down.
    pub(crate) fn add_link(&mut self, link: &NewLink<'_>) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewLink(link.message());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a link; of a veth pair both ends.
    pub(crate) fn remove_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::DelLink(set(index, Vec::new())), 0)
    }

    /// Takes a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = set(index, Vec::new());
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Has the kernel act on the carrier of a link that was just taken up, which it else does when it finds
    /// the time: until then the link drops what it is to send. (`rtnl_getlink` does so since Linux 6.8; on
    /// an older one the first packets may have to be sent again.)
    pub(crate) fn settle(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::GetLink(set(index, Vec::new())), 0)
    }

    /// Changes the largest packet that a link takes, in bytes.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = set(index, vec![LinkAttribute::Mtu(mtu)]);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Changes a link's Ethernet address.
    pub(crate) fn set_mac(&mut self, index: u32, mac: MacAddress) -> Result<(), NetlinkError> {
        let message = set(index, vec![LinkAttribute::Address(mac.0.to_vec())]);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a link the port of a bridge.
    pub(crate) fn set_bridge(&mut self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let message = set(index, vec![LinkAttribute::Controller(bridge)]);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Writes a link's alias, a free text of at most 255 bytes.
    pub(crate) fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = set(index, vec![LinkAttribute::IfAlias(alias.to_owned())]);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}
