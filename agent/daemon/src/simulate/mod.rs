//! `tributary simulate`: the configured devices as Modbus slaves, for factory tests without hardware.
//!
//! ```text
//! configuration ─▶ image.rs: registers of each unit ◀─ motion.rs: values that move, or replay.rs: from a file
//!                       ▲ question, answer ▼
//!                  serve.rs: Modbus TCP, serial frames over TCP, a serial line ─▶ fault.rs: what goes wrong on purpose
//! ```
//! Everything but `serve.rs` is pure: values follow from a seed and the time since the start. Registers between points
//! are 0, as on most devices, or refused (`--gaps refuse`); those outside are refused with exception 2.
//!
//! tokio-modbus's server was turned down: it serves whole requests, so nothing could be said wrongly on purpose.

pub mod fault;
pub mod image;
pub mod motion;
pub mod replay;
pub mod serve;
