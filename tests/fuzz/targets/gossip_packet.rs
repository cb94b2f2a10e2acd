//! The decoder of gossip datagrams and stream messages, as it is fed after decryption.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portolan_gossip::fuzz_datagram(data));
