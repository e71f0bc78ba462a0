//! The clocks of this machine: the one place that reads them, sees the wall clock step, and judges whether it is right.
//!
//! Everything else is handed [`Mono`] and [`Wall`] values; `clippy.toml` bans the calls elsewhere.
//!
//! **Steps.** A clock that is slewed stays within [`StepDetector::SLEW`] of the monotonic clock; what goes beyond is a
//! step. The two are compared at each look, once a second.
//!
//! **Quality.** The kernel knows whether its clock is disciplined, but tells only through `adjtimex`, which none of our
//! libraries wraps safely, our crates forbid unsafe code, and `ProtectClock=yes` of our own unit refuses. So the
//! evidence is what the clock's daemon leaves behind: a file that it renews while it is synchronised. systemd-timesyncd
//! renews `/run/systemd/timesync/synchronized` at each adjustment, at most 34 min apart; chrony and ntpd renew their
//! drift files about once an hour. Fresh evidence is SYNCED, evidence older than [`FRESH`] is HOLDOVER, none since boot
//! is UNSYNCED. Where the clock is kept otherwise (PTP, a hypervisor, chrony whose folder is closed to us),
//! `agent.time_sync` names another file, or says `"trust"`.
//!
//! Limits: at a cold start with chrony or ntpd up to an hour passes before the first evidence; until then readings are
//! UNSYNCED, which costs nothing but their word.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tributary_protocols::time::{Clock, Mono, Wall};

/// Evidence older than this is of a clock that drifts: timesyncd's longest pause five times over, chrony's three times.
pub const FRESH: Duration = Duration::from_secs(3 * 3600);

/// Files that the usual daemons renew while the clock is synchronised.
const USUAL: [&str; 5] = [
    "/run/systemd/timesync/synchronized",
    "/var/lib/chrony/chrony.drift",
    "/var/lib/chrony/drift",
    "/var/lib/ntpsec/ntp.drift",
    "/var/lib/ntp/ntp.drift",
];

/// The clocks of this machine. [`Mono`] counts from the making of the first value; copies share that start.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl SystemClock {
    /// A clock whose monotonic side starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The instant of a monotonic time, for timers of tokio; a time too far away to be one is a year away.
    #[must_use]
    pub fn instant(&self, at: Mono) -> Instant {
        let since = Duration::from_nanos(at.as_nanos());
        self.start.checked_add(since).unwrap_or_else(|| self.start + Duration::from_secs(366 * 86_400))
    }

    /// Both clocks at one moment: the thread may be put to sleep between two readings, so a pair whose readings lie
    /// more than 1 ms apart is read again, at most five times.
    #[must_use]
    pub fn both(&self) -> (Mono, Wall) {
        let mut before = self.mono();
        let mut wall = self.wall();
        for _ in 0..5 {
            let after = self.mono();
            if after.since(before) < Duration::from_millis(1) {
                break;
            }
            before = self.mono();
            wall = self.wall();
        }
        (before, wall)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    fn mono(&self) -> Mono {
        Mono::from_nanos(u64::try_from(Instant::now().duration_since(self.start).as_nanos()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall(&self) -> Wall {
        of_system(SystemTime::now())
    }
}

/// Milliseconds since 1970, negative before it, rounded down.
fn of_system(time: SystemTime) -> Wall {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Wall(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration() + Duration::from_nanos(999_999)),
    })
}

/// Sees the wall clock step, by comparing it with the monotonic clock between two looks. Pure.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepDetector {
    last: Option<(Mono, Wall)>,
}

impl StepDetector {
    /// The smallest step that is seen, whatever the time between two looks: a daemon slews what is less.
    pub const LEAST: Duration = Duration::from_millis(100);
    /// Slewing is at most a tenth of the time between two looks; chrony, the fastest, slews 83 ms a second.
    pub const SLEW: u32 = 10;

    /// A look at both clocks. Gives the offset in ms, new minus expected, if the wall clock stepped since the last.
    pub fn look(&mut self, mono: Mono, wall: Wall) -> Option<i64> {
        let (last_mono, last_wall) = self.last.replace((mono, wall))?;
        let elapsed = mono.since(last_mono);
        let expected = last_wall.0.saturating_add(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX));
        let offset = wall.0.saturating_sub(expected);
        let tolerance = Self::LEAST.max(elapsed / Self::SLEW).as_millis();
        (u128::from(offset.unsigned_abs()) > tolerance).then_some(offset)
    }
}

/// Whether the wall clock can be believed (edge.proto, `TimeQuality`; what the source set is not the clock's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeQuality {
    /// Disciplined.
    Synced,
    /// Was disciplined, now drifts.
    Holdover,
    /// Never disciplined since boot.
    #[default]
    Unsynced,
}

/// Looks for the evidence that the clock is disciplined.
#[derive(Clone, Debug)]
pub struct QualityWatch {
    trust: bool,
    files: Vec<PathBuf>,
}

impl QualityWatch {
    /// `time_sync` of the configuration: `"auto"`, `"trust"`, or a file.
    #[must_use]
    pub fn new(time_sync: &str) -> Self {
        let files = match time_sync {
            "trust" => Vec::new(),
            "auto" => USUAL.iter().map(PathBuf::from).collect(),
            file => vec![file.into()],
        };
        Self { trust: time_sync == "trust", files }
    }

    /// The quality now. Some `stat` calls: for a look a second or fewer, not for each reading.
    #[must_use]
    pub fn look(&self, now: Wall) -> TimeQuality {
        if self.trust {
            return TimeQuality::Synced;
        }
        let newest = self.files.iter().filter_map(|file| modified(file)).max();
        judge(newest, now, uptime())
    }
}

fn modified(file: &Path) -> Option<Wall> {
    std::fs::metadata(file).and_then(|meta| meta.modified()).ok().map(of_system)
}

/// Time since boot, sleep included.
fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
}

/// What a file of that age says. Evidence from before the boot is none; evidence from the future, by more than a minute,
/// was left by another idea of the time.
fn judge(evidence: Option<Wall>, now: Wall, uptime: Duration) -> TimeQuality {
    let Some(evidence) = evidence else { return TimeQuality::Unsynced };
    let age = now.0.saturating_sub(evidence.0);
    if age < -60_000 || u128::from(age.max(0).unsigned_abs()) > uptime.as_millis() {
        TimeQuality::Unsynced
    } else if u128::from(age.max(0).unsigned_abs()) > FRESH.as_millis() {
        TimeQuality::Holdover
    } else {
        TimeQuality::Synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_from_slewing() {
        let mut detector = StepDetector::default();
        let at = |ms: u64| Mono::from_millis(ms);
        assert_eq!(detector.look(at(0), Wall(1_000_000)), None, "the first look has nothing to compare");
        assert_eq!(detector.look(at(1_000), Wall(1_001_000)), None);
        assert_eq!(detector.look(at(2_000), Wall(1_002_083)), None, "chrony's fastest slew");
        assert_eq!(detector.look(at(3_000), Wall(1_003_000)), None, "and back");
        assert_eq!(detector.look(at(4_000), Wall(1_003_850)), Some(-150));
        assert_eq!(detector.look(at(5_000), Wall(1_004_850)), None, "a step is told once");
        assert_eq!(detector.look(at(6_000), Wall(1_700_000_000_000)), Some(1_700_000_000_000 - 1_005_850));
        assert_eq!(detector.look(at(7_000), Wall(i64::MIN)), Some(i64::MIN));
        assert_eq!(
            detector.look(at(1_000), Wall(i64::MAX)),
            Some(i64::MAX),
            "a monotonic clock that is not does no harm"
        );
    }

    #[test]
    fn a_long_pause_between_looks_allows_more_slewing() {
        let mut detector = StepDetector::default();
        detector.look(Mono::ZERO, Wall(0));
        assert_eq!(detector.look(Mono::from_millis(60_000), Wall(65_000)), None);
        assert_eq!(detector.look(Mono::from_millis(120_000), Wall(132_000)), Some(7_000));
    }

    #[test]
    fn evidence_is_judged_by_its_age() {
        let now = Wall(1_700_000_000_000);
        let ago = |secs: i64| Some(Wall(now.0 - secs * 1_000));
        let day = Duration::from_secs(86_400);
        assert_eq!(judge(None, now, day), TimeQuality::Unsynced);
        assert_eq!(judge(ago(0), now, day), TimeQuality::Synced);
        assert_eq!(judge(ago(3 * 3600), now, day), TimeQuality::Synced);
        assert_eq!(judge(ago(3 * 3600 + 1), now, day), TimeQuality::Holdover);
        assert_eq!(judge(ago(86_401), now, day), TimeQuality::Unsynced, "left from before the boot");
        assert_eq!(judge(ago(-59), now, day), TimeQuality::Synced);
        assert_eq!(judge(ago(-3600), now, day), TimeQuality::Unsynced, "from the future");
        assert_eq!(judge(Some(Wall(i64::MIN)), Wall(i64::MAX), day), TimeQuality::Unsynced);
    }

    #[test]
    fn a_named_file_is_evidence_while_it_is_fresh() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let clock = SystemClock::new();
        let watch = QualityWatch::new(&file.path().display().to_string());
        // A machine that has just booted has an uptime above zero by now.
        assert_eq!(watch.look(clock.wall()), TimeQuality::Synced);
        assert_eq!(watch.look(Wall(clock.wall().0 - 3_600_000)), TimeQuality::Unsynced);
        assert_eq!(QualityWatch::new("/nowhere/at/all").look(clock.wall()), TimeQuality::Unsynced);
        assert_eq!(QualityWatch::new("trust").look(clock.wall()), TimeQuality::Synced);
    }

    #[test]
    fn both_clocks_run() {
        let clock = SystemClock::new();
        let (mono, wall) = clock.both();
        assert!(wall.0 > 1_600_000_000_000, "{wall:?}");
        assert!(clock.mono() >= mono);
        assert!(clock.instant(Mono::MAX) > clock.instant(mono));
        assert_eq!(of_system(SystemTime::UNIX_EPOCH - Duration::from_micros(1)), Wall(-1));
    }
}
