//! The schedule of a bus against whatever a line can bring, on a simulated clock: values are true, every due poll is
//! traced exactly once, and what is ill costs only itself. `plant.rs` is the other side.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod beside;
mod faults;
mod forecast;
mod plant;
mod refusals;
mod serial;
