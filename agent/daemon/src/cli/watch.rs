//! `tributary watch`: live values of the running agent, each with its status, its age and how often it comes.
//!
//! In a terminal a table that stays in its place; into a pipe or file a line a reading, or JSON lines. Values are shown as
//! the centre will compute them, by scale and labels of the configuration; sentinels and valid ranges are applied, filters
//! are not: one sees what the device says. Watching costs the agent nothing but the lines; a watcher that is too slow is
//! told how much it missed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tributary_core::filter::mark::Mark;
use tributary_core::model::Point;
use tributary_protocols::gather;
use tributary_protocols::reading::{Sample, Status};
use tributary_protocols::time::{Clock, Mono};
use tributary_protocols::value::{PointType, Scale, Value, exponent};

use super::BAD_CONFIGURATION;
use crate::clock::SystemClock;
use crate::config::{Config, Occasion, load};
use crate::socket::{self, Watched, WatchedValue};
use crate::status::Status as AgentStatus;

/// What to watch.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// The configuration
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
    /// DEVICE or DEVICE/POINT, * for anything; everything if none is given
    #[arg(value_name = "DEVICE[/POINT]")]
    what: Vec<String>,
    /// End as soon as each point was heard of, or after ten seconds
    #[arg(long)]
    once: bool,
    /// A line of JSON for each reading
    #[arg(long, conflicts_with = "once")]
    json: bool,
}

/// How often the table is drawn, and how often the buses are asked for.
const DRAW: Duration = Duration::from_millis(500);
const ASK: Duration = Duration::from_secs(2);
/// How long `--once` waits.
const ONCE: Duration = Duration::from_secs(10);
/// Most buses below the table.
const BUSES: usize = 8;
/// Lines of a terminal that does not say how many it has.
const LINES: usize = 24;

pub(super) fn watch(args: &WatchArgs) -> ExitCode {
    let (config, report) = load(&args.config, Occasion::Beside);
    let Some(config) = config else {
        report.tell();
        return ExitCode::from(BAD_CONFIGURATION);
    };
    let socket = config.agent.socket();
    let started = socket::status(&socket).and_then(|status| Ok((status, socket::watch(&socket)?)));
    let (status, readings) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("error: {error}");
            eprintln!(" = help: start it with `tributary run -c FILE`, and ask as the agent's user or as root");
            return ExitCode::FAILURE;
        }
    };
    if status.config_sha256 != config.sha256 {
        eprintln!(
            "warning: the agent runs with another configuration than this file holds now; restart it, or give the file it runs with"
        );
    }
    let mut table = Table::new(&config, &args.what);
    if !table.rows.iter().any(|row| row.shown) && config.brokers.is_empty() {
        eprintln!("error: no point is called like {}", args.what.join(" or "));
        return ExitCode::FAILURE;
    }
    // Whoever has seen enough ends it: that is no failure.
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            std::process::exit(0);
        }
    });
    let (to, from) = channel();
    // It ends with the process, or when the agent does.
    std::thread::spawn(move || {
        for reading in readings {
            if to.send(reading).is_err() {
                break;
            }
        }
    });
    let told = match (args.json, args.once || std::io::stdout().is_terminal()) {
        (false, true) => live(&mut table, &from, &socket, args.once),
        (json, _) => lines(&mut table, &from, json),
    };
    // The reader of a pipe may have had enough.
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A line a reading.
fn lines(table: &mut Table, from: &Receiver<Watched>, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for watched in from {
        for seen in table.take(Mono::ZERO, watched) {
            let Ok((row, at)) = seen else {
                eprintln!("{} readings were missed: too slow", seen.err().unwrap_or_default());
                continue;
            };
            let Some(row) = table.rows.get(row) else { continue };
            let status = row.status.map_or("", Status::name);
            let written = if json {
                let (device, point) = (&row.device, &row.point);
                let line = json!({ "at_ms": at, "device": device, "point": point, "value": row.value, "unit": row.unit, "status": status });
                writeln!(out, "{line}")
            } else {
                writeln!(
                    out,
                    "{at} {}/{} {} {} {status}",
                    row.device,
                    row.point,
                    row.value.as_deref().unwrap_or("-"),
                    row.unit
                )
            };
            match written {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
    }
    Ok(())
}

/// The table, drawn again and again; or once.
fn live(table: &mut Table, from: &Receiver<Watched>, socket: &std::path::Path, once: bool) -> std::io::Result<()> {
    let clock = SystemClock::new();
    let began = clock.mono();
    let (mut drawn, mut asked, mut status) = (began, began, socket::status(socket).ok());
    let mut ended = false;
    while !ended {
        match from.recv_timeout(DRAW) {
            Ok(watched) => drop(table.take(clock.mono(), watched)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
        let now = clock.mono();
        if once {
            let mut wanted = table.rows.iter().filter(|row| table.wanted(&row.device, &row.point));
            let heard = wanted.all(|row| row.status.is_some());
            if heard && now.since(began) > DRAW || now.since(began) > ONCE || ended {
                print!("{}", table.draw(now, began, socket::status(socket).ok().as_ref(), usize::MAX));
                return std::io::stdout().flush();
            }
            continue;
        }
        if now.since(asked) >= ASK {
            (asked, status) = (now, socket::status(socket).ok());
        }
        if now.since(drawn) >= DRAW || ended {
            drawn = now;
            let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
            let height = size.map_or(LINES, |size| usize::from(size.ws_row)).max(5);
            let width = size.map_or(usize::MAX, |size| usize::from(size.ws_col).max(20));
            let text = table.draw(now, began, status.as_ref(), height - 1);
            let cut: String =
                text.lines().map(|line| line.chars().take(width).collect::<String>() + "\x1b[K\n").collect();
            print!("\x1b[H{cut}\x1b[J");
            std::io::stdout().flush()?;
        }
    }
    println!("the agent has ended");
    Ok(())
}

/// One point.
struct Row {
    device: String,
    point: String,
    unit: String,
    ty: PointType,
    scale: Scale,
    labels: BTreeMap<i64, String>,
    mark: Mark,
    /// The row whose value is its scale's exponent.
    factor: Option<usize>,
    /// The exponent it brings.
    exponent: Option<i32>,
    value: Option<String>,
    status: Option<Status>,
    last: Mono,
    count: u64,
    shown: bool,
}

impl Row {
    fn new(device: &str, point: &Point) -> Self {
        Self {
            device: device.to_owned(),
            point: point.name.clone(),
            unit: point.unit.clone(),
            ty: point.ty,
            scale: point.scale,
            labels: point.labels.clone(),
            mark: Mark::new(point),
            factor: point.scale_from.map(|key| key.0 as usize),
            exponent: None,
            value: None,
            status: None,
            last: Mono::ZERO,
            count: 0,
            shown: false,
        }
    }
}

/// All points, in the order of the configuration; those of wildcards as they appear.
struct Table {
    rows: Vec<Row>,
    /// For each planned request its rows.
    requests: Vec<Vec<usize>>,
    /// For each broker its name and the points of its rules.
    brokers: Vec<(String, Vec<Option<Point>>)>,
    /// The bus of each device.
    buses: BTreeMap<String, String>,
    what: Vec<String>,
    missed: u64,
}

impl Table {
    fn new(config: &Config, what: &[String]) -> Self {
        let name = |device: u32| config.model.devices.get(device as usize).map_or("", |device| device.name.as_str());
        let rows: Vec<Row> = config.model.points.iter().map(|point| Row::new(name(point.device), point)).collect();
        let requests = config.model.requests.iter();
        let requests = requests.map(|request| request.points.iter().map(|key| key.0 as usize).collect()).collect();
        let brokers = config.brokers.iter().map(|broker| {
            let rules = (0..broker.spec.rules.len()).map(|rule| broker.template(rule)).collect();
            (name(broker.device).to_owned(), rules)
        });
        let buses = config
            .buses
            .iter()
            .flat_map(|bus| bus.keys.iter().map(|key| (name(*key).to_owned(), bus.spec.name.clone())));
        let (brokers, buses) = (gather(brokers), gather(buses));
        let mut table = Self { rows, requests, brokers, buses, what: what.to_vec(), missed: 0 };
        // What is not asked for, or can never come, is not shown. It keeps its row: polls find theirs by number.
        let polled: BTreeSet<usize> = gather(table.requests.iter().flatten().copied());
        for at in 0..table.rows.len() {
            let wanted = table.rows.get(at).is_some_and(|row| table.wanted(&row.device, &row.point));
            if let Some(row) = table.rows.get_mut(at) {
                row.shown = wanted && polled.contains(&at);
            }
        }
        table
    }

    fn wanted(&self, device: &str, point: &str) -> bool {
        let full = format!("{device}/{point}");
        self.what.is_empty() || self.what.iter().any(|what| like(what, device) || like(what, &full))
    }

    /// Takes readings in: the rows that changed and their stamps, or how many were missed.
    fn take(&mut self, now: Mono, watched: Watched) -> Vec<Result<(usize, i64), u64>> {
        match watched {
            Watched::Missed(count) => {
                self.missed += count;
                vec![Err(count)]
            }
            Watched::Poll { request, at, samples } => {
                let rows = self.requests.get(request as usize).cloned().unwrap_or_default();
                let sample = |n: usize| samples.get(n).or(samples.first().filter(|_| samples.len() == 1)).cloned();
                // Exponents first, wherever they stand.
                let mut seen: Vec<(usize, Sample)> =
                    rows.iter().enumerate().filter_map(|(n, row)| Some((*row, plain(sample(n)?)))).collect();
                for (row, sample) in &mut seen {
                    let Some(row) = self.rows.get_mut(*row) else { continue };
                    row.mark.apply(sample);
                    row.exponent = if let Value::Bits(bits) = sample.value { exponent(bits) } else { None };
                }
                let mut changed = Vec::new();
                for (row, sample) in seen {
                    self.set(now, row, &sample);
                    changed.extend(self.rows.get(row).filter(|row| row.shown).map(|_| Ok((row, at))));
                }
                changed
            }
            Watched::Message { broker, rule, point, at, sample } => {
                let Some((device, rules)) = self.brokers.get(broker as usize) else { return Vec::new() };
                let device = device.clone();
                let wanted = self.wanted(&device, &point);
                let known = self.rows.iter().position(|row| row.device == device && row.point == point);
                let template = rules.get(rule as usize).cloned().flatten();
                let row = match (known, template) {
                    (Some(row), _) => row,
                    (None, Some(template)) if wanted => {
                        self.rows.push(Row::new(&device, &Point { name: point, ..template }));
                        self.rows.len() - 1
                    }
                    _ => return Vec::new(),
                };
                let mut sample = plain(sample);
                if let Some(row) = self.rows.get_mut(row) {
                    row.shown |= wanted;
                    row.mark.apply(&mut sample);
                }
                self.set(now, row, &sample);
                if self.rows.get(row).is_some_and(|row| row.shown) { vec![Ok((row, at))] } else { Vec::new() }
            }
        }
    }

    fn set(&mut self, now: Mono, row: usize, sample: &Sample) {
        let factor = self.rows.get(row).and_then(|row| row.factor);
        let exponent = factor.map(|factor| self.rows.get(factor).and_then(|row| row.exponent));
        let Some(row) = self.rows.get_mut(row) else { return };
        let scale = match exponent {
            None => Some(row.scale),
            Some(e) => e.map(|e| row.scale.times_ten_to(row.ty, e)),
        };
        row.value = match (&sample.value, scale) {
            (Value::Bits(bits), Some(scale)) => Some(shown(row.ty, *bits, scale, &row.labels)),
            (Value::Bits(bits), None) => Some(format!("{} · 10^?", shown(row.ty, *bits, row.scale, &row.labels))),
            (Value::Text(text), _) => Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()),
            (Value::None, _) => None,
        };
        (row.status, row.last) = (Some(sample.status), now);
        row.count += 1;
    }

    /// The table in at most so many lines.
    fn draw(&self, now: Mono, began: Mono, status: Option<&AgentStatus>, most: usize) -> String {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.shown).collect();
        let used: BTreeSet<&String> = gather(rows.iter().filter_map(|row| self.buses.get(&row.device)));
        let mut foot = Vec::new();
        for bus in status.iter().flat_map(|status| &status.buses).filter(|bus| used.contains(&bus.name)).take(BUSES) {
            let (busy, planned) = (bus.utilisation * 100.0, bus.planned_utilisation * 100.0);
            let state = if bus.connected { "" } else { ", not connected" };
            let errors = bus.errors + bus.crc_errors;
            foot.push(format!(
                "bus {}: {busy:.1} % busy of {planned:.1} planned, {} time-outs, {errors} doubtful answers{state}",
                bus.name, bus.timeouts
            ));
        }
        if used.len() > BUSES {
            foot.push(format!("{} buses more", used.len() - BUSES));
        }
        if self.missed > 0 {
            foot.push(format!("{} readings were missed: too slow", self.missed));
        }
        let room = most.saturating_sub(foot.len() + 2).max(1);
        let names: Vec<String> = rows.iter().take(room).map(|row| format!("{}/{}", row.device, row.point)).collect();
        let values: Vec<String> = rows
            .iter()
            .take(room)
            .map(|row| format!("{} {}", row.value.as_deref().unwrap_or("-"), row.unit).trim_end().to_owned())
            .collect();
        let width = |cells: &[String], least: usize| {
            cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).clamp(least, 60)
        };
        let (first, second) = (width(&names, 5), width(&values, 5));
        let mut out =
            format!("{:<first$}  {:>second$}  {:<14}  {:>6}  {:>7}\n", "point", "value", "status", "age", "rate");
        let time = now.since(began).as_secs_f64().max(0.5);
        for ((row, name), value) in rows.iter().zip(&names).zip(&values) {
            let line = match row.status {
                None => format!("{name:<first$}  {:>second$}  {:<14}", "", "not heard yet"),
                Some(status) => {
                    let age = now.since(row.last).as_secs_f64();
                    #[expect(clippy::cast_precision_loss, reason = "for people")]
                    let rate = row.count as f64 / time;
                    format!("{name:<first$}  {value:>second$}  {:<14}  {age:>4.1} s  {rate:>5.1}/s", status.name())
                }
            };
            out.push_str(line.trim_end());
            out.push('\n');
        }
        if rows.len() > room {
            out.push_str(&format!("{} more: name a device to see its points\n", rows.len() - room));
        }
        for line in foot {
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

fn plain((status, value): (u8, Option<WatchedValue>)) -> Sample {
    let status = Status::from_code(status).unwrap_or(Status::TypeError);
    let value = match value {
        None => Value::None,
        Some(WatchedValue::Bits(bits)) => Value::Bits(bits),
        Some(WatchedValue::Text(text)) => Value::Text(text.as_str().into()),
    };
    Sample { status, value }
}

/// A value as people read it: by label, or the real value with as many digits as the raw one has.
fn shown(ty: PointType, bits: u64, scale: Scale, labels: &BTreeMap<i64, String>) -> String {
    #[expect(clippy::cast_possible_wrap, reason = "INT travels as the i64's own bits")]
    if let Some(label) = labels.get(&(bits as i64)).filter(|_| !matches!(ty, PointType::Float32 | PointType::Float64)) {
        return format!("{label} ({})", bits as i64);
    }
    let Some(real) = scale.real(ty, bits) else { return String::new() };
    let plain = scale.factor == 0.0 && scale.bias == 0.0;
    match ty {
        PointType::Bool => (bits != 0).to_string(),
        PointType::Uint64 if plain && scale.exponent == 0 => bits.to_string(),
        #[expect(clippy::cast_possible_truncation, reason = "FLOAT32 sits in the low 32 bits")]
        PointType::Float32 if plain && scale.exponent == 0 => f32::from_bits(bits as u32).to_string(),
        PointType::Int | PointType::Uint64 if scale.factor == 0.0 && scale.bias.fract() == 0.0 => {
            format!("{real:.*}", scale.exponent.min(0).unsigned_abs() as usize)
        }
        _ => {
            let text = format!("{real:.9}");
            let text = text.trim_end_matches('0').trim_end_matches('.');
            if real != 0.0 && real.abs() < 1e-6 || real.abs() >= 1e15 { format!("{real:e}") } else { text.to_owned() }
        }
    }
}

/// Whether `name` is like `pattern`, in which * stands for anything.
fn like(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for piece in pieces {
        last = Some(piece);
        match rest.find(piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or(""),
            None => return false,
        }
    }
    match last {
        None => rest.is_empty(),
        Some(last) => {
            rest.is_empty() || name.ends_with(last) && (last.is_empty() || name.len() >= first.len() + last.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_never_land_on_a_topic_that_is_watched_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let text = r#"
            agent = { site = "s", id = "a", state_dir = "." }
            uplink = { url = "mqtt://127.0.0.1" }
            bus = [{ name = "line", tcp = "192.0.2.1:502" }]
            mqtt = [{ name = "cell", url = "mqtt://192.0.2.1", point = [
                { name = "temp/{1}", topic = "sensors/+/temp", value = "/value", type = "f64" },
            ] }]
            [[device]]
            name = "tank"
            bus = "line"
            unit_id = 1
            addressing = "zero"
            order = "ABCD"
            period = "1s"
            point = [{ name = "level", table = "holding", address = 0, type = "u16" }]
        "#;
        std::fs::write(&file, text).unwrap();
        let (config, report) = load(&file, Occasion::Check);
        let config = config.unwrap_or_else(|| panic!("{}", report.render()));
        let mut table = Table::new(&config, &["cell/*".to_owned()]);
        let sample = |bits| (Status::Good.code(), Some(WatchedValue::Bits(bits)));
        let bits = 21.5_f64.to_bits();
        let message = Watched::Message { broker: 0, rule: 0, point: "temp/a".into(), at: 1, sample: sample(bits) };
        let row = table.take(Mono::ZERO, message);
        assert!(table.take(Mono::ZERO, Watched::Poll { request: 0, at: 2, samples: vec![sample(130)] }).is_empty());
        let [Ok((row, 1))] = row[..] else { panic!("{row:?}") };
        assert_eq!(table.rows[row].value.as_deref(), Some("21.5"));
    }

    #[test]
    fn names_are_alike_by_stars() {
        for (pattern, name, wanted) in [
            ("meter", "meter", true),
            ("meter", "meter2", false),
            ("meter*", "meter2", true),
            ("*/level", "tank/level", true),
            ("*/level", "tank/levels", false),
            ("m*r/v*", "meter/voltage", true),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(like(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn values_have_the_digits_of_their_raw_numbers() {
        let none = BTreeMap::new();
        let tenth = Scale { exponent: -1, ..Scale::default() };
        assert_eq!(shown(PointType::Int, 2_300, tenth, &none), "230.0");
        assert_eq!(shown(PointType::Int, -5_i64 as u64, Scale::default(), &none), "-5");
        assert_eq!(shown(PointType::Uint64, u64::MAX, Scale::default(), &none), u64::MAX.to_string());
        assert_eq!(shown(PointType::Float32, u64::from(3.25_f32.to_bits()), Scale::default(), &none), "3.25");
        let factor = Scale { factor: 0.25, bias: 1.0, ..Scale::default() };
        assert_eq!(shown(PointType::Int, 3, factor, &none), "1.75");
        assert_eq!(shown(PointType::Int, 1, Scale::default(), &[(1, "on".to_owned())].into()), "on (1)");
    }
}
