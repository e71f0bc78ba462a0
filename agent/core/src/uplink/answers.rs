//! What answers mean: of the receiver, of the broker, and of the disk that reads a body.

use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use tributary_proto::encode::{Body, Header, envelope};
use tributary_proto::pb;
use tributary_protocols::time::Mono;

use super::{AckMode, Channel, Consequence, Doubt, Lane, Link, Publish, READ_RETRY, RESEND_MAX, TOO_NEW_RETRY, Uplink};
use crate::ledger::Ledger;
use crate::losses::Losses;
use crate::record::Head;
use crate::spool::{How, Spool};
use crate::store::{DirId, StoreError};

impl Uplink {
    /// A body was read: the message to publish, if it is still wanted.
    pub fn handle_read(
        &mut self,
        now: Mono,
        (dir, stored): (DirId, u64),
        result: Result<Option<Vec<u8>>, StoreError>,
        spool: &mut Spool,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) -> Option<Publish> {
        // The disk answers in the order in which it is asked. What does not fit was asked on an earlier connection, and out of
        // its turn it would be sent before what precedes it.
        let next = self.reading.pop_front_if(|(d, s, ..)| (*d, *s) == (dir, stored))?;
        // Which revision resolves it is asked when the reading begins: since then its place may have been forgotten.
        let (.., seq, renumbered) = next;
        let again = self.flight.get(&seq).is_some_and(|flight| flight.lane == Lane::Again);
        if spool.is_settled(seq) && !again {
            self.flight.remove(&seq);
            return None;
        }
        let record = match result {
            Ok(record) => record,
            Err(StoreError::Damaged(_)) => None,
            Err(_) => {
                // The disk is away: the batch is still there. It is handed out again when the disk answers.
                self.read_at = now + READ_RETRY;
                let due = self.read_at;
                if let Some(flight) = self.flight.get_mut(&seq) {
                    (flight.sent, flight.due) = (Some(now), due);
                }
                return None;
            }
        };
        let Some((head, body)) = record.as_deref().and_then(Head::split) else {
            self.flight.remove(&seq);
            let how = How::Lost(pb::loss::Reason::SpoolDamaged);
            spool.settle(now, seq..=seq, how, ledger, losses);
            return None;
        };
        let timeout = self.ack_timeout();
        let flight = self.flight.get_mut(&seq)?;
        let lane = flight.lane;
        flight.sent = Some(now);
        flight.due = now + timeout.saturating_mul(1 << flight.doublings.min(16)).min(RESEND_MAX);
        if lane == Lane::Again {
            self.flight.remove(&seq); // settled: nobody waits for its Ack
        } else {
            self.waiting_since.get_or_insert(now);
        }
        let header = Header {
            epoch: spool.epoch(),
            seq,
            first_retained_seq: spool.first_retained().min(seq),
            lane: if lane == Lane::Live { pb::Lane::Live } else { pb::Lane::Backlog },
            catalog_rev: if renumbered == 0 { head.catalog_rev } else { renumbered },
            readings: head.readings,
        };
        let body = Body { bytes: body.to_vec(), zstd: head.zstd, crc32c: head.body_crc32c };
        let channel = if lane == Lane::Live { Channel::Live } else { Channel::Backlog };
        Some(Publish { seq, channel, payload: envelope(&header, &body) })
    }

    /// An Ack of the receiver. `refused` is read before the rest (rule 8).
    pub fn handle_ack(
        &mut self,
        now: Mono,
        ack: &pb::Ack,
        spool: &mut Spool,
        ledger: &mut Ledger,
        losses: &mut Losses,
        rng: &mut fastrand::Rng,
    ) -> Consequence {
        if ack.epoch != spool.epoch() || !self.connected() {
            return Consequence::None;
        }
        let mark = spool.published_mark();
        let named = ack.also.iter().map(|range| range.last).chain(ack.refused.iter().copied()).max().unwrap_or(0);
        // What was lost before it was ever published is settled too.
        let passed = spool.next_unsettled(mark + 1).map_or(spool.durable(), |seq| seq - 1).max(mark);
        let above = [named].into_iter().filter(|seq| *seq > mark);
        if let Some(seq) = above.chain([ack.contiguous_seq].into_iter().filter(|seq| *seq > passed)).max() {
            return Consequence::NewEpoch(Doubt::AboveMark { seq, mark });
        }
        if ack.verdict() == pb::Verdict::Forked {
            return Consequence::NewEpoch(Doubt::Forked);
        }
        for seq in &ack.refused {
            spool.refuse(now, *seq, ledger, losses);
        }
        self.settle(now, 1..=ack.contiguous_seq, spool, ledger, losses);
        for range in &ack.also {
            self.settle(now, range.first..=range.last, spool, ledger, losses);
        }
        self.progress(now, spool);
        self.window = usize::try_from(ack.window).ok().filter(|window| *window > 0);
        if ack.pause_ms > 0 {
            let jitter = rng.u32(0..=ack.pause_ms / 4 + 1);
            self.pause_until = now + Duration::from_millis(u64::from(ack.pause_ms) + u64::from(jitter));
        }
        self.catalog_wanted = if ack.want_catalog_rev > 0 { self.catalog_wanted.saturating_add(1) } else { 0 };
        if ack.want_catalog_rev > 0 {
            self.catalog_sent = 0;
        }
        let held = self.hold_until.take().is_some();
        if ack.verdict() == pb::Verdict::TooNew {
            // Only the oldest is offered, again and again; the rest waits on disk.
            self.hold_until = Some(now + TOO_NEW_RETRY);
            self.forget();
            (self.next_live, self.next_backlog, self.live_from) = (1, 1, 1);
        }
        self.waiting_since = if self.flight.is_empty() { None } else { Some(now.max(self.pause_until)) };
        if matches!(self.link, Link::Greeting { .. }) {
            self.link = Link::Open;
            self.begin(spool);
        } else if held && self.hold_until.is_none() {
            self.begin(spool); // known at last: live first again
        }
        Consequence::None
    }

    pub(super) fn settle(
        &mut self,
        now: Mono,
        range: RangeInclusive<u64>,
        spool: &mut Spool,
        ledger: &mut Ledger,
        losses: &mut Losses,
    ) {
        if range.is_empty() {
            return;
        }
        for (_, flight) in self.flight.range(range.clone()) {
            if let (Some(sent), false) = (flight.sent, flight.resent) {
                self.ack_times.write(u32::try_from(now.since(sent).as_millis()).unwrap_or(u32::MAX));
            }
        }
        spool.settle(now, range, How::Delivered, ledger, losses);
    }

    /// Any sign of the centre resets back-off and resend timers; but not those of batches that a later one has overtaken:
    /// they may be lost on the way, and while others are acknowledged all the time would never be sent again.
    pub(super) fn progress(&mut self, now: Mono, spool: &Spool) {
        self.healthy = true;
        self.last_ack = Some(now);
        self.attempts = 0;
        let settled = self.flight.iter().filter(|(seq, _)| spool.is_settled(**seq));
        let newest = settled.filter_map(|(_, flight)| flight.sent).max();
        self.land(spool);
        let due = now + self.ack_timeout();
        for flight in self.flight.values_mut().filter(|flight| flight.sent.is_some() && flight.sent > newest) {
            flight.doublings = 0;
            flight.due = due;
        }
    }

    /// What is settled flies no more.
    pub(super) fn land(&mut self, spool: &Spool) {
        self.flight.retain(|seq, flight| flight.lane == Lane::Again || !spool.is_settled(*seq));
    }

    /// The broker has the message of batch `seq`; in broker mode that frees it (rule 4).
    pub fn handle_puback(&mut self, now: Mono, seq: u64, spool: &mut Spool, ledger: &mut Ledger, losses: &mut Losses) {
        if self.config.ack != AckMode::Broker || seq == 0 {
            return;
        }
        self.settle(now, seq..=seq, spool, ledger, losses);
        self.progress(now, spool);
        self.waiting_since = if self.flight.is_empty() { None } else { Some(now) };
    }

    /// The centre wants the batches `range` again, as far as they are there. Returns what is not (rule 24).
    pub fn handle_replay(&mut self, range: RangeInclusive<u64>, spool: &Spool) -> Vec<RangeInclusive<u64>> {
        let gone = spool.not_retained(range.clone());
        let there = (*range.start()).max(spool.first_stored())..=(*range.end()).min(spool.durable());
        if !there.is_empty() {
            self.replay.insert(there);
        }
        // What is not settled goes out without being asked for.
        for range in gone.iter().cloned().chain(spool.unsettled_ranges()) {
            self.replay.remove(range);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{self, Snapshot, WhenFull};
    use crate::store::{Recovered, Usage};
    use crate::uplink::{self, Order};

    /// A batch is durable and was never published: an Ack of another epoch says nothing of it, and one of this epoch
    /// cannot mean it.
    #[test]
    fn what_was_never_published_is_freed_by_no_ack() {
        let (now, mut ledger, mut losses) = (Mono::ZERO, Ledger::default(), Losses::default());
        let config = spool::Config { max_disk: 2 << 20, commit: Duration::ZERO, when_full: WhenFull::DropOldest };
        let mut spool = Spool::start(config, now, Recovered::default(), |_| 7).spool;
        let head = Head {
            zstd: false,
            readings: 5,
            catalog_rev: 1,
            body_crc32c: 0,
            oldest: tributary_protocols::time::Wall(0),
        };
        spool.push(head, head.record(&[]));
        assert!(spool.poll(now, &ledger, &losses, Snapshot::default).is_some());
        spool.handle_committed(now, Ok(Usage::default()), &mut ledger, &mut losses);
        let config = uplink::Config {
            ack: AckMode::Receiver,
            order: Order::LiveFirst,
            reconnect_max: Duration::from_secs(1),
            window_batches: 1,
            window_bytes: 1,
            backlog_rate: None,
        };
        let mut uplink = Uplink::new(config, now);
        uplink.handle_connected(now, &mut spool);
        let doubt = Consequence::NewEpoch(Doubt::AboveMark { seq: 1, mark: 0 });
        for (epoch, consequence) in [(8, Consequence::None), (7, doubt)] {
            let ack = pb::Ack { epoch, contiguous_seq: 1, ..pb::Ack::default() };
            let mut rng = fastrand::Rng::with_seed(1);
            let came = uplink.handle_ack(now, &ack, &mut spool, &mut ledger, &mut losses, &mut rng);
            assert_eq!((came, spool.backlog(), ledger.delivered), (consequence, 1, 0));
        }
    }
}
