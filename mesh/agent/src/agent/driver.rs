//! What Docker says to its network driver, and what it is answered: those calls of `docker.networkdriver/1.0`
//! that concern the node. The plugin passes them on by the admin API.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnetwork::Ipv4Network;
use portolan_model::{MacAddress, TaskId};
use portolan_overlay::AttachEndpoint;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::state::DriverNetwork;

/// The option in which a network's VNI travels from the Swarm's manager to its nodes.
const VNI_OPTION: &str = "portolan.vni";
/// Where the options of a network are among those of a call.
const GENERIC: &str = "com.docker.network.generic";
/// As many digits of an endpoint's identity as Docker shows.
const SHORT_ID: usize = 12;
/// What a container's links are called, with a number.
const LINK_PREFIX: &str = "eth";

/// A call of Docker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// To a manager of a Swarm: a network, by its identity, comes to be. What is answered is told to the nodes.
    AllocateNetwork(String, DriverNetwork),
    /// A network comes to this node.
    CreateNetwork(String, DriverNetwork),
    /// It goes.
    DeleteNetwork(String),
    /// A container gets an address.
    CreateEndpoint {
        id: TaskId,
        network: String,
        address: Ipv4Addr,
        /// Its Ethernet address, if somebody has chosen one.
        mac: Option<MacAddress>,
    },
    /// It will be in a namespace.
    Join { id: TaskId, netns: PathBuf },
    /// It is off the network.
    Leave(TaskId),
    /// It has no address any more.
    DeleteEndpoint(TaskId),
}

/// Why a call cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("this agent knows no {0} of Docker's network drivers; install the plugin of its version, {version}", version = super::VERSION)]
    Unknown(String),
    #[error(
        "what Docker says with {call} makes no sense here: {reason}; is it an engine of version 20.10 or later?"
    )]
    Unreadable { call: String, reason: String },
    #[error("an IPv6 subnet is not carried; create the network without --ipv6")]
    Ipv6,
    #[error("a network has one IPv4 subnet here, not {0}; create it with one --subnet")]
    Subnets(usize),
    #[error(
        "'{0}' is no VNI; give {VNI_OPTION} a number from 1 to 16777215, or leave the option out"
    )]
    Vni(String),
    #[error("Docker gives the container no IPv4 address on the network; create it with --subnet")]
    NoAddress,
}

impl Call {
    /// Reads a call by its name, without `NetworkDriver.`, and its body.
    pub(super) fn parse(name: &str, body: &[u8]) -> Result<Self, CallError> {
        let reader = Reader { name, body };
        Ok(match name {
            "AllocateNetwork" => {
                let (id, network) = reader.network()?;
                Self::AllocateNetwork(id, network)
            }
            "CreateNetwork" => {
                let (id, network) = reader.network()?;
                Self::CreateNetwork(id, network)
            }
            "DeleteNetwork" => Self::DeleteNetwork(reader.read::<NetworkCall>()?.network_id),
            "CreateEndpoint" => reader.new_endpoint()?,
            "Join" => {
                let (id, call) = reader.endpoint()?;
                let netns = call.sandbox_key.filter(|path| path.is_absolute());
                let netns = netns.ok_or_else(|| reader.unreadable("it names no SandboxKey"))?;
                Self::Join { id, netns }
            }
            "Leave" => Self::Leave(reader.endpoint()?.0),
            "DeleteEndpoint" => Self::DeleteEndpoint(reader.endpoint()?.0),
            other => return Err(CallError::Unknown(other.to_owned())),
        })
    }
}

/// That a network has been given a VNI.
pub(super) fn allocated(vni: u32) -> Value {
    json!({ "Options": { VNI_OPTION: vni.to_string() } })
}

/// That a container has got its address, and an Ethernet address if nobody had chosen one.
pub(super) fn created(mac: Option<MacAddress>) -> Value {
    match mac {
        Some(mac) => json!({ "Interface": { "MacAddress": mac.to_string() } }),
        None => json!({ "Interface": {} }),
    }
}

/// The link that Docker is to move into the container, and the routes that it is to set there. Everything on
/// the network is behind the gateway, as for tasks that are attached by ourselves; Docker sets a route to the whole
/// subnet too, over which those to its halves go. There is no way out by it: for that Docker has its own.
pub(super) fn joined(link: &str, endpoint: &AttachEndpoint) -> Value {
    // `NEXTHOP` and `CONNECTED` of libnetwork's types.
    const BY_GATEWAY: u8 = 0;
    const ON_LINK: u8 = 1;
    let gateway = endpoint.gateway;
    let behind = halves(endpoint.subnet).chain(endpoint.own_range);
    let routes = behind.map(|range| {
        json!({
            "Destination": range.to_string(),
            "RouteType": BY_GATEWAY,
            "NextHop": gateway.to_string(),
        })
    });
    let on_link = json!({ "Destination": format!("{gateway}/32"), "RouteType": ON_LINK });
    let routes: Vec<Value> = [on_link].into_iter().chain(routes).collect();
    json!({
        "InterfaceName": { "SrcName": link, "DstPrefix": LINK_PREFIX },
        "StaticRoutes": routes,
    })
}

fn halves(subnet: Ipv4Network) -> impl Iterator<Item = Ipv4Network> {
    let prefix = (subnet.prefix() + 1).min(32);
    let second =
        subnet.network().to_bits() | 1_u32.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    [subnet.network(), Ipv4Addr::from_bits(second)]
        .into_iter()
        .filter_map(move |first| Ipv4Network::new(first, prefix).ok())
}

struct Reader<'a> {
    name: &'a str,
    body: &'a [u8],
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkCall {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(default)]
    options: Option<Map<String, Value>>,
    #[serde(default, rename = "IPv4Data")]
    ipv4: Option<Vec<Pool>>,
    #[serde(default, rename = "IPv6Data")]
    ipv6: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pool {
    pool: Ipv4Network,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointCall {
    #[serde(default, rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(default)]
    interface: Option<Interface>,
    #[serde(default)]
    sandbox_key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    #[serde(default)]
    address: String,
    #[serde(default)]
    mac_address: String,
}

impl Reader<'_> {
    fn unreadable(&self, reason: impl Into<String>) -> CallError {
        CallError::Unreadable {
            call: self.name.to_owned(),
            reason: reason.into(),
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(self.body).map_err(|error| self.unreadable(error.to_string()))
    }

    fn network(&self) -> Result<(String, DriverNetwork), CallError> {
        let call: NetworkCall = self.read()?;
        if call.ipv6.is_some_and(|pools| !pools.is_empty()) {
            return Err(CallError::Ipv6);
        }
        let pools = call.ipv4.unwrap_or_default();
        let [Pool { pool }] = pools.as_slice() else {
            return Err(CallError::Subnets(pools.len()));
        };
        let subnet = Ipv4Network::new(pool.network(), pool.prefix())
            .map_err(|error| self.unreadable(error.to_string()))?;
        let options = call.options.unwrap_or_default();
        let generic = options.get(GENERIC).and_then(Value::as_object);
        let vni = generic.unwrap_or(&options).get(VNI_OPTION);
        let vni = vni.map(vni_of).transpose()?;
        Ok((call.network_id, DriverNetwork { subnet, vni }))
    }

    fn endpoint(&self) -> Result<(TaskId, EndpointCall), CallError> {
        let call: EndpointCall = self.read()?;
        let short: String = call.endpoint_id.chars().take(SHORT_ID).collect();
        match short.parse() {
            Ok(id) => Ok((id, call)),
            Err(error) => Err(self.unreadable(format!("the endpoint's identity: {error}"))),
        }
    }

    fn new_endpoint(&self) -> Result<Call, CallError> {
        let (id, call) = self.endpoint()?;
        let interface = call.interface.ok_or(CallError::NoAddress)?;
        let address = match interface.address.split('/').next() {
            None | Some("") => return Err(CallError::NoAddress),
            Some(address) => address
                .parse()
                .map_err(|_| self.unreadable(format!("'{}' is no address", interface.address)))?,
        };
        let mac = Some(interface.mac_address).filter(|text| !text.is_empty());
        let mac = mac.map(|text| serde_json::from_value(Value::String(text)));
        let mac = mac
            .transpose()
            .map_err(|e| self.unreadable(e.to_string()))?;
        Ok(Call::CreateEndpoint {
            id,
            network: call.network_id,
            address,
            mac,
        })
    }
}

fn vni_of(value: &Value) -> Result<u32, CallError> {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    let vni = text.parse().ok().filter(|vni| (1..1 << 24).contains(vni));
    vni.ok_or(CallError::Vni(text))
}

#[cfg(test)]
mod tests;
