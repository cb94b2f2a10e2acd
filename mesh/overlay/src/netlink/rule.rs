//! Policy routing rules: which table routes a packet.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::{
    IpProtocol, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};
use portolan_model::Protocol;

use super::{Family, Netlink, NetlinkError, PROTOCOL};
use crate::PortRange;

const NEW_RULE: u16 = 32;

/// Which packets a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Selector {
    /// Those that came in by a link of this name.
    From(String),
    /// The node's own, to these addresses.
    OwnTo(Ipv4Network),
    /// Those from this address.
    Source(IpAddr),
    /// Those from this address and one of these ports.
    Served(Ipv6Addr, PortRange),
    /// The ICMP errors from this address.
    Errors(Ipv6Addr),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(link) => write!(f, "iif {link}"),
            Self::OwnTo(subnet) => write!(f, "iif {LOOPBACK} to {subnet}"),
            Self::Source(ip) => write!(f, "from {ip}"),
            Self::Served(ip, ports) => write!(f, "from {ip} {ports}"),
            Self::Errors(ip) => write!(f, "from {ip} ipproto ipv6-icmp"),
        }
    }
}

impl Selector {
    /// The address that the packets are from, if it is for those from one.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        match self {
            Self::From(_) | Self::OwnTo(_) => None,
            Self::Source(ip) => Some(*ip),
            Self::Served(ip, _) | Self::Errors(ip) => Some((*ip).into()),
        }
    }

    fn family(&self) -> Family {
        match self {
            Self::From(_) | Self::OwnTo(_) => Family::V4,
            Self::Source(ip) => Family::of(*ip),
            Self::Served(..) | Self::Errors(_) => Family::V6,
        }
    }
}

/// A rule of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) priority: u32,
    pub(crate) selector: Selector,
    pub(crate) table: u32,
}

/// RFC 4443, section 2.1.
const ICMPV6: IpProtocol = IpProtocol::Other(58);
/// The kernel's word for packets of the node itself (ip-rule(8)).
const LOOPBACK: &str = "lo";

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.selector.family().number();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ];
        match &self.selector {
            Selector::From(link) => message
                .attributes
                .push(RuleAttribute::Iifname(link.clone())),
            Selector::OwnTo(subnet) => {
                message.header.dst_len = subnet.prefix();
                message.attributes.extend([
                    RuleAttribute::Iifname(LOOPBACK.into()),
                    RuleAttribute::Destination(subnet.network().into()),
                ]);
            }
            Selector::Source(ip) => {
                message.header.src_len = Family::of(*ip).bits();
                message.attributes.push(RuleAttribute::Source(*ip));
            }
            Selector::Served(ip, ports) => {
                message.header.src_len = Family::V6.bits();
                message.attributes.extend([
                    RuleAttribute::Source((*ip).into()),
                    RuleAttribute::IpProtocol(match ports.protocol {
                        Protocol::Tcp => IpProtocol::Tcp,
                        Protocol::Udp => IpProtocol::Udp,
                    }),
                    RuleAttribute::SourcePortRange(RulePortRange {
                        start: ports.first,
                        end: ports.last,
                    }),
                ]);
            }
            Selector::Errors(ip) => {
                message.header.src_len = Family::V6.bits();
                message.attributes.extend([
                    RuleAttribute::Source((*ip).into()),
                    RuleAttribute::IpProtocol(ICMPV6),
                ]);
            }
        }
        message
    }

    fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let message = (kind == NEW_RULE)
            .then(|| RuleMessage::parse(payload).ok())
            .flatten()?;
        let (mut ours, mut priority, mut table) = (false, 0, None);
        let (mut link, mut destination, mut source) = (None, None, None);
        let (mut carries, mut ports) = (None, None);
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Protocol(protocol) => ours = u8::from(protocol) == PROTOCOL,
                RuleAttribute::Priority(number) => priority = number,
                RuleAttribute::Table(number) => table = Some(number),
                RuleAttribute::Iifname(name) => link = Some(name),
                RuleAttribute::Destination(IpAddr::V4(ip)) => {
                    destination = Ipv4Network::new(ip, message.header.dst_len).ok();
                }
                RuleAttribute::Source(ip) => source = Some(ip),
                RuleAttribute::IpProtocol(protocol) => carries = Some(protocol),
                RuleAttribute::SourcePortRange(range) => ports = Some(range),
                _ => {}
            }
        }
        let selector = match (destination, source) {
            (Some(subnet), _) => Selector::OwnTo(subnet),
            (None, Some(IpAddr::V6(ip))) if carries.is_some() => served(ip, carries?, ports)?,
            (None, Some(ip)) => Selector::Source(ip),
            (None, None) => Selector::From(link?),
        };
        ours.then_some(Self {
            priority,
            selector,
            table: table?,
        })
    }
}

fn served(ip: Ipv6Addr, carries: IpProtocol, ports: Option<RulePortRange>) -> Option<Selector> {
    let served = |protocol| {
        let ports = ports?;
        let range = PortRange {
            protocol,
            first: ports.start,
            last: ports.end,
        };
        Some(Selector::Served(ip, range))
    };
    match carries {
        IpProtocol::Tcp => served(Protocol::Tcp),
        IpProtocol::Udp => served(Protocol::Udp),
        ICMPV6 => Some(Selector::Errors(ip)),
        _ => None,
    }
}

impl Netlink {
    /// The rules of ours.
    pub(crate) fn rules(&mut self, family: Family) -> Result<Vec<Rule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family.number();
        let request = RouteNetlinkMessage::GetRule(message);
        self.dump(&request, Rule::parse)
    }

    /// Adds a rule.
    pub(crate) fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRule(rule.message());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule.
    pub(crate) fn remove_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::DelRule(rule.message()), 0)
    }
}
