//! The answers of a slave against the database.
//!
//! Each poll has a number of its own, in the point `n`. The points that are sent at every poll share the frame of `n`, so
//! row k of each belongs to row k of `n`, and must have its stamp and the value that the slave wrote down for that number.
//! Of points that are filtered or folded only some values arrive; each of them must be one that the slave gave.

use std::collections::BTreeSet;

use rusqlite::{Connection, Row as SqlRow};

use super::{Proof, Source, natural};
use crate::gateway::TIMEOUT_MS;
use crate::machines::{Coding, Machine, Point, Sent};
use crate::plant::Notes;

/// The schedule of polls begins anew, out of phase, with each start of the agent, of which there are two: so many polls
/// more or fewer the clock cannot tell.
const STARTS: u64 = 2;

/// A slave notes an answer this long before or after the agent stamps it.
const SLACK_MS: i64 = 50;

/// A reading of a point.
struct Row {
    at_ms: i64,
    /// The raw value; none with a status from 16 on.
    raw: Option<u32>,
}

/// Readings that will never arrive, of the point `n`, so in polls.
struct Loss {
    from_ms: i64,
    /// 0 = unknown.
    to_ms: i64,
    polls: u64,
}

/// Checks everything that `machine` answered, up to the stop.
pub(super) fn check(
    connection: &Connection,
    machine: &Machine,
    notes: &Notes,
    stopped: i64,
    proof: &mut Proof,
) -> rusqlite::Result<()> {
    let name = machine.name;
    let numbers = rows(connection, machine, &machine.points[0], "")?;
    let mut seen = BTreeSet::new();
    let mut bare = Vec::new();
    let sent_each = machine.points.iter().filter(|point| point.sent == Sent::Each).count() as u64;
    for row in &numbers {
        match row.raw {
            Some(n) if !notes.contains_key(&n) => {
                proof.disagreements.push(format!("{name}: answer {n} is in the database, but was never given"));
            }
            Some(n) if !seen.insert(n) => proof.duplicates += sent_each,
            Some(_) => {}
            None => bare.push(row.at_ms),
        }
    }
    for (place, point) in machine.points.iter().enumerate() {
        values(connection, machine, place, point, &numbers, notes, proof)?;
    }

    let mut losses = losses(connection, name)?;
    let lost: u64 = losses.iter().map(|loss| loss.polls).sum();
    let without_value = bare.len() as u64;
    // What is answered while the agent stops may be taken along or not: it is not due. Nor is an answer that was on its way
    // when the stop was asked for.
    let answered: Vec<_> = notes.iter().filter(|(_, answer)| answer.at_ms + SLACK_MS <= stopped).collect();
    let (Some((_, first)), Some((last_number, last))) = (answered.first(), answered.last()) else {
        proof.disagreements.push(format!("{name} was never polled"));
        return Ok(());
    };
    let period = i64::from(machine.period_ms);
    let told = seen.range(..=**last_number).count() as u64
        + bare.iter().filter(|at| (first.at_ms - period..=last.at_ms).contains(*at)).count() as u64
        + lost;
    let due = natural((last.at_ms - first.at_ms + period / 2) / period + 1);
    let gone = answered.iter().filter(|(number, _)| !seen.contains(number));
    let unnamed = gone.filter(|(_, answer)| !is_named(answer.at_ms, period, &mut losses, &mut bare)).count() as u64;
    let short = if told + STARTS < due { due - told } else { 0 };
    if told > due + STARTS {
        proof.disagreements.push(format!("{name}: {due} polls were due, but {told} are told of"));
    }
    let points = machine.points.len() as u64;
    proof.missing += unnamed.max(short) * points;
    proof.due += due * points;
    proof.given += (numbers.len() as u64 + lost) * points;
    proof.sources.push(Source {
        name: name.to_owned(),
        due,
        answered: answered.len() as u64,
        in_db: numbers.len() as u64,
        without_value,
        lost,
    });
    Ok(())
}

/// Whether a poll that was answered at this time, but whose answer is not in the database, is told of: by a loss over that
/// time, which names so many polls and no more; or by a reading without a value, if the answer came too late.
fn is_named(at: i64, period: i64, losses: &mut [Loss], bare: &mut Vec<i64>) -> bool {
    let covers = |loss: &&mut Loss| {
        loss.polls > 0 && at >= loss.from_ms - period - SLACK_MS && (loss.to_ms == 0 || at <= loss.to_ms + SLACK_MS)
    };
    if let Some(loss) = losses.iter_mut().find(covers) {
        loss.polls -= 1;
        return true;
    }
    let late = bare.iter().position(|due| (due - SLACK_MS..=due + TIMEOUT_MS + period).contains(&at));
    late.map(|place| bare.swap_remove(place)).is_some()
}

/// The values of one point against what the slave gave.
fn values(
    connection: &Connection,
    machine: &Machine,
    place: usize,
    point: &Point,
    numbers: &[Row],
    notes: &Notes,
    proof: &mut Proof,
) -> rusqlite::Result<()> {
    let given =
        |number: Option<u32>| number.and_then(|n| notes.get(&n)).and_then(|answer| answer.raw.get(place)).copied();
    if point.sent == Sent::Each {
        let rows = rows(connection, machine, point, "")?;
        proof.missing += (numbers.len() as u64).saturating_sub(rows.len() as u64);
        proof.duplicates += (rows.len() as u64).saturating_sub(numbers.len() as u64);
        if rows.len() == numbers.len() {
            let right = |(row, number): &(&Row, &Row)| row.raw == given(number.raw) && row.at_ms == number.at_ms;
            proof.compared += rows.len() as u64;
            proof.wrong += rows.iter().zip(numbers).filter(|pair| !right(pair)).count() as u64;
        }
        return Ok(());
    }
    let all: BTreeSet<_> = notes.values().filter_map(|answer| answer.raw.get(place)).collect();
    // min and max are values that were there; a mean need not be.
    let statistics: &[&str] = if point.sent == Sent::Folded { &["min", "max"] } else { &[""] };
    for statistic in statistics {
        let values: Vec<_> =
            rows(connection, machine, point, statistic)?.into_iter().filter_map(|row| row.raw).collect();
        proof.compared += values.len() as u64;
        proof.wrong += values.iter().filter(|value| !all.contains(value)).count() as u64;
    }
    Ok(())
}

/// The readings of a point in the order of their batches.
fn rows(connection: &Connection, machine: &Machine, point: &Point, statistic: &str) -> rusqlite::Result<Vec<Row>> {
    let sql = "SELECT at_ms, status, value_int, value_num FROM reading \
               WHERE device = ?1 AND point = ?2 AND statistic = ?3 ORDER BY epoch, seq, idx";
    let mut rows = connection.prepare(sql)?;
    let row = |row: &SqlRow<'_>| {
        let raw = match point.coding {
            Coding::F32 => row.get::<_, Option<f64>>(3)?.map(|value| (value as f32).to_bits()),
            Coding::U16 | Coding::U32 => row.get::<_, Option<u32>>(2)?,
        };
        Ok(Row { at_ms: row.get(0)?, raw: raw.filter(|_| row.get(1).is_ok_and(|status: i64| status < 16)) })
    };
    rows.query_map((machine.name, point.name, statistic), row)?.collect()
}

fn losses(connection: &Connection, device: &str) -> rusqlite::Result<Vec<Loss>> {
    let sql = "SELECT from_ms, to_ms, readings FROM loss WHERE device = ?1 AND point = 'n' ORDER BY from_ms";
    let mut losses = connection.prepare(sql)?;
    let loss = |row: &SqlRow<'_>| Ok(Loss { from_ms: row.get(0)?, to_ms: row.get(1)?, polls: natural(row.get(2)?) });
    losses.query_map([device], loss)?.collect()
}

#[cfg(test)]
mod tests {
    //! Each way in which the database could lie about polls, planted and seen.

    use std::collections::BTreeMap;

    use super::*;
    use crate::machines::METER;
    use crate::plant::Answer;
    use crate::proof::tests::database;

    const PERIOD: i64 = METER.period_ms as i64;
    const POLLS: u32 = 50;

    /// What the meter answered: poll n at n · period, its values n, n + 1, n + 2 …
    fn notes() -> Notes {
        let answer =
            |n: u32| Answer { at_ms: at(n), raw: (0..METER.points.len() as u32).map(|place| n + place).collect() };
        (1..=POLLS).map(|n| (n, answer(n))).collect()
    }

    fn at(n: u32) -> i64 {
        1_000_000 + i64::from(n) * PERIOD
    }

    /// A database that has all of `polls`: those that are `None` without a value.
    fn filled(polls: impl Iterator<Item = (u32, bool)>) -> Connection {
        let connection = database();
        let sql = "INSERT INTO reading VALUES ('demo', 'gateway-1', 1, 1, ?1, 'meter', ?2, '', ?3, ?4, ?5, ?6, NULL)";
        let mut insert = connection.prepare(sql).unwrap();
        let polls: Vec<_> = polls.collect();
        for (place, point) in METER.points.iter().enumerate().filter(|(_, point)| point.sent == Sent::Each) {
            for (row, (n, answered)) in polls.iter().enumerate() {
                let raw = n + place as u32;
                let (int, num) = match point.coding {
                    Coding::F32 => (None, Some(f64::from(f32::from_bits(raw)))),
                    Coding::U16 | Coding::U32 => (Some(raw), Some(f64::from(raw) * point.scale)),
                };
                let (int, num) = if *answered { (int, num) } else { (None, None) };
                let status = if *answered { 0 } else { 16 };
                insert.execute(((place * 1_000 + row) as u32, point.name, at(*n), status, num, int)).unwrap();
            }
        }
        drop(insert);
        connection
    }

    fn lose(connection: &Connection, from: u32, to: u32, polls: u32) {
        let sql =
            "INSERT INTO loss VALUES ('demo', 'gateway-1', 1, 1, 'agent_down', 0, 0, 0, 'meter', 'n', ?1, ?2, ?3)";
        connection.execute(sql, (at(from), at(to), polls)).unwrap();
    }

    fn proven(connection: &Connection, notes: &Notes) -> Proof {
        let mut proof = Proof::default();
        check(connection, &METER, notes, i64::MAX, &mut proof).unwrap();
        proof
    }

    #[test]
    fn a_whole_database_has_nothing_missing_doubled_or_wrong() {
        let proof = proven(&filled((1..=POLLS).map(|n| (n, true))), &notes());
        assert_eq!((proof.missing, proof.duplicates, proof.wrong), (0, 0, 0), "{proof:?}");
        assert!(proof.disagreements.is_empty(), "{proof:?}");
        assert_eq!(proof.due, u64::from(POLLS) * METER.points.len() as u64);
        assert!(proof.compared >= proof.due / 2);
    }

    #[test]
    fn a_poll_that_is_gone_is_missing_with_all_its_points() {
        let proof = proven(&filled((1..=POLLS).filter(|n| *n != 20).map(|n| (n, true))), &notes());
        assert_eq!(proof.missing, METER.points.len() as u64);
    }

    #[test]
    fn a_loss_excuses_so_many_polls_in_its_span_and_no_more() {
        let holed = || filled((1..=POLLS).filter(|n| !(20..24).contains(n)).map(|n| (n, true)));
        let missing = |from, to, polls| {
            let connection = holed();
            lose(&connection, from, to, polls);
            proven(&connection, &notes()).missing / METER.points.len() as u64
        };
        assert_eq!(missing(20, 24, 4), 0);
        assert_eq!(missing(20, 24, 3), 1, "one more is gone than is said");
        assert_eq!(missing(30, 34, 4), 4, "said of another time");
    }

    #[test]
    fn a_loss_of_what_was_never_due_is_seen() {
        let connection = filled((1..=POLLS).map(|n| (n, true)));
        lose(&connection, 20, 24, 4);
        assert_eq!(proven(&connection, &notes()).disagreements.len(), 1);
    }

    #[test]
    fn an_answer_that_came_too_late_is_told_of_by_its_status() {
        let late = |n: u32| (n, n != 20);
        assert_eq!(proven(&filled((1..=POLLS).map(late)), &notes()).missing, 0);
    }

    #[test]
    fn polls_that_nobody_made_are_missing_too() {
        // The slave was not asked for ten periods, and nothing says so: its notes alone would show no hole.
        let asked = |n: &u32| !(20..30).contains(n);
        let notes: BTreeMap<_, _> = notes().into_iter().filter(|(n, _)| asked(n)).collect();
        let proof = proven(&filled((1..=POLLS).filter(asked).map(|n| (n, true))), &notes);
        assert_eq!(proof.missing, 10 * METER.points.len() as u64);
    }

    #[test]
    fn a_poll_that_is_there_twice_is_a_duplicate_of_each_point() {
        let proof = proven(&filled((1..=POLLS).chain([20]).map(|n| (n, true))), &notes());
        assert_eq!(proof.duplicates, METER.points.iter().filter(|point| point.sent == Sent::Each).count() as u64);
    }

    #[test]
    fn wrong_and_invented_values_are_seen() {
        let changed = |sql: &str| {
            let connection = filled((1..=POLLS).map(|n| (n, true)));
            connection.execute(sql, []).unwrap();
            proven(&connection, &notes())
        };
        assert_eq!(changed("UPDATE reading SET value_int = 7 WHERE point = 'voltage-2' AND idx % 1000 = 3").wrong, 1);
        assert_eq!(changed("UPDATE reading SET at_ms = at_ms + 1 WHERE point = 'power' AND idx % 1000 = 3").wrong, 1);
        assert_eq!(changed("DELETE FROM reading WHERE point = 'energy' AND idx % 1000 = 3").missing, 1);
        assert!(!changed("UPDATE reading SET value_int = 900 WHERE point = 'n' AND idx = 3").disagreements.is_empty());
        let folded = "INSERT INTO reading VALUES ('demo', 'gateway-1', 1, 1, 99999, 'meter', 'frequency', 'max', 1, 0, 1, 1, NULL)";
        assert_eq!(changed(folded).wrong, 1, "no poll had this maximum");
    }
}
