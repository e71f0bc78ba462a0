//! SQLite: the embedded store, for demos and small sites. One file, nothing to install.
//!
//! WAL with `synchronous=FULL`, so COMMIT means that the log is on the disk. Two receivers may share the file: a
//! transaction begins as the writer (IMMEDIATE), which is the agents' row lock and more. Limits: one writer at a time, and
//! some 700,000 readings a second (1,000 a batch); NaN becomes NULL, as SQLite knows none.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::{Acks, Group, StoreError, bits, count};
use crate::agent::AgentRow;
use crate::catalog::Catalog;
use crate::contiguity::Contiguity;
use crate::ledger::{Arrival, Book, Entry, EpochChange, NewBatch, Settled, settle};
use crate::rows;
use crate::topic::AgentKey;

const SCHEMA: &str = include_str!("sqlite.sql");

/// An open file.
pub struct Sqlite {
    connection: Connection,
}

impl Sqlite {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.set_prepared_statement_cache_capacity(64);
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(SCHEMA)?;
        tx.commit()?;
        Ok(Self { connection })
    }

    pub(super) fn commit(&mut self, group: &Group, now_ms: i64) -> Result<Acks, StoreError> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut acks = Acks::new();
        for (key, arrivals) in group {
            let mut settled = settle(book(&tx, key, arrivals)?, arrivals, now_ms);
            acks.extend(std::mem::take(&mut settled.acks).into_iter().map(|ack| (key.clone(), ack)));
            write(&tx, key, &settled, now_ms)?;
        }
        tx.commit()?;
        Ok(acks)
    }

    pub(super) fn catalog(&mut self, key: &AgentKey, epoch: u64) -> Result<Option<Bytes>, StoreError> {
        let sql = "SELECT message FROM catalog WHERE site = ?1 AND agent = ?2 AND epoch = ?3";
        let message = self
            .connection
            .prepare_cached(sql)?
            .query_row(params![key.site, key.agent, bits(epoch)], |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        Ok(message.map(Bytes::from))
    }

    pub(super) fn agents(&mut self) -> Result<Vec<AgentKey>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT site, agent FROM agent ORDER BY site, agent")?;
        let keys = statement.query_map([], |row| Ok(AgentKey { site: row.get(0)?, agent: row.get(1)? }))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }
}

fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

fn book(tx: &Transaction<'_>, key: &AgentKey, arrivals: &[Arrival]) -> Result<Book, StoreError> {
    let mut book = Book { agent: agent(tx, key)?, ..Book::default() };
    let mut facts = tx.prepare_cached(
        "SELECT first_retained_seq, committed, refused, lost, forked FROM contiguity WHERE site = ?1 AND agent = ?2 AND epoch = ?3",
    )?;
    for epoch in arrivals.iter().flat_map(Arrival::epochs).chain([book.agent.epoch]) {
        if book.epochs.contains_key(&epoch) {
            continue;
        }
        let row = facts
            .query_row(params![key.site, key.agent, bits(epoch)], |row| {
                Ok((row.get(0)?, [row.get::<_, String>(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
            })
            .optional()?;
        let Some((first_retained, [committed, refused, lost, forked])) = row else { continue };
        let facts = Contiguity {
            committed: committed.parse()?,
            refused: refused.parse()?,
            lost: lost.parse()?,
            forked: forked.parse()?,
            first_retained: unsigned(first_retained),
        };
        book.epochs.insert(epoch, facts);
    }
    let mut by_seq =
        tx.prepare_cached("SELECT body_hash FROM batch WHERE site = ?1 AND agent = ?2 AND epoch = ?3 AND seq = ?4")?;
    let mut by_body = tx.prepare_cached(
        "SELECT epoch, seq, original_epoch, original_seq FROM batch WHERE site = ?1 AND agent = ?2 AND body_hash = ?3",
    )?;
    for arrival in arrivals {
        let Arrival::Batch(delivery) = arrival else { continue };
        let hash = by_seq
            .query_row(params![key.site, key.agent, bits(delivery.epoch), bits(delivery.seq)], |row| row.get(0))
            .optional()?;
        if let Some(hash) = hash {
            book.seqs.insert((delivery.epoch, delivery.seq), hash);
        }
        if !delivery.counts() || book.bodies.contains_key(&delivery.hash) {
            continue;
        }
        let entries = by_body.query_map(params![key.site, key.agent, delivery.hash], |row| {
            let original: (Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?);
            let original = original.0.zip(original.1).map(|(epoch, seq)| (unsigned(epoch), unsigned(seq)));
            Ok(Entry { epoch: unsigned(row.get(0)?), seq: unsigned(row.get(1)?), original })
        })?;
        book.bodies.insert(delivery.hash, entries.collect::<Result<_, _>>()?);
    }
    Ok(book)
}

fn agent(tx: &Transaction<'_>, key: &AgentKey) -> Result<AgentRow, StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT epoch, state, last_seq, first_retained_seq, contiguous_seq, admitted, delivered, held, filtered, lost, \
         lost_by_reason, at_ms, by_status, boot_id, version, catalog_rev, config_sha256, time_quality, backlog_bytes, \
         backlog_oldest_ms, received_at FROM agent WHERE site = ?1 AND agent = ?2",
    )?;
    let row = statement
        .query_row(params![key.site, key.agent], |row| {
            Ok(AgentRow {
                epoch: unsigned(row.get(0)?),
                state: row.get(1)?,
                last_seq: unsigned(row.get(2)?),
                first_retained_seq: unsigned(row.get(3)?),
                contiguous_seq: unsigned(row.get(4)?),
                admitted: unsigned(row.get(5)?),
                delivered: unsigned(row.get(6)?),
                held: unsigned(row.get(7)?),
                filtered: unsigned(row.get(8)?),
                lost: unsigned(row.get(9)?),
                lost_by_reason: row.get(10)?,
                at_ms: row.get(11)?,
                by_status: row.get(12)?,
                boot_id: row.get(13)?,
                version: row.get(14)?,
                catalog_rev: row.get(15)?,
                config_sha256: row.get(16)?,
                time_quality: row.get(17)?,
                backlog_bytes: unsigned(row.get(18)?),
                backlog_oldest_ms: row.get(19)?,
                received_at: row.get(20)?,
            })
        })
        .optional()?;
    Ok(row.unwrap_or_default())
}

fn write(tx: &Transaction<'_>, key: &AgentKey, settled: &Settled, now_ms: i64) -> Result<(), StoreError> {
    for catalog in &settled.catalogs {
        write_catalog(tx, key, catalog, now_ms)?;
    }
    for batch in &settled.batches {
        write_batch(tx, key, batch, now_ms)?;
    }
    for set_aside in &settled.quarantined {
        let hash: [u8; 32] = Sha256::digest(&set_aside.message).into();
        tx.prepare_cached("INSERT OR IGNORE INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute(
            params![
                key.site,
                key.agent,
                bits(set_aside.epoch),
                bits(set_aside.seq),
                set_aside.cause.name(),
                now_ms,
                &set_aside.message[..],
                set_aside.detail,
                hash,
            ],
        )?;
    }
    for change in &settled.epochs {
        write_epoch(tx, key, change)?;
    }
    write_agent(tx, key, &settled.agent)
}

fn write_batch(tx: &Transaction<'_>, key: &AgentKey, batch: &NewBatch, now_ms: i64) -> Result<(), StoreError> {
    let delivery = &*batch.delivery;
    let (epoch, seq) = (bits(delivery.epoch), bits(delivery.seq));
    tx.prepare_cached(
        "INSERT INTO batch (site, agent, epoch, seq, body_hash, readings, received_at, body, zstd, catalog_rev, lane, \
         time_quality, time_error_ms, original_epoch, original_seq) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?
    .execute(params![
        key.site,
        key.agent,
        epoch,
        seq,
        delivery.hash,
        if batch.original.is_none() { delivery.readings } else { 0 },
        now_ms,
        delivery.body,
        delivery.zstd,
        delivery.catalog_rev,
        delivery.lane,
        delivery.batch.time_quality,
        delivery.batch.time_error_ms,
        batch.original.map(|(epoch, _)| bits(epoch)),
        batch.original.map(|(_, seq)| bits(seq)),
    ])?;
    if batch.original.is_some() {
        return Ok(());
    }
    let id = tx.last_insert_rowid();
    let mut insert = tx.prepare_cached("INSERT INTO reading_row VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    for row in rows::readings(delivery) {
        insert.execute(params![id, row.idx, row.point, row.at_ms, row.status, row.num, row.int, row.text])?;
    }
    let mut insert =
        tx.prepare_cached("INSERT INTO loss VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)")?;
    for row in rows::losses(delivery) {
        insert.execute(params![
            key.site,
            key.agent,
            epoch,
            seq,
            row.reason,
            bits(row.loss_epoch),
            bits(row.first_seq),
            bits(row.last_seq),
            row.point.map(|(device, _)| device),
            row.point.map(|(_, point)| point),
            row.from_ms,
            row.to_ms,
            count(row.readings),
        ])?;
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO event VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?;
    for row in rows::events(delivery) {
        insert.execute(params![
            key.site,
            key.agent,
            epoch,
            seq,
            row.idx,
            row.point.map(|(device, _)| device),
            row.point.map(|(_, point)| point),
            row.event.at_ms,
            row.event.code,
            row.event.state,
            row.event.severity,
            row.event.text,
            row.num,
            row.int,
            row.string,
            bits(row.event.occurrence),
        ])?;
    }
    Ok(())
}

fn write_catalog(tx: &Transaction<'_>, key: &AgentKey, catalog: &Catalog, now_ms: i64) -> Result<(), StoreError> {
    let epoch = bits(catalog.epoch);
    let newer = tx
        .prepare_cached(
            "INSERT INTO catalog VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (site, agent, epoch) DO UPDATE \
             SET rev = excluded.rev, received_at = excluded.received_at, message = excluded.message \
             WHERE catalog.rev < excluded.rev",
        )?
        .execute(params![key.site, key.agent, epoch, catalog.rev, now_ms, &catalog.message[..]])?;
    if newer == 0 {
        return Ok(());
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO point VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15) \
         ON CONFLICT (site, agent, epoch, id) DO UPDATE \
         SET path = excluded.path, description = excluded.description, rev = excluded.rev",
    )?;
    for (id, point) in &catalog.points {
        insert.execute(params![
            key.site,
            key.agent,
            epoch,
            id,
            point.device,
            point.name,
            point.statistic,
            point.path,
            point.unit,
            rows::type_name(point.ty),
            point.scale.exponent,
            point.scale.factor,
            point.scale.bias,
            point.description,
            catalog.rev,
        ])?;
    }
    Ok(())
}

fn write_epoch(tx: &Transaction<'_>, key: &AgentKey, change: &EpochChange) -> Result<(), StoreError> {
    let EpochChange { epoch, facts, gaps_closed, gaps_opened } = change;
    let epoch = bits(*epoch);
    tx.prepare_cached("INSERT OR REPLACE INTO contiguity VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?.execute(
        params![
            key.site,
            key.agent,
            epoch,
            bits(facts.first_retained),
            bits(facts.contiguous_seq()),
            bits(facts.highest_seq()),
            facts.committed.to_string(),
            facts.refused.to_string(),
            facts.lost.to_string(),
            facts.forked.to_string(),
        ],
    )?;
    for (first, _) in gaps_closed {
        tx.prepare_cached("DELETE FROM gap WHERE site = ?1 AND agent = ?2 AND epoch = ?3 AND first_seq = ?4")?
            .execute(params![key.site, key.agent, epoch, bits(*first)])?;
    }
    for (first, last) in gaps_opened {
        tx.prepare_cached("INSERT INTO gap VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            key.site,
            key.agent,
            epoch,
            bits(*first),
            bits(*last)
        ])?;
    }
    Ok(())
}

fn write_agent(tx: &Transaction<'_>, key: &AgentKey, row: &AgentRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO agent (site, agent, epoch, state, last_seq, first_retained_seq, contiguous_seq, admitted, \
         delivered, held, filtered, lost, lost_by_reason, at_ms, by_status, boot_id, version, catalog_rev, config_sha256, \
         time_quality, backlog_bytes, backlog_oldest_ms, received_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
    )?
    .execute(params![
        key.site,
        key.agent,
        bits(row.epoch),
        row.state,
        bits(row.last_seq),
        bits(row.first_retained_seq),
        bits(row.contiguous_seq),
        count(row.admitted),
        count(row.delivered),
        count(row.held),
        count(row.filtered),
        count(row.lost),
        row.lost_by_reason,
        row.at_ms,
        row.by_status,
        row.boot_id,
        row.version,
        row.catalog_rev,
        row.config_sha256,
        row.time_quality,
        count(row.backlog_bytes),
        row.backlog_oldest_ms,
        row.received_at,
    ])?;
    Ok(())
}
