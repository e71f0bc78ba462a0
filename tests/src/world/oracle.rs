//! What must be true. Keeps a simple account of its own: every reading that went in, what a filter must do with it, and
//! what arrived; at the end one side must explain the other, to the reading.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest, Sha256};
use tributary_core::ledger::Ledger;
use tributary_core::model::{Deadband, Point, Statistic};
use tributary_proto::catalog::Schema;
use tributary_proto::decode;
use tributary_proto::pb;
use tributary_protocols::reading::{Sample, Status};
use tributary_protocols::value::{PointType, Scale, Value};
use tributary_receiver::catalog::Point as Named;
use tributary_receiver::ledger::NewBatch;

/// A reading by what it says: point, stamp, status, value.
pub(super) type Key = (usize, i64, u8, Seen);

/// A value as it is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    Nothing,
    Bits(u64),
    Text(String),
}

#[derive(Clone, Debug)]
struct Sent {
    at: u64,
    real: Option<f64>,
    sample: Sample,
}

/// What became of a reading by the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    /// It is to arrive.
    Raw(Key),
    /// The deadband withholds it.
    Withheld,
    /// It is only folded.
    Folded,
}

/// A folded reading: when it came by the wall clock, its real value if it counts, its bits.
#[derive(Clone, Copy, Debug)]
struct Folded {
    wall: i64,
    real: Option<f64>,
    bits: u64,
}

/// The account.
#[derive(Debug)]
pub(super) struct Oracle {
    points: Vec<Point>,
    sent: Vec<Option<Sent>>,
    /// Exponents in force, or the status that stands for one.
    factors: HashMap<usize, Result<i32, Status>>,
    /// What counters showed, by point and stamp, and whether it is to be believed.
    counts: HashMap<(usize, i64), Vec<(u64, bool)>>,
    /// Counters that were read since the start.
    counting: HashSet<usize>,
    believed: u64,
    doubted: u64,
    /// Events of counters, by code.
    pub(super) counted: BTreeMap<String, u64>,
    folded: Vec<Vec<Folded>>,
    /// Readings that must arrive or be named; those that may.
    pub(super) required: HashMap<Key, u32>,
    pub(super) optional: HashMap<Key, u32>,
    pub(super) arrived: u64,
    pub(super) summaries: HashMap<(usize, String, i64), u32>,
    /// Readings of each point that losses name by group or point.
    named: Vec<u64>,
    named_nobody: u64,
    named_summaries: u64,
    /// Readings that losses name by seqs, and the batches.
    named_batches: u64,
    lost_batches: HashSet<(u64, u64)>,
    said: HashMap<pb::Loss, Vec<(u64, u64)>>, // in which batches
    by_reason: BTreeMap<i32, u64>,
    /// Polls of each point that were due while the agent was down.
    pub(super) down_due: Vec<u64>,
    /// By how much that may be off.
    pub(super) slack: Vec<u64>,
    /// Readings in the receiver's ledger, by epoch.
    readings: BTreeMap<u64, u64>,
    bodies: HashMap<(u64, u64), ([u8; 32], bool)>, // whether it may be another one by now
    numbered_again: bool,
    pub(super) bodies_sent: u64,
    last_seq_seen: HashMap<u64, u64>,
    /// Whether windows can be checked against the wall clock.
    pub(super) steady_clock: bool,
    /// Readings handed in.
    pub(super) entered: u64,
    pub(super) answers: Vec<(Option<pb::event::Value>, String)>,
    pub(super) there: HashSet<(u64, u64)>,
}

impl Oracle {
    pub(super) fn new(points: Vec<Point>) -> Self {
        let count = points.len();
        Self {
            points,
            sent: vec![None; count],
            factors: HashMap::new(),
            counts: HashMap::new(),
            counting: HashSet::new(),
            believed: 0,
            doubted: 0,
            counted: BTreeMap::new(),
            folded: vec![Vec::new(); count],
            required: HashMap::new(),
            optional: HashMap::new(),
            arrived: 0,
            summaries: HashMap::new(),
            named: vec![0; count],
            named_nobody: 0,
            named_summaries: 0,
            named_batches: 0,
            lost_batches: HashSet::new(),
            said: HashMap::new(),
            by_reason: BTreeMap::new(),
            down_due: vec![0; count],
            slack: vec![0; count],
            readings: BTreeMap::new(),
            bodies: HashMap::new(),
            numbered_again: false,
            bodies_sent: 0,
            last_seq_seen: HashMap::new(),
            steady_clock: true,
            entered: 0,
            answers: Vec::new(),
            there: HashSet::new(),
        }
    }

    /// The agent starts: filters have forgotten.
    pub(super) fn forget_filters(&mut self) {
        self.sent.fill(None);
        self.factors.clear();
        self.counting.clear();
    }

    /// A factor was read; it holds for all that comes with the same answer.
    pub(super) fn factor(&mut self, index: usize, sample: &Sample) {
        let mut sample = sample.clone();
        mark(&self.points[index], &mut sample);
        let exponent = match sample.value {
            Value::Bits(bits) => i32::try_from(bits.cast_signed()).ok().filter(|e| (-10..=10).contains(e)),
            _ => None,
        };
        let status = if sample.status.has_value() { Status::TypeError } else { sample.status };
        self.factors.insert(index, exponent.ok_or(status));
    }

    /// A counter was read. Nothing contradicts the first sample after a start.
    pub(super) fn count(&mut self, index: usize, stamp: i64, bits: u64, glitch: bool) {
        let believable = self.counting.insert(index) || !glitch;
        self.counts.entry((index, stamp)).or_default().push((bits, believable));
    }

    /// A reading goes in; `accepts`: the spool takes it, else it is lost.
    pub(super) fn enter(
        &mut self,
        index: usize,
        (nanos, wall): (u64, i64),
        stamp: i64,
        sample: &Sample,
        accepts: bool,
    ) -> Fate {
        self.entered += 1;
        let point = &self.points[index];
        let mut sample = sample.clone();
        mark(point, &mut sample);
        if let Some(factor) = point.scale_from.filter(|_| sample.status.has_value()) {
            let factor = self.factors.get(&(factor.0 as usize)).copied().unwrap_or(Err(Status::CommFail));
            sample = match (factor, &sample.value) {
                (Ok(e), Value::Bits(bits)) => {
                    let scale = Scale { exponent: point.scale.exponent + e, ..point.scale };
                    let real = scale.real(point.ty, *bits).expect("a number");
                    Sample { status: sample.status, value: Value::Bits(real.to_bits()) }
                }
                (Err(status), _) => Sample::bare(status),
                (Ok(_), _) => sample,
            };
        }
        if self.counts.contains_key(&(index, stamp)) && sample.status.has_value() {
            sample = Sample::bare(Status::DeviceError);
        }
        if !accepts {
            let key = (index, stamp, sample.status.code(), Seen::Nothing);
            *self.required.entry(key.clone()).or_default() += 1;
            return Fate::Raw(key);
        }
        let real = match sample.value {
            Value::Bits(bits) => point.scale.real(point.ty, bits),
            _ => None,
        };
        if point.window.is_some() {
            let counts = matches!(sample.status, Status::Good | Status::Uncertain);
            let bits = if let Value::Bits(bits) = sample.value { bits } else { 0 };
            let real = real.filter(|real| counts && !real.is_nan());
            self.folded[index].push(Folded { wall, real, bits });
            if !point.raw {
                return Fate::Folded;
            }
        }
        if let Deadband::Absolute(band) = point.deadband {
            if let Some(sent) = &self.sent[index] {
                let whole = matches!(point.ty, PointType::Int | PointType::Uint64);
                let exact = matches!(point.ty, PointType::Bool | PointType::Enum | PointType::String);
                let numeric = !(exact || whole && band == 0.0);
                let changed = match (sent.real, real) {
                    (Some(a), Some(b)) if numeric && a.is_nan() && b.is_nan() => false,
                    (Some(a), Some(b)) if numeric => (a - b).is_nan() || (a - b).abs() > band,
                    _ => sent.sample.value != sample.value,
                };
                let beat = point.heartbeat.is_some_and(|beat| u128::from(nanos - sent.at) >= beat.as_nanos());
                if !changed && !beat && sent.sample.status == sample.status {
                    return Fate::Withheld;
                }
            }
            self.sent[index] = Some(Sent { at: nanos, real, sample: sample.clone() });
        }
        let seen = match &sample.value {
            Value::None => Seen::Nothing,
            Value::Bits(bits) => Seen::Bits(*bits),
            Value::Text(text) => Seen::Text(text.to_string()),
        };
        let key = (index, stamp, sample.status.code(), seen);
        *self.required.entry(key.clone()).or_default() += 1;
        Fate::Raw(key)
    }

    /// A reading that was in memory alone is gone, and no rule asks for its trace.
    pub(super) fn strike(&mut self, key: &Key) {
        assert!(take(&mut self.required, key), "{key:?} is struck and has arrived");
    }

    /// A reading may be there or not: its message comes again. It may have arrived already.
    pub(super) fn excuse(&mut self, key: &Key) {
        if take(&mut self.required, key) {
            *self.optional.entry(key.clone()).or_default() += 1;
        }
    }

    /// A batch is sent: its body is the one it had before. Whether it is sent for the first time.
    pub(super) fn body(&mut self, epoch: u64, seq: u64, body: &[u8]) -> bool {
        let hash = Sha256::digest(body).into();
        self.bodies_sent += 1;
        let first = !self.bodies.contains_key(&(epoch, seq));
        let (known, may_change) = self.bodies.insert((epoch, seq), (hash, false)).unwrap_or((hash, false));
        assert!(known == hash || may_change, "seq {seq} of epoch {epoch:x} has two bodies");
        self.numbered_again |= known != hash;
        self.last_seq_seen.entry(epoch).and_modify(|last| *last = seq.max(*last)).or_insert(seq);
        first
    }

    /// A batch is in the receiver's ledger.
    pub(super) fn receive(&mut self, new: &NewBatch) {
        let delivery = &new.delivery;
        self.there.insert((delivery.epoch, delivery.seq));
        *self.readings.entry(delivery.epoch).or_default() += u64::from(delivery.readings);
        if new.original.is_some() {
            return;
        }
        for reading in delivery.batch.readings() {
            let named = &delivery.catalog.points[&reading.point];
            let index = place(&named.name);
            let seen = match reading.value {
                None => Seen::Nothing,
                Some(decode::Value::Bool(bit)) => Seen::Bits(u64::from(bit)),
                Some(decode::Value::Int(int)) => Seen::Bits(int.cast_unsigned()),
                Some(decode::Value::Uint64(bits) | decode::Value::Float64(bits)) => Seen::Bits(bits),
                Some(decode::Value::Float32(bits)) => Seen::Bits(u64::from(bits)),
                Some(decode::Value::Text(text)) => Seen::Text(text.to_owned()),
            };
            if !named.statistic.is_empty() {
                self.summary(index, &named.statistic, reading.at_ms, reading.status, &seen);
                continue;
            }
            let (status, seen) = self.judge(index, reading.at_ms, reading.status, seen, named);
            let key = (index, reading.at_ms, status, seen);
            let book = if self.required.contains_key(&key) { &mut self.required } else { &mut self.optional };
            assert!(take(book, &key), "invented or doubled: {key:?} in {} of {:x}", delivery.seq, delivery.epoch);
            self.arrived += 1;
        }
        for loss in delivery.batch.losses.iter().filter(|loss| loss.first_seq > 0) {
            self.lost_batches.extend((loss.first_seq..=loss.last_seq).map(|seq| (loss.epoch, seq)));
        }
        for loss in &delivery.batch.losses {
            // One whose batch was given up, maybe under a new epoch's number, and had arrived, comes again and counts once.
            let (here, said) = ((delivery.epoch, delivery.seq), self.said.entry(*loss).or_default());
            let again = |batch: &&mut (u64, u64)| batch.0 != here.0 || self.lost_batches.contains(batch);
            if let Some(batch) = said.iter_mut().find(again) {
                *batch = here;
                continue;
            }
            said.push(here);
            assert!(loss.readings > 0 || loss.first_seq > 0, "an empty loss: {loss:?}");
            *self.by_reason.entry(loss.reason).or_default() += loss.readings;
            if loss.first_seq > 0 {
                assert_ne!(loss.epoch, 0, "a loss of seqs names their epoch: {loss:?}");
                self.named_batches += loss.readings;
            } else if let Some(points) = delivery.catalog.group(loss.group) {
                let width = points.len() as u64;
                assert_eq!(loss.readings % width, 0, "whole rows are lost: {loss:?} of {width} points");
                for id in points {
                    let point = &delivery.catalog.points[id];
                    if point.statistic.is_empty() {
                        self.named[place(&point.name)] += loss.readings / width;
                    } else {
                        self.named_summaries += loss.readings / width;
                    }
                }
            } else if let Some(point) = delivery.catalog.points.get(&loss.point) {
                self.named[place(&point.name)] += loss.readings;
            } else {
                assert_eq!((loss.group, loss.point), (0, 0), "a loss names what the catalogue has not: {loss:?}");
                self.named_nobody += loss.readings;
            }
        }
        for event in delivery.batch.events.iter().filter(|event| event.code.starts_with("counter.")) {
            let point = &delivery.catalog.points[&event.point];
            assert!(self.points[place(&point.name)].counter, "{event:?} of {}", point.name);
            *self.counted.entry(event.code.clone()).or_default() += 1;
        }
        let done = delivery.batch.events.iter().filter(|event| event.code == "control.done");
        self.answers.extend(done.map(|event| (event.value.clone(), event.text.clone())));
    }

    /// What a reading is compared by: of a scaled point the real value, of a counter that it is believed or doubted.
    fn judge(&mut self, index: usize, at: i64, status: u8, seen: Seen, named: &Named) -> (u8, Seen) {
        let point = &self.points[index];
        if point.scale_from.is_some()
            && let Seen::Bits(bits) = seen
        {
            // By the receiver's own formula and the catalogue that came with it.
            let real = named.scale.real(bits.cast_signed() as f64);
            return (status, Seen::Bits(real.to_bits()));
        }
        let Some(shown) = self.counts.get(&(index, at)).filter(|_| point.counter) else { return (status, seen) };
        match seen {
            Seen::Bits(bits) => {
                assert!(shown.contains(&(bits, true)), "p{index} at {at}: {bits} is no count, but one of {shown:?}");
                self.believed += 1;
                (Status::DeviceError.code(), Seen::Nothing)
            }
            Seen::Nothing | Seen::Text(_) => {
                self.doubted += u64::from(shown.iter().all(|(_, believable)| *believable));
                (status, seen)
            }
        }
    }

    fn summary(&mut self, index: usize, statistic: &str, at: i64, status: u8, seen: &Seen) {
        let name = (index, statistic.to_owned(), at);
        let times = self.summaries.entry(name).or_default();
        *times += 1;
        if !self.steady_clock {
            return;
        }
        assert_eq!(*times, 1, "{statistic} of p{index} at {at} arrived twice");
        if status != Status::Good.code() {
            return;
        }
        let every = i64::from(self.points[index].window.as_ref().map_or(0, |window| window.every_ms));
        let within: Vec<_> = self.folded[index].iter().filter(|f| (at..at + every).contains(&f.wall)).collect();
        let reals: Vec<f64> = within.iter().filter_map(|folded| folded.real).collect();
        assert_eq!(reals.len(), within.len(), "p{index} at {at} is GOOD with readings that do not count");
        let Seen::Bits(bits) = *seen else { panic!("a GOOD {statistic} without a value") };
        let close = |real: f64| {
            let got = f64::from_bits(bits);
            assert!(
                (got - real).abs() <= real.abs() * 1e-9 + 1e-9,
                "{statistic} of p{index} at {at}: {got}, not {real}"
            );
        };
        let n = reals.len() as f64;
        match Statistic::from_name(statistic) {
            Some(Statistic::Count) => assert_eq!(bits, reals.len() as u64, "count of p{index} at {at}"),
            Some(Statistic::First) => {
                assert_eq!(Some(bits), within.first().map(|f| f.bits), "first of p{index} at {at}")
            }
            Some(Statistic::Last) => assert_eq!(Some(bits), within.last().map(|f| f.bits), "last of p{index} at {at}"),
            Some(Statistic::Min | Statistic::Max) => {
                let best = if statistic == "min" {
                    reals.iter().copied().fold(f64::INFINITY, f64::min)
                } else {
                    reals.iter().copied().fold(f64::NEG_INFINITY, f64::max)
                };
                let one = within.iter().any(|f| f.bits == bits && f.real == Some(best));
                assert!(one, "{statistic} of p{index} at {at} is not {best}");
            }
            Some(Statistic::Sum) => close(reals.iter().sum()),
            Some(Statistic::Mean) => close(reals.iter().sum::<f64>() / n),
            Some(Statistic::Twmean | Statistic::Stddev) | None => {}
        }
    }

    fn missing(&self, index: usize) -> u64 {
        self.required.iter().filter(|(key, _)| key.0 == index).map(|(_, count)| u64::from(*count)).sum()
    }

    /// The end of a world: everything that went in is explained. `polled` tells of a point whether it is polled and sent
    /// at every poll. `one_epoch`: the spool kept its identity.
    pub(super) fn settle(&self, ledger: &Ledger, epoch: u64, one_epoch: bool, exact: bool, polled: &[bool]) {
        let (believed, doubted) = (self.believed, self.doubted);
        assert!(doubted * 20 <= believed + 200, "{doubted} true counts are doubted, {believed} believed");
        let whole = self.named_batches > 0 || !self.lost_batches.is_empty();
        let mut unexplained = 0;
        for (index, point) in self.points.iter().enumerate() {
            let (missing, due, named) = (self.missing(index), self.down_due[index], self.named[index]);
            let at_every_poll =
                polled[index] && point.deadband == Deadband::None && (point.window.is_none() || point.raw);
            if at_every_poll && exact {
                assert!(
                    missing + due + self.slack[index] >= named,
                    "p{index}: {missing} missing, {due} due while down, but {named} named"
                );
                assert!(
                    whole || (missing + due).abs_diff(named) <= self.slack[index],
                    "p{index}: {missing} missing and {due} due while down, but {named} named: {:?}",
                    self.required.iter().filter(|(key, _)| key.0 == index).take(5).collect::<Vec<_>>()
                );
            }
            let due = if at_every_poll { due } else { 0 };
            let left = (missing + due).saturating_sub(named + self.slack[index]);
            if left > 0 {
                println!("p{index}: {left} of {missing} missing and {due} due, {named} named; {point:?}");
            }
            unexplained += left;
        }
        let others = self.named_batches + self.named_nobody;
        assert!(
            !exact || unexplained <= others,
            "{unexplained} readings are missing without a word; losses of batches and events name {others}: {:?}",
            self.required.iter().take(5).collect::<Vec<_>>()
        );
        let received = self.readings.get(&epoch).copied().unwrap_or(0);
        // Rolled back and without an answer in time, an agent gives a number again (rule 2); an Ack may then cover both.
        let fits = ledger.delivered == received || whole && ledger.delivered < received || self.numbered_again;
        assert!(fits, "{} delivered, {received} received", ledger.delivered);
        if one_epoch && !self.numbered_again {
            let told: BTreeMap<i32, u64> = ledger.losses().map(|(reason, count)| (reason as i32, count)).collect();
            let mut said = self.by_reason.clone();
            said.retain(|_, count| *count > 0);
            assert_eq!(told, said, "the ledger's losses by reason, and those that losses name");
        }
    }

    /// Whether a loss named that batch.
    pub(super) fn is_named(&self, epoch: u64, seq: u64) -> bool {
        self.lost_batches.contains(&(epoch, seq))
    }

    /// After a roll-back numbers may be given again.
    pub(super) fn forget_bodies(&mut self) {
        self.bodies.values_mut().for_each(|body| body.1 = true);
    }

    pub(super) fn named_by_reason(&self) -> [u64; 8] {
        std::array::from_fn(|reason| self.by_reason.get(&(reason as i32)).copied().unwrap_or(0))
    }
}

/// One less of them; whether there was one.
fn take(book: &mut HashMap<Key, u32>, key: &Key) -> bool {
    let Some(count) = book.get_mut(key) else { return false };
    *count -= 1;
    if *count == 0 {
        book.remove(key);
    }
    true
}

fn mark(point: &Point, sample: &mut Sample) {
    let Value::Bits(bits) = sample.value else { return };
    if point.bad.contains(&bits) {
        *sample = Sample::bare(Status::DeviceError);
        return;
    }
    let (Some((low, high)), Some(real)) = (point.valid, point.scale.real(point.ty, bits)) else { return };
    if matches!(sample.status, Status::Good | Status::Uncertain) && !(low <= real && real <= high) {
        sample.status = Status::OutOfRange;
    }
}

fn place(name: &str) -> usize {
    name.strip_prefix('p').and_then(|n| n.parse().ok()).expect("a point of the plant")
}

/// Whether a status of this state may be the first on a connection.
pub(super) fn greets(state: i32) -> bool {
    use pb::agent_status::State;
    matches!(State::try_from(state), Ok(State::Online | State::Degraded | State::Stopping))
}
