//! Stack files.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = portolan_provider::parse(text, "stack.yml", Some("fuzz")) {
        assert!(problems.iter().all(|p| !p.to_string().is_empty()));
    }
});
