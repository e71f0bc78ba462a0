//! The law in figures: `admitted = delivered + held + filtered + lost`, since the epoch began (contract rule 9).
//!
//! Stages report what they did with readings; nobody else writes these counts. `held` is not kept here: it is what the
//! stages have in hand, counted by them, so that the law is a check and not a definition.

use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;

/// How many loss reasons the contract knows.
const REASONS: usize = 8;

/// Counts of readings since the epoch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Entered the pipeline.
    pub admitted: u64,
    /// In batches the centre acknowledged.
    pub delivered: u64,
    /// Withheld by a configured filter, or folded into a summary.
    pub filtered: u64,
    lost: [u64; REASONS],
}

impl Ledger {
    /// Books `readings` as lost for `reason`.
    pub fn lose(&mut self, reason: Reason, readings: u64) {
        if let Some(count) = usize::try_from(reason as i32).ok().and_then(|index| self.lost.get_mut(index)) {
            *count = count.saturating_add(readings);
        }
    }

    /// Readings lost for `reason`.
    #[must_use]
    pub fn lost_by(&self, reason: Reason) -> u64 {
        usize::try_from(reason as i32).ok().and_then(|index| self.lost.get(index)).copied().unwrap_or(0)
    }

    /// All lost readings.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// Reasons for which readings were lost, with their counts.
    pub fn losses(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.lost
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .filter_map(|(index, count)| Some((Reason::try_from(i32::try_from(index).ok()?).ok()?, *count)))
    }

    /// Whether the law holds with `held` readings in hand.
    #[must_use]
    pub fn holds(&self, held: u64) -> bool {
        self.admitted == self.delivered + held + self.filtered + self.lost()
    }

    /// As the centre is told.
    #[must_use]
    pub fn message(&self, held: u64) -> pb::Ledger {
        pb::Ledger {
            admitted: self.admitted,
            delivered: self.delivered,
            held,
            filtered: self.filtered,
            lost: self
                .losses()
                .map(|(reason, readings)| pb::ledger::Lost { reason: reason as i32, readings })
                .collect(),
        }
    }

    /// As it was told; `held` is left out.
    #[must_use]
    pub fn from_message(message: &pb::Ledger) -> Self {
        let mut ledger = Self {
            admitted: message.admitted,
            delivered: message.delivered,
            filtered: message.filtered,
            lost: [0; REASONS],
        };
        for lost in &message.lost {
            ledger.lose(lost.reason(), lost.readings);
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_law_is_a_check() {
        let mut ledger = Ledger { admitted: 10, delivered: 3, filtered: 2, ..Ledger::default() };
        ledger.lose(Reason::SpoolFull, 4);
        assert!(ledger.holds(1));
        assert!(!ledger.holds(2));
        assert_eq!(Ledger::from_message(&ledger.message(1)), ledger);
    }
}
