//! Records: what a node tells the others. Each is a key and a CBOR map whose unknown fields are skipped,
//! so that nodes of different versions understand one another.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnetwork::Ipv4Network;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{NetworkName, Service, ServiceId, TaskId};

/// The longest encoded record: with its key and the envelope it fits one UDP datagram.
pub const MAX_RECORD_BYTES: usize = 1024;

/// What a node is doing.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum NodeState {
    /// Its tasks take new flows.
    #[default]
    #[n(0)]
    Up,
    /// Its tasks keep the flows that they have.
    #[n(1)]
    Draining,
    /// It is about to go.
    #[n(2)]
    Leaving,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct MacAddress(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 6]);

impl MacAddress {
    /// The locally administered address that belongs to an overlay address.
    pub fn of_address(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x70, a, b, c, d])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).ok())
            .collect();
        bytes
            .and_then(|b| b.try_into().ok())
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("'{text}' is no Ethernet address")))
    }
}

/// A node of the cluster; every node publishes exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Node {
    /// Its name; the owner's [`crate::NodeId`] is derived from it.
    #[n(0)]
    pub name: String,
    /// The address at which other nodes reach it: gossip, and the outer address of VXLAN packets.
    #[n(1)]
    pub underlay: IpAddr,
    /// Up, draining or leaving.
    #[n(2)]
    #[cbor(default)]
    pub state: NodeState,
    /// The version of its agent.
    #[n(3)]
    #[cbor(default)]
    pub version: String,
    /// Its agent has the fast path's programs attached, so others may send it packets with clients' own
    /// addresses.
    #[n(4)]
    #[cbor(default)]
    pub fast_path: bool,
    /// Its agent gives the tasks of services that want IPv6 ([`crate::Service::ipv6`]) their IPv6 addresses.
    #[n(5)]
    #[cbor(default)]
    pub ipv6: bool,
}

/// A network as declared. Of several declarations the one with the greatest `spec_version` counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Network {
    /// Its name, unique in the cluster.
    #[n(0)]
    pub name: NetworkName,
    /// Its VXLAN network identifier, 24 bits.
    #[n(1)]
    pub vni: u32,
    /// Where all its addresses come from.
    #[n(2)]
    #[cbor(with = "cbor_v4_network")]
    pub subnet: Ipv4Network,
    /// Nothing is forwarded out of it, neither packets nor DNS queries.
    #[n(3)]
    #[cbor(default)]
    pub internal: bool,
    /// Its packets are to be encrypted between nodes.
    #[n(4)]
    #[cbor(default)]
    pub encrypted: bool,
    /// Rises with every change of the declaration.
    #[n(5)]
    pub spec_version: u64,
    /// When it was first declared, Unix milliseconds.
    #[n(6)]
    pub created_ms: u64,
    /// A declaration that the network is gone.
    #[n(7)]
    #[cbor(default)]
    pub removed: bool,
    /// The stack it belongs to, if any.
    #[n(8)]
    pub stack: Option<String>,
    /// Where Portolan's own addresses on it come from, those of nodes and the virtual ones, if somebody else hands
    /// out the subnet, as Docker's IPAM does; `None` is the subnet.
    #[n(9)]
    #[cbor(default, with = "cbor_v4_network_option")]
    #[serde(default)]
    pub own_range: Option<Ipv4Network>,
}

impl Network {
    /// Where Portolan's own addresses on it come from.
    pub fn own_addresses(&self) -> Ipv4Network {
        self.own_range.unwrap_or(self.subnet)
    }

    /// Everything that is its own: the subnet, and the range beside it if there is one.
    pub fn ranges(&self) -> impl Iterator<Item = Ipv4Network> + use<> {
        [self.subnet].into_iter().chain(self.own_range)
    }

    /// Whether it has addresses in common with another one.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.ranges()
            .any(|own| other.ranges().any(|theirs| own.overlaps(theirs)))
    }
}

/// A part of a network's subnet that one node hands out.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct Slice {
    /// The addresses. The first is the node's gateway if it is the node's first slice.
    #[n(0)]
    #[cbor(with = "cbor_v4_network")]
    pub prefix: Ipv4Network,
    /// When it was claimed, Unix milliseconds; where two claims meet the older one keeps it.
    #[n(1)]
    pub claimed_ms: u64,
}

/// A node's presence on a network: the slices that it claims there, in the order of claiming.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct NetworkAttach {
    /// The network.
    #[n(0)]
    pub network: NetworkName,
    /// The slices, never empty.
    #[n(1)]
    pub slices: Vec<Slice>,
}

/// A task's attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    #[n(0)]
    pub network: NetworkName,
    /// Its address there, or, for a process without a namespace of its own, any address that nodes can reach.
    #[n(1)]
    pub ip: IpAddr,
    /// Its Ethernet address; `None` for a process without a namespace of its own.
    #[n(2)]
    pub mac: Option<MacAddress>,
}

/// Whether a task may get flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum TaskState {
    /// Not checked yet.
    #[n(0)]
    Starting,
    /// Takes new flows.
    #[n(1)]
    Healthy,
    /// Fails its health check.
    #[n(2)]
    Unhealthy,
    /// Keeps the flows that it has.
    #[n(3)]
    Draining,
}

/// A running instance of a service, or an attachment without one. The node it runs on is the record's owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Task {
    /// Its identity.
    #[n(0)]
    pub id: TaskId,
    /// The service that it is a task of.
    #[n(1)]
    pub service: Option<ServiceId>,
    /// Its number within the service, from 1; 0 without a service.
    #[n(2)]
    pub slot: u32,
    /// Where it is reached.
    #[n(3)]
    pub endpoints: Vec<Endpoint>,
    /// Whether it may get flows.
    #[n(4)]
    pub state: TaskState,
    /// Its share of new flows, relative to the other tasks; 0 is none.
    #[n(5)]
    pub weight: u16,
}

impl Task {
    /// Its endpoint on a network.
    pub fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|e| e.network.as_str() == network)
    }
}

/// Which record of its owner a record is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// The node itself.
    Node,
    /// A declaration of a network.
    Network(NetworkName),
    /// The node's slices of a network.
    NetworkAttach(NetworkName),
    /// A declaration of a service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
}

impl RecordKey {
    /// The key as bytes: a kind, then the name.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, name) = match self {
            Self::Node => (b'n', ""),
            Self::Network(name) => (b'w', name.as_str()),
            Self::NetworkAttach(name) => (b'a', name.as_str()),
            Self::Service(id) => (b's', id.as_str()),
            Self::Task(id) => (b't', id.as_str()),
        };
        let mut key = Vec::with_capacity(1 + name.len());
        key.push(kind);
        key.extend_from_slice(name.as_bytes());
        key
    }

    /// The key of these bytes; `None` is a kind that this version does not know.
    ///
    /// # Errors
    /// A known kind with a name that is none.
    pub fn decode(key: &[u8]) -> Result<Option<Self>, DecodeError> {
        let Some((kind, name)) = key.split_first() else {
            return Err(DecodeError::Key("it is empty".into()));
        };
        let name = str::from_utf8(name).map_err(|e| DecodeError::Key(e.to_string()))?;
        Ok(Some(match kind {
            b'n' if name.is_empty() => Self::Node,
            b'w' => Self::Network(parse(name)?),
            b'a' => Self::NetworkAttach(parse(name)?),
            b's' => Self::Service(parse(name)?),
            b't' => Self::Task(parse(name)?),
            _ => return Ok(None),
        }))
    }
}

fn parse<T: FromStr<Err = crate::NameError>>(name: &str) -> Result<T, DecodeError> {
    name.parse()
        .map_err(|e: crate::NameError| DecodeError::Key(e.to_string()))
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// The node itself.
    Node(Node),
    /// A declaration of a network.
    Network(Network),
    /// The node's slices of a network.
    NetworkAttach(NetworkAttach),
    /// A declaration of a service.
    Service(Service),
    /// A task.
    Task(Task),
}

impl Record {
    /// The key under which its owner publishes it.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Node(_) => RecordKey::Node,
            Self::Network(network) => RecordKey::Network(network.name.clone()),
            Self::NetworkAttach(attach) => RecordKey::NetworkAttach(attach.network.clone()),
            Self::Service(service) => RecordKey::Service(service.id.clone()),
            Self::Task(task) => RecordKey::Task(task.id.clone()),
        }
    }

    /// The record as CBOR.
    ///
    /// # Errors
    /// It would be longer than [`MAX_RECORD_BYTES`].
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec does not fail, and no record encodes by hand"
    )]
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let bytes = match self {
            Self::Node(node) => minicbor::to_vec(node),
            Self::Network(network) => minicbor::to_vec(network),
            Self::NetworkAttach(attach) => minicbor::to_vec(attach),
            Self::Service(service) => minicbor::to_vec(service),
            Self::Task(task) => minicbor::to_vec(task),
        }
        .expect("encoding to memory");
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(EncodeError {
                key: self.key(),
                bytes: bytes.len(),
            });
        }
        Ok(bytes)
    }

    /// The record of a key and its CBOR.
    ///
    /// # Errors
    /// The bytes are no record of that kind, or one of another key.
    pub fn decode(key: &RecordKey, value: &[u8]) -> Result<Self, DecodeError> {
        let record = match key {
            RecordKey::Node => Self::Node(minicbor::decode(value)?),
            RecordKey::Network(_) => Self::Network(minicbor::decode(value)?),
            RecordKey::NetworkAttach(_) => Self::NetworkAttach(minicbor::decode(value)?),
            RecordKey::Service(_) => Self::Service(minicbor::decode(value)?),
            RecordKey::Task(_) => Self::Task(minicbor::decode(value)?),
        };
        if record.key() == *key {
            Ok(record)
        } else {
            Err(DecodeError::Key(format!(
                "{key:?} holds {:?}",
                record.key()
            )))
        }
    }
}

/// A record that is too long to be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key:?} takes {bytes} bytes of at most {MAX_RECORD_BYTES}: give it fewer aliases, networks or port entries (a port range counts as one)"
)]
pub struct EncodeError {
    /// The record's key.
    pub key: RecordKey,
    /// Its length.
    pub bytes: usize,
}

/// Bytes that are no record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The key does not parse, or is not the one of its record.
    #[error("record key: {0}")]
    Key(String),
    /// The value does not parse.
    #[error("record value")]
    Value(#[from] minicbor::decode::Error),
}

/// IPv4 prefixes as (address, length).
mod cbor_v4_network {
    use super::{Ipv4Addr, Ipv4Network};
    use minicbor::{
        Decoder, Encoder,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that minicbor calls"
    )]
    pub(super) fn encode<C, W: Write>(
        network: &Ipv4Network,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(2)?
            .u32(network.ip().to_bits())?
            .u8(network.prefix())?
            .ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Ipv4Network, DecodeError> {
        d.array()?;
        let (address, prefix) = (Ipv4Addr::from_bits(d.u32()?), d.u8()?);
        Ipv4Network::new(address, prefix).map_err(DecodeError::custom)
    }
}

/// As [`cbor_v4_network`], where there may be none.
mod cbor_v4_network_option {
    use super::{Ipv4Network, cbor_v4_network};
    use minicbor::{
        Decoder, Encoder,
        data::Type,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };

    #[expect(
        clippy::ref_option,
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that minicbor calls"
    )]
    pub(super) fn encode<C, W: Write>(
        network: &Option<Ipv4Network>,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match network {
            Some(network) => cbor_v4_network::encode(network, e, context),
            None => e.null()?.ok(),
        }
    }

    pub(super) fn decode<C>(
        d: &mut Decoder<'_>,
        context: &mut C,
    ) -> Result<Option<Ipv4Network>, DecodeError> {
        if d.datatype()? == Type::Null {
            d.null()?;
            return Ok(None);
        }
        cbor_v4_network::decode(d, context).map(Some)
    }
}

/// Lists of prefixes as text: rare, and short.
pub(crate) mod cbor_networks {
    use ipnetwork::IpNetwork;
    use minicbor::{
        Decoder, Encoder,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };

    pub(crate) fn encode<C, W: Write>(
        networks: &[IpNetwork],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(networks.len() as u64)?;
        networks
            .iter()
            .try_for_each(|n| e.str(&n.to_string()).map(drop))
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<IpNetwork>, DecodeError> {
        d.array_iter::<&str>()?
            .map(|text| text?.parse().map_err(DecodeError::custom))
            .collect()
    }
}
