//! The alias of the node's end of a task's veth pair: what is known of an attachment, kept where it
//! lasts as long as the attachment itself.
//!
//! `portolan:<task>:<network>`, then, once the task's end is as it should be,
//! ` <address> <MAC address> <how it answers> <path of the namespace>`.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
};

use portolan_model::{MacAddress, NetworkName, TaskId};

use crate::{names, netlink::Link};

const OURS: &str = "portolan";
/// `IFALIASZ` of the kernel, without the terminating zero.
const MAX_BYTES: usize = 255;

/// What is known of a task's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) task: TaskId,
    pub(crate) network: NetworkName,
    /// `None` while it is being attached.
    pub(crate) end: Option<End>,
}

/// The task's end of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddress,
    pub(crate) answers: Answers,
    /// Where its namespace was found; `None` where there is no room for it.
    pub(crate) netns: Option<PathBuf>,
}

/// By which way the answers of a UDP server leave that is bound to no address: of itself it takes the
/// address, and the way, that the task's routes to the client give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// By the overlay, to which all routes lead.
    Straight,
    /// By the overlay, to which a packet filter in the namespace turns them.
    Turned,
    /// By another way than the request came.
    Astray,
}

impl Answers {
    const ALL: [Self; 3] = [Self::Straight, Self::Turned, Self::Astray];

    fn word(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::Turned => "turned",
            Self::Astray => "astray",
        }
    }
}

impl Alias {
    /// That of a node's end of a veth pair.
    pub(crate) fn of(link: &Link) -> Option<Self> {
        names::is_host_end(&link.name).then_some(())?;
        Self::parse(link.alias.as_deref()?)
    }

    /// Reads an alias; `None` is one of somebody else.
    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut parts = name.split(':');
        let (OURS, task, network, None) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        Some(Self {
            task: task.parse().ok()?,
            network: network.parse().ok()?,
            end: End::parse(rest),
        })
    }
}

impl End {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let (address, mac, answers) = (words.next()?, words.next()?, words.next()?);
        Some(Self {
            address: address.parse().ok()?,
            mac: mac_address(mac)?,
            answers: Answers::ALL.into_iter().find(|a| a.word() == answers)?,
            netns: words.next().map(PathBuf::from),
        })
    }
}

fn mac_address(text: &str) -> Option<MacAddress> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok().map(MacAddress)
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{OURS}:{}:{}", self.task, self.network);
        if let Some(end) = &self.end {
            write!(text, " {} {} {}", end.address, end.mac, end.answers.word())?;
            let netns = end.netns.as_ref().and_then(|path| path.to_str());
            if let Some(path) = netns.filter(|path| text.len() + 1 + path.len() <= MAX_BYTES) {
                text += " ";
                text += path;
            }
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(netns: Option<&str>) -> Alias {
        let address = Ipv4Addr::new(10, 208, 1, 2);
        Alias {
            task: "t1".parse().unwrap(),
            network: "ingress".parse().unwrap(),
            end: Some(End {
                address,
                mac: MacAddress::of_address(address),
                answers: Answers::Turned,
                netns: netns.map(PathBuf::from),
            }),
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let bare = Alias {
            end: None,
            ..alias(None)
        };
        for alias in [bare, alias(None), alias(Some("/run/net ns/t1"))] {
            assert_eq!(Alias::parse(&alias.to_string()), Some(alias));
        }
        let text = alias(Some("/run/netns/t1")).to_string();
        assert_eq!(
            text,
            "portolan:t1:ingress 10.208.1.2 02:70:0a:d0:01:02 turned /run/netns/t1"
        );
    }

    #[test]
    fn a_path_that_is_too_long_is_left_out() {
        let long = alias(Some(&format!("/{}", "x".repeat(200)))).to_string();
        assert_eq!(Alias::parse(&long), Some(alias(None)));
        let fits = 255 - alias(None).to_string().len() - 1;
        for (length, kept) in [(fits, true), (fits + 1, false)] {
            let text = alias(Some(&"x".repeat(length))).to_string();
            assert!(text.len() <= 255 && text.ends_with('x') == kept, "{length}");
        }
    }

    #[test]
    fn what_others_wrote_is_none_of_ours() {
        for text in [
            "",
            "uplink",
            "uplink:t1:a",
            "portolan:t1",
            "portolan:t1:a:b",
        ] {
            assert_eq!(Alias::parse(text), None, "{text}");
        }
        let half = Alias::parse("portolan:t1:ingress 10.208.1.2 02:70").unwrap();
        assert_eq!(half.end, None);
    }
}
