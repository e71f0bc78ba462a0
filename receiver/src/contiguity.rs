//! What the centre knows of one epoch of one agent, and what it therefore answers (contract rule 8).
//!
//! Four facts are kept, and all else follows from them:
//!
//! | fact | from |
//! |---|---|
//! | `committed` | batches in the ledger, settled duplicates among them |
//! | `refused` | batches that were refused for good |
//! | `lost` | seqs that a `Loss` named |
//! | `first_retained` | the highest `first_retained_seq` seen: the agent cannot send anything below it |
//!
//! - final = lost ∪ 1…first_retained−1; *gaps* = final − committed − refused
//! - `contiguous_seq` = the highest n with 1…n ⊆ committed ∪ refused ∪ final, so it never sticks at a hole
//!
//! Because gaps are what is missing now, and not a list that was once written down, a batch that comes after its gap was
//! declared closes it: the batch wins.
//!
//! `forked` is the fifth: an epoch in which one seq had two bodies stays forked. The Ack says so whenever it is sent, and
//! never covers that seq, lest the agent frees the body that is *not* in the ledger before it has begun a new epoch.
//!
//! Pure; the store keeps it as text under the agent's row lock. Limits: an Ack repeats at most [`MAX_REFUSED`] refused
//! seqs and as many ranges; one range costs about ten bytes, and an epoch has as many as it has holes.

use tributary_proto::pb;

use crate::ranges::Ranges;

/// Most refused seqs an Ack repeats (contract rule 8); `contiguous_seq` stays below the first one left out.
pub const MAX_REFUSED: usize = 1_000;

/// Most ranges of `also` in an Ack: the lowest ones. The next Ack has the rest, once these are settled.
pub const MAX_ALSO: usize = 1_000;

/// The facts of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contiguity {
    /// Seqs in the ledger.
    pub committed: Ranges,
    /// Seqs refused for good.
    pub refused: Ranges,
    /// Seqs that a `Loss` named.
    pub lost: Ranges,
    /// Seqs that had two bodies.
    pub forked: Ranges,
    /// The oldest seq that the agent can still send; 0 = not yet known.
    pub first_retained: u64,
}

impl Contiguity {
    /// `seq` is in the ledger.
    pub fn commit(&mut self, seq: u64) {
        self.committed.insert(seq, seq);
    }

    /// `seq` is refused for good. A committed seq stays committed.
    pub fn refuse(&mut self, seq: u64) {
        if !self.committed.contains(seq) {
            self.refused.insert(seq, seq);
        }
    }

    /// A `Loss` named `first..=last`. Seq 0 does not exist.
    pub fn lose(&mut self, first: u64, last: u64) {
        self.lost.insert(first.max(1), last);
    }

    /// Two bodies for `seq`.
    pub fn fork(&mut self, seq: u64) {
        self.forked.insert(seq, seq);
    }

    /// The agent says that it can send nothing below `first_retained`. It only ever rises, so a late sending is harmless.
    pub fn retain_from(&mut self, first_retained: u64) {
        self.first_retained = self.first_retained.max(first_retained);
    }

    fn finals(&self) -> Ranges {
        let mut finals = self.lost.clone();
        if self.first_retained > 1 {
            finals.insert(1, self.first_retained - 1);
        }
        finals
    }

    /// The final holes, also those above `contiguous_seq`.
    #[must_use]
    pub fn gaps(&self) -> Ranges {
        self.finals().without(&self.committed).without(&self.refused)
    }

    /// Every seq up to here is settled: committed, refused or known to be lost.
    #[must_use]
    pub fn contiguous_seq(&self) -> u64 {
        let mut settled = self.finals();
        settled.extend(&self.committed);
        settled.extend(&self.refused);
        settled.up_to()
    }

    /// The highest seq in the ledger; 0 if none is. Below the agent's `last_seq` for long, it is a silent tail.
    #[must_use]
    pub fn highest_seq(&self) -> u64 {
        self.committed.ends().map_or(0, |(_, last)| last)
    }

    /// The Ack of this moment, with verdict OK or FORKED. It is right whoever sends it and however often.
    #[must_use]
    pub fn ack(&self, epoch: u64) -> pb::Ack {
        let mut refused: Vec<u64> = self.refused.seqs_from(self.first_retained).take(MAX_REFUSED + 1).collect();
        let mut contiguous_seq = self.contiguous_seq();
        if refused.len() > MAX_REFUSED {
            let left_out = refused.pop().unwrap_or(1);
            contiguous_seq = contiguous_seq.min(left_out.saturating_sub(1));
        }
        let mut verdict = pb::Verdict::Ok;
        if let Some((forked, _)) = self.forked.ends() {
            verdict = pb::Verdict::Forked;
            contiguous_seq = contiguous_seq.min(forked.saturating_sub(1));
        }
        let committed = self.committed.without(&self.forked);
        let also = committed.iter().filter(|&(_, last)| last > contiguous_seq).take(MAX_ALSO);
        let also = also.map(|(first, last)| pb::Range { first: first.max(contiguous_seq + 1), last }).collect();
        pb::Ack { epoch, contiguous_seq, also, refused, verdict: verdict.into(), ..pb::Ack::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn also(ack: &pb::Ack) -> Vec<(u64, u64)> {
        ack.also.iter().map(|range| (range.first, range.last)).collect()
    }

    #[test]
    fn a_hole_below_what_is_retained_is_final_and_a_late_batch_wins() {
        let mut epoch = Contiguity::default();
        epoch.commit(1);
        epoch.commit(4);
        epoch.retain_from(1);
        let ack = epoch.ack(7);
        assert_eq!((ack.epoch, ack.contiguous_seq, also(&ack)), (7, 1, vec![(4, 4)]), "2 and 3 are late, not lost");
        assert!(epoch.gaps().is_empty());

        epoch.retain_from(4);
        assert_eq!((epoch.contiguous_seq(), epoch.gaps().to_string()), (4, "2-3".into()));
        epoch.retain_from(2);
        assert_eq!(epoch.gaps().to_string(), "2-3", "first_retained_seq of an older sending opens nothing again");

        epoch.commit(3);
        assert_eq!((epoch.contiguous_seq(), epoch.gaps().to_string()), (4, "2".into()), "the batch wins");
    }

    #[test]
    fn a_loss_makes_a_hole_final_above_what_is_retained() {
        let mut epoch = Contiguity::default();
        epoch.commit(1);
        epoch.commit(9);
        epoch.retain_from(1);
        epoch.lose(2, 4);
        assert_eq!((epoch.contiguous_seq(), epoch.gaps().to_string()), (4, "2-4".into()));
        epoch.lose(7, 8);
        assert_eq!(epoch.gaps().to_string(), "2-4,7-8", "a final hole behind a late one is known too");
        assert_eq!(epoch.contiguous_seq(), 4);
        epoch.commit(3);
        epoch.commit(5);
        epoch.commit(6);
        assert_eq!((epoch.contiguous_seq(), epoch.gaps().to_string()), (9, "2,4,7-8".into()));
    }

    #[test]
    fn refused_seqs_are_settled_and_repeated_while_retained() {
        let mut epoch = Contiguity::default();
        epoch.retain_from(1);
        epoch.commit(1);
        epoch.refuse(2);
        epoch.refuse(1); // another body came first and is in
        epoch.commit(3);
        let ack = epoch.ack(1);
        assert_eq!((ack.contiguous_seq, ack.refused.as_slice()), (3, [2].as_slice()));
        assert!(epoch.gaps().is_empty(), "refused is not a gap");
        epoch.retain_from(3);
        assert_eq!(epoch.ack(1).refused, [], "the agent no longer has it");
        assert!(epoch.gaps().is_empty());
    }

    #[test]
    fn an_ack_says_at_most_a_thousand_refused_and_stays_below_the_next() {
        let mut epoch = Contiguity::default();
        epoch.retain_from(1);
        (1..=1_500).for_each(|seq| epoch.refuse(seq));
        epoch.commit(1_501);
        let ack = epoch.ack(1);
        assert_eq!((ack.refused.len(), ack.refused.last(), ack.contiguous_seq), (1_000, Some(&1_000), 1_000));
        epoch.retain_from(1_001);
        let ack = epoch.ack(1);
        assert_eq!((ack.refused.len(), ack.contiguous_seq), (500, 1_501));
    }

    #[test]
    fn a_fork_stays_and_is_never_covered() {
        let mut epoch = Contiguity::default();
        epoch.retain_from(1);
        (1..=9).for_each(|seq| epoch.commit(seq));
        epoch.fork(4);
        let ack = epoch.ack(1);
        assert_eq!((ack.verdict(), ack.contiguous_seq, also(&ack)), (pb::Verdict::Forked, 3, vec![(5, 9)]));
        assert_eq!(epoch.contiguous_seq(), 9, "the ledger itself has no hole");
    }

    #[test]
    fn extremes_are_harmless() {
        let mut epoch = Contiguity::default();
        epoch.retain_from(u64::MAX);
        epoch.commit(u64::MAX);
        epoch.lose(0, u64::MAX);
        epoch.refuse(0);
        let ack = epoch.ack(1);
        assert_eq!((ack.contiguous_seq, epoch.gaps().to_string()), (u64::MAX, "1-18446744073709551614".into()));
        assert!(ack.also.is_empty());
    }

    /// The rules of contract rule 8, said again over plain sets: 500 random histories of 60 facts.
    #[test]
    fn agrees_with_a_simple_model() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut epoch = Contiguity::default();
            let (mut committed, mut refused, mut lost) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut retained = 0;
            for _ in 0..60 {
                let seq = random.u64(1..30);
                match random.u8(0..10) {
                    0 => {
                        epoch.refuse(seq);
                        if !committed.contains(&seq) {
                            refused.insert(seq);
                        }
                    }
                    1 => {
                        epoch.lose(seq, seq + 2);
                        lost.extend(seq..=seq + 2);
                    }
                    2 => {
                        epoch.retain_from(seq / 2);
                        retained = retained.max(seq / 2);
                    }
                    _ if !refused.contains(&seq) => {
                        epoch.commit(seq);
                        committed.insert(seq);
                    }
                    _ => {}
                }
                let is_final = |seq: u64| seq < retained || lost.contains(&seq);
                let settled = |seq: u64| committed.contains(&seq) || refused.contains(&seq) || is_final(seq);
                let contiguous = (1..).take_while(|&seq| settled(seq)).last().unwrap_or(0);
                let gaps: Vec<u64> = (1..40)
                    .filter(|&seq| is_final(seq) && !committed.contains(&seq) && !refused.contains(&seq))
                    .collect();
                assert_eq!(epoch.contiguous_seq(), contiguous, "seed {seed}");
                assert_eq!(epoch.gaps().seqs_from(0).collect::<Vec<_>>(), gaps, "seed {seed}");
                let ack = epoch.ack(1);
                let covered = |seq: u64| ack.also.iter().any(|range| (range.first..=range.last).contains(&seq));
                assert!(
                    (1..40).all(|seq| covered(seq) == (seq > contiguous && committed.contains(&seq))),
                    "seed {seed}"
                );
                let said: Vec<u64> = refused.iter().copied().filter(|&seq| seq >= retained).collect();
                assert_eq!(ack.refused, said, "seed {seed}");
            }
        }
    }
}
