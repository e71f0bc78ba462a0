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
