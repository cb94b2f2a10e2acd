//! Configuration files.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| drop(portolan_agent::config::parse_toml(text, "portolan.toml")));
