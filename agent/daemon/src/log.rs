//! Log lines to stderr, and how many of them: never more than 1 MB a day.
//!
//! Who logs says a thing once and then counts. That bounds a fault that stays, not one that comes and goes: a bus that
//! fails at every other poll is well again in between. So all lines draw on one allowance here. What it does not cover is
//! left out and counted, and the count is said with the next line that fits. Warnings, which come in storms, leave a quarter
//! of it to what is rarer: errors, and that the agent starts and ends. `log = "debug"` is not limited: who asks for it
//! wants it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FileType;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tributary_protocols::time::{Clock, Mono};

use crate::clock::SystemClock;

/// Bytes that may be said at once; what is left of 1 MB comes back over the day.
const AT_ONCE: u64 = 100_000;
/// A byte more after so many ns.
const A_BYTE: u64 = 24 * 60 * 60 * 1_000_000_000 / (1_000_000 - AT_ONCE);
/// What warnings may not use. Half of it is for errors alone.
const RESERVE: u64 = AT_ONCE / 4;

/// Lines go to stderr. A socket there is journald's, which stamps each line itself; anything else gets stamps from us.
pub fn to_stderr(directives: &str) {
    // The directives were parsed when the configuration was checked.
    let targets: Targets = directives.parse().unwrap_or_default();
    let stderr = io::stderr();
    let journal =
        rustix::fs::fstat(&stderr).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    let lines = tracing_subscriber::fmt::layer().with_ansi(stderr.is_terminal()).with_writer(Stderr::default());
    let registry = tracing_subscriber::registry().with(targets);
    // A second call, in a process that logs already, changes nothing.
    let _ = if journal { registry.with(lines.without_time()).try_init() } else { registry.with(lines).try_init() };
}

#[derive(Default)]
struct Stderr {
    clock: SystemClock,
    allowance: Mutex<Allowance>,
}

/// One event's way out.
struct Line<'a> {
    to: &'a Stderr,
    level: Level,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, level: Level::ERROR }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { to: self, level: *meta.level() }
    }
}

impl Write for Line<'_> {
    /// A whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut allowance = self.to.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = allowance.grant(self.to.clock.mono(), self.level, line.len()) {
            let mut stderr = io::stderr().lock();
            if left_out > 0 {
                writeln!(stderr, "{left_out} lines were left out: the log is limited to 1 MB a day")?;
            }
            stderr.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Allowance {
    bytes: u64,
    /// Up to when it was filled.
    at: Mono,
    left_out: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { bytes: AT_ONCE, at: Mono::ZERO, left_out: 0 }
    }
}

impl Allowance {
    /// Whether a line of that length may be said now; then how many were left out before it.
    fn grant(&mut self, now: Mono, level: Level, len: usize) -> Option<u64> {
        if level > Level::INFO {
            return Some(0);
        }
        let earned = now.as_nanos().saturating_sub(self.at.as_nanos()) / A_BYTE;
        self.bytes = AT_ONCE.min(self.bytes.saturating_add(earned));
        self.at = Mono::from_nanos(self.at.as_nanos() + earned * A_BYTE);
        // With the line that says how many.
        let cost = len as u64 + if self.left_out > 0 { 80 } else { 0 };
        let kept = match level {
            Level::ERROR => 0,
            Level::INFO => RESERVE / 2,
            _ => RESERVE,
        };
        if self.bytes < cost + kept {
            self.left_out += 1;
            return None;
        }
        self.bytes -= cost;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn a_day_of_any_storm_is_1_mb_and_errors_get_through() {
        let mut allowance = Allowance::default();
        let (mut said, mut told, mut left_out) = (0, 0, 0);
        for ms in (0..DAY_MS).step_by(50) {
            let now = Mono::from_millis(ms);
            match allowance.grant(now, Level::WARN, 150) {
                Some(before) => (said, told) = (said + 150 + if before > 0 { 80 } else { 0 }, told + before),
                None => left_out += 1,
            }
        }
        assert!((950_000 - RESERVE..=1_000_000).contains(&said), "{said} bytes");
        assert!(told <= left_out && told + 1_000 > left_out, "{told} of {left_out} are told");
        assert!(allowance.grant(Mono::from_millis(DAY_MS), Level::ERROR, 200).is_some());
        assert_eq!(allowance.grant(Mono::from_millis(DAY_MS), Level::DEBUG, 1 << 20), Some(0));
    }

    #[test]
    fn a_quiet_agent_has_it_all() {
        let mut allowance = Allowance::default();
        for hour in 0..100 {
            for _ in 0..20 {
                assert_eq!(allowance.grant(Mono::from_millis(hour * 3_600_000), Level::INFO, 200), Some(0));
            }
        }
    }
}
