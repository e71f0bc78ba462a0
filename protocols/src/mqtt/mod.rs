//! MQTT devices: messages of a local broker become readings. README.md tells what is supported and why.
//!
//! On the line: [`config`] before the start; then the driver receives, and [`decode`] finds the points of a message and
//! reads their values. A message is acknowledged when its readings are durable (contract rule 23).

pub mod config;
pub mod decode;
#[cfg(feature = "io")]
pub mod driver;
mod payload;
mod resolve;
mod stamp;
mod topic;
