//! Long values in short entries: how a record, a state record or a catalogue lies in a database of the spool.
//!
//! sled writes a page larger than a quarter of its segment to a separate file that it never syncs, and a page holds up
//! to 17 entries. So an entry is at most [`ENTRY`] bytes, 17 × 4 KB < 512 KB ÷ 4, and what is longer lies in several:
//!
//! ```text
//! key    kind u8 · id u64 BE · part u16 BE
//! value  version u8 · the key again · count u16 BE · tag u64 BE · length u16 BE · crc32c u32 BE · piece of the value
//! ```
//!
//! An entry says by itself what it is and how long, so that it is found without sled in what is left of a file
//! ([`find`]).
//!
//! Invariants:
//! 1. The checksum covers the head, with the key in it, and the piece: an entry that moved to another key is damage too.
//! 2. A value is whole only if parts 0 … count − 1 are all there and bear one tag. For a record the tag is its length
//!    and checksum, for a state record or catalogue its generation; so parts of two writings never mix.
//! 3. Entries from `count` on are remains of an older, longer value and mean nothing.

use crc::{CRC_32_ISCSI, Crc};

/// Largest entry in bytes, head included.
pub(super) const ENTRY: usize = 4096;
const HEAD: usize = 1 + KEY + 2 + 8 + 2 + 4;
const PIECE: usize = ENTRY - HEAD;
/// Bytes of a key.
pub(super) const KEY: usize = 1 + 8 + 2;
const VERSION: u8 = 2;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What a value is; the first byte of its keys. Records come last and grow at the end: what is written with each commit
/// must not share a page with the newest of them, which sled writes anew every few records (5.4 bytes on the disk for a
/// byte of payload instead of 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    /// A state record; id = slot.
    State = b'a',
    /// A catalogue; id = slot.
    Catalog = b'c',
    /// A record; id = seq.
    Record = b'r',
}

/// The checksum of the spool, CRC-32C (RFC 3720 B.4).
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

/// The tag of a record: its length and checksum.
pub(super) fn record_tag(record: &[u8]) -> u64 {
    (record.len() as u64) << 32 | u64::from(crc32c(record))
}

/// All keys of one value begin with this.
pub(super) fn prefix(kind: Kind, id: u64) -> [u8; KEY - 2] {
    let mut prefix = [kind as u8; KEY - 2];
    prefix[1..].copy_from_slice(&id.to_be_bytes());
    prefix
}

pub(super) fn key(kind: Kind, id: u64, part: u16) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..KEY - 2].copy_from_slice(&prefix(kind, id));
    key[KEY - 2..].copy_from_slice(&part.to_be_bytes());
    key
}

/// `covered` is the head without the checksum itself.
fn checksum(covered: &[u8], piece: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(covered);
    digest.update(piece);
    digest.finalize()
}

/// The entries of a value in ascending order of their keys; `None` if it would need more than 65,535 (255 MB).
pub(super) fn split(
    kind: Kind,
    id: u64,
    tag: u64,
    value: &[u8],
) -> Option<impl Iterator<Item = ([u8; KEY], Vec<u8>)> + '_> {
    let count = u16::try_from(value.len().div_ceil(PIECE).max(1)).ok()?;
    Some((0..count).map(move |part| {
        let from = usize::from(part) * PIECE;
        let piece = value.get(from..value.len().min(from + PIECE)).unwrap_or_default();
        let key = key(kind, id, part);
        let mut entry = Vec::with_capacity(HEAD + piece.len());
        entry.push(VERSION);
        entry.extend_from_slice(&key);
        entry.extend_from_slice(&count.to_be_bytes());
        entry.extend_from_slice(&tag.to_be_bytes());
        entry.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        let crc = checksum(&entry, piece);
        entry.extend_from_slice(&crc.to_be_bytes());
        entry.extend_from_slice(piece);
        (key, entry)
    }))
}

/// Puts values together again from entries that come in ascending order of their keys.
#[derive(Debug, Default)]
pub(super) struct Join {
    id: Option<u64>,
    next: u16,
    count: u16,
    tag: u64,
    value: Vec<u8>,
}

impl Join {
    /// Takes the next entry; gives `(id, tag, value)` when it was the last part of a whole value. Damaged, foreign or
    /// left-over entries are passed over.
    pub(super) fn take(&mut self, key: &[u8], entry: &[u8]) -> Option<(u64, u64, &[u8])> {
        let id = key.get(1..)?.first_chunk().map(|id| u64::from_be_bytes(*id))?;
        if self.id != Some(id) {
            *self = Self { id: Some(id), value: std::mem::take(&mut self.value), ..Self::default() };
            self.value.clear();
        }
        let found = Entry::parse(entry).filter(|found| found.key() == key && found.bytes == entry.len())?;
        let Entry { part, count, tag, .. } = found;
        if part != self.next || (part != 0 && (count, tag) != (self.count, self.tag)) {
            return None;
        }
        (self.count, self.tag, self.next) = (count, tag, part + 1);
        self.value.extend_from_slice(entry.get(HEAD..)?);
        (self.next == self.count).then_some((id, tag, &self.value))
    }
}

/// What an entry says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) part: u16,
    pub(super) count: u16,
    pub(super) tag: u64,
    /// Head included.
    pub(super) bytes: usize,
}

impl Entry {
    /// The entry that `bytes` begin with; `None` if they do not begin with one that is whole.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let kind = match head[1] {
            b'a' => Kind::State,
            b'c' => Kind::Catalog,
            b'r' => Kind::Record,
            _ => return None,
        };
        let long = |from: usize| head[from..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let short = |from: usize| head[from..].first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        let (id, part, count, tag, length) = (long(2)?, short(10)?, short(12)?, long(14)?, short(22)?);
        let piece = rest.get(..usize::from(length))?;
        let (covered, crc) = head.split_last_chunk::<4>()?;
        let whole = head[0] == VERSION && part < count && checksum(covered, piece).to_be_bytes() == *crc;
        whole.then_some(Self { kind, id, part, count, tag, bytes: HEAD + piece.len() })
    }

    fn key(&self) -> [u8; KEY] {
        key(self.kind, self.id, self.part)
    }
}

/// Every whole entry in `bytes`, whatever lies between them, with its place.
pub(super) fn find(bytes: &[u8]) -> impl Iterator<Item = (usize, Entry)> + '_ {
    let begins = bytes.iter().enumerate().filter(|(_, byte)| **byte == VERSION);
    begins.filter_map(|(at, _)| Entry::parse(bytes.get(at..)?).map(|entry| (at, entry)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn joined(entries: &[([u8; KEY], Vec<u8>)]) -> Vec<(u64, Vec<u8>)> {
        let mut join = Join::default();
        entries.iter().filter_map(|(k, v)| join.take(k, v).map(|(id, _, v)| (id, v.to_vec()))).collect()
    }

    fn record(id: u64, bytes: &[u8]) -> Vec<([u8; KEY], Vec<u8>)> {
        split(Kind::Record, id, record_tag(bytes), bytes).unwrap().collect()
    }

    proptest! {
        #[test]
        fn comes_back_whole_or_not_at_all(len in 0usize..20_000, id: u64, flip: prop::sample::Index, bit in 0u8..8) {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
            let mut entries = record(id, &bytes);
            prop_assert!(entries.iter().all(|(_, e)| e.len() <= ENTRY));
            prop_assert_eq!(joined(&entries), vec![(id, bytes)]);
            let at = flip.index(entries.len());
            let byte = flip.index(entries[at].1.len());
            entries[at].1[byte] ^= 1 << bit;
            prop_assert_eq!(joined(&entries), vec![]);
        }

        #[test]
        fn two_writings_never_mix(long in 4_100usize..20_000, short in 0usize..20_000, torn in 0usize..6) {
            let (old, new) = (vec![1; long], vec![2; short]);
            let mut entries: std::collections::BTreeMap<_, _> = record(7, &old).into_iter().collect();
            let written: Vec<_> = record(7, &new).into_iter().take(torn).collect();
            entries.extend(written);
            let entries: Vec<_> = entries.into_iter().collect();
            for (_, value) in joined(&entries) {
                prop_assert!(value == old || value == new);
            }
        }
    }

    #[test]
    fn an_entry_under_another_key_is_damage() {
        let (mut a, b) = (record(1, b"one"), record(2, b"two"));
        a[0].1 = b[0].1.clone();
        assert_eq!(joined(&a), vec![]);
    }
}
