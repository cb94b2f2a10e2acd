//! Published ports in the short syntax of Compose and `docker service create --publish`.

use std::net::IpAddr;

use portolan_model::{Protocol, PublishMode, PublishedPort};

use crate::diagnostic::quoted;

/// Why a text is no published port. The text says what to write instead, after the semicolon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// There is nothing, or one of its parts is missing.
    #[error("{0} is no port; write [IP:][published:]target[/protocol], such as 8080:80/tcp")]
    Form(String),
    /// A part that is no number.
    #[error("{0} is no port number; write one of 1-65535")]
    NotANumber(String),
    /// A number that no port has.
    #[error("port {0} is out of range; write one of 1-65535")]
    OutOfRange(String),
    /// A range whose end comes before its start.
    #[error("the range {0} ends before it starts; write the smaller port first")]
    Reversed(String),
    /// A range on one side that is not as long as that on the other.
    #[error(
        "the published ports {published} and the target ports {target} are not equally many; give both ranges the same length"
    )]
    Lengths {
        /// The published ports as written.
        published: String,
        /// The target ports as written.
        target: String,
    },
    /// SCTP, which Docker publishes and Portolan does not.
    #[error("sctp is not supported; publish tcp or udp")]
    Sctp,
    /// A protocol that is none.
    #[error("{0} is no protocol; write tcp or udp")]
    Protocol(String),
    /// A host part that is no address.
    #[error("{0} is no address of a node; write an IP address, one of IPv6 in brackets")]
    Address(String),
}

/// A published port in the short syntax: `[IP:][published:]target[/protocol]`.
///
/// `80` and `0:80` leave the published port open: it is 0 in the result. Both ports may be ranges of the
/// same length (`8000-8010:80-90`). The protocol is tcp if it is left out; an address that means every
/// address (`0.0.0.0`, `[::]`) is the same as none. The mode is ingress.
///
/// # Errors
/// The first part that is wrong, with the text of it.
pub fn parse_port(text: &str) -> Result<PublishedPort, PortError> {
    let text = text.trim();
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (text, Protocol::Tcp),
    };
    let form = || PortError::Form(quoted(text));
    let (address, ports) = split_address(ports).ok_or_else(form)?;
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, target)) => (published, target),
        None => ("", ports),
    };
    if target.is_empty() || (published.is_empty() && address.is_none() && ports.contains(':')) {
        return Err(form());
    }
    Ok(PublishedPort {
        protocol,
        address: address.map(parse_address).transpose()?.flatten(),
        ..join(
            parse_published(published)?,
            parse_target(target)?,
            published,
            target,
        )?
    })
}

/// Splits off the part before the ports, if there is one: all up to the last but one colon, or what is in
/// brackets. `None` is a text of another form.
fn split_address(text: &str) -> Option<(Option<&str>, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        return Some((Some(address), rest.strip_prefix(':')?));
    }
    match text.matches(':').count() {
        0 | 1 => Some((None, text)),
        _ => {
            let (rest, _) = text.rsplit_once(':')?;
            let (address, _) = rest.rsplit_once(':')?;
            Some((Some(address), text.get(address.len() + 1..)?))
        }
    }
}

/// The address of a node; `None` is every address.
pub(crate) fn parse_address(text: &str) -> Result<Option<IpAddr>, PortError> {
    let wrong = |_| PortError::Address(quoted(text));
    let address: IpAddr = text.parse().map_err(wrong)?;
    Ok(Some(address).filter(|a| !a.is_unspecified()))
}

/// A protocol that can be published.
pub(crate) fn parse_protocol(text: &str) -> Result<Protocol, PortError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Err(PortError::Sctp),
        _ => Err(PortError::Protocol(quoted(text))),
    }
}

/// The first of some ports, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    first: u16,
    count: u16,
}

/// A published port or a range of them; `None` is one to be chosen. A range that starts at 0 is what the
/// display of a range to be chosen looks like.
pub(crate) fn parse_published(text: &str) -> Result<Option<Ports>, PortError> {
    if text.is_empty() {
        return Ok(None);
    }
    let ports = parse_range(text)?;
    Ok((ports.first > 0 || ports.count > 1).then_some(ports))
}

/// A target port or a range of them.
pub(crate) fn parse_target(text: &str) -> Result<Ports, PortError> {
    let ports = parse_range(text)?;
    if ports.first == 0 {
        return Err(PortError::OutOfRange("0".into()));
    }
    Ok(ports)
}

/// Pairs the two sides, which their texts are for the message of.
pub(crate) fn join(
    published: Option<Ports>,
    target: Ports,
    published_text: &str,
    target_text: &str,
) -> Result<PublishedPort, PortError> {
    if published.is_some_and(|published| published.count != target.count) {
        return Err(PortError::Lengths {
            published: published_text.to_owned(),
            target: target_text.to_owned(),
        });
    }
    Ok(PublishedPort {
        published: published.map_or(0, |published| published.first),
        target: target.first,
        count: target.count,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        address: None,
    })
}

fn parse_range(text: &str) -> Result<Ports, PortError> {
    let Some((first, last)) = text.split_once('-') else {
        return Ok(Ports {
            first: parse_number(text)?,
            count: 1,
        });
    };
    if first.is_empty() || last.is_empty() {
        return Err(PortError::NotANumber(quoted(text)));
    }
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    let Some(more) = last.checked_sub(first) else {
        return Err(PortError::Reversed(text.to_owned()));
    };
    // Only 0-65535 has one port too many.
    let count = more
        .checked_add(1)
        .ok_or_else(|| PortError::OutOfRange(first.to_string()))?;
    Ok(Ports { first, count })
}

fn parse_number(text: &str) -> Result<u16, PortError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PortError::NotANumber(quoted(text)));
    }
    text.parse()
        .map_err(|_| PortError::OutOfRange(text.chars().take(20).collect()))
}

#[cfg(test)]
mod tests;
