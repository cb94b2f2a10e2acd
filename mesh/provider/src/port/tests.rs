use std::net::IpAddr;

use portolan_model::{Protocol, PublishMode, PublishedPort};
use proptest::prelude::*;

use super::parse_port;

#[test]
fn the_short_syntax_is_that_of_compose() {
    for (text, shown) in [
        ("80", "0:80/tcp"),
        ("0:80", "0:80/tcp"),
        ("8080:80", "8080:80/tcp"),
        ("8080:80/UDP", "8080:80/udp"),
        (" 8080:80 ", "8080:80/tcp"),
        ("8000-8010:80-90", "8000-8010:80-90/tcp"),
        ("9000-9000:80", "9000:80/tcp"),
        ("80-82", "0-2:80-82/tcp"),
        ("10.0.0.5:8080:80/udp", "10.0.0.5:8080:80/udp"),
        ("10.0.0.5::80", "10.0.0.5:0:80/tcp"),
        ("127.0.0.1:8000-8001:80-81", "127.0.0.1:8000-8001:80-81/tcp"),
        ("[::1]:8080:80", "[::1]:8080:80/tcp"),
        ("::1:8080:80", "[::1]:8080:80/tcp"),
        ("[::1]::80", "[::1]:0:80/tcp"),
        ("[::1]:80", "[::1]:0:80/tcp"),
        ("0.0.0.0:8080:80", "8080:80/tcp"),
        ("[::]:8080:80", "8080:80/tcp"),
        ("65535:65535", "65535:65535/tcp"),
    ] {
        assert_eq!(
            parse_port(text).map(|p| p.to_string()),
            Ok(shown.into()),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_port_says_what_to_write() {
    const FORM: &str = "is no port; write [IP:][published:]target[/protocol], such as 8080:80/tcp";
    for (text, message) in [
        ("", format!("'' {FORM}")),
        ("8080:", format!("'8080:' {FORM}")),
        (":80", format!("':80' {FORM}")),
        ("[::1", format!("'[::1' {FORM}")),
        ("[::1]80", format!("'[::1]80' {FORM}")),
        ("http", "'http' is no port number; write one of 1-65535".into()),
        ("80:web", "'web' is no port number; write one of 1-65535".into()),
        ("-1:80", "'-1' is no port number; write one of 1-65535".into()),
        ("+80", "'+80' is no port number; write one of 1-65535".into()),
        ("70000:80", "port 70000 is out of range; write one of 1-65535".into()),
        ("8080:0", "port 0 is out of range; write one of 1-65535".into()),
        ("8010-8000:80-90", "the range 8010-8000 ends before it starts; write the smaller port first".into()),
        ("0-65535:1-65535", "port 0 is out of range; write one of 1-65535".into()),
        (
            "8000-8010:80",
            "the published ports 8000-8010 and the target ports 80 are not equally many; give both ranges the same length".into(),
        ),
        ("80/sctp", "sctp is not supported; publish tcp or udp".into()),
        ("80/icmp", "'icmp' is no protocol; write tcp or udp".into()),
        (
            "node1:8080:80",
            "'node1' is no address of a node; write an IP address, one of IPv6 in brackets".into(),
        ),
    ] {
        assert_eq!(parse_port(text).unwrap_err().to_string(), message, "{text}");
    }
}

fn port() -> impl Strategy<Value = PublishedPort> {
    let address = proptest::option::of(
        any::<IpAddr>().prop_filter("every address is written as none", |a| !a.is_unspecified()),
    );
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (any::<u16>(), 1_u16.., 1_u16..400, protocol, address).prop_map(
        |(published, target, count, protocol, address)| PublishedPort {
            published,
            target,
            count: count.min(u16::MAX - published.max(target)).max(1),
            protocol,
            mode: PublishMode::Ingress,
            address,
        },
    )
}

proptest! {
    #[test]
    fn a_port_is_read_as_it_is_shown(port in port()) {
        prop_assert_eq!(parse_port(&port.to_string()), Ok(port));
    }

    #[test]
    fn no_text_makes_it_panic(text: String, near in "[0-9:/\\[\\].a-f -]{0,30}") {
        let _ = parse_port(&text);
        let _ = parse_port(&near);
    }
}
