//! What the text of a value means.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use portolan_model::{PlaneChoice, TaskId};

use super::{
    DockerChoice, LogFormat,
    key::DEFAULT_DOCKER,
    layer::{Fault, nearest, quoted},
};

type Parsed<T> = Result<T, Fault>;

/// A name that fits a DNS label, of a node or a cluster.
pub(crate) fn name(text: &str) -> Parsed<String> {
    // Node names follow the rule of all names of the model; which of its types is asked does not matter.
    TaskId::from_str(text)
        .map(|name| name.as_str().to_owned())
        .map_err(|error| {
            let text = error.to_string();
            let (message, remedy) = text
                .rsplit_once("; ")
                .unwrap_or((&text, "give a shorter one"));
            Fault::new(message, remedy)
        })
}

/// A port other than 0.
pub(crate) fn port(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Fault::new(
            format!("{} is no port", quoted(text)),
            "give a number of 1 to 65535",
        )),
    }
}

/// An address at which others can reach one node.
pub(crate) fn unicast(text: &str) -> Parsed<IpAddr> {
    let address: IpAddr = text.parse().map_err(|_| {
        Fault::new(
            format!("{} is no IP address", quoted(text)),
            "give an address of this machine, such as 10.0.0.5, without a port",
        )
    })?;
    let why = if address.is_unspecified() {
        "is every address, which tells other nodes nothing"
    } else if address.is_multicast() {
        "is a multicast address"
    } else if matches!(address, IpAddr::V4(v4) if v4.is_broadcast()) {
        "is the broadcast address"
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        "is link-local, and means nothing without an interface"
    } else {
        return Ok(address);
    };
    Err(Fault::new(
        format!("{address} {why}"),
        "give one address of this machine that other nodes reach",
    ))
}

/// An IPv4 address that a machine can take for itself, or `none`.
pub(crate) fn node_address(text: &str) -> Parsed<Option<Ipv4Addr>> {
    if text == "none" {
        return Ok(None);
    }
    let remedy = "give one that is nobody's, such as 169.254.77.53, or none";
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| Fault::new(format!("{} is no IPv4 address", quoted(text)), remedy))?;
    let unfit = address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_loopback();
    if unfit {
        let message = format!("{address} is no address at which containers reach their node");
        return Err(Fault::new(message, remedy));
    }
    Ok(Some(address))
}

/// An address with its port.
pub(crate) fn listen(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        let remedy = match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("add the port: [{address}]:7947"),
            Ok(address) => format!("add the port: {address}:7947"),
            Err(_) => "give address and port, such as 127.0.0.1:7947 or [::1]:7947".to_owned(),
        };
        Fault::new(
            format!("{} is no address with a port", quoted(text)),
            remedy,
        )
    })
}

/// An address, its port 53 unless given.
pub(crate) fn resolver(text: &str) -> Parsed<SocketAddr> {
    let address = text
        .parse()
        .or_else(|_| bare_ip(text).map(|ip| SocketAddr::new(ip, 53)).ok_or(()));
    address.map_err(|()| {
        Fault::new(
            format!("{} is no resolver", quoted(text)),
            "give an IP address, with a port if it is not 53: 9.9.9.9 or 127.0.0.1:5353",
        )
    })
}

/// A member to join by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    /// Its address.
    Address(SocketAddr),
    /// Its name and port; the name is looked up when the agent runs, and again until it resolves.
    Name(String, u16),
}

/// A member to join by: `10.0.0.5`, `10.0.0.5:7946`, `[fd00::5]:7946`, `fd00::5`, `node2` or `node2:7946`.
pub(crate) fn seed(text: &str, default_port: u16) -> Parsed<Seed> {
    let wrong = || {
        Fault::new(
            format!("{} is no member", quoted(text)),
            "give an address or a name, with a port if it is another one: 10.0.0.5, node2:7946",
        )
    };
    if let Some(ip) = bare_ip(text) {
        return Ok(Seed::Address(SocketAddr::new(ip, default_port)));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => Err(wrong()),
            _ => Ok(Seed::Address(address)),
        };
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, self::port(port).map_err(|_| wrong())?),
        None => (text, default_port),
    };
    let valid = !host.is_empty()
        && host.len() <= 253
        // A name of digits and dots is an address mistyped, and the resolver would guess at it.
        && host.chars().any(|c| c.is_ascii_alphabetic())
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    valid
        .then(|| Seed::Name(host.to_owned(), port))
        .ok_or_else(wrong)
}

/// An address without a port, in brackets or not.
fn bare_ip(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// A path.
pub(crate) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new(
            "the path is empty or has a zero byte",
            "give a path",
        ));
    }
    Ok(text.into())
}

/// A path that means the same from everywhere, below the root.
pub(crate) fn absolute(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    if !path.is_absolute() || path.parent().is_none() {
        return Err(Fault::new(
            format!("{} is no directory below /", quoted(text)),
            "give its whole path, such as /sys/fs/bpf/portolan",
        ));
    }
    Ok(path)
}

/// A path at which a unix socket can be bound.
pub(crate) fn socket(text: &str) -> Parsed<PathBuf> {
    /// `sun_path` of unix(7), less the zero byte at its end.
    const LONGEST: usize = 107;
    let path = path(text)?;
    if text.len() > LONGEST {
        return Err(Fault::new(
            format!(
                "the path has {} bytes; a unix socket's has at most {LONGEST}",
                text.len()
            ),
            "give a shorter one",
        ));
    }
    Ok(path)
}

/// A switch.
pub(crate) fn switch(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Fault::new(
            format!("{} is neither true nor false", quoted(text)),
            "give true or false",
        )),
    }
}

/// A Docker engine: its socket, whether there is one, or `auto`.
pub(crate) fn docker(text: &str) -> Parsed<DockerChoice> {
    if text == "auto" {
        return Ok(DockerChoice::Auto);
    }
    match switch(text) {
        Ok(true) => Ok(DockerChoice::At(DEFAULT_DOCKER.into())),
        Ok(false) => Ok(DockerChoice::Off),
        Err(_) => {
            let path = text.strip_prefix("unix://").unwrap_or(text);
            if !path.starts_with('/') {
                return Err(Fault::new(
                    format!("{} is no unix socket", quoted(text)),
                    "give the whole path of the engine's socket, or true, false or auto",
                ));
            }
            Ok(DockerChoice::At(socket(path)?))
        }
    }
}

/// A plane.
pub(crate) fn plane(text: &str) -> Parsed<PlaneChoice> {
    match text {
        "auto" => Ok(PlaneChoice::Auto),
        "relay" => Ok(PlaneChoice::Relay),
        "ebpf" => Ok(PlaneChoice::Ebpf),
        _ => Err(choice(text, "plane", &["auto", "ebpf", "relay"])),
    }
}

/// A log format.
pub(crate) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(choice(text, "log format", &["text", "json"])),
    }
}

/// Log directives. A bare word that is no level would be taken for the name of a module, with nothing
/// logged and nothing said, so it is refused.
pub(crate) fn log(text: &str) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const EXAMPLE: &str = "give a level (off, error, warn, info, debug, trace) or directives such as \
                           info,portolan_gossip=debug";
    let bare = text.split(',').map(str::trim).find(|directive| {
        !directive.contains(['=', '['])
            && !LEVELS.contains(&directive.to_ascii_lowercase().as_str())
    });
    if let Some(word) = bare {
        return Err(choice(word, "log level", &LEVELS));
    }
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| Fault::new(format!("{}: {error}", quoted(text)), EXAMPLE))
}

/// A limit, at least 1.
pub(crate) fn limit(text: &str) -> Parsed<usize> {
    match text.parse() {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => Err(Fault::new(
            format!("{} is no limit", quoted(text)),
            "give a whole number, at least 1",
        )),
    }
}

/// How many flows the fast path knows: the kernel's memory for them is taken at once.
pub(crate) fn flows(text: &str) -> Parsed<u32> {
    const RANGE: std::ops::RangeInclusive<u32> = 1024..=16_777_216;
    match text.parse() {
        Ok(flows) if RANGE.contains(&flows) => Ok(flows),
        _ => Err(Fault::new(
            format!("{} is no number of flows", quoted(text)),
            format!("give a number of {} to {}", RANGE.start(), RANGE.end()),
        )),
    }
}

fn choice(text: &str, what: &str, choices: &[&str]) -> Fault {
    let remedy = nearest(text, choices.iter().copied()).map_or_else(
        || format!("give {}", choices.join(", ")),
        |near| format!("did you mean {near}?"),
    );
    Fault::new(format!("{} is no {what}", quoted(text)), remedy)
}
