//! Identifiers: fixed-size for nodes, checked strings for the rest.

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A node: the first 16 bytes of the SHA-256 of its name, so that a name and an identity cannot part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(#[cbor(n(0), with = "minicbor::bytes")] [u8; 16]);

impl NodeId {
    /// The identity that belongs to a node's name.
    pub fn of_name(name: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        let mut id = [0; 16];
        id.copy_from_slice(digest.first_chunk::<16>().unwrap_or(&[0; 16]));
        Self(id)
    }

    /// An identity as it came over the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The identity as it goes over the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Names carry meaning in DNS and on the screen, so an empty one is refused.
    #[error("the name is empty; give 1 to {MAX_NAME} letters, digits, '-', '_' or '.'")]
    Empty,
    /// A name must fit into one DNS label.
    #[error("'{0}' is longer than {MAX_NAME} characters; shorten it")]
    TooLong(String),
    /// The first character that is not allowed at its place.
    #[error(
        "'{name}': '{character}' is not allowed there; use letters, digits, and '-', '_', '.' after the first"
    )]
    Character {
        /// The whole name.
        name: String,
        /// The offending character.
        character: char,
    },
}

/// The longest name: a DNS label (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 63;

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.to_owned()));
    }
    let wrong = name
        .chars()
        .enumerate()
        .find(|&(at, c)| !(c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '-' | '_' | '.'))));
    match wrong {
        Some((_, character)) => Err(NameError::Character {
            name: name.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        // Most names that meet in maps are one and the same.
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    return Ordering::Equal;
                }
                self.0.cmp(&other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name)?;
                Ok(Self(name.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                d.str()?.parse().map_err(minicbor::decode::Error::custom)
            }
        }
    )*};
}

names! {
    /// A service: its full name for stack files (`shop_web`), the engine's id for Docker.
    ServiceId;
    /// A task, unique in the cluster.
    TaskId;
    /// A network, unique in the cluster.
    NetworkName;
}

impl NetworkName {
    /// The built-in network.
    pub fn ingress() -> Self {
        Self(crate::INGRESS_NETWORK.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_a_dns_label() {
        assert!("shop_web.v2".parse::<ServiceId>().is_ok());
        assert_eq!("".parse::<ServiceId>(), Err(NameError::Empty));
        assert!("-web".parse::<ServiceId>().is_err());
        assert!("a b".parse::<NetworkName>().is_err());
        assert!("x".repeat(64).parse::<TaskId>().is_err());
    }

    #[test]
    fn a_node_is_its_name() {
        assert_eq!(NodeId::of_name("n1"), NodeId::of_name("n1"));
        assert_ne!(NodeId::of_name("n1"), NodeId::of_name("n2"));
        assert_eq!(NodeId::of_name("n1").to_string().len(), 32);
    }
}
