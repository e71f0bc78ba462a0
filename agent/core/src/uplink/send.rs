//! What goes out next: resends that are due, live batches, backlog, replays; as far as the window lets them.

use core::time::Duration;

use tributary_protocols::time::Mono;

use super::{Flight, Lane, Order, READ_RETRY, READS, Step, Uplink};
use crate::spool::{Loading, Spool};
use crate::store::StoreCommand;

impl Uplink {
    pub(super) fn poll_open(&mut self, now: Mono, spool: &mut Spool, catalog_rev: u32) -> Option<Step> {
        if self.waiting_since.is_some_and(|since| now >= since + self.ack_timeout() * 2) {
            self.waiting_since = None;
            return Some(Step::Abort);
        }
        self.land(spool); // what was evicted or lost meanwhile
        if now < self.gate() {
            return None;
        }
        // Only what may be published counts: before the first commit of this connection nothing does.
        if self.catalog_sent != catalog_rev && self.next(now, spool).is_some() {
            self.catalog_sent = catalog_rev;
            return Some(Step::Catalog);
        }
        while let Some((seq, lane)) = self.next(now, spool) {
            match spool.place(seq) {
                Err(Loading) => {
                    // Asked again when the index is there.
                    self.read_at = now + READ_RETRY;
                    return None;
                }
                Ok(None) => {
                    self.flight.remove(&seq);
                    self.advance(seq, lane);
                }
                Ok(Some(place)) => {
                    self.advance(seq, lane);
                    self.hand_out(now, seq, lane, u64::from(place.bytes));
                    self.reading.push_back((place.dir, place.stored, seq, place.catalog_rev));
                    return Some(Step::Read(StoreCommand::Read { dir: place.dir, seq: place.stored }));
                }
            }
        }
        None
    }

    pub(super) fn next(&self, now: Mono, spool: &Spool) -> Option<(u64, Lane)> {
        let resend = self.flight.iter().find(|(_, flight)| flight.sent.is_some() && now >= flight.due);
        if let Some((seq, flight)) = resend
            && self.reading.len() < READS
        {
            return Some((*seq, flight.lane));
        }
        self.sendable(spool).filter(|(_, at)| now >= *at).map(|(next, _)| next)
    }

    /// The next batch that the window lets out, and from when on.
    pub(super) fn sendable(&self, spool: &Spool) -> Option<((u64, Lane), Mono)> {
        if self.reading.len() >= READS || (self.hold_until.is_some() && !self.flight.is_empty()) {
            return None;
        }
        let mark = spool.mark();
        let live = spool.next_unsettled(self.next_live).filter(|seq| *seq <= mark);
        let backlog = spool.next_unsettled(self.next_backlog).filter(|seq| *seq < self.live_from && *seq <= mark);
        let now = Mono::ZERO;
        if self.config.order == Order::OldestFirst {
            return match backlog {
                Some(seq) => self.lets(Lane::Backlog, 1).then_some(((seq, Lane::Backlog), self.backlog_at)),
                None => live.filter(|_| self.lets(Lane::Live, 1)).map(|seq| ((seq, Lane::Live), now)),
            };
        }
        if let Some(seq) = live.filter(|_| self.lets(Lane::Live, 1)) {
            return Some(((seq, Lane::Live), now));
        }
        if let Some(seq) = backlog.filter(|_| self.lets(Lane::Backlog, 2)) {
            return Some(((seq, Lane::Backlog), self.backlog_at));
        }
        let again = self.replay.iter().next().filter(|_| self.lets(Lane::Again, 2));
        again.map(|range| ((*range.start(), Lane::Again), self.backlog_at))
    }

    /// Whether the window, or its `share`-th part for this lane, has room; one batch of each lane may always fly.
    pub(super) fn lets(&self, lane: Lane, share: usize) -> bool {
        let of_lane = |flight: &&Flight| flight.lane == lane;
        let batches = self.window.unwrap_or(self.config.window_batches).max(1);
        if !self.flight.values().any(|flight| of_lane(&flight)) {
            return true;
        }
        let all: (usize, u64) =
            self.flight.values().fold((0, 0), |(count, bytes), flight| (count + 1, bytes + flight.bytes));
        let mine: (usize, u64) = self
            .flight
            .values()
            .filter(of_lane)
            .fold((0, 0), |(count, bytes), flight| (count + 1, bytes + flight.bytes));
        let room = |used: (usize, u64), part: usize| {
            used.0 < batches.div_ceil(part) && used.1 < self.config.window_bytes / part as u64
        };
        room(all, 1) && room(mine, share)
    }

    pub(super) fn advance(&mut self, seq: u64, lane: Lane) {
        match lane {
            Lane::Live => self.next_live = self.next_live.max(seq + 1),
            Lane::Backlog => self.next_backlog = self.next_backlog.max(seq + 1),
            Lane::Again => self.replay.remove(seq..=seq),
        }
    }

    pub(super) fn hand_out(&mut self, now: Mono, seq: u64, lane: Lane, bytes: u64) {
        if let (Lane::Backlog | Lane::Again, Some(rate)) = (lane, self.config.backlog_rate) {
            let millis = bytes.saturating_mul(1000) / rate.max(1);
            self.backlog_at = self.backlog_at.max(now) + Duration::from_millis(millis);
        }
        let flight =
            self.flight.entry(seq).or_insert(Flight { lane, bytes, sent: None, due: now, doublings: 0, resent: false });
        if flight.sent.take().is_some() {
            flight.doublings += 1;
            flight.resent = true;
        }
    }
}
