//! `tributary check --plan`: what will be asked of each bus, what that costs, what will be sent.
//!
//! Bytes on a bus are Modbus bytes with header or CRC. What TCP and IP add, 40 bytes a packet and its acknowledgement, is
//! named beside it. Times are the forecast's. What is sent upward can only be bounded: a deadband sends as much as the
//! plant moves. So too what is written to the disk: sled writes a page anew for each few entries that are added.

use std::fmt::Write;

use serde_json::json;
use tributary_core::model::Model;
use tributary_protocols::modbus::config::{BusSpec, Link};

use super::status::bytes;
use crate::config::{BusSource, Config, ms};

const DAY_MS: f64 = 86_400_000.0;
/// Bytes written for one commit, and for each byte of a batch, as `--example spool_cost` measures them: 9.6 KB for a batch
/// of 300 B, 30 KB for 4 of 1 KB, 125 KB for 16 KB. Large commits cost less, 5.4 times at 400 KB.
const WRITTEN_A_COMMIT: f64 = 8_192.0;
const WRITTEN_A_BYTE: f64 = 7.5;
/// Acknowledgements alone are committed once in ten seconds.
const ACK_COMMIT_MS: f64 = 10_000.0;

/// Bytes that the spool has the disk write a day, at most.
fn written_a_day(config: &Config) -> f64 {
    let (raw, summaries) = readings_a_day(&config.model);
    let polls: f64 = config.model.requests.iter().map(|request| DAY_MS / f64::from(request.period_ms.max(1))).sum();
    // A topic's messages come whenever they come.
    let occasions = if config.brokers.is_empty() { polls + summaries + DAY_MS / ACK_COMMIT_MS } else { f64::INFINITY };
    let spacing = config.spool.core().commit.as_secs_f64().max(0.001) * 1e3;
    occasions.min(DAY_MS / spacing) * WRITTEN_A_COMMIT + (raw + summaries) * 4.0 * WRITTEN_A_BYTE
}

/// Sum of a point's readings a day, at most: raw ones of polled points, and summaries.
fn readings_a_day(model: &Model) -> (f64, f64) {
    let mut raw = 0.0;
    for request in &model.requests {
        let sent = request.points.iter().filter(|key| model.points.get(key.0 as usize).is_some_and(|point| point.raw));
        raw += sent.count() as f64 * DAY_MS / f64::from(request.period_ms.max(1));
    }
    // From 0.0, since an empty sum of floats is -0.0.
    let summaries = model
        .points
        .iter()
        .filter_map(|point| point.window.as_ref())
        .fold(0.0, |sum, window| sum + window.stats.len() as f64 * DAY_MS / f64::from(window.every_ms.max(1)));
    (raw, summaries)
}

/// One paragraph: what the configuration comes to.
pub(super) fn summary(config: &Config) -> String {
    let mut out = String::new();
    let model = &config.model;
    let _ = writeln!(
        out,
        "{}: good. {}, {}, {} on {}; catalogue {} of {} allowed",
        config.file.display(),
        many(model.devices.len(), "device"),
        many(model.points.len(), "point"),
        many(model.requests.len(), "request"),
        match config.buses.len() {
            1 => "1 bus".to_owned(),
            n => format!("{n} buses"),
        },
        bytes(config.catalog_bytes as u64),
        config.uplink.max_packet,
    );
    out
}

/// `1 point`, `2 points`.
fn many(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The requests, bus by bus.
pub(super) fn requests(config: &Config) -> String {
    let mut out = String::new();
    let _ = write_requests(config, &mut out);
    out
}

fn write_requests(config: &Config, out: &mut String) -> std::fmt::Result {
    for bus in &config.buses {
        write_bus(bus, out)?;
    }
    for broker in &config.brokers {
        writeln!(out, "\nbroker {:?}: {}", broker.spec.name, many(broker.spec.rules.len(), "topic filter"))?;
        for rule in &broker.spec.rules {
            writeln!(out, "    {:?} -> {:?}", rule.filter, rule.point.name)?;
        }
    }
    let (raw, summaries) = readings_a_day(&config.model);
    let total = raw + summaries;
    writeln!(
        out,
        "\nsent upward, at most, MQTT points not counted: {raw:.0} readings and {summaries:.0} summaries a day"
    )?;
    writeln!(
        out,
        "  {} to {} a day: 1 byte each where ten polls share a batch, 4 at one poll a batch; a deadband sends less",
        bytes(total as u64),
        bytes((total * 4.0) as u64)
    )?;
    writeln!(
        out,
        "written to the disk, at most, MQTT points not counted: {} a day with a commit every {}; a longer spool.commit spares flash memory",
        bytes(written_a_day(config) as u64),
        ms(config.spool.core().commit)
    )
}

fn write_bus(bus: &BusSource, out: &mut String) -> std::fmt::Result {
    let forecast = &bus.forecast;
    let rate: f64 = forecast.requests.iter().map(|ask| 1.0 / ask.period.as_secs_f64()).sum();
    let octets: f64 =
        forecast.requests.iter().map(|ask| f64::from(ask.question + ask.answer) / ask.period.as_secs_f64()).sum();
    writeln!(out, "\nbus {:?} at {}: {}", bus.spec.name, place(&bus.spec), many(forecast.requests.len(), "request"))?;
    write!(out, "  {rate:.2} requests/s, {octets:.0} Modbus bytes/s")?;
    match bus.spec.link {
        Link::Serial(_) => writeln!(out)?,
        // A request, an answer and one acknowledgement: three packets of 40 bytes around the Modbus bytes.
        _ => writeln!(out, ", {:.0} bytes/s with TCP/IP headers", octets + rate * 120.0)?,
    }
    if forecast.requests.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "  {:.1} % of the bus, {} a round; {} if every answer comes just before its time-out",
        forecast.utilisation * 100.0,
        ms(forecast.cycle),
        ms(forecast.slowest_cycle)
    )?;
    for (dead, cycle) in (1..).zip(&forecast.with_dead).take(bus.devices.len()) {
        writeln!(out, "  with {} dead: {} for the round that finds out", many(dead, "device"), ms(*cycle))?;
    }
    if bus.devices.len() > 1 {
        writeln!(
            out,
            "  then at most {:.1} % of the bus, of which probes take {:.0} %",
            forecast.utilisation_with_dead * 100.0,
            bus.spec.probe_share * 100.0
        )?;
    }
    for miss in &forecast.misses_with_dead {
        writeln!(
            out,
            "  while a dead device is found out, polls of {} are skipped: {} would be needed",
            ms(miss.period),
            ms(miss.needs)
        )?;
    }
    let mut asks = forecast.requests.iter();
    for device in &bus.devices {
        let mine: Vec<_> = device.requests.iter().zip(asks.by_ref()).collect();
        let thinks = mine.first().map_or(String::new(), |(_, ask)| {
            format!(", answers in {} ({})", ms(ask.thinks), if ask.stated { "stated" } else { "assumed" })
        });
        writeln!(out, "  device {:?}, unit {}{thinks}", device.name, device.unit)?;
        for ((number, request), ask) in mine {
            let last = u32::from(request.address) + u32::from(request.count) - 1;
            writeln!(
                out,
                "    #{number} every {}: {} {}..={last} on the wire, {}, {}; {} + {} bytes, {}",
                ms(ask.period),
                request.table.name(),
                request.address,
                many(request.count.into(), if request.table.is_bits() { "bit" } else { "register" }),
                many(request.points.len(), "point"),
                ask.question,
                ask.answer,
                ms(ask.time)
            )?;
        }
    }
    Ok(())
}

/// The same for scripts: what each bus will have to carry, times in ms.
pub(super) fn json(config: &Config) -> serde_json::Value {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let bus = |bus: &BusSource| {
        let forecast = &bus.forecast;
        let asked = bus.devices.iter().flat_map(|device| device.requests.iter().map(move |asked| (device, asked)));
        let requests = asked.zip(&forecast.requests).map(|((device, (number, request)), ask)| {
            json!({
                "request": number, "device": device.name, "unit_id": device.unit, "table": request.table.name(),
                "address": request.address, "count": request.count, "points": request.points.len(),
                "period_ms": ms(ask.period), "question_bytes": ask.question, "answer_bytes": ask.answer,
                "time_ms": ms(ask.time),
            })
        });
        json!({
            "name": bus.spec.name, "endpoint": bus.spec.endpoint(), "utilisation": forecast.utilisation,
            "cycle_ms": ms(forecast.cycle), "slowest_cycle_ms": ms(forecast.slowest_cycle),
            "cycle_with_dead_ms": forecast.with_dead.iter().map(|time| ms(*time)).collect::<Vec<_>>(),
            "utilisation_with_dead": forecast.utilisation_with_dead, "requests": requests.collect::<Vec<_>>(),
        })
    };
    config.buses.iter().map(bus).collect()
}

/// Where a bus is, and how fast its line is.
fn place(spec: &BusSpec) -> String {
    match &spec.link {
        Link::Serial(line) => format!("{}, {}", line.device, line.mode()),
        Link::Tcp { .. } => spec.endpoint(),
        Link::RtuOverTcp { .. } => format!("{}, serial frames", spec.endpoint()),
        Link::Tls { .. } => format!("{}, TLS", spec.endpoint()),
    }
}
