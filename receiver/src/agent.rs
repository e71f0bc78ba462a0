//! The agent's row: what it last said of itself, and where the ledger stands in its present epoch.
//!
//! An `AgentStatus` comes to every receiver, so two of them write the same row, and one may lag. A status is therefore
//! taken only if it is no older: within one boot and epoch neither its time nor its count of admitted readings may be
//! behind, unless the other is ahead (a clock may step), and nothing follows an OFFLINE of the same moment. The
//! will (OFFLINE without a time) carries neither; it changes the state alone, and only of the life it belongs to, so that
//! the stored ledger stays as it was (contract, Topics).

use tributary_proto::pb;

use crate::rows::reason_name;

/// One row of table `agent`, without its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentRow {
    /// The present epoch; 0 = none known yet.
    pub epoch: u64,
    /// Whether a status named the epoch. Until then the highest that came does; a clock that restarts at 1970 makes
    /// a new epoch a lower number, so once statuses come they alone decide.
    pub by_status: bool,
    /// `online`, `offline`, `stopping`, `degraded`; empty while no status came.
    pub state: String,
    /// The highest seq the agent said it made, or the highest that came.
    pub last_seq: u64,
    /// The oldest it can still send.
    pub first_retained_seq: u64,
    /// What the Acks say.
    pub contiguous_seq: u64,
    /// The agent's ledger.
    pub admitted: u64,
    /// See `admitted`.
    pub delivered: u64,
    /// See `admitted`.
    pub held: u64,
    /// See `admitted`.
    pub filtered: u64,
    /// The sum over all reasons.
    pub lost: u64,
    /// `spool_full=3,overrun=1`.
    pub lost_by_reason: String,
    /// When the agent said so, by its clock.
    pub at_ms: i64,
    /// New at each start of the agent.
    pub boot_id: Vec<u8>,
    /// Of the agent.
    pub version: String,
    /// The newest revision it published.
    pub catalog_rev: u32,
    /// Of its configuration.
    pub config_sha256: String,
    /// How good its clock is.
    pub time_quality: i32,
    /// Bytes waiting at the edge.
    pub backlog_bytes: u64,
    /// How old the oldest of them is: its stamp.
    pub backlog_oldest_ms: i64,
    /// When anything last came from it, by the receiver's clock.
    pub received_at: i64,
}

/// The name of an `AgentStatus.State`, in lower case.
#[must_use]
pub fn state_name(state: i32) -> String {
    pb::agent_status::State::try_from(state)
        .map_or_else(|_| format!("state_{state}"), |state| state.as_str_name().to_ascii_lowercase())
}

impl AgentRow {
    /// A batch or a catalogue of `epoch` came.
    pub fn saw_batch(&mut self, epoch: u64) {
        if !self.by_status && epoch > self.epoch {
            *self = Self { epoch, state: std::mem::take(&mut self.state), ..Self::default() };
        }
    }

    /// A status came. Answers whether it changed the row.
    pub fn saw_status(&mut self, status: &pb::AgentStatus) -> bool {
        if status.epoch == 0 {
            return false; // no life of a spool
        }
        let same_life = self.epoch == status.epoch && self.boot_id == status.boot_id;
        if status.state() == pb::agent_status::State::Offline && status.at_ms == 0 {
            let first = !self.by_status && (self.epoch == status.epoch || self.epoch == 0);
            if !same_life && !first {
                return false;
            }
            self.epoch = status.epoch;
            self.state = state_name(status.state);
            return true;
        }
        let ledger = status.ledger.clone().unwrap_or_default();
        if self.by_status && same_life && status.at_ms <= self.at_ms && ledger.admitted <= self.admitted {
            let same_moment = status.at_ms == self.at_ms && ledger.admitted == self.admitted;
            let offline = self.state == state_name(pb::agent_status::State::Offline.into());
            if !same_moment || (offline && status.state() != pb::agent_status::State::Offline) {
                return false;
            }
        }
        let lost = ledger.lost.iter().fold(0_u64, |sum, lost| sum.saturating_add(lost.readings));
        let by_reason: Vec<String> =
            ledger.lost.iter().map(|lost| format!("{}={}", reason_name(lost.reason), lost.readings)).collect();
        *self = Self {
            epoch: status.epoch,
            by_status: true,
            state: state_name(status.state),
            last_seq: status.last_seq,
            first_retained_seq: status.first_retained_seq,
            contiguous_seq: self.contiguous_seq,
            admitted: ledger.admitted,
            delivered: ledger.delivered,
            held: ledger.held,
            filtered: ledger.filtered,
            lost,
            lost_by_reason: by_reason.join(","),
            at_ms: status.at_ms,
            boot_id: status.boot_id.clone(),
            version: status.version.clone(),
            catalog_rev: status.catalog_rev,
            config_sha256: status.config_sha256.clone(),
            time_quality: status.time_quality,
            backlog_bytes: status.backlog_bytes,
            backlog_oldest_ms: status.backlog_oldest_ms,
            received_at: self.received_at,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::agent_status::State;

    fn status(state: State, epoch: u64, at_ms: i64, admitted: u64) -> pb::AgentStatus {
        let lost = vec![pb::ledger::Lost { reason: 1, readings: 3 }, pb::ledger::Lost { reason: 4, readings: 2 }];
        let ledger = pb::Ledger { admitted, delivered: 1, held: 2, filtered: 0, lost };
        let boot_id = vec![1; 16];
        pb::AgentStatus { state: state.into(), epoch, at_ms, ledger: Some(ledger), boot_id, ..Default::default() }
    }

    #[test]
    fn the_will_leaves_the_ledger_as_it_was() {
        let mut row = AgentRow::default();
        assert!(row.saw_status(&status(State::Online, 7, 1_000, 8)));
        let will = pb::AgentStatus { epoch: 7, boot_id: vec![1; 16], ..Default::default() };
        assert!(row.saw_status(&will));
        assert_eq!((row.state.as_str(), row.admitted, row.lost, row.at_ms), ("offline", 8, 5, 1_000));
        assert_eq!(row.lost_by_reason, "spool_full=3,agent_down=2");
        let other = pb::AgentStatus { epoch: 8, boot_id: vec![1; 16], ..Default::default() };
        let mut online = row.clone();
        online.saw_status(&status(State::Online, 7, 2_000, 9));
        assert!(!online.saw_status(&other), "the will of another epoch's connection");
        assert_eq!(online.state, "online");
    }

    #[test]
    fn a_receiver_that_lags_does_not_turn_the_row_back() {
        let mut row = AgentRow::default();
        row.saw_status(&status(State::Stopping, 7, 2_000, 9));
        assert!(!row.saw_status(&status(State::Online, 7, 1_000, 8)));
        assert_eq!(row.state, "stopping");
        assert!(row.saw_status(&status(State::Offline, 7, 2_000, 9)), "a clean stop may take less than a millisecond");
        assert!(!row.saw_status(&status(State::Stopping, 7, 2_000, 9)));
        assert_eq!(row.state, "offline");
        assert!(
            row.saw_status(&status(State::Online, 6, 1_000, 0)),
            "a new epoch may have a lower number and an older clock"
        );
        row.saw_batch(7);
        assert_eq!(row.epoch, 6, "statuses decide, not late batches");
    }

    #[test]
    fn without_a_status_the_highest_epoch_of_a_batch_counts() {
        let mut row = AgentRow::default();
        row.saw_batch(5);
        row.saw_batch(4);
        assert_eq!((row.epoch, row.state.as_str()), (5, ""));
    }
}
