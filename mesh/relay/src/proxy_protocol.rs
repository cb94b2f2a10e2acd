//! The header of the PROXY protocol, versions 1 and 2 (HAProxy, `doc/proxy-protocol.txt`).

use std::net::SocketAddr;

use portolan_model::ProxyProtocol;

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const V2_PROXY: u8 = 0x21;
const V2_STREAM: u8 = 0x1;
const V2_DATAGRAM: u8 = 0x2;

/// What goes to the backend before the first byte of a connection. `asked` is where the client connected.
pub(crate) fn for_tcp(version: ProxyProtocol, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => v1(client, asked),
        ProxyProtocol::V2 => v2(V2_STREAM, client, asked),
    }
}

/// What goes before the payload of the first datagram of a flow, as HAProxy and nginx do it. Version 1 has
/// no form for datagrams, which then go without.
pub(crate) fn for_udp(version: ProxyProtocol, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => Vec::new(),
        ProxyProtocol::V2 => v2(V2_DATAGRAM, client, asked),
    }
}

fn v1(client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        client.ip(),
        asked.ip(),
        client.port(),
        asked.port()
    )
    .into_bytes()
}

fn v2(transport: u8, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let (family, addresses) = match (client, asked) {
        (SocketAddr::V4(client), SocketAddr::V4(asked)) => {
            (0x10, [client.ip().octets(), asked.ip().octets()].concat())
        }
        (client, asked) => (0x20, [v6_octets(client), v6_octets(asked)].concat()),
    };
    let length = addresses.len() as u16 + 4;
    let mut header = V2_SIGNATURE.to_vec();
    header.extend([V2_PROXY, family | transport]);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header.extend(client.port().to_be_bytes());
    header.extend(asked.port().to_be_bytes());
    header
}

fn v6_octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_a_line() {
        let (client, asked) = ("192.0.2.7:4000", "198.51.100.1:80");
        assert_eq!(
            for_tcp(
                ProxyProtocol::V1,
                client.parse().unwrap(),
                asked.parse().unwrap()
            ),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n"
        );
        let (client, asked) = ("[2001:db8::7]:4000", "[2001:db8::1]:80");
        assert_eq!(
            for_tcp(
                ProxyProtocol::V1,
                client.parse().unwrap(),
                asked.parse().unwrap()
            ),
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 80\r\n"
        );
        assert!(
            for_udp(
                ProxyProtocol::V1,
                client.parse().unwrap(),
                asked.parse().unwrap()
            )
            .is_empty()
        );
    }

    #[test]
    fn version_2_is_binary() {
        let (client, asked) = (
            "192.0.2.7:4000".parse().unwrap(),
            "198.51.100.1:80".parse().unwrap(),
        );
        let expected = |family_and_transport| {
            let mut bytes = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21".to_vec();
            bytes.extend([family_and_transport, 0, 12]);
            bytes.extend([192, 0, 2, 7, 198, 51, 100, 1, 0x0f, 0xa0, 0, 80]);
            bytes
        };
        assert_eq!(for_tcp(ProxyProtocol::V2, client, asked), expected(0x11));
        assert_eq!(for_udp(ProxyProtocol::V2, client, asked), expected(0x12));
    }

    #[test]
    fn version_2_of_ipv6_has_36_bytes_of_addresses() {
        let header = for_tcp(
            ProxyProtocol::V2,
            "[2001:db8::7]:4000".parse().unwrap(),
            "[2001:db8::1]:80".parse().unwrap(),
        );
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header.len(), 16 + 36);
        assert_eq!(header[48..], [0x0f, 0xa0, 0, 80]);
    }
}
