//! A spool with a week of readings in it, made in seconds: the real pipeline over the real store, at simulated time.
//!
//! Every point of the configuration is polled at each tick, ends with the machine's present, and nobody is there to take
//! anything. The process that wrote it is gone without a stop, as after a power cut: what the agent then finds is what it
//! would find. Batches are as large as they get, so that the disk is filled in seconds.

use std::path::Path;
use std::time::Duration;

use tributary::clock::SystemClock;
use tributary::config::{Occasion, load};
use tributary::store::{Reserve, SledStore};
use tributary_core::batch;
use tributary_core::pipeline::{Config, Now, Output, Pipeline};
use tributary_core::spool;
use tributary_core::store::{Store, Usage};
use tributary_proto::pb;
use tributary_protocols::reading::{Outcome, Poll, Sample};
use tributary_protocols::time::{Clock, Mono, Wall};

use crate::settings;

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Readings in it.
    pub readings: u64,
    /// Batches.
    pub batches: u64,
    /// What the store says of the disk.
    pub usage: Usage,
}

/// Fills the spool of the configuration in `file`: so many polls of all its points, evenly over `span`. All points must be
/// floats. Stops early when the quota is nearly reached, so that nothing is dropped.
///
/// # Panics
/// If the configuration is not sound, or the disk refuses.
#[must_use]
pub fn fill(file: &Path, ticks: u32, span: Duration) -> Backlog {
    let (config, report) = load(file, Occasion::Run);
    let config = config.unwrap_or_else(|| panic!("{}", report.render()));
    let mut store = SledStore::open(&config.agent.state_dir.join("spool"), Reserve::default()).expect("a spool");
    let found = store.recover().expect("it can be read");
    let clock = SystemClock::new();
    let (wall, every) = (clock.wall(), span / ticks);
    let at = |tick: u32| Now {
        mono: Mono::from_millis(1_000) + every * tick,
        wall: Wall(wall.0 - i64::try_from((every * (ticks - tick)).as_millis()).expect("a week")),
    };
    let quota = config.spool.core().max_disk;
    let core = Config {
        batch: batch::Config { max_age: Duration::from_secs(3_600), ..config.batch.core() },
        spool: spool::Config { commit: Duration::from_secs(3_600), ..config.spool.core() },
        uplink: config.uplink.core(),
        ..settings::usual(1)
    };
    let requests = config.model.requests.clone();
    let mut pipeline = Pipeline::new(core, config.model, found, at(0)).expect("a sound model");
    pipeline.handle_clock(at(0), pb::TimeQuality::Synced, 0);
    let mut rng = fastrand::Rng::with_seed(1);
    for tick in 0..ticks {
        let now = at(tick);
        for (request, polled) in (0..).zip(&requests) {
            let sample = |_| Sample::good(u64::from((20.0 + f32::from(rng.u16(..1_000)) / 100.0).to_bits()));
            let outcome = Outcome::Samples(polled.points.iter().map(sample).collect());
            pipeline.handle_poll(now, &Poll { request, at: now.wall, outcome });
            act(&mut pipeline, &mut store, now);
        }
        if pipeline.spool().usage().disk_bytes + (32 << 20) > quota {
            break;
        }
    }
    // Everything becomes durable, but no stop is noted.
    // Two hours later the last batch is old and committed, but no stop was noted.
    let later = Now { mono: at(ticks).mono + Duration::from_secs(7_200), ..at(ticks) };
    act(&mut pipeline, &mut store, later);
    Backlog {
        readings: pipeline.ledger().admitted,
        batches: pipeline.spool().backlog(),
        usage: pipeline.spool().usage(),
    }
}

fn act(pipeline: &mut Pipeline, store: &mut SledStore, now: Now) {
    while let Some(output) = pipeline.poll(now) {
        match output {
            Output::Store(command) => {
                let reply = command.run(store);
                pipeline.handle_store(now, reply);
            }
            Output::Connect { .. } => pipeline.handle_disconnected(now),
            _ => {}
        }
    }
}
