//! The pipeline as a pure value: it is told what happened and when, and answers what to do next.
//!
//! No I/O, no clock, no thread: time is an argument, sending and storing are values of [`Output`](pipeline::Output), and
//! chance is a seed. A thin shell (`agent/daemon`) or the simulated world (`tests`) does the rest.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod batch;
pub mod catalog;
pub mod filter;
pub mod intake;
pub mod ledger;
pub mod limits;
pub mod losses;
pub mod model;
pub mod pipeline;
pub mod record;
pub mod ring;
pub mod sets;
pub mod spool;
pub mod state;
pub mod store;
pub mod uplink;
pub mod window;
