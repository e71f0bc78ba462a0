//! The contract on the wire: messages, the column encoder, and the decoder that refuses.
//!
//! It stands between batch and spool at the edge, and between broker and database at the centre; it knows neither
//! agent nor protocols. Three things live here:
//!
//! - [`pb`]: the messages of `edge.proto`, generated (prost, protox: no protoc).
//! - [`encode`]: columns of readings become a [`pb::Batch`], a batch becomes a body, a body an `Envelope`. Of all
//!   codings a column may take, the smallest is taken.
//! - [`decode`]: an `Envelope` becomes readings, or a [`Refusal`](decode::Refusal) that names the rule it breaks. Whole
//!   or not at all, bit for bit, and without trusting one number in it.
//! - [`catalog`]: what resolves the group and point numbers of a body.
//!
//! Why own code between protobuf and readings: a generic codec sees bytes, a column sees that a register only moved by
//! one. At 1,000 readings a batch that is the difference between one byte a reading and eight.
//!
//! Pure: `no_std`, no clock, no socket, no file. Limits: a body is at most 122,880 bytes as sent and 16 MiB inflated, a
//! batch at most 1,048,576 readings.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

/// The messages of `edge.proto`, as prost generates them; that file documents each field.
#[allow(missing_docs, clippy::all, reason = "generated from edge.proto, whose comments are the documentation")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/convergence.edge.v1.rs"));
}

pub mod catalog;
pub mod decode;
pub mod encode;
mod float;
mod zstd;

pub use zstd::{Damaged, inflate};

/// The schema number that this crate speaks (`Envelope.schema`).
pub const SCHEMA: u32 = 1;

/// Longest body as sent, compressed or not: 120 KiB (columns.md rule 3; AWS IoT Core takes packets of 128 KB).
pub const MAX_BODY: usize = 122_880;

/// Longest body after inflation: 16 MiB (columns.md rule 4).
pub const MAX_INFLATED: usize = 16 << 20;

/// Most readings in a batch (columns.md rule 8).
pub const MAX_READINGS: u64 = 1 << 20;

/// CRC-32C (Castagnoli, reflected; `"123456789"` gives `0xE3069283`), as `Envelope.body_crc32c` holds it.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    const CASTAGNOLI: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
    CASTAGNOLI.checksum(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(super::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(super::crc32c(b""), 0);
    }
}
