//! What the tests of the whole are made of: real peers, hostile peers, links that can be cut.
//!
//! Everything listens on loopback, on ports of its own; everything ends with the test that started it; chance comes from
//! seeds that are printed. `README.md` beside this folder says what each test shows and how to run one.

pub mod agent;
pub mod backlog;
pub mod broker;
pub mod disk;
pub mod evidence;
pub mod fuzz;
pub mod hostile_broker;
pub mod hostile_modbus;
pub mod hostile_receiver;
pub mod modbus_device;
pub mod pki;
pub mod postgres;
pub mod power;
pub mod process;
pub mod proxy;
pub mod settings;
pub mod shim;
pub mod store;
pub mod walk;
pub mod world;

/// The seed of a test: `TRIBUTARY_SEED`, which `tests/soak` sets anew each round, else the test's own. Printed, so that a
/// failure can be played again.
#[must_use]
pub fn seed(own: u64) -> u64 {
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(own);
    println!("TRIBUTARY_SEED={seed}");
    seed
}

/// How often something is done: what the environment variable says, else `usual`. `tests/soak` says more.
///
/// # Panics
/// If it is no number.
#[must_use]
pub fn count(variable: &str, usual: u64) -> u64 {
    std::env::var(variable)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
