//! Poll sets: what is polled and lost together, and what a crash took of it (contract rule 9).
//!
//! A poll set is a group of the catalogue, or a polled point in none. For each the state record keeps the stamp of its
//! last poll and what of it was only in memory. After a start without a clean stop, each set is owed one `Loss`
//! AGENT_DOWN: what it held, and the polls that were due until it was polled again.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use tributary_proto::pb::loss::Reason;
use tributary_protocols::gather;
use tributary_protocols::time::Wall;

use crate::batch::{Batcher, GroupKey};
use crate::ledger::Ledger;
use crate::losses::{Losses, Whose};
use crate::state;

/// A set's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetKey(u32);

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    readings: u64,
    oldest: Option<Wall>,
}

impl Held {
    fn add(&mut self, at: Wall) {
        self.readings += 1;
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }
}

#[derive(Clone, Copy, Debug)]
struct Set {
    whose: Whose,
    group: Option<GroupKey>,
    points: u64,
    period_ms: u32,
    last: Option<Wall>,
    /// Waiting in the open batch, for a set that is a point; a group's ring knows for itself.
    unsealed: Held,
    /// Folded into the open window and nowhere else.
    folded: Held,
    /// The last run ended without a clean stop and this set was not polled since.
    owed: bool,
    /// Summaries: they are not polled, and a window that never closed gave none.
    summaries: bool,
}

/// All poll sets.
#[derive(Debug, Default)]
pub struct Sets {
    list: Vec<Set>,
    unsealed: Vec<SetKey>,
}

impl Sets {
    /// Adds a group of `points` points.
    pub fn add_group(&mut self, id: u32, key: GroupKey, points: usize, period_ms: u32) -> SetKey {
        self.add(Whose::Group(id), Some(key), points as u64, period_ms)
    }

    /// Adds a group of summaries. What of it waits in the open batch can be lost like anything else.
    pub fn add_summaries(&mut self, id: u32, key: GroupKey, every_ms: u32) -> SetKey {
        let set = self.add(Whose::Group(id), Some(key), 0, every_ms);
        self.set(set).summaries = true;
        set
    }

    /// Adds a polled point that is in no group.
    pub fn add_point(&mut self, id: u32, period_ms: u32) -> SetKey {
        self.add(Whose::Point(id), None, 1, period_ms)
    }

    fn add(&mut self, whose: Whose, group: Option<GroupKey>, points: u64, period_ms: u32) -> SetKey {
        let key = SetKey(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        let (unsealed, folded) = (Held::default(), Held::default());
        self.list.push(Set {
            whose,
            group,
            points,
            period_ms,
            last: None,
            unsealed,
            folded,
            owed: false,
            summaries: false,
        });
        key
    }

    fn set(&mut self, key: SetKey) -> &mut Set {
        &mut self.list[key.0 as usize]
    }

    /// Whose readings a set's are.
    #[must_use]
    pub fn whose(&self, key: SetKey) -> Whose {
        self.list[key.0 as usize].whose
    }

    /// Takes over what the last run's state record says. If that run did not stop cleanly, what was in memory is lost
    /// now; the rest of each loss follows with the set's first poll. Sets that are no more end theirs at once. While the
    /// agent was cleanly stopped no poll was due: then what is due counts from `start` on.
    pub fn restore(&mut self, state: &state::State, start: Wall, ledger: &mut Ledger, losses: &mut Losses) {
        let places: BTreeMap<Whose, usize> =
            gather(self.list.iter().enumerate().map(|(place, set)| (set.whose, place)));
        for (whose, last, oldest, held) in state.sets.iter().flat_map(runs) {
            let set = places.get(&whose).and_then(|place| self.list.get_mut(*place));
            let (period, summaries) = set.as_ref().map_or((0, false), |set| (set.period_ms, set.summaries));
            let gone = set.is_none();
            if let Some(set) = set.filter(|_| !summaries) {
                set.last = Some(if state.clean { start } else { last });
                set.owed = !state.clean;
            }
            if state.clean {
                continue;
            }
            ledger.lose(Reason::AgentDown, held);
            let next = Wall(last.0.saturating_add(i64::from(period)));
            losses.open(whose, if held > 0 { oldest } else { next }, held);
            if summaries {
                losses.close(whose, Some(next), 0);
            } else if gone {
                losses.close(whose, None, 0);
            }
        }
        // Losses left open by the run before that one, of sets that are gone now.
        let orphans: Vec<Whose> = losses.opened().filter(|whose| !places.contains_key(whose)).collect();
        for whose in orphans {
            losses.close(whose, None, 0);
        }
        if !state.clean {
            ledger.lose(Reason::AgentDown, state.events_held);
            if state.events_held > 0 {
                losses.open(Whose::Nobody, Wall(0), state.events_held);
                losses.close(Whose::Nobody, None, 0);
            }
            ledger.admitted = ledger.admitted.saturating_sub(state.events_unacknowledged);
        }
    }

    /// The set was polled at `at`. The first time after a crash its loss ends: the polls that were due meanwhile are
    /// admitted and lost, if the clock can tell how many.
    pub fn handle_poll(&mut self, key: SetKey, at: Wall, synced: bool, ledger: &mut Ledger, losses: &mut Losses) {
        let set = &mut self.list[key.0 as usize];
        if set.owed {
            set.owed = false;
            let gap = set.last.map_or(0, |last| at.0.saturating_sub(last.0));
            let known = synced && gap > 0;
            let period = i64::from(set.period_ms.max(1));
            let missed = if known { ((gap + period / 2) / period - 1).max(0).unsigned_abs() } else { 0 };
            let readings = missed.saturating_mul(set.points);
            ledger.admitted += readings;
            ledger.lose(Reason::AgentDown, readings);
            losses.close(set.whose, known.then_some(at), readings);
        }
        set.last = Some(at);
    }

    /// The agent stops cleanly at `at`: what is still owed ends here, for polls are due no more.
    pub fn stop(&mut self, at: Wall, synced: bool, ledger: &mut Ledger, losses: &mut Losses) {
        self.end(|_| true, at, synced, ledger, losses);
    }

    /// A new configuration comes at `at`: what is owed of sets that `new` does not have ends here.
    pub fn retire(&mut self, new: &Self, at: Wall, synced: bool, ledger: &mut Ledger, losses: &mut Losses) {
        let goes_on: BTreeSet<Whose> = gather(new.list.iter().map(|set| set.whose));
        self.end(|whose| !goes_on.contains(&whose), at, synced, ledger, losses);
    }

    /// Takes over what the sets of the old configuration know, when nothing of them waits in the open batch.
    pub fn inherit(&mut self, old: &Self) {
        let places: BTreeMap<Whose, &Set> = gather(old.list.iter().map(|set| (set.whose, set)));
        for set in &mut self.list {
            if let Some(old) = places.get(&set.whose) {
                (set.last, set.owed, set.folded) = (old.last, old.owed, old.folded);
            }
        }
    }

    fn end(&mut self, which: impl Fn(Whose) -> bool, at: Wall, synced: bool, ledger: &mut Ledger, losses: &mut Losses) {
        for set in self.list.iter_mut().filter(|set| set.owed && which(set.whose)) {
            set.owed = false;
            let gap = set.last.map_or(0, |last| at.0.saturating_sub(last.0));
            let known = synced && gap > 0;
            let missed = if known { (gap / i64::from(set.period_ms.max(1))).unsigned_abs() } else { 0 };
            let readings = missed.saturating_mul(set.points);
            ledger.admitted += readings;
            ledger.lose(Reason::AgentDown, readings);
            losses.close(set.whose, known.then_some(at), readings);
        }
    }

    /// A reading of a point set waits in the open batch.
    pub fn hold(&mut self, key: SetKey, at: Wall) {
        if self.set(key).unsealed.readings == 0 {
            self.unsealed.push(key);
        }
        self.set(key).unsealed.add(at);
    }

    /// A reading of a point set left the open batch unsealed: it was pushed out.
    pub fn drop_one(&mut self, key: SetKey) {
        let held = &mut self.set(key).unsealed;
        held.readings = held.readings.saturating_sub(1);
    }

    /// The open batch was sealed.
    pub fn sealed(&mut self) {
        for key in core::mem::take(&mut self.unsealed) {
            self.set(key).unsealed = Held::default();
        }
    }

    /// A reading was folded into the open window and is sent in no other way.
    pub fn fold(&mut self, key: SetKey, at: Wall) {
        self.set(key).folded.add(at);
    }

    /// The window closed.
    pub fn unfold(&mut self, key: SetKey) {
        self.set(key).folded = Held::default();
    }

    /// For the state record: runs of neighbouring ids that were polled together and hold alike are one entry.
    #[must_use]
    pub fn save(&self, batcher: &Batcher) -> Vec<state::Set> {
        let mut saved: Vec<state::Set> = Vec::new();
        for set in &self.list {
            let Some(last) = set.last else { continue };
            let waiting = set.group.map_or(set.unsealed, |key| {
                let (readings, oldest) = batcher.waiting(key);
                Held { readings: readings as u64, oldest }
            });
            let held = waiting.readings + set.folded.readings;
            let oldest = [waiting.oldest, set.folded.oldest].into_iter().flatten().min().filter(|_| held > 0);
            let before = oldest.map_or(0, |oldest| last.0.saturating_sub(oldest.0));
            let (group, point) = match set.whose {
                Whose::Group(id) => (id, 0),
                Whose::Point(id) => (0, id),
                Whose::Nobody => continue,
            };
            let entry = state::Set { group, point, more: 0, last_ms: last.0, oldest_before_ms: before, held };
            if let Some(run) = saved.last_mut()
                && continues(run, &entry)
            {
                run.more += 1;
            } else {
                saved.push(entry);
            }
        }
        saved
    }
}

fn continues(run: &state::Set, next: &state::Set) -> bool {
    let follows = |first: u32, id: u32| first != 0 && first.checked_add(run.more + 1) == Some(id);
    (follows(run.group, next.group) && next.point == 0 || follows(run.point, next.point) && next.group == 0)
        && (run.last_ms, run.oldest_before_ms, run.held) == (next.last_ms, next.oldest_before_ms, next.held)
}

/// The sets of a saved run: whose, last poll, oldest stamp held, readings held.
fn runs(run: &state::Set) -> impl Iterator<Item = (Whose, Wall, Wall, u64)> {
    let run = *run;
    // A damaged record cannot pass its checksum; a bound all the same.
    (0..=run.more.min(1 << 20)).map(move |n| {
        let whose = if run.group != 0 {
            Whose::Group(run.group.saturating_add(n))
        } else {
            Whose::Point(run.point.saturating_add(n))
        };
        (whose, Wall(run.last_ms), Wall(run.last_ms.saturating_sub(run.oldest_before_ms)), run.held)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn batcher() -> Batcher {
        Batcher::new(crate::batch::Config { max_age: Duration::from_secs(1), max_bytes: 1000 })
    }

    #[test]
    fn a_crash_is_told_with_the_first_poll_after_it() {
        let (mut ledger, mut losses) = (Ledger::default(), Losses::default());
        let mut sets = Sets::default();
        let keys: Vec<SetKey> = (1..=4).map(|id| sets.add_point(id, 1000)).collect();
        for key in &keys[..3] {
            sets.handle_poll(*key, Wall(10_000), true, &mut ledger, &mut losses);
            sets.fold(*key, Wall(9_000));
            sets.fold(*key, Wall(10_000));
        }
        let saved = sets.save(&batcher());
        assert_eq!(saved.len(), 1, "three that hold alike are one entry: {saved:?}");
        let state = state::State { sets: saved, ..state::State::default() };

        ledger.admitted = 6;
        let mut sets = Sets::default();
        let one = sets.add_point(1, 1000);
        sets.add_point(2, 1000);
        sets.restore(&state, Wall(0), &mut ledger, &mut losses);
        assert_eq!(ledger.lost_by(Reason::AgentDown), 6);
        let gone = losses.carry(1, 10_000);
        assert_eq!(gone.len(), 1, "point 3 is no more: its loss ends at once");
        assert_eq!((gone[0].point, gone[0].from_ms, gone[0].to_ms, gone[0].readings), (3, 9_000, 0, 2));
        // 10 s → 15 s at 1 s: polls of 11, 12, 13 and 14 s were due.
        sets.handle_poll(one, Wall(15_020), true, &mut ledger, &mut losses);
        let told = losses.carry(2, 10_000);
        assert_eq!((told[0].from_ms, told[0].to_ms, told[0].readings), (9_000, 15_020, 6));
        assert_eq!((ledger.admitted, ledger.lost()), (10, 10));
    }

    #[test]
    fn without_a_clock_the_end_is_unknown() {
        let (mut ledger, mut losses) = (Ledger::default(), Losses::default());
        let mut sets = Sets::default();
        let one = sets.add_point(1, 1000);
        let set = state::Set { point: 1, last_ms: 50_000, held: 3, ..state::Set::default() };
        sets.restore(&state::State { sets: alloc::vec![set], ..Default::default() }, Wall(0), &mut ledger, &mut losses);
        sets.handle_poll(one, Wall(9_000), true, &mut ledger, &mut losses);
        let told = losses.carry(1, 1000);
        assert_eq!((told[0].to_ms, told[0].readings), (0, 3));
    }
}
