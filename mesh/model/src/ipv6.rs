//! IPv6 addresses on overlay networks. They are derived from the IPv4 ones, so no record carries them
//! and no two nodes can disagree about them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The length of the prefix that all IPv6 addresses of a network share.
const PREFIX_LENGTH: u8 = 96;

/// The IPv6 address that belongs to an IPv4 address on the network of this VNI: the VNI and the IPv4
/// address, in a unique local prefix (RFC 4193) of Portolan's own.
pub fn ipv6_of(vni: u32, v4: Ipv4Addr) -> Ipv6Addr {
    let [_, high, middle, low] = vni.to_be_bytes();
    let [a, b, c, d] = v4.octets();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfd70,
        0x6f72,
        0x746f,
        pair(high, middle),
        pair(low, 0),
        0,
        pair(a, b),
        pair(c, d),
    )
}

/// The prefix of all of a network's IPv6 addresses, and its length.
pub fn ipv6_prefix(vni: u32) -> (Ipv6Addr, u8) {
    (ipv6_of(vni, Ipv4Addr::UNSPECIFIED), PREFIX_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_network_and_its_ipv4_address() {
        let of = |vni, v4: [u8; 4]| ipv6_of(vni, v4.into()).to_string();
        assert_eq!(of(4096, [10, 208, 1, 2]), "fd70:6f72:746f:10::ad0:102");
        assert_eq!(
            of(0x00ab_cdef, [192, 0, 2, 255]),
            "fd70:6f72:746f:abcd:ef00:0:c000:2ff"
        );
        assert_eq!(
            ipv6_prefix(4097),
            ("fd70:6f72:746f:10:100::".parse().unwrap(), 96)
        );
    }
}
