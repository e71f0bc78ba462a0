//! The centre's side of Tributary: batches from MQTT into SQLite or PostgreSQL, acknowledged after COMMIT.
//!
//! ```text
//! broker → topic → intake → ingest → ledger → store → Ack
//! ```
//!
//! | module | says | kind |
//! |---|---|---|
//! | [`topic`] | whose message it is | pure |
//! | [`intake`], [`ingest`], [`catalog`] | message → batch, by its catalogue, or what becomes of it instead | pure |
//! | [`ledger`], [`contiguity`], [`ranges`], [`agent`] | what is new, doubled, forked, lost; what the Ack says | pure |
//! | [`rows`], [`scale`] | batch → rows of the database | pure |
//! | [`store`] | one transaction a group: SQLite, PostgreSQL, memory | I/O |
//! | `mqtt`, `tls`, `receive` | broker, certificates, the order of it all | I/O |
//!
//! All that is remembered is in the database, under the agent's row lock. So receivers are without state: any number share
//! one database, any of them may be killed at any moment, and what was not committed is simply sent again.
//!
//! The pure modules hold every decision, so a simulation drives [`intake::Intake`] and [`store::Memory`] and gets
//! the receiver's behaviour without broker or disk.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod catalog;
mod clock;
pub mod config;
pub mod contiguity;
pub mod ingest;
pub mod intake;
pub mod ledger;
mod mqtt;
pub mod ranges;
mod receive;
pub mod rows;
pub mod scale;
pub mod store;
mod tls;
pub mod topic;

pub use config::{Config, ConfigError};
pub use receive::{RunError, run};
