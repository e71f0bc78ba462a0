//! How a spool comes to be: from what a start found on disk, and from itself when a new epoch renumbers it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use prost::Message;
use rangemap::RangeInclusiveSet;
use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::gather;
use tributary_protocols::time::{Mono, Wall};

use super::{Config, Extent, How, Spool};
use crate::ledger::Ledger;
use crate::losses::Losses;
use crate::state;
use crate::store::{DirId, Recovered, StoreError, Usage};

/// A spool that is ready, and what its state record told of the rest of the pipeline.
#[derive(Debug)]
pub struct Started {
    /// The spool.
    pub spool: Spool,
    /// The ledger as it was.
    pub ledger: Ledger,
    /// Losses not yet acknowledged.
    pub losses: Losses,
    /// The last state record, if one was found.
    pub state: Option<state::State>,
    /// A directory newer than the state record could not be read: the highest seq is not known (rule 2).
    pub in_doubt: bool,
}

impl Spool {
    /// Begins with what was found. `fresh_epoch` makes an epoch later than the one it is given.
    #[must_use]
    pub fn start(config: Config, now: Mono, found: Recovered, fresh_epoch: impl FnOnce(u64) -> u64) -> Started {
        let state = found
            .state
            .as_deref()
            .and_then(|record| state::State::decode(record).ok())
            // Without the catalogue nobody can say what its ids mean: as good as lost.
            .filter(|state| state.version == state::VERSION && state.epoch != 0 && state.is_sound())
            .filter(|_| found.catalog.is_some());
        let newest = found.dirs.iter().map(|(dir, _)| dir.epoch).max().unwrap_or(0);
        match state {
            Some(state) => resume(config, now, &found, state),
            None => begin(config, now, found, fresh_epoch(newest)),
        }
    }

    fn empty(config: Config, now: Mono, epoch: u64) -> Self {
        Self {
            config,
            epoch,
            last_seq: 0,
            durable: 0,
            mark: 0,
            extents: VecDeque::new(),
            settled: RangeInclusiveSet::new(),
            uncounted: Vec::new(),
            given_up: None,
            refused: BTreeSet::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            in_flight: None,
            active: DirId { epoch, first: 1 },
            newest: None,
            active_payload: 0,
            active_has_catalog: false,
            condemned: Vec::new(),
            loading: BTreeSet::new(),
            reload: Vec::new(),
            reload_at: now,
            commands: VecDeque::new(),
            commit_no: 0,
            last_commit: now,
            retry_at: now,
            failing: None,
            dirty_since: None,
            // The first commit says that this start is not a clean stop any more.
            urgent: true,
            adopting: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    /// Whether every count that a new epoch needs is known: no commit under way, no partly settled run without its
    /// index. Asks for the indexes that are missing; a commit that failed is taken back.
    pub fn ready_for_new_epoch(&mut self) -> bool {
        self.take_back();
        if self.in_flight.is_some() {
            return false;
        }
        let unclear: Vec<DirId> = self
            .extents
            .iter()
            .filter(|extent| extent.entries.is_none())
            .filter(|extent| self.settled.overlaps(&extent.range()) || self.adopting.contains_key(&extent.dir))
            .map(|extent| extent.dir)
            .collect();
        for dir in &unclear {
            self.load(*dir);
        }
        unclear.is_empty()
    }

    /// Begins `epoch`: what is not settled is renumbered in its order and resolved by revision `catalog_rev`; nothing is
    /// freed, nothing rewritten. Call only when [`ready_for_new_epoch`](Self::ready_for_new_epoch).
    pub fn new_epoch(&mut self, epoch: u64, catalog_rev: u32, losses: &mut Losses) {
        let first_pending = self.last_seq + 1 - self.pending.len() as u64;
        let mut map: Vec<(RangeInclusive<u64>, u64)> = Vec::new();
        let mut next = 1;
        let mut extents = VecDeque::new();
        let mut dirs = BTreeSet::new();
        dirs.insert(self.active);
        for extent in self.extents.drain(..) {
            dirs.insert(extent.dir);
            for gap in self.settled.gaps(&extent.range()).collect::<Vec<_>>() {
                let cut = cut(&extent, &gap, next, catalog_rev);
                map.push((gap, next));
                next += cut.count;
                extents.push_back(cut);
            }
        }
        for (head, record) in &mut self.pending {
            head.catalog_rev = catalog_rev;
            let body = record.split_off(crate::store::RECORD_HEAD);
            *record = head.record(&body);
        }
        map.push((first_pending..=u64::MAX, next));
        losses
            .renumber(|seq| map.iter().find(|(old, _)| old.contains(&seq)).map(|(old, new)| new + (seq - old.start())));
        self.epoch = epoch;
        self.durable = next - 1;
        self.last_seq = self.durable + self.pending.len() as u64;
        self.mark = 0;
        self.settled.clear();
        self.given_up = None;
        self.refused.clear();
        self.active = DirId { epoch, first: next };
        self.active_payload = 0;
        self.active_has_catalog = false;
        self.extents = extents;
        for dir in dirs {
            if !self.extents.iter().any(|extent| extent.dir == dir) {
                self.condemned.push((dir, self.commit_no + 1));
            }
        }
        self.urgent = true;
    }
}

/// The unsettled batches `range` of `extent`, numbered from `first` on.
fn cut(extent: &Extent, range: &RangeInclusive<u64>, first: u64, catalog_rev: u32) -> Extent {
    let offset = range.start() - extent.first;
    let count = range.end() - range.start() + 1;
    let entries = extent.entries.as_ref().and_then(|entries| {
        let from = usize::try_from(offset).ok()?;
        entries.get(from..from + usize::try_from(count).ok()?).map(<[_]>::to_vec)
    });
    Extent {
        dir: extent.dir,
        stored_first: extent.stored_first + offset,
        first,
        count,
        unsettled: extent.readings(range).unwrap_or(extent.unsettled),
        oldest: extent.oldest,
        catalog_rev,
        entries,
    }
}

/// Goes on in the epoch of `state`.
fn resume(config: Config, now: Mono, found: &Recovered, state: state::State) -> Started {
    let mut spool = Spool::empty(config, now, state.epoch);
    spool.usage = found.usage;
    spool.last_seq = state.last_seq;
    spool.durable = state.last_seq;
    spool.mark = state.mark;
    spool.refused = state.refused.iter().copied().collect();
    spool.settled = state.settled.iter().filter(|r| r.first <= r.last).map(|r| r.first..=r.last).collect();
    spool.extents = state.extents.iter().filter(|extent| extent.count > 0).map(restore).collect();
    spool.uncounted = state.uncounted.iter().map(|waiting| (waiting.first..=waiting.last, how(waiting.how))).collect();
    let present: BTreeSet<DirId> = gather(found.dirs.iter().map(|(dir, _)| *dir));
    spool.newest = present.last().copied();
    // What a full disk did not take, and a state record without its batches names, would be a hole in it.
    let whole = |(dir, last): &&(DirId, u64)| dir.epoch == state.epoch && *last == state.last_seq;
    let active = found.dirs.last().filter(whole).map(|(dir, _)| *dir);
    spool.active = active.unwrap_or(DirId { epoch: state.epoch, first: state.last_seq + 1 });
    // Only an estimate (sled takes about twice the payload): it decides when the next directory begins, nothing else.
    spool.active_payload = found.usage.active_bytes / 2;
    let mut ledger = state.ledger.as_ref().map(Ledger::from_message).unwrap_or_default();
    let mut losses = Losses::restore(&state.losses);
    let named: BTreeSet<DirId> = gather(spool.extents.iter().map(|extent| extent.dir));
    for dir in named.iter().filter(|dir| !present.contains(dir)) {
        spool.handle_loaded(now, *dir, Err(StoreError::Damaged("not found".into())), &mut ledger, &mut losses);
    }
    for dir in present.iter().filter(|dir| !named.contains(dir) && **dir != spool.active) {
        spool.condemned.push((*dir, spool.commit_no + 1));
    }
    let waiting: Vec<u64> = spool.uncounted.iter().map(|(range, _)| *range.start()).collect();
    for dir in waiting.into_iter().filter_map(|seq| spool.dir_of(seq)).collect::<Vec<_>>() {
        spool.load(dir);
    }
    spool.condemn_finished();
    let in_doubt = found.set_aside.iter().max().is_some_and(|dir| Some(dir) >= present.last());
    Started { spool, ledger, losses, state: Some(state), in_doubt }
}

fn how(saved: u32) -> How {
    match i32::try_from(saved) {
        Ok(0) => How::Delivered,
        Ok(reason) => How::Lost(Reason::try_from(reason - 1).unwrap_or(Reason::Unknown)),
        Err(_) => How::Lost(Reason::Unknown),
    }
}

fn restore(saved: &state::Extent) -> Extent {
    Extent {
        dir: DirId { epoch: saved.dir_epoch, first: saved.dir_first },
        stored_first: saved.stored_first,
        first: saved.first,
        count: saved.count,
        unsettled: saved.unsettled,
        oldest: Wall(saved.oldest_ms),
        catalog_rev: saved.catalog_rev,
        entries: None,
    }
}

/// Begins `epoch` without a state record: a first start, or one after the state was lost. Bodies that are there are
/// numbered anew; what they hold is known when their indexes were read. Without a catalogue no one could decode them.
fn begin(config: Config, now: Mono, found: Recovered, epoch: u64) -> Started {
    let mut spool = Spool::empty(config, now, epoch);
    spool.usage = found.usage;
    spool.newest = found.dirs.last().map(|(dir, _)| *dir);
    let mut next = 1;
    for (dir, last) in &found.dirs {
        let count = (last + 1).saturating_sub(dir.first);
        if count == 0 {
            spool.condemned.push((*dir, spool.commit_no + 1));
            continue;
        }
        spool.extents.push_back(Extent {
            dir: *dir,
            stored_first: dir.first,
            first: next,
            count,
            unsettled: 0,
            oldest: Wall(i64::MAX),
            catalog_rev: 1,
            entries: None,
        });
        next += count;
        spool.adopting.insert(*dir, found.catalog.is_some());
        spool.load(*dir);
    }
    spool.durable = next - 1;
    spool.last_seq = spool.durable;
    spool.active = DirId { epoch, first: next };
    let ledger = Ledger::from_message(&pb::Ledger::default());
    Started { spool, ledger, losses: Losses::default(), state: None, in_doubt: false }
}
