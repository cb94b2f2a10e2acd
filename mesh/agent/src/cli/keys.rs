//! Gossip keys on disk.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use portolan_gossip::{Key, Keyring};

use super::{
    failure::{Failure, with_causes},
    print,
};

/// Makes a key: into a new file that is closed to others, or onto standard output.
pub(crate) fn keygen(file: Option<&Path>) -> Result<(), Failure> {
    let key = Key::generate().map_err(|error| Failure::failed(with_causes(&error)))?;
    let Some(file) = file else {
        return print(&format!("{}\n", key.reveal()));
    };
    let shown = file.display();
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::failed(format!(
                "{shown} exists, and may hold the key of a cluster; remove it first, or give another name"
            )),
            _ => Failure::failed(format!("{shown}: {}", crate::config::reason(&error))),
        })?;
    let written = writeln!(out, "{}", key.reveal()).and_then(|()| out.sync_all());
    written.map_err(|error| {
        Failure::failed(format!(
            "{shown}: {}; what is in it is no key",
            crate::config::reason(&error)
        ))
    })?;
    print(&format!(
        "{shown}: key {}; copy it to every node\n",
        key.id()
    ))
}

/// The one key of a file, or of standard input (`-`). A key itself is taken too, though the shell's history
/// and the list of processes then show it.
pub(crate) fn read_key(from: &str) -> Result<Key, Failure> {
    if let Ok(key) = from.parse() {
        return Ok(key);
    }
    let mut text = String::new();
    let read = if from == "-" {
        io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(from).map(|read| text = read)
    };
    read.map_err(|error| {
        Failure::input(format!(
            "{from}: cannot be read: {}; give a file that `portolan keygen` made",
            crate::config::reason(&error)
        ))
    })?;
    let wrong = |error| Failure::input(format!("{from}: {}", with_causes(&error)));
    let ring = Keyring::parse(&text).map_err(wrong)?;
    if ring.list().len() > 1 {
        return Err(Failure::input(format!(
            "{from}: holds several keys; keys are installed one at a time, give a file with one"
        )));
    }
    ring.reveal().parse().map_err(wrong)
}
