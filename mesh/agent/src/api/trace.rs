//! What is asked of a trace, and what it answers: one JSON object a line, the first of them a [`TraceStart`].

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU16,
    str::FromStr,
};

use portolan_model::Protocol;
use serde::{Deserialize, Serialize};

/// A client: `10.77.0.100`, or one port of it, `10.77.0.100:40000`; over IPv6 `2001:db8::7` and
/// `[2001:db8::7]:40000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceClient {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; `None` is any.
    pub port: Option<NonZeroU16>,
}

/// A frontend: `10.77.0.11:8080/tcp`, `[fd77::11]:8080/tcp`, `:8080/tcp`, and all without the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceFrontend {
    /// Its address; `None` is any of the node.
    pub ip: Option<IpAddr>,
    /// Its port.
    pub port: NonZeroU16,
    /// `None` is both.
    pub protocol: Option<Protocol>,
}

/// Why something is no client or no frontend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceSyntax {
    /// Not a client.
    #[error(
        "a client is an IP address, with or without a port: 10.0.0.5, 10.0.0.5:40000, [2001:db8::7]:40000"
    )]
    Client,
    /// Not a frontend.
    #[error(
        "a frontend is a port, with or without an IP address and a protocol: :8080, 10.0.0.11:8080/tcp, [2001:db8::1]:8080/tcp"
    )]
    Frontend,
}

impl FromStr for TraceClient {
    type Err = TraceSyntax;

    fn from_str(text: &str) -> Result<Self, TraceSyntax> {
        if let Ok(ip) = text.parse() {
            return Ok(Self { ip, port: None });
        }
        let (ip, port) = text.rsplit_once(':').ok_or(TraceSyntax::Client)?;
        Ok(Self {
            ip: beside_a_port(ip).ok_or(TraceSyntax::Client)?,
            port: Some(port.parse().map_err(|_| TraceSyntax::Client)?),
        })
    }
}

/// The address before a port: one of IPv6 is in brackets.
fn beside_a_port(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into()),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// An address as it stands before a port.
fn before_a_port(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

impl fmt::Display for TraceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", before_a_port(self.ip)),
            None => write!(f, "{}", self.ip),
        }
    }
}

impl FromStr for TraceFrontend {
    type Err = TraceSyntax;

    fn from_str(text: &str) -> Result<Self, TraceSyntax> {
        let (address, protocol) = match text.split_once('/') {
            Some((address, protocol)) => {
                let protocol = match protocol {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return Err(TraceSyntax::Frontend),
                };
                (address, Some(protocol))
            }
            None => (text, None),
        };
        let (ip, port) = address.rsplit_once(':').unwrap_or(("", address));
        let ip = match ip {
            // As `portolan status` shows it.
            "" | "*" => None,
            ip => Some(beside_a_port(ip).ok_or(TraceSyntax::Frontend)?),
        };
        let port = port.parse().map_err(|_| TraceSyntax::Frontend)?;
        Ok(Self { ip, port, protocol })
    }
}

impl fmt::Display for TraceFrontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.ip {
            f.write_str(&before_a_port(ip))?;
        }
        write!(f, ":{}", self.port)?;
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum TraceLine {
    /// The first one: from here on packets are told.
    Start(TraceStart),
    /// A packet that met a program.
    Hop(Box<TraceHop>),
    /// There was no room for so many packets since the last line of this kind.
    Lost {
        /// How many.
        packets: u64,
    },
}

/// Who tells, and who has the frontends asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStart {
    /// The node's name.
    pub node: String,
    /// The frontends of this node that were asked for; none, if none was named.
    pub frontends: Vec<TracedFrontend>,
}

/// A frontend, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedFrontend {
    /// `*:8080/tcp`.
    pub frontend: String,
    /// The service behind it.
    pub service: String,
    /// Why the relay has it; `None` if the fast path does.
    pub relay_reason: Option<String>,
}

/// What one program of a node did with one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHop {
    /// When, UTC, by the node's clock: `2026-11-21T12:00:01.123456789Z`.
    pub time: String,
    /// The node's name.
    pub node: String,
    /// The processor.
    pub cpu: u32,
    /// The link that the packet came by.
    pub link: String,
    /// What is at the other end of that link.
    pub side: TraceSide,
    /// `tcp` or `udp`.
    pub protocol: Option<Protocol>,
    /// The packet's source as it came; without a port in a later fragment.
    pub from: String,
    /// Its destination.
    pub to: String,
    /// Its source as it went on.
    pub from_after: String,
    /// Its destination as it went on.
    pub to_after: String,
    /// Bytes from the IP header on. Several packets may travel as one.
    pub length: u32,
    /// TCP's: `SYN`, `ACK`, `FIN`, `RST`, `PSH`, `URG`, in this order.
    pub flags: Vec<String>,
    /// Whether it is an ICMP error; the ends are then those of the flow that it is about, in the error's direction.
    pub icmp_error: bool,
    /// Whether it is the first packet of its flow in this direction.
    pub first: bool,
    /// What became of it.
    pub verdict: TraceVerdict,
    /// The code of the reason, as in the metrics, where it was left or dropped for one.
    pub reason: Option<String>,
    /// The reason in words.
    pub meaning: Option<String>,
    /// The task's name.
    pub task: Option<String>,
    /// The name of the node at the other end of the tunnel, or its address.
    pub peer: Option<String>,
}

/// Where a packet came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceSide {
    /// Clients.
    Outside,
    /// Another node.
    Tunnel,
    /// A task of this node.
    Task,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceVerdict {
    /// A client's packet went to a task: by the tunnel if there is a peer, and else on this node.
    Forwarded,
    /// A packet from the tunnel was handed to a task of this node.
    Delivered,
    /// A task's packet went by the tunnel to the node that its client came to.
    SentBack,
    /// A task's packet was given to its client.
    GivenBack,
    /// The relay has the flow.
    Relayed,
    /// It was left to the kernel, where the relay may listen for it.
    Left,
    /// It was dropped.
    Dropped,
    /// It went on, by a flow that was forgotten just then.
    Redirected,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Result<String, TraceSyntax> {
        Ok(text.parse::<TraceClient>()?.to_string())
    }

    fn frontend(text: &str) -> Result<String, TraceSyntax> {
        Ok(text.parse::<TraceFrontend>()?.to_string())
    }

    #[test]
    fn clients_and_frontends_are_read_as_they_are_shown() {
        for text in ["10.0.0.5", "10.0.0.5:40000", "fd00::1", "[fd00::1]:40000"] {
            assert_eq!(client(text).unwrap(), text);
        }
        for text in [
            "10.0.0.11:8080/tcp",
            ":53/udp",
            "10.0.0.11:80",
            ":80",
            "[fd00::11]:8080/udp",
        ] {
            assert_eq!(frontend(text).unwrap(), text);
        }
        assert_eq!(frontend("*:8080/tcp").unwrap(), ":8080/tcp");
        assert_eq!(frontend("8080").unwrap(), ":8080");
    }

    #[test]
    fn what_is_none_is_told_apart() {
        for text in [
            "",
            "web",
            "10.0.0",
            "10.0.0.5:0",
            "10.0.0.5:",
            "10.0.0.5:99999",
            "10.0.0.5/8",
            "[fd00::1]",
            "[10.0.0.5]:80",
            "[fd00::1]:0",
        ] {
            assert_eq!(client(text), Err(TraceSyntax::Client), "{text}");
        }
        for text in [
            "",
            ":",
            ":0",
            "10.0.0.11",
            "web:80",
            ":80/sctp",
            ":80/",
            "10.0.0.11:x",
            "fd00::11:80",
            "[fd00::11]",
        ] {
            assert_eq!(frontend(text), Err(TraceSyntax::Frontend), "{text}");
        }
    }
}
