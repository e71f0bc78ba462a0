//! The database: one transaction a group, and the Acks only after its COMMIT (contract rule 4).
//!
//! Both stores do the same: lock the agents' rows in the order of their keys, load each [`Book`](crate::ledger::Book),
//! [`settle`](crate::ledger::settle) it, write what comes out, commit. The lock makes any number of receivers agree; the
//! order keeps them from waiting for each other in a circle. The ledger knows every batch by (site, agent, epoch, seq), so
//! whatever is delivered again after a crash, or after a COMMIT whose answer was lost, is a duplicate and harmless.
//!
//! [`Memory`] is the same without a disk, for simulations.
//!
//! An enum and a match: there are two databases, and a third would be a file and an arm.

mod memory;
mod postgres;
mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use tributary_proto::pb;

use crate::ledger::Arrival;
use crate::ranges::NotRanges;
use crate::topic::AgentKey;

pub use memory::Memory;
use postgres::Postgres;
use sqlite::Sqlite;

/// What came since the last transaction, by agent, in the order of their keys.
pub type Group = BTreeMap<AgentKey, Vec<Arrival>>;

/// Acks to send.
pub type Acks = Vec<(AgentKey, pb::Ack)>;

/// Which database.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// An SQLite file; it is made if it is not there.
    Sqlite(PathBuf),
    /// A PostgreSQL database (15 or later); the tables are made if they are not there. Its `Debug` hides the password.
    Postgres(Box<tokio_postgres::Config>),
}

/// A database that was asked for something and did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL said no, or is not there.
    #[error("PostgreSQL: {}", spelled_out(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// PostgreSQL took longer than that many seconds.
    #[error("PostgreSQL has not answered for {0} s")]
    Silent(u64),
    /// Someone changed a table by hand.
    #[error("table contiguity: {0}")]
    Ranges(#[from] NotRanges),
}

/// The library's own text says "db error" and no more: the server's answer is in its source.
fn spelled_out(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

impl StoreError {
    /// Whether it is about what was to be written, so that trying again is of no use. Everything else may pass: away, busy,
    /// full, locked.
    #[must_use]
    pub fn is_about_the_data(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
                use rusqlite::ErrorCode as Code;
                matches!(failure.code, Code::ConstraintViolation | Code::TooBig | Code::TypeMismatch)
            }
            // Classes 22 data exception, 23 integrity constraint violation, 54 program limit exceeded.
            Self::Postgres(error) => {
                error.code().is_some_and(|state| ["22", "23", "54"].iter().any(|class| state.code().starts_with(class)))
            }
            _ => false,
        }
    }
}

/// A database that is open, or that will be when it answers.
pub enum Store {
    /// SQLite.
    Sqlite(Box<Sqlite>),
    /// PostgreSQL.
    Postgres(Box<Postgres>),
}

impl Store {
    /// Opens an SQLite file; PostgreSQL is connected at the first use, and again after each failure.
    ///
    /// # Errors
    /// If the file cannot be opened, or is no database.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Ok(match config {
            StoreConfig::Sqlite(path) => Self::Sqlite(Box::new(Sqlite::open(path)?)),
            StoreConfig::Postgres(config) => Self::Postgres(Box::new(Postgres::new(config.as_ref().clone()))),
        })
    }

    /// Settles a group in one transaction and answers with the Acks that may now be sent; `now_ms` is the wall clock.
    ///
    /// # Errors
    /// Then nothing of the group is written, or all of it is and the answer was lost; either way it may be tried again.
    pub async fn commit(&mut self, group: &Group, now_ms: i64) -> Result<Acks, StoreError> {
        match self {
            Self::Sqlite(store) => store.commit(group, now_ms),
            Self::Postgres(store) => store.commit(group, now_ms).await,
        }
    }

    /// The newest catalogue of an epoch, as it came.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn catalog(&mut self, key: &AgentKey, epoch: u64) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Sqlite(store) => store.catalog(key, epoch),
            Self::Postgres(store) => store.catalog(key, epoch).await,
        }
    }

    /// All agents that are known.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn agents(&mut self) -> Result<Vec<AgentKey>, StoreError> {
        match self {
            Self::Sqlite(store) => store.agents(),
            Self::Postgres(store) => store.agents().await,
        }
    }
}

/// A count as the databases hold it: signed, and no count comes near the end.
fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// An epoch or a seq as the databases hold it: the same 64 bits, signed.
fn bits(number: u64) -> i64 {
    number.cast_signed()
}
