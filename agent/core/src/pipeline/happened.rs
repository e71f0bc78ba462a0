//! What happened, told by the shell: polls, messages, clocks, the disk, the broker, the centre, the owner.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use prost::Message;
use tributary_proto::pb;
use tributary_protocols::reading::{Poll, StampedBy};

use super::{Arrival, LAST_COMMIT, Life, Notice, Now, Output, Pipeline, Receipt};
use crate::intake::{Fate, Unbuildable};
use crate::model::{self, PointKey};
use crate::store::{StoreError, StoreReply};
use crate::uplink::Consequence;

/// So many Acks in a row that want the catalogue are no chance order of messages.
const CATALOG_AWAY: u32 = 10;

impl Pipeline {
    /// A due poll came to its end.
    pub fn handle_poll(&mut self, now: Now, poll: &Poll) {
        self.close_windows(now);
        self.make_room(now, StampedBy::Agent);
        let accepts = self.spool.accepts();
        let synced = self.quality == pb::TimeQuality::Synced;
        if self.intake.handle_factors(poll, &mut self.catalog, &mut self.batcher, now.mono, now.wall) {
            self.draft_since.get_or_insert(now.mono);
        }
        let (intake, books) = self.books();
        intake.handle_poll(now.mono, poll, synced, accepts, books);
        self.tell_counters(now);
    }

    /// A message of a device's broker brought these readings. Its receipt comes back when they are safe.
    pub fn handle_message(&mut self, now: Now, arrivals: Vec<Arrival>, receipt: Option<Receipt>) {
        self.close_windows(now);
        let accepts = self.spool.accepts();
        let mut fate = Fate::Settled;
        for arrival in arrivals {
            self.make_room(now, arrival.stamped_by);
            let (intake, books) = self.books();
            let waits = receipt.is_some();
            fate = fate.max(intake.handle_reading(now.mono, arrival, waits, accepts, books));
        }
        self.tell_counters(now);
        let Some(receipt) = receipt else { return };
        match fate {
            Fate::Settled => self.outputs.push_back(Output::Release(receipt)),
            Fate::Folded => {
                self.folded_receipts.push((false, receipt));
                self.receipts_since.get_or_insert(now.mono);
            }
            Fate::Waiting => {
                self.receipts.push(receipt);
                self.receipts_since.get_or_insert(now.mono);
            }
        }
    }

    /// A point appeared that the model did not have. It is on its own clock.
    ///
    /// # Errors
    /// It passes a ceiling.
    pub fn declare(&mut self, now: Now, point: &model::Point) -> Result<PointKey, Unbuildable> {
        self.draft_since.get_or_insert(now.mono);
        self.intake.declare(point, &mut self.catalog, &mut self.batcher, now.mono, now.wall)
    }

    /// What the system says of its clock; a change seals the open batch (rule 17).
    pub fn handle_clock(&mut self, now: Now, quality: pb::TimeQuality, error_ms: u32) {
        if (quality, error_ms) != (self.quality, self.time_error_ms) {
            if quality != self.quality {
                self.seal(now, StampedBy::Agent);
            }
            (self.quality, self.time_error_ms) = (quality, error_ms);
        }
    }

    /// The wall clock stepped by `offset_ms`.
    pub fn handle_step(&mut self, now: Now, offset_ms: i64) {
        self.seal(now, StampedBy::Agent);
        self.intake.handle_step();
        self.event(now, "clock.step", pb::event::Value::Integer(offset_ms), String::new());
    }

    /// Something is new with this agent's certificates: an event for the centre, and a new connection if others are in force.
    pub fn handle_identity(&mut self, now: Now, code: &str, text: String, renewed: bool) {
        self.event(now, code, pb::event::Value::Flag(true), text);
        if renewed && self.life == Life::Running {
            self.uplink.handle_renewal(now.mono, &mut self.rng);
        }
    }

    /// What kept connections from coming about may be over: the next try comes soon.
    pub fn hasten(&mut self, now: Now) {
        self.uplink.hasten(now.mono, &mut self.rng);
    }

    /// The disk answered.
    pub fn handle_store(&mut self, now: Now, reply: StoreReply) {
        match reply {
            StoreReply::Committed(result) => self.handle_committed(now, result),
            StoreReply::Loaded(dir, result) => {
                self.spool.handle_loaded(now.mono, dir, result, &mut self.ledger, &mut self.losses);
                self.uplink.handle_loaded(now.mono);
            }
            StoreReply::Read(dir, stored, result) => {
                let publish = self.uplink.handle_read(
                    now.mono,
                    (dir, stored),
                    result,
                    &mut self.spool,
                    &mut self.ledger,
                    &mut self.losses,
                );
                self.outputs.extend(publish.map(Output::Publish));
            }
            StoreReply::Removed(dir, result) => self.spool.handle_removed(dir, result),
            StoreReply::Quarantined(_, _, result) => self.spool.handle_quarantined(result),
        }
        self.tell_losses();
    }

    pub(super) fn handle_committed(&mut self, now: Now, result: Result<crate::store::Usage, StoreError>) {
        let failed = result.as_ref().err().cloned();
        let durable = self.spool.handle_committed(now.mono, result, &mut self.ledger, &mut self.losses);
        if let Some(error) = failed {
            if !self.store_failing {
                self.store_failing = true;
                self.notice(Notice::StoreFailing(error));
            }
        } else if self.spool.failing().is_none() && core::mem::take(&mut self.store_failing) {
            self.notice(Notice::StoreRecovered);
        }
        let Some(durable) = durable else { return };
        if durable.with_catalog {
            self.catalog_stored = self.catalog_committing;
        }
        while let Some((_, receipt)) = self.sealed_receipts.pop_front_if(|(seq, _)| *seq <= durable.upto) {
            self.outputs.push_back(Output::Release(receipt));
        }
        for (_, receipt) in self.folded_receipts.extract_if(.., |(counted, _)| *counted) {
            self.outputs.push_back(Output::Release(receipt));
        }
        if let Life::Committing(_) = self.life
            && self.clean_committing
            && self.spool.is_idle()
        {
            self.finish(now);
        }
    }

    /// The connection stands, subscribed to acknowledgements and control.
    pub fn handle_connected(&mut self, now: Now) {
        self.uplink.handle_connected(now.mono, &mut self.spool);
        self.status_due = Some(now.mono);
        self.status_said = None;
        self.notice(Notice::Connected);
    }

    /// The connection is gone, or could not be made.
    pub fn handle_disconnected(&mut self, now: Now) {
        let retry_at = self.uplink.handle_disconnected(now.mono, &mut self.rng);
        self.notice(Notice::Disconnected { retry_in: retry_at.since(now.mono) });
    }

    /// The broker acknowledged the message of batch `seq`.
    pub fn handle_puback(&mut self, now: Now, seq: u64) {
        self.uplink.handle_puback(now.mono, seq, &mut self.spool, &mut self.ledger, &mut self.losses);
    }

    /// A message on `…/ack`.
    pub fn handle_ack(&mut self, now: Now, bytes: &[u8]) {
        let Ok(ack) = pb::Ack::decode(bytes) else {
            self.notice(Notice::Unreadable { topic: "ack" });
            return;
        };
        let consequence =
            self.uplink.handle_ack(now.mono, &ack, &mut self.spool, &mut self.ledger, &mut self.losses, &mut self.rng);
        if let Consequence::NewEpoch(doubt) = consequence {
            self.doubt.get_or_insert(doubt);
        }
        if self.uplink.catalog_wanted() == CATALOG_AWAY {
            self.notice(Notice::CatalogAway { bytes: self.catalog.message().len() });
        }
        self.tell_losses();
    }

    /// A message on `…/ctl`; answered by an Event (rule 24).
    pub fn handle_control(&mut self, now: Now, bytes: &[u8]) {
        let Ok(control) = pb::Control::decode(bytes) else {
            self.notice(Notice::Unreadable { topic: "ctl" });
            return;
        };
        let gone = match control.what {
            Some(pb::control::What::Replay(replay)) if replay.first_seq > replay.last_seq => Vec::new(),
            Some(pb::control::What::Replay(replay)) if replay.epoch == self.spool.epoch() => {
                self.notice(Notice::Replay { first: replay.first_seq, last: replay.last_seq });
                self.uplink.handle_replay(replay.first_seq.max(1)..=replay.last_seq, &self.spool)
            }
            Some(pb::control::What::Replay(replay)) => alloc::vec![replay.first_seq..=replay.last_seq],
            Some(pb::control::What::SendCatalog(_)) => {
                self.uplink.want_catalog();
                if self.uplink.connected() {
                    self.publish_catalog();
                }
                Vec::new()
            }
            None => return,
        };
        let mut text = String::new();
        for range in gone {
            let comma = if text.is_empty() { "" } else { "," };
            if range.start() == range.end() {
                text += &format!("{comma}{}", range.start());
            } else {
                text += &format!("{comma}{}-{}", range.start(), range.end());
            }
        }
        let request = control.request.cast_signed();
        self.event(now, "control.done", pb::event::Value::Integer(request), text);
    }

    /// The agent is to stop: windows close, everything is sealed, and what can be sent within `grace` is sent.
    pub fn stop(&mut self, now: Now, grace: Duration) {
        if self.life != Life::Running {
            return;
        }
        let synced = self.quality == pb::TimeQuality::Synced;
        let (intake, books) = self.books();
        intake.sets().stop(now.wall, synced, books.ledger, books.losses);
        intake.stop_windows(now.mono, books);
        self.seal(now, StampedBy::Agent);
        self.seal(now, StampedBy::Source);
        self.spool.hurry();
        self.status_due = Some(now.mono);
        self.life = Life::Draining(now.mono + grace.saturating_sub(LAST_COMMIT));
    }
}
