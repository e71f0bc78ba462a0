//! The order of sealing: what closes the open batch, and what goes into it besides readings.

use alloc::collections::VecDeque;

use tributary_proto::pb;
use tributary_protocols::reading::StampedBy;
use tributary_protocols::time::Mono;

use super::{Life, MANY_RECEIPTS, Now, Pipeline, RECEIPTS_WAIT, REVISION_WAIT};
use crate::batch;
use crate::spool::Snapshot;
use crate::store::StoreCommand;

impl Pipeline {
    /// Seals at once if the batch is as large as it may be, so that a full ring need not push anything out.
    pub(super) fn make_room(&mut self, now: Now, stamped_by: StampedBy) {
        if self.batcher.is_large(stamped_by) && self.spool.has_room() {
            self.seal(now, stamped_by);
        }
    }

    pub(super) fn seal_deadline(&self) -> Option<Mono> {
        if !self.spool.has_room() {
            return None; // the spool's answer comes first
        }
        let open = [self.batcher.deadline(StampedBy::Agent), self.batcher.deadline(StampedBy::Source)];
        let large = self.batcher.is_large(StampedBy::Agent) || self.batcher.is_large(StampedBy::Source);
        let draft = self.draft_since.map(|since| since + REVISION_WAIT);
        let age = open.into_iter().flatten().min();
        let age = if large { age } else { age.map(|age| draft.map_or(age, |draft| age.max(draft))) };
        [age, draft, self.receipts_deadline()].into_iter().flatten().min()
    }

    pub(super) fn receipts_deadline(&self) -> Option<Mono> {
        let since = self.receipts_since?;
        let many = self.receipts.len() + self.folded_receipts.len() >= MANY_RECEIPTS;
        let commit = self.spool.next_commit_spacing();
        Some(if many { (since + RECEIPTS_WAIT).min(commit.max(since)) } else { commit.max(since) })
    }

    pub(super) fn seal_due(&mut self, now: Now) {
        if self.seal_deadline().is_none_or(|deadline| now.mono < deadline) {
            return;
        }
        self.close_draft();
        let receipts = self.receipts_deadline().is_some_and(|deadline| now.mono >= deadline);
        for stamped_by in [StampedBy::Agent, StampedBy::Source] {
            if receipts || self.batcher.deadline(stamped_by).is_some_and(|deadline| now.mono >= deadline) {
                self.seal(now, stamped_by);
            }
        }
        if receipts {
            self.receipts_since = None;
            self.spool.hurry();
        }
    }

    /// The next revision takes in all points that appeared.
    pub(super) fn close_draft(&mut self) {
        if self.draft_since.take().is_some() && self.catalog.close() {
            self.spool.hurry();
        }
    }

    /// Everything of one kind becomes batches of the spool, losses and events with the first of them, if it has room.
    pub(super) fn seal(&mut self, now: Now, stamped_by: StampedBy) {
        if self.spool.has_room() {
            self.seal_all(now, stamped_by);
        }
    }

    /// The same, room or not: for a batcher that ends.
    pub(super) fn seal_all(&mut self, now: Now, stamped_by: StampedBy) {
        self.close_draft();
        if stamped_by == StampedBy::Agent && (self.losses.waiting() || !self.events.is_empty()) {
            self.batcher.open(now.mono);
        }
        let intake = &self.intake;
        let mut drafts: VecDeque<_> = self.batcher.seal(stamped_by, |key| intake.point(key)).into();
        let mut first = stamped_by == StampedBy::Agent;
        while let Some(mut draft) = drafts.pop_front() {
            if first {
                draft.batch.losses = self.losses.carry(self.spool.next_seq(), self.batcher.loss_bytes());
                draft.batch.events = core::mem::take(&mut self.events);
                if self.losses.waiting() {
                    drafts.push_back(batch::Draft::empty());
                }
                first = drafts.len() == 1 && drafts[0].readings == 0;
            } else if draft.readings == 0 {
                draft.batch.losses = self.losses.carry(self.spool.next_seq(), self.batcher.loss_bytes());
                if self.losses.waiting() {
                    drafts.push_back(batch::Draft::empty());
                }
            }
            if draft.is_empty() {
                continue;
            }
            let quality = match stamped_by {
                StampedBy::Agent => self.quality,
                StampedBy::Source => pb::TimeQuality::SourceTime,
            };
            draft.batch.time_quality = quality as i32;
            if !matches!(quality, pb::TimeQuality::Synced | pb::TimeQuality::SourceTime) {
                draft.batch.time_error_ms = self.time_error_ms;
            }
            let (head, record) = self.batcher.record(&draft, self.catalog.rev());
            self.spool.push(head, record);
        }
        self.intake.sealed(stamped_by);
        if self.batcher.events_sealed() {
            let seq = self.spool.last_seq();
            self.sealed_receipts.extend(self.receipts.drain(..).map(|receipt| (seq, receipt)));
        }
    }

    pub(super) fn poll_spool(&mut self, now: Now) -> Option<StoreCommand> {
        if !self.commits() {
            return self.spool.poll_commands(now.mono);
        }
        let Self { spool, ledger, losses, intake, batcher, catalog, uplink, catalog_committing, .. } = self;
        let (stored, life) = (self.catalog_stored, self.life);
        let (folded_receipts, clean_committing) = (&mut self.folded_receipts, &mut self.clean_committing);
        spool.poll(now.mono, ledger, losses, || {
            for (counted, _) in folded_receipts.iter_mut() {
                *counted = true;
            }
            *catalog_committing = catalog.rev();
            *clean_committing = matches!(life, Life::Committing(_)) && batcher.held() + intake.held() == 0;
            let events = intake.event_counts();
            Snapshot {
                sets: intake.save_sets(batcher),
                events_held: events.unsealed + events.folded,
                events_unacknowledged: events.unacknowledged,
                clean: *clean_committing,
                catalog: catalog.message().to_vec(),
                catalog_changed: stored != catalog.rev(),
                raise_mark: uplink.open(),
            }
        })
    }
}
