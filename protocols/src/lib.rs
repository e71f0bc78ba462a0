//! What talks to devices, and the words in which it speaks to the rest: reading, status, stamp.
//!
//! Pure and `no_std` by default; the feature `io` adds the drivers that open sockets. One folder a protocol, each with
//! its `README.md`, `sample.toml` and `testcases/`.
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "io"))]
extern crate std;

mod backoff;
mod endpoint;
pub mod fault;
pub mod modbus;
pub mod mqtt;
pub mod number;
pub mod point;
pub mod reading;
pub mod time;
pub mod units;
pub mod value;

/// Collects into a map or set one by one. `collect` sorts first, by a sort made anew for each type: 6 KB of code, which a
/// gateway stores and loads to order a dozen names once.
pub fn gather<C: Default + Extend<T>, T>(items: impl IntoIterator<Item = T>) -> C {
    let mut gathered = C::default();
    gathered.extend(items);
    gathered
}
