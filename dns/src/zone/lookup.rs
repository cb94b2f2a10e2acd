//! From a question to what is found.

use std::{iter, net::IpAddr};

use super::{Entry, Found, Rotation, Scope, Zone, Zones};
use crate::ports;
use hickory_server::proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, PTR, SRV},
};

/// A question, and what all answers to it share.
struct Asked<'a> {
    name: &'a Name,
    /// The address that it is the reverse of.
    address: Option<IpAddr>,
    qtype: RecordType,
    rotation: &'a Rotation,
    synced: bool,
    task_ttl: u32,
}

impl Scope<'_> {
    /// What the client is told about a name.
    pub(crate) fn lookup(&self, name: &Name, qtype: RecordType, rotation: &Rotation) -> Found {
        let asked = Asked {
            name,
            address: host_address(name),
            qtype,
            rotation,
            synced: self.zones.synced && !self.incomplete,
            task_ttl: self.zones.ttls.task,
        };
        let found = self.networks.iter().find_map(|zone| zone.lookup(&asked));
        if let Some(found) = found {
            return found;
        }
        // Who gets no names of ours asks other servers for those of one label too.
        let expects = !self.networks.is_empty() || self.incomplete;
        let ours = (expects && name.iter().len() == 1)
            || asked
                .address
                .is_some_and(|ip| self.zones.is_mesh_address(ip))
            || (!asked.synced && self.may_turn_out_ours(name));
        if ours { asked.absent() } else { Found::Foreign }
    }

    /// The network's name that a name is under, else the root.
    pub(crate) fn apex(&self, name: &Name) -> Name {
        let mut origins = self.networks.iter().map(|zone| &zone.origin);
        let covering = origins.find(|origin| origin.zone_of(name));
        covering.cloned().unwrap_or_else(Name::root)
    }

    /// The name of the network that is asked first, under which the SOA's own names are.
    pub(crate) fn origin(&self) -> Name {
        let first = self.networks.first();
        first.map_or_else(Name::root, |zone| zone.origin.clone())
    }

    /// How long clients may keep that there is nothing, in seconds.
    pub(crate) fn negative_ttl(&self) -> u32 {
        self.zones.ttls.task
    }

    fn may_turn_out_ours(&self, name: &Name) -> bool {
        if self.incomplete {
            let mut all = self.zones.networks.values();
            return all.any(|zone| zone.may_turn_out_ours(name));
        }
        let mut networks = self.networks.iter();
        networks.any(|zone| zone.may_turn_out_ours(name))
    }
}

impl Zones {
    fn is_mesh_address(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.subnets.iter().any(|subnet| subnet.contains(ip)),
            IpAddr::V6(_) => false,
        }
    }
}

impl Asked<'_> {
    fn absent(&self) -> Found {
        if self.synced {
            Found::NoName
        } else {
            Found::NotKnownYet
        }
    }

    fn is_for(&self, record_type: RecordType) -> bool {
        self.qtype == record_type || self.qtype == RecordType::ANY
    }
}

impl Zone {
    /// `None` if the name is unknown here.
    fn lookup(&self, asked: &Asked<'_>) -> Option<Found> {
        if let Some(names) = asked.address.and_then(|ip| self.pointers.get(&ip)) {
            return Some(pointers(asked, names));
        }
        let relative = self.relative(asked.name);
        let spellings = || iter::once(asked.name).chain(&relative);
        if let Some(entry) = spellings().find_map(|name| self.names.get(name)) {
            return Some(entry.records(asked));
        }
        if let Some(found) = spellings().find_map(|name| self.ports(asked, name)) {
            return Some(found);
        }
        let exists = *asked.name == self.origin || spellings().any(|n| self.tops.contains(n));
        exists.then(Found::nothing)
    }

    /// `_80._tcp.web`, and `_tcp.web`, which exists with nothing at it.
    fn ports(&self, asked: &Asked<'_>, name: &Name) -> Option<Found> {
        let labels: Vec<&[u8]> = name.iter().collect();
        let (port, protocol, service) = match labels.as_slice() {
            [first, rest @ ..] if ports::protocol(first).is_some() => {
                return self.named(rest).map(|_| Found::nothing());
            }
            [port, second, rest @ ..] => (port, ports::protocol(second)?, rest),
            _ => return None,
        };
        let entry = self.named(service)?;
        let offered: Vec<_> = entry
            .services
            .iter()
            .filter_map(|offer| {
                let port = ports::number(port)?;
                let port = ports::target(&offer.service.ports, protocol, port)?;
                Some((port, &offer.targets))
            })
            .collect();
        if offered.is_empty() {
            return Some(asked.absent());
        }
        if !asked.is_for(RecordType::SRV) {
            return Some(Found::nothing());
        }
        let targets = || {
            offered
                .iter()
                .flat_map(|(port, targets)| targets.iter().map(move |target| (*port, target)))
        };
        Some(Found::Records {
            answers: targets()
                .map(|(port, target)| {
                    let data = SRV::new(0, target.weight, port, target.name.clone());
                    Record::from_rdata(asked.name.clone(), asked.task_ttl, RData::SRV(data))
                })
                .collect(),
            additionals: targets()
                .map(|(_, target)| address(&target.name, asked.task_ttl, target.ip))
                .collect(),
        })
    }

    /// The entry of a service, by the labels of its name.
    fn named(&self, labels: &[&[u8]]) -> Option<&Entry> {
        let name = Name::from_labels(labels.iter().copied()).ok()?;
        let entry = self.names.get(&name)?;
        (!entry.services.is_empty()).then_some(entry)
    }

    /// The name without the network's behind it.
    fn relative(&self, name: &Name) -> Option<Name> {
        let labels = name.iter().len().checked_sub(self.origin.iter().len())?;
        if labels == 0 || !self.origin.zone_of(name) {
            return None;
        }
        Name::from_labels(name.iter().take(labels)).ok()
    }

    /// Whether a name that is unknown now might be here once all sources have reported.
    fn may_turn_out_ours(&self, name: &Name) -> bool {
        let mut leading = name.iter().take(2);
        self.origin.zone_of(name)
            || leading.any(|label| {
                label.eq_ignore_ascii_case(b"tasks") || ports::protocol(label).is_some()
            })
    }
}

impl Entry {
    fn records(&self, asked: &Asked<'_>) -> Found {
        if self.addresses.is_empty() && !asked.synced {
            return Found::NotKnownYet;
        }
        // One RRset is answer enough to ANY (RFC 8482, section 4.1).
        let any_is_v6 = self.addresses.first().is_some_and(IpAddr::is_ipv6);
        let wanted = |ip: &&IpAddr| match asked.qtype {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => ip.is_ipv6() == any_is_v6,
            _ => false,
        };
        let mut answers: Vec<Record> = self
            .addresses
            .iter()
            .filter(wanted)
            .map(|ip| address(asked.name, self.ttl, *ip))
            .collect();
        if answers.len() > 1 {
            let turn = asked.rotation.next(asked.name) % answers.len();
            answers.rotate_left(turn);
        }
        Found::Records {
            answers,
            additionals: Vec::new(),
        }
    }
}

fn pointers<'a>(asked: &Asked<'_>, names: impl IntoIterator<Item = &'a Name>) -> Found {
    if !asked.is_for(RecordType::PTR) {
        return Found::nothing();
    }
    let record = |name: &Name| {
        let data = RData::PTR(PTR(name.clone()));
        Record::from_rdata(asked.name.clone(), asked.task_ttl, data)
    };
    Found::Records {
        answers: names.into_iter().map(record).collect(),
        additionals: Vec::new(),
    }
}

fn address(owner: &Name, ttl: u32, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(owner.clone(), ttl, data)
}

/// The one address that a name of `in-addr.arpa` or `ip6.arpa` is about.
fn host_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
