//! The VNIs that a VXLAN link with `vnifilter` accepts, as `bridge vni` sets them. The messages
//! (`tunnel_msg` and `VXLAN_VNIFILTER_*` in the kernel's `linux/if_link.h`) are of no crate.

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NetlinkSerializable};

use super::{Netlink, NetlinkError};

const NEW_TUNNEL: u16 = 120;
const FAMILY_BRIDGE: u8 = 7;
const HEADER: usize = 8;
const NESTED: u16 = 1 << 15;
const ENTRY: u16 = 1;
const ENTRY_START: u16 = 1;

#[derive(Debug)]
struct NewTunnel {
    link: u32,
    vni: u32,
}

impl NewTunnel {
    fn entry(&self) -> DefaultNla {
        let start = DefaultNla::new(ENTRY_START, self.vni.to_ne_bytes().to_vec());
        let mut entry = vec![0; start.buffer_len()];
        start.emit(&mut entry);
        DefaultNla::new(ENTRY | NESTED, entry)
    }
}

impl NetlinkSerializable for NewTunnel {
    fn message_type(&self) -> u16 {
        NEW_TUNNEL
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.entry().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, entry) = buffer.split_at_mut(HEADER);
        let [a, b, c, d] = self.link.to_ne_bytes();
        header.copy_from_slice(&[FAMILY_BRIDGE, 0, 0, 0, a, b, c, d]);
        self.entry().emit(entry);
    }
}

impl Netlink {
    /// Lets a VNI into a link; nothing happens when it is in already.
    pub(crate) fn add_vni(&mut self, link: u32, vni: u32) -> Result<(), NetlinkError> {
        self.change(NewTunnel { link, vni }, NLM_F_CREATE)
    }
}
