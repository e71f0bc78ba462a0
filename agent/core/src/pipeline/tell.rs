//! What the centre and the owner are told: status, will, catalogue, events, notices; and the ends of a life.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use prost::Message;
use tributary_proto::pb;
use tributary_protocols::value::PointType;

use super::{LAST_COMMIT, Life, Notice, Now, Output, Pipeline, STATUS_EVERY, fresh_epoch};
use crate::filter::counter::Happened;
use crate::ledger::Ledger;
use crate::uplink::{Channel, Doubt, Publish};

/// Most events that wait for a batch: while the disk is away, what counters say beyond it is lost.
const EVENTS: usize = 1_000;

impl Pipeline {
    /// Begins a new epoch once everything it needs to know is known (rule 2).
    pub(super) fn change_epoch(&mut self, now: Now) {
        let Some(doubt) = self.doubt else { return };
        if !self.spool.ready_for_new_epoch() {
            return;
        }
        self.doubt = None;
        self.close_draft();
        let epoch = fresh_epoch(self.spool.epoch(), now.wall, &mut self.rng);
        self.catalog.new_epoch(epoch);
        self.catalog_stored = 0;
        self.spool.new_epoch(epoch, self.catalog.rev(), &mut self.losses);
        self.ledger = Ledger::default();
        self.ledger.admitted = self.held();
        self.lost_told = self.ledger;
        let last = self.spool.last_seq();
        for (seq, _) in &mut self.sealed_receipts {
            *seq = last; // sealed before the change: durable with its first commit
        }
        self.uplink.handle_new_epoch();
        let why = match doubt {
            Doubt::Damaged => "the newest part of the spool could not be read".to_string(),
            Doubt::Forked => "the centre has another body under one of our numbers".to_string(),
            Doubt::AboveMark { seq, mark } => {
                format!("the centre acknowledged {seq}, but nothing above {mark} was published from here")
            }
        };
        self.notice(Notice::NewEpoch { epoch, why });
    }

    pub(super) fn drain(&mut self, now: Now) {
        match self.life {
            Life::Draining(until) => {
                let sent = self.spool.backlog() == 0 || !self.uplink.connected();
                if now.mono >= until || (sent && self.spool.is_idle() && self.batcher.held() == 0) {
                    self.spool.hurry();
                    self.life = Life::Committing(now.mono + LAST_COMMIT);
                }
            }
            Life::Committing(until) if now.mono >= until => self.finish(now),
            Life::Running | Life::Committing(_) | Life::Finished => {}
        }
    }

    /// OFFLINE with the final ledger, then goodbye.
    pub(super) fn finish(&mut self, now: Now) {
        self.life = Life::Finished;
        if self.uplink.connected() {
            let payload = self.status(now).encode_to_vec();
            self.outputs.push_back(Output::Publish(Publish { seq: 0, channel: Channel::Status, payload }));
            self.outputs.push_back(Output::Disconnect);
        }
    }

    /// Publishes the status if it changed or its time has come.
    pub(super) fn say_status(&mut self, now: Now) -> bool {
        if !self.uplink.connected() {
            return false;
        }
        let said = (self.state(), self.spool.epoch(), self.catalog_stored);
        let due = self.status_due.is_none_or(|due| now.mono >= due);
        if !due && self.status_said == Some(said) {
            return false;
        }
        self.status_said = Some(said);
        self.status_due = Some(now.mono + STATUS_EVERY);
        let payload = self.status(now).encode_to_vec();
        self.outputs.push_back(Output::Publish(Publish { seq: 0, channel: Channel::Status, payload }));
        true
    }

    pub(super) fn status(&self, now: Now) -> pb::AgentStatus {
        pb::AgentStatus {
            state: self.state() as i32,
            epoch: self.spool.epoch(),
            last_seq: self.spool.durable(),
            first_retained_seq: self.spool.first_retained(),
            backlog_bytes: self.spool.backlog_bytes(),
            backlog_oldest_ms: self.spool.oldest().map_or(0, |oldest| oldest.0),
            time_quality: self.quality as i32,
            version: self.config.version.clone(),
            catalog_rev: self.catalog_stored,
            config_sha256: self.config.config_sha256.clone(),
            ledger: Some(self.ledger.message(self.held())),
            at_ms: now.wall.0,
            boot_id: self.config.boot_id.to_vec(),
        }
    }

    pub(super) fn will(&self) -> Vec<u8> {
        pb::AgentStatus {
            state: pb::agent_status::State::Offline as i32,
            epoch: self.spool.epoch(),
            boot_id: self.config.boot_id.to_vec(),
            ..pb::AgentStatus::default()
        }
        .encode_to_vec()
    }

    pub(super) fn publish_catalog(&mut self) {
        if self.catalog_stored != self.catalog.rev() || self.catalog_stored == 0 {
            return; // a newer revision is on its way to the disk and goes out then
        }
        self.uplink.catalog_published(self.catalog_stored);
        let payload = self.catalog.message().to_vec();
        self.outputs.push_back(Output::Publish(Publish { seq: 0, channel: Channel::Catalog, payload }));
    }

    pub(super) fn event(&mut self, now: Now, code: &str, value: pb::event::Value, text: String) {
        self.event_of(0, now, code, value, text);
    }

    fn event_of(&mut self, point: u32, now: Now, code: &str, value: pb::event::Value, text: String) {
        self.events.push(pb::Event {
            point,
            at_ms: now.wall.0,
            code: code.to_string(),
            severity: 100,
            text,
            value: Some(value),
            ..pb::Event::default()
        });
        self.batcher.open(now.mono);
    }

    /// Rollovers, resets and rejected samples of counters, with what was read.
    pub(super) fn tell_counters(&mut self, now: Now) {
        for (id, ty, Happened { code, bits, text }) in self.intake.take_happened() {
            if self.events.len() >= EVENTS {
                break;
            }
            let value = match ty {
                #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
                PointType::Float32 => pb::event::Value::Number(f64::from(f32::from_bits(bits as u32))),
                PointType::Float64 => pb::event::Value::Number(f64::from_bits(bits)),
                #[expect(clippy::cast_possible_wrap, reason = "INT travels as the i64's own bits")]
                _ => pb::event::Value::Integer(bits as i64),
            };
            self.event_of(id, now, code, value, text);
        }
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    pub(super) fn tell_losses(&mut self) {
        if self.ledger.lost() == self.lost_told.lost() {
            return;
        }
        let news: Vec<_> = self
            .ledger
            .losses()
            .map(|(reason, readings)| (reason, readings.saturating_sub(self.lost_told.lost_by(reason))))
            .filter(|(_, readings)| *readings > 0)
            .collect();
        self.lost_told = self.ledger;
        for (reason, readings) in news {
            self.notice(Notice::Lost { reason, readings });
        }
    }
}
