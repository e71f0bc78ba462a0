//! PostgreSQL: the centre's database.
//!
//! Readings go in by binary COPY, everything else by prepared statements, sent without waiting for one another's answers
//! (one round trip a table, not a row). The agents' rows are locked first, in the order of their keys; everything after
//! happens under these locks, so two receivers never decide about one agent at the same time, and never wait for each other
//! in a circle.
//!
//! Measured on two busy cores, fsync on, groups of 200 batches of 1,000 readings: 470,000 to 650,000 readings a second over
//! one connection, 76 bytes each on disk with both BRIN indices; 180,000 with 100 readings a batch.
//!
//! What COMMIT means is the server's setting: `synchronous_commit = on`, and with a standby `synchronous_standby_names`;
//! else a fail-over loses what was acknowledged. Text with a NUL, which PostgreSQL cannot hold, gets U+FFFD in its place; the
//! body keeps it. Without TLS: put the receiver beside its database, or a tunnel between.

mod write;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, try_join_all};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement, Transaction};

use super::{Acks, Group, StoreError, bits};
use crate::agent::AgentRow;
use crate::contiguity::Contiguity;
use crate::ingest::{BodyHash, Delivery};
use crate::ledger::{Arrival, Book, Entry, settle};
use crate::topic::AgentKey;

const SCHEMA: &str = include_str!("postgres.sql");

/// "tributar": held while the tables are made, so that receivers which start together do not trip over each other.
const SCHEMA_LOCK: i64 = 0x7472_6962_7574_6172;

/// Longest wait for a connection, and for a group or a look-up. A database that is silent for longer is taken for gone.
const CONNECT_SECONDS: u64 = 5;
const ANSWER_SECONDS: u64 = 60;

/// A database, connected or not.
pub struct Postgres {
    config: Config,
    open: Option<Open>,
}

struct Open {
    client: Client,
    sql: Statements,
}

/// Every statement, prepared once a connection.
struct Statements {
    enrol: Statement,
    lock: Statement,
    facts: Statement,
    by_seq: Statement,
    by_body: Statement,
    batch: Statement,
    copy: Statement,
    loss: Statement,
    event: Statement,
    quarantine: Statement,
    catalog: Statement,
    point: Statement,
    contiguity: Statement,
    gap_close: Statement,
    gap_open: Statement,
    agent: Statement,
    read_catalog: Statement,
    agents: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, StoreError> {
        let prepare = |sql: &'static str| client.prepare(sql);
        Ok(Self {
            enrol: prepare("INSERT INTO agent (site, agent) VALUES ($1, $2) ON CONFLICT DO NOTHING").await?,
            lock: prepare(
                "SELECT epoch, state, last_seq, first_retained_seq, contiguous_seq, admitted, delivered, held, filtered, \
                 lost, lost_by_reason, at_ms, by_status, boot_id, version, catalog_rev, config_sha256, time_quality, \
                 backlog_bytes, backlog_oldest_ms, received_at FROM agent WHERE site = $1 AND agent = $2 FOR UPDATE",
            )
            .await?,
            facts: prepare(
                "SELECT first_retained_seq, committed, refused, lost, forked FROM contiguity \
                 WHERE site = $1 AND agent = $2 AND epoch = $3",
            )
            .await?,
            by_seq: prepare("SELECT body_hash FROM batch WHERE site = $1 AND agent = $2 AND epoch = $3 AND seq = $4").await?,
            by_body: prepare(
                "SELECT epoch, seq, original_epoch, original_seq FROM batch \
                 WHERE site = $1 AND agent = $2 AND body_hash = $3",
            )
            .await?,
            batch: prepare(
                "INSERT INTO batch (site, agent, epoch, seq, body_hash, readings, received_at, body, zstd, catalog_rev, \
                 lane, time_quality, time_error_ms, original_epoch, original_seq) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING id",
            )
            .await?,
            copy: prepare(
                "COPY reading_row (batch, point, at_ms, idx, status, value_num, value_int, value_text) FROM STDIN BINARY",
            )
            .await?,
            loss: prepare("INSERT INTO loss VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)").await?,
            event: prepare(
                "INSERT INTO event VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
            )
            .await?,
            quarantine: prepare(
                "INSERT INTO quarantine VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            )
            .await?,
            catalog: prepare(
                "INSERT INTO catalog VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (site, agent, epoch) DO UPDATE \
                 SET rev = excluded.rev, received_at = excluded.received_at, message = excluded.message \
                 WHERE catalog.rev < excluded.rev",
            )
            .await?,
            point: prepare(
                "INSERT INTO point VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15) \
                 ON CONFLICT (site, agent, epoch, id) DO UPDATE \
                 SET path = excluded.path, description = excluded.description, rev = excluded.rev",
            )
            .await?,
            contiguity: prepare(
                "INSERT INTO contiguity VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
                 ON CONFLICT (site, agent, epoch) DO UPDATE SET first_retained_seq = $4, contiguous_seq = $5, \
                 highest_seq = $6, committed = $7, refused = $8, lost = $9, forked = $10",
            )
            .await?,
            gap_close: prepare("DELETE FROM gap WHERE site = $1 AND agent = $2 AND epoch = $3 AND first_seq = $4").await?,
            gap_open: prepare("INSERT INTO gap VALUES ($1, $2, $3, $4, $5)").await?,
            agent: prepare(
                "UPDATE agent SET epoch = $3, state = $4, last_seq = $5, first_retained_seq = $6, contiguous_seq = $7, \
                 admitted = $8, delivered = $9, held = $10, filtered = $11, lost = $12, lost_by_reason = $13, at_ms = $14, \
                 by_status = $15, boot_id = $16, version = $17, catalog_rev = $18, config_sha256 = $19, time_quality = $20, \
                 backlog_bytes = $21, backlog_oldest_ms = $22, received_at = $23 WHERE site = $1 AND agent = $2",
            )
            .await?,
            read_catalog: prepare("SELECT message FROM catalog WHERE site = $1 AND agent = $2 AND epoch = $3").await?,
            agents: prepare("SELECT site, agent FROM agent ORDER BY site, agent").await?,
        })
    }
}

impl Postgres {
    pub(super) fn new(mut config: Config) -> Self {
        config.connect_timeout(Duration::from_secs(CONNECT_SECONDS));
        config.tcp_user_timeout(Duration::from_secs(ANSWER_SECONDS));
        if config.get_application_name().is_none() {
            config.application_name("tributary-receiver");
        }
        Self { config, open: None }
    }

    /// The connection, made if there is none; a failed or silent use of it ends it, so that the next begins afresh.
    async fn with<T>(&mut self, work: impl AsyncFnOnce(&mut Open) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let attempt = async {
            let mut open = match self.open.take() {
                Some(open) if !open.client.is_closed() => open,
                _ => connect(&self.config).await?,
            };
            let done = work(&mut open).await;
            Ok::<_, StoreError>((open, done))
        };
        let limit = Duration::from_secs(ANSWER_SECONDS);
        let (open, done) =
            tokio::time::timeout(limit, attempt).await.map_err(|_| StoreError::Silent(ANSWER_SECONDS))??;
        if done.is_ok() {
            self.open = Some(open);
        }
        done
    }

    // Boxed, all three: else each crate that waits for one compiles all of it again.

    pub(super) fn commit<'a>(
        &'a mut self,
        group: &'a Group,
        now_ms: i64,
    ) -> LocalBoxFuture<'a, Result<Acks, StoreError>> {
        Box::pin(self.with(async move |open| commit(open, group, now_ms).await))
    }

    pub(super) fn catalog<'a>(
        &'a mut self,
        key: &'a AgentKey,
        epoch: u64,
    ) -> LocalBoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(self.with(async move |Open { client, sql }| {
            let row = client.query_opt(&sql.read_catalog, &[&key.site, &key.agent, &bits(epoch)]).await?;
            Ok(row.map(|row| row.try_get::<_, Vec<u8>>(0)).transpose()?.map(Bytes::from))
        }))
    }

    pub(super) fn agents(&mut self) -> LocalBoxFuture<'_, Result<Vec<AgentKey>, StoreError>> {
        Box::pin(self.with(async |Open { client, sql }| {
            let rows = client.query(&sql.agents, &[]).await?;
            rows.iter().map(|row| Ok(AgentKey { site: row.try_get(0)?, agent: row.try_get(1)? })).collect()
        }))
    }
}

async fn connect(config: &Config) -> Result<Open, StoreError> {
    let (mut client, connection) = config.connect(NoTls).await?;
    // It ends when the client is dropped or the server goes; the next use of the client then fails and says why.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to PostgreSQL ended");
        }
    });
    let tx = client.transaction().await?;
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    // The tables are made in one transaction, so the view proves that all are there. Making them "if not exists" each time
    // would lock tables that the other receiver is writing to.
    let missing: bool = tx.query_one("SELECT to_regclass('reading') IS NULL", &[]).await?.try_get(0)?;
    if missing {
        tx.batch_execute(SCHEMA).await?;
    }
    tx.commit().await?;
    let sql = Statements::prepare(&client).await?;
    Ok(Open { client, sql })
}

async fn commit(open: &mut Open, group: &Group, now_ms: i64) -> Result<Acks, StoreError> {
    let Open { client, sql } = open;
    let tx = client.transaction().await?;
    let mut acks = Acks::new();
    let mut settled = Vec::with_capacity(group.len());
    let books = books(&tx, sql, group).await?;
    for ((key, arrivals), book) in group.iter().zip(books) {
        let mut done = settle(book, arrivals, now_ms);
        acks.extend(std::mem::take(&mut done.acks).into_iter().map(|ack| (key.clone(), ack)));
        settled.push((key, done));
    }
    write::write(&tx, sql, &settled, now_ms).await?;
    tx.commit().await?;
    Ok(acks)
}

fn unsigned(row: &Row, column: usize) -> Result<u64, StoreError> {
    Ok(row.try_get::<_, i64>(column)?.cast_unsigned())
}

/// Locks the agents in the order of their keys and loads what is known of them.
async fn books(tx: &Transaction<'_>, sql: &Statements, group: &Group) -> Result<Vec<Book>, StoreError> {
    let locks = group.keys().map(async |key| {
        let name: [&(dyn ToSql + Sync); 2] = [&key.site, &key.agent];
        tokio::try_join!(tx.execute(&sql.enrol, &name), tx.query_one(&sql.lock, &name))
    });
    let mut books = Vec::with_capacity(group.len());
    for (_, row) in try_join_all(locks).await? {
        books.push(Book { agent: agent(&row)?, ..Book::default() });
    }
    // From here on statements run under all the locks, each with a snapshot younger than them (READ COMMITTED).
    let loads =
        group.iter().zip(&mut books).map(async |((key, arrivals), book)| load(tx, sql, key, arrivals, book).await);
    try_join_all(loads).await?;
    Ok(books)
}

fn agent(row: &Row) -> Result<AgentRow, StoreError> {
    Ok(AgentRow {
        epoch: unsigned(row, 0)?,
        state: row.try_get(1)?,
        last_seq: unsigned(row, 2)?,
        first_retained_seq: unsigned(row, 3)?,
        contiguous_seq: unsigned(row, 4)?,
        admitted: unsigned(row, 5)?,
        delivered: unsigned(row, 6)?,
        held: unsigned(row, 7)?,
        filtered: unsigned(row, 8)?,
        lost: unsigned(row, 9)?,
        lost_by_reason: row.try_get(10)?,
        at_ms: row.try_get(11)?,
        by_status: row.try_get(12)?,
        boot_id: row.try_get(13)?,
        version: row.try_get(14)?,
        catalog_rev: u32::try_from(row.try_get::<_, i64>(15)?).unwrap_or_default(),
        config_sha256: row.try_get(16)?,
        time_quality: row.try_get(17)?,
        backlog_bytes: unsigned(row, 18)?,
        backlog_oldest_ms: row.try_get(19)?,
        received_at: row.try_get(20)?,
    })
}

async fn load(
    tx: &Transaction<'_>,
    sql: &Statements,
    key: &AgentKey,
    arrivals: &[Arrival],
    book: &mut Book,
) -> Result<(), StoreError> {
    let mut epochs: Vec<u64> = arrivals.iter().flat_map(Arrival::epochs).chain([book.agent.epoch]).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let batches: Vec<&Delivery> = arrivals
        .iter()
        .filter_map(|arrival| if let Arrival::Batch(delivery) = arrival { Some(&**delivery) } else { None })
        .collect();
    let facts = epochs.iter().map(async |&epoch| {
        let row = tx.query_opt(&sql.facts, &[&key.site, &key.agent, &bits(epoch)]).await?;
        Ok::<_, StoreError>((epoch, row))
    });
    let seqs = batches.iter().map(async |delivery| {
        let (epoch, seq) = (bits(delivery.epoch), bits(delivery.seq));
        let row = tx.query_opt(&sql.by_seq, &[&key.site, &key.agent, &epoch, &seq]).await?;
        Ok::<_, StoreError>(((delivery.epoch, delivery.seq), row))
    });
    let bodies = batches.iter().filter(|delivery| delivery.counts()).map(async |delivery| {
        let rows = tx.query(&sql.by_body, &[&key.site, &key.agent, &&delivery.hash[..]]).await?;
        Ok::<_, StoreError>((delivery.hash, rows))
    });
    let (facts, seqs, bodies) = tokio::try_join!(try_join_all(facts), try_join_all(seqs), try_join_all(bodies))?;
    for (epoch, row) in facts {
        let Some(row) = row else { continue };
        let ranges = |column| Ok::<_, StoreError>(row.try_get::<_, &str>(column)?.parse()?);
        let facts = Contiguity {
            first_retained: unsigned(&row, 0)?,
            committed: ranges(1)?,
            refused: ranges(2)?,
            lost: ranges(3)?,
            forked: ranges(4)?,
        };
        book.epochs.insert(epoch, facts);
    }
    for (name, row) in seqs {
        if let Some(row) = row {
            book.seqs.insert(name, hash(row.try_get(0)?));
        }
    }
    for (hash, rows) in bodies {
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let original: (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
            let original = original.0.zip(original.1).map(|(epoch, seq)| (epoch.cast_unsigned(), seq.cast_unsigned()));
            entries.push(Entry { epoch: unsigned(&row, 0)?, seq: unsigned(&row, 1)?, original });
        }
        book.bodies.insert(hash, entries);
    }
    Ok(())
}

/// A hash of another length was put there by hand; it equals no body's.
fn hash(bytes: &[u8]) -> BodyHash {
    bytes.try_into().unwrap_or_default()
}
