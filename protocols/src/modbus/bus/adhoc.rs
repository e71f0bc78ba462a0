//! Questions beside the schedule: `probe`, `scan`, writes later. They share the bus with the polls.
//!
//! The rule: they take at most a quarter of the bus. After one that was out for t the next waits for 3 t, unless no poll
//! can be due while it is out; and when it may go, it goes before the polls that are due. So polls wait for one of them
//! at most, and lose a quarter of a full bus; and no number of polls keeps one away. A bus without polls is all theirs.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Bus, Link, Output};
use crate::modbus::frame::{Doubt, Pdu};
use crate::time::Mono;

/// Most questions that wait.
pub const ASKS: usize = 16;
/// How long the others may have the bus for each time unit of an ad-hoc question.
const REST: u32 = 3;

/// A question beside the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdHoc {
    /// Comes back with the reply.
    pub id: u64,
    /// 1 to 255; need not be configured.
    pub unit: u8,
    /// Function and what belongs to it.
    pub pdu: Pdu,
    /// How long the answer may take; the unit's time-out, or the bus's, if `None`.
    pub timeout: Option<Duration>,
}

/// Why a question had no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing came in time.
    #[error("no answer in time")]
    NoAnswer,
    /// Nobody could be asked: what went wrong.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// The connection ended while the question was out.
    #[error("the connection was closed")]
    Closed,
    /// What came is no answer to it.
    #[error("an answer that cannot be trusted: {0}")]
    Doubt(Doubt),
    /// Too many questions wait already.
    #[error("{ASKS} questions wait already")]
    Full,
    /// Nobody answers a broadcast.
    #[error("unit 0 is a broadcast, which nobody answers; 1 to 255")]
    Broadcast,
    /// There is no function in it.
    #[error("a question without a function")]
    Empty,
}

/// What waits, and what is out.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    pub(crate) waiting: VecDeque<AdHoc>,
    pub(crate) out: Option<AdHoc>,
    pub(crate) replies: VecDeque<(u64, Result<Vec<u8>, AskError>)>,
    /// When the polls have had their share.
    rest_until: Mono,
}

impl Asks {
    pub(crate) fn fail_all(&mut self, error: &AskError) {
        for ask in self.waiting.drain(..) {
            self.replies.push_back((ask.id, Err(error.clone())));
        }
    }

    /// The one that is out has its answer, or none; it was out for `time`.
    pub(crate) fn reply(&mut self, now: Mono, time: Duration, result: Result<Vec<u8>, AskError>) {
        self.rest_until = now + time.saturating_mul(REST);
        if let Some(ask) = self.out.take() {
            self.replies.push_back((ask.id, result));
        }
    }
}

impl Bus {
    /// Asks beside the schedule; [`Output::Reply`] brings what came of it.
    ///
    /// # Errors
    /// It is refused at once, and no reply will come: [`AskError::Full`], [`AskError::Broadcast`], [`AskError::Empty`].
    pub fn handle_ask(&mut self, _now: Mono, ask: AdHoc) -> Result<(), AskError> {
        if ask.unit == 0 {
            return Err(AskError::Broadcast);
        }
        if ask.pdu.is_empty() {
            return Err(AskError::Empty);
        }
        if self.asks.waiting.len() >= ASKS {
            return Err(AskError::Full);
        }
        self.asks.waiting.push_back(ask);
        Ok(())
    }

    pub(super) fn next_reply(&mut self) -> Option<Output> {
        self.asks.replies.pop_front().map(|(id, result)| Output::Reply { id, result })
    }

    /// When the next question beside the schedule may go; the line is up and free at `now`.
    pub(super) fn ask_at(&self, now: Mono) -> Option<Mono> {
        let ask = self.asks.waiting.front()?;
        let at = match self.late.is_empty() {
            true => now,
            false => self.late.free_at(crate::modbus::frame::rtu::Shape::of(ask.unit, &ask.pdu), now).max(now),
        };
        let until = at + self.ask_timeout(ask);
        match self.link {
            Link::Up if !self.slots.iter().any(|slot| self.ready_at(slot, now) < until) => Some(at),
            _ => Some(at.max(self.asks.rest_until)),
        }
    }

    pub(super) fn ask_timeout(&self, ask: &AdHoc) -> Duration {
        let own = || self.units.iter().find(|unit| unit.unit == ask.unit).map(|unit| unit.timeout);
        ask.timeout.or_else(own).unwrap_or(self.timeout)
    }
}
