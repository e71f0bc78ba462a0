//! The messages of a sensor against the database.
//!
//! At least once is the promise here (contract rule 23): a message whose acknowledgement the kill swallowed is handed out
//! again. rumqttd never sets DUP, so a repeat is known by its times instead: the first row is stamped shortly before the
//! kill, the second after the restart. Any other repeat is a duplicate.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::{Marks, Proof, Source};
use crate::sensors::{Notes, POINTS};

/// The MQTT entry of the agent's configuration, which is the device of these points.
const DEVICE: &str = "cell";

/// An acknowledgement goes out with the next commit, a second later at the most, and on a busy disk some seconds later.
const UNACKNOWLEDGED_MS: i64 = 10_000;

/// Checks everything that the broker acknowledged to the sensor.
pub(super) fn check(
    connection: &Connection,
    name: &str,
    notes: &Notes,
    marks: Marks,
    proof: &mut Proof,
) -> rusqlite::Result<()> {
    let seen = seen(connection, name)?;
    for (n, stamps) in &seen {
        if !notes.published.contains_key(n) {
            proof.disagreements.push(format!("{name}: message {n} is in the database, but was never published"));
        }
        match stamps.as_slice() {
            [] | [_] => {}
            [first, second]
                if (marks.killed - UNACKNOWLEDGED_MS..=marks.killed).contains(first) && *second >= marks.restarted =>
            {
                proof.redelivered += 1;
            }
            more => proof.duplicates += more.len() as u64 - 1,
        }
    }
    let published = |place: usize| notes.published.values().map(move |values| values[place].to_bits()).collect();
    let (temperatures, humidities): (BTreeSet<_>, BTreeSet<_>) = (published(0), published(1));
    for (point, statistic, given) in
        [("temperature", "min", &temperatures), ("temperature", "max", &temperatures), ("humidity", "", &humidities)]
    {
        let sql = "SELECT value_num FROM reading WHERE device = ?1 AND point = ?2 AND statistic = ?3 AND status < 16";
        let mut values = connection.prepare(sql)?;
        let values = values.query_map((DEVICE, format!("{name}/{point}"), statistic), |row| row.get(0))?;
        for value in values {
            let value: Option<f64> = value?;
            proof.compared += 1;
            proof.wrong += u64::from(!value.is_some_and(|value| given.contains(&value.to_bits())));
        }
    }
    let due = notes.acknowledged.len() as u64;
    let missing = missing(connection, name, notes)?;
    proof.due += due * POINTS;
    proof.given += seen.values().map(|stamps| stamps.len() as u64).sum::<u64>() * POINTS;
    proof.missing += missing * POINTS;
    proof.sources.push(Source {
        name: format!("{DEVICE}/{name}"),
        due,
        answered: due,
        in_db: due - missing,
        without_value: 0,
        lost: 0,
    });
    Ok(())
}

/// How many acknowledged messages are not in the database.
pub(super) fn missing(connection: &Connection, name: &str, notes: &Notes) -> rusqlite::Result<u64> {
    let seen = seen(connection, name)?;
    Ok(notes.acknowledged.iter().filter(|n| !seen.contains_key(n)).count() as u64)
}

/// Stamps of each message in the database, in their order.
fn seen(connection: &Connection, name: &str) -> rusqlite::Result<BTreeMap<u32, Vec<i64>>> {
    let sql = "SELECT value_int, at_ms FROM reading WHERE device = ?1 AND point = ?2 AND statistic = '' ORDER BY at_ms";
    let mut rows = connection.prepare(sql)?;
    let mut seen = BTreeMap::<u32, Vec<i64>>::new();
    for row in rows.query_map((DEVICE, format!("{name}/n")), |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (n, at) = row?;
        seen.entry(n).or_default().push(at);
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    //! Each way in which the database could lie about messages, planted and seen.

    use super::*;
    use crate::proof::tests::database;

    const MARKS: Marks = Marks { killed: 20_000, restarted: 21_000, stopped: 40_000 };

    fn notes() -> Notes {
        let numbers = 1..=50_u32;
        Notes {
            published: numbers.clone().map(|n| (n, [f64::from(n), 40.0])).collect(),
            acknowledged: numbers.collect(),
        }
    }

    /// All messages, one every 500 ms, and what `sql` makes of them.
    fn proven(sql: &str) -> Proof {
        let connection = database();
        let insert =
            "INSERT INTO reading VALUES ('demo', 'gateway-1', 1, 1, ?1, 'cell', 'north/n', '', ?2, 0, ?1, ?1, NULL)";
        for n in 1..=50 {
            connection.execute(insert, (n, n * 500)).unwrap();
        }
        connection.execute_batch(sql).unwrap();
        let mut proof = Proof::default();
        check(&connection, "north", &notes(), MARKS, &mut proof).unwrap();
        proof
    }

    fn again(n: u32, at: i64) -> String {
        format!(
            "INSERT INTO reading VALUES ('demo', 'gateway-1', 1, 2, {n}, 'cell', 'north/n', '', {at}, 0, {n}, {n}, NULL)"
        )
    }

    #[test]
    fn every_acknowledged_message_must_be_there() {
        assert_eq!(proven("").missing, 0);
        assert_eq!(proven("DELETE FROM reading WHERE value_int IN (7, 8)").missing, 2 * POINTS);
    }

    #[test]
    fn a_message_comes_again_only_over_the_kill() {
        let redelivered = proven(&again(39, 21_100));
        assert_eq!((redelivered.duplicates, redelivered.redelivered), (0, 1), "stamped 0.5 s before the kill");
        let late = proven(&again(21, 21_100));
        assert_eq!((late.duplicates, late.redelivered), (0, 1), "stamped 9.5 s before the kill");
        assert_eq!(proven(&again(19, 21_100)).duplicates, 1, "acknowledged long before the kill");
        assert_eq!(proven(&again(39, 19_900)).duplicates, 1, "twice before the kill");
        assert_eq!(proven(&again(45, 23_000)).duplicates, 1, "after the restart");
        let thrice = [again(39, 21_100), again(39, 21_200)].join(";");
        assert_eq!(proven(&thrice).duplicates, 2);
    }

    #[test]
    fn invented_messages_and_values_are_seen() {
        assert_eq!(proven(&again(51, 30_000)).disagreements.len(), 1);
        let humidity = |value: f64| {
            format!(
                "INSERT INTO reading VALUES ('demo', 'gateway-1', 1, 3, 1, 'cell', 'north/humidity', '', 1, 0, {value:?}, NULL, NULL)"
            )
        };
        assert_eq!(proven(&humidity(40.0)).wrong, 0);
        assert_eq!(proven(&humidity(40.01)).wrong, 1);
    }
}
