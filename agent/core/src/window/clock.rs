//! Says when windows begin and end (contract rule 15). One serves all points with the same window; it holds no reading.
//!
//! ```text
//! wall   ──┬────────────┬────────────┬──        multiples of the length since 1970, before it too
//!          at           until = at of the next
//! mono     now ─────────▶ deadline              until − wall at the opening, never moved afterwards
//! ```
//!
//! A window begins on a multiple of its length on the wall clock and ends at a deadline on the monotonic one, fixed when
//! it opens. The next deadline is measured from the wall clock again, so the two cannot drift apart: a window is as much
//! longer or shorter as the clock was off.
//!
//! **What counts as off.** At a close the wall clock, taken back to the deadline, should show `until`. Within a
//! *tolerance* of an eighth of the length (at least 5 ms) it does: clocks are slewed (chrony by at most 8.3 %) and timers
//! fire late. The next window then begins at `until` by definition, no boundary twice and none left out. Beyond that, or
//! if a step was announced by [`handle_step`](WindowClock::handle_step), the wall clock has stepped: the next window
//! begins where the clock really stands, with that as `at`, and runs, PARTIAL because shorter, to the next boundary. If
//! the step was a whole number of windows it is a whole window, and not PARTIAL.
//!
//! **What counts as late.** A close later than the tolerance finds readings still under way that belonged into the
//! window: it is PARTIAL. Windows that have passed meanwhile are left out; nothing could arrive in them. The one that is
//! open now keeps its place on the grid as `at` and is PARTIAL, too, since it began late.

use core::time::Duration;

use tributary_protocols::time::{Mono, Wall};

/// Least tolerance in ms: what a timer of an idle machine may be late.
const LEAST_TOLERANCE_MS: i64 = 5;

/// The windows of one length, one open at any time.
#[derive(Clone, Debug)]
pub struct WindowClock {
    every_ms: i64,
    at: Wall,
    until: Wall,
    deadline: Mono,
    partial: bool,
    stepped: bool,
}

/// A window that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its start: the stamp of its summaries.
    pub at: Wall,
    /// Its end, for the time-weighted mean.
    pub end: Mono,
    /// Whether it was shorter than a window, or its end was seen late.
    pub partial: bool,
}

impl WindowClock {
    /// Opens the first window: from `wall`, its real start, to the next boundary, always PARTIAL. A length of 0 is taken
    /// as 1 ms.
    #[must_use]
    pub fn start(every_ms: u32, now: Mono, wall: Wall) -> Self {
        let mut clock = Self {
            every_ms: i64::from(every_ms.max(1)),
            at: wall,
            until: wall,
            deadline: now,
            partial: true,
            stepped: false,
        };
        clock.open(now, wall, wall, true);
        clock
    }

    /// Start of the open window.
    #[must_use]
    pub fn at(&self) -> Wall {
        self.at
    }

    /// When the open window ends.
    #[must_use]
    pub fn deadline(&self) -> Mono {
        self.deadline
    }

    /// Closes the open window if it is due at `now`, and opens the next one. One call is enough however late it is: the
    /// new deadline is after `now`.
    pub fn handle_close(&mut self, now: Mono, wall: Wall) -> Option<Closed> {
        if now < self.deadline {
            return None;
        }
        let late_ms = i64::try_from(now.since(self.deadline).as_millis()).unwrap_or(i64::MAX);
        let tolerance = (self.every_ms / 8).max(LEAST_TOLERANCE_MS);
        let late = late_ms > tolerance;
        let closed = Closed { at: self.at, end: self.deadline, partial: self.partial || late };

        let shown = Wall(wall.0.saturating_sub(late_ms));
        let off = shown.0.saturating_sub(self.until.0);
        if !self.stepped && off.saturating_abs() <= tolerance {
            let passed = wall.0.saturating_sub(self.until.0).max(0) / self.every_ms * self.every_ms;
            self.open(now, wall, Wall(self.until.0.saturating_add(passed)), late);
        } else {
            // Both clocks are read in whole milliseconds, so what is on a boundary may show one more.
            let boundary = self.boundary(shown);
            let whole = !late && shown.0.saturating_sub(boundary.0) <= 1;
            self.open(now, wall, if whole { boundary } else { wall }, !whole);
        }
        Some(closed)
    }

    /// The wall clock has stepped. The open window keeps its deadline; what comes after it goes by the new clock.
    pub fn handle_step(&mut self) {
        self.stepped = true;
    }

    /// The open window as a clean stop at `now` leaves it: PARTIAL, and ended.
    #[must_use]
    pub fn handle_stop(&self, now: Mono) -> Closed {
        Closed { at: self.at, end: now.min(self.deadline), partial: true }
    }

    /// Opens the window that starts at `at` and ends at the first boundary after it.
    fn open(&mut self, now: Mono, wall: Wall, at: Wall, partial: bool) {
        self.at = at;
        self.until = Wall(self.boundary(at).0.saturating_add(self.every_ms));
        // A window that should have ended already ends at once, but not before time has moved.
        let left = self.until.0.saturating_sub(wall.0).max(1);
        self.deadline = now + Duration::from_millis(left.unsigned_abs());
        self.partial = partial;
        self.stepped = false;
    }

    /// The last multiple of the length that is not after `wall`.
    fn boundary(&self, wall: Wall) -> Wall {
        Wall(wall.0.saturating_sub(wall.0.rem_euclid(self.every_ms)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Mono {
        Mono::from_millis(millis)
    }

    fn closed(at: i64, end: u64, partial: bool) -> Option<Closed> {
        Some(Closed { at: Wall(at), end: ms(end), partial })
    }

    #[test]
    fn the_first_window_runs_to_the_next_boundary() {
        let mut clock = WindowClock::start(10_000, ms(500), Wall(1_003_000));
        assert_eq!((clock.at(), clock.deadline()), (Wall(1_003_000), ms(7_500)));
        assert_eq!(clock.handle_close(Mono::from_nanos(7_499_999_999), Wall(1_009_999)), None);
        assert_eq!(clock.handle_close(ms(7_500), Wall(1_010_000)), closed(1_003_000, 7_500, true));
        assert_eq!((clock.at(), clock.deadline()), (Wall(1_010_000), ms(17_500)));
        assert_eq!(clock.handle_close(ms(17_500), Wall(1_020_000)), closed(1_010_000, 17_500, false));
    }

    #[test]
    fn a_start_on_the_boundary_is_a_first_window_all_the_same() {
        let mut clock = WindowClock::start(1_000, ms(0), Wall(5_000));
        assert_eq!(clock.handle_close(ms(1_000), Wall(6_000)), closed(5_000, 1_000, true));
    }

    #[test]
    fn boundaries_before_1970() {
        let mut clock = WindowClock::start(1_000, ms(0), Wall(-1_700));
        assert_eq!(clock.deadline(), ms(700));
        assert_eq!(clock.handle_close(ms(700), Wall(-1_000)), closed(-1_700, 700, true));
        assert_eq!((clock.at(), clock.deadline()), (Wall(-1_000), ms(1_700)));
    }

    /// A clock at boundary 20,000 of windows of 10 s, at 0 of the monotonic clock.
    fn at_20_000() -> WindowClock {
        let mut clock = WindowClock::start(10_000, ms(0), Wall(19_999));
        clock.handle_close(ms(1), Wall(20_000)).unwrap();
        assert_eq!((clock.at(), clock.deadline(), clock.partial), (Wall(20_000), ms(10_001), false));
        clock
    }

    #[test]
    fn a_small_step_that_is_announced_makes_a_shorter_window() {
        let mut clock = at_20_000();
        clock.handle_step();
        assert_eq!(clock.handle_close(ms(10_001), Wall(31_000)), closed(20_000, 10_001, false));
        assert_eq!((clock.at(), clock.deadline()), (Wall(31_000), ms(19_001)));
        assert_eq!(clock.handle_close(ms(19_001), Wall(40_000)), closed(31_000, 19_001, true));
        assert_eq!(clock.handle_close(ms(29_001), Wall(50_000)), closed(40_000, 29_001, false));
    }

    #[test]
    fn a_large_step_needs_no_announcement_and_may_go_back() {
        let mut clock = at_20_000();
        assert_eq!(clock.handle_close(ms(10_001), Wall(27_500)), closed(20_000, 10_001, false));
        assert_eq!((clock.at(), clock.deadline()), (Wall(27_500), ms(12_501)));
        assert_eq!(clock.handle_close(ms(12_501), Wall(30_000)), closed(27_500, 12_501, true));
        assert_eq!(clock.at(), Wall(30_000));
    }

    #[test]
    fn a_step_of_whole_windows_is_not_partial() {
        let mut clock = at_20_000();
        clock.handle_step();
        // 2 ms late on both clocks.
        assert_eq!(clock.handle_close(ms(10_003), Wall(1_000_000_002)), closed(20_000, 10_001, false));
        assert_eq!((clock.at(), clock.deadline()), (Wall(1_000_000_000), ms(20_001)));
        assert_eq!(clock.handle_close(ms(20_001), Wall(1_000_010_000)), closed(1_000_000_000, 20_001, false));
    }

    #[test]
    fn late_wakeups() {
        let mut clock = at_20_000();
        assert_eq!(clock.handle_close(ms(10_201), Wall(30_200)), closed(20_000, 10_001, false), "within tolerance");
        assert_eq!((clock.at(), clock.deadline()), (Wall(30_000), ms(20_001)));
        assert_eq!(clock.handle_close(ms(53_001), Wall(73_000)), closed(30_000, 20_001, true), "33 s late");
        assert_eq!((clock.at(), clock.deadline()), (Wall(70_000), ms(60_001)), "three windows passed");
        assert_eq!(clock.handle_close(ms(60_001), Wall(80_000)), closed(70_000, 60_001, true));
        assert_eq!(clock.handle_close(ms(70_001), Wall(90_000)), closed(80_000, 70_001, false));
    }

    #[test]
    fn a_stop_closes_early() {
        let clock = at_20_000();
        assert_eq!(Some(clock.handle_stop(ms(4_000))), closed(20_000, 4_000, true));
        assert_eq!(Some(clock.handle_stop(ms(99_000))), closed(20_000, 10_001, true));
    }

    proptest! {
        /// A wall clock that is slewed by up to 8 % either way, and a timer that is late within reason: every boundary
        /// once, in order, and every window but the first complete.
        #[test]
        fn no_boundary_twice_and_none_left_out(
            every in 50_u32..100_000, start in -100_000_i64..100_000,
            slews in proptest::collection::vec((-80_000_i64..80_000, 0_u64..5_000_000), 1..200),
        ) {
            let (mut mono, mut wall) = (0_u64, i128::from(start) * 1_000_000);
            let mut clock = WindowClock::start(every, Mono::ZERO, Wall(start));
            let every = i64::from(every);
            let mut expected = start.div_euclid(every) * every;
            for (i, (ppm, late)) in slews.into_iter().enumerate() {
                let later = clock.deadline().as_nanos() + late;
                wall += i128::from(later - mono) * i128::from(1_000_000 + ppm) / 1_000_000;
                mono = later;
                let shown = Wall((wall.div_euclid(1_000_000)) as i64);
                let closed = clock.handle_close(Mono::from_nanos(mono), shown).unwrap();
                prop_assert_eq!(closed.at, Wall(if i == 0 { start } else { expected }));
                prop_assert_eq!(closed.partial, i == 0);
                expected += every;
                prop_assert_eq!(clock.at(), Wall(expected));
                prop_assert!((clock.at().0 - shown.0).abs() <= every / 8 + 6);
            }
        }

        /// Whatever the clocks do: no panic, the next deadline is ahead, what is not PARTIAL is a whole window on the
        /// grid, and what begins off the grid is PARTIAL.
        #[test]
        fn what_is_not_partial_is_whole(
            every in 1_u32..20_000, start in prop_oneof![any::<i64>(), -9_000_i64..9_000],
            moves in proptest::collection::vec(
                (prop_oneof![Just(0_u64), 0_u64..100, 0_u64..100_000],
                 prop_oneof![4 => Just(0_i64), 1 => -50_i64..50, 1 => -50_000_i64..50_000, 1 => any::<i64>()],
                 any::<bool>()),
                1..100),
        ) {
            let mut offset = start;
            let mut clock = WindowClock::start(every, Mono::ZERO, Wall(start));
            let every = i64::from(every);
            let tolerance = (every / 8).max(5);
            let mut opened = 0;
            // At the ends of time there is no next boundary.
            let mut sane = start.unsigned_abs() < 1 << 62;
            let mut seen: Vec<Closed> = Vec::new();
            for (late, step, announced) in moves {
                offset = offset.saturating_add(step);
                if announced && step != 0 {
                    clock.handle_step();
                }
                let now = clock.deadline().as_millis() + late;
                let wall = offset.saturating_add(now as i64);
                sane &= wall.unsigned_abs() < 1 << 62;
                let closed = clock.handle_close(ms(now), Wall(wall)).unwrap();
                prop_assert!(clock.deadline() > ms(now));
                prop_assert_eq!(clock.handle_close(ms(now), Wall(0)), None);
                if sane && !closed.partial {
                    prop_assert_eq!(closed.at.0.rem_euclid(every), 0);
                    let length = closed.end.as_millis() as i64 - opened;
                    prop_assert!((length - every).abs() <= 2 * tolerance + 1, "{} of {}", length, every);
                }
                opened = now as i64;
                seen.push(closed);
            }
            prop_assert!(seen.windows(2).all(|pair| pair[0].end < pair[1].end));
        }
    }
}
