//! The proof, read from the receiver's database and held against the plant's own notes.
//!
//! Three questions, each of which could be answered badly:
//! - Does the agent's ledger, as the centre has it, obey the law, and does the database hold as many readings as were
//!   delivered?
//! - Is every answer that a slave gave in the database once, or within a span that a `Loss` names? Is every message that a
//!   sensor's broker acknowledged there?
//! - Were as many polls due, by the clock, as are in the database and in losses?

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use crate::plant::{Sensor, Slave};

/// The figures, as `--json` prints them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Proof {
    pub(crate) admitted: u64,
    pub(crate) delivered: u64,
    pub(crate) held: u64,
    pub(crate) filtered: u64,
    pub(crate) lost: u64,
    pub(crate) lost_by_reason: BTreeMap<String, u64>,
    pub(crate) readings_in_db: u64,
    /// Readings of polls and messages that were due, by the plant's clock and notes.
    pub(crate) due: u64,
    /// Rows that stand for one reading more than once.
    pub(crate) duplicates: u64,
    /// Due, not in the database and not in a reported loss.
    pub(crate) missing: u64,
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_per_reading: f64,
    /// What disagrees, in words; empty if nothing does.
    pub(crate) disagreements: Vec<String>,
}

/// Opens the database beside the receiver, to read.
///
/// # Errors
/// It is not there yet.
pub(crate) fn open(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    Ok(connection)
}

/// Reads and compares.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn read(database: &Path, slaves: &[Slave], sensors: &[Sensor]) -> rusqlite::Result<Proof> {
    let connection = open(database)?;
    let mut proof = Proof::default();
    ledger(&connection, &mut proof)?;
    sizes(&connection, &mut proof)?;
    for slave in slaves {
        polls(&connection, slave, &mut proof)?;
    }
    for sensor in sensors {
        messages(&connection, sensor, &mut proof)?;
    }
    if proof.duplicates > 0 {
        proof.disagreements.push(format!("{} readings are there twice", proof.duplicates));
    }
    if proof.missing > 0 {
        proof.disagreements.push(format!("{} readings are missing and no loss names them", proof.missing));
    }
    Ok(proof)
}

/// The law, and the database against it.
fn ledger(connection: &Connection, proof: &mut Proof) -> rusqlite::Result<()> {
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
    let sql = "SELECT admitted, delivered, held, filtered, lost FROM agent";
    (proof.admitted, proof.delivered, proof.held, proof.filtered, proof.lost) =
        connection.query_row(sql, [], |row| {
            let at = |index| row.get::<_, Option<i64>>(index).map(natural);
            Ok((at(0)?, at(1)?, at(2)?, at(3)?, at(4)?))
        })?;
    proof.readings_in_db = natural(count("SELECT count(*) FROM reading")?);
    let distinct = natural(count("SELECT count(*) FROM (SELECT DISTINCT epoch, seq, idx FROM reading)")?);
    proof.duplicates += proof.readings_in_db - distinct;
    let mut reasons = connection.prepare("SELECT reason, sum(readings) FROM loss GROUP BY reason")?;
    let rows = reasons.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<f64>>(1)?)))?;
    for row in rows {
        let (reason, readings) = row?;
        proof.lost_by_reason.insert(reason, readings.unwrap_or(0.0).round() as u64);
    }
    let said: u64 = proof.lost_by_reason.values().sum();
    if proof.admitted != proof.delivered + proof.held + proof.filtered + proof.lost {
        proof.disagreements.push("the law does not hold".into());
    }
    if proof.delivered != proof.readings_in_db {
        let (delivered, there) = (proof.delivered, proof.readings_in_db);
        proof.disagreements.push(format!("the agent says {delivered} delivered, the database holds {there}"));
    }
    if said != proof.lost {
        proof.disagreements.push(format!("the ledger says {} lost, losses name {said}", proof.lost));
    }
    Ok(())
}

/// SQLite counts in signed numbers.
fn natural(count: Option<i64>) -> u64 {
    u64::try_from(count.unwrap_or(0)).unwrap_or(0)
}

/// Bytes on the wire: whole envelopes, each body once.
fn sizes(connection: &Connection, proof: &mut Proof) -> rusqlite::Result<()> {
    let mut batches = connection.prepare("SELECT seq, readings, length(body) FROM batch")?;
    let rows = batches.query_map([], |row| Ok((natural(row.get(0)?), natural(row.get(1)?), natural(row.get(2)?))))?;
    for row in rows {
        let (seq, readings, body) = row?;
        proof.batches += 1;
        proof.bytes += body + header(seq, readings, body);
    }
    proof.bytes_per_reading = proof.bytes as f64 / proof.readings_in_db.max(1) as f64;
    Ok(())
}

/// Bytes of an Envelope around its body: epoch 9, seq and first_retained_seq, schema 2, catalog_rev 2, readings, CRC 5,
/// tag and length of the body (edge.proto).
fn header(seq: u64, readings: u64, body: u64) -> u64 {
    let varint = |value: u64| u64::from((64 - (value | 1).leading_zeros()).div_ceil(7));
    9 + 2 * (1 + varint(seq)) + 2 + 2 + (1 + varint(readings)) + 5 + 1 + varint(body)
}

/// Every answer of a slave against its counter point `n` in the database.
fn polls(connection: &Connection, slave: &Slave, proof: &mut Proof) -> rusqlite::Result<()> {
    let notes = slave.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut points = connection.prepare("SELECT count(*) FROM point WHERE device = ?1 AND statistic = ''")?;
    let points = points.query_row([slave.name], |row| row.get(0).map(natural))?;
    let mut rows = connection
        .prepare("SELECT value_int, at_ms FROM reading WHERE device = ?1 AND point = 'n' AND statistic = ''")?;
    let (mut seen, mut bare) = (BTreeMap::<i64, u64>::new(), 0_u64);
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    for row in rows.query_map([slave.name], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?)))? {
        let (n, at) = row?;
        (first, last) = (first.min(at), last.max(at));
        match n {
            Some(n) => *seen.entry(n).or_default() += 1,
            None => bare += 1,
        }
    }
    let mut losses =
        connection.prepare("SELECT from_ms, to_ms, readings FROM loss WHERE device = ?1 AND point = 'n'")?;
    let losses: Vec<(i64, i64, f64)> =
        losses.query_map([slave.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    let lost: u64 = losses.iter().map(|(_, _, readings)| readings.round() as u64).sum();

    proof.duplicates += seen.values().map(|times| (times - 1) * points).sum::<u64>();
    let period = i64::from(slave.period_ms);
    let named = |at: i64| losses.iter().any(|(from, to, _)| at >= from - period && (*to == 0 || at <= to + period));
    let gone: Vec<i64> = notes.iter().filter(|(n, _)| !seen.contains_key(&i64::from(**n))).map(|(_, at)| *at).collect();
    let unexplained = gone.iter().filter(|at| !named(**at)).count() as u64;
    proof.missing += unexplained.max((gone.len() as u64).saturating_sub(lost)) * points;
    if let Some(stranger) = seen.keys().find(|n| !u32::try_from(**n).is_ok_and(|n| notes.contains_key(&n))) {
        proof.disagreements.push(format!("{}: poll {stranger} is in the database, but was never answered", slave.name));
    }
    // By the clock: a restart moves the phase, so one poll more or less for each is no disagreement.
    let due = u64::try_from((last - first + period / 2) / period + 1).unwrap_or(0);
    proof.due += due * points;
    let told = seen.len() as u64 + bare + lost;
    if due.abs_diff(told) > 2 {
        proof.disagreements.push(format!("{}: {due} polls were due, {told} are told of", slave.name));
    }
    Ok(())
}

/// Every acknowledged message of a sensor. At least once is the promise here: a repeat is counted by nobody.
fn messages(connection: &Connection, sensor: &Sensor, proof: &mut Proof) -> rusqlite::Result<()> {
    let notes = sensor.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut rows = connection.prepare("SELECT DISTINCT value_int FROM reading WHERE device = 'cell' AND point = ?1")?;
    let seen: Vec<i64> = rows.query_map([format!("{}/n", sensor.name)], |row| row.get(0))?.collect::<Result<_, _>>()?;
    proof.due += notes.len() as u64;
    proof.missing += notes.keys().filter(|n| !seen.contains(&i64::from(**n))).count() as u64;
    Ok(())
}
