//! The keys of a cluster, and their rotation.
//!
//! A ring holds at most three keys: the first is the primary, which packets are sent with; packets
//! under any of them are taken. To rotate, install the new key on every node, then use it on every
//! node, then remove the old one. Keys never travel by gossip, and are never printed.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

/// Keys in a ring at most.
pub const MAX_KEYS: usize = 3;

/// A secret of 32 bytes. Whoever has it is trusted wholly.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A new key from the kernel's generator.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| KeyError::Random(error.into()))?;
        Ok(Self(key))
    }

    /// The key in base64, as it stands in a key file. A secret: not for logs.
    pub fn reveal(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Its fingerprint.
    pub fn id(&self) -> KeyId {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(b"portolan key id")
            .chain_update(self.0)
            .finalize()
            .into();
        let [a, b, c, d, ..] = digest;
        KeyId([a, b, c, d])
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let bytes = if text.len() == 64 {
            hex(text)
        } else {
            STANDARD.decode(text).ok()
        };
        let key = bytes
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or(KeyError::Format)?;
        if key == [0; 32] {
            return Err(KeyError::Zero);
        }
        Ok(Self(key))
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let pairs = digits?;
    Some(
        pairs
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[high, low]| high << 4 | low)
            .collect(),
    )
}

/// The fingerprint of a key: short, and no help in finding the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; 4]);

impl KeyId {
    pub(crate) const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 4] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = (text.len() == 8).then(|| hex(text)).flatten();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(KeyError::Id)
    }
}

/// A key of the ring, as it may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyEntry {
    /// Its fingerprint.
    pub id: KeyId,
    /// Whether packets are sent with it.
    pub primary: bool,
}

/// Why a key or a ring was refused. The ring is as it was.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a key.
    #[error(
        "not a key; give 32 bytes as 44 characters of base64 or 64 of hexadecimal, or make one with `portolan keygen`"
    )]
    Format,
    /// The all-zero key protects nothing.
    #[error("the key is all zeros; make one with `portolan keygen`")]
    Zero,
    /// Not a key's fingerprint.
    #[error("not a key id; give the 8 hexadecimal digits that the list of keys shows")]
    Id,
    /// A line of a key file is wrong.
    #[error("line {line}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: Box<KeyError>,
    },
    /// A file without a key.
    #[error(
        "no key in it; write one per line, the primary first, or make one with `portolan keygen`"
    )]
    Empty,
    /// More keys than a ring holds.
    #[error("the ring holds {MAX_KEYS} keys; remove one that no node uses any more")]
    TooMany,
    /// The key is there already.
    #[error("key {0} is in the ring already")]
    Duplicate(KeyId),
    /// No such key.
    #[error("key {0} is not in the ring; install it first")]
    Missing(KeyId),
    /// The primary cannot be removed.
    #[error("key {0} is the primary; use another one first")]
    Primary(KeyId),
    /// The node runs without keys.
    #[error("this node runs without keys; give it a key file and start it again")]
    Insecure,
    /// The file cannot be read or written.
    #[error("key file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system or the parser said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel gave no random bytes.
    #[error("no random bytes from the kernel")]
    Random(#[source] io::Error),
    /// The driver has ended.
    #[error("gossip has ended")]
    Ended,
}

/// The keys of a node, the primary first.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Vec<Key>,
    file: Option<PathBuf>,
}

impl Keyring {
    /// A ring of one key.
    pub fn new(key: Key) -> Self {
        Self {
            keys: vec![key],
            file: None,
        }
    }

    /// A ring of one new key.
    pub fn generate() -> Result<Self, KeyError> {
        Key::generate().map(Self::new)
    }

    /// Reads a ring: a key per line, the primary first, `#` begins a comment.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut ring = Self {
            keys: Vec::new(),
            file: None,
        };
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            text.parse()
                .and_then(|key| ring.add(key))
                .map_err(|source| KeyError::Line {
                    line,
                    source: Box::new(source),
                })?;
        }
        if ring.keys.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(ring)
    }

    /// Reads a ring from a file, to which later changes are written.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(|error| file(error.into()))?;
        let mut ring = Self::parse(&text).map_err(|error| file(error.into()))?;
        ring.file = Some(path.to_owned());
        Ok(ring)
    }

    /// The ring as a key file. Secrets: not for logs.
    pub fn reveal(&self) -> String {
        self.keys.iter().map(|key| key.reveal() + "\n").collect()
    }

    /// The keys as they may be shown, the primary first.
    pub fn list(&self) -> Vec<KeyEntry> {
        (0..)
            .zip(&self.keys)
            .map(|(index, key)| KeyEntry {
                id: key.id(),
                primary: index == 0,
            })
            .collect()
    }

    /// Adds a key to take packets with, not yet to send with.
    pub fn install(&mut self, key: Key) -> Result<(), KeyError> {
        self.change(|ring| ring.add(key))
    }

    /// Makes a key of the ring the primary.
    pub fn use_key(&mut self, id: KeyId) -> Result<(), KeyError> {
        self.change(|ring| {
            let index = ring.index(id)?;
            let key = ring.keys.remove(index);
            ring.keys.insert(0, key);
            Ok(())
        })
    }

    /// Takes a key out of the ring.
    pub fn remove(&mut self, id: KeyId) -> Result<(), KeyError> {
        self.change(|ring| match ring.index(id)? {
            0 => Err(KeyError::Primary(id)),
            index => {
                ring.keys.remove(index);
                Ok(())
            }
        })
    }

    pub(crate) fn primary(&self) -> Option<&Key> {
        self.keys.first()
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id() == id)
    }

    fn index(&self, id: KeyId) -> Result<usize, KeyError> {
        let index = self.keys.iter().position(|key| key.id() == id);
        index.ok_or(KeyError::Missing(id))
    }

    fn add(&mut self, key: Key) -> Result<(), KeyError> {
        if self.keys.contains(&key) {
            return Err(KeyError::Duplicate(key.id()));
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        self.keys.push(key);
        Ok(())
    }

    /// Changes the ring and its file, or neither.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        let mut next = self.clone();
        change(&mut next)?;
        if let Some(path) = &next.file {
            persist(path, &next.reveal()).map_err(|error| KeyError::File {
                path: path.clone(),
                source: error.into(),
            })?;
        }
        *self = next;
        Ok(())
    }
}

/// Replaces a file as a whole: after a crash either the old or the new one is there.
pub(crate) fn persist(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let next = PathBuf::from(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
