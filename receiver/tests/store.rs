//! The store, on SQLite and on PostgreSQL: what is committed, doubled, forked, lost, refused, and what the Acks say.
//!
//! Messages go in as they come from an agent; each scenario runs on both databases.

#![allow(clippy::unwrap_used, reason = "tests")]

mod databases;
mod plant;

use std::collections::BTreeMap;

use bytes::Bytes;
use databases::Database;
use plant::{EPOCH, START_MS, agent, batch, catalog, golden, load, renamed, status, temperatures};
use prost::Message;
use tributary_proto::pb::{self, Verdict, agent_status::State, loss::Reason};
use tributary_receiver::contiguity::Contiguity;
use tributary_receiver::intake::Intake;
use tributary_receiver::ledger::Arrival;
use tributary_receiver::store::{Group, Memory, Store};
use tributary_receiver::topic::{AgentKey, Kind};

/// A receiver without a broker.
struct Receiver {
    intake: Intake,
    store: Store,
    key: AgentKey,
}

impl Receiver {
    fn new(database: &Database) -> Self {
        Self { intake: Intake::new(), store: database.open(), key: agent("gw-1") }
    }

    /// Commits `messages` of one agent as one group; answers with the Acks by epoch.
    async fn receive(&mut self, messages: &[(Kind, Bytes)]) -> BTreeMap<u64, pb::Ack> {
        let mut arrivals: Vec<Arrival> = Vec::new();
        for (kind, message) in messages {
            arrivals.extend(self.intake.take(&self.key, *kind, message));
        }
        self.commit(arrivals).await
    }

    async fn commit(&mut self, arrivals: Vec<Arrival>) -> BTreeMap<u64, pb::Ack> {
        let group = Group::from([(self.key.clone(), arrivals)]);
        let acks = self.store.commit(&group, START_MS + 5_000).await.unwrap();
        acks.into_iter().map(|(_, ack)| (ack.epoch, ack)).collect()
    }

    /// One batch, one Ack.
    async fn data(&mut self, message: Bytes) -> pb::Ack {
        let epoch = pb::Envelope::decode(message.clone()).map(|envelope| envelope.epoch).unwrap_or_default();
        self.receive(&[(Kind::Data, message)]).await.remove(&epoch).expect("an Ack")
    }
}

/// What an Ack says, short.
fn said(ack: &pb::Ack) -> (u64, Vec<(u64, u64)>, &[u64], Verdict) {
    let also = ack.also.iter().map(|range| (range.first, range.last)).collect();
    (ack.contiguous_seq, also, &ack.refused, ack.verdict())
}

/// Runs each scenario on both databases.
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test] async fn $scenario() { super::$scenario(super::Database::sqlite()).await; })* }
        mod postgres { $(#[tokio::test] async fn $scenario() { super::$scenario(super::Database::postgres().await).await; })* }
    };
}

on_both! {
    readings_get_their_names_and_their_scale,
    a_batch_that_comes_twice_is_in_once,
    another_body_under_the_same_seq_is_a_fork,
    bodies_renumbered_in_a_new_epoch_are_settled_without_readings,
    equal_bodies_of_one_epoch_are_two_batches,
    gaps_are_facts_and_a_late_batch_wins,
    a_damaged_batch_is_set_aside_and_stays_refused,
    what_is_too_new_stays_at_the_edge,
    a_batch_waits_for_its_catalogue,
    a_newer_catalogue_describes_and_an_older_one_does_not,
    statuses_fill_the_row_and_the_will_leaves_the_ledger,
    losses_and_events_become_rows,
    odd_text_and_odd_numbers_go_in,
    old_rows_may_be_cut_off,
}

async fn readings_get_their_names_and_their_scale(database: Database) {
    let mut receiver = Receiver::new(&database);
    let ack = receiver
        .receive(&[(Kind::Catalog, catalog(EPOCH, 1)), (Kind::Data, golden("01-group.bin").into())])
        .await
        .remove(&EPOCH)
        .unwrap();
    assert_eq!(said(&ack), (1, vec![], &[][..], Verdict::Ok));
    let rows = database
        .rows("SELECT site, agent, epoch, seq, idx, device, point, statistic, at_ms, status, value_num, value_int, value_text FROM reading WHERE idx IN (0, 4, 8, 12) ORDER BY idx")
        .await;
    let name = "plant-1|gw-1|7130316800001398101|1";
    assert_eq!(
        rows,
        [
            format!("{name}|0|press|temperature||1700000000000|0|21.5|215|-"),
            format!("{name}|4|press|energy||1700000000000|0|10000000|10000000|-"),
            format!("{name}|8|press|running||1700000000000|0|1|1|-"),
            format!("{name}|12|press|mode||1700000000000|0|1|1|-"),
        ]
    );
    let batch =
        database.one("SELECT epoch, seq, readings, received_at, length(body), length(body_hash) FROM batch").await;
    let body = pb::Envelope::decode(&golden("01-group.bin")[..]).unwrap().body;
    let Some(pb::envelope::Body::Plain(body)) = body else { panic!("plain") };
    assert_eq!(batch, format!("7130316800001398101|1|16|1700000005000|{}|32", body.len()));
    let point = database.one("SELECT device, point, statistic, path, unit, type, exponent, factor, bias, description, first_rev FROM point WHERE id = 1").await;
    assert_eq!(point, "press|temperature||plant/north/hall/line1/press|Cel|int|-1|0|0||1");
    let row =
        database.one("SELECT site, agent, epoch, state, last_seq, first_retained_seq, contiguous_seq FROM agent").await;
    assert_eq!(row, "plant-1|gw-1|7130316800001398101||1|1|1");
}

async fn a_batch_that_comes_twice_is_in_once(database: Database) {
    let mut receiver = Receiver::new(&database);
    let one = batch(EPOCH, 1, 1, &temperatures(0, &[1, 2, 3]));
    let two = batch(EPOCH, 2, 1, &temperatures(5_000, &[4, 5]));
    // Twice within a group, and out of order.
    let acks = receiver
        .receive(&[
            (Kind::Catalog, catalog(EPOCH, 1)),
            (Kind::Data, two.clone()),
            (Kind::Data, one.clone()),
            (Kind::Data, two.clone()),
        ])
        .await;
    assert_eq!(said(&acks[&EPOCH]), (2, vec![], &[][..], Verdict::Ok));
    // And again, under another header, to another receiver on the same database.
    let mut other = Receiver::new(&database);
    other.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    let ack = other.data(renamed(&one, EPOCH, 1, 1)).await;
    assert_eq!(said(&ack), (2, vec![], &[][..], Verdict::Ok), "a duplicate is answered");
    assert_eq!(database.one("SELECT count(*), sum(value_int) FROM reading").await, "5|15");
    assert_eq!(database.one("SELECT count(*), sum(readings) FROM batch").await, "2|5");
    assert_eq!(database.one("SELECT count(*) FROM quarantine").await, "0");
}

async fn another_body_under_the_same_seq_is_a_fork(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    receiver.data(batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    receiver.data(batch(EPOCH, 2, 1, &temperatures(1_000, &[2]))).await;
    let ack = receiver.data(batch(EPOCH, 2, 2, &temperatures(1_000, &[99]))).await;
    assert_eq!(said(&ack), (1, vec![], &[][..], Verdict::Forked), "the second body's owner must not free it");
    assert_eq!(database.one("SELECT seq, reason FROM quarantine").await, "2|forked");
    assert_eq!(database.one("SELECT count(*), sum(value_int) FROM reading").await, "2|3", "the first body stays");
    let ack = receiver.data(batch(EPOCH, 3, 1, &temperatures(2_000, &[3]))).await;
    assert_eq!(said(&ack), (1, vec![(3, 3)], &[][..], Verdict::Forked), "once forked, the epoch is over");
    // The forked body under a new epoch is new.
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH + 1, 1))]).await;
    let ack = receiver.data(batch(EPOCH + 1, 1, 1, &temperatures(1_000, &[99]))).await;
    assert_eq!(said(&ack), (1, vec![], &[][..], Verdict::Ok));
    assert_eq!(database.one("SELECT count(*), sum(value_int) FROM reading").await, "4|105");
}

async fn bodies_renumbered_in_a_new_epoch_are_settled_without_readings(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1)), (Kind::Catalog, catalog(EPOCH + 7, 1))]).await;
    let named = pb::Loss {
        reason: Reason::SpoolFull.into(),
        first_seq: 3,
        last_seq: 4,
        readings: 9,
        epoch: EPOCH,
        ..Default::default()
    };
    let bodies = [temperatures(0, &[1]), load(1_000, &[2], vec![named], vec![]), temperatures(2_000, &[4])];
    receiver.data(batch(EPOCH, 1, 1, &bodies[0])).await;
    receiver.data(batch(EPOCH, 2, 1, &bodies[1])).await;
    // Neither Ack arrived: all three are renumbered.
    for (seq, body) in (1..).zip(&bodies) {
        receiver.data(batch(EPOCH + 7, seq, 1, body)).await;
    }
    assert_eq!(database.one("SELECT count(*), sum(value_int) FROM reading").await, "3|7");
    assert_eq!(database.one("SELECT count(*), sum(readings) FROM loss").await, "1|9", "a loss is not said twice");
    let rows = database
        .rows(&format!("SELECT seq, readings, original_seq FROM batch WHERE epoch = {} ORDER BY seq", EPOCH + 7))
        .await;
    assert_eq!(rows, ["1|0|1", "2|0|2", "3|1|-"]);
    assert_eq!(database.one("SELECT epoch, contiguous_seq FROM agent").await, format!("{}|3", EPOCH + 7));
    // The other way round: the old numbers arrive last.
    let late = temperatures(9_000, &[8]);
    receiver.data(batch(EPOCH + 7, 4, 1, &late)).await;
    let ack = receiver.data(batch(EPOCH, 5, 1, &late)).await;
    assert_eq!(said(&ack), (5, vec![], &[][..], Verdict::Ok), "3 and 4 of the old epoch are lost");
    assert_eq!(database.one("SELECT count(*), sum(value_int) FROM reading").await, "4|15");
}

async fn equal_bodies_of_one_epoch_are_two_batches(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1)), (Kind::Catalog, catalog(EPOCH + 7, 1))]).await;
    let same = temperatures(0, &[5]);
    let empty = load(0, &[], vec![], vec![]);
    for (seq, body) in [(1, &same), (2, &same), (3, &empty), (4, &empty)] {
        receiver.data(batch(EPOCH, seq, 1, body)).await;
    }
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "2");
    // Renumbered, with a third of the kind that never arrived: two find an original, the third is new.
    for (seq, body) in [(1, &same), (2, &same), (3, &same), (4, &empty)] {
        receiver.data(batch(EPOCH + 7, seq, 1, body)).await;
    }
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "3");
    let rows =
        database.rows(&format!("SELECT seq, original_seq FROM batch WHERE epoch = {} ORDER BY seq", EPOCH + 7)).await;
    assert_eq!(rows, ["1|1", "2|2", "3|-", "4|-"], "an empty body proves nothing");
}

async fn gaps_are_facts_and_a_late_batch_wins(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    let body = |seq: u64| temperatures(1_000 * seq.cast_signed(), &[seq.cast_signed()]);
    let ack = receiver.data(batch(EPOCH, 5, 1, &body(5))).await;
    assert_eq!(said(&ack), (0, vec![(5, 5)], &[][..], Verdict::Ok));
    assert!(database.rows("SELECT * FROM gap").await.is_empty(), "late is not lost");
    let ack = receiver.data(batch(EPOCH, 6, 4, &body(6))).await;
    assert_eq!(said(&ack), (3, vec![(5, 6)], &[][..], Verdict::Ok));
    assert_eq!(database.one("SELECT epoch, first_seq, last_seq FROM gap").await, format!("{EPOCH}|1|3"));
    let ack = receiver.data(batch(EPOCH, 2, 2, &body(2))).await;
    assert_eq!(said(&ack), (3, vec![(5, 6)], &[][..], Verdict::Ok));
    assert_eq!(database.rows("SELECT first_seq, last_seq FROM gap ORDER BY 1").await, ["1|1", "3|3"], "the batch wins");
    // A loss above first_retained_seq makes its hole final; one that names another epoch is that epoch's.
    let losses = [(EPOCH, 4, 4), (EPOCH - 3, 11, 12), (0, 8, 9)].map(|(epoch, first_seq, last_seq)| pb::Loss {
        reason: Reason::SpoolDamaged.into(),
        epoch,
        first_seq,
        last_seq,
        readings: 1,
        ..Default::default()
    });
    let ack = receiver.data(batch(EPOCH, 7, 4, &load(0, &[], losses.to_vec(), vec![]))).await;
    assert_eq!(said(&ack), (9, vec![], &[][..], Verdict::Ok));
    let gaps = database.rows(&format!("SELECT epoch - {EPOCH}, first_seq, last_seq FROM gap ORDER BY 1, 2")).await;
    assert_eq!(gaps, ["-3|11|12", "0|1|1", "0|3|4", "0|8|9"]);
    assert_eq!(database.one("SELECT contiguous_seq, first_retained_seq, last_seq FROM agent").await, "9|4|7");
}

async fn a_damaged_batch_is_set_aside_and_stays_refused(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    receiver.data(batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    let damaged = renamed(&golden("invalid/crc.bin"), EPOCH, 2, 1);
    let ack = receiver.data(damaged.clone()).await;
    assert_eq!(said(&ack), (2, vec![], &[2][..], Verdict::BadPayload));
    let ack = receiver.data(damaged).await;
    assert_eq!(said(&ack), (2, vec![], &[2][..], Verdict::BadPayload));
    assert_eq!(
        database.one("SELECT epoch, seq, reason FROM quarantine").await,
        format!("{EPOCH}|2|bad_payload"),
        "once"
    );
    let ack = receiver.data(batch(EPOCH, 3, 1, &temperatures(0, &[3]))).await;
    assert_eq!(said(&ack), (3, vec![], &[2][..], Verdict::Ok), "repeated while retained, and no block");
    let ack = receiver.data(batch(EPOCH, 2, 1, &temperatures(0, &[2]))).await;
    assert_eq!(said(&ack), (3, vec![], &[2][..], Verdict::BadPayload), "for good");
    assert_eq!(database.one("SELECT count(*) FROM quarantine").await, "2", "but never dropped");
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "2");
    assert!(database.rows("SELECT * FROM gap").await.is_empty());
    // A header that cannot be believed: no seq to refuse, nothing to block.
    let acks = receiver.receive(&[(Kind::Data, Bytes::from_static(b"\x0a\xff\xff"))]).await;
    assert_eq!(said(&acks[&EPOCH]), (3, vec![], &[2][..], Verdict::BadPayload));
    assert_eq!(database.one("SELECT count(*) FROM quarantine WHERE epoch = 0 AND seq = 0").await, "1");
}

async fn what_is_too_new_stays_at_the_edge(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    let ack = receiver.data(golden("invalid/schema-2.bin").into()).await;
    assert_eq!(said(&ack), (0, vec![], &[][..], Verdict::TooNew));
    assert_eq!(database.one("SELECT count(*) FROM batch").await, "0");
    assert_eq!(database.one("SELECT count(*) FROM quarantine").await, "0");
}

async fn a_batch_waits_for_its_catalogue(database: Database) {
    let mut receiver = Receiver::new(&database);
    let one = batch(EPOCH, 1, 1, &temperatures(0, &[1]));
    let ack = receiver.data(one.clone()).await;
    assert_eq!((said(&ack), ack.want_catalog_rev), ((0, vec![], &[][..], Verdict::Ok), 1));
    receiver.data(one.clone()).await;
    assert_eq!(receiver.intake.waiting_bytes(), one.len(), "held once");
    assert_eq!(database.one("SELECT count(*) FROM batch").await, "0");
    let acks = receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 2))]).await;
    assert_eq!((said(&acks[&EPOCH]), acks[&EPOCH].want_catalog_rev), ((1, vec![], &[][..], Verdict::Ok), 0));
    assert_eq!((receiver.intake.waiting_bytes(), database.one("SELECT count(*) FROM reading").await), (0, "1".into()));
    // Another receiver finds the catalogue in the database.
    let mut other = Receiver::new(&database);
    let two = batch(EPOCH, 2, 1, &temperatures(0, &[2]));
    let arrivals = other.intake.take(&other.key, Kind::Data, &two);
    assert!(matches!(arrivals[..], [Arrival::Waiting { epoch: EPOCH, rev: 1 }]));
    let known = other.store.catalog(&other.key, EPOCH).await.unwrap().unwrap();
    assert_eq!(other.store.catalog(&other.key, EPOCH + 1).await.unwrap(), None);
    let arrivals = other.intake.learn(&other.key, &known);
    assert_eq!(said(&other.commit(arrivals).await[&EPOCH]), (2, vec![], &[][..], Verdict::Ok));
}

async fn a_newer_catalogue_describes_and_an_older_one_does_not(database: Database) {
    let mut receiver = Receiver::new(&database);
    let mut content = pb::Content::decode(&golden("plant.catalog.bin")[..]).unwrap();
    content.points[0].description = "in the oil".into();
    content.points.push(pb::Point { id: 77, device: 2, name: "late".into(), r#type: 2, ..Default::default() });
    let newer = plant::catalog_of(EPOCH, 2, &content.encode_to_vec());
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    receiver.receive(&[(Kind::Catalog, newer)]).await;
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    let rows = database.rows("SELECT id, description, first_rev FROM point WHERE id IN (1, 77) ORDER BY id").await;
    assert_eq!(rows, ["1|in the oil|1", "77||2"]);
    assert_eq!(database.one("SELECT rev FROM catalog").await, "2");
    receiver.receive(&[(Kind::Catalog, Bytes::from_static(b"\x08\x01nonsense"))]).await;
    assert_eq!(database.one("SELECT reason FROM quarantine").await, "bad_catalog");
}

async fn statuses_fill_the_row_and_the_will_leaves_the_ledger(database: Database) {
    let mut receiver = Receiver::new(&database);
    let message = |status: pb::AgentStatus| (Kind::Status, Bytes::from(status.encode_to_vec()));
    let acks = receiver.receive(&[message(status(State::Online, EPOCH, START_MS, 40))]).await;
    assert_eq!(said(&acks[&EPOCH]), (0, vec![], &[][..], Verdict::Ok), "ONLINE is answered");
    let columns = "SELECT epoch, state, last_seq, first_retained_seq, contiguous_seq, admitted, delivered, held, filtered, lost, at_ms FROM agent";
    assert_eq!(database.one(columns).await, format!("{EPOCH}|online|3|1|0|40|40|0|0|0|{START_MS}"));
    let will = pb::AgentStatus { epoch: EPOCH, boot_id: vec![7; 16], ..Default::default() };
    assert!(receiver.receive(&[message(will)]).await.is_empty());
    assert_eq!(database.one(columns).await, format!("{EPOCH}|offline|3|1|0|40|40|0|0|0|{START_MS}"));
    let acks = receiver.receive(&[message(status(State::Degraded, EPOCH, START_MS + 1, 41))]).await;
    assert_eq!(acks.len(), 1, "DEGRADED is answered");
    assert!(receiver.receive(&[message(status(State::Stopping, EPOCH, START_MS + 2, 41))]).await.is_empty());
    assert!(receiver.receive(&[message(status(State::Offline, EPOCH, START_MS + 3, 42))]).await.is_empty());
    assert_eq!(database.one(columns).await, format!("{EPOCH}|offline|3|1|0|42|42|0|0|0|{}", START_MS + 3));
    // A receiver that starts greets whom it finds.
    let mut other = Receiver::new(&database);
    assert_eq!(other.store.agents().await.unwrap(), [other.key.clone()]);
    assert_eq!(other.commit(vec![Arrival::Greeting]).await.keys().collect::<Vec<_>>(), [&EPOCH]);
    // A new epoch has a ledger of its own, even if the clock has gone back.
    let acks = receiver.receive(&[message(status(State::Online, EPOCH - 9, 5, 1))]).await;
    assert_eq!(acks.len(), 1);
    assert_eq!(database.one(columns).await, format!("{}|online|3|1|0|1|1|0|0|0|5", EPOCH - 9));
}

async fn losses_and_events_become_rows(database: Database) {
    let mut receiver = Receiver::new(&database);
    let message = golden("12-losses-events.bin");
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1)), (Kind::Data, message.into())]).await;
    let losses = database
        .rows("SELECT seq, reason, loss_epoch, first_seq, last_seq, device, point, from_ms, to_ms, readings FROM loss ORDER BY reason, point, loss_epoch")
        .await;
    let group = |point| format!("9|agent_down|{EPOCH}|0|0|press|{point}|1700000000000|1700000059999|60");
    let mut wanted: Vec<String> = ["energy", "mode", "running", "temperature"].into_iter().map(group).collect();
    wanted.push(format!("9|policy|{EPOCH}|0|0|scale|weight|1700000000000|1700000000000|1"));
    wanted.push(format!("9|refused|{EPOCH}|2|2|-|-|0|0|300"));
    wanted.push("9|spool_damaged|7129954412137196202|118|120|-|-|0|0|900".into());
    wanted.push(format!("9|spool_full|{EPOCH}|3|5|-|-|0|0|1200"));
    assert_eq!(losses, wanted);
    let events = database.rows("SELECT idx, device, point, code, state, severity, text, value_num, value_int, value_text, occurrence FROM event ORDER BY idx").await;
    assert_eq!(events[0], "0|press|level|limit.high|1|700|level above 12.5 m|12.75|-|-|77");
    assert_eq!(events[2], "2|-|-|clock.step|0|500||-|-86400000|-|0");
    assert_eq!(events[3], "3|press|running|state|0|1||-|0|-|0");
    assert_eq!(events[4], "4|press|recipe|recipe.changed|0|1||-|-||0");
    assert_eq!(
        database.rows("SELECT epoch, first_seq, last_seq FROM gap ORDER BY 1, 2").await,
        ["7129954412137196202|118|120".to_owned(), format!("{EPOCH}|1|5"),]
    );
}

async fn odd_text_and_odd_numbers_go_in(database: Database) {
    let mut receiver = Receiver::new(&database);
    let mut content = pb::Content::decode(&golden("plant.catalog.bin")[..]).unwrap();
    content.points[0].unit = "a\0b".into();
    content.points[0].factor = f64::NAN;
    content.points[1].bias = f64::INFINITY;
    let event = pb::Event {
        code: "x\0y".into(),
        text: "\0".into(),
        value: Some(pb::event::Value::Number(f64::NAN)),
        ..Default::default()
    };
    let body = load(0, &[7], vec![], vec![event]);
    let acks = receiver
        .receive(&[
            (Kind::Catalog, plant::catalog_of(EPOCH, 1, &content.encode_to_vec())),
            (Kind::Data, batch(EPOCH, u64::MAX, 3, &body)),
        ])
        .await;
    assert_eq!(said(&acks[&EPOCH]), (2, vec![(u64::MAX, u64::MAX)], &[][..], Verdict::Ok));
    assert_eq!(database.one("SELECT count(*), max(value_int) FROM reading").await, "1|7");
    assert_eq!(database.one("SELECT count(*) FROM event").await, "1");
    let ack = receiver.data(batch(EPOCH, 1, 1, &temperatures(0, &[1]))).await;
    assert_eq!(said(&ack), (2, vec![(u64::MAX, u64::MAX)], &[][..], Verdict::Ok));
}

/// Retention: rows deleted from the ledger do not come back as new, for the facts still know them.
async fn old_rows_may_be_cut_off(database: Database) {
    let mut receiver = Receiver::new(&database);
    receiver.receive(&[(Kind::Catalog, catalog(EPOCH, 1))]).await;
    let one = batch(EPOCH, 1, 1, &temperatures(0, &[1]));
    receiver.data(one.clone()).await;
    match &database {
        Database::Sqlite(directory) => {
            let file = rusqlite::Connection::open(directory.path().join("centre.db")).unwrap();
            file.execute_batch("DELETE FROM reading_row; DELETE FROM batch").unwrap();
        }
        Database::Postgres(_) => drop(database.rows("DELETE FROM reading_row; DELETE FROM batch").await),
    }
    let ack = receiver.data(one).await;
    assert_eq!(said(&ack), (1, vec![], &[][..], Verdict::Ok));
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "0");
}

/// 60 random histories of two epochs (batches in any order, twice, renumbered, forked, damaged, with losses), through
/// SQLite and through the memory store: the same Acks after each group, the same facts in the end.
#[tokio::test]
async fn memory_agrees_with_sqlite() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let database = Database::sqlite();
        let mut receiver = Receiver::new(&database);
        let mut memory = Memory::new();
        let mut catalogs = Vec::new();
        for epoch in [EPOCH, EPOCH + 1] {
            catalogs.extend(receiver.intake.take(&receiver.key, Kind::Catalog, &catalog(epoch, 1)));
        }
        memory.commit(&Group::from([(receiver.key.clone(), catalogs.clone())]), 1);
        receiver.commit(catalogs).await;
        for _ in 0..12 {
            let mut arrivals = Vec::new();
            for _ in 0..random.usize(1..6) {
                let (epoch, seq) = (EPOCH + random.u64(0..2), random.u64(1..12));
                let first_retained = random.u64(1..=seq.min(3));
                let body = match random.u8(0..8) {
                    0 => load(0, &[], vec![], vec![]),
                    1 => {
                        let first_seq = random.u64(1..8);
                        let epoch = EPOCH + random.u64(0..2);
                        let named =
                            pb::Loss { epoch, first_seq, last_seq: first_seq + 1, readings: 1, ..Default::default() };
                        load(0, &[], vec![named], vec![])
                    }
                    2 => temperatures(0, &[random.i64(0..3)]),
                    _ => temperatures(1_000 * seq.cast_signed(), &[seq.cast_signed()]),
                };
                let mut message = batch(epoch, seq, first_retained, &body).to_vec();
                if random.u8(0..12) == 0 {
                    *message.last_mut().unwrap() ^= 1;
                }
                arrivals.extend(receiver.intake.take(&receiver.key, Kind::Data, &message.into()));
            }
            let group = Group::from([(receiver.key.clone(), arrivals)]);
            let said = receiver.store.commit(&group, 1).await.unwrap();
            assert_eq!(said, memory.commit(&group, 1), "seed {seed}");
        }
        let facts = database
            .rows("SELECT epoch, committed, refused, lost, forked, first_retained_seq FROM contiguity ORDER BY 1")
            .await;
        let wanted: Vec<String> = memory
            .epochs
            .iter()
            .map(|((_, epoch), facts)| {
                let Contiguity { committed, refused, lost, forked, first_retained } = facts;
                format!("{epoch}|{committed}|{refused}|{lost}|{forked}|{first_retained}")
            })
            .collect();
        assert_eq!(facts, wanted, "seed {seed}");
        let gaps = database.rows("SELECT epoch, first_seq, last_seq FROM gap ORDER BY 1, 2").await;
        let wanted: Vec<String> = memory
            .epochs
            .iter()
            .flat_map(|((_, epoch), facts)| {
                facts.gaps().iter().map(|(first, last)| format!("{epoch}|{first}|{last}")).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(gaps, wanted, "seed {seed}");
        let readings: u32 = memory
            .batches
            .iter()
            .filter(|(_, batch)| batch.original.is_none())
            .map(|(_, batch)| batch.delivery.readings)
            .sum();
        assert_eq!(database.one("SELECT count(*) FROM reading").await, readings.to_string(), "seed {seed}");
    }
}
