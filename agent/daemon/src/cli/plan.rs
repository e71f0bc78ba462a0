//! `tributary check --plan`: what will be asked of each bus, what that costs, what will be sent.
//!
//! Bytes on a bus are Modbus bytes with the TCP header of 7: a request has 12, an answer 9 and its data. What TCP and IP
//! add, 40 bytes a packet and its acknowledgement, is named beside it. What is sent upward can only be bounded: a
//! deadband sends as much as the plant moves.

use std::fmt::Write;

use tributary_core::model::Model;
use tributary_protocols::modbus::plan::Request;

use super::status::bytes;
use crate::config::Config;

/// Sum of a point's readings a day, at most: raw ones of polled points, and summaries.
fn readings_a_day(model: &Model) -> (f64, f64) {
    const DAY_MS: f64 = 86_400_000.0;
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

/// Requests a second, and Modbus bytes a second both ways, of some requests.
fn load<'r>(requests: impl Iterator<Item = &'r Request>) -> (f64, f64) {
    requests.fold((0.0, 0.0), |(count, octets), request| {
        let rate = 1_000.0 / f64::from(request.period_ms.max(1));
        let data = if request.table.is_bits() { request.count.div_ceil(8) } else { request.count * 2 };
        (count + rate, octets + rate * (12.0 + 9.0 + f64::from(data)))
    })
}

/// The requests, bus by bus.
pub(super) fn requests(config: &Config) -> String {
    let mut out = String::new();
    let _ = write_requests(config, &mut out);
    out
}

fn write_requests(config: &Config, out: &mut String) -> std::fmt::Result {
    for bus in &config.buses {
        let all = bus.devices.iter().flat_map(|device| device.requests.iter().map(|(_, request)| request));
        let count = all.clone().count();
        let (rate, octets) = load(all);
        writeln!(out, "\nbus {:?} at {}: {}", bus.spec.name, bus.spec.endpoint(), many(count, "request"))?;
        writeln!(
            out,
            "  {rate:.2} requests/s, {octets:.0} Modbus bytes/s, {:.0} bytes/s with TCP/IP headers",
            // A request, an answer and one acknowledgement: three packets of 40 bytes around the Modbus bytes.
            octets + rate * 120.0
        )?;
        if rate > 0.0 {
            writeln!(out, "  on time as long as an answer takes less than {:.1} ms on average", 1_000.0 / rate)?;
        }
        for device in &bus.devices {
            writeln!(out, "  device {:?}, unit {}", device.name, device.unit)?;
            for (number, request) in &device.requests {
                let last = u32::from(request.address) + u32::from(request.count) - 1;
                writeln!(
                    out,
                    "    #{number} every {} ms: {} {}..={last} on the wire, {} {}, {}",
                    request.period_ms,
                    request.table.name(),
                    request.address,
                    request.count,
                    if request.table.is_bits() { "bits" } else { "registers" },
                    many(request.points.len(), "point")
                )?;
            }
        }
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
    )
}
