//! A new configuration while running: what goes on under it, and what ends with the old one.
//!
//! Ids say what is the same (contract rule 12). A window goes on if its group is there again, the same points with the
//! same statistics, and what is folded into it is sent raw beside it, or not, as before: else it would be counted twice or
//! not at all. Every other window closes as PARTIAL, in the old intake; one that begins in the middle of the others of its
//! length is PARTIAL too. Poll sets keep the stamp of their last poll, deadbands what they sent, counters what they
//! learnt, factors their exponent. A point that a message brought is declared anew when it comes again.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use tributary_protocols::gather;
use tributary_protocols::time::{Mono, Wall};

use super::{Books, Intake, Member, Raw, Windows};
use crate::batch::Batcher;
use crate::catalog::Catalog;
use crate::losses::Whose;
use crate::model::PointKey;

impl Intake {
    /// The end of the old one: closes the windows that `new` does not have, and what is owed of sets that it does not
    /// have.
    pub fn retire(&mut self, new: &Self, now: Mono, wall: Wall, synced: bool, mut books: Books<'_>) {
        let open = self.open_windows();
        let goes_on: BTreeSet<Whose> =
            gather(new.open_windows().into_keys().filter(|key| open.contains_key(key)).map(|(whose, _)| whose));
        self.sets.retire(&new.sets, wall, synced, books.ledger, books.losses);
        for clock in 0..self.clocks.len() {
            let mut closed = self.clocks[clock].clone().handle_stop(now);
            closed.partial = true;
            self.close_clock(now, clock, closed, true, &mut books, |whose| !goes_on.contains(&whose));
        }
        // What comes again later, as a scale does with its factor, comes in the middle.
        for windows in &mut self.windows {
            windows.missed |= !goes_on.contains(&self.sets.whose(windows.set));
        }
    }

    /// Takes over what goes on. The open batch of `old` was sealed, and it has [retired](Self::retire).
    pub fn inherit(&mut self, mut old: Self, catalog: &mut Catalog, batcher: &mut Batcher, now: Mono, wall: Wall) {
        let ids = |intake: &Self| -> BTreeMap<u32, usize> {
            gather(intake.points.iter().enumerate().map(|(place, point)| (point.id, place)))
        };
        // First, for it declares points.
        let places = ids(self);
        for (key, factor) in &old.factors {
            let place = old.points.get(key.0 as usize).and_then(|point| places.get(&point.id));
            let Some(key) = place.and_then(|place| u32::try_from(*place).ok()).map(PointKey) else { continue };
            self.inherit_factor(key, factor, catalog, batcher, now, wall);
        }
        let places = ids(self);
        for point in &mut old.points {
            let Some(new) = places.get(&point.id).and_then(|place| self.points.get_mut(*place)) else { continue };
            if let (Some(new), Some(old)) = (&mut new.deadband, point.deadband.take()) {
                new.inherit(*old);
            }
            if let (Some(new), Some(old)) = (&mut new.counter, point.counter.take()) {
                new.inherit(*old);
            }
        }
        self.sets.inherit(&old.sets);
        self.inherit_windows(old);
    }

    /// The open windows: whose, and of each member whether it is folded alone and whether it is polled, with their place.
    fn open_windows(&self) -> BTreeMap<(Whose, Vec<(bool, bool)>), usize> {
        let kind = |member: &Member| {
            let point = self.points.get(member.point.0 as usize);
            point.map_or((false, false), |point| (point.raw == Raw::No, point.set.is_some()))
        };
        let key = |windows: &Windows| (self.sets.whose(windows.set), windows.members.iter().map(kind).collect());
        gather(self.windows.iter().enumerate().map(|(place, windows)| (key(windows), place)))
    }

    fn inherit_windows(&mut self, mut old: Self) {
        for (length, clock) in self.lengths.iter().zip(&mut self.clocks) {
            if let Some(place) = old.lengths.iter().position(|old| old == length) {
                *clock = old.clocks[place].clone();
            }
        }
        let before = old.open_windows();
        for (key, place) in self.open_windows() {
            let windows = &mut self.windows[place];
            let Some(place) = before.get(&key) else {
                windows.missed = old.lengths.contains(&self.lengths[windows.clock]);
                continue;
            };
            let old = &mut old.windows[*place];
            windows.missed = old.missed;
            for (member, old) in windows.members.iter_mut().zip(old.members.drain(..)) {
                member.accumulator = old.accumulator;
                let Some(point) = self.points.get(member.point.0 as usize) else { continue };
                if point.raw != Raw::No {
                    continue;
                }
                let folded = member.accumulator.readings();
                self.folded += folded;
                if point.set.is_none() {
                    self.folded_events += folded;
                }
            }
        }
    }
}
