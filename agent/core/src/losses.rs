//! Losses on their way to the centre: each stays until a batch that carries it is acknowledged (contract rule 8).
//!
//! A loss is booked in the ledger by whoever causes it, in the same breath as it is said here. It is durable with the
//! next commit, carried by the next batch, and said again if that batch is itself lost. While nothing can be carried
//! (a stopped or full spool) losses of one set and reason grow together instead of piling up.
//!
//! An *open* loss waits for its end: the readings a crash took are counted at the start, but the span is only known
//! when the set is polled again (rule 9).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use prost::Message;
use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::Wall;

use crate::state;

/// Whose readings went: what a `Loss` names besides seqs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whose {
    /// A group of the catalogue.
    Group(u32),
    /// One point.
    Point(u32),
    /// Nobody in particular: event-driven points after a crash.
    Nobody,
}

/// The losses not yet acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// Their end is not known.
    open: BTreeMap<Whose, pb::Loss>,
    /// Of one set and reason each, growing until a batch carries them.
    spans: BTreeMap<(i32, Whose), pb::Loss>,
    /// Whole batches, and what a crash took: one by one.
    queue: VecDeque<pb::Loss>,
    /// Said in a batch that was published, and will not be again. The centre may have it all the same (rule 9): these stay
    /// as they were said, so that there a loss that comes twice is the same in all but the batch that carries it.
    again: VecDeque<pb::Loss>,
    /// On their way, with the seq of the batch that carries them.
    carried: Vec<(u64, pb::Loss)>,
}

impl Losses {
    /// Whole batches `range` of `epoch`, with `readings` in all. Batches without readings are named too: their hole is
    /// final only if somebody says so (rule 8).
    pub fn add_batches(&mut self, reason: Reason, epoch: u64, range: &RangeInclusive<u64>, readings: u64) {
        let next_to = |loss: &&mut pb::Loss| {
            loss.reason == reason as i32
                && loss.epoch == epoch
                && loss.last_seq > 0
                && loss.last_seq.checked_add(1) == Some(*range.start())
        };
        if let Some(loss) = self.queue.iter_mut().rev().find(next_to) {
            loss.last_seq = *range.end();
            loss.readings += readings;
            return;
        }
        let (first_seq, last_seq) = (*range.start(), *range.end());
        let loss = pb::Loss { reason: reason as i32, epoch, first_seq, last_seq, readings, ..pb::Loss::default() };
        self.queue.push_back(loss);
    }

    /// `readings` of one set, stamped from `from` to `to`, both included.
    pub fn add_span(&mut self, reason: Reason, whose: Whose, from: Wall, to: Wall, readings: u64) {
        if readings > 0 {
            self.add(span(reason, whose, from.0, to.0.saturating_add(1), readings));
        }
    }

    /// Says a loss, together with what it can be said with.
    fn add(&mut self, loss: pb::Loss) {
        if loss.first_seq > 0 || loss.reason == Reason::AgentDown as i32 {
            self.queue.push_back(loss);
            return;
        }
        let known = self.spans.entry((loss.reason, whose(&loss))).or_insert(pb::Loss { readings: 0, ..loss });
        known.from_ms = known.from_ms.min(loss.from_ms);
        known.to_ms = known.to_ms.max(loss.to_ms);
        known.readings += loss.readings;
    }

    /// Says that a crash took what `whose` held, from `from` on; the end and more readings may follow.
    pub fn open(&mut self, whose: Whose, from: Wall, readings: u64) {
        let loss = self.open.entry(whose).or_insert(span(Reason::AgentDown, whose, from.0, 0, 0));
        loss.readings += readings;
        loss.from_ms = loss.from_ms.min(from.0);
    }

    /// Ends the open loss of `whose` with `more` readings at `to` (`None`: the end is unknown). Without readings there
    /// was no loss.
    pub fn close(&mut self, whose: Whose, to: Option<Wall>, more: u64) {
        let Some(mut loss) = self.open.remove(&whose) else { return };
        loss.readings += more;
        loss.to_ms = to.map_or(0, |to| to.0);
        if loss.readings > 0 {
            self.queue.push_back(loss);
        }
    }

    /// Whether something waits for a batch to carry it.
    #[must_use]
    pub fn waiting(&self) -> bool {
        !self.spans.is_empty() || !self.queue.is_empty() || !self.again.is_empty()
    }

    /// Losses for the batch `seq`, at most about `max_bytes` of them serialized, but at least one if any waits.
    pub fn carry(&mut self, seq: u64, max_bytes: usize) -> Vec<pb::Loss> {
        let mut bytes = 0;
        let mut carried = Vec::new();
        while let Some(loss) = self.next() {
            bytes += loss.encoded_len() + 4;
            if !carried.is_empty() && bytes > max_bytes {
                break;
            }
            let taken = self.again.pop_front().or_else(|| self.queue.pop_front());
            carried.extend(taken.or_else(|| self.spans.pop_first().map(|(_, loss)| loss)));
        }
        self.carried.extend(carried.iter().map(|loss| (seq, *loss)));
        carried
    }

    fn next(&self) -> Option<&pb::Loss> {
        let first = self.again.front().or_else(|| self.queue.front());
        first.or_else(|| self.spans.first_key_value().map(|(_, loss)| loss))
    }

    /// The centre has the batches of `range`.
    pub fn delivered(&mut self, range: &RangeInclusive<u64>) {
        self.carried.retain(|(seq, _)| !range.contains(seq));
    }

    /// The batches of `range` will never arrive: what they carried is said again. What was `published` may be at the centre
    /// all the same, and stays as it was said.
    pub fn say_again(&mut self, range: &RangeInclusive<u64>, published: u64) {
        let again: Vec<_> = self.carried.extract_if(.., |(seq, _)| range.contains(seq)).collect();
        for (seq, loss) in again {
            if seq <= published {
                self.again.push_back(loss);
            } else {
                self.add(loss);
            }
        }
    }

    /// A new epoch gives `carrier` seqs new numbers; what is not in the mapping is said again.
    pub fn renumber(&mut self, map: impl Fn(u64) -> Option<u64>) {
        for (seq, loss) in core::mem::take(&mut self.carried) {
            match map(seq) {
                Some(seq) => self.carried.push((seq, loss)),
                None => self.again.push_back(loss),
            }
        }
    }

    /// For the state record.
    #[must_use]
    pub fn save(&self) -> Vec<state::SavedLoss> {
        let save = |loss: &pb::Loss| state::SavedLoss { loss: Some(*loss), ..state::SavedLoss::default() };
        let carried = self.carried.iter().map(|(seq, loss)| state::SavedLoss { carrier: *seq, ..save(loss) });
        let again = self.again.iter().map(|loss| state::SavedLoss { again: true, ..save(loss) });
        let waiting = self.queue.iter().chain(self.spans.values()).map(save);
        let open = self.open.values().map(|loss| state::SavedLoss { open: true, ..save(loss) });
        carried.chain(again).chain(waiting).chain(open).collect()
    }

    /// From the state record.
    #[must_use]
    pub fn restore(saved: &[state::SavedLoss]) -> Self {
        let mut losses = Self::default();
        for saved in saved {
            let Some(loss) = saved.loss else { continue };
            match saved.carrier {
                _ if saved.open => drop(losses.open.insert(whose(&loss), loss)),
                _ if saved.again => losses.again.push_back(loss),
                0 => losses.add(loss),
                seq => losses.carried.push((seq, loss)),
            }
        }
        losses
    }

    /// The open losses, by whose they are.
    pub fn opened(&self) -> impl Iterator<Item = Whose> + '_ {
        self.open.keys().copied()
    }
}

fn whose(loss: &pb::Loss) -> Whose {
    match (loss.group, loss.point) {
        (0, 0) => Whose::Nobody,
        (0, point) => Whose::Point(point),
        (group, _) => Whose::Group(group),
    }
}

fn span(reason: Reason, whose: Whose, from_ms: i64, to_ms: i64, readings: u64) -> pb::Loss {
    let (group, point) = match whose {
        Whose::Group(id) => (id, 0),
        Whose::Point(id) => (0, id),
        Whose::Nobody => (0, 0),
    };
    pb::Loss { reason: reason as i32, group, point, from_ms, to_ms, readings, ..pb::Loss::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_stays_until_its_batch_is_acknowledged() {
        let mut losses = Losses::default();
        losses.add_batches(Reason::SpoolFull, 7, &(1..=3), 30);
        losses.add_batches(Reason::SpoolFull, 7, &(4..=4), 10);
        assert_eq!(losses.carry(9, 1000).len(), 1, "neighbours are one loss");
        assert!(!losses.waiting());
        losses.say_again(&(9..=9), 9);
        // The centre may have it: what comes later does not grow it, nor after a restart.
        let mut losses = Losses::restore(&losses.save());
        losses.add_batches(Reason::SpoolFull, 7, &(5..=5), 10);
        let carried = losses.carry(12, 1000);
        let said: Vec<_> = carried.iter().map(|loss| (loss.first_seq, loss.last_seq, loss.readings)).collect();
        assert_eq!(said, [(1, 4, 40), (5, 5, 10)]);
        losses.delivered(&(10..=12));
        assert!(losses.carry(13, 1000).is_empty());
    }

    #[test]
    fn what_was_never_published_may_grow() {
        let mut losses = Losses::default();
        losses.add_span(Reason::Overrun, Whose::Group(1), Wall(10), Wall(10), 4);
        losses.carry(9, 1000);
        losses.say_again(&(9..=9), 8);
        losses.add_span(Reason::Overrun, Whose::Group(1), Wall(20), Wall(30), 8);
        assert_eq!(losses.carry(10, 1000).len(), 1);
    }

    #[test]
    fn an_open_loss_is_not_said_before_its_end_is_known() {
        let mut losses = Losses::default();
        losses.open(Whose::Group(3), Wall(1000), 5);
        losses.open(Whose::Point(3), Wall(1000), 0);
        assert!(!losses.waiting());
        let again = Losses::restore(&losses.save());
        assert_eq!(again.opened().count(), 2);
        losses.close(Whose::Point(3), None, 0);
        losses.close(Whose::Group(3), Some(Wall(4000)), 2);
        let carried = losses.carry(1, 1000);
        assert_eq!(carried.len(), 1, "without readings there was no loss");
        assert_eq!((carried[0].from_ms, carried[0].to_ms, carried[0].readings), (1000, 4000, 7));
    }

    #[test]
    fn spans_of_one_set_grow_together_while_nothing_carries_them() {
        let mut losses = Losses::default();
        losses.add_span(Reason::StoreUnavailable, Whose::Group(1), Wall(10), Wall(10), 4);
        losses.add_span(Reason::StoreUnavailable, Whose::Group(1), Wall(20), Wall(30), 8);
        let carried = losses.carry(1, 1000);
        assert_eq!((carried[0].from_ms, carried[0].to_ms, carried[0].readings), (10, 31, 12));
    }
}
