//! What PostgreSQL is given to write: prepared statements sent in a row, and readings as a binary COPY.

use std::borrow::Cow;
use std::pin::pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::future::try_join_all;
use sha2::{Digest, Sha256};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Statement, Transaction};

use super::{Statements, StoreError};
use crate::ingest::Delivery;
use crate::ledger::{NewBatch, Settled};
use crate::rows;
use crate::store::{bits, count};
use crate::topic::AgentKey;

/// Rows of one table in flight at a time.
const PIPELINE: usize = 1_000;

/// COPY is handed over in pieces of this size.
const COPY_CHUNK: usize = 256 << 10;

/// A row of parameters.
type Params<'a> = Vec<Box<dyn ToSql + Sync + Send + 'a>>;

macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as Box<dyn ToSql + Sync + Send>),*] };
}

fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(text) }
}

/// Executes `statement` once a row, [`PIPELINE`] rows at a time.
async fn each<'a>(
    tx: &Transaction<'_>,
    statement: &Statement,
    rows: impl Iterator<Item = Params<'a>>,
) -> Result<(), StoreError> {
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        let some: Vec<Params<'_>> = rows.by_ref().take(PIPELINE).collect();
        try_join_all(some.into_iter().map(|row| tx.execute_raw(statement, row))).await?;
    }
    Ok(())
}

pub(super) async fn write(
    tx: &Transaction<'_>,
    sql: &Statements,
    settled: &[(&AgentKey, Settled)],
    now_ms: i64,
) -> Result<(), StoreError> {
    write_catalogs(tx, sql, settled, now_ms).await?;
    write_batches(tx, sql, settled, now_ms).await?;
    let quarantined = settled.iter().flat_map(|(key, done)| done.quarantined.iter().map(move |aside| (*key, aside)));
    let rows = quarantined.map(|(key, aside)| {
        params![
            &key.site,
            &key.agent,
            bits(aside.epoch),
            bits(aside.seq),
            aside.cause.name(),
            now_ms,
            &aside.message[..],
            text(&aside.detail),
            Sha256::digest(&aside.message).to_vec(),
        ]
    });
    each(tx, &sql.quarantine, rows).await?;
    let changes = || settled.iter().flat_map(|(key, done)| done.epochs.iter().map(move |change| (*key, change)));
    let rows = changes().map(|(key, change)| {
        let facts = &change.facts;
        params![
            &key.site,
            &key.agent,
            bits(change.epoch),
            bits(facts.first_retained),
            bits(facts.contiguous_seq()),
            bits(facts.highest_seq()),
            facts.committed.to_string(),
            facts.refused.to_string(),
            facts.lost.to_string(),
            facts.forked.to_string(),
        ]
    });
    each(tx, &sql.contiguity, rows).await?;
    let rows = changes().flat_map(|(key, change)| {
        let gaps = change.gaps_closed.iter();
        gaps.map(move |(first, _)| params![&key.site, &key.agent, bits(change.epoch), bits(*first)])
    });
    each(tx, &sql.gap_close, rows).await?;
    let rows = changes().flat_map(|(key, change)| {
        let gaps = change.gaps_opened.iter();
        gaps.map(move |(first, last)| params![&key.site, &key.agent, bits(change.epoch), bits(*first), bits(*last)])
    });
    each(tx, &sql.gap_open, rows).await?;
    let rows = settled.iter().map(|(key, done)| {
        let row = &done.agent;
        params![
            &key.site,
            &key.agent,
            bits(row.epoch),
            &row.state,
            bits(row.last_seq),
            bits(row.first_retained_seq),
            bits(row.contiguous_seq),
            count(row.admitted),
            count(row.delivered),
            count(row.held),
            count(row.filtered),
            count(row.lost),
            &row.lost_by_reason,
            row.at_ms,
            row.by_status,
            &row.boot_id,
            text(&row.version),
            i64::from(row.catalog_rev),
            text(&row.config_sha256),
            row.time_quality,
            count(row.backlog_bytes),
            row.backlog_oldest_ms,
            row.received_at,
        ]
    });
    each(tx, &sql.agent, rows).await
}

async fn write_catalogs(
    tx: &Transaction<'_>,
    sql: &Statements,
    settled: &[(&AgentKey, Settled)],
    now_ms: i64,
) -> Result<(), StoreError> {
    for (key, catalog) in
        settled.iter().flat_map(|(key, done)| done.catalogs.iter().map(move |catalog| (*key, catalog)))
    {
        let (epoch, rev) = (bits(catalog.epoch), i64::from(catalog.rev));
        let row = params![&key.site, &key.agent, epoch, rev, now_ms, &catalog.message[..]];
        if tx.execute_raw(&sql.catalog, row).await? == 0 {
            continue; // a revision as new is there
        }
        let rows = catalog.points.iter().map(|(id, point)| {
            params![
                &key.site,
                &key.agent,
                epoch,
                i64::from(*id),
                text(&point.device),
                text(&point.name),
                text(&point.statistic),
                text(&point.path),
                text(&point.unit),
                rows::type_name(point.ty),
                point.scale.exponent,
                point.scale.factor,
                point.scale.bias,
                text(&point.description),
                rev,
            ]
        });
        each(tx, &sql.point, rows).await?;
    }
    Ok(())
}

async fn write_batches(
    tx: &Transaction<'_>,
    sql: &Statements,
    settled: &[(&AgentKey, Settled)],
    now_ms: i64,
) -> Result<(), StoreError> {
    let batches: Vec<(&AgentKey, &NewBatch)> =
        settled.iter().flat_map(|(key, done)| done.batches.iter().map(move |batch| (*key, batch))).collect();
    if batches.is_empty() {
        return Ok(());
    }
    let ids = try_join_all(batches.iter().map(async |(key, batch)| {
        let delivery = &*batch.delivery;
        let readings = if batch.original.is_none() { i64::from(delivery.readings) } else { 0 };
        let row: Params<'_> = params![
            &key.site,
            &key.agent,
            bits(delivery.epoch),
            bits(delivery.seq),
            &delivery.hash[..],
            readings,
            now_ms,
            &delivery.body,
            delivery.zstd,
            i64::from(delivery.catalog_rev),
            delivery.lane,
            delivery.batch.time_quality,
            i64::from(delivery.batch.time_error_ms),
            batch.original.map(|(epoch, _)| bits(epoch)),
            batch.original.map(|(_, seq)| bits(seq)),
        ];
        let row: Vec<&(dyn ToSql + Sync)> = row.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        tx.query_one(&sql.batch, &row).await?.try_get::<_, i64>(0)
    }))
    .await?;
    // A settled duplicate has its row in the ledger and nothing else: the original has the rest.
    let whole = || batches.iter().zip(&ids).filter(|((_, batch), _)| batch.original.is_none());
    let whole = || whole().map(|((key, batch), id)| (*key, &*batch.delivery, *id));
    copy(tx, sql, whole().map(|(_, delivery, id)| (delivery, id))).await?;
    let losses = whole().flat_map(|(key, delivery, _)| {
        let name = (bits(delivery.epoch), bits(delivery.seq));
        rows::losses(delivery).into_iter().map(move |row| {
            params![
                &key.site,
                &key.agent,
                name.0,
                name.1,
                row.reason,
                bits(row.loss_epoch),
                bits(row.first_seq),
                bits(row.last_seq),
                row.point.map(|(device, _)| text(device)),
                row.point.map(|(_, point)| text(point)),
                row.from_ms,
                row.to_ms,
                count(row.readings),
            ]
        })
    });
    each(tx, &sql.loss, losses).await?;
    let events = whole().flat_map(|(key, delivery, _)| {
        let name = (bits(delivery.epoch), bits(delivery.seq));
        rows::events(delivery).map(move |row| {
            params![
                &key.site,
                &key.agent,
                name.0,
                name.1,
                i64::from(row.idx),
                row.point.map(|(device, _)| text(device)),
                row.point.map(|(_, point)| text(point)),
                row.event.at_ms,
                text(&row.event.code),
                row.event.state,
                i64::from(row.event.severity),
                text(&row.event.text),
                row.num,
                row.int,
                row.string.map(text),
                bits(row.event.occurrence),
            ]
        })
    });
    each(tx, &sql.event, events).await
}

/// Readings as binary COPY (PostgreSQL documentation, COPY, Binary Format): a signature, then per row the number of fields
/// and each field's length and bytes, big-endian, length −1 for NULL; then −1.
async fn copy<'a>(
    tx: &Transaction<'_>,
    sql: &Statements,
    batches: impl Iterator<Item = (&'a Delivery, i64)>,
) -> Result<(), StoreError> {
    let mut sink = pin!(tx.copy_in::<_, Bytes>(&sql.copy).await?);
    let mut buffer = BytesMut::with_capacity(COPY_CHUNK + 4_096);
    buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
    buffer.put_i64(0); // no flags, no header extension
    for (delivery, id) in batches {
        for row in rows::readings(delivery) {
            buffer.put_i16(8);
            for number in [id, i64::from(row.point), row.at_ms] {
                buffer.put_i32(8);
                buffer.put_i64(number);
            }
            buffer.put_i32(4);
            buffer.put_u32(row.idx);
            buffer.put_i32(2);
            buffer.put_i16(i16::from(row.status));
            field(&mut buffer, row.num.map(f64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
            field(&mut buffer, row.int.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
            let words = row.text.map(text);
            field(&mut buffer, words.as_deref().map(str::as_bytes));
            if buffer.len() >= COPY_CHUNK {
                sink.feed(buffer.split().freeze()).await?;
            }
        }
    }
    buffer.put_i16(-1);
    sink.send(buffer.freeze()).await?;
    sink.finish().await?;
    Ok(())
}

fn field(buffer: &mut BytesMut, value: Option<&[u8]>) {
    // A text comes from a body of at most 16 MiB, so its length always fits.
    match value.and_then(|bytes| Some((i32::try_from(bytes.len()).ok()?, bytes))) {
        Some((len, bytes)) => {
            buffer.put_i32(len);
            buffer.put_slice(bytes);
        }
        None => buffer.put_i32(-1),
    }
}
