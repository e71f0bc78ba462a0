//! Modbus over TCP: functions 1 to 4, read only. README.md tells what is supported and why it is built this way.
//!
//! On the line: [`config`] → [`plan`] before the start; then [`bus`] says when to ask what, the driver asks,
//! [`frame`] checks the answer and [`decode`] turns it into samples. Only the driver touches a socket.

pub mod bus;
pub mod config;
pub mod decode;
#[cfg(feature = "io")]
pub mod driver;
pub mod encode;
pub mod forecast;
pub mod frame;
mod patience;
pub mod plan;
pub mod register;
mod resolve;
mod slot;
pub mod status;
