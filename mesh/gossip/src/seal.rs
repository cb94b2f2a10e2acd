//! The envelope of a datagram: who sent it, sealed under the cluster's key, and only once.
//!
//! `version 1 | key id 4 | sender 16 | session 8 | counter 8 | ciphertext | tag 16`. The session is
//! random for each start of a process and the key is derived for it, so that a plain counter makes
//! nonces that never repeat. Everything before the ciphertext, and the cluster's name, is
//! authenticated with it.

mod window;

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use portolan_model::NodeId;
use sha2::Sha256;

use crate::{
    codec::{get_array, get_node, get_u8, get_u64},
    keyring::{Key, KeyError, KeyId, Keyring},
};
use window::Window;

/// The version of the envelope and of all that is in it.
pub(crate) const VERSION: u8 = 1;
const HEAD: usize = 1 + 4 + 16 + 8 + 8;
const TAG: usize = 16;
/// Sessions of one sender whose counters are remembered: this one, and one before a restart or of
/// a clone.
const SESSIONS: usize = 4;

/// Why an envelope was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too short or too long for an envelope.
    Malformed,
    /// Another version's.
    Version(u8),
    /// Sealed under a key that is not in the ring.
    UnknownKey(KeyId),
    /// Not sealed by a holder of the key, or for another cluster.
    Decrypt,
    /// Opened before, or too old to tell.
    Replay,
}

/// Which keys are held, and for which cluster.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    ring: Option<Keyring>,
    cluster: String,
}

impl Secrets {
    pub(crate) fn new(ring: Option<Keyring>, cluster: String) -> Self {
        Self { ring, cluster }
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(crate) fn ring(&self) -> Result<&Keyring, KeyError> {
        self.ring.as_ref().ok_or(KeyError::Insecure)
    }

    pub(crate) fn ring_mut(&mut self) -> Result<&mut Keyring, KeyError> {
        self.ring.as_mut().ok_or(KeyError::Insecure)
    }

    /// The id and the bytes of the key to send with. Without a ring it is a key that everybody
    /// knows: damaged packets and other clusters are still kept out.
    pub(crate) fn primary(&self) -> (KeyId, [u8; 32]) {
        let primary = self.ring.as_ref().and_then(Keyring::primary);
        primary.map_or((INSECURE, [0; 32]), |key| (key.id(), *key.bytes()))
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<[u8; 32]> {
        match &self.ring {
            Some(ring) => ring.get(id).map(Key::bytes).copied(),
            None => (id == INSECURE).then_some([0; 32]),
        }
    }
}

/// Stands for "no key".
const INSECURE: KeyId = KeyId::from_bytes([0; 4]);

/// Derives a key that is used for one thing only.
pub(crate) fn derive<const N: usize>(key: &[u8; 32], salt: &[u8], info: &[&[u8]]) -> [u8; N] {
    let mut derived = [0; N];
    let expanded = Hkdf::<Sha256>::new(Some(salt), key).expand_multi_info(info, &mut derived);
    // Only lengths beyond 8160 bytes fail.
    debug_assert!(expanded.is_ok(), "HKDF gives {N} bytes");
    derived
}

/// Seals and opens datagrams.
pub(crate) struct Envelopes {
    secrets: Secrets,
    me: NodeId,
    session: u64,
    counter: u64,
    sending: (KeyId, ChaCha20Poly1305),
    sessions: BTreeMap<(NodeId, u64), Session>,
    uses: u64,
    most: usize,
}

struct Session {
    window: Window,
    ciphers: Vec<(KeyId, ChaCha20Poly1305)>,
    used: u64,
}

impl Envelopes {
    /// `session` must not have been used by this node before; `most` is how many senders'
    /// counters are remembered.
    pub(crate) fn new(secrets: Secrets, me: NodeId, session: u64, most: usize) -> Self {
        let (id, key) = secrets.primary();
        let cipher = session_cipher(&key, &secrets.cluster, me, session);
        Self {
            secrets,
            me,
            session,
            counter: 0,
            sending: (id, cipher),
            sessions: BTreeMap::new(),
            uses: 0,
            most,
        }
    }

    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Changes the ring.
    pub(crate) fn change_ring(
        &mut self,
        change: impl FnOnce(&mut Keyring) -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        change(self.secrets.ring_mut()?)?;
        let (id, key) = self.secrets.primary();
        let cipher = session_cipher(&key, &self.secrets.cluster, self.me, self.session);
        self.sending = (id, cipher);
        let secrets = &self.secrets;
        for session in self.sessions.values_mut() {
            session.ciphers.retain(|(id, _)| secrets.get(*id).is_some());
        }
        Ok(())
    }

    pub(crate) fn seal(&mut self, body: &[u8]) -> Bytes {
        self.counter += 1;
        let (id, cipher) = &self.sending;
        let mut packet = Vec::with_capacity(HEAD + body.len() + TAG);
        packet.put_u8(VERSION);
        packet.put_slice(id.as_bytes());
        packet.put_slice(self.me.as_bytes());
        packet.put_u64(self.session);
        packet.put_u64(self.counter);
        let aad = associated(&packet, &self.secrets.cluster);
        let payload = Payload {
            msg: body,
            aad: &aad,
        };
        // Only lengths beyond 256 GiB fail.
        let sealed = cipher.encrypt(&nonce(self.counter), payload);
        packet.extend_from_slice(&sealed.unwrap_or_default());
        packet.into()
    }

    /// Checks and opens, in the order of what each check costs.
    pub(crate) fn open(&mut self, packet: &[u8]) -> Result<(NodeId, Bytes), Refusal> {
        if packet.len() < HEAD + TAG {
            return Err(Refusal::Malformed);
        }
        let (head, sealed) = packet.split_at(HEAD);
        let mut buf = head;
        let version = get_u8(&mut buf).map_err(|_| Refusal::Malformed)?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        let id = KeyId::from_bytes(get_array(&mut buf).map_err(|_| Refusal::Malformed)?);
        let sender = get_node(&mut buf).map_err(|_| Refusal::Malformed)?;
        let session = get_u64(&mut buf).map_err(|_| Refusal::Malformed)?;
        let counter = get_u64(&mut buf).map_err(|_| Refusal::Malformed)?;
        debug_assert!(!buf.has_remaining(), "the head is read whole");
        let key = self.secrets.get(id).ok_or(Refusal::UnknownKey(id))?;

        let known = self.sessions.get(&(sender, session));
        let cached = known.and_then(|s| s.ciphers.iter().find(|(known, _)| *known == id));
        let fresh;
        let cipher = if let Some((_, cipher)) = cached {
            cipher
        } else {
            fresh = session_cipher(&key, &self.secrets.cluster, sender, session);
            &fresh
        };
        let aad = associated(head, &self.secrets.cluster);
        let payload = Payload {
            msg: sealed,
            aad: &aad,
        };
        let body = cipher
            .decrypt(&nonce(counter), payload)
            .map_err(|_| Refusal::Decrypt)?;

        // Only now is anything remembered: what is forged takes no room.
        let unknown = cached.is_none().then(|| cipher.clone());
        self.uses += 1;
        let uses = self.uses;
        if known.is_none() {
            self.make_room(sender);
        }
        let entry = self
            .sessions
            .entry((sender, session))
            .or_insert_with(|| Session {
                window: Window::default(),
                ciphers: Vec::new(),
                used: 0,
            });
        entry.used = uses;
        entry.ciphers.extend(unknown.map(|cipher| (id, cipher)));
        if entry.window.admit(counter) {
            Ok((sender, body.into()))
        } else {
            Err(Refusal::Replay)
        }
    }

    fn make_room(&mut self, sender: NodeId) {
        let same = self.sessions.range((sender, 0)..=(sender, u64::MAX));
        let same: Vec<_> = same.map(|(id, s)| (s.used, *id)).collect();
        let oldest = if same.len() >= SESSIONS {
            same.into_iter().min()
        } else if self.sessions.len() >= self.most * 2 {
            self.sessions.iter().map(|(id, s)| (s.used, *id)).min()
        } else {
            None
        };
        if let Some((_, id)) = oldest {
            self.sessions.remove(&id);
        }
    }
}

fn session_cipher(key: &[u8; 32], cluster: &str, sender: NodeId, session: u64) -> ChaCha20Poly1305 {
    let derived: [u8; 32] = derive(
        key,
        b"portolan gossip datagram 1",
        &[
            sender.as_bytes(),
            &session.to_be_bytes(),
            cluster.as_bytes(),
        ],
    );
    ChaCha20Poly1305::new(&derived.into())
}

fn associated(head: &[u8], cluster: &str) -> Vec<u8> {
    [head, cluster.as_bytes()].concat()
}

pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    for (to, from) in nonce.iter_mut().zip(counter.to_le_bytes()) {
        *to = from;
    }
    nonce.into()
}

#[cfg(test)]
mod tests;
