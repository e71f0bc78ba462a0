//! Receivers side by side on one PostgreSQL, and what happens when it goes away under them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod databases;
mod plant;

use std::collections::BTreeMap;

use bytes::Bytes;
use databases::Database;
use plant::{EPOCH, agent, batch, catalog, temperatures};
use tributary_proto::pb;
use tributary_receiver::intake::Intake;
use tributary_receiver::store::{Group, Store, StoreConfig, StoreError};
use tributary_receiver::topic::{AgentKey, Kind};

const AGENTS: u64 = 6;
const BATCHES: u64 = 60;
const RECEIVERS: u64 = 3;

/// The second life of each agent: every body again under another number.
const NEXT: u64 = EPOCH + 1;

fn key(agent_number: u64) -> AgentKey {
    agent(&format!("gw-{agent_number}"))
}

/// What an agent sent: (epoch, seq) and message. All of both epochs; seq 7 of the first never arrives, and is known to be
/// lost from seq 40 on.
fn sent(agent_number: u64) -> Vec<Bytes> {
    let body =
        |seq: u64| temperatures((agent_number * 1_000_000 + seq * 10_000).cast_signed(), &[seq.cast_signed(), -1]);
    let first = |seq| if seq < 40 { 1 } else { 8 };
    let old = (1..=BATCHES).filter(|&seq| seq != 7).map(|seq| batch(EPOCH, seq, first(seq), &body(seq)));
    let renumbered =
        (1..=BATCHES).filter(|&seq| seq != 7).zip(1..).map(|(seq, number)| batch(NEXT, number, 1, &body(seq)));
    old.chain(renumbered).collect()
}

/// One receiver: all messages of all agents in an order of its own, in groups of chance size.
fn receive(config: &StoreConfig, seed: u64) -> Result<Vec<(AgentKey, pb::Ack)>, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut intake, mut store) = (Intake::new(), Store::open(config)?);
        let mut messages: Vec<(u64, Kind, Bytes)> = Vec::new();
        for number in 0..AGENTS {
            messages.extend(sent(number).into_iter().map(|message| (number, Kind::Data, message)));
        }
        random.shuffle(&mut messages);
        let catalogs =
            (0..AGENTS).flat_map(|number| [EPOCH, NEXT].map(|epoch| (number, Kind::Catalog, catalog(epoch, 1))));
        messages.splice(0..0, catalogs);
        let (mut said, mut rest) = (Vec::new(), &messages[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.usize(1..=20).min(rest.len()));
            rest = later;
            let mut group = Group::new();
            for (number, kind, message) in now {
                group.entry(key(*number)).or_default().extend(intake.take(&key(*number), *kind, message));
            }
            said.extend(store.commit(&group, 1).await?);
        }
        Ok(said)
    })
}

/// Three receivers get everything, each in another order: nothing doubled, nothing lost, no false gap, no deadlock, and no
/// Ack that claims what is not there.
#[tokio::test(flavor = "current_thread")]
async fn receivers_agree_whatever_comes_to_whom_and_when() {
    let database = Database::postgres().await;
    let config = database.config();
    let said: Vec<(AgentKey, pb::Ack)> = std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..RECEIVERS)
            .map(|seed| {
                scope.spawn({
                    let config = &config;
                    move || receive(config, seed)
                })
            })
            .collect();
        receivers.into_iter().flat_map(|receiver| receiver.join().unwrap().unwrap()).collect()
    });
    let arrived = AGENTS * (BATCHES - 1);
    assert_eq!(database.one("SELECT count(*) FROM reading").await, (2 * arrived).to_string(), "each reading once");
    let twice = "SELECT count(*) FROM (SELECT agent, at_ms, value_int FROM reading GROUP BY 1, 2, 3 HAVING count(*) > 1) AS twice";
    assert_eq!(database.one(twice).await, "0");
    assert_eq!(
        database.one("SELECT count(*), sum(readings) FROM batch").await,
        format!("{}|{}", 2 * arrived, 2 * arrived)
    );
    assert_eq!(database.one("SELECT count(*) FROM batch WHERE original_seq IS NOT NULL").await, arrived.to_string());
    let gaps = database.rows("SELECT DISTINCT epoch, first_seq, last_seq FROM gap").await;
    assert_eq!(gaps, [format!("{EPOCH}|7|7")]);
    assert_eq!(database.one("SELECT count(*) FROM gap").await, AGENTS.to_string());
    assert_eq!(database.one("SELECT count(*) FROM quarantine").await, "0");
    let facts = database.rows("SELECT DISTINCT epoch, contiguous_seq, committed FROM contiguity ORDER BY 1").await;
    assert_eq!(facts, [format!("{EPOCH}|60|1-6,8-60"), format!("{NEXT}|59|1-59")]);
    let last: BTreeMap<_, _> = said.iter().map(|(key, ack)| ((key, ack.epoch), ack.contiguous_seq)).collect();
    assert_eq!(last.len() as u64, 2 * AGENTS);
    assert!(said.iter().all(|(_, ack)| ack.verdict() == pb::Verdict::Ok && ack.refused.is_empty()));
}

/// The tables are made by whoever comes first, however many come at once.
#[tokio::test]
async fn receivers_may_start_together() {
    let database = Database::postgres().await;
    let config = database.config();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let agents = runtime.block_on(async { Store::open(&config).unwrap().agents().await });
                assert_eq!(agents.unwrap(), []);
            });
        }
    });
}

/// A connection that is cut fails once, says that it may pass, and the next try finds everything as it was.
#[tokio::test]
async fn a_cut_connection_is_made_again() {
    let database = Database::postgres().await;
    let (mut intake, mut store, key) = (Intake::new(), database.open(), agent("gw-1"));
    let mut arrivals = intake.take(&key, Kind::Catalog, &catalog(EPOCH, 1));
    arrivals.extend(intake.take(&key, Kind::Data, &batch(EPOCH, 1, 1, &temperatures(0, &[1]))));
    let group = Group::from([(key, arrivals)]);
    store.commit(&group, 0).await.unwrap();
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tributary-receiver'";
    assert_eq!(database.one(cut).await, "1");
    let mut tries = 0;
    let acks = loop {
        tries += 1;
        match store.commit(&group, 0).await {
            Ok(acks) => break acks,
            Err(error) => assert!(!error.is_about_the_data() && tries < 3, "{error}"),
        }
    };
    assert_eq!(acks[0].1.contiguous_seq, 1);
    assert_eq!(database.one("SELECT count(*) FROM reading").await, "1");
}

/// Two receivers may share an SQLite file too: the one waits for the other.
#[tokio::test]
async fn receivers_agree_on_one_sqlite_file() {
    let database = Database::sqlite();
    let config = database.config();
    drop(database.open());
    std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..2)
            .map(|seed| {
                scope.spawn({
                    let config = &config;
                    move || receive(config, seed)
                })
            })
            .collect();
        receivers.into_iter().for_each(|receiver| drop(receiver.join().unwrap().unwrap()));
    });
    let arrived = AGENTS * (BATCHES - 1);
    assert_eq!(database.one("SELECT count(*) FROM reading").await, (2 * arrived).to_string());
    assert_eq!(database.one("SELECT count(*) FROM gap").await, AGENTS.to_string());
}
