//! Packets of VLANs, sent as by a cable: only the kernel's way in takes the tag off, no test run does.

use std::{io, os::fd::AsRawFd};

use rustix::net::{AddressFamily, SocketType, socket};

use super::*;

/// Puts a frame on a link.
fn send(link: &str, frame: &[u8]) {
    let socket = socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap();
    // SAFETY: all zero is a valid value.
    #[expect(unsafe_code, reason = "plain bytes")]
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = links::index(link).unwrap().cast_signed();
    // SAFETY: both pointers are to as many bytes as is said.
    #[expect(unsafe_code, reason = "no crate that is used here has this address")]
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    assert_eq!(
        sent,
        frame.len().cast_signed(),
        "{}",
        io::Error::last_os_error()
    );
}

/// It is the VLAN device's, and the program on that sees it without the tag.
#[test]
fn a_packet_with_a_tag_is_left_alone() {
    on_rig(|rig| {
        cable("cable", "nic");
        let mut around = rig.plane.surroundings.clone();
        around.outside.insert("nic".into());
        rig.plane.surround(&around).unwrap();
        rig.serve(Protocol::Udp, &[REMOTE]);

        let plain = udp(CLIENT, FRONTEND, b"x", true);
        let mut tagged = udp((CLIENT.0, 1), FRONTEND, b"x", true);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        send("cable", &tagged);
        send("cable", &plain);
        let arrived = portolan_testbed::wait_until(Duration::from_secs(5), "the second", || {
            Ok(rig.flow(CLIENT, FRONTEND, 17))
        });
        assert_eq!(arrived.unwrap().kind, FLOW_FORWARD);
        assert!(rig.flow((CLIENT.0, 1), FRONTEND, 17).is_none());
        assert_eq!(rig.count("new_flow"), 1);
    });
}
