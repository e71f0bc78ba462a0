//! The pipeline in 200 simulated worlds of more than an hour each (`src/world.rs`), 25 to a test; 20,000 in `tests/soak`.
//!
//! A world that fails prints its seed: `TRIBUTARY_SEED=n cargo test -p tributary-tests --test world one` plays it again,
//! and `TRIBUTARY_TRACE=1` beside it prints every event. Seeds that showed a fault stay in [`KEPT`] for ever.

use tributary_tests::world::{Faults, World};

/// Seeds that once failed.
const KEPT: [u64; 23] = [
    8, 19, 41, 55, 60, 62, 65, 70, 178, 351, 1_623, 2_515, 2_739, 3_017, 3_509, 3_653, 4_820, 6_076, 7_545, 8_323,
    12_574, 13_248, 17_106,
];

fn live(seeds: impl Iterator<Item = u64>) {
    live_with(seeds, Faults::of);
}

fn live_with(seeds: impl Iterator<Item = u64>, faults: impl Fn(u64) -> Faults) {
    let mut failed = Vec::new();
    for seed in seeds {
        let faults = faults(seed);
        match std::panic::catch_unwind(|| World::run_with(seed, faults)) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(_) => {
                eprintln!("TRIBUTARY_SEED={seed} failed, with {faults:?}");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "worlds that failed: {failed:?}");
}

#[test]
fn one() {
    live(std::iter::once(tributary_tests::seed(0)));
}

#[test]
fn one_by_broker() {
    live_with(std::iter::once(tributary_tests::seed(0)), Faults::by_broker);
}

/// Where the PUBACK frees a batch, the broker has all that the agent says is delivered, whatever becomes of PUBACKs.
#[test]
fn by_broker_0() {
    live_with(4..30, Faults::by_broker);
}

#[test]
fn by_broker_1() {
    live_with(30..56, Faults::by_broker);
}

/// Readings taken while an hour's backlog drains are hardly older at the centre than on a quiet day; by age they would
/// wait for all of it.
#[test]
fn new_readings_go_before_the_backlog() {
    let seed = tributary_tests::seed(0);
    for rate in [16 << 10, 256 << 10] {
        let haste = World::haste(seed, 3_600, rate, false);
        println!("{} KB/s: {haste:?}", rate >> 10);
        assert!(haste.readings >= 200, "{haste:?}");
        assert!(haste.drain_ms <= 2 * haste.idle_ms, "at {rate} B/s: {haste:?}");
    }
    let by_age = World::haste(seed, 3_600, 256 << 10, true);
    println!("oldest first: {by_age:?}");
    assert!(by_age.drain_ms > 4 * by_age.idle_ms, "the measure does not see what it should: {by_age:?}");
}

#[test]
fn kept() {
    live(KEPT.into_iter());
}

/// Without faults every glitch is told of, and that the counter rolls over and is reset.
#[test]
fn counters_are_told_apart() {
    let [rollovers, resets, rejected] = World::run_with(tributary_tests::seed(0), Faults::default()).counted;
    assert_eq!((rollovers, resets), (1, 1), "{rejected} rejected");
    assert!((20..=30).contains(&rejected), "{rejected} rejected");
}

/// An eighth of all worlds: `TRIBUTARY_WORLDS` of them, 200 unless told.
fn eighth(n: u64) {
    let worlds = tributary_tests::count("TRIBUTARY_WORLDS", 200);
    live(n * worlds / 8..(n + 1) * worlds / 8);
}

#[test]
fn worlds_0() {
    eighth(0);
}

#[test]
fn worlds_1() {
    eighth(1);
}

#[test]
fn worlds_2() {
    eighth(2);
}

#[test]
fn worlds_3() {
    eighth(3);
}

#[test]
fn worlds_4() {
    eighth(4);
}

#[test]
fn worlds_5() {
    eighth(5);
}

#[test]
fn worlds_6() {
    eighth(6);
}

#[test]
fn worlds_7() {
    eighth(7);
}
