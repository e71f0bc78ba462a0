//! Bytes per reading on the wire, by data set and batch size.
//!
//!     cargo run --release -p tributary-proto --example wire_size -- DIR
//!
//! DIR holds `datasets.json` and one CSV a set (`NAME.csv` or `NAME.csv.gz`). What is counted is the whole serialized
//! `Envelope` as an agent sends it, at about 100, 1,000 and 10,000 readings a batch, whole polls each. Every batch is
//! decoded again and compared bit for bit: the size of a lossy coding is worth nothing. The last line is the geometric
//! mean over the sets.
//!
//! A set in `datasets.json`: `layout` `"wide"` (default: one column a series, one group frame a batch; an empty cell is a
//! poll that failed) or `"long"` (columns ts, series, value: each series on its own clock, one point frame a series);
//! `ts_col` (default: the first column); `ts_fmt` (strptime; default ISO 8601); `cols`: `name` and `dtype`, one of `f64`,
//! `f32`, `int` (raw register) and `bool`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tributary_proto::catalog::Catalog;
use tributary_proto::decode::{self, Value};
use tributary_proto::encode::{Encoder, Header, Values, envelope};
use tributary_proto::pb::{self, point::Type};

type Failure = Box<dyn Error>;

const BATCHES: [usize; 3] = [100, 1_000, 10_000];

/// 2023-11-14 in the upper 42 bits, as a real epoch has.
const EPOCH: u64 = 0x62F3_F95A_0015_5555;

/// A series: its type, and the rows it has. `None` = the poll failed.
struct Series {
    ty: Type,
    rows: Vec<(i64, Option<u64>)>,
}

struct Set {
    name: String,
    wide: bool,
    series: Vec<Series>,
}

fn main() -> Result<(), Failure> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: wire_size DIR (a folder with datasets.json)")?;
    let sets: BTreeMap<String, serde_json::Value> = serde_json::from_reader(File::open(dir.join("datasets.json"))?)?;
    println!("{:<16}{:>10}{:>10}{:>10}{:>12}", "bytes a reading", BATCHES[0], BATCHES[1], BATCHES[2], "readings");
    let mut logs = [0.0; 3];
    for (name, about) in &sets {
        let set = load(&dir, name, about).map_err(|error| format!("{name}: {error}"))?;
        let readings: usize = set.series.iter().map(|series| series.rows.len()).sum();
        let mut sizes = [0.0; 3];
        for ((size, log), readings) in sizes.iter_mut().zip(&mut logs).zip(BATCHES) {
            *size = measure(&set, readings).map_err(|error| format!("{name}: {error}"))?;
            *log += size.ln();
        }
        println!("{:<16}{:>10.3}{:>10.3}{:>10.3}{readings:>12}", set.name, sizes[0], sizes[1], sizes[2]);
    }
    let mean = logs.map(|log| (log / sets.len() as f64).exp());
    println!("{:<16}{:>10.3}{:>10.3}{:>10.3}", "geometric mean", mean[0], mean[1], mean[2]);
    Ok(())
}

// ---------------------------------------------------------------------------------------------------- reading

fn load(dir: &Path, name: &str, about: &serde_json::Value) -> Result<Set, Failure> {
    let wide = match about["layout"].as_str() {
        None | Some("wide") => true,
        Some("long") => false,
        Some(other) => return Err(format!("layout {other:?}; known are \"wide\" and \"long\"").into()),
    };
    let columns = about["cols"].as_array().ok_or("cols is missing")?;
    let mut kinds = Vec::new();
    for column in columns {
        let name = column["name"].as_str().ok_or("a column without a name")?;
        let ty = match column["dtype"].as_str() {
            Some("f64") => Type::Float64,
            Some("f32") => Type::Float32,
            Some("int") => Type::Int,
            Some("bool") => Type::Bool,
            other => return Err(format!("{name}: dtype {other:?}").into()),
        };
        kinds.push((name, ty));
    }
    let mut csv = csv::Reader::from_reader(text(dir, name)?.as_bytes().to_vec().leak() as &[u8]);
    let titles = csv.headers()?.clone();
    let find = |title: &str| titles.iter().position(|other| other.trim() == title);
    let clock = match about["ts_col"].as_str() {
        Some(title) => find(title).ok_or_else(|| format!("no column {title}"))?,
        None => 0,
    };
    let format = about["ts_fmt"].as_str();
    let mut series: Vec<Series> = kinds.iter().map(|&(_, ty)| Series { ty, rows: Vec::new() }).collect();
    if wide {
        let places: Vec<usize> = kinds
            .iter()
            .map(|(title, _)| find(title).ok_or_else(|| format!("no column {title}")))
            .collect::<Result<_, _>>()?;
        for record in csv.records() {
            let record = record?;
            let at = stamp(record.get(clock).unwrap_or_default(), format)?;
            for (series, &place) in series.iter_mut().zip(&places) {
                let cell = record.get(place).unwrap_or_default();
                series.rows.push((at, value(cell, series.ty)?));
            }
        }
    } else {
        let column = |title: &str, default: usize| find(title).unwrap_or(default);
        let (label, content) = (column("series", 1), column("value", 2));
        for record in csv.records() {
            let record = record?;
            let at = stamp(record.get(clock).unwrap_or_default(), format)?;
            let title = record.get(label).unwrap_or_default().trim();
            let index = kinds.iter().position(|(name, _)| *name == title);
            let series = index.and_then(|index| series.get_mut(index)).ok_or_else(|| format!("series {title:?}"))?;
            series.rows.push((at, value(record.get(content).unwrap_or_default(), series.ty)?));
        }
    }
    Ok(Set { name: name.to_owned(), wide, series })
}

fn text(dir: &Path, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let plain = dir.join(format!("{name}.csv"));
    if plain.exists() {
        File::open(plain)?.read_to_string(&mut text)?;
    } else {
        let packed = dir.join(format!("{name}.csv.gz"));
        let file = File::open(&packed).map_err(|error| format!("{}: {error}", packed.display()))?;
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// The bits of a cell; `None` if it is empty.
fn value(cell: &str, ty: Type) -> Result<Option<u64>, Failure> {
    let cell = cell.trim();
    if cell.is_empty() {
        return Ok(None);
    }
    let whole = || match cell.parse::<i64>() {
        Ok(int) => Some(int),
        Err(_) => cell.parse::<f64>().ok().filter(|float| float.fract() == 0.0).map(|float| float as i64),
    };
    let bits = match ty {
        Type::Float64 => cell.parse::<f64>().ok().map(f64::to_bits),
        // Printed as a double, so read as one: the single nearest to it is the register.
        Type::Float32 => cell.parse::<f64>().ok().map(|float| u64::from((float as f32).to_bits())),
        Type::Bool => match cell.to_ascii_lowercase().as_str() {
            "true" => Some(1),
            "false" => Some(0),
            _ => whole().filter(|int| matches!(int, 0 | 1)).map(i64::cast_unsigned),
        },
        _ => whole().map(i64::cast_unsigned),
    };
    Ok(Some(bits.ok_or_else(|| format!("{cell:?} as {}", ty.as_str_name()))?))
}

/// Milliseconds since 1970 UTC: by `format`, or any ISO 8601 (with or without T, Z, offset, seconds, fraction), or a
/// number of seconds.
fn stamp(cell: &str, format: Option<&str>) -> Result<i64, Failure> {
    let cell = cell.trim();
    if let Some(format) = format {
        let parsed = jiff::fmt::strtime::parse(format, cell).map_err(|error| format!("{cell:?} by {format:?}: {error}"))?;
        return Ok(match parsed.to_timestamp() {
            Ok(stamp) => stamp.as_millisecond(),
            Err(_) => match parsed.to_datetime() {
                Ok(civil) => utc(civil)?,
                Err(_) => utc(parsed.to_date()?.to_datetime(jiff::civil::Time::midnight()))?,
            },
        });
    }
    if let Ok(stamp) = cell.parse::<jiff::Timestamp>() {
        return Ok(stamp.as_millisecond());
    }
    if let Ok(civil) = cell.trim_end_matches(['Z', 'z']).parse::<jiff::civil::DateTime>() {
        return utc(civil);
    }
    let seconds: f64 = cell.parse().map_err(|_| format!("time stamp {cell:?}"))?;
    Ok((seconds * 1e3).round() as i64)
}

fn utc(civil: jiff::civil::DateTime) -> Result<i64, Failure> {
    Ok(jiff::tz::TimeZone::UTC.to_timestamp(civil)?.as_millisecond())
}

// -------------------------------------------------------------------------------------------------- measuring

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
