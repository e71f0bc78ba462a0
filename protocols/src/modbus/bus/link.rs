//! The connection of a bus: when it is wanted, lost, given up.

use core::time::Duration;

use super::{AskError, Bus, Output};
use crate::modbus::frame::Doubt;
use crate::modbus::slot::Slot;
use crate::modbus::status::Trouble;
use crate::time::Mono;

/// Nothing due for so long: a connection that is to be released is. Shorter pauses are of no use to another master, and
/// polls every second leave longer ones.
const RELEASE_AFTER: Duration = Duration::from_millis(250);

/// A connection that was away for so long may have been the reason why units were silent.
const LOST_LONG: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down { retry_at: Mono },
    Connecting { until: Mono },
    Up,
}

impl Bus {
    /// There is a connection.
    pub fn handle_connected(&mut self, now: Mono) {
        self.link = Link::Up;
        if self.lost_at.take().is_some_and(|at| now.since(at) >= LOST_LONG) {
            // They may have been silent because something between us was going to fail.
            for unit in &mut self.units {
                unit.silence.probe_now(now);
            }
        }
        self.buffer.clear();
        self.free_at = self.free_at.max(now + self.connect_delay);
        self.noisy_since = None;
        self.echoing = None;
        self.issued = 0;
        self.stale_in_row = 0;
        self.timeouts_in_row = 0;
        self.doubts_in_row = 0;
    }

    /// There is none, because of `error`.
    pub fn handle_connect_failed(&mut self, now: Mono, error: &str) {
        self.counts.errors += 1;
        self.lost_at.get_or_insert(now);
        self.reconnect.failed();
        self.connection_error = Some(error.into());
        self.last_error = Some(Trouble::NoConnection);
        self.asks.fail_all(&AskError::NoConnection(error.into()));
        self.link_down(now);
    }

    /// The connection ended, because of `error`.
    pub fn handle_closed(&mut self, now: Mono, error: &str) {
        if self.link == Link::Up {
            self.connection_error = Some(error.into());
            self.lost_at.get_or_insert(now);
            self.lose(now, Trouble::Closed);
        }
    }

    /// Connects if somebody is to be asked.
    pub(super) fn connect(&mut self, now: Mono) -> Option<Output> {
        let Link::Down { retry_at } = self.link else { return None };
        if !self.asks.waiting.is_empty() && now < retry_at && !self.slots.is_empty() {
            // The polls have just found out that there is no connection.
            let error = self.connection_error.clone().unwrap_or_default();
            self.asks.fail_all(&AskError::NoConnection(error));
            return self.next_reply();
        }
        let wanted = !self.asks.waiting.is_empty() || self.slots.iter().any(|slot| slot.next_due() <= now);
        wanted.then(|| {
            self.link = Link::Connecting { until: now + self.timeout };
            Output::Connect { timeout: self.timeout }
        })
    }

    /// Gives the connection up if it is to be and nobody is to be asked soon.
    pub(super) fn release(&mut self, now: Mono) -> Option<Output> {
        if !self.release || self.slots.is_empty() || !self.asks.waiting.is_empty() {
            return None;
        }
        let after = RELEASE_AFTER.max(self.connect_delay * 2);
        let soon = |slot: &Slot| slot.next_due() <= now + after && !self.hopeless(slot, slot.next_due());
        if self.slots.iter().any(soon) {
            return None;
        }
        self.link = Link::Down { retry_at: now };
        self.buffer.clear();
        Some(Output::Release)
    }

    /// Whether a poll of `slot` at `now` fails without being tried.
    pub(super) fn hopeless(&self, slot: &Slot, now: Mono) -> bool {
        match self.link {
            Link::Down { retry_at } if now < retry_at => true,
            // Who is silent may be so because of the line: it is for the new connection to show.
            Link::Down { .. } if self.lost_at.is_some() => false,
            _ => self.units.get(slot.unit).is_some_and(|unit| unit.silence.holds(now)),
        }
    }

    /// What cannot be a frame came, or cannot be an answer: on TCP the connection is worth nothing any more.
    pub(super) fn drop_in_doubt(&mut self, now: Mono, doubt: Doubt) {
        if self.link == Link::Up {
            self.disconnect = true;
            self.lose(now, Trouble::Doubt(doubt));
        }
    }

    /// The connection is no more.
    fn lose(&mut self, now: Mono, trouble: Trouble) {
        match self.land(now) {
            Some(flight) => {
                self.counts.errors += 1;
                self.late_is_possible(now, &flight);
                // A connection that ends is nobody's fault, unless others suffer from it.
                if trouble != Trouble::Closed || self.units.len() > 1 {
                    self.unit_failed(&flight, now);
                }
                self.flight_failed(now, &flight, trouble);
            }
            None => self.counts.errors += u64::from(trouble != Trouble::Closed),
        }
        self.last_error = Some(trouble);
        self.link_down(now);
    }

    pub(super) fn link_down(&mut self, now: Mono) {
        let wait = self.reconnect.wait(self.reconnect_max);
        self.link = Link::Down { retry_at: now + wait };
    }
}
