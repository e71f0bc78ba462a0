//! What the receiver's database says in the end, and what must be true of it.
//!
//! The device counts its polls in a register ([`Registers::Counting`](crate::modbus_device::Registers), or the pymodbus
//! peer), so every poll has a value of its own: a value that is there twice is a double, one that is missing was lost, and
//! must be in a reported loss. The same SQL serves PostgreSQL and SQLite: the names of the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::OpenFlags;

use crate::process::{PATIENCE, eventually};

/// Where the evidence is.
#[derive(Debug)]
pub enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(tokio_postgres::Client),
}

/// One reading of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// ms since 1970 UTC.
    pub at_ms: i64,
    /// A code of `pb::Status`.
    pub status: i64,
    /// The raw integer; `None` without a value.
    pub value: Option<i64>,
}

/// What was said to be lost of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In lower case, as the interface has it.
    pub reason: String,
    /// First stamp.
    pub from_ms: i64,
    /// End of the span; 0 = unknown.
    pub to_ms: i64,
    /// How many.
    pub readings: i64,
}

/// A cell of a result.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Int(i64),
    Text(String),
}

impl Cell {
    fn int(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }
}

/// Something the database says that must not be, or a failure to ask it.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

impl Database {
    /// The file of a receiver.
    #[must_use]
    pub fn sqlite(path: &Path) -> Self {
        Self::Sqlite(path.to_path_buf())
    }

    /// Asks; every column is cast to a 64-bit integer or text by the query.
    async fn ask(&self, sql: &str) -> Result<Vec<Vec<Cell>>, Fault> {
        match self {
            Self::Sqlite(path) => {
                let connection = rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                connection.busy_timeout(Duration::from_secs(5))?;
                let mut statement = connection.prepare(sql)?;
                let columns = statement.column_count();
                let rows = statement.query_map([], |row| {
                    (0..columns)
                        .map(|at| {
                            Ok(match row.get_ref(at)? {
                                rusqlite::types::ValueRef::Integer(value) => Cell::Int(value),
                                rusqlite::types::ValueRef::Text(text) => {
                                    Cell::Text(String::from_utf8_lossy(text).into())
                                }
                                _ => Cell::Null,
                            })
                        })
                        .collect()
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            }
            Self::Postgres(client) => {
                let rows = client.query(sql, &[]).await?;
                let cell = |row: &tokio_postgres::Row, at: usize| match row.try_get::<_, Option<i64>>(at) {
                    Ok(value) => Ok(value.map_or(Cell::Null, Cell::Int)),
                    Err(_) => row.try_get::<_, Option<String>>(at).map(|text| text.map_or(Cell::Null, Cell::Text)),
                };
                let cells = |row| (0..rows[0].len()).map(|at| cell(row, at)).collect::<Result<Vec<_>, _>>();
                Ok(rows.iter().map(cells).collect::<Result<_, _>>()?)
            }
        }
    }

    /// One number.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn number(&self, sql: &str) -> Result<i64, Fault> {
        let rows = self.ask(sql).await?;
        rows.first().and_then(|row| row.first()?.int()).ok_or_else(|| format!("no number from {sql}").into())
    }

    /// The readings of a point, in the order of their stamps.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn readings(&self, device: &str, point: &str) -> Result<Vec<Row>, Fault> {
        let sql = format!(
            "SELECT at_ms, CAST(status AS bigint), value_int FROM reading \
             WHERE device = '{device}' AND point = '{point}' AND statistic = '' ORDER BY at_ms, epoch, seq, idx"
        );
        let rows = self.ask(&sql).await?;
        Ok(rows
            .iter()
            .map(|row| Row {
                at_ms: row[0].int().unwrap_or_default(),
                status: row[1].int().unwrap_or_default(),
                value: row[2].int(),
            })
            .collect())
    }

    /// What was said to be lost of a point, each loss once however often it was said.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn losses(&self, device: &str, point: &str) -> Result<Vec<Lost>, Fault> {
        let sql = format!(
            "SELECT DISTINCT reason, from_ms, to_ms, readings FROM loss \
             WHERE device = '{device}' AND point = '{point}' ORDER BY from_ms"
        );
        let rows = self.ask(&sql).await?;
        Ok(rows
            .iter()
            .map(|row| Lost {
                reason: if let Cell::Text(text) = &row[0] { text.clone() } else { String::new() },
                from_ms: row[1].int().unwrap_or_default(),
                to_ms: row[2].int().unwrap_or_default(),
                readings: row[3].int().unwrap_or_default(),
            })
            .collect())
    }

    /// Every loss as it stands, for messages.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn all_losses(&self) -> Result<String, Fault> {
        let sql = "SELECT reason, device, point, from_ms, to_ms, readings, seq FROM loss ORDER BY seq, from_ms";
        Ok(self.ask(sql).await?.iter().map(|row| format!("{row:?}\n")).collect())
    }

    /// The agent's own ledger as the receiver last heard it.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn ledger(&self, agent: &str) -> Result<Ledger, Fault> {
        let sql = format!("SELECT admitted, delivered, held, filtered, lost FROM agent WHERE agent = '{agent}'");
        let rows = self.ask(&sql).await?;
        let row = rows.first().ok_or_else(|| format!("no agent {agent}"))?;
        let at = |at: usize| row.get(at).and_then(Cell::int).unwrap_or_default();
        Ok(Ledger { admitted: at(0), delivered: at(1), held: at(2), filtered: at(3), lost: at(4) })
    }

    /// The law as the only agent told it last: waits until its end is known here.
    ///
    /// # Panics
    /// If it is not known after a minute.
    pub async fn last_word(&self, agent: &str) -> Ledger {
        let last = "SELECT count(*) FROM agent WHERE state = 'offline' AND at_ms > 0";
        eventually("the agent's last word", PATIENCE, async || {
            if self.number(last).await.ok()? == 1 { self.ledger(agent).await.ok() } else { None }
        })
        .await
    }
}

/// The law, in figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Entered the pipeline.
    pub admitted: i64,
    /// Acknowledged by the centre.
    pub delivered: i64,
    /// In memory or in the spool.
    pub held: i64,
    /// Withheld by a filter.
    pub filtered: i64,
    /// Never to arrive.
    pub lost: i64,
}

impl Ledger {
    /// Whether admitted = delivered + held + filtered + lost.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.admitted == self.delivered + self.held + self.filtered + self.lost
    }
}

/// Checks a counter of polls: no count twice, none out of order, and those that are missing within what was said to be
/// lost. Gives how many are missing.
///
/// # Errors
/// What is wrong, in words.
pub fn every_count_once(rows: &[Row], losses: &[Lost]) -> Result<usize, String> {
    let counts: Vec<i64> = rows.iter().filter_map(|row| row.value).collect();
    let mut seen = BTreeMap::new();
    for count in &counts {
        *seen.entry(*count).or_insert(0_u32) += 1;
    }
    let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    if !doubled.is_empty() {
        return Err(format!("counts that are there more than once: {doubled:?}"));
    }
    if let Some(pair) = counts.windows(2).find(|pair| pair[0] > pair[1]) {
        return Err(format!("stamps and counts disagree: {} is stamped before {}", pair[0], pair[1]));
    }
    let Some((first, last)) = seen.first_key_value().zip(seen.last_key_value()).map(|(a, b)| (*a.0, *b.0)) else {
        return Err("no count arrived".to_owned());
    };
    let known: BTreeSet<i64> = seen.into_keys().collect();
    // What the device counted before the first count that arrived was polled as well.
    let missing: Vec<i64> = (first.min(1)..=last).filter(|count| !known.contains(count)).collect();
    let lost: i64 = losses.iter().map(|lost| lost.readings).sum();
    // A row without a value stands for a due poll, too: its answer may have been on its way when it was given up.
    let valueless = rows.iter().filter(|row| row.value.is_none()).count() as i64;
    if missing.len() as i64 > lost + valueless {
        return Err(format!(
            "{} counts are missing, but {lost} readings are said to be lost and {valueless} came without a value: \
             missing {missing:?}, losses {losses:?}",
            missing.len()
        ));
    }
    Ok(missing.len())
}

/// Checks the poll schedule: between the first and the last stamp every period left a reading or is in a reported loss.
/// Each start of the agent begins a schedule of its own, so one poll a start may be more or fewer.
///
/// # Errors
/// What is wrong, in words.
pub fn every_due_poll_left_a_trace(rows: &[Row], losses: &[Lost], period_ms: i64, starts: u32) -> Result<(), String> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Err("no reading arrived".to_owned()) };
    let due = (last.at_ms - first.at_ms + period_ms / 2) / period_ms + 1;
    let lost: i64 = losses.iter().map(|lost| lost.readings).sum();
    let traces = rows.len() as i64 + lost;
    if (traces - due).abs() > i64::from(starts) + 1 {
        return Err(format!("{due} polls were due, {} readings arrived and {lost} are said to be lost", rows.len()));
    }
    for pair in rows.windows(2) {
        let (from, to) = (pair[0].at_ms, pair[1].at_ms);
        let explained = losses.iter().any(|lost| lost.from_ms <= to && (lost.to_ms == 0 || lost.to_ms >= from));
        if to - from > period_ms * 3 && !explained {
            return Err(format!("nothing between {from} and {to} ({} ms), and no loss says so: {losses:?}", to - from));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at_ms: i64, value: i64) -> Row {
        Row { at_ms, status: 0, value: Some(value) }
    }

    fn lost(from_ms: i64, to_ms: i64, readings: i64) -> Lost {
        Lost { reason: "agent_down".to_owned(), from_ms, to_ms, readings }
    }

    #[test]
    fn counts_are_checked() {
        let whole = [row(0, 1), row(100, 2), row(200, 3)];
        assert_eq!(every_count_once(&whole, &[]), Ok(0));
        assert!(every_count_once(&[row(0, 1), row(100, 1)], &[]).is_err(), "a double");
        assert!(every_count_once(&[row(0, 2), row(100, 1)], &[]).is_err(), "out of order");
        let holed = [row(0, 1), row(100, 2), row(400, 5)];
        assert!(every_count_once(&holed, &[]).is_err(), "3 and 4 are missing");
        assert!(every_count_once(&holed, &[lost(200, 400, 1)]).is_err(), "two are missing, one is said");
        assert_eq!(every_count_once(&holed, &[lost(200, 400, 2)]), Ok(2));
    }

    #[test]
    fn the_schedule_is_checked() {
        let rows: Vec<Row> = (0..100).map(|n| row(n * 100, n)).collect();
        assert_eq!(every_due_poll_left_a_trace(&rows, &[], 100, 1), Ok(()));
        let holed: Vec<Row> = rows.iter().copied().filter(|row| !(30..50).contains(&(row.at_ms / 100))).collect();
        assert!(every_due_poll_left_a_trace(&holed, &[], 100, 1).is_err());
        assert_eq!(every_due_poll_left_a_trace(&holed, &[lost(3_000, 5_000, 20)], 100, 2), Ok(()));
        assert!(every_due_poll_left_a_trace(&holed, &[lost(3_000, 5_000, 9)], 100, 2).is_err(), "too few said");
        assert!(every_due_poll_left_a_trace(&holed, &[lost(9_950, 9_999, 20)], 100, 2).is_err(), "elsewhere");
    }

    #[test]
    fn the_law_is_arithmetic() {
        assert!(Ledger { admitted: 10, delivered: 5, held: 2, filtered: 2, lost: 1 }.holds());
        assert!(!Ledger { admitted: 10, delivered: 5, held: 2, filtered: 2, lost: 2 }.holds());
    }
}
