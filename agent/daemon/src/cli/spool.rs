//! `tributary spool`: what is in the spool of a stopped agent, or in a copy from a dead gateway. It changes nothing.
//!
//! | | says | exit code 1 if |
//! |---|---|---|
//! | `status` | directories, batches, readings, what waits for its acknowledgement, what was set aside | it cannot be read |
//! | `verify` | reads every record and decodes it: what is damaged, what is missing | anything is |
//! | `export` | the readings of its batches as CSV or JSON lines; `--all`: acknowledged ones too | a batch cannot be decoded |
//! | `salvage` | the same of directories that were set aside as damaged, as far as their checksums hold | nothing could be read |
//!
//! Values are real ones, by the scale of the catalogue that lies in the spool beside them; raw integers stand beside.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use prost::Message;
use serde_json::json;
use tributary_core::record::Head;
use tributary_core::state::State;
use tributary_core::store::DirId;
use tributary_proto::decode::{self, Value};
use tributary_proto::{catalog, encode, pb};
use tributary_protocols::gather;
use tributary_protocols::reading::Status;
use tributary_protocols::value::{PointType, Scale};

use super::{BAD_CONFIGURATION, FileArg, load_or_tell};
use crate::config::Occasion;
use crate::store::look::{Directory, Look};

/// What to do with which spool.
#[derive(Clone, Debug, Args)]
pub struct SpoolArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// What is in it
    Status(Place),
    /// Whether all of it can be read and decoded
    Verify(Place),
    /// The readings of directories that were set aside as damaged
    Salvage {
        #[command(flatten)]
        place: Place,
        /// How they are printed
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
    },
    /// The readings that wait for their acknowledgement
    Export {
        #[command(flatten)]
        place: Place,
        /// How they are printed
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// Also those that were acknowledged and are not yet deleted
        #[arg(long)]
        all: bool,
    },
}

#[derive(Clone, Debug, Args)]
struct Place {
    #[command(flatten)]
    file: FileArg,
    /// A copy of the spool, in place of the configuration's own
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

pub(super) fn spool(args: &SpoolArgs) -> ExitCode {
    let (What::Status(place) | What::Verify(place) | What::Salvage { place, .. } | What::Export { place, .. }) =
        &args.what;
    let Some(config) = load_or_tell(&place.file, Occasion::Beside) else { return ExitCode::from(BAD_CONFIGURATION) };
    let root = place.dir.clone().unwrap_or_else(|| config.agent.state_dir.join("spool"));
    let look = match Look::open(&root) {
        Ok(look) => look,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let out = &mut io::BufWriter::new(io::stdout().lock());
    let told = match &args.what {
        What::Status(_) => status(&look, out),
        What::Verify(_) => verify(&look, out),
        What::Salvage { format, .. } => readings(&look, *format, Which::SetAside, out),
        What::Export { format, all, .. } => {
            readings(&look, *format, if *all { Which::All } else { Which::Waiting }, out)
        }
    };
    match told.and_then(|good| out.flush().map(|()| good)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of a pipe had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The newest state record, which tells of all directories, and the newest whole catalogue.
#[derive(Default)]
struct Newest {
    state: Option<State>,
    catalog: Vec<u8>,
}

impl Newest {
    fn of(look: &Look) -> Self {
        let mut newest = Self::default();
        for directory in look.directories(false).rev().chain(look.directories(true).rev()) {
            let Some((state, catalog)) = directory.state else { continue };
            if let (Ok(state), false, None) = (State::decode(state.as_slice()), directory.aside, &newest.state) {
                newest.state = Some(state);
            }
            if let (Some(catalog), true) = (catalog, newest.catalog.is_empty()) {
                newest.catalog = catalog;
            }
            if !newest.catalog.is_empty() && (newest.state.is_some() || directory.aside) {
                break;
            }
        }
        newest
    }

    /// Epoch and seq under which a stored record is known to the centre; `None` if it is settled and forgotten.
    fn known(&self, dir: DirId, stored: u64) -> Option<(u64, u64)> {
        let state = self.state.as_ref()?;
        let of_dir =
            state.extents.iter().filter(|extent| (extent.dir_epoch, extent.dir_first) == (dir.epoch, dir.first));
        let (extent, above) = of_dir
            .filter_map(|extent| Some((extent, stored.checked_sub(extent.stored_first)?)))
            .find(|(extent, above)| *above < extent.count)?;
        Some((state.epoch, extent.first.saturating_add(above)))
    }

    /// Whether it is acknowledged, refused or said to be lost: the agent sends it no more.
    fn settled(&self, dir: DirId, stored: u64) -> bool {
        let Some(state) = &self.state else { return false };
        let Some((_, seq)) = self.known(dir, stored) else { return true };
        state.settled.iter().any(|range| (range.first..=range.last).contains(&seq))
    }
}

/// Names and scales, for people.
struct Names {
    schema: catalog::Catalog,
    devices: BTreeMap<u32, String>,
    points: BTreeMap<u32, pb::Point>,
}

impl Names {
    fn of(message: &[u8]) -> Result<Self, String> {
        let message = pb::Catalog::decode(message).map_err(|error| error.to_string())?;
        let bytes = catalog::content_bytes(&message).map_err(|error| error.to_string())?;
        let content = catalog::content(&bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            schema: catalog::Catalog::new(&content),
            devices: gather(content.devices.into_iter().map(|device| (device.id, device.name))),
            points: gather(content.points.into_iter().map(|point| (point.id, point))),
        })
    }
}

pub(super) fn status(look: &Look, out: &mut impl Write) -> io::Result<bool> {
    let newest = Newest::of(look);
    match &newest.state {
        Some(state) => {
            writeln!(
                out,
                "epoch {:016x}, seq up to {}, {}",
                state.epoch,
                state.last_seq,
                if state.clean { "stopped cleanly" } else { "not stopped cleanly" }
            )?;
            if let Some(ledger) = &state.ledger {
                writeln!(
                    out,
                    "ledger {} admitted, {} delivered, {} filtered",
                    ledger.admitted, ledger.delivered, ledger.filtered
                )?;
            }
        }
        None => writeln!(out, "no state record is whole: an agent begins a new epoch with it")?,
    }
    let (mut batches, mut waiting, mut readings) = (0_u64, 0_u64, 0_u64);
    for directory in look.directories(false).chain(look.directories(true)) {
        let count = directory.records.len();
        let held: Vec<_> = directory.records.iter().filter(|(seq, _)| !newest.settled(directory.id, *seq)).collect();
        let of_held: u64 =
            held.iter().filter_map(|(_, record)| Head::split(record)).map(|(head, _)| u64::from(head.readings)).sum();
        if !directory.aside {
            batches += count as u64;
            waiting += held.len() as u64;
            readings += of_held;
        }
        writeln!(
            out,
            "{}: {count} batches, {} KB{}",
            name(&directory),
            directory.disk_bytes / 1024,
            trouble(&directory)
        )?;
    }
    writeln!(
        out,
        "{batches} batches, of which {waiting} with {readings} readings wait for their acknowledgement; {} KB on disk",
        look.disk_bytes / 1024
    )?;
    writeln!(out, "{} refused records are kept", look.refused.len())?;
    Ok(true)
}

fn name(directory: &Directory) -> String {
    let aside = if directory.aside { "set aside: " } else { "" };
    format!("{aside}{:016x}/{:016x}", directory.id.epoch, directory.id.first)
}

fn trouble(directory: &Directory) -> String {
    directory.fault.as_ref().map(|fault| format!("; {fault}")).unwrap_or_default()
}

fn verify(look: &Look, out: &mut impl Write) -> io::Result<bool> {
    let newest = Newest::of(look);
    let names = Names::of(&newest.catalog);
    let (mut good, mut bad) = (0_u64, 0_u64);
    if let Err(why) = &names {
        writeln!(out, "the catalogue: {why}")?;
        bad += 1;
    }
    for directory in look.directories(false).chain(look.directories(true)) {
        for (first, last) in directory.missing() {
            writeln!(out, "{}: batches {first} to {last} are missing or damaged", name(&directory))?;
            bad += last - first + 1;
        }
        if directory.fault.is_some() || directory.aside {
            writeln!(out, "{}{}", name(&directory), trouble(&directory))?;
            bad += 1;
        }
        for (seq, record) in &directory.records {
            match names.as_ref().map_err(Clone::clone).and_then(|names| batch(directory.id.epoch, *seq, record, names))
            {
                Ok(_) => good += 1,
                Err(why) => {
                    writeln!(out, "{}: batch {seq}: {why}", name(&directory))?;
                    bad += 1;
                }
            }
        }
    }
    writeln!(out, "{good} batches are good, {bad} faults")?;
    Ok(bad == 0)
}

/// Decodes one record as a receiver would.
fn batch(epoch: u64, seq: u64, record: &[u8], names: &Names) -> Result<decode::Batch, String> {
    let (head, body) = Head::split(record).ok_or("its head is of another version")?;
    let body = encode::Body { bytes: body.to_vec(), zstd: head.zstd, crc32c: head.body_crc32c };
    let header = encode::Header {
        epoch,
        seq,
        first_retained_seq: seq,
        lane: pb::Lane::Backlog,
        catalog_rev: head.catalog_rev.max(1),
        readings: head.readings,
    };
    let envelope = decode::open(&encode::envelope(&header, &body)).map_err(|error| error.to_string())?;
    decode::decode(&envelope, &names.schema).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Waiting,
    All,
    SetAside,
}

fn readings(look: &Look, format: Format, which: Which, out: &mut impl Write) -> io::Result<bool> {
    let newest = Newest::of(look);
    let names = match Names::of(&newest.catalog) {
        Ok(names) => names,
        Err(why) => {
            eprintln!("error: no catalogue is whole, so nothing tells what the batches mean: {why}");
            return Ok(false);
        }
    };
    let (mut batches, mut bad) = (0_u64, 0_u64);
    if format == Format::Csv {
        writeln!(out, "epoch,seq,device,point,statistic,at_ms,status,value,raw,unit")?;
    }
    for directory in look.directories(which == Which::SetAside) {
        if let Some(fault) = &directory.fault {
            eprintln!("{}: {fault}", name(&directory));
            bad += 1;
        }
        for (seq, record) in &directory.records {
            if which == Which::Waiting && newest.settled(directory.id, *seq) {
                continue;
            }
            match batch(directory.id.epoch, *seq, record, &names) {
                Ok(batch) => {
                    batches += 1;
                    let known = newest.known(directory.id, *seq).unwrap_or((directory.id.epoch, *seq));
                    write_batch(known, &batch, &names, format, out)?;
                }
                Err(why) => {
                    eprintln!("{}: batch {seq}: {why}", name(&directory));
                    bad += 1;
                }
            }
        }
    }
    eprintln!("{batches} batches, {bad} faults");
    Ok(bad == 0 || which == Which::SetAside && batches > 0)
}

fn write_batch(
    (epoch, seq): (u64, u64),
    batch: &decode::Batch,
    names: &Names,
    format: Format,
    out: &mut impl Write,
) -> io::Result<()> {
    for reading in batch.readings() {
        let point = names.points.get(&reading.point);
        let device = point.and_then(|point| names.devices.get(&point.device)).map_or("", String::as_str);
        let (name, statistic, unit) =
            point.map_or(("", "", ""), |point| (point.name.as_str(), point.statistic.as_str(), point.unit.as_str()));
        let status = Status::from_code(reading.status).map_or("", Status::name);
        let (value, raw) = shown(reading.value.as_ref(), point);
        let epoch = format!("{epoch:016x}");
        match format {
            Format::Csv => {
                let mut line = csv::WriterBuilder::new().from_writer(Vec::new());
                let number = |value: Option<f64>| value.map(|value| value.to_string());
                let value = match (&value, &raw) {
                    (None, Some(Raw::Text(text))) => text.clone(),
                    _ => number(value).unwrap_or_default(),
                };
                let raw = match &raw {
                    Some(Raw::Int(int)) => int.to_string(),
                    _ => String::new(),
                };
                let (seq, at) = (seq.to_string(), reading.at_ms.to_string());
                line.write_record([&epoch, &seq, device, name, statistic, &at, status, &value, &raw, unit])?;
                out.write_all(&line.into_inner().map_err(|error| io::Error::other(error.to_string()))?)?;
            }
            Format::Json => {
                let value = match (&value, &raw) {
                    (None, Some(Raw::Text(text))) => json!(text),
                    _ => json!(value),
                };
                let raw = match &raw {
                    Some(Raw::Int(int)) => json!(int),
                    _ => json!(null),
                };
                let line = json!({ "epoch": epoch, "seq": seq, "device": device, "point": name, "statistic": statistic,
                    "at_ms": reading.at_ms, "status": status, "value": value, "raw": raw, "unit": unit });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

/// What is no real value.
enum Raw {
    Int(i128),
    Text(String),
}

/// The real value by the catalogue's scale, and the raw one.
fn shown(value: Option<&Value<'_>>, point: Option<&pb::Point>) -> (Option<f64>, Option<Raw>) {
    let scale = point.map_or(Scale::default(), |point| Scale {
        exponent: point.exponent,
        factor: point.factor,
        bias: point.bias,
    });
    match value {
        None => (None, None),
        Some(Value::Bool(set)) => (Some(f64::from(u8::from(*set))), Some(Raw::Int(i128::from(*set)))),
        Some(Value::Int(int)) => (scale.real(PointType::Int, int.cast_unsigned()), Some(Raw::Int(i128::from(*int)))),
        Some(Value::Uint64(int)) => (scale.real(PointType::Uint64, *int), Some(Raw::Int(i128::from(*int)))),
        Some(Value::Float32(float)) => (scale.real(PointType::Float32, u64::from(*float)), None),
        Some(Value::Float64(float)) => (scale.real(PointType::Float64, *float), None),
        Some(Value::Text(text)) => (None, Some(Raw::Text((*text).to_owned()))),
    }
}
