//! What a Docker engine says: a JSON object with its answers by what was asked.
#![no_main]

use portolan_docker::{
    Observed,
    observed::{Readable, Unreadable, read, read_list},
    translate,
};
use portolan_model::Record;
use serde_json::Value;

fn list<T: Readable>(engine: &Value, key: &str, bad: &mut Vec<Unreadable>) -> Vec<T> {
    let json = engine.get(key).cloned().unwrap_or(Value::Null);
    match read_list(json) {
        Ok((good, wrong)) => {
            bad.extend(wrong);
            good
        }
        Err(error) => {
            bad.push(error);
            Vec::new()
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(engine) = serde_json::from_slice::<Value>(data) else { return };
    let mut bad = Vec::new();
    let observed = Observed {
        engine: read(engine.get("info").cloned().unwrap_or(Value::Null)).unwrap_or_default(),
        services: list(&engine, "services", &mut bad),
        tasks: list(&engine, "tasks", &mut bad),
        nodes: list(&engine, "nodes", &mut bad),
        networks: list(&engine, "networks", &mut bad),
        containers: list(&engine, "inspect", &mut bad),
        unreadable: bad,
    };
    let wanted = translate(&observed);
    for service in wanted.services {
        assert!(Record::Service(service.service).encode().is_ok());
    }
    for finding in wanted.diagnostics {
        assert!(!finding.diagnostic.to_string().contains(char::is_control));
    }
});
