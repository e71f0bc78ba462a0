//! The centre's side in this process, behind [`HostileBroker`](crate::hostile_broker::HostileBroker): it keeps every batch
//! of one agent, checks the agent's promises as they come in, and answers with Acks that are late, doubled, lost,
//! partial or wrong.
//!
//! Written apart from the real receiver on purpose; both stand on the same decoder (`tributary-proto`) and the same page
//! of rules. What the agent breaks is collected in [`Books::broken`], so that a test can end with one assertion.
//!
//! Kept in memory, so for tests of some 100,000 readings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::task::JoinHandle;
use tributary_proto::decode::{self, Refusal, Value};
use tributary_proto::{catalog, pb};

use crate::hostile_broker::{HostileBroker, Tap};
use crate::process::pause;

/// What becomes of an Ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckFault {
    /// Never sent.
    Lost,
    /// After [`Plan::late`].
    Late,
    /// Twice.
    Doubled,
    /// Only ranges, the contiguous mark stays 0.
    Partial,
    /// For an epoch that never was.
    OtherEpoch,
    /// Bytes that are no Ack.
    Garbage,
    /// One batch at a time, for the next half second.
    Narrow,
}

impl AckFault {
    /// All of them. Acks that force a new epoch (FORKED, a seq above the published mark) are methods: they are events.
    pub const ALL: [Self; 7] =
        [Self::Lost, Self::Late, Self::Doubled, Self::Partial, Self::OtherEpoch, Self::Garbage, Self::Narrow];
}

/// When to misbehave, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Chance comes from here alone.
    pub seed: u64,
    /// Which faults Acks meet.
    pub acks: Vec<AckFault>,
    /// How many of 100 Acks meet one.
    pub percent: u8,
    /// How late [`AckFault::Late`] is.
    pub late: Duration,
}

impl Plan {
    /// Acknowledges at once and rightly.
    #[must_use]
    pub fn honest() -> Self {
        Self { seed: 0, acks: Vec::new(), percent: 0, late: Duration::from_millis(300) }
    }
}

/// A reading as it arrived, under its names.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// `Device.name + "/" + Point.name`.
    pub point: String,
    /// `""` for a reading, else the statistic of a window.
    pub statistic: String,
    /// ms since 1970 UTC.
    pub at_ms: i64,
    /// A code of `pb::Status`.
    pub status: u8,
    /// The integer, or the bits of the float; `None` without a value or for text.
    pub bits: Option<u64>,
}

/// One epoch of the agent.
#[derive(Clone, Debug, Default)]
pub struct Epoch {
    /// Everything below is settled, if it is not here.
    pub first_retained: u64,
    /// Body and readings of each batch.
    pub batches: BTreeMap<u64, (Vec<u8>, Vec<Reading>)>,
    /// Every loss said, once for each (first_seq, last_seq, group, point, from_ms, reason).
    pub losses: Vec<pb::Loss>,
    /// Batches that wait for their catalogue.
    waiting: BTreeMap<u64, pb::Envelope>,
    content: Option<(u32, pb::Content)>,
}

/// What has arrived, and what was wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By epoch.
    pub epochs: BTreeMap<u64, Epoch>,
    /// Batches that were here already.
    pub duplicates: u64,
    /// Bodies that were here under another epoch.
    pub renumbered: u64,
    /// Promises the agent broke, in words.
    pub broken: Vec<String>,
    /// Every status published, in order; the will among them.
    pub statuses: Vec<pb::AgentStatus>,
    /// How often each fault was played.
    pub played: BTreeMap<AckFault, u64>,
}

impl Books {
    /// All readings, by epoch and seq.
    pub fn readings(&self) -> impl Iterator<Item = &Reading> {
        self.epochs.values().flat_map(|epoch| epoch.batches.values()).flat_map(|(_, readings)| readings)
    }

    /// Readings said to be lost, by reason.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<i32, u64> {
        let mut lost = BTreeMap::new();
        for loss in self.epochs.values().flat_map(|epoch| &epoch.losses) {
            *lost.entry(loss.reason).or_default() += loss.readings;
        }
        lost
    }

    /// The newest ledger said, and whether the law holds in it.
    #[must_use]
    pub fn ledger(&self) -> Option<pb::Ledger> {
        self.statuses.iter().rev().find_map(|status| status.ledger.clone())
    }
}

/// Whether admitted = delivered + held + filtered + lost.
#[must_use]
pub fn law_holds(ledger: &pb::Ledger) -> bool {
    let lost: u64 = ledger.lost.iter().map(|lost| lost.readings).sum();
    ledger.admitted == ledger.delivered + ledger.held + ledger.filtered + lost
}

/// The receiver of one agent. Stops when dropped.
#[derive(Debug)]
pub struct HostileReceiver {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    broker: HostileBroker,
    /// `{prefix}/{site}/{agent}`.
    agent: String,
    plan: Plan,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    books: Books,
}

impl HostileReceiver {
    /// Listens to the agent whose topics begin with `agent`, such as `edge/v1/plant-1/gw-017`.
    #[must_use]
    pub fn start(broker: &HostileBroker, agent: &str, plan: Plan) -> Self {
        let tap = broker.tap(&format!("{agent}/#"));
        let state = Mutex::new(State { rng: fastrand::Rng::with_seed(plan.seed), books: Books::default() });
        let shared = Arc::new(Shared { broker: broker.clone(), agent: agent.to_owned(), plan, state });
        let task = tokio::spawn(listen(tap, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// What has arrived so far.
    #[must_use]
    pub fn books(&self) -> Books {
        self.shared.state().books.clone()
    }

    /// Looks into the books without copying them.
    pub fn look<T>(&self, look: impl FnOnce(&Books) -> T) -> T {
        look(&self.shared.state().books)
    }

    /// Says FORKED for the newest epoch: the agent must begin another, without losing anything.
    pub fn say_forked(&self) {
        self.acknowledge_newest(|ack| ack.verdict = pb::Verdict::Forked as i32);
    }

    /// Acknowledges a seq that cannot have been published yet: the agent must begin another epoch.
    pub fn acknowledge_the_future(&self) {
        self.acknowledge_newest(|ack| ack.contiguous_seq += 1_000_000);
    }

    /// Refuses one batch of the newest epoch for good.
    pub fn refuse(&self, seq: u64) {
        self.acknowledge_newest(|ack| {
            ack.verdict = pb::Verdict::BadPayload as i32;
            ack.refused = vec![seq];
        });
    }

    /// Publishes an Ack of the newest epoch, changed.
    fn acknowledge_newest(&self, change: impl FnOnce(&mut pb::Ack)) {
        let state = self.shared.state();
        let Some((number, epoch)) = state.books.epochs.last_key_value() else { return };
        let mut ack = epoch.ack(*number);
        change(&mut ack);
        drop(state);
        self.shared.send(&ack);
    }
}

impl Drop for HostileReceiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut tap: Tap, shared: Arc<Shared>) {
    while let Some(message) = tap.next().await {
        let kind = message.topic.strip_prefix(&shared.agent).unwrap_or_default().to_owned();
        let acks = {
            let mut state = shared.state();
            match kind.as_str() {
                "/data/l" | "/data/b" => state.books.batch(&message.payload),
                "/cat" => state.books.catalog(&message.payload),
                "/stat" => state.books.status(&message.payload),
                // Its own words come back to it.
                "/ack" | "/ctl" => None,
                other => {
                    state.books.broken.push(format!("published on an unknown topic: …{other}"));
                    None
                }
            }
        };
        if let Some(ack) = acks {
            shared.answer(ack);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, ack: &pb::Ack) {
        self.broker.publish(&format!("{}/ack", self.agent), ack.encode_to_vec());
    }

    /// Sends an Ack, or what the plan makes of it.
    fn answer(self: &Arc<Self>, mut ack: pb::Ack) {
        let fault = {
            let mut state = self.state();
            let drawn = !self.plan.acks.is_empty() && state.rng.u8(0..100) < self.plan.percent;
            let fault = drawn.then(|| self.plan.acks[state.rng.usize(0..self.plan.acks.len())]);
            if let Some(fault) = fault {
                *state.books.played.entry(fault).or_default() += 1;
            }
            fault
        };
        match fault {
            None => self.send(&ack),
            Some(AckFault::Lost) => {}
            Some(AckFault::Late) => {
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    pause(shared.plan.late).await;
                    shared.send(&ack);
                });
            }
            Some(AckFault::Doubled) => {
                self.send(&ack);
                self.send(&ack);
            }
            Some(AckFault::Partial) => {
                if ack.contiguous_seq > 0 {
                    ack.also.insert(0, pb::Range { first: ack.contiguous_seq, last: ack.contiguous_seq });
                    ack.contiguous_seq = 0;
                }
                self.send(&ack);
            }
            Some(AckFault::OtherEpoch) => {
                ack.epoch ^= 0xFFFF;
                self.send(&ack);
            }
            Some(AckFault::Garbage) => self.broker.publish(&format!("{}/ack", self.agent), vec![0xFF; 20]),
            Some(AckFault::Narrow) => {
                ack.window = 1;
                ack.pause_ms = 500;
                self.send(&ack);
            }
        }
    }
}

impl Epoch {
    /// The highest seq up to which everything is settled: here, below the oldest retained, or said to be lost.
    fn contiguous(&self) -> u64 {
        let lost =
            |seq| self.losses.iter().any(|loss| (loss.first_seq..=loss.last_seq).contains(&seq) && loss.first_seq > 0);
        let mut seq = self.first_retained.saturating_sub(1);
        while self.batches.contains_key(&(seq + 1)) || lost(seq + 1) {
            seq += 1;
        }
        seq
    }

    fn ack(&self, epoch: u64) -> pb::Ack {
        let contiguous_seq = self.contiguous();
        let mut also: Vec<pb::Range> = Vec::new();
        for &seq in self.batches.range(contiguous_seq + 1..).map(|(seq, _)| seq) {
            match also.last_mut() {
                Some(range) if range.last + 1 == seq => range.last = seq,
                _ => also.push(pb::Range { first: seq, last: seq }),
            }
        }
        pb::Ack { epoch, contiguous_seq, also, ..pb::Ack::default() }
    }

    /// The readings of a batch under their names.
    fn named(&self, batch: &decode::Batch) -> Vec<Reading> {
        let Some((_, content)) = &self.content else { return Vec::new() };
        let devices: BTreeMap<u32, &str> =
            content.devices.iter().map(|device| (device.id, device.name.as_str())).collect();
        let points: BTreeMap<u32, &pb::Point> = content.points.iter().map(|point| (point.id, point)).collect();
        let named = |reading: decode::Reading<'_>| {
            let point = points.get(&reading.point)?;
            let device = devices.get(&point.device).copied().unwrap_or("?");
            let bits = reading.value.and_then(|value| match value {
                Value::Bool(bool) => Some(u64::from(bool)),
                Value::Int(int) => Some(int.cast_unsigned()),
                Value::Uint64(bits) | Value::Float64(bits) => Some(bits),
                Value::Float32(bits) => Some(u64::from(bits)),
                Value::Text(_) => None,
            });
            Some(Reading {
                point: format!("{device}/{}", point.name),
                statistic: point.statistic.clone(),
                at_ms: reading.at_ms,
                status: reading.status,
                bits,
            })
        };
        batch.readings().filter_map(named).collect()
    }
}

impl Books {
    fn batch(&mut self, bytes: &[u8]) -> Option<pb::Ack> {
        match decode::open(bytes) {
            Ok(envelope) => self.envelope(envelope),
            Err(refusal) => {
                self.broken.push(format!("an envelope that must be refused: {refusal}"));
                None
            }
        }
    }

    fn envelope(&mut self, envelope: pb::Envelope) -> Option<pb::Ack> {
        let (number, seq) = (envelope.epoch, envelope.seq);
        let body = match &envelope.body {
            Some(pb::envelope::Body::Plain(body) | pb::envelope::Body::PlainZstd(body)) => body.clone(),
            other => {
                self.broken.push(format!("{number:016x}/{seq}: body {other:?}"));
                return None;
            }
        };
        let elsewhere = self
            .epochs
            .range(..number)
            .any(|(_, epoch)| epoch.batches.values().any(|(known, readings)| *known == body && !readings.is_empty()));
        let epoch = self.epochs.entry(number).or_default();
        if envelope.first_retained_seq < epoch.first_retained {
            self.broken.push(format!(
                "{number:016x}/{seq}: first_retained_seq went back from {} to {}",
                epoch.first_retained, envelope.first_retained_seq
            ));
        }
        epoch.first_retained = epoch.first_retained.max(envelope.first_retained_seq);
        if let Some((known, _)) = epoch.batches.get(&seq) {
            self.duplicates += 1;
            if *known != body {
                self.broken.push(format!("{number:016x}/{seq}: another body under a seq that was used"));
            }
            return Some(epoch.ack(number));
        }
        if elsewhere {
            // A batch of the epoch before whose Ack was missing: settled, without readings (contract rule 2).
            self.renumbered += 1;
            epoch.batches.insert(seq, (body, Vec::new()));
            return Some(epoch.ack(number));
        }
        let content = epoch.content.as_ref().filter(|(rev, _)| *rev >= envelope.catalog_rev);
        let Some((_, content)) = content else {
            let want = envelope.catalog_rev;
            epoch.waiting.insert(seq, envelope);
            return Some(pb::Ack { want_catalog_rev: want, ..epoch.ack(number) });
        };
        match decode::decode(&envelope, &catalog::Catalog::new(content)) {
            Ok(batch) => {
                let readings = epoch.named(&batch);
                for loss in batch.losses {
                    // Said again until acknowledged: the same words are the same loss.
                    if !epoch.losses.contains(&loss) {
                        epoch.losses.push(loss);
                    }
                }
                epoch.batches.insert(seq, (body, readings));
                Some(epoch.ack(number))
            }
            Err(Refusal::TooNew { rule, reason }) => {
                self.broken.push(format!("{number:016x}/{seq}: too new by {rule}: {reason}"));
                None
            }
            Err(refusal) => {
                self.broken.push(format!("{number:016x}/{seq}: {refusal}"));
                None
            }
        }
    }

    fn catalog(&mut self, bytes: &[u8]) -> Option<pb::Ack> {
        let read = pb::Catalog::decode(bytes).map_err(|error| error.to_string()).and_then(|message| {
            let content = catalog::content_bytes(&message).and_then(|bytes| catalog::content(&bytes));
            Ok((message.epoch, message.rev, content.map_err(|error| error.to_string())?))
        });
        let (number, rev, content) = match read {
            Ok(read) => read,
            Err(error) => {
                self.broken.push(format!("a catalogue that cannot be read: {error}"));
                return None;
            }
        };
        let epoch = self.epochs.entry(number).or_default();
        if let Some((_, known)) = epoch.content.as_ref().filter(|(known, _)| *known <= rev) {
            let kept: BTreeMap<u32, &pb::Point> = content.points.iter().map(|point| (point.id, point)).collect();
            for point in &known.points {
                let same = kept.get(&point.id).is_some_and(|now| {
                    (&now.name, now.device, now.r#type, &now.statistic)
                        == (&point.name, point.device, point.r#type, &point.statistic)
                });
                if !same {
                    self.broken.push(format!("{number:016x}: revision {rev} changed or dropped point {}", point.id));
                }
            }
        }
        if epoch.content.as_ref().is_none_or(|(known, _)| *known < rev) {
            epoch.content = Some((rev, content));
        }
        let waiting = std::mem::take(&mut epoch.waiting);
        let acks: Vec<_> = waiting.into_values().filter_map(|envelope| self.envelope(envelope)).collect();
        acks.into_iter().last()
    }

    fn status(&mut self, bytes: &[u8]) -> Option<pb::Ack> {
        let status = match pb::AgentStatus::decode(bytes) {
            Ok(status) => status,
            Err(error) => {
                self.broken.push(format!("a status that cannot be read: {error}"));
                return None;
            }
        };
        if let Some(ledger) = status.ledger.as_ref().filter(|ledger| !law_holds(ledger)) {
            self.broken.push(format!("the law does not hold: {ledger:?}"));
        }
        let (number, state) = (status.epoch, status.state);
        self.statuses.push(status);
        let known: BTreeSet<i32> =
            [pb::agent_status::State::Online as i32, pb::agent_status::State::Degraded as i32].into();
        known.contains(&state).then(|| self.epochs.entry(number).or_default().ack(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguity_passes_over_holes_that_are_final() {
        let batch = || (vec![1], Vec::new());
        let mut epoch = Epoch { first_retained: 3, ..Epoch::default() };
        epoch.batches = [(3, batch()), (4, batch()), (7, batch()), (8, batch()), (10, batch())].into();
        let ack = epoch.ack(1);
        assert_eq!((ack.contiguous_seq, ack.also.len()), (4, 2), "1 and 2 are below the oldest retained");
        epoch.losses.push(pb::Loss { first_seq: 5, last_seq: 6, ..pb::Loss::default() });
        assert_eq!(epoch.ack(1).contiguous_seq, 8, "5 and 6 are said to be lost");
    }

    #[test]
    fn the_law_is_checked() {
        let lost = vec![pb::ledger::Lost { reason: 1, readings: 2 }];
        let ledger = pb::Ledger { admitted: 10, delivered: 3, held: 4, filtered: 1, lost };
        assert!(law_holds(&ledger));
        assert!(!law_holds(&pb::Ledger { held: 5, ..ledger }));
    }
}
