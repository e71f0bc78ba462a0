//! The settling: what arrived meets what the database holds, and out come the rows to write and the Acks to send.
//!
//! Pure, and the one place where it is decided what is new, what is a duplicate and what is a fork. A store loads a
//! [`Book`] under the agent's row lock, calls [`settle`], writes the [`Settled`] in the same transaction and sends its
//! Acks after COMMIT. As every receiver holds the lock while it does so, any number of them agree.
//!
//! | of a batch the ledger holds | then it is |
//! |---|---|
//! | nothing | new |
//! | its (epoch, seq), same body | a duplicate: Ack, nothing else (rule 3) |
//! | its (epoch, seq), another body | a fork: quarantine, verdict FORKED (rules 2 and 3) |
//! | its (epoch, seq) as refused | quarantine: a refusal is for good (rule 8) |
//! | its body under another epoch | renumbered: its seq is settled, without readings (rule 2) |
//!
//! The last row is matched one to one: an original answers for one batch of each later epoch. Two batches of one epoch may
//! hold equal bodies, so after their renumbering each has to find an original of its own; and a body that counts nothing
//! (no reading, loss or event) matches nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tributary_proto::pb;

use crate::agent::AgentRow;
use crate::catalog::Catalog;
use crate::contiguity::Contiguity;
use crate::ingest::{BodyHash, Cause, Delivery, Quarantined};

/// One thing that came from an agent.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// A batch, decoded.
    Batch(Arc<Delivery>),
    /// A message that is set aside.
    Quarantine(Arc<Quarantined>),
    /// A batch of this epoch waits for a catalogue of at least this revision.
    Waiting {
        /// Its epoch.
        epoch: u64,
        /// The revision it names.
        rev: u32,
    },
    /// A batch of this epoch is newer than this receiver.
    TooNew {
        /// Its epoch.
        epoch: u64,
    },
    /// A catalogue.
    Catalog(Arc<Catalog>),
    /// A status.
    Status(Arc<pb::AgentStatus>),
    /// The receiver has just started: the agent gets an Ack of its present epoch (rule 5).
    Greeting,
}

impl Arrival {
    /// The epochs whose [`Contiguity`] it may touch.
    pub fn epochs(&self) -> BTreeSet<u64> {
        match self {
            Self::Batch(delivery) => {
                let named = delivery.batch.losses.iter().map(|loss| loss.epoch).filter(|&epoch| epoch != 0);
                named.chain([delivery.epoch]).collect()
            }
            Self::Quarantine(set_aside) => [set_aside.epoch].into(),
            Self::Waiting { epoch, .. } | Self::TooNew { epoch } => [*epoch].into(),
            Self::Status(status) => [status.epoch].into(),
            Self::Catalog(catalog) => [catalog.epoch].into(),
            Self::Greeting => BTreeSet::new(),
        }
    }
}

/// One row of the ledger, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its epoch.
    pub epoch: u64,
    /// Its seq.
    pub seq: u64,
    /// Of a settled duplicate: the batch that has the readings.
    pub original: Option<(u64, u64)>,
}

/// What the database holds of one agent, as far as a group of arrivals needs it.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Its row.
    pub agent: AgentRow,
    /// Every epoch that [`Arrival::epochs`] names and the agent's present one; absent = nothing known.
    pub epochs: BTreeMap<u64, Contiguity>,
    /// The bodies in the ledger under the (epoch, seq) of the arrivals.
    pub seqs: HashMap<(u64, u64), BodyHash>,
    /// The entries in the ledger that hold a body of the arrivals.
    pub bodies: HashMap<BodyHash, Vec<Entry>>,
}

impl Book {
    /// The original that `delivery` repeats under another epoch's number and that no batch of its own epoch repeats yet.
    fn original(&self, delivery: &Delivery) -> Option<(u64, u64)> {
        if !delivery.counts() {
            return None;
        }
        let entries = self.bodies.get(&delivery.hash)?;
        let taken = |entry: &Entry| {
            let name = Some((entry.epoch, entry.seq));
            entries.iter().any(|other| other.epoch == delivery.epoch && other.original == name)
        };
        let free = |entry: &&Entry| entry.epoch != delivery.epoch && entry.original.is_none() && !taken(entry);
        entries.iter().filter(free).map(|entry| (entry.epoch, entry.seq)).min()
    }

    fn enter(&mut self, delivery: &Delivery, original: Option<(u64, u64)>) {
        let (epoch, seq) = (delivery.epoch, delivery.seq);
        self.seqs.insert((epoch, seq), delivery.hash);
        self.bodies.entry(delivery.hash).or_default().push(Entry { epoch, seq, original });
    }
}

/// A batch for the ledger.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// The batch.
    pub delivery: Arc<Delivery>,
    /// If it is a settled duplicate, the batch that has the readings: neither readings nor losses are written again.
    pub original: Option<(u64, u64)>,
}

/// An epoch's facts after the settling.
#[derive(Clone, Debug)]
pub struct EpochChange {
    /// The epoch.
    pub epoch: u64,
    /// Its facts.
    pub facts: Contiguity,
    /// Gaps to delete from the table.
    pub gaps_closed: Vec<(u64, u64)>,
    /// Gaps to add.
    pub gaps_opened: Vec<(u64, u64)>,
}

/// What to write, and what to say once it is committed.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// The agent's row.
    pub agent: AgentRow,
    /// Batches for the ledger, readings and all.
    pub batches: Vec<NewBatch>,
    /// Messages for quarantine.
    pub quarantined: Vec<Arc<Quarantined>>,
    /// The newest catalogue of each epoch that came. The store keeps it if it is newer than what it has.
    pub catalogs: Vec<Arc<Catalog>>,
    /// Epochs whose facts changed.
    pub epochs: Vec<EpochChange>,
    /// Acks, one per epoch that something came of.
    pub acks: Vec<pb::Ack>,
}

/// What an Ack says beside the facts.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    bad: bool,
    too_new: bool,
    want_catalog_rev: u32,
}

/// Settles `arrivals` of one agent, in their order, against its `book`; `now_ms` is the receiver's wall clock.
#[must_use]
pub fn settle(mut book: Book, arrivals: &[Arrival], now_ms: i64) -> Settled {
    let before = book.epochs.clone();
    let mut settled = Settled::default();
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    let mut catalogs: BTreeMap<u64, Arc<Catalog>> = BTreeMap::new();
    for arrival in arrivals {
        match arrival {
            Arrival::Batch(delivery) => {
                let answer = answers.entry(delivery.epoch).or_default();
                batch(&mut book, delivery, answer, &mut settled);
            }
            Arrival::Quarantine(set_aside) => {
                settled.quarantined.push(Arc::clone(set_aside));
                match set_aside.cause {
                    Cause::BadCatalog => {}
                    // Whose epoch it is cannot be read: the present one is the best guess, and names no seq.
                    _ if set_aside.epoch == 0 => answers.entry(book.agent.epoch).or_default().bad = true,
                    _ => {
                        answers.entry(set_aside.epoch).or_default().bad = true;
                        if set_aside.seq != 0 {
                            book.agent.saw_batch(set_aside.epoch);
                            book.epochs.entry(set_aside.epoch).or_default().refuse(set_aside.seq);
                        }
                    }
                }
            }
            Arrival::Waiting { epoch, rev } => {
                let answer = answers.entry(*epoch).or_default();
                answer.want_catalog_rev = answer.want_catalog_rev.max(*rev);
            }
            Arrival::TooNew { epoch } => answers.entry(*epoch).or_default().too_new = true,
            Arrival::Catalog(catalog) => {
                book.agent.saw_batch(catalog.epoch);
                let newest = catalogs.entry(catalog.epoch).or_insert_with(|| Arc::clone(catalog));
                if newest.rev < catalog.rev {
                    *newest = Arc::clone(catalog);
                }
            }
            Arrival::Status(status) => {
                book.agent.saw_status(status);
                if status.epoch != 0 && status.first_retained_seq != 0 {
                    book.epochs.entry(status.epoch).or_default().retain_from(status.first_retained_seq);
                }
                use pb::agent_status::State;
                if matches!(status.state(), State::Online | State::Degraded) {
                    answers.entry(status.epoch).or_default();
                }
            }
            Arrival::Greeting => {
                answers.entry(book.agent.epoch).or_default();
            }
        }
    }
    settled.catalogs = catalogs.into_values().collect();
    settled.acks =
        answers.iter().filter(|&(&epoch, _)| epoch != 0).map(|(&epoch, &answer)| ack(&book, epoch, answer)).collect();
    settled.epochs = changes(&before, &book.epochs);
    let facts = book.epochs.remove(&book.agent.epoch).unwrap_or_default();
    book.agent.contiguous_seq = facts.contiguous_seq();
    book.agent.first_retained_seq = book.agent.first_retained_seq.max(facts.first_retained);
    book.agent.last_seq = book.agent.last_seq.max(facts.highest_seq());
    if !arrivals.iter().all(|arrival| matches!(arrival, Arrival::Greeting)) {
        book.agent.received_at = now_ms;
    }
    settled.agent = book.agent;
    settled
}

fn batch(book: &mut Book, delivery: &Arc<Delivery>, answer: &mut Answer, settled: &mut Settled) {
    let (epoch, seq) = (delivery.epoch, delivery.seq);
    book.agent.saw_batch(epoch);
    let set_aside = |cause, detail: &str| {
        let (detail, message) = (detail.to_owned(), delivery.message.clone());
        Arc::new(Quarantined { epoch, seq, cause, detail, message })
    };
    let facts = book.epochs.entry(epoch).or_default();
    match book.seqs.get(&(epoch, seq)) {
        Some(hash) if *hash != delivery.hash => {
            // Nothing of a fork's header is believed: it may be a clone's, which has lost other batches.
            facts.fork(seq);
            settled.quarantined.push(set_aside(Cause::Forked, "another body is in the ledger under this seq"));
            return;
        }
        Some(_) => facts.commit(seq),
        // In the facts but no longer in the ledger: its owner has cut old rows off. It was in.
        None if facts.committed.contains(seq) => {}
        None if facts.refused.contains(seq) => {
            answer.bad = true;
            settled.quarantined.push(set_aside(Cause::Refused, "this seq was refused before"));
        }
        None => {
            facts.commit(seq);
            let original = book.original(delivery);
            book.enter(delivery, original);
            if original.is_none() {
                for loss in &delivery.batch.losses {
                    let named = if loss.epoch == 0 { epoch } else { loss.epoch };
                    if loss.last_seq != 0 {
                        book.epochs.entry(named).or_default().lose(loss.first_seq, loss.last_seq);
                    }
                }
            }
            settled.batches.push(NewBatch { delivery: Arc::clone(delivery), original });
        }
    }
    book.epochs.entry(epoch).or_default().retain_from(delivery.first_retained_seq);
}

fn ack(book: &Book, epoch: u64, answer: Answer) -> pb::Ack {
    let mut ack = book.epochs.get(&epoch).map_or_else(|| Contiguity::default().ack(epoch), |facts| facts.ack(epoch));
    ack.want_catalog_rev = answer.want_catalog_rev;
    if ack.verdict() == pb::Verdict::Ok {
        ack.verdict = match answer {
            Answer { bad: true, .. } => pb::Verdict::BadPayload,
            Answer { too_new: true, .. } => pb::Verdict::TooNew,
            _ => pb::Verdict::Ok,
        }
        .into();
    }
    ack
}

fn changes(before: &BTreeMap<u64, Contiguity>, after: &BTreeMap<u64, Contiguity>) -> Vec<EpochChange> {
    let nothing = Contiguity::default();
    let mut changes = Vec::new();
    for (&epoch, facts) in after {
        let old = before.get(&epoch).unwrap_or(&nothing);
        if old == facts || epoch == 0 {
            continue;
        }
        let gaps = |facts: &Contiguity| facts.gaps().iter().collect::<BTreeSet<_>>();
        let (was, is) = (gaps(old), gaps(facts));
        let (gaps_closed, gaps_opened) = ((&was - &is).into_iter().collect(), (&is - &was).into_iter().collect());
        changes.push(EpochChange { epoch, facts: facts.clone(), gaps_closed, gaps_opened });
    }
    changes
}
