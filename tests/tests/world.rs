//! The pipeline in 200 simulated worlds of more than an hour each (`src/world.rs`), 25 to a test.
//!
//! A world that fails prints its seed: `TRIBUTARY_SEED=n cargo test -p tributary-tests --test world one` plays it again,
//! and `TRIBUTARY_TRACE=1` beside it prints every event. Seeds that showed a fault stay in [`KEPT`] for ever.

use tributary_tests::world::{Faults, World};

/// Seeds that once failed.
const KEPT: [u64; 10] = [8, 19, 41, 55, 60, 62, 65, 70, 178, 351];

fn live(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let world = std::panic::catch_unwind(|| World::run(seed));
        match world {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(panic) => {
                eprintln!("TRIBUTARY_SEED={seed} failed, with {:?}", Faults::of(seed));
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn one() {
    live(std::iter::once(tributary_tests::seed(0)));
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

#[test]
fn worlds_0() {
    live(0..25);
}

#[test]
fn worlds_1() {
    live(25..50);
}

#[test]
fn worlds_2() {
    live(50..75);
}

#[test]
fn worlds_3() {
    live(75..100);
}

#[test]
fn worlds_4() {
    live(100..125);
}

#[test]
fn worlds_5() {
    live(125..150);
}

#[test]
fn worlds_6() {
    live(150..175);
}

#[test]
fn worlds_7() {
    live(175..200);
}
