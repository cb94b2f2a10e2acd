//! The layouts of keys and values as the kernel has them: BTF (the kernel's Documentation/bpf/btf.rst).

use std::collections::BTreeMap;

/// Fields by name, those of nested structs as `outer.inner`; a plain number has one without a name.
pub(crate) type Fields = BTreeMap<String, Field>;

/// Where a field is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Field {
    pub(crate) at: usize,
    pub(crate) size: usize,
}

/// How deep types may be within one another; C has no endless ones, broken BTF might.
const DEPTH: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Type {
    /// Where it is among the types.
    at: usize,
    kind: u8,
    count: usize,
    /// Its size, or the type that it stands for.
    size: usize,
}

const INT: u8 = 1;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;

/// All types of an object.
pub(crate) struct Btf<'a> {
    types: Vec<Type>,
    body: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads the section `.BTF` of an object, or what the kernel gives. `None` if it is none.
    pub(crate) fn parse(raw: &'a [u8]) -> Option<Self> {
        let part = |offset: usize, length: usize| {
            let from = word(raw, 4)?.checked_add(word(raw, offset)?)?;
            raw.get(from..from.checked_add(word(raw, length)?)?)
        };
        let mut btf = Self {
            // Type 0 is void.
            types: vec![Type {
                at: 0,
                kind: 0,
                count: 0,
                size: 0,
            }],
            body: part(8, 12)?,
            strings: part(16, 20)?,
        };
        let mut at = 0;
        while at < btf.body.len() {
            let info = word(btf.body, at + 4)?;
            let (kind, count) = (u8::try_from(info >> 24 & 0x1f).ok()?, info & 0xffff);
            // What follows a type: what is there once, and members, parameters and the like.
            let once = match kind {
                INT | 14 | 17 => 4,
                ARRAY => 12,
                _ => 0,
            };
            let each = match kind {
                STRUCT | UNION | 15 | 19 => 12,
                ENUM | 13 => 8,
                _ => 0,
            };
            btf.types.push(Type {
                at,
                kind,
                count,
                size: word(btf.body, at + 8)?,
            });
            at += 12 + once + count * each;
        }
        Some(btf)
    }

    /// The structs that have a name, each with its size in bytes and its type.
    #[cfg(test)]
    pub(crate) fn structs(&self) -> BTreeMap<String, (usize, u32)> {
        let structs = (0..).zip(&self.types).filter(|(_, of)| of.kind == STRUCT);
        structs
            .map(|(id, of)| {
                (
                    self.text(word(self.body, of.at).unwrap()).unwrap(),
                    (of.size, id),
                )
            })
            .filter(|(name, _)| !name.is_empty())
            .collect()
    }

    /// The fields of a type. `None` if it is none that can be in a map.
    pub(crate) fn fields(&self, of: u32) -> Option<Fields> {
        let mut fields = Fields::new();
        self.add(of as usize, String::new(), 0, DEPTH, &mut fields)?;
        Some(fields)
    }

    fn add(&self, of: usize, name: String, at: usize, depth: usize, to: &mut Fields) -> Option<()> {
        let of = self.plain(of, depth)?;
        let known = self.types.get(of)?;
        if known.kind != STRUCT {
            let size = self.size(of, depth)?;
            to.insert(name, Field { at, size });
            return Some(());
        }
        for n in 0..known.count {
            let member = known.at + 12 + n * 12;
            let inner = self.text(word(self.body, member)?)?;
            let inner = if name.is_empty() {
                inner
            } else {
                format!("{name}.{inner}")
            };
            let bits = word(self.body, member + 8)? & 0x00ff_ffff;
            self.add(
                word(self.body, member + 4)?,
                inner,
                at + bits / 8,
                depth.checked_sub(1)?,
                to,
            )?;
        }
        Some(())
    }

    /// What names and qualifiers of a type stand for.
    fn plain(&self, of: usize, depth: usize) -> Option<usize> {
        let known = self.types.get(of)?;
        match known.kind {
            // Typedef, volatile, const, restrict, tags.
            8..=11 | 18 => self.plain(known.size, depth.checked_sub(1)?),
            _ => Some(of),
        }
    }

    fn size(&self, of: usize, depth: usize) -> Option<usize> {
        let depth = depth.checked_sub(1)?;
        let known = self.types.get(self.plain(of, depth)?)?;
        match known.kind {
            INT | STRUCT | UNION | ENUM | 19 => Some(known.size),
            ARRAY => {
                let each = self.size(word(self.body, known.at + 12)?, depth)?;
                each.checked_mul(word(self.body, known.at + 20)?)
            }
            _ => None,
        }
    }

    fn text(&self, at: usize) -> Option<String> {
        let text = self.strings.get(at..)?.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*word)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One type: what it is called, its kind and count, and its size or the type that it stands for.
    fn btf(name: u32, info: u32, size: u32) -> Vec<u8> {
        let header = [0x1_eb9f, 24, 0, 12, 12, 3_u32];
        let words = header.into_iter().chain([name, info, size]);
        words.flat_map(u32::to_ne_bytes).chain(*b"\0a\0").collect()
    }

    #[test]
    fn what_is_broken_has_no_fields() {
        let number = btf(1, u32::from(ENUM) << 24, 4);
        let fields = Btf::parse(&number).unwrap().fields(1).unwrap();
        assert_eq!(fields[""], Field { at: 0, size: 4 });
        for end in 0..number.len() {
            assert!(Btf::parse(&number[..end]).is_none(), "cut after {end}");
        }
        assert_eq!(Btf::parse(&number).unwrap().fields(2), None, "no such type");
        let endless = btf(1, 8 << 24, 1);
        assert_eq!(
            Btf::parse(&endless).unwrap().fields(1),
            None,
            "stands for itself"
        );
        let long = btf(1, u32::from(STRUCT) << 24 | 7, 4);
        assert!(
            Btf::parse(&long).is_none_or(|btf| btf.fields(1).is_none()),
            "no members"
        );
    }
}
