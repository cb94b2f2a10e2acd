//! The port part of an SRV name.

use portolan_model::{Protocol, PublishedPort};

/// Names of ports that programs ask SRV records for, as IANA registers them.
const NAMED: [(&str, u16); 18] = [
    ("amqp", 5672),
    ("domain", 53),
    ("ftp", 21),
    ("http", 80),
    ("http-alt", 8080),
    ("https", 443),
    ("imap", 143),
    ("ldap", 389),
    ("memcache", 11211),
    ("mongodb", 27017),
    ("mqtt", 1883),
    ("mysql", 3306),
    ("postgresql", 5432),
    ("redis", 6379),
    ("sip", 5060),
    ("smtp", 25),
    ("ssh", 22),
    ("syslog", 514),
];

/// The protocol that a label such as `_tcp` names.
pub(crate) fn protocol(label: &[u8]) -> Option<Protocol> {
    match label.to_ascii_lowercase().as_slice() {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The port number that a label such as `_80` or `_http` names.
pub(crate) fn number(label: &[u8]) -> Option<u16> {
    let text = str::from_utf8(label).ok()?.strip_prefix('_')?;
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|port| *port != 0);
    }
    NAMED
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .map(|(_, port)| *port)
}

/// The port in the task that `asked` stands for: itself if it is a target port or no port is declared
/// at all, else the target of the published port of that number.
pub(crate) fn target(ports: &[PublishedPort], protocol: Protocol, asked: u16) -> Option<u16> {
    if ports.is_empty() {
        return Some(asked);
    }
    let pairs = || {
        ports
            .iter()
            .filter(|port| port.protocol == protocol)
            .flat_map(PublishedPort::pairs)
    };
    pairs()
        .find(|(_, target)| *target == asked)
        .or_else(|| pairs().find(|(published, _)| *published == asked))
        .map(|(_, target)| target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_asked_by_number_and_by_registered_name() {
        assert_eq!(number(b"_80"), Some(80));
        assert_eq!(number(b"_HTTP"), Some(80));
        for wrong in ["80", "_", "_0", "_65536", "_+80", "_nosuch"] {
            assert_eq!(number(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_target_port_goes_before_a_published_one() {
        let ports = [
            PublishedPort::new(8080, 80, Protocol::Tcp),
            PublishedPort::new(80, 3000, Protocol::Tcp),
        ];
        assert_eq!(target(&ports, Protocol::Tcp, 80), Some(80));
        assert_eq!(target(&ports, Protocol::Tcp, 8080), Some(80));
        assert_eq!(target(&ports, Protocol::Tcp, 3000), Some(3000));
        assert_eq!(target(&ports, Protocol::Tcp, 9), None);
        assert_eq!(target(&ports, Protocol::Udp, 80), None);
        assert_eq!(target(&[], Protocol::Udp, 9), Some(9));
    }
}
