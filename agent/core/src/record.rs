//! A sealed batch as the spool keeps it: a head of fixed length, then the body byte for byte as it will be published.
//!
//! ```text
//!  0        1        2        4            8             12           16            24
//! +--------+--------+--------+------------+-------------+------------+-------------+------ … ------+
//! |version |flags   |0       |readings    |catalog_rev  |body_crc32c |oldest_ms    |body           |
//! +--------+--------+--------+------------+-------------+------------+-------------+------ … ------+
//!  flags bit 0: the body is a zstd frame                    integers little-endian
//! ```
//!
//! The head holds what the envelope and the ledger need, so a directory's index never inflates a body.

use alloc::vec::Vec;

use tributary_protocols::time::Wall;

use crate::store::RECORD_HEAD;

const VERSION: u8 = 1;
const ZSTD: u8 = 1;

/// What is known of a batch without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The body is a zstd frame of a `Batch`.
    pub zstd: bool,
    /// Readings in the body.
    pub readings: u32,
    /// Catalogue revision that resolves it.
    pub catalog_rev: u32,
    /// CRC-32C of the body as sent.
    pub body_crc32c: u32,
    /// Oldest stamp in it; `Wall(i64::MAX)` without readings.
    pub oldest: Wall,
}

impl Head {
    /// The record of `body`.
    #[must_use]
    pub fn record(&self, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(RECORD_HEAD + body.len());
        record.push(VERSION);
        record.push(if self.zstd { ZSTD } else { 0 });
        record.extend_from_slice(&[0, 0]);
        record.extend_from_slice(&self.readings.to_le_bytes());
        record.extend_from_slice(&self.catalog_rev.to_le_bytes());
        record.extend_from_slice(&self.body_crc32c.to_le_bytes());
        record.extend_from_slice(&self.oldest.0.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    /// Reads a head; `None` if it is of another version.
    #[must_use]
    pub fn parse(head: &[u8; RECORD_HEAD]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (version, flags) = (head[0], head[1]);
        if version != VERSION || flags & !ZSTD != 0 {
            return None;
        }
        let oldest =
            i64::from_le_bytes([head[16], head[17], head[18], head[19], head[20], head[21], head[22], head[23]]);
        Some(Self {
            zstd: flags & ZSTD != 0,
            readings: word(4),
            catalog_rev: word(8),
            body_crc32c: word(12),
            oldest: Wall(oldest),
        })
    }

    /// Splits a record into head and body.
    #[must_use]
    pub fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (head, body) = record.split_first_chunk::<RECORD_HEAD>()?;
        Some((Self::parse(head)?, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        let head = Head { zstd: true, readings: 7, catalog_rev: 3, body_crc32c: 0xdead_beef, oldest: Wall(-5) };
        let record = head.record(b"body");
        assert_eq!(Head::split(&record), Some((head, &b"body"[..])));
        assert_eq!(Head::split(&record[..20]), None);
        let mut newer = record;
        newer[0] = 2;
        assert_eq!(Head::split(&newer), None);
    }
}
