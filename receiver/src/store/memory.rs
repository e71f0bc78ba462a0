//! A store without a disk: the ledger for simulations, with the same settling as the databases.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Acks, Group};
use crate::agent::AgentRow;
use crate::catalog::Catalog;
use crate::contiguity::Contiguity;
use crate::ingest::{BodyHash, Quarantined};
use crate::ledger::{Arrival, Book, Entry, NewBatch, settle};
use crate::topic::AgentKey;

/// Everything the database would hold.
#[derive(Debug, Default)]
pub struct Memory {
    /// Table `agent`.
    pub agents: BTreeMap<AgentKey, AgentRow>,
    /// Table `contiguity`.
    pub epochs: BTreeMap<(AgentKey, u64), Contiguity>,
    /// Table `batch` in the order of its commits. May be drained: the ledger itself is kept apart.
    pub batches: Vec<(AgentKey, NewBatch)>,
    /// Table `quarantine`.
    pub quarantined: Vec<(AgentKey, Arc<Quarantined>)>,
    /// Table `catalog`.
    pub catalogs: BTreeMap<(AgentKey, u64), Arc<Catalog>>,
    ledger: HashMap<(AgentKey, u64, u64), BodyHash>,
    bodies: HashMap<(AgentKey, BodyHash), Vec<Entry>>,
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Settles a group; what it answers may be sent at once.
    pub fn commit(&mut self, group: &Group, now_ms: i64) -> Acks {
        let mut acks = Acks::new();
        for (key, arrivals) in group {
            let settled = settle(self.book(key, arrivals), arrivals, now_ms);
            self.agents.insert(key.clone(), settled.agent);
            for change in settled.epochs {
                self.epochs.insert((key.clone(), change.epoch), change.facts);
            }
            for batch in settled.batches {
                let (epoch, seq, hash) = (batch.delivery.epoch, batch.delivery.seq, batch.delivery.hash);
                self.ledger.insert((key.clone(), epoch, seq), hash);
                let entry = Entry { epoch, seq, original: batch.original };
                self.bodies.entry((key.clone(), hash)).or_default().push(entry);
                self.batches.push((key.clone(), batch));
            }
            self.quarantined.extend(settled.quarantined.into_iter().map(|set_aside| (key.clone(), set_aside)));
            for catalog in settled.catalogs {
                let newest = self.catalogs.entry((key.clone(), catalog.epoch)).or_insert_with(|| Arc::clone(&catalog));
                if newest.rev < catalog.rev {
                    *newest = catalog;
                }
            }
            acks.extend(settled.acks.into_iter().map(|ack| (key.clone(), ack)));
        }
        acks
    }

    fn book(&self, key: &AgentKey, arrivals: &[Arrival]) -> Book {
        let agent = self.agents.get(key).cloned().unwrap_or_default();
        let mut book = Book::default();
        for epoch in arrivals.iter().flat_map(Arrival::epochs).chain([agent.epoch]) {
            if let Some(facts) = self.epochs.get(&(key.clone(), epoch)) {
                book.epochs.insert(epoch, facts.clone());
            }
        }
        for arrival in arrivals {
            let Arrival::Batch(delivery) = arrival else { continue };
            let name = (delivery.epoch, delivery.seq);
            if let Some(hash) = self.ledger.get(&(key.clone(), name.0, name.1)) {
                book.seqs.insert(name, *hash);
            }
            if let Some(entries) = self.bodies.get(&(key.clone(), delivery.hash)) {
                book.bodies.insert(delivery.hash, entries.clone());
            }
        }
        Book { agent, ..book }
    }
}
