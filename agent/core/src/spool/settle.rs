//! Settling: what was acknowledged, refused or lost, counted once each, and where batches are found.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use rangemap::RangeInclusiveSet;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::Mono;

use super::{Entry, How, Place, RETRY, Spool};
use crate::ledger::Ledger;
use crate::losses::Losses;
use crate::record::Head;
use crate::store::{DirId, IndexEntry, StoreCommand, StoreError};

/// The index of the directory is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading;

impl Spool {
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
                How::Lost(_) => {
                    losses.say_again(&range, self.mark);
                    self.given_up = Some(self.given_up.map_or(*range.start(), |seq| seq.min(*range.start())));
                }
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

    pub(super) fn count(
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

    pub(super) fn book(
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

    pub(super) fn load(&mut self, dir: DirId) {
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
        let index = match result {
            Ok(index) => index,
            Err(StoreError::Damaged(_)) => Vec::new(),
            Err(_) => {
                // Not the directory's fault: asked again later.
                self.reload.push(dir);
                self.reload_at = now + RETRY;
                return;
            }
        };
        self.loading.remove(&dir);
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
    pub(super) fn adopt_index(
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
        let first_missing = missing
            .iter()
            .flat_map(Clone::clone)
            .find(|seq| !self.settled.contains(seq) || self.uncounted.iter().any(|(range, _)| range.contains(seq)));
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

    pub(super) fn dir_of(&self, seq: u64) -> Option<DirId> {
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
    pub(super) fn condemn_finished(&mut self) {
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
}
