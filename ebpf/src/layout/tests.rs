//! The layouts in Rust are those in C: the object carries the C ones as BTF (the kernel's
//! Documentation/bpf/btf.rst), which clang makes of the very types that the programs use.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{COUNTERS, OBJECT, SOCKETS, inherit::Btf};

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn c_string(bytes: &[u8]) -> String {
    read_text(bytes)
}

/// A section of a 64-bit ELF file.
fn section<'a>(elf: &'a [u8], name: &str) -> &'a [u8] {
    assert!(!elf.is_empty(), "built without clang");
    let (headers, size, count, names) = (
        u64_at(elf, 0x28),
        u16_at(elf, 0x3a),
        u16_at(elf, 0x3c),
        u16_at(elf, 0x3e),
    );
    let header = |n: usize| &elf[headers + n * size..][..size];
    let body = |header: &[u8]| u64_at(header, 0x18)..u64_at(header, 0x18) + u64_at(header, 0x20);
    let names = &elf[body(header(names))];
    (0..count)
        .map(header)
        .find(|h| c_string(&names[u32_at(h, 0) as usize..]) == name)
        .map(|h| &elf[body(h)])
        .unwrap()
}

/// The structs of an object by name: size, and fields with their offsets, in bytes.
fn structs(object: &[u8]) -> BTreeMap<String, (usize, Vec<(String, usize)>)> {
    let btf = Btf::parse(section(object, ".BTF")).unwrap();
    let layout = |(name, (size, id))| {
        let mut fields = BTreeMap::<String, usize>::new();
        for (field, place) in btf.fields(id)? {
            // What is a struct of its own in C is bytes in Rust.
            let field = field.split('.').next()?.to_owned();
            let at = fields.entry(field).or_insert(place.at);
            *at = place.at.min(*at);
        }
        let mut fields: Vec<_> = fields.into_iter().collect();
        fields.sort_by_key(|(_, at)| *at);
        Some((name, (size, fields)))
    };
    btf.structs().into_iter().filter_map(layout).collect()
}

#[test]
fn rust_and_c_agree_on_every_map() {
    let mut structs = structs(OBJECT);
    for (name, layout) in self::structs(SOCKETS) {
        // What both objects have is one and the same map.
        let first = structs
            .entry(name.clone())
            .or_insert_with(|| layout.clone());
        assert_eq!(*first, layout, "{name} of the two objects");
    }
    for (name, size, fields) in all() {
        let (c_size, c_fields) = structs
            .get(name)
            .unwrap_or_else(|| panic!("no struct {name}"));
        assert_eq!(size, *c_size, "size of {name}");
        let rust: Vec<_> = fields
            .iter()
            .map(|(field, at, _)| ((*field).to_owned(), *at))
            .collect();
        assert_eq!(rust, *c_fields, "fields of {name}");
        // No holes: then equal offsets are equal sizes.
        let end = fields.iter().fold(0, |end, (field, at, size)| {
            assert_eq!(end, *at, "a hole before {name}.{field}");
            at + size
        });
        assert_eq!(end, size, "a hole at the end of {name}");
    }
}

#[test]
fn every_counter_has_a_name_of_its_own_and_a_place() {
    let names: BTreeSet<_> = COUNTERS.iter().map(|counter| counter.name).collect();
    assert_eq!(names.len(), COUNTERS.len());
    assert!(names.len() <= 64, "the kernel's array has 64 places");
    assert!(names.contains("drop_no_back"));
}
