//! DNS queries, answered from a fixed zone.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portolan_dns::fuzz_query(data));
