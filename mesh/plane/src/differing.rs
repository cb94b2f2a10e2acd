//! What differs between two maps, found in one walk through both.

use std::{cmp::Ordering, collections::BTreeMap};

/// The entries that are not in both maps, and `same`: the key, the value in the first one and the value in the second.
pub(crate) fn differing<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    let next_of_both = move || {
        let order = match (before.peek(), after.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let old = before.next_if(|_| order.is_le());
        let new = after.next_if(|_| order.is_ge());
        let (key, _) = old.or(new)?;
        Some((
            key,
            old.map(|(_, value)| value),
            new.map(|(_, value)| value),
        ))
    };
    std::iter::from_fn(next_of_both).filter(move |(_, before, after)| {
        let both = before.zip(*after);
        !both.is_some_and(|(before, after)| same(before, after))
    })
}
