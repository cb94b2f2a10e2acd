//! Records of other nodes, and the catalog that they go into.
#![no_main]

use portolan_model::{Catalog, NodeId, Record, RecordKey};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&length, rest)) = data.split_first() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(length)) else { return };
    let Ok(Some(key)) = RecordKey::decode(key) else { return };
    let Ok(record) = Record::decode(&key, value) else { return };
    let mut catalog = Catalog::new(NodeId::of_name("n1"));
    catalog.set_owner(NodeId::of_name("n2"), true, [record.clone()]);
    drop(catalog.snapshot(true));
    if let Ok(bytes) = record.encode() {
        assert!(Record::decode(&key, &bytes).is_ok_and(|again| again == record));
    }
});
