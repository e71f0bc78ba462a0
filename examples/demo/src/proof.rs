//! The proof, read from the receiver's database and held against the plant's own notes.
//!
//! Four questions, each of which could be answered badly:
//! 1. Does the agent's last ledger, as the centre has it, obey the law, and does it say what the database holds: as many
//!    readings delivered, as many lost as losses name?
//! 2. Is every answer that a slave gave in the database once, with the values it had, or within a span and a count that a
//!    `Loss` names? (`polls`)
//! 3. Were as many polls due, by the clock of the slaves, as are in the database and in losses? (`polls`)
//! 4. Is every message that the sensors' broker acknowledged in the database? (`messages`)
//!
//! `missing` counts what is due and neither there nor named; it is made from the notes, never from the ledger.

mod messages;
mod polls;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use crate::plant::Slave;
use crate::sensors::{self, Sensor};

/// What the demo did to the agent, and when, in ms since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// SIGKILL.
    pub(crate) killed: i64,
    /// It was started again.
    pub(crate) restarted: i64,
    /// SIGTERM.
    pub(crate) stopped: i64,
}

/// The figures, as `--json` prints them. What is not named otherwise is in readings.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Proof {
    /// The agent's ledger since its epoch began.
    pub(crate) admitted: u64,
    pub(crate) delivered: u64,
    pub(crate) held: u64,
    pub(crate) filtered: u64,
    pub(crate) lost: u64,
    /// The same losses as the database names them.
    pub(crate) lost_by_reason: BTreeMap<String, u64>,
    pub(crate) readings_in_db: u64,
    /// Of those, polls that brought no value and say so.
    pub(crate) without_value: u64,
    /// Readings of polls and messages that were due, by the plant's clock and notes; without summaries, which the agent makes.
    pub(crate) due: u64,
    /// Readings that came out of the plant as far as the database tells: of polls there or lost, and of messages there.
    #[serde(skip)]
    pub(crate) given: u64,
    /// One reading, more than once in the database.
    pub(crate) duplicates: u64,
    /// Due, not in the database and not in a reported loss.
    pub(crate) missing: u64,
    /// Values compared with the plant's notes, and those that differ.
    pub(crate) compared: u64,
    pub(crate) wrong: u64,
    /// Messages that the cell's broker handed out again after the kill (contract: at least once).
    pub(crate) redelivered: u64,
    pub(crate) batches: u64,
    /// Whole envelopes, each once, without the headers of MQTT and TCP.
    pub(crate) bytes: u64,
    pub(crate) bytes_per_reading: f64,
    /// What was found of each machine and sensor.
    pub(crate) sources: Vec<Source>,
    /// What disagrees, in words; empty if nothing does.
    pub(crate) disagreements: Vec<String>,
}

/// A machine, counted in polls, or a sensor, counted in messages.
#[derive(Debug, Serialize)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) due: u64,
    /// By the slave, or acknowledged to the sensor.
    pub(crate) answered: u64,
    pub(crate) in_db: u64,
    /// Of a machine: in the database with a status alone.
    pub(crate) without_value: u64,
    pub(crate) lost: u64,
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    pub(crate) batches: u64,
    pub(crate) readings: u64,
    pub(crate) bytes: u64,
}

impl Sizes {
    /// Bytes of envelopes for each reading.
    pub(crate) fn a_reading(&self) -> f64 {
        self.bytes as f64 / self.readings.max(1) as f64
    }
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
pub(crate) fn read(
    database: &Path,
    slaves: &[Arc<Slave>],
    sensors: &[Sensor],
    marks: Marks,
) -> rusqlite::Result<Proof> {
    let connection = open(database)?;
    let mut proof = Proof::default();
    ledger(&connection, &mut proof)?;
    let sizes = sizes(&connection)?;
    (proof.batches, proof.bytes, proof.bytes_per_reading) = (sizes.batches, sizes.bytes, sizes.a_reading());
    for slave in slaves {
        polls::check(&connection, slave.machine, &slave.notes(), marks.stopped, &mut proof)?;
    }
    for sensor in sensors {
        messages::check(&connection, sensor.name, &sensor.notes(), marks, &mut proof)?;
    }
    admitted(&connection, &mut proof)?;
    conclude(&mut proof);
    Ok(proof)
}

/// Whether the database has every message that was acknowledged to the sensors.
pub(crate) fn has_every_message(database: &Path, sensors: &[Sensor]) -> bool {
    let found = open(database).and_then(|connection| {
        let missing = sensors.iter().map(|sensor| messages::missing(&connection, sensor.name, &sensor.notes()));
        missing.sum::<rusqlite::Result<u64>>()
    });
    found.is_ok_and(|missing| missing == 0)
}

/// What the agent says it admitted, against what the plant gave: each poll and message with all its points, and the
/// summaries, which are in the database. Of the summaries that were in memory at the kill only the agent knows; and of a
/// message that came again, filtered and folded readings may be taken back (contract rule 9).
fn admitted(connection: &Connection, proof: &mut Proof) -> rusqlite::Result<()> {
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get(0).map(natural));
    let summaries = count("SELECT count(*) FROM reading WHERE statistic <> ''")?;
    let in_memory = count("SELECT count(*) FROM point WHERE statistic <> ''")?;
    let given = proof.given + summaries;
    let (least, most) = (given.saturating_sub(proof.redelivered * (sensors::POINTS - 1)), given + in_memory);
    if !(least..=most).contains(&proof.admitted) {
        let admitted = proof.admitted;
        proof.disagreements.push(format!("the agent says {admitted} admitted, the plant gave {least} to {most}"));
    }
    Ok(())
}

/// What of all that must not be.
fn conclude(proof: &mut Proof) {
    let figures = [
        (proof.missing, "readings were due, are not there, and no loss names them"),
        (proof.duplicates, "readings are there twice"),
        (proof.wrong, "values are not what the plant gave"),
        (proof.held, "readings are still on the gateway's disk: the stop did not send everything"),
    ];
    let bad = figures.into_iter().filter(|(count, _)| *count > 0);
    proof.disagreements.extend(bad.map(|(count, what)| format!("{count} {what}")));
}

/// The law, and the database against it.
fn ledger(connection: &Connection, proof: &mut Proof) -> rusqlite::Result<()> {
    let sql = "SELECT admitted, delivered, held, filtered, lost FROM agent";
    (proof.admitted, proof.delivered, proof.held, proof.filtered, proof.lost) =
        connection.query_row(sql, [], |row| {
            let at = |index| row.get(index).map(natural);
            Ok((at(0)?, at(1)?, at(2)?, at(3)?, at(4)?))
        })?;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get(0).map(natural));
    proof.readings_in_db = count("SELECT count(*) FROM reading")?;
    proof.without_value = count("SELECT count(*) FROM reading WHERE status >= 16")?;
    let mut reasons = connection.prepare("SELECT reason, sum(readings) FROM loss GROUP BY reason")?;
    let rows = reasons.query_map([], |row| Ok((row.get(0)?, row.get(1).map(natural)?)))?;
    proof.lost_by_reason = rows.collect::<rusqlite::Result<_>>()?;
    let named: u64 = proof.lost_by_reason.values().sum();
    if proof.admitted != proof.delivered + proof.held + proof.filtered + proof.lost {
        proof.disagreements.push("the law does not hold".into());
    }
    if proof.delivered != proof.readings_in_db {
        let (delivered, there) = (proof.delivered, proof.readings_in_db);
        proof.disagreements.push(format!("the agent says {delivered} delivered, the database holds {there}"));
    }
    if named != proof.lost {
        proof.disagreements.push(format!("the ledger says {} lost, losses name {named}", proof.lost));
    }
    let faults = [
        ("SELECT count(*) FROM gap", "holes in the batch numbers"),
        ("SELECT count(*) FROM quarantine", "batches in quarantine"),
    ];
    for (sql, what) in faults {
        let found = count(sql)?;
        if found > 0 {
            proof.disagreements.push(format!("{found} {what}"));
        }
    }
    Ok(())
}

/// SQLite counts in signed numbers.
fn natural(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Bytes on the wire: whole envelopes, each once.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn sizes(connection: &Connection) -> rusqlite::Result<Sizes> {
    let mut batches = connection.prepare("SELECT seq, readings, length(body) FROM batch")?;
    let rows = batches.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut sizes = Sizes::default();
    for row in rows {
        let (seq, readings, body) =
            row.map(|(seq, readings, body)| (natural(seq), natural(readings), natural(body)))?;
        sizes.batches += 1;
        sizes.readings += readings;
        sizes.bytes += body + header(seq, readings, body);
    }
    Ok(sizes)
}

/// Most bytes of an Envelope around its body (edge.proto): epoch 9, seq, first_retained_seq, lane 2, schema 2,
/// catalog_rev 2, readings, CRC 5, tag and length of the body.
fn header(seq: u64, readings: u64, body: u64) -> u64 {
    let varint = |value: u64| u64::from((64 - (value | 1).leading_zeros()).div_ceil(7));
    9 + 2 * (1 + varint(seq)) + 2 + 2 + 2 + (1 + varint(readings)) + 5 + (1 + varint(body))
}

impl Proof {
    /// For a person.
    pub(crate) fn words(&self) -> String {
        let mut text = String::from("\nThe proof: the receiver's database, held against the plant's own notes\n\n");
        for source in &self.sources {
            let Source { name, due, answered, in_db, without_value, lost } = source;
            text += &if name.contains('/') {
                format!("  {name:<14}{due:>6} messages acknowledged by the cell's broker: {in_db} in the database\n")
            } else {
                format!(
                    "  {name:<14}{due:>6} polls due, {answered} answered: {in_db} in the database, of them {without_value} \
                     without a value; {lost} lost\n"
                )
            };
        }
        text += &format!(
            "\n  due           {:>6} readings of those polls and messages\n\
             \x20 missing       {:>6} due, not in the database and not in a named loss\n\
             \x20 twice         {:>6} ({} messages of the cell came again after the kill, as QoS 1 may)\n\
             \x20 wrong         {:>6} of {} values compared with what was answered\n",
            self.due, self.missing, self.duplicates, self.redelivered, self.wrong, self.compared
        );
        for (reason, readings) in &self.lost_by_reason {
            text += &format!("  lost          {readings:>6} {reason}\n");
        }
        text += &format!(
            "\n  the law       {} admitted = {} delivered + {} held + {} filtered + {} lost\n\
             \x20 the database  {} readings, as many as were delivered, in {} batches\n\
             \x20 the wire      {:.2} bytes a reading, whole envelopes\n\n",
            self.admitted,
            self.delivered,
            self.held,
            self.filtered,
            self.lost,
            self.readings_in_db,
            self.batches,
            self.bytes_per_reading
        );
        text += if self.disagreements.is_empty() { "  Everything agrees." } else { "  NOT everything agrees:" };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty database with the names of the interface.
    pub(super) fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        let tables = [
            "agent(site, agent, epoch, state, last_seq, first_retained_seq, contiguous_seq, admitted, delivered, held, filtered, lost, at_ms)",
            "batch(site, agent, epoch, seq, body_hash, readings, received_at, body)",
            "reading(site, agent, epoch, seq, idx, device, point, statistic, at_ms, status, value_num, value_int, value_text)",
            "point(site, agent, epoch, id, device, point, statistic)",
            "loss(site, agent, epoch, seq, reason, loss_epoch, first_seq, last_seq, device, point, from_ms, to_ms, readings)",
            "gap(site, agent, epoch, first_seq, last_seq)",
            "quarantine(site, agent, epoch, seq, reason, received_at, body)",
        ];
        for table in tables {
            connection.execute(&format!("CREATE TABLE {table}"), []).unwrap();
        }
        connection
    }

    /// Three readings delivered, one of seven filtered, two lost and one held; and what `sql` makes of it.
    fn concluded(sql: &str) -> Proof {
        let connection = database();
        let rows = "INSERT INTO agent VALUES ('demo', 'gateway-1', 1, 'offline', 1, 1, 1, 6, 3, 0, 1, 2, 9); \
                    INSERT INTO reading (seq, idx, statistic, status) VALUES (1, 0, '', 0), (1, 1, '', 16), (1, 2, 'max', 0); \
                    INSERT INTO loss (reason, readings) VALUES ('agent_down', 1), ('agent_down', 1); \
                    INSERT INTO point (statistic) VALUES ('max')";
        connection.execute_batch(rows).unwrap();
        connection.execute_batch(sql).unwrap();
        // Two readings of the plant are there, two are lost, one was filtered; the summary comes on top.
        let mut proof = Proof { given: 5, ..Proof::default() };
        ledger(&connection, &mut proof).unwrap();
        admitted(&connection, &mut proof).unwrap();
        conclude(&mut proof);
        proof
    }

    #[test]
    fn the_law_and_the_database_are_held_against_each_other() {
        let proof = concluded("");
        assert_eq!(proof.disagreements, Vec::<String>::new());
        assert_eq!((proof.readings_in_db, proof.without_value, proof.lost_by_reason["agent_down"]), (3, 1, 2));
        for broken in [
            "UPDATE agent SET filtered = 2",
            "DELETE FROM reading WHERE idx = 1",
            "UPDATE agent SET delivered = 4, filtered = 0",
            "UPDATE loss SET readings = 2",
            "UPDATE agent SET admitted = 9, filtered = 4",
            "UPDATE agent SET held = 1, filtered = 0",
            "INSERT INTO gap (first_seq) VALUES (7)",
            "INSERT INTO quarantine (reason) VALUES ('bad_payload')",
        ] {
            assert_ne!(concluded(broken).disagreements, Vec::<String>::new(), "{broken}");
        }
    }

    #[test]
    fn an_envelope_is_counted_with_its_header() {
        // The first example of columns.md is 58 bytes with a body of 32; it has no lane, which is counted here.
        assert_eq!(32 + header(1, 3, 32), 58 + 2);
    }
}
