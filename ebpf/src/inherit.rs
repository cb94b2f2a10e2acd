//! What a build with other layouts of the maps has in them, brought into this build's: so an upgrade to such a build
//! moves no flow. The kernel knows the layouts of all maps, by the names of their fields (BTF), and by these the bytes
//! are copied. So the rule for whoever changes `bpf/layout.h`: a field that means something else gets another name,
//! and a new one means by 0 what was so before.

mod btf;
mod table;

use std::{io, path::Path};

#[cfg(test)]
pub(crate) use btf::Btf;
use btf::{Field, Fields};
use table::Table;

/// The maps that make up what is served. `host` is not among them, nor what the agent writes anew by itself.
const MAPS: [&str; 17] = [
    "networks",
    "links",
    "frontends",
    "tickets",
    "answers",
    "allowed",
    "chunks",
    "load",
    "slots",
    "backends",
    "backend_stats",
    "flows",
    "own",
    "peers",
    "tasks",
    "backend_labels",
    "frontend_labels",
];

/// What is known of processes' own sockets. It is there only where processes are connected by programs.
const SOCKETS: [&str; 3] = ["tcp_dialled", "udp_dialled", "udp_chosen"];

/// Copies all that is served from the pins of another build to this one's, which are new.
///
/// # Errors
/// A map is missing, or has fields that mean something else now, or cannot be read: then nothing was written, unless
/// it was the writing that failed.
pub(crate) fn all(from: &Path, to: &Path) -> io::Result<()> {
    let copies: Vec<Copy> = MAPS
        .iter()
        .map(|name| Copy::new(from, to, name))
        .collect::<io::Result<_>>()?;
    copies.iter().try_for_each(Copy::run)
}

/// Copies the flows alone, over those that are there: what has become of them since.
///
/// # Errors
/// As for [`all`].
pub(crate) fn flows(from: &Path, to: &Path) -> io::Result<()> {
    Copy::new(from, to, "flows")?.run()
}

/// Whether a build knows of sockets.
pub(crate) fn knows_sockets(pins: &Path) -> bool {
    SOCKETS.iter().all(|name| pins.join(name).exists())
}

/// Copies what is known of sockets, over what is there, if both builds know of them.
///
/// # Errors
/// As for [`all`].
pub(crate) fn sockets(from: &Path, to: &Path) -> io::Result<()> {
    if !(knows_sockets(from) && knows_sockets(to)) {
        return Ok(());
    }
    let copies = SOCKETS.iter().map(|name| Copy::new(from, to, name));
    let copies: Vec<Copy> = copies.collect::<io::Result<_>>()?;
    copies.iter().try_for_each(Copy::run)
}

/// The way from one map to another.
struct Copy {
    from: Table,
    to: Table,
    key: Vec<(Field, Field)>,
    value: Vec<(Field, Field)>,
}

impl Copy {
    fn new(from: &Path, to: &Path, name: &str) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        let (from, to) = (
            Table::open(&from.join(name)).map_err(named)?,
            Table::open(&to.join(name)).map_err(named)?,
        );
        let other = |what: &str| io::Error::other(format!("{name}: {what} has another meaning"));
        if from.kind != to.kind {
            return Err(other("the map"));
        }
        let key = moves(&from.key_fields, &to.key_fields).ok_or_else(|| other("a key"))?;
        // What would be missing in a key would make two of them one.
        if without_padding(&from.key_fields).ne(without_padding(&to.key_fields)) {
            return Err(other("a key"));
        }
        let value = moves(&from.value_fields, &to.value_fields).ok_or_else(|| other("a value"))?;
        Ok(Self {
            from,
            to,
            key,
            value,
        })
    }

    fn run(&self) -> io::Result<()> {
        let mut at = None;
        loop {
            let slice = self.from.slice(at.as_deref())?;
            let values = self.from.value * self.from.values;
            let entries = slice
                .keys
                .chunks(self.from.key)
                .zip(slice.values.chunks(values));
            let (mut keys, mut all) = (Vec::new(), Vec::new());
            // In an array nothing is what a place has anyway.
            let counts = |value: &[u8]| !self.to.is_array() || value.iter().any(|byte| *byte != 0);
            for (key, value) in entries.filter(|(_, value)| counts(value)) {
                place(&self.key, key, self.to.key, &mut keys);
                for value in value.chunks(self.from.value) {
                    place(&self.value, value, self.to.value, &mut all);
                }
            }
            self.to.write(&keys, &all)?;
            at = slice.next;
            if at.is_none() {
                return Ok(());
            }
        }
    }
}

/// Appends what a key or a value becomes.
fn place(moves: &[(Field, Field)], from: &[u8], size: usize, to: &mut Vec<u8>) {
    let begin = to.len();
    to.resize(begin + size, 0);
    for (there, here) in moves {
        let source = from.get(there.at..there.at + there.size);
        let target = to.get_mut(begin + here.at..begin + here.at + here.size);
        if let (Some(source), Some(target)) = (source, target) {
            target.copy_from_slice(source);
        }
    }
}

/// From where to where the bytes of the fields go that both have; `None` if one of them has changed.
fn moves(from: &Fields, to: &Fields) -> Option<Vec<(Field, Field)>> {
    let both = without_padding(to).filter_map(|name| Some((from.get(name)?, to.get(name)?)));
    both.map(|(there, here)| (there.size == here.size).then_some((*there, *here)))
        .collect()
}

fn without_padding(fields: &Fields) -> impl Iterator<Item = &String> {
    fields.keys().filter(|name| !name.starts_with("pad"))
}
