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
//!    cannot take that commit; the one with the state record in force never is.
//! 5. A full disk is emptied by what is acknowledged, and nothing is published above the stored mark or under a catalogue
//!    that is not stored. So a commit whose records do not fit is tried without them when mark or catalogue are waited
//!    for: the store keeps room for that, and for the first commit into a new directory, which lets the last one go.
//!
//! # Limits
//! One commit in flight. Sealed batches wait for it up to [`MAX_PENDING`] bytes; beyond that `has_room` is false and the
//! rings fill. The index of a loaded directory costs 8 bytes a batch.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use rangemap::RangeInclusiveSet;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::{Mono, Wall};

use crate::limits::MAX_PENDING;
use crate::record::Head;
use crate::state;
use crate::store::{DirId, StoreCommand, StoreError, Usage};

mod commit;
mod recover;
mod settle;

pub use recover::Started;
pub use settle::Loading;

/// Payload that makes the next commit early.
const COMMIT_BYTES: usize = 64 * 1024;
/// Payload of a directory before the next is begun.
const DIR_BYTES: u64 = 2 * 1024 * 1024;
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
    /// Payload of one directory: a sixteenth of the quota, at most 2 MB.
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
    records: Vec<(u64, Head, Vec<u8>)>,
    bytes: usize,
    mark: u64,
    commit_no: u64,
    sent: bool,
    with_catalog: bool,
    /// Its records found the disk full at the last try.
    full: bool,
    /// Only its state record was sent.
    bare: bool,
    /// The oldest batch that its state record is the first to give up.
    given_up: Option<u64>,
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
    /// The oldest batch lost since a state record was made.
    given_up: Option<u64>,
    refused: BTreeSet<u64>,
    pending: VecDeque<(Head, Vec<u8>)>,
    pending_bytes: usize,
    in_flight: Option<InFlight>,
    active: DirId,
    /// The newest directory into which a commit has gone: it has the state record in force.
    newest: Option<DirId>,
    active_payload: u64,
    active_has_catalog: bool,
    condemned: Vec<(DirId, u64)>,
    loading: BTreeSet<DirId>,
    /// Directories whose index the disk could not read, and when it is asked again.
    reload: Vec<DirId>,
    reload_at: Mono,
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

    /// Goes on under other settings. A smaller quota is kept to from the next commit on.
    pub fn reload(&mut self, config: Config) {
        self.config = config;
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

    /// Oldest seq the agent can still send; one above the last if there is none. Not above a batch whose loss is not in a
    /// durable state record: a life that begins from an older one would take the hole that the centre passes over for
    /// delivered, and never name it.
    #[must_use]
    pub fn first_retained(&self) -> u64 {
        let given_up = [self.given_up, self.in_flight.as_ref().and_then(|commit| commit.given_up)];
        given_up.into_iter().flatten().fold(self.first_unsettled(), u64::min)
    }

    fn first_unsettled(&self) -> u64 {
        let Some(first) = self.extents.front().map(|extent| extent.first) else {
            return self.durable + 1;
        };
        if first > self.durable {
            return self.durable + 1;
        }
        self.settled.gaps(&(first..=self.durable)).next().map_or(self.durable + 1, |gap| *gap.start())
    }

    /// The oldest seq that is still on disk, settled or not; one above the last if there is none.
    #[must_use]
    pub fn first_stored(&self) -> u64 {
        self.extents.front().map_or(self.durable + 1, |extent| extent.first)
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
        [self.commands_deadline(), self.commit_deadline()].into_iter().flatten().min()
    }

    /// When `poll_commands` has something to do next.
    #[must_use]
    pub fn commands_deadline(&self) -> Option<Mono> {
        if !self.commands.is_empty() {
            return Some(Mono::ZERO);
        }
        (!self.reload.is_empty()).then_some(self.reload_at)
    }

    fn commit_deadline(&self) -> Option<Mono> {
        match &self.in_flight {
            Some(commit) if commit.sent => None,
            // Until it is known what they hold, the ledger is not to be stored.
            _ if !self.adopting.is_empty() => None,
            Some(_) => Some(self.retry_at),
            None if self.urgent || self.pending_bytes >= COMMIT_BYTES => Some(self.retry_at),
            None if !self.pending.is_empty() => Some((self.last_commit + self.config.commit).max(self.retry_at)),
            None => self.dirty_since.map(|since| (since + ACK_COMMIT).max(self.retry_at)),
        }
    }

    /// Earliest moment of the next commit by spacing alone.
    #[must_use]
    pub fn next_commit_spacing(&self) -> Mono {
        self.last_commit + self.config.commit
    }

    /// Whether a commit or another command is under way or due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none() && self.commands.is_empty()
    }
}
