//! The state record: what one commit of the spool stores beside the batches, in the same fsync (contract rule 9).
//!
//! A protobuf message, so that an older or newer agent can read it. Field numbers are never reused. It is small on
//! purpose (a few hundred bytes for a small plant): it is written at every commit. Poll sets that were polled together
//! and hold the same are one entry.

use alloc::vec::Vec;

use tributary_proto::pb;

/// Version of the record; another one is not read.
pub const VERSION: u32 = 1;

/// The record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The epoch in force.
    #[prost(fixed64, tag = "2")]
    pub epoch: u64,
    /// Highest seq that this commit makes durable, or would if the disk had room for more than this record.
    #[prost(uint64, tag = "3")]
    pub last_seq: u64,
    /// Highest seq that may have been published (rule 2).
    #[prost(uint64, tag = "4")]
    pub mark: u64,
    /// The agent drained and stopped; nothing was held in memory.
    #[prost(bool, tag = "5")]
    pub clean: bool,
    /// Ledger without `held`.
    #[prost(message, optional, tag = "6")]
    pub ledger: Option<pb::Ledger>,
    /// Where the bodies are, ascending by seq.
    #[prost(message, repeated, tag = "7")]
    pub extents: Vec<Extent>,
    /// Settled seqs from the first extent on.
    #[prost(message, repeated, tag = "8")]
    pub settled: Vec<pb::Range>,
    /// Settled, but not yet counted in the ledger: the directory's index was not read yet.
    #[prost(message, repeated, tag = "9")]
    pub uncounted: Vec<Uncounted>,
    /// Losses not yet acknowledged.
    #[prost(message, repeated, tag = "10")]
    pub losses: Vec<SavedLoss>,
    /// Poll sets, in order.
    #[prost(message, repeated, tag = "11")]
    pub sets: Vec<Set>,
    /// Readings of event-driven points held in memory, those of unacknowledged messages left out.
    #[prost(uint64, tag = "12")]
    pub events_held: u64,
    /// Readings of unacknowledged QoS 1 messages held in memory: they come again.
    #[prost(uint64, tag = "13")]
    pub events_unacknowledged: u64,
    /// Refused seqs from the first retained one on.
    #[prost(uint64, repeated, tag = "14")]
    pub refused: Vec<u64>,
}

impl State {
    /// Whether its numbers can be true: what is not is as good as lost.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let upto = |last: u64| last <= self.last_seq && last < u64::MAX;
        let run = |first: u64, count: u64| first.checked_add(count).is_some_and(|end| end < u64::MAX);
        let extent = |extent: &Extent| {
            run(extent.first, extent.count)
                && upto((extent.first + extent.count).saturating_sub(1))
                && run(extent.stored_first, extent.count)
        };
        upto(self.last_seq)
            && self.extents.iter().all(extent)
            && self.extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.unsettled)).is_some()
            && self.uncounted.iter().all(|waiting| waiting.first <= waiting.last && upto(waiting.last))
    }
}

/// A run of batches with neighbouring numbers in one directory.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Extent {
    /// Epoch of the directory.
    #[prost(fixed64, tag = "1")]
    pub dir_epoch: u64,
    /// First stored seq of the directory.
    #[prost(uint64, tag = "2")]
    pub dir_first: u64,
    /// Stored seq of the run's first batch.
    #[prost(uint64, tag = "3")]
    pub stored_first: u64,
    /// Its seq in the epoch in force.
    #[prost(uint64, tag = "4")]
    pub first: u64,
    /// How many batches.
    #[prost(uint64, tag = "5")]
    pub count: u64,
    /// Readings of its batches that are not settled and counted.
    #[prost(uint64, tag = "6")]
    pub unsettled: u64,
    /// Oldest stamp in it, ms.
    #[prost(sint64, tag = "7")]
    pub oldest_ms: i64,
    /// Revision that decodes it, if not the one in its records (after a new epoch).
    #[prost(uint32, tag = "8")]
    pub catalog_rev: u32,
}

/// Seqs that are settled while their readings are still to be counted.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Uncounted {
    /// First seq.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Last seq.
    #[prost(uint64, tag = "2")]
    pub last: u64,
    /// Lost for this reason plus one; 0 = delivered.
    #[prost(uint32, tag = "3")]
    pub how: u32,
}

/// A loss with what became of it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SavedLoss {
    /// The loss.
    #[prost(message, optional, tag = "1")]
    pub loss: Option<pb::Loss>,
    /// Seq of the batch that carries it; 0 = none yet.
    #[prost(uint64, tag = "2")]
    pub carrier: u64,
    /// Its end is not known yet.
    #[prost(bool, tag = "3")]
    pub open: bool,
    /// A batch that carried it will not arrive, or its acknowledgement did not.
    #[prost(bool, tag = "4")]
    pub again: bool,
}

/// A run of poll sets with consecutive ids that were polled together and hold alike.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Set {
    /// First group id, or 0.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// First point id, or 0.
    #[prost(uint32, tag = "2")]
    pub point: u32,
    /// How many sets more follow with ids one higher each.
    #[prost(uint32, tag = "3")]
    pub more: u32,
    /// Stamp of the last poll, ms.
    #[prost(sint64, tag = "4")]
    pub last_ms: i64,
    /// How much older than that the oldest stamp held in memory is, ms; meaningless if nothing is held.
    #[prost(sint64, tag = "5")]
    pub oldest_before_ms: i64,
    /// Readings held in memory, for each set of the run.
    #[prost(uint64, tag = "6")]
    pub held: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_true_are_told() {
        let extent = Extent { dir_first: 1, stored_first: 1, first: 1, count: 9, unsettled: 5, ..Extent::default() };
        let sound = State { last_seq: 9, extents: alloc::vec![extent], ..State::default() };
        assert!(sound.is_sound() && State::default().is_sound());
        let extents = [
            Extent { count: 10, ..extent },
            Extent { first: u64::MAX, ..extent },
            Extent { stored_first: u64::MAX - 3, ..extent },
        ];
        for extent in extents {
            assert!(!State { extents: alloc::vec![extent], ..sound.clone() }.is_sound(), "{extent:?}");
        }
        let much = Extent { unsettled: u64::MAX, ..extent };
        assert!(!State { extents: alloc::vec![extent, much], ..sound.clone() }.is_sound());
        let backwards = Uncounted { first: 3, last: 2, how: 0 };
        assert!(!State { uncounted: alloc::vec![backwards], ..sound.clone() }.is_sound());
        assert!(!State { last_seq: u64::MAX, ..sound }.is_sound());
    }
}
