//! A fleet comes back after an outage of half an hour without a storm of connections (contract rule 19).
//!
//! *Mean*: agents divided by the cap of the back-off, in connects a second: what a fleet spread evenly over that window
//! would do. *Peak*: the greatest number of connects in any whole second from the end of the outage on. One fleet of 200
//! makes 0.7 connects a second, of which any second has 3 by chance alone; so the peak is taken of 50 fleets together,
//! second by second, and divided by 50.

use std::time::Duration;

use fastrand::Rng;
use tributary_core::batch;
use tributary_core::model::Model;
use tributary_core::pipeline::{Config, Now, Output, Pipeline};
use tributary_core::spool::{self, WhenFull};
use tributary_core::store::Recovered;
use tributary_core::uplink::{self, AckMode, Order};
use tributary_protocols::time::{Mono, Wall};

const AGENTS: usize = 200;
const FLEETS: usize = 50;
const OUTAGE: Duration = Duration::from_secs(30 * 60);
const CAP: Duration = Duration::from_secs(300);

/// When the agent of this seed connects, after the end of the outage; and how often it tried in vain.
fn comes_back(seed: u64) -> (Duration, u32) {
    let now = |mono: Mono| Now { mono, wall: Wall(1_800_000_000_000) };
    let config = Config {
        batch: batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 * 1024 },
        spool: spool::Config { max_disk: 1 << 28, commit: Duration::from_secs(1), when_full: WhenFull::DropOldest },
        uplink: uplink::Config {
            ack: AckMode::Receiver,
            order: Order::LiveFirst,
            reconnect_max: CAP,
            window_batches: 16,
            window_bytes: 64 * 1024,
            backlog_rate: None,
        },
        version: "0".into(),
        config_sha256: String::new(),
        boot_id: u128::from(seed).to_le_bytes(),
        seed,
    };
    let (mut at, mut tries) = (Mono::ZERO, 0);
    let mut agent = Pipeline::new(config, Model::default(), Recovered::default(), now(at)).expect("nothing to build");
    loop {
        while let Some(output) = agent.poll(now(at)) {
            if let Output::Connect { .. } = output {
                let elapsed = Duration::from_nanos(at.as_nanos());
                if elapsed >= OUTAGE {
                    return (elapsed - OUTAGE, tries);
                }
                tries += 1;
                agent.handle_disconnected(now(at));
            }
        }
        at = agent.next_deadline().expect("it will try again").max(at);
    }
}

#[test]
fn a_fleet_comes_back_without_a_storm() {
    let seed = tributary_tests::seed(19);
    let mut rng = Rng::with_seed(seed);
    let window = usize::try_from(CAP.as_secs()).expect("small");
    let (mut together, mut worst, mut tries) = (vec![0_u32; window + 1], 0, 0);
    for _ in 0..FLEETS {
        let mut fleet = vec![0_u32; window + 1];
        for _ in 0..AGENTS {
            let (after, tried) = comes_back(rng.u64(..));
            assert!(after <= CAP, "an agent waits {after:?}");
            fleet[usize::try_from(after.as_secs()).expect("small")] += 1;
            tries += tried;
        }
        worst = worst.max(fleet.iter().copied().max().unwrap_or(0));
        together.iter_mut().zip(fleet).for_each(|(sum, one)| *sum += one);
    }
    let mean = AGENTS as f64 / CAP.as_secs_f64();
    let peak = f64::from(together.into_iter().max().unwrap_or(0)) / FLEETS as f64;
    let tries = f64::from(tries) / (AGENTS * FLEETS) as f64;
    println!("mean {mean:.2}/s, peak {peak:.2}/s, most of one fleet in a second {worst}, {tries:.1} tries in vain");
    assert!(peak <= 3.0 * mean, "{peak} connects in a second, {mean} in the mean");
    assert!(tries > 5.0 && tries < 40.0, "{tries} tries in half an hour");
}
