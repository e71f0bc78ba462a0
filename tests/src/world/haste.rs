//! Live before backlog, measured: how old a reading is when its batch is committed at the centre, on a quiet day and while
//! the backlog of an outage drains beside it (contract rule 7).
//!
//! Time is the world's, so the figures are the same on every machine.

use tributary_receiver::ledger::NewBatch;

use super::*;

/// How long the day is quiet before the outage, s.
const QUIET_S: u64 = 900;
/// A drain that takes longer than this is none, s.
const DRAIN_S: u64 = 7_200;

/// Ages of readings, and what the drain was.
#[derive(Clone, Copy, Debug)]
pub struct Haste {
    /// 99th percentile of the age of a reading on the quiet day, ms.
    pub idle_ms: u64,
    /// The same of readings taken during the drain.
    pub drain_ms: u64,
    /// Readings taken during the drain.
    pub readings: usize,
    /// Batches that waited when the link was back.
    pub backlog: u64,
    /// How long they took, s.
    pub seconds: u64,
}

impl World {
    /// A quiet day, an outage of that many seconds, and the drain, on a link of that many bytes a second.
    ///
    /// # Panics
    /// If the backlog does not drain within two hours, or anything else is not as it must be.
    #[must_use]
    pub fn haste(seed: u64, outage_s: u64, bytes_per_s: u64, oldest_first: bool) -> Haste {
        let mut faults = Faults::default();
        faults.strange.oldest_first = oldest_first;
        let mut world = Self::new(seed, faults);
        world.line.rate = Some(bytes_per_s);
        world.begin();
        // The first minute has the catalogue, and the windows that were cut short.
        world.live_until(60 * SECOND);
        world.ages = Some(Vec::new());
        world.live_until(QUIET_S * SECOND);
        let idle = world.ages.replace(Vec::new()).unwrap_or_default();
        world.line.down = true;
        world.cut(true);
        world.live_until((QUIET_S + outage_s) * SECOND);
        world.line.down = false;
        let mut second = QUIET_S + outage_s;
        let mut next = |world: &mut Self| {
            second += 1;
            assert!(second < QUIET_S + outage_s + DRAIN_S, "the backlog does not drain");
            world.live_until(second * SECOND);
        };
        while world.line.session.is_none() {
            next(&mut world);
        }
        let (back_ms, backlog) = (world.clock.true_ms(), world.backlog());
        while world.backlog() > 20 {
            next(&mut world);
        }
        let end_ms = world.clock.true_ms();
        // What was taken last is on its way.
        for _ in 0..30 {
            next(&mut world);
        }
        let ages = world.ages.take().unwrap_or_default();
        let drain: Vec<(i64, u64)> = ages.into_iter().filter(|(at, _)| (back_ms..end_ms).contains(at)).collect();
        Haste {
            idle_ms: p99(&idle),
            drain_ms: p99(&drain),
            readings: drain.len(),
            backlog,
            seconds: (end_ms - back_ms).unsigned_abs() / 1_000,
        }
    }

    fn backlog(&self) -> u64 {
        self.agent.as_ref().map_or(0, |agent| agent.spool().backlog())
    }

    /// How old the readings of a batch are at its commit. Summaries bear the start of their window: they do not count.
    pub(super) fn note_ages(&mut self, batch: &NewBatch) {
        let now = self.clock.true_ms();
        let Some(ages) = &mut self.ages else { return };
        let points = &batch.delivery.catalog.points;
        for reading in batch.delivery.batch.readings().filter(|reading| points[&reading.point].statistic.is_empty()) {
            ages.push((reading.at_ms, (now - reading.at_ms).unsigned_abs()));
        }
    }
}

fn p99(ages: &[(i64, u64)]) -> u64 {
    let mut ages: Vec<u64> = ages.iter().map(|(_, age)| *age).collect();
    ages.sort_unstable();
    ages.get(ages.len() * 99 / 100).copied().unwrap_or(0)
}
