//! The end of windows: their summaries become rows of the open batch, and what was folded into them is accounted for.

use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::Value;

use super::{Books, Intake, Raw, lose};
use crate::losses::Whose;
use crate::ring::Cell;
use crate::window::clock::{Closed, WindowClock};

impl Intake {
    /// When the next window closes.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.clocks.iter().map(WindowClock::deadline).min()
    }

    /// Closes the windows that are due. `accepts`: the spool takes summaries; else they are lost.
    pub fn close_windows(&mut self, now: Mono, wall: Wall, accepts: bool, mut books: Books<'_>) {
        for clock in 0..self.clocks.len() {
            if let Some(closed) = self.clocks[clock].handle_close(now, wall) {
                self.close_clock(now, clock, closed, accepts, &mut books, |_| true);
            }
        }
    }

    /// A clean stop closes every window as PARTIAL.
    pub fn stop_windows(&mut self, now: Mono, mut books: Books<'_>) {
        for clock in 0..self.clocks.len() {
            let closed = self.clocks[clock].handle_stop(now);
            self.close_clock(now, clock, closed, true, &mut books, |_| true);
        }
    }

    /// The wall clock has stepped.
    pub fn handle_step(&mut self) {
        for clock in &mut self.clocks {
            clock.handle_step();
        }
    }

    /// Closes the windows of `which` groups that this clock has closed.
    pub(super) fn close_clock(
        &mut self,
        now: Mono,
        clock: usize,
        closed: Closed,
        accepts: bool,
        books: &mut Books<'_>,
        which: impl Fn(Whose) -> bool,
    ) {
        let mut row = core::mem::take(&mut self.row);
        for index in 0..self.windows.len() {
            let windows = &mut self.windows[index];
            if windows.clock != clock || !which(self.sets.whose(windows.set)) {
                continue;
            }
            if windows.on_arrival && windows.members.iter().all(|member| member.accumulator.readings() == 0) {
                windows.missed = false; // of the window that had no row
                continue;
            }
            row.clear();
            let partial = core::mem::take(&mut windows.missed) || closed.partial;
            for member in &mut windows.members {
                let folded = member.accumulator.close(closed.end, partial, &member.stats, &mut |_, sample| {
                    let bits = if let Value::Bits(bits) = sample.value { bits } else { 0 };
                    row.push(Cell { status: sample.status, bits });
                });
                let Some(point) = self.points.get(member.point.0 as usize) else { continue };
                if point.raw != Raw::No {
                    continue;
                }
                self.folded = self.folded.saturating_sub(folded);
                books.ledger.filtered += folded;
                match point.set {
                    Some(set) => self.sets.unfold(set),
                    None => self.folded_events = self.folded_events.saturating_sub(folded),
                }
            }
            let (key, set) = (windows.group, windows.set);
            books.ledger.admitted += row.len() as u64;
            if accepts {
                self.sets.handle_poll(set, closed.at, false, books.ledger, books.losses);
                self.push_row(now, key, closed.at, &row, self.sets.whose(set), books);
            } else {
                lose(books, Reason::StoreUnavailable, self.sets.whose(set), closed.at, row.len() as u64);
            }
        }
        self.row = row;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec;
    use alloc::vec::Vec;
    use core::time::Duration;

    use prost::Message;
    use tributary_proto::pb;
    use tributary_protocols::reading::{Sample, StampedBy, Status};
    use tributary_protocols::value::PointType;

    use super::*;
    use crate::batch::Batcher;
    use crate::catalog::Catalog;
    use crate::filter::tests::point;
    use crate::intake::Arrival;
    use crate::ledger::Ledger;
    use crate::losses::Losses;
    use crate::model::{self, Device, Model};

    /// Summaries in the open batch as a receiver decodes them, in order: point, stamp, status.
    pub(in crate::intake) fn summaries(
        intake: &Intake,
        catalog: &Catalog,
        batcher: &mut Batcher,
    ) -> Vec<(u32, i64, u8)> {
        let message = pb::Catalog::decode(catalog.message()).expect("a message");
        let content = tributary_proto::catalog::content_bytes(&message).expect("inflates");
        let content = tributary_proto::catalog::content(&content).expect("reads");
        let drafts = batcher.seal(StampedBy::Agent, |key| intake.point(key));
        let schema = tributary_proto::catalog::Catalog::new(&content);
        let mut said = crate::batch::tests::decoded(batcher, &drafts, &schema);
        said.retain(|(id, ..)| content.points.iter().any(|point| point.id == *id && !point.statistic.is_empty()));
        said.sort_unstable_by_key(|(id, at, _)| (*at, *id));
        said
    }

    /// As a sensor does that a wildcard finds: its window has missed what was before.
    #[test]
    fn a_window_that_begins_among_others_of_its_length_is_partial() {
        let window = model::Window { every_ms: 10_000, stats: vec![model::Statistic::Max] };
        let windowed = |name: &str| model::Point {
            name: name.into(),
            window: Some(window.clone()),
            raw: false,
            ..point(PointType::Int)
        };
        let devices = vec![Device { name: "d".into(), ..Device::default() }];
        let model = Model { devices, points: vec![], requests: vec![] };
        let mut catalog = Catalog::new(1);
        let mut batcher = Batcher::new(crate::batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 * 1024 });
        let (mut ledger, mut losses) = (Ledger::default(), Losses::default());
        let mut intake = Intake::new(&model, &mut catalog, &mut batcher, Mono::ZERO, Wall(0)).expect("a model");
        let mut known = Vec::new();
        for second in 0..=30 {
            let (now, at) = (Mono::ZERO + Duration::from_secs(second), Wall(second as i64 * 1_000));
            let mut books =
                Books { ledger: &mut ledger, losses: &mut losses, batcher: &mut batcher, overrun: Reason::Overrun };
            intake.close_windows(now, at, true, books);
            if second == 0 || second == 14 {
                let new = windowed(if second == 0 { "a" } else { "b" });
                known.push(intake.declare(&new, &mut catalog, &mut batcher, now, at).expect("room"));
            }
            for point in &known {
                books =
                    Books { ledger: &mut ledger, losses: &mut losses, batcher: &mut batcher, overrun: Reason::Overrun };
                let arrival = Arrival { point: *point, at, stamped_by: StampedBy::Agent, sample: Sample::good(1) };
                intake.handle_reading(now, arrival, false, true, books);
            }
        }
        catalog.close();
        let said = summaries(&intake, &catalog, &mut batcher);
        let (partial, good) = (Status::Partial as u8, Status::Good as u8);
        let (a, b) = (said[0].0, said[2].0);
        let expected = [(a, 0, partial), (a, 10_000, good), (b, 10_000, partial), (a, 20_000, good), (b, 20_000, good)];
        assert_eq!(said, expected);
    }
}
