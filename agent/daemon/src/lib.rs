//! The agent: everything of Tributary that touches the world.
//!
//! The pipeline is a pure value in `tributary-core`; here are the clock, the disk, the wires and the commands that
//! drive it. The binary is a thin `main`; the demo and the tests use this library.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod clock;
pub mod config;
pub mod enroll;
pub mod field;
pub mod import;
pub mod log;
pub mod machine;
pub mod memory;
pub mod mqtt;
pub mod notices;
pub mod run;
pub mod simulate;
pub mod socket;
pub mod status;
pub mod store;
pub mod tls;
