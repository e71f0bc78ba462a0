//! The intake: messages in, arrivals out, with the catalogues that decode them at hand.
//!
//! It stands between MQTT and the store, and is pure: the store is asked by whoever drives it. A batch whose catalogue is
//! missing is kept here, undecoded, until the catalogue comes (contract rule 12); the agent is told by
//! `want_catalog_rev`. It is kept in memory only: it is not acknowledged, so the agent still has it and sends it again.
//!
//! Limits: [`MAX_WAITING_BYTES`] of batches wait, in all; one beyond is let go and comes again. [`MAX_CATALOGS`] catalogues
//! are at hand; the database has the others.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tributary_proto::pb;

use crate::catalog::Catalog;
use crate::ingest::{self, Cause, Ingested, Quarantined};
use crate::ledger::Arrival;
use crate::topic::{AgentKey, Kind};

/// Most bytes of batches that wait for a catalogue.
pub const MAX_WAITING_BYTES: usize = 16 << 20;

/// Most catalogues in memory.
pub const MAX_CATALOGS: usize = 4_096;

/// The catalogues at hand and the batches that wait for one.
#[derive(Debug, Default)]
pub struct Intake {
    catalogs: HashMap<(AgentKey, u64), Arc<Catalog>>,
    waiting: HashMap<(AgentKey, u64), Vec<Held>>,
    waiting_bytes: usize,
}

/// A batch that waits.
#[derive(Debug)]
struct Held {
    seq: u64,
    message: Bytes,
}

impl Intake {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a message in. [`Arrival::Waiting`] says that the database may be asked for a catalogue, which
    /// [`learn`](Self::learn) then takes.
    pub fn take(&mut self, key: &AgentKey, kind: Kind, message: &Bytes) -> Vec<Arrival> {
        match kind {
            Kind::Data => vec![self.data(key, message)],
            Kind::Catalog => self.learn(key, message),
            Kind::Status => match pb::AgentStatus::decode(message.clone()) {
                Ok(status) => vec![Arrival::Status(Arc::new(status))],
                Err(error) => {
                    tracing::warn!(agent = %key, %error, "a status that cannot be read");
                    Vec::new()
                }
            },
        }
    }

    /// Takes a catalogue in, from the agent or from the database, and decodes what waited for it.
    pub fn learn(&mut self, key: &AgentKey, message: &Bytes) -> Vec<Arrival> {
        if message.is_empty() {
            return Vec::new(); // how a retained message is removed
        }
        let catalog = match Catalog::read(message.clone()) {
            Ok(catalog) => Arc::new(catalog),
            Err(error) => {
                let detail = error.to_string();
                let cause = Cause::BadCatalog;
                return vec![Arrival::Quarantine(Arc::new(Quarantined {
                    epoch: 0,
                    seq: 0,
                    cause,
                    detail,
                    message: message.clone(),
                }))];
            }
        };
        let epoch = catalog.epoch;
        let place = (key.clone(), epoch);
        if self.catalogs.len() >= MAX_CATALOGS && !self.catalogs.contains_key(&place) {
            self.catalogs.clear();
        }
        let at_hand = self.catalogs.entry(place.clone()).or_insert_with(|| Arc::clone(&catalog));
        if at_hand.rev < catalog.rev {
            *at_hand = Arc::clone(&catalog);
        }
        let mut arrivals = vec![Arrival::Catalog(catalog)];
        for held in self.waiting.remove(&place).unwrap_or_default() {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(held.message.len());
            arrivals.push(self.data(key, &held.message));
        }
        arrivals
    }

    fn data(&mut self, key: &AgentKey, message: &Bytes) -> Arrival {
        let envelope = match ingest::open(message) {
            Ok(envelope) => envelope,
            Err(other) => return arrival(key, other),
        };
        let (epoch, seq, rev) = (envelope.epoch, envelope.seq, envelope.catalog_rev);
        let place = (key.clone(), epoch);
        match self.catalogs.get(&place) {
            Some(catalog) if catalog.rev >= rev => arrival(key, ingest::decode(envelope, Arc::clone(catalog), message)),
            _ => {
                let waiting = self.waiting.entry(place).or_default();
                // Sent again while it waits: once is enough, the later sending knows more.
                if let Some(held) =
                    waiting.iter_mut().find(|held| held.seq == seq && held.message.len() == message.len())
                {
                    held.message = message.clone();
                } else if self.waiting_bytes + message.len() <= MAX_WAITING_BYTES {
                    self.waiting_bytes += message.len();
                    waiting.push(Held { seq, message: message.clone() });
                }
                Arrival::Waiting { epoch, rev }
            }
        }
    }

    /// Bytes of batches that wait for a catalogue.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }
}

fn arrival(key: &AgentKey, ingested: Ingested) -> Arrival {
    match ingested {
        Ingested::Batch(delivery) => Arrival::Batch(delivery),
        Ingested::Refused(set_aside) => {
            tracing::warn!(agent = %key, epoch = set_aside.epoch, seq = set_aside.seq, reason = set_aside.detail, "batch refused");
            Arrival::Quarantine(set_aside)
        }
        Ingested::TooNew { epoch, refusal } => {
            tracing::warn!(agent = %key, epoch, %refusal, "batch left at the edge");
            Arrival::TooNew { epoch }
        }
    }
}
