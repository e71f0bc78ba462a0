//! What a point means, whatever device it comes from, and the keys by which every point row says so.
//!
//! Each protocol has rows of its own (where the value stands, how it is coded); name, unit, scale, range, filters and
//! windows are alike everywhere and are checked here, once. The scale goes to the catalogue, never into the data
//! (contract rule 14); filters and windows are only declared here and run in core.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Faults;
use crate::number::Number;
use crate::units::Span;
use crate::value::{PointType, Scale};

/// A point, as its configuration means it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// As configured, without the device's name; for an MQTT wildcard the template, `"temp/{1}"`.
    pub name: String,
    /// Its type on the wire.
    pub ty: PointType,
    /// UCUM.
    pub unit: String,
    /// From raw to real.
    pub scale: Scale,
    /// Another point of its device, an integer e: the scale is then times 10^e.
    pub scale_from: Option<String>,
    /// For people.
    pub description: String,
    /// Where its value stands: `"holding:0:u32be"`, or `"sensors/+/temp#/value"`.
    pub source: String,
    /// Whether the value only grows, but for rollover.
    pub counter: bool,
    /// Where a counter rolls over; 0 = unknown.
    pub counter_modulus: u64,
    /// Most that a counter can grow in a second, in its unit.
    pub max_rate: Option<f64>,
    /// Names of values.
    pub labels: BTreeMap<i64, String>,
    /// What else the catalogue tells of it: `bit.3` = the name of a bit field's bit 3.
    pub extra: BTreeMap<String, String>,
    /// Real values outside are OUT_OF_RANGE: low, high.
    pub valid: Option<(f64, f64)>,
    /// Sentinels for "not available", as [`Value::Bits`](crate::value::Value::Bits).
    pub bad: Vec<u64>,
    /// Withholds what hardly changed.
    pub deadband: Deadband,
    /// At the latest after this long a reading passes the deadband.
    pub heartbeat: Option<Duration>,
    /// Folds readings into summaries.
    pub window: Option<Window>,
    /// Whether the readings themselves are sent.
    pub raw: bool,
}

/// A deadband on the real value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Deadband {
    /// Everything passes.
    #[default]
    None,
    /// In the point's unit; 0 lets any change pass.
    Absolute(f64),
    /// In percent of the last value sent.
    Percent(f64),
}

/// A window and the statistics it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Length in ms, 10 ms to a day.
    pub every_ms: u32,
    /// Names out of [`STATISTICS`], in that order, without repetition, not empty.
    pub stats: Vec<&'static str>,
}

/// What a window can say, in the contract's order (rule 15).
pub const STATISTICS: [&str; 9] = ["count", "min", "max", "mean", "twmean", "sum", "first", "last", "stddev"];

/// `deadband = { abs = 0.05 }` or `{ percent = 1.0 }`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeadbandRow {
    /// In the point's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abs: Option<f64>,
    /// In percent of the last value sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// `window = { every = "10s", stats = ["mean", "min", "max"] }`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WindowRow {
    /// Its length.
    pub every: Span,
    /// Which statistics, by name.
    pub stats: Vec<String>,
}

/// The keys that every point row has.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) scale: Option<f64>,
    pub(crate) offset: Option<f64>,
    pub(crate) scale_from: Option<&'a str>,
    pub(crate) valid: Option<[f64; 2]>,
    pub(crate) deadband: Option<&'a DeadbandRow>,
    pub(crate) heartbeat: Option<Span>,
    pub(crate) window: Option<&'a WindowRow>,
    pub(crate) raw: Option<bool>,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) counter: bool,
    pub(crate) counter_modulus: Option<u64>,
    pub(crate) max_rate: Option<f64>,
    pub(crate) description: &'a str,
}

/// Longest name, unit, description or label, in bytes.
pub const MAX_TEXT: usize = 256;
const MAX_LABELS: usize = 1_000;
const LONGEST_MS: u64 = 86_400_000;

/// Checks a row of wire type `ty` (with labels an integer becomes ENUM) and gives the point without source and
/// sentinels, which are the protocol's to add. Faults go to the list; the point is then not to be used.
pub(crate) fn check(row: Row<'_>, ty: PointType, faults: &mut Faults<'_>) -> Point {
    text(row.name, "name", true, faults);
    text(row.unit, "unit", false, faults);
    text(row.description, "description", false, faults);
    let labels = labels(row.labels, ty, faults);
    let ty = if labels.is_empty() { ty } else { PointType::Enum };
    let scale = scale(row.scale, row.offset, ty, faults);
    let valid = valid(row.valid, ty, faults);
    let deadband = deadband(row.deadband, ty, faults);
    let heartbeat = heartbeat(row.heartbeat, deadband, faults);
    let window = row.window.and_then(|window| self::window(window, ty, faults));
    if row.raw == Some(false) && row.window.is_none() {
        faults.add(
            "raw",
            "without a window and without its readings nothing is left of the point",
            "add `window`, or remove `raw = false`",
        );
    }
    if row.counter && !matches!(ty, PointType::Int | PointType::Uint64 | PointType::Float32 | PointType::Float64) {
        faults.add("counter", format!("a {} cannot count", name_of(ty)), "only numbers can be counters");
    }
    if row.counter_modulus.is_some() && !row.counter {
        faults.add("counter_modulus", "only a counter rolls over", "add `counter = true`");
    }
    if row.counter_modulus.is_some_and(|modulus| modulus < 2) {
        faults.add("counter_modulus", "a counter has at least two values", "the first value that does not fit: 65536");
    }
    if let Some(rate) = row.max_rate {
        if !row.counter {
            faults.add("max_rate", "only a counter has a rate", "add `counter = true`");
        }
        if !rate.is_finite() || rate <= 0.0 {
            faults.add("max_rate", format!("{rate} is no rate"), "more than 0, in the point's unit a second");
        }
    }
    Point {
        name: row.name.to_owned(),
        ty,
        unit: row.unit.to_owned(),
        scale,
        scale_from: row.scale_from.map(Into::into),
        description: row.description.to_owned(),
        source: String::new(),
        counter: row.counter,
        counter_modulus: row.counter_modulus.unwrap_or(0),
        max_rate: row.max_rate,
        labels,
        extra: BTreeMap::new(),
        valid,
        bad: Vec::new(),
        deadband,
        heartbeat,
        raw: row.raw.unwrap_or(window.is_none()),
        window,
    }
}

/// A text within bounds.
pub(crate) fn text(text: &str, key: &str, needed: bool, faults: &mut Faults<'_>) {
    if needed && text.is_empty() {
        faults.add(key, "is empty", format!("give it a {key}"));
    }
    if text.len() > MAX_TEXT {
        faults.add(key, format!("has {} bytes", text.len()), format!("at most {MAX_TEXT}"));
    }
    if text.chars().any(char::is_control) {
        faults.add(key, format!("holds a control character: {text:?}"), "use printable text");
    }
}

fn labels(rows: &BTreeMap<String, String>, ty: PointType, faults: &mut Faults<'_>) -> BTreeMap<i64, String> {
    let mut labels = BTreeMap::new();
    if rows.is_empty() {
        return labels;
    }
    if ty != PointType::Int {
        faults.add(
            "labels",
            format!("a {} has no labels", name_of(ty)),
            "labels name the values of an integer of up to 64 bits, signed",
        );
        return labels;
    }
    if rows.len() > MAX_LABELS {
        faults.add("labels", format!("{} labels", rows.len()), format!("at most {MAX_LABELS}"));
        return labels;
    }
    for (key, label) in rows {
        match key.parse::<Number>().ok().and_then(Number::as_int).and_then(|key| i64::try_from(key).ok()) {
            Some(number) if labels.contains_key(&number) => {
                faults.add("labels", format!("{number} is named twice"), "one label a value");
            }
            Some(number) => {
                text(label, "labels", true, faults);
                labels.insert(number, label.clone());
            }
            None => faults.add("labels", format!("{key:?} is no integer"), "labels = { 0 = \"off\", 1 = \"on\" }"),
        }
    }
    labels
}

/// Integer points with a power-of-ten scale use the exponent (factor 0), all others the factor (exponent 0).
fn scale(scale: Option<f64>, offset: Option<f64>, ty: PointType, faults: &mut Faults<'_>) -> Scale {
    let integer = matches!(ty, PointType::Int | PointType::Uint64);
    if !integer && !matches!(ty, PointType::Float32 | PointType::Float64) {
        for (key, given) in [("scale", scale.is_some()), ("offset", offset.is_some())] {
            if given {
                faults.add(key, format!("a {} is not scaled", name_of(ty)), format!("remove `{key}`"));
            }
        }
        return Scale::default();
    }
    let (factor, bias) = (scale.unwrap_or(1.0), offset.unwrap_or(0.0));
    if !factor.is_finite() || factor == 0.0 {
        faults.add("scale", format!("{factor} is no scale"), "a finite number other than 0, as in `scale = 0.1`");
    }
    if !bias.is_finite() {
        faults.add("offset", format!("{bias} is no offset"), "a finite number");
    }
    let (exponent, factor) = match power_of_ten(factor) {
        _ if factor == 1.0 => (0, 0.0),
        Some(exponent) if integer => (exponent, 0.0),
        _ => (0, factor),
    };
    Scale { exponent, factor, bias }
}

/// `e` if `factor` is the double nearest to 10^e, |e| ≤ 22: the range in which powers of ten are exact doubles, so that
/// dividing by one is a single rounding.
fn power_of_ten(factor: f64) -> Option<i32> {
    let mut power = 1.0;
    for e in 1..=22 {
        power *= 10.0;
        if factor == power {
            return Some(e);
        }
        if factor == 1.0 / power {
            return Some(-e);
        }
    }
    None
}

fn valid(valid: Option<[f64; 2]>, ty: PointType, faults: &mut Faults<'_>) -> Option<(f64, f64)> {
    let [low, high] = valid?;
    if matches!(ty, PointType::Bool | PointType::String) {
        faults.add("valid", format!("a {} has no range", name_of(ty)), "remove `valid`");
    } else if low.is_nan() || high.is_nan() || low > high {
        faults.add(
            "valid",
            format!("[{low}, {high}] holds no value"),
            "the lower bound first, in the point's unit: `valid = [0.0, 12.0]`",
        );
    }
    Some((low, high))
}

fn deadband(row: Option<&DeadbandRow>, ty: PointType, faults: &mut Faults<'_>) -> Deadband {
    let Some(row) = row else { return Deadband::None };
    let (size, deadband) = match (row.abs, row.percent) {
        (Some(abs), None) => (abs, Deadband::Absolute(abs)),
        (None, Some(percent)) => (percent, Deadband::Percent(percent)),
        _ => {
            faults.add("deadband", "needs exactly one of `abs` and `percent`", "deadband = { abs = 0.05 }");
            return Deadband::None;
        }
    };
    if !size.is_finite() || size < 0.0 {
        faults.add("deadband", format!("{size} is no deadband"), "a finite number, 0 or more");
    }
    match ty {
        PointType::String => faults.add("deadband", "a text has no deadband", "remove `deadband`"),
        PointType::Bool | PointType::Enum if deadband != Deadband::Absolute(0.0) => faults.add(
            "deadband",
            format!("the values of a {} have no distance", name_of(ty)),
            "`deadband = { abs = 0 }` sends each change",
        ),
        _ => {}
    }
    deadband
}

fn heartbeat(heartbeat: Option<Span>, deadband: Deadband, faults: &mut Faults<'_>) -> Option<Duration> {
    let heartbeat = heartbeat?;
    if deadband == Deadband::None {
        faults.add(
            "heartbeat",
            "without a deadband every reading is sent anyway",
            "add `deadband`, or remove `heartbeat`",
        );
    }
    if heartbeat.as_millis() == 0 {
        faults.add("heartbeat", "is zero", "a duration like \"60s\"");
    }
    Some(heartbeat.duration())
}

fn window(row: &WindowRow, ty: PointType, faults: &mut Faults<'_>) -> Option<Window> {
    if ty == PointType::String {
        faults.add("window", "a text has no statistics", "remove `window`");
    }
    if !(10..=LONGEST_MS).contains(&row.every.as_millis()) {
        faults.add("window.every", format!("{} is out of range", row.every), "\"10ms\" to \"1d\"");
    }
    for name in &row.stats {
        if !STATISTICS.contains(&name.as_str()) {
            faults.add(
                "window.stats",
                format!("no statistic is called {name:?}"),
                format!("out of {}", STATISTICS.join(", ")),
            );
        }
    }
    if row.stats.is_empty() {
        faults.add("window.stats", "is empty", "name at least one, as in [\"mean\", \"min\", \"max\"]");
    }
    let stats = STATISTICS.into_iter().filter(|name| row.stats.iter().any(|given| given == name)).collect();
    Some(Window { every_ms: u32::try_from(row.every.as_millis()).ok()?, stats })
}

/// A duration within bounds in ms.
pub(crate) fn span(span: Span, key: &str, range: RangeInclusive<u64>, help: &str, faults: &mut Faults<'_>) -> Duration {
    if !range.contains(&span.as_millis()) {
        faults.add(key, format!("{span} is out of range"), help);
    }
    span.duration()
}

/// A period, checked: 10 ms to a day.
pub(crate) fn period(period: Span, key: &str, faults: &mut Faults<'_>) -> u32 {
    if !(10..=LONGEST_MS).contains(&period.as_millis()) {
        faults.add(key, format!("{period} is out of range"), "\"10ms\" to \"1d\"");
    }
    u32::try_from(period.as_millis()).unwrap_or(u32::MAX)
}

/// What people call the type.
pub(crate) fn name_of(ty: PointType) -> &'static str {
    match ty {
        PointType::Bool => "bool",
        PointType::Int => "signed integer",
        PointType::Uint64 => "u64",
        PointType::Float32 => "f32",
        PointType::Float64 => "f64",
        PointType::String => "string",
        PointType::Enum => "value with labels",
    }
}

/// Duplicate names among the points of one device.
pub(crate) fn unique_names<'a>(
    names: impl Iterator<Item = (&'a str, Option<&'a str>, String)>,
    faults: &mut Vec<crate::fault::Fault>,
) {
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (name, profile, path) in names {
        if let Some(first) = seen.get(name) {
            let message = format!("{name:?} is already the name of {first}");
            Faults { profile, path, list: faults }.add("name", message, "a point's name is unique within its device");
        } else {
            seen.insert(name, path.to_string());
        }
    }
}
