//! The spool: what is on disk until the centre acknowledges it. A state machine over [`Store`](crate::store::Store).
//!
//! Stands between batch and uplink. It gives seqs, says when to commit and what, which directory to delete, and counts
//! what becomes of every reading in it. It never touches a disk: it answers [`StoreCommand`]s and is told how they went.
//!
//! # How batches are found
//! An *extent* is a run of batches with neighbouring seqs in one directory. Normally a directory is one extent and the
//! stored seq is the seq. A new epoch renumbers what is not acknowledged: then extents map new seqs to stored ones, and
//! no body is rewritten (contract rule 2).
//!
//! # Invariants
//! 1. A seq is given once. It is *durable* when the commit that holds it returned; only then may it be read or sent.
//! 2. `settled` holds every seq at or above the first extent that was acknowledged, refused or lost; everything below
//!    the first extent is settled too.
//! 3. Every reading in an extent is in `unsettled` of that extent until it is counted as delivered or lost, once. The
//!    count of a single batch is in the directory's index; where that was not read yet, the range waits in `uncounted`.
//! 4. A directory is removed only after a commit in whose state record no extent names it, unless the disk is full and
//!    cannot take that commit.
//!
//! # Limits
//! One commit in flight. Sealed batches wait for it up to [`MAX_PENDING`] bytes; beyond that `has_room` is false and the
//! rings fill. The index of a loaded directory costs 8 bytes a batch.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use rangemap::RangeInclusiveSet;
use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::{Mono, Wall};

use crate::ledger::Ledger;
use crate::limits::MAX_PENDING;
use crate::losses::Losses;
use crate::record::Head;
use crate::state;
use crate::store::{Commit, DirId, IndexEntry, StoreCommand, StoreError, Usage};

mod recover;

pub use recover::Started;

/// Payload that makes the next commit early.
const COMMIT_BYTES: usize = 64 * 1024;
/// Payload of a directory before the next is begun.
const DIR_BYTES: u64 = 4 * 1024 * 1024;
/// Acknowledgements alone make a commit within this time.
const ACK_COMMIT: Duration = Duration::from_secs(10);
/// A commit that failed is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What to do when `max_disk` is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest directory goes, its loss is reported.
    #[default]
    DropOldest,
    /// Nothing more is taken in; due polls are lost as STORE_UNAVAILABLE.
    StopPolling,
}

/// Settings of the spool.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Quota in disk bytes.
    pub max_disk: u64,
    /// Least spacing of commits.
    pub commit: Duration,
    /// What gives way when the quota is reached.
    pub when_full: WhenFull,
}

impl Config {
    /// Payload of one directory: a sixteenth of the quota, at most 4 MB.
    fn dir_bytes(&self) -> u64 {
        (self.max_disk / 16).clamp(64 * 1024, DIR_BYTES)
    }

    /// Disk kept free for the active directory: sled takes up to three times the payload, and 1 MB to begin with.
    fn active_room(&self) -> u64 {
        3 * self.dir_bytes() + 1024 * 1024
    }
}

/// How a range of seqs was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The centre has it.
    Delivered,
    /// It will never arrive.
    Lost(Reason),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    readings: u32,
    bytes: u32,
}

#[derive(Clone, Debug)]
struct Extent {
    dir: DirId,
    stored_first: u64,
    first: u64,
    count: u64,
    unsettled: u64,
    oldest: Wall,
    /// Revision of this epoch to name instead of the one in the records; 0 = theirs.
    catalog_rev: u32,
    /// Counts of its batches, once the directory's index was read.
    entries: Option<Vec<Entry>>,
}

impl Extent {
    fn last(&self) -> u64 {
        self.first + self.count - 1
    }

    fn range(&self) -> RangeInclusive<u64> {
        self.first..=self.last()
    }

    fn readings(&self, range: &RangeInclusive<u64>) -> Option<u64> {
        let entries = self.entries.as_ref()?;
        let from = usize::try_from(range.start().checked_sub(self.first)?).ok()?;
        let to = usize::try_from(range.end().checked_sub(self.first)?).ok()?;
        Some(entries.get(from..=to)?.iter().map(|entry| u64::from(entry.readings)).sum())
    }
}

/// Where a batch is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its directory.
    pub dir: DirId,
    /// Its key there.
    pub stored: u64,
    /// Length of its record in bytes.
    pub bytes: u32,
    /// Revision to name in the envelope instead of the record's; 0 = the record's.
    pub catalog_rev: u32,
}

/// What the rest of the pipeline adds to a state record.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Poll sets.
    pub sets: Vec<state::Set>,
    /// Readings of event-driven points in memory.
    pub events_held: u64,
    /// Of those, readings of messages not yet acknowledged to their broker.
    pub events_unacknowledged: u64,
    /// Nothing is held and nothing more will come.
    pub clean: bool,
    /// The catalogue, serialized.
    pub catalog: Vec<u8>,
    /// It changed since the last commit that carried it.
    pub catalog_changed: bool,
    /// The uplink may publish what this commit makes durable.
    pub raise_mark: bool,
}

#[derive(Debug)]
struct InFlight {
    dir: DirId,
    records: Vec<(u64, Vec<u8>)>,
    bytes: usize,
    mark: u64,
    commit_no: u64,
    sent: bool,
    with_catalog: bool,
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    config: Config,
    epoch: u64,
    last_seq: u64,
    durable: u64,
    mark: u64,
    extents: VecDeque<Extent>,
    settled: RangeInclusiveSet<u64>,
    uncounted: Vec<(RangeInclusive<u64>, How)>,
    refused: BTreeSet<u64>,
    pending: VecDeque<(Head, Vec<u8>)>,
    pending_bytes: usize,
    in_flight: Option<InFlight>,
    active: DirId,
    active_payload: u64,
    active_has_catalog: bool,
    condemned: Vec<(DirId, u64)>,
    loading: BTreeSet<DirId>,
    commands: VecDeque<StoreCommand>,
    commit_no: u64,
    last_commit: Mono,
    retry_at: Mono,
    failing: Option<StoreError>,
    /// Since when state waits that is worth a commit by itself.
    dirty_since: Option<Mono>,
    urgent: bool,
    /// Directories whose batches are taken over without a state record, and whether a catalogue resolves them.
    adopting: BTreeMap<DirId, bool>,
    usage: Usage,
}

/// A commit that became durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Highest durable seq.
    pub upto: u64,
    /// Highest seq that may be published.
    pub mark: u64,
    /// The commit carried the catalogue.
    pub with_catalog: bool,
}

impl Spool {
    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Highest durable seq.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Highest seq given, durable or not.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Highest seq that may be published.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.mark.min(self.durable)
    }

    /// The mark as it was stored: an Ack above it means that the spool's identity is in doubt.
    #[must_use]
    pub fn published_mark(&self) -> u64 {
        self.mark
    }

    /// Disk use as last told.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Why the last commit failed, while none has succeeded since.
    #[must_use]
    pub fn failing(&self) -> Option<&StoreError> {
        self.failing.as_ref()
    }

    /// Whether another sealed batch may be pushed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending_bytes < MAX_PENDING
    }

    /// Whether readings may be taken in at all: with `stop-polling`, not while the quota is reached.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.config.when_full == WhenFull::DropOldest || !self.over_quota()
    }

    /// Oldest seq the agent can still send; one above the last if there is none.
    #[must_use]
    pub fn first_retained(&self) -> u64 {
        let Some(first) = self.extents.front().map(|extent| extent.first) else {
            return self.durable + 1;
        };
        if first > self.durable {
            return self.durable + 1;
        }
        self.settled.gaps(&(first..=self.durable)).next().map_or(self.durable + 1, |gap| *gap.start())
    }

    /// Readings in the spool that are neither delivered nor lost.
    #[must_use]
    pub fn held(&self) -> u64 {
        let pending: u64 = self.pending.iter().map(|(head, _)| u64::from(head.readings)).sum();
        pending + self.extents.iter().map(|extent| extent.unsettled).sum::<u64>()
    }

    /// How many batches are not settled.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.unsettled_ranges().map(|range| range.end() - range.start() + 1).sum()
    }

    /// Unsettled durable seqs, ascending.
    pub fn unsettled_ranges(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let first = self.extents.front().map_or(self.durable + 1, |extent| extent.first);
        let outer = first..=self.durable.max(first);
        let empty = first > self.durable;
        let gaps: Vec<_> = if empty { Vec::new() } else { self.settled.gaps(&outer).collect() };
        gaps.into_iter()
    }

    /// The first unsettled durable seq at or above `from`.
    #[must_use]
    pub fn next_unsettled(&self, from: u64) -> Option<u64> {
        let from = from.max(self.extents.front()?.first);
        if from > self.durable {
            return None;
        }
        self.settled.gaps(&(from..=self.durable)).next().map(|gap| *gap.start())
    }

    /// Whether `seq` is settled.
    #[must_use]
    pub fn is_settled(&self, seq: u64) -> bool {
        self.extents.front().is_none_or(|extent| seq < extent.first) || self.settled.contains(&seq)
    }

    /// Stamp of the oldest reading that is not settled.
    #[must_use]
    pub fn oldest(&self) -> Option<Wall> {
        self.extents.iter().filter(|extent| extent.unsettled > 0).map(|extent| extent.oldest).min()
    }

    /// Bytes of unsettled records, where known; a directory not yet read counts as if it were full.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.extents
            .iter()
            .filter(|extent| extent.unsettled > 0)
            .map(|extent| match &extent.entries {
                Some(entries) => entries
                    .iter()
                    .zip(extent.first..)
                    .filter(|(_, seq)| !self.settled.contains(seq))
                    .map(|(entry, _)| u64::from(entry.bytes))
                    .sum(),
                None => self.config.dir_bytes(),
            })
            .sum()
    }

    /// Takes a sealed batch and gives its seq, final once it is durable.
    pub fn push(&mut self, head: Head, record: Vec<u8>) -> u64 {
        self.last_seq += 1;
        self.pending_bytes += record.len();
        self.pending.push_back((head, record));
        self.last_seq
    }

    /// The seq that the next pushed batch gets.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.last_seq + 1
    }

    /// Asks for a commit at once, spacing aside.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Says that the state record changed in a way worth a commit within [`ACK_COMMIT`].
    pub fn touch(&mut self, now: Mono) {
        self.dirty_since.get_or_insert(now);
    }

    /// When `poll` has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        if !self.commands.is_empty() {
            return Some(Mono::ZERO);
        }
        match &self.in_flight {
            Some(commit) if commit.sent => None,
            Some(_) => Some(self.retry_at),
            None if self.urgent || self.pending_bytes >= COMMIT_BYTES => Some(self.retry_at),
            None if !self.pending.is_empty() => Some((self.last_commit + self.config.commit).max(self.retry_at)),
            None => self.dirty_since.map(|since| (since + ACK_COMMIT).max(self.retry_at)),
        }
    }

    /// The next command for the disk, if one is due. `snapshot` is asked only when a commit begins.
    pub fn poll(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        losses: &Losses,
        snapshot: impl FnOnce() -> Snapshot,
    ) -> Option<StoreCommand> {
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        Some(StoreCommand::Commit(self.begin_commit(now, ledger, losses, snapshot())))
    }

    fn begin_commit(&mut self, now: Mono, ledger: &Ledger, losses: &Losses, snapshot: Snapshot) -> Commit {
        if self.active_payload >= self.config.dir_bytes() && self.in_flight.is_none() {
            self.active = DirId { epoch: self.epoch, first: self.durable + 1 };
            self.active_payload = 0;
            self.active_has_catalog = false;
            self.condemn_finished();
        }
        self.commit_no += 1;
        let mut commit = self.in_flight.take().unwrap_or(InFlight {
            dir: self.active,
            records: Vec::new(),
            bytes: 0,
            mark: self.mark,
            commit_no: 0,
            sent: false,
            with_catalog: false,
        });
        self.move_pending(&mut commit);
        if snapshot.raise_mark {
            commit.mark = self.last_seq;
        }
        commit.commit_no = self.commit_no;
        commit.sent = true;
        commit.with_catalog = snapshot.catalog_changed || !self.active_has_catalog;
        let state = self.record(ledger, losses, &snapshot, commit.mark);
        let command = Commit {
            dir: commit.dir,
            records: commit.records.clone(),
            state,
            catalog: commit.with_catalog.then_some(snapshot.catalog),
        };
        self.last_commit = now;
        self.dirty_since = None;
        self.urgent = false;
        self.in_flight = Some(commit);
        command
    }

    /// Moves waiting batches into the commit and gives them their place.
    fn move_pending(&mut self, commit: &mut InFlight) {
        let mut seq = self.last_seq - self.pending.len() as u64;
        for (head, record) in self.pending.drain(..) {
            seq += 1;
            let bytes = u32::try_from(record.len()).unwrap_or(u32::MAX);
            let entry = Entry { readings: head.readings, bytes };
            match self.extents.back_mut() {
                Some(extent)
                    // A run whose index is not read stays as it is: an index read now must not miss what comes later.
                    if extent.dir == commit.dir
                        && extent.entries.is_some()
                        && extent.catalog_rev == 0
                        && extent.first + extent.count == seq
                        && extent.stored_first + extent.count == seq =>
                {
                    extent.count += 1;
                    extent.unsettled += u64::from(head.readings);
                    extent.oldest = extent.oldest.min(head.oldest);
                    if let Some(entries) = &mut extent.entries {
                        entries.push(entry);
                    }
                }
                _ => self.extents.push_back(Extent {
                    dir: commit.dir,
                    stored_first: seq,
                    first: seq,
                    count: 1,
                    unsettled: u64::from(head.readings),
                    oldest: head.oldest,
                    catalog_rev: 0,
                    entries: Some(alloc::vec![entry]),
                }),
            }
            commit.bytes += record.len();
            self.active_payload += record.len() as u64;
            commit.records.push((seq, record));
        }
        self.pending_bytes = commit.bytes;
    }

    fn record(&self, ledger: &Ledger, losses: &Losses, snapshot: &Snapshot, mark: u64) -> Vec<u8> {
        use prost::Message;
        let extent = |extent: &Extent| state::Extent {
            dir_epoch: extent.dir.epoch,
            dir_first: extent.dir.first,
            stored_first: extent.stored_first,
            first: extent.first,
            count: extent.count,
            unsettled: extent.unsettled,
            oldest_ms: extent.oldest.0,
            catalog_rev: extent.catalog_rev,
        };
        let uncounted = |(range, how): &(RangeInclusive<u64>, How)| state::Uncounted {
            first: *range.start(),
            last: *range.end(),
            how: match how {
                How::Delivered => 0,
                How::Lost(reason) => (*reason as i32).unsigned_abs() + 1,
            },
        };
        state::State {
            version: state::VERSION,
            epoch: self.epoch,
            last_seq: self.last_seq,
            mark,
            clean: snapshot.clean,
            ledger: Some(ledger.message(0)),
            extents: self.extents.iter().map(extent).collect(),
            settled: self.settled.iter().map(|range| pb::Range { first: *range.start(), last: *range.end() }).collect(),
            uncounted: self.uncounted.iter().map(uncounted).collect(),
            losses: losses.save(),
            sets: snapshot.sets.clone(),
            events_held: snapshot.events_held,
            events_unacknowledged: snapshot.events_unacknowledged,
            refused: self.refused.iter().copied().collect(),
        }
        .encode_to_vec()
    }

    /// Is told how the commit went.
    pub fn handle_committed(
        &mut self,
        now: Mono,
        result: Result<Usage, StoreError>,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) -> Option<Durable> {
        let mut commit = self.in_flight.take()?;
        match result {
            Ok(usage) => {
                self.failing = None;
                self.usage = usage;
                self.pending_bytes -= commit.bytes.min(self.pending_bytes);
                self.durable = commit.records.last().map_or(self.durable, |(seq, _)| *seq).max(self.durable);
                self.mark = self.mark.max(commit.mark);
                self.active_has_catalog |= commit.with_catalog;
                for (dir, commit_no) in core::mem::take(&mut self.condemned) {
                    if commit_no <= commit.commit_no {
                        self.commands.push_back(StoreCommand::Remove(dir));
                    } else {
                        self.condemned.push((dir, commit_no));
                    }
                }
                if self.config.when_full == WhenFull::DropOldest && self.over_quota() {
                    self.evict(now, ledger, losses);
                }
                Some(Durable { upto: self.durable, mark: self.mark(), with_catalog: commit.with_catalog })
            }
            Err(error) => {
                commit.sent = false;
                self.retry_at = now + RETRY;
                let full = matches!(error, StoreError::Full(_));
                let damaged = matches!(error, StoreError::Damaged(_));
                self.failing = Some(error);
                self.in_flight = Some(commit);
                if full && self.config.when_full == WhenFull::DropOldest {
                    self.evict(now, ledger, losses);
                    // No commit can be made first: the room is needed for it.
                    for (dir, _) in core::mem::take(&mut self.condemned) {
                        self.commands.push_back(StoreCommand::Remove(dir));
                    }
                } else if damaged {
                    self.abandon_active(now, ledger, losses);
                }
                None
            }
        }
    }

    fn over_quota(&self) -> bool {
        let closed = self.usage.disk_bytes.saturating_sub(self.usage.active_bytes);
        closed.saturating_add(self.config.active_room()) > self.config.max_disk
    }

    /// Gives up the oldest directory that is not the active one.
    fn evict(&mut self, now: Mono, ledger: &mut Ledger, losses: &mut Losses) {
        let doomed = |extent: &&Extent| extent.dir != self.active;
        let Some(dir) = self.extents.iter().filter(doomed).map(|extent| extent.dir).min() else { return };
        self.lose_dir(now, dir, Reason::SpoolFull, ledger, losses);
    }

    /// Everything unsettled in `dir` is lost.
    fn lose_dir(&mut self, now: Mono, dir: DirId, reason: Reason, ledger: &mut Ledger, losses: &mut Losses) {
        let ranges: Vec<_> =
            self.extents.iter().filter(|extent| extent.dir == dir).map(Extent::range).collect();
        for range in ranges {
            self.settle(now, range, How::Lost(reason), ledger, losses);
        }
    }

    /// The active directory cannot be written any more: what is committed in it is lost, what is not goes to a new one.
    fn abandon_active(&mut self, now: Mono, ledger: &mut Ledger, losses: &mut Losses) {
        let lost = self.active;
        let next = DirId { epoch: self.epoch, first: self.durable + 1 };
        if next == lost {
            return; // nothing of it is committed: the store has set it aside and makes it anew
        }
        // The batches of the failed commit move: their extents are cut off and made again.
        if let Some(commit) = &mut self.in_flight {
            commit.dir = next;
        }
        let durable = self.durable;
        let mut moved = VecDeque::new();
        while let Some(mut extent) = self.extents.pop_back() {
            if extent.first > durable {
                extent.dir = next;
                moved.push_front(extent);
                continue;
            }
            if extent.last() > durable {
                moved.push_front(split_off(&mut extent, durable + 1, next));
            }
            self.extents.push_back(extent);
            break;
        }
        self.extents.append(&mut moved);
        self.active = next;
        self.active_payload = self.pending_bytes as u64;
        self.active_has_catalog = false;
        self.lose_dir(now, lost, Reason::SpoolDamaged, ledger, losses);
    }

    /// Settles every seq of `range` that is not: each reading of it is counted once, now or when its index was read.
    pub fn settle(
        &mut self,
        now: Mono,
        range: RangeInclusive<u64>,
        how: How,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) {
        let Some(front) = self.extents.front() else { return };
        let (first, last) = ((*range.start()).max(front.first), (*range.end()).min(self.durable));
        if first > last {
            return;
        }
        let fresh: Vec<_> = self.settled.gaps(&(first..=last)).collect();
        for range in fresh {
            self.settled.insert(range.clone());
            match how {
                How::Delivered => losses.delivered(&range),
                How::Lost(_) => losses.say_again(&range),
            }
            let pieces: Vec<_> = self
                .extents
                .iter()
                .enumerate()
                .filter_map(|(index, extent)| {
                    let piece = extent.first.max(*range.start())..=extent.last().min(*range.end());
                    (!piece.is_empty()).then_some((index, piece))
                })
                .collect();
            for (index, piece) in pieces {
                self.count(index, piece, how, ledger, losses);
            }
            self.touch(now);
        }
        self.condemn_finished();
    }

    fn count(
        &mut self,
        index: usize,
        piece: RangeInclusive<u64>,
        how: How,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) {
        let extent = &self.extents[index];
        let whole = extent.range();
        let waits = self.uncounted.iter().any(|(range, _)| whole.contains(range.start()));
        let all_settled = self.settled.gaps(&whole).next().is_none();
        let readings = match extent.readings(&piece) {
            Some(readings) => readings,
            None if all_settled && !waits => extent.unsettled,
            None => {
                let dir = extent.dir;
                self.uncounted.push((piece, how));
                self.load(dir);
                return;
            }
        };
        self.book(index, &piece, readings, how, ledger, losses);
    }

    fn book(
        &mut self,
        index: usize,
        piece: &RangeInclusive<u64>,
        readings: u64,
        how: How,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) {
        let extent = &mut self.extents[index];
        let readings = readings.min(extent.unsettled);
        extent.unsettled -= readings;
        match how {
            How::Delivered => ledger.delivered += readings,
            How::Lost(reason) => {
                ledger.lose(reason, readings);
                losses.add_batches(reason, self.epoch, piece, readings);
            }
        }
    }

    fn load(&mut self, dir: DirId) {
        if self.loading.insert(dir) {
            self.commands.push_back(StoreCommand::Load(dir));
        }
    }

    /// Is told what is in a directory. Batches that should be there and are not are lost as damaged.
    pub fn handle_loaded(
        &mut self,
        now: Mono,
        dir: DirId,
        result: Result<Vec<IndexEntry>, StoreError>,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) {
        self.loading.remove(&dir);
        let index = match result {
            Ok(index) => index,
            Err(StoreError::Damaged(_)) => Vec::new(),
            Err(error) => {
                // Not the directory's fault: asked again when the disk answers.
                self.failing = Some(error);
                self.retry_at = now + RETRY;
                self.urgent = true;
                if self.uncounted.iter().any(|(range, _)| self.dir_of(*range.start()) == Some(dir)) {
                    self.load(dir);
                }
                return;
            }
        };
        let of_dir: Vec<usize> = (0..self.extents.len()).filter(|i| self.extents[*i].dir == dir).collect();
        let decodable = self.adopting.remove(&dir);
        let mut missing = Vec::new();
        for at in of_dir {
            if decodable.is_some() {
                let extent = &mut self.extents[at];
                let readable = index.iter().filter_map(|record| Head::parse(&record.head));
                extent.unsettled = readable.clone().map(|head| u64::from(head.readings)).sum();
                extent.oldest = readable.map(|head| head.oldest).min().unwrap_or(extent.oldest);
                ledger.admitted += extent.unsettled;
            }
            missing.extend(self.adopt_index(at, &index, ledger, losses));
            if decodable == Some(false) {
                missing.push(self.extents[at].range());
            }
        }
        for range in missing {
            self.settle(now, range, How::Lost(Reason::SpoolDamaged), ledger, losses);
        }
        self.condemn_finished();
        self.touch(now);
    }

    /// Puts the counts of `index` into extent `at`, counts what waited for them, and names the seqs that are not there.
    fn adopt_index(
        &mut self,
        at: usize,
        index: &[IndexEntry],
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) -> Vec<RangeInclusive<u64>> {
        let extent = &mut self.extents[at];
        if extent.entries.is_some() {
            return Vec::new();
        }
        let mut entries = alloc::vec![Entry { readings: 0, bytes: 0 }; usize::try_from(extent.count).unwrap_or(0)];
        let mut present = RangeInclusiveSet::new();
        for record in index {
            let Some(offset) = record.seq.checked_sub(extent.stored_first).filter(|offset| *offset < extent.count)
            else {
                continue;
            };
            let (Some(head), Some(entry)) =
                (Head::parse(&record.head), usize::try_from(offset).ok().and_then(|offset| entries.get_mut(offset)))
            else {
                continue;
            };
            *entry = Entry { readings: head.readings, bytes: record.bytes };
            let seq = extent.first + offset;
            present.insert(seq..=seq);
        }
        let range = extent.range();
        let missing: Vec<_> = present.gaps(&range).collect();
        // What the state record counts and the index does not show was in the missing batches. One batch of them, the
        // first, is given the whole difference: the sum is exact, its place within a damaged stretch is not known.
        let shown: u64 = entries
            .iter()
            .zip(extent.first..)
            .filter(|(_, seq)| {
                !self.settled.contains(seq) || self.uncounted.iter().any(|(range, _)| range.contains(seq))
            })
            .map(|(entry, _)| u64::from(entry.readings))
            .sum();
        let hidden = extent.unsettled.saturating_sub(shown);
        let first_missing = missing.iter().flat_map(Clone::clone).find(|seq| {
            !self.settled.contains(seq) || self.uncounted.iter().any(|(range, _)| range.contains(seq))
        });
        if let Some(entry) = first_missing
            .and_then(|seq| usize::try_from(seq - extent.first).ok())
            .and_then(|offset| entries.get_mut(offset))
        {
            entry.readings = u32::try_from(hidden).unwrap_or(u32::MAX);
        }
        extent.entries = Some(entries);
        let (waited, others) = core::mem::take(&mut self.uncounted)
            .into_iter()
            .partition::<Vec<_>, _>(|(waiting, _)| range.contains(waiting.start()));
        self.uncounted = others;
        for (piece, how) in waited {
            let readings = self.extents[at].readings(&piece).unwrap_or(0);
            self.book(at, &piece, readings, how, ledger, losses);
        }
        missing
    }

    fn dir_of(&self, seq: u64) -> Option<DirId> {
        self.extents.iter().find(|extent| extent.range().contains(&seq)).map(|extent| extent.dir)
    }

    /// Where `seq` is, if it is durable and not deleted; `Err` if its directory's index is being read first.
    ///
    /// # Errors
    /// The directory is being loaded; ask again.
    pub fn place(&mut self, seq: u64) -> Result<Option<Place>, Loading> {
        if seq > self.durable {
            return Ok(None);
        }
        let Some(at) = self.extents.iter().position(|extent| extent.range().contains(&seq)) else {
            return Ok(None);
        };
        let extent = &self.extents[at];
        let dir = extent.dir;
        let offset = seq - extent.first;
        let Some(entries) = &extent.entries else {
            self.load(dir);
            return Err(Loading);
        };
        let bytes = usize::try_from(offset).ok().and_then(|offset| entries.get(offset)).map_or(0, |entry| entry.bytes);
        Ok(Some(Place { dir, stored: extent.stored_first + offset, bytes, catalog_rev: extent.catalog_rev }))
    }

    /// The centre refused `seq` for good: its readings are lost, its body is kept for the owner.
    pub fn refuse(&mut self, now: Mono, seq: u64, ledger: &mut Ledger, losses: &mut Losses) {
        if seq > self.durable || self.is_settled(seq) {
            return;
        }
        if let Some(extent) = self.extents.iter().find(|extent| extent.range().contains(&seq)) {
            let stored = extent.stored_first + (seq - extent.first);
            self.commands.push_back(StoreCommand::Quarantine { dir: extent.dir, seq: stored });
        }
        self.refused.insert(seq);
        self.settle(now, seq..=seq, How::Lost(Reason::Refused), ledger, losses);
    }

    /// Extents with nothing left go; a directory without extents is condemned, to be removed after the next commit.
    fn condemn_finished(&mut self) {
        let active = self.active;
        let in_flight = self.in_flight.as_ref().map(|commit| commit.dir);
        let mut gone = Vec::new();
        let (settled, uncounted) = (&self.settled, &self.uncounted);
        self.extents.retain(|extent| {
            let range = extent.range();
            let finished = extent.dir != active
                && Some(extent.dir) != in_flight
                && settled.gaps(&range).next().is_none()
                && !uncounted.iter().any(|(waiting, _)| range.contains(waiting.start()));
            if finished {
                gone.push(extent.dir);
            }
            !finished
        });
        gone.dedup();
        for dir in gone {
            let named = self.extents.iter().any(|extent| extent.dir == dir);
            if !named && !self.condemned.iter().any(|(condemned, _)| *condemned == dir) {
                self.condemned.push((dir, self.commit_no + 1));
            }
        }
        let first = self.extents.front().map_or(self.durable + 1, |extent| extent.first);
        if first > 0 {
            self.settled.remove(0..=first - 1);
            self.refused = self.refused.split_off(&first);
        }
    }

    /// Is told that a directory is gone, or could not be removed (it will be, at the next start).
    pub fn handle_removed(&mut self, result: Result<Usage, StoreError>) {
        if let Ok(usage) = result {
            self.usage = usage;
        }
    }

    /// Seqs of `range` that can no longer be sent, for the answer to a replay (rule 24).
    #[must_use]
    pub fn not_retained(&self, range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let mut retained = RangeInclusiveSet::new();
        for extent in &self.extents {
            retained.insert(extent.range());
        }
        for seq in &self.refused {
            retained.remove(*seq..=*seq);
        }
        if range.is_empty() { Vec::new() } else { retained.gaps(&range).collect() }
    }

    /// Whether a commit or another command is under way or due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none() && self.commands.is_empty()
    }
}

/// The index of the directory is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading;

/// Cuts the batches from `seq` on off `extent`, into directory `dir`.
fn split_off(extent: &mut Extent, seq: u64, dir: DirId) -> Extent {
    let offset = seq - extent.first;
    let entries = extent
        .entries
        .as_mut()
        .map(|entries| entries.split_off(usize::try_from(offset).unwrap_or(usize::MAX).min(entries.len())));
    let unsettled =
        entries.as_ref().map_or(0, |entries| entries.iter().map(|entry| u64::from(entry.readings)).sum());
    extent.unsettled -= unsettled.min(extent.unsettled);
    let cut = Extent {
        dir,
        stored_first: extent.stored_first + offset,
        first: seq,
        count: extent.count - offset,
        unsettled,
        oldest: extent.oldest,
        catalog_rev: 0,
        entries,
    };
    extent.count = offset;
    cut
}
