//! Bytes per reading of a set: cut into batches, encoded, decoded again, compared and counted. The example and the test
//! of the golden table both do it.

use std::error::Error;
use std::fmt::Write;

use tributary_proto::catalog::Catalog;
use tributary_proto::decode::{self, Value};
use tributary_proto::encode::{Encoder, Header, Values, envelope};
use tributary_proto::pb::{self, point::Type};

type Failure = Box<dyn Error>;

/// Readings a batch, about.
const BATCHES: [usize; 3] = [100, 1_000, 10_000];

/// 2023-11-14 in the upper 42 bits, as a real epoch has.
const EPOCH: u64 = 0x62F3_F95A_0015_5555;

/// A series: its type, and its rows, a stamp and the bits of the value each. `None` = the poll failed.
pub(crate) struct Series {
    pub(crate) ty: Type,
    pub(crate) rows: Vec<(i64, Option<u64>)>,
}

/// Some series: on one clock (`wide`), or each on its own.
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) wide: bool,
    pub(crate) series: Vec<Series>,
}

/// A line a set, the geometric mean as the last.
pub(crate) fn table(sets: &[Set]) -> Result<String, Failure> {
    let mut table = String::new();
    writeln!(
        table,
        "{:<16}{:>10}{:>10}{:>10}{:>12}",
        "bytes a reading", BATCHES[0], BATCHES[1], BATCHES[2], "readings"
    )?;
    let mut logs = [0.0; 3];
    for set in sets {
        let readings: usize = set.series.iter().map(|series| series.rows.len()).sum();
        let mut sizes = [0.0; 3];
        for ((size, log), readings) in sizes.iter_mut().zip(&mut logs).zip(BATCHES) {
            *size = measure(set, readings).map_err(|error| format!("{}: {error}", set.name))?;
            *log += size.ln();
        }
        writeln!(table, "{:<16}{:>10.3}{:>10.3}{:>10.3}{readings:>12}", set.name, sizes[0], sizes[1], sizes[2])?;
    }
    let mean = logs.map(|log| (log / sets.len() as f64).exp());
    writeln!(table, "{:<16}{:>10.3}{:>10.3}{:>10.3}", "geometric mean", mean[0], mean[1], mean[2])?;
    Ok(table)
}

/// Bytes per reading of `set` at about `readings` a batch.
fn measure(set: &Set, readings: usize) -> Result<f64, Failure> {
    let ids: Vec<u32> = (1..=set.series.len() as u32).collect();
    let point = |(&id, series): (&u32, &Series)| pb::Point { id, r#type: series.ty.into(), ..Default::default() };
    let catalog = Catalog::new(&pb::Content {
        points: ids.iter().zip(&set.series).map(point).collect(),
        groups: vec![pb::Group { id: 1, points: ids.clone(), ..Default::default() }],
        ..Default::default()
    });

    let mut encoder = Encoder::new();
    let (mut bytes, mut count, mut seq) = (0, 0, 0);
    for parts in batches(set, readings) {
        let mut batch = pb::Batch::default();
        if set.wide {
            let rows = parts.first().map_or(0, |(_, rows)| rows.len());
            let times: Vec<i64> = parts.first().map_or(&[][..], |(_, rows)| rows).iter().map(|row| row.0).collect();
            let columns = parts.iter().map(|&(point, rows)| column(&mut encoder, set.series[point].ty, rows)).collect();
            let time = Some(encoder.time(&times));
            batch.frames.push(pb::Frame { group: 1, point: 0, rows: rows as u32, time, columns });
        } else {
            for &(point, rows) in &parts {
                let times: Vec<i64> = rows.iter().map(|row| row.0).collect();
                let columns = vec![column(&mut encoder, set.series[point].ty, rows)];
                let time = Some(encoder.time(&times));
                batch.frames.push(pb::Frame { group: 0, point: ids[point], rows: rows.len() as u32, time, columns });
            }
        }
        let readings = parts.iter().map(|(_, rows)| rows.len()).sum::<usize>();
        seq += 1;
        let header = Header {
            epoch: EPOCH,
            seq,
            first_retained_seq: seq,
            lane: pb::Lane::Live,
            catalog_rev: 1,
            readings: readings as u32,
        };
        let message = envelope(&header, &encoder.body(&batch));
        compare(&message, &catalog, &parts)?;
        bytes += message.len();
        count += readings;
    }
    Ok(bytes as f64 / count as f64)
}

/// What a batch holds of one series: its place in the set, and rows.
type Part<'a> = (usize, &'a [(i64, Option<u64>)]);

/// Cuts a set into batches of about `readings`: whole polls; of a long set, spans of time that hold as many.
fn batches(set: &Set, readings: usize) -> Vec<Vec<Part<'_>>> {
    if set.wide {
        let polls = set.series.first().map_or(0, |series| series.rows.len());
        let width = set.series.len().max(1);
        let rows = ((readings + width / 2) / width).max(1);
        let cut = |from: usize| {
            let until = (from + rows).min(polls);
            set.series.iter().enumerate().map(|(point, series)| (point, &series.rows[from..until])).collect()
        };
        return (0..polls).step_by(rows).map(cut).collect();
    }
    let mut order: Vec<(i64, usize)> = Vec::new();
    for (point, series) in set.series.iter().enumerate() {
        order.extend(series.rows.iter().map(|row| (row.0, point)));
    }
    order.sort_by_key(|&(at, _)| at); // stable: of one series in its own order, if its clock never went back
    let mut taken = vec![0; set.series.len()];
    let mut batches = Vec::new();
    for chunk in order.chunks(readings) {
        let mut counts = vec![0; set.series.len()];
        for &(_, point) in chunk {
            counts[point] += 1;
        }
        let mut parts = Vec::new();
        for (point, &n) in counts.iter().enumerate().filter(|&(_, &n)| n > 0) {
            parts.push((point, &set.series[point].rows[taken[point]..taken[point] + n]));
            taken[point] += n;
        }
        batches.push(parts);
    }
    batches
}

fn column(encoder: &mut Encoder, ty: Type, rows: &[(i64, Option<u64>)]) -> pb::Column {
    let good = pb::Status::Good as u8;
    let statuses: Vec<u8> =
        rows.iter().map(|row| if row.1.is_some() { good } else { pb::Status::CommFail as u8 }).collect();
    let bits = rows.iter().filter_map(|row| row.1);
    match ty {
        Type::Float32 => encoder.column(&statuses, Values::Float32(&bits.map(|bits| bits as u32).collect::<Vec<_>>())),
        Type::Float64 => encoder.column(&statuses, Values::Float64(&bits.collect::<Vec<_>>())),
        _ => encoder.column(&statuses, Values::Int(&bits.map(u64::cast_signed).collect::<Vec<_>>())),
    }
}

/// Decodes `message` and compares every reading.
fn compare(message: &[u8], catalog: &Catalog, parts: &[Part<'_>]) -> Result<(), Failure> {
    let batch = decode::decode(&decode::open(message)?, catalog)?;
    let mut readings = batch.readings();
    for &(point, rows) in parts {
        for row in rows {
            let reading = readings.next().ok_or("a reading is missing")?;
            let bits = reading.value.map(|value| match value {
                Value::Bool(flag) => u64::from(flag),
                Value::Int(int) => int.cast_unsigned(),
                Value::Uint64(bits) | Value::Float64(bits) => bits,
                Value::Float32(bits) => u64::from(bits),
                Value::Text(_) => 0,
            });
            if (reading.point, reading.at_ms, bits) != (point as u32 + 1, row.0, row.1) {
                return Err(format!("{reading:?} decoded for {row:?}").into());
            }
        }
    }
    if readings.next().is_some() { Err("a reading too many".into()) } else { Ok(()) }
}
