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

use measure::{Series, Set, table};
use tributary_proto::pb::point::Type;

mod measure;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let dir =
        std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: wire_size DIR (a folder with datasets.json)")?;
    let sets: BTreeMap<String, serde_json::Value> = serde_json::from_reader(File::open(dir.join("datasets.json"))?)?;
    let named = sets.iter().map(|(name, about)| load(&dir, name, about).map_err(|error| format!("{name}: {error}")));
    let sets = named.collect::<Result<Vec<_>, _>>()?;
    print!("{}", table(&sets)?);
    Ok(())
}

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
        let parsed =
            jiff::fmt::strtime::parse(format, cell).map_err(|error| format!("{cell:?} by {format:?}: {error}"))?;
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
    if let Some(bare) = cell.strip_suffix("UTC").or_else(|| cell.strip_suffix("GMT")) {
        return stamp(bare, None);
    }
    let seconds: f64 = cell.parse().map_err(|_| format!("time stamp {cell:?}"))?;
    Ok((seconds * 1e3).round() as i64)
}

fn utc(civil: jiff::civil::DateTime) -> Result<i64, Failure> {
    Ok(jiff::tz::TimeZone::UTC.to_timestamp(civil)?.as_millisecond())
}
