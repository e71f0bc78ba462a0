//! A fleet comes back after an outage of half an hour without a storm of connections (contract rule 19).
//!
//! *Mean*: agents divided by the cap of the back-off, in connects a second: what a fleet spread evenly over that window
//! would do. One fleet of 200 makes 0.7 connects a second, of which any second has 3 by chance alone. So the *peak* of one
//! fleet is that of any 30 seconds, and the peak of a second is taken of 50 fleets together and divided by 50.

use std::time::Duration;

use fastrand::Rng;
use tributary_core::model::Model;
use tributary_core::pipeline::{Now, Output, Pipeline};
use tributary_core::store::Recovered;
use tributary_protocols::time::{Mono, Wall};
use tributary_tests::settings;

const AGENTS: usize = 200;
const FLEETS: usize = 50;
const OUTAGE: Duration = Duration::from_secs(30 * 60);
const CAP: Duration = Duration::from_secs(300);

/// When the agent of this seed connects, after the end of the outage; and how often it tried in vain.
fn comes_back(seed: u64) -> (Duration, u32) {
    let now = |mono: Mono| Now { mono, wall: Wall(1_800_000_000_000) };
    let (mut at, mut tries) = (Mono::ZERO, 0);
    let mut agent = Pipeline::new(settings::usual(seed), Model::default(), Recovered::default(), now(at))
        .expect("nothing to build");
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
    let (mut together, mut worst, mut tries) = (vec![0_u32; window + 1], 0_u32, 0);
    for _ in 0..FLEETS {
        let mut fleet = vec![0_u32; window + 1];
        for _ in 0..AGENTS {
            let (after, tried) = comes_back(rng.u64(..));
            assert!(after <= CAP, "an agent waits {after:?}");
            fleet[usize::try_from(after.as_secs()).expect("small")] += 1;
            tries += tried;
        }
        worst = worst.max(fleet.windows(30).map(|seconds| seconds.iter().sum()).max().unwrap_or(0));
        together.iter_mut().zip(fleet).for_each(|(sum, one)| *sum += one);
    }
    let mean = AGENTS as f64 / CAP.as_secs_f64();
    let peak = f64::from(together.into_iter().max().unwrap_or(0)) / FLEETS as f64;
    let tries = f64::from(tries) / (AGENTS * FLEETS) as f64;
    let worst = f64::from(worst) / 30.0;
    println!(
        "mean {mean:.2}/s, peak of a second {peak:.2}/s, worst fleet's 30 s {worst:.2}/s, {tries:.1} tries in vain"
    );
    assert!(worst <= 3.0 * mean, "{worst} connects a second in 30 seconds of one fleet, {mean} in the mean");
    assert!(peak <= 3.0 * mean, "{peak} connects in a second, {mean} in the mean");
    assert!(tries > 5.0 && tries < 40.0, "{tries} tries in half an hour");
}
