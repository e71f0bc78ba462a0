//! From a message's bytes to what the ledger can settle: open, find the catalogue, decode (contract rules 11, 12, 22).
//!
//! Pure, and in two steps, because a catalogue is found by what the first yields: [`open()`] reads the header, [`decode()`]
//! the body. What can go wrong is part of the answer, not an error: a batch that is damaged is refused for good and kept
//! in quarantine, one that is too new or lacks its catalogue stays at the edge; neither ever blocks what comes behind it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use tributary_proto::decode::{self, Batch, Refusal};
use tributary_proto::pb;

use crate::catalog::Catalog;

/// SHA-256 of a body as sent. The header is not in it: it changes from one sending to the next.
pub type BodyHash = [u8; 32];

/// A batch, decoded and checked.
#[derive(Debug)]
pub struct Delivery {
    /// Its epoch.
    pub epoch: u64,
    /// Its seq.
    pub seq: u64,
    /// The oldest seq that the agent can still send.
    pub first_retained_seq: u64,
    /// `Lane`, as it came.
    pub lane: i32,
    /// The revision it names; `catalog` is that one or a later one.
    pub catalog_rev: u32,
    /// Readings in it.
    pub readings: u32,
    /// Whether the body is a zstd frame.
    pub zstd: bool,
    /// The body as sent.
    pub body: Vec<u8>,
    /// SHA-256 of it.
    pub hash: BodyHash,
    /// The whole message.
    pub message: Bytes,
    /// What it says.
    pub batch: Batch,
    /// What names its points.
    pub catalog: Arc<Catalog>,
}

impl Delivery {
    /// Whether the body carries anything that counts. Bodies that do not are all alike, so a second one proves nothing.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.readings > 0 || !self.batch.losses.is_empty() || !self.batch.events.is_empty()
    }
}

/// Why a message lies in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It cannot be decoded.
    BadPayload,
    /// Another body is in the ledger under its seq.
    Forked,
    /// Its seq was refused before: that answer stands.
    Refused,
    /// The database will not take it.
    Database,
    /// A catalogue that cannot be read.
    BadCatalog,
}

impl Cause {
    /// Its name in the quarantine table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadPayload => "bad_payload",
            Self::Forked => "forked",
            Self::Refused => "refused",
            Self::Database => "database",
            Self::BadCatalog => "bad_catalog",
        }
    }
}

/// A message that is set aside.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Its epoch; 0 if it cannot be read.
    pub epoch: u64,
    /// Its seq; 0 if it cannot be read.
    pub seq: u64,
    /// Why.
    pub cause: Cause,
    /// In words.
    pub detail: String,
    /// The whole message.
    pub message: Bytes,
}

/// What became of a message of data.
#[derive(Debug)]
pub enum Ingested {
    /// Decoded.
    Batch(Arc<Delivery>),
    /// Refused for good.
    Refused(Arc<Quarantined>),
    /// Newer than this receiver: it stays at the edge.
    TooNew {
        /// The epoch to answer for; 0 if none can be read.
        epoch: u64,
        /// What is not known here.
        refusal: Refusal,
    },
}

/// Reads the header.
///
/// # Errors
/// What becomes of the message instead.
pub fn open(message: &Bytes) -> Result<pb::Envelope, Ingested> {
    decode::open(message).map_err(|refusal| {
        // What is wrong may be the body alone: then the seq can be named.
        let header = pb::Envelope::decode(message.clone()).unwrap_or_default();
        turned_away(header.epoch, header.seq, refusal, message)
    })
}

fn turned_away(epoch: u64, seq: u64, refusal: Refusal, message: &Bytes) -> Ingested {
    match refusal {
        Refusal::TooNew { .. } => Ingested::TooNew { epoch, refusal },
        Refusal::Bad { .. } => {
            let detail = refusal.to_string();
            let cause = Cause::BadPayload;
            Ingested::Refused(Arc::new(Quarantined { epoch, seq, cause, detail, message: message.clone() }))
        }
    }
}

/// Decodes the body by a catalogue of this agent and epoch that is not older than the revision it names.
#[must_use]
pub fn decode(envelope: pb::Envelope, catalog: Arc<Catalog>, message: &Bytes) -> Ingested {
    let batch = match decode::decode(&envelope, &*catalog) {
        Ok(batch) => batch,
        Err(refusal) => return turned_away(envelope.epoch, envelope.seq, refusal, message),
    };
    let pb::Envelope { epoch, seq, first_retained_seq, lane, catalog_rev, readings, body, .. } = envelope;
    let (zstd, body) = match body {
        Some(pb::envelope::Body::PlainZstd(body)) => (true, body),
        Some(pb::envelope::Body::Plain(body) | pb::envelope::Body::Dense(body)) => (false, body),
        None => (false, Vec::new()),
    };
    let hash = Sha256::digest(&body).into();
    let message = message.clone();
    Ingested::Batch(Arc::new(Delivery {
        epoch,
        seq,
        first_retained_seq,
        lane,
        catalog_rev,
        readings,
        zstd,
        body,
        hash,
        message,
        batch,
        catalog,
    }))
}
