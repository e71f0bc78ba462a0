//! Commits: what becomes durable together, and what gives way when the disk has no room.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use prost::Message;
use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::Mono;

use super::{Durable, Entry, Extent, How, InFlight, RETRY, Snapshot, Spool, WhenFull};
use crate::ledger::Ledger;
use crate::losses::Losses;
use crate::state;
use crate::store::{Commit, DirId, StoreCommand, StoreError, Usage};

impl Spool {
    /// The next command for the disk, if one is due. `snapshot` is asked only when a commit begins.
    pub fn poll(
        &mut self,
        now: Mono,
        ledger: &Ledger,
        losses: &Losses,
        snapshot: impl FnOnce() -> Snapshot,
    ) -> Option<StoreCommand> {
        if let Some(command) = self.poll_commands(now) {
            return Some(command);
        }
        if self.commit_deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        Some(StoreCommand::Commit(self.begin_commit(now, ledger, losses, snapshot())))
    }

    /// The next command other than a commit.
    pub fn poll_commands(&mut self, now: Mono) -> Option<StoreCommand> {
        if now >= self.reload_at {
            self.commands.extend(self.reload.drain(..).map(StoreCommand::Load));
        }
        self.commands.pop_front()
    }

    pub(super) fn begin_commit(&mut self, now: Mono, ledger: &Ledger, losses: &Losses, snapshot: Snapshot) -> Commit {
        let leaves = match &self.in_flight {
            None => self.active_payload >= self.config.dir_bytes(),
            // The active directory is there for its state record alone: the first commit into another lets it go.
            Some(commit) => commit.full && !commit.records.is_empty() && self.is_drained(),
        };
        if leaves {
            self.leave_active();
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
            full: false,
            bare: false,
            given_up: None,
        });
        commit.given_up = [commit.given_up, self.given_up.take()].into_iter().flatten().min();
        self.move_pending(&mut commit);
        if snapshot.raise_mark {
            commit.mark = self.last_seq;
        }
        commit.commit_no = self.commit_no;
        commit.sent = true;
        let state = self.record(ledger, losses, &snapshot, commit.mark);
        // What is durable may have to wait for a mark or a catalogue on the disk, where the records find no room.
        let waits = snapshot.raise_mark && (self.mark < self.durable || snapshot.catalog_changed);
        let command = match self.newest.filter(|_| commit.full && waits) {
            Some(dir) => {
                commit.bare = true;
                commit.with_catalog = snapshot.catalog_changed;
                let catalog = snapshot.catalog_changed.then_some(snapshot.catalog);
                Commit { dir, records: Vec::new(), state, catalog, frees: false }
            }
            None => {
                commit.with_catalog = snapshot.catalog_changed || !self.active_has_catalog;
                let catalog = commit.with_catalog.then_some(snapshot.catalog);
                Commit {
                    dir: commit.dir,
                    records: commit.records.iter().map(|(seq, _, record)| (*seq, record.clone())).collect(),
                    state,
                    catalog,
                    frees: self.frees(commit.dir),
                }
            }
        };
        self.last_commit = now;
        self.dirty_since = None;
        self.urgent = false;
        self.in_flight = Some(commit);
        command
    }

    /// Moves waiting batches into the commit and gives them their place.
    pub(super) fn move_pending(&mut self, commit: &mut InFlight) {
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
            commit.records.push((seq, head, record));
        }
        self.pending_bytes = commit.bytes;
    }

    pub(super) fn record(&self, ledger: &Ledger, losses: &Losses, snapshot: &Snapshot, mark: u64) -> Vec<u8> {
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
        let (bare, with_catalog) = (core::mem::take(&mut commit.bare), commit.with_catalog);
        match result {
            Ok(usage) if bare => {
                self.usage = usage;
                self.mark = self.mark.max(commit.mark);
                (commit.sent, commit.full, commit.given_up) = (false, false, None);
                self.retry_at = now + RETRY;
                self.in_flight = Some(commit);
                Some(Durable { upto: self.durable, mark: self.mark(), with_catalog })
            }
            Ok(usage) => {
                self.failing = None;
                self.usage = usage;
                self.newest = Some(commit.dir);
                self.pending_bytes -= commit.bytes.min(self.pending_bytes);
                self.durable = commit.records.last().map_or(self.durable, |(seq, ..)| *seq).max(self.durable);
                self.mark = self.mark.max(commit.mark);
                self.active_has_catalog |= with_catalog;
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
                Some(Durable { upto: self.durable, mark: self.mark(), with_catalog })
            }
            Err(error) => {
                commit.sent = false;
                self.retry_at = now + RETRY;
                let full = matches!(error, StoreError::Full(_));
                let damaged = matches!(error, StoreError::Damaged(_));
                commit.full = full && !bare;
                self.failing = Some(error);
                self.in_flight = Some(commit);
                if full {
                    if self.config.when_full == WhenFull::DropOldest {
                        self.evict(now, ledger, losses);
                    }
                    // No commit can be made first: the room is needed for it. The newest has the only state record.
                    let newest = self.newest;
                    for (dir, _) in self.condemned.extract_if(.., |(dir, _)| Some(*dir) != newest) {
                        self.commands.push_back(StoreCommand::Remove(dir));
                    }
                } else if damaged && !bare {
                    self.abandon_active(now, ledger, losses);
                }
                None
            }
        }
    }

    pub(super) fn over_quota(&self) -> bool {
        let closed = self.usage.disk_bytes.saturating_sub(self.usage.active_bytes);
        closed.saturating_add(self.config.active_room()) > self.config.max_disk
    }

    /// Gives up the oldest directory that is not the active one.
    pub(super) fn evict(&mut self, now: Mono, ledger: &mut Ledger, losses: &mut Losses) {
        let doomed = |extent: &&Extent| extent.dir != self.active;
        let Some(dir) = self.extents.iter().filter(doomed).map(|extent| extent.dir).min() else { return };
        self.lose_dir(now, dir, Reason::SpoolFull, ledger, losses);
    }

    /// Everything unsettled in `dir` is lost.
    pub(super) fn lose_dir(&mut self, now: Mono, dir: DirId, reason: Reason, ledger: &mut Ledger, losses: &mut Losses) {
        let ranges: Vec<_> = self.extents.iter().filter(|extent| extent.dir == dir).map(Extent::range).collect();
        for range in ranges {
            self.settle(now, range, How::Lost(reason), ledger, losses);
        }
    }

    /// Whether everything that was committed is settled.
    fn is_drained(&self) -> bool {
        self.next_unsettled(0).is_none() && self.uncounted.is_empty()
    }

    /// Whether a commit into `dir` lets every other directory go.
    fn frees(&self, dir: DirId) -> bool {
        self.is_drained() && dir == self.next_dir()
    }

    /// The directory that begins after what is durable.
    fn next_dir(&self) -> DirId {
        DirId { epoch: self.epoch, first: self.durable + 1 }
    }

    /// The active directory cannot be written any more: what is committed in it is lost, what is not goes to a new one.
    pub(super) fn abandon_active(&mut self, now: Mono, ledger: &mut Ledger, losses: &mut Losses) {
        let lost = self.active;
        self.leave_active();
        // If nothing of it is committed, the store has set it aside and makes it anew.
        if self.active != lost {
            self.lose_dir(now, lost, Reason::SpoolDamaged, ledger, losses);
        }
    }

    /// Makes a new directory the active one, unless nothing is committed in this one.
    fn leave_active(&mut self) {
        let next = self.next_dir();
        if next == self.active {
            return;
        }
        // The batches of a failed commit move.
        if let Some(commit) = &mut self.in_flight {
            commit.dir = next;
        }
        let mut moved = self.cut_after_durable();
        for extent in &mut moved {
            extent.dir = next;
        }
        self.extents.append(&mut moved);
        self.active = next;
        self.active_payload = self.in_flight.as_ref().map_or(0, |commit| commit.bytes as u64);
        self.active_has_catalog = false;
    }

    /// The batches of a commit that failed wait again, without a place on the disk.
    pub(super) fn take_back(&mut self) {
        let Some(commit) = self.in_flight.take_if(|commit| !commit.sent) else { return };
        self.cut_after_durable();
        self.given_up = [commit.given_up, self.given_up].into_iter().flatten().min();
        for (_, head, record) in commit.records.into_iter().rev() {
            self.pending.push_front((head, record));
        }
    }

    /// Cuts off the extents of what is not durable.
    fn cut_after_durable(&mut self) -> VecDeque<Extent> {
        let mut cut = VecDeque::new();
        while let Some(mut extent) = self.extents.pop_back() {
            if extent.first > self.durable {
                cut.push_front(extent);
                continue;
            }
            if extent.last() > self.durable {
                cut.push_front(split_off(&mut extent, self.durable + 1));
            }
            self.extents.push_back(extent);
            break;
        }
        cut
    }

    /// Is told that a directory is gone, or could not be removed: it is tried again after the next commit.
    pub fn handle_removed(&mut self, dir: DirId, result: Result<Usage, StoreError>) {
        match result {
            Ok(usage) => self.usage = usage,
            Err(_) => self.condemned.push((dir, self.commit_no + 1)),
        }
    }

    /// Is told that a record is kept for the owner, or could not be.
    pub fn handle_quarantined(&mut self, result: Result<Usage, StoreError>) {
        if let Ok(usage) = result {
            self.usage = usage;
        }
    }
}

/// Cuts the batches from `seq` on off `extent`.
fn split_off(extent: &mut Extent, seq: u64) -> Extent {
    let offset = seq - extent.first;
    let entries = extent
        .entries
        .as_mut()
        .map(|entries| entries.split_off(usize::try_from(offset).unwrap_or(usize::MAX).min(entries.len())));
    let unsettled = entries.as_ref().map_or(0, |entries| entries.iter().map(|entry| u64::from(entry.readings)).sum());
    extent.unsettled -= unsettled.min(extent.unsettled);
    let cut = Extent {
        dir: extent.dir,
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

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use tributary_protocols::time::Wall;

    use super::*;
    use crate::record::Head;
    use crate::spool::Config;
    use crate::store::Recovered;

    const NOW: Mono = Mono::ZERO;

    fn spool() -> (Spool, Ledger, Losses) {
        spool_that(WhenFull::DropOldest)
    }

    fn spool_that(when_full: WhenFull) -> (Spool, Ledger, Losses) {
        let config = Config { max_disk: 2 << 20, commit: Duration::ZERO, when_full };
        (Spool::start(config, NOW, Recovered::default(), |_| 7).spool, Ledger::default(), Losses::default())
    }

    /// Commits a batch that fills a directory; then the spool takes so much.
    fn fill(spool: &mut Spool, disk_bytes: u64, ledger: &mut Ledger, losses: &mut Losses) {
        let head = Head { zstd: false, readings: 5, catalog_rev: 1, body_crc32c: 0, oldest: Wall(0) };
        spool.push(head, alloc::vec![0; 128 << 10]);
        let command = spool.poll(NOW, ledger, losses, Snapshot::default);
        assert!(matches!(command, Some(StoreCommand::Commit(_))), "{command:?}");
        spool.handle_committed(NOW, Ok(Usage { disk_bytes, ..Usage::default() }), ledger, losses);
    }

    /// Three directories; with the third the quota is passed.
    #[test]
    fn what_gives_way_is_the_oldest() {
        let (mut spool, mut ledger, mut losses) = spool();
        for disk_bytes in [0, 0, 2 << 20] {
            fill(&mut spool, disk_bytes, &mut ledger, &mut losses);
        }
        let lost = losses.carry(4, 10_000);
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!((lost[0].reason(), lost[0].first_seq, lost[0].last_seq), (Reason::SpoolFull, 1, 1));
        assert_eq!((spool.first_retained(), ledger.lost()), (1, 5), "no state record says so yet");
        fill(&mut spool, 0, &mut ledger, &mut losses);
        assert_eq!(spool.first_retained(), 2);
    }

    /// On a full disk there may be no room but what is kept for emptying the spool. With all settled it is empty, and the
    /// next commit may have that room: a new directory, with which the last one goes.
    #[test]
    fn a_full_disk_lets_the_last_directory_go() {
        let (mut spool, mut ledger, mut losses) = spool_that(WhenFull::StopPolling);
        let head = Head { zstd: false, readings: 5, catalog_rev: 1, body_crc32c: 0, oldest: Wall(0) };
        let mut now = NOW;
        let mut commit = |spool: &mut Spool, ledger: &Ledger, losses: &Losses| {
            now = now + RETRY;
            match spool.poll(now, ledger, losses, Snapshot::default) {
                Some(StoreCommand::Commit(commit)) => (commit.dir.first, commit.records.len(), commit.frees),
                other => panic!("{other:?}"),
            }
        };
        let full = || Err(StoreError::Full("full".into()));
        spool.push(head, alloc::vec![0; 100]);
        assert_eq!(commit(&mut spool, &ledger, &losses), (1, 1, true), "the first of all");
        spool.handle_committed(NOW, Ok(Usage::default()), &mut ledger, &mut losses);
        for records in 1..=2 {
            spool.push(head, alloc::vec![0; 100]);
            assert_eq!(commit(&mut spool, &ledger, &losses), (1, records, false), "the first batch waits");
            spool.handle_committed(NOW, full(), &mut ledger, &mut losses);
        }
        spool.settle(NOW, 1..=1, How::Delivered, &mut ledger, &mut losses);
        for _ in 0..2 {
            assert_eq!(commit(&mut spool, &ledger, &losses), (2, 2, true));
            spool.handle_committed(NOW, full(), &mut ledger, &mut losses);
        }
        commit(&mut spool, &ledger, &losses);
        assert_eq!(
            spool.handle_committed(NOW, Ok(Usage::default()), &mut ledger, &mut losses).map(|d| d.upto),
            Some(3)
        );
        let first = DirId { epoch: 7, first: 1 };
        assert!(matches!(spool.poll_commands(NOW), Some(StoreCommand::Remove(dir)) if dir == first));
        assert!(spool.place(2).is_ok_and(|place| place.is_some_and(|place| place.dir.first == 2)));
    }

    /// Nothing is sent before the catalogue that names it is on the disk; and without an acknowledgement nothing makes room.
    #[test]
    fn a_full_disk_takes_a_new_catalogue_all_the_same() {
        let (mut spool, mut ledger, mut losses) = spool_that(WhenFull::StopPolling);
        fill(&mut spool, 0, &mut ledger, &mut losses);
        let head = Head { zstd: false, readings: 5, catalog_rev: 2, body_crc32c: 0, oldest: Wall(0) };
        spool.push(head, alloc::vec![0; 100]);
        let changed =
            || Snapshot { catalog_changed: true, catalog: alloc::vec![2], raise_mark: true, ..Snapshot::default() };
        let Some(StoreCommand::Commit(commit)) = spool.poll(NOW, &ledger, &losses, changed) else { panic!("a commit") };
        assert_eq!((commit.dir.first, commit.records.len()), (2, 1));
        spool.handle_committed(NOW, Err(StoreError::Full("full".into())), &mut ledger, &mut losses);
        let Some(StoreCommand::Commit(commit)) = spool.poll(NOW + RETRY, &ledger, &losses, changed) else {
            panic!("a commit")
        };
        assert_eq!((commit.dir.first, commit.records.len(), commit.catalog), (1, 0, Some(alloc::vec![2])));
        let durable = spool.handle_committed(NOW, Ok(Usage::default()), &mut ledger, &mut losses);
        assert!(durable.is_some_and(|durable| durable.with_catalog));
        let Some(StoreCommand::Commit(commit)) = spool.poll(NOW + RETRY, &ledger, &losses, Snapshot::default) else {
            panic!("a commit")
        };
        assert_eq!((commit.dir.first, commit.records.len()), (2, 1), "the batch is tried again");
    }

    /// A state record in an older directory would not be found: the newest has its own, with or without batches.
    #[test]
    fn a_state_record_goes_where_the_last_one_is() {
        let (mut spool, mut ledger, mut losses) = spool_that(WhenFull::StopPolling);
        fill(&mut spool, 0, &mut ledger, &mut losses);
        let mut commit = |seconds, answer, spool: &mut Spool| {
            let now = NOW + Duration::from_secs(seconds);
            let snapshot = || Snapshot { raise_mark: true, ..Snapshot::default() };
            let Some(StoreCommand::Commit(commit)) = spool.poll(now, &ledger, &losses, snapshot) else {
                panic!("a commit")
            };
            spool.handle_committed(now, answer, &mut ledger, &mut losses);
            (commit.dir.first, commit.records.len())
        };
        spool.hurry();
        let full = || Err(StoreError::Full("full".into()));
        assert_eq!(commit(0, full(), &mut spool), (2, 0), "another directory begins without batches");
        assert_eq!(commit(10, Ok(Usage::default()), &mut spool), (1, 0), "nothing is in it yet");
        spool.hurry();
        assert_eq!(commit(20, Ok(Usage::default()), &mut spool), (2, 0));
        let head = Head { zstd: false, readings: 5, catalog_rev: 1, body_crc32c: 0, oldest: Wall(0) };
        spool.push(head, alloc::vec![0; 100]);
        spool.mark = 0;
        assert_eq!(commit(30, full(), &mut spool), (2, 1));
        assert_eq!(commit(40, Ok(Usage::default()), &mut spool), (2, 0), "it has the state record in force");
    }

    /// A state record that still names it would find it damaged after a crash.
    #[test]
    fn a_directory_goes_after_the_commit_that_no_longer_names_it() {
        let (mut spool, mut ledger, mut losses) = spool();
        fill(&mut spool, 0, &mut ledger, &mut losses);
        fill(&mut spool, 0, &mut ledger, &mut losses);
        spool.settle(NOW, 1..=1, How::Delivered, &mut ledger, &mut losses);
        assert!(spool.poll_commands(NOW).is_none());
        fill(&mut spool, 0, &mut ledger, &mut losses);
        let first = DirId { epoch: 7, first: 1 };
        assert!(matches!(spool.poll_commands(NOW), Some(StoreCommand::Remove(dir)) if dir == first));
    }
}
