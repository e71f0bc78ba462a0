//! A message → its readings.
//!
//! Between driver and filter; pure. A topic is matched against the rules once and then remembered, so that a message
//! costs one look-up and, where a pointer asks for it, one JSON parse. Points of wildcards appear when their first
//! message does; each gets a *series* number that never changes while the process runs.
//!
//! A stamp that cannot be read does not cost the reading: it is stamped by arrival and marked UNCERTAIN. A message that
//! makes no reading is only counted, and may be acknowledged at once (contract rule 23).
//!
//! Limits: payloads of `max_payload`, nesting of 32, `max_topics` points made by wildcards, names of 256 bytes, topics of
//! 1,024. Whatever is beyond them is counted and dropped.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde_json::Value as Json;

use crate::mqtt::config::{BrokerSpec, Rule};
use crate::mqtt::{payload, stamp, topic};
use crate::point;
use crate::reading::{Sample, StampedBy, Status};
use crate::time::Wall;

/// Finds the points of messages and reads their values.
#[derive(Debug)]
pub struct Source {
    rules: Vec<Rule>,
    max_payload: usize,
    /// Points that wildcards may still make.
    room: usize,
    topics: BTreeMap<Box<str>, Box<[Series]>>,
    names: BTreeSet<Arc<str>>,
    next_series: u32,
    counters: SourceCounters,
}

/// A point that has been seen.
#[derive(Clone, Debug)]
struct Series {
    rule: u32,
    number: u32,
    name: Arc<str>,
    source: Arc<str>,
}

/// A reading of a point of a broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrived {
    /// The rule, an index in [`BrokerSpec::rules`].
    pub rule: u32,
    /// The point: counts from 0, first the rules without wildcards in their order, then the others in the order in
    /// which they appeared at this source. The same number always means the same rule, name and source text.
    pub series: u32,
    /// The point's name, wildcards filled in.
    pub name: Arc<str>,
    /// The point's source text, wildcards filled in: `"sensors/a/temp#/value"`.
    pub source: Arc<str>,
    /// The reading's stamp.
    pub at: Wall,
    /// Who set it.
    pub stamped_by: StampedBy,
    /// Value and status.
    pub sample: Sample,
}

/// What came and what could not be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Messages, in all.
    pub messages: u64,
    /// Readings made.
    pub readings: u64,
    /// Messages larger than `max_payload`.
    pub too_large: u64,
    /// Messages that are no JSON where a pointer asks for it, or nested deeper than 32.
    pub malformed: u64,
    /// Values that a pointer did not find, and payloads without anything in them.
    pub not_found: u64,
    /// Messages whose topic matches no rule, is beyond `max_topics`, or gives no name that can be used.
    pub refused_topics: u64,
    /// Stamps that could not be read, so that the time of arrival took their place.
    pub bad_stamps: u64,
}

impl Source {
    /// The source of a broker's readings.
    #[must_use]
    pub fn new(spec: &BrokerSpec) -> Self {
        let mut source = Self {
            rules: spec.rules.clone(),
            max_payload: spec.max_payload,
            room: spec.max_topics,
            topics: BTreeMap::new(),
            names: BTreeSet::new(),
            next_series: 0,
            counters: SourceCounters::default(),
        };
        let mut fixed: BTreeMap<&str, Vec<Series>> = BTreeMap::new();
        for (number, rule) in (0..).zip(&spec.rules).filter(|(_, rule)| !rule.wildcard) {
            let series = source.series(number, &rule.point.name, &rule.point.source);
            fixed.entry(&rule.filter).or_default().push(series);
        }
        // A topic that wildcards match as well is found out when it comes; until then nothing is remembered of it.
        let alone = |topic: &str| {
            !spec.rules.iter().any(|rule| rule.wildcard && topic::captures(&rule.filter, topic).is_some())
        };
        for (topic, series) in fixed {
            if alone(topic) {
                source.topics.insert(topic.into(), series.into());
            } else {
                source.later(topic, series);
            }
        }
        source
    }

    /// A topic with both kinds of rules: the wildcards' points take their place behind the fixed ones.
    fn later(&mut self, topic: &str, mut series: Vec<Series>) {
        series.extend(self.discover(topic));
        crate::sort(&mut series, |one, other| one.rule.cmp(&other.rule));
        self.topics.insert(topic.into(), series.into());
    }

    fn series(&mut self, rule: u32, name: &str, source: &str) -> Series {
        let (name, number) = (Arc::<str>::from(name), self.next_series);
        self.names.insert(name.clone());
        self.next_series += 1;
        Series { rule, number, name, source: source.into() }
    }

    /// The points that wildcards make of a topic not seen before.
    fn discover(&mut self, topic: &str) -> Vec<Series> {
        let mut found = Vec::new();
        if topic.len() > topic::MAX_TOPIC {
            return found;
        }
        for index in 0..self.rules.len() {
            let Some(rule) = self.rules.get(index).filter(|rule| rule.wildcard) else { continue };
            let Some(captures) = topic::captures(&rule.filter, topic) else { continue };
            let name = topic::fill(&rule.point.name, &captures);
            let unusable = name.is_empty() || name.len() > point::MAX_TEXT || name.chars().any(char::is_control);
            if unusable || self.room == 0 || self.names.contains(name.as_str()) {
                continue;
            }
            let source = topic::source(topic, &rule.value);
            self.room -= 1;
            found.push(self.series(u32::try_from(index).unwrap_or(u32::MAX), &name, &source));
        }
        found
    }

    /// What came so far.
    #[must_use]
    pub fn counters(&self) -> SourceCounters {
        self.counters
    }

    /// The readings of a message that arrived at `arrival`, in the order of the rules; none if it cannot be used.
    pub fn accept(&mut self, topic: &str, payload: &[u8], arrival: Wall) -> Vec<Arrived> {
        self.counters.messages += 1;
        if payload.len() > self.max_payload {
            self.counters.too_large += 1;
            return Vec::new();
        }
        if !self.topics.contains_key(topic) {
            let found = self.discover(topic);
            if found.is_empty() {
                self.counters.refused_topics += 1;
                return Vec::new();
            }
            self.topics.insert(topic.into(), found.into());
        }
        let Some(known) = self.topics.get(topic) else { return Vec::new() };
        let pointers = known.iter().any(|series| rule(&self.rules, series).is_some_and(|rule| rule.needs_json()));
        let json = pointers.then(|| parse(payload)).flatten();
        if pointers && json.is_none() {
            self.counters.malformed += 1;
        }
        let mut readings = Vec::with_capacity(known.len());
        for series in known {
            let Some(rule) = rule(&self.rules, series) else { continue };
            let sample = match (rule.value.as_str(), &json) {
                ("", _) => payload::from_scalar(payload, rule.ty),
                (pointer, Some(json)) => json.pointer(pointer).map(|value| payload::from_json(value, rule.ty)),
                // Counted above.
                (_, None) => continue,
            };
            let Some(mut sample) = sample else {
                self.counters.not_found += 1;
                continue;
            };
            let (mut at, mut stamped_by) = (arrival, StampedBy::Agent);
            if let Some(pointer) = &rule.time {
                match json.as_ref().and_then(|json| json.pointer(pointer)).and_then(stamp::read) {
                    Some(stamp) => (at, stamped_by) = (stamp, StampedBy::Source),
                    None => {
                        self.counters.bad_stamps += 1;
                        if sample.status == Status::Good {
                            sample.status = Status::Uncertain;
                        }
                    }
                }
            }
            let Series { rule, number: series, name, source } = series.clone();
            readings.push(Arrived { rule, series, name, source, at, stamped_by, sample });
        }
        self.counters.readings += readings.len() as u64;
        readings
    }
}

impl Rule {
    fn needs_json(&self) -> bool {
        !self.value.is_empty() || self.time.is_some()
    }
}

fn rule<'a>(rules: &'a [Rule], series: &Series) -> Option<&'a Rule> {
    rules.get(usize::try_from(series.rule).ok()?)
}

fn parse(payload: &[u8]) -> Option<Json> {
    if !payload::is_shallow(payload) {
        return None;
    }
    serde_json::from_slice(payload).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(keys: &str) -> Source {
        let text = alloc::format!("name='b'\nurl='mqtt://b'\n{keys}");
        Source::new(
            &crate::mqtt::config::resolve(&toml::from_str(&text).expect(&text), "mqtt[0]", "a").expect("no fault"),
        )
    }

    const TEMP: &str = "[[point]]\nname='temp/{1}'\ntopic='sensors/+/temp'\nvalue='/value'\ntime='/ts'\ntype='f64'\n";
    const NOW: Wall = Wall(1_700_000_000_000);

    #[test]
    fn a_wildcard_makes_points_as_they_appear() {
        let mut source = source(TEMP);
        let b = source.accept("sensors/b/temp", br#"{"value":1,"ts":1700000001}"#, NOW).remove(0);
        let a = source.accept("sensors/a/temp", br#"{"value":2.5,"ts":"2023-11-14T22:13:20Z"}"#, NOW).remove(0);
        let again = source.accept("sensors/b/temp", br#"{"value":3,"ts":1}"#, NOW).remove(0);
        assert_eq!((b.series, &*b.name, &*b.source), (0, "temp/b", "sensors/b/temp#/value"));
        assert_eq!((b.at, b.stamped_by), (Wall(1_700_000_001_000), StampedBy::Source));
        assert_eq!((a.series, a.sample.clone()), (1, Sample::good(2.5_f64.to_bits())));
        assert_eq!((again.series, again.at, again.stamped_by), (0, NOW, StampedBy::Agent));
        assert_eq!(again.sample.status, Status::Uncertain, "its stamp cannot be");
        assert_eq!(source.counters().bad_stamps, 1);
    }

    #[test]
    fn bounds_hold() {
        let mut source = source(&alloc::format!("max_topics=2\nmax_payload='64B'\n{TEMP}"));
        for (id, readings) in [("a", 1), ("b", 1), ("c", 0), ("a", 1)] {
            let got = source.accept(&alloc::format!("sensors/{id}/temp"), br#"{"value":1}"#, NOW);
            assert_eq!(got.len(), readings, "{id}");
        }
        assert!(source.accept("sensors/a/temp", &[b' '; 65], NOW).is_empty());
        assert!(source.accept("sensors/a/temp", b"{\"value\":", NOW).is_empty());
        assert!(source.accept("sensors/a/temp", b"{\"other\":1}", NOW).is_empty());
        assert!(source.accept("sensors/a", b"{}", NOW).is_empty());
        assert!(source.accept(&alloc::format!("sensors/{}/temp", "x".repeat(300)), b"{}", NOW).is_empty());
        let counters = source.counters();
        assert_eq!((counters.too_large, counters.malformed, counters.not_found), (1, 1, 1));
        assert_eq!((counters.messages, counters.readings, counters.refused_topics), (9, 3, 3));
    }

    #[test]
    fn fixed_points_have_their_numbers_from_the_start() {
        let mut source = source(
            "max_topics=1\n[[point]]\nname='all/{1}'\ntopic='a/#'\ntype='string'\n\
             [[point]]\nname='x'\ntopic='a/x'\nvalue='/x'\ntype='u16'\n[[point]]\nname='y'\ntopic='a/x'\nvalue='/y'\ntype='u16'",
        );
        let got = source.accept("a/x", br#"{"x":1,"y":70000}"#, NOW);
        let told: Vec<_> = got.iter().map(|reading| (reading.rule, reading.series, &*reading.name)).collect();
        assert_eq!(told, [(0, 2, "all/x"), (1, 0, "x"), (2, 1, "y")]);
        assert_eq!(got[2].sample, Sample::bare(Status::TypeError));
    }

    #[test]
    fn a_name_is_one_point_only() {
        let mut source =
            source("[[point]]\nname='t/x'\ntopic='fix'\ntype='u16'\n[[point]]\nname='t/{1}'\ntopic='s/+'\ntype='u16'");
        assert_eq!(source.accept("fix", b"1", NOW).len(), 1);
        assert_eq!(source.accept("s/x", b"2", NOW).len(), 0, "t/x is taken");
        assert_eq!(source.accept("s/y", b"2", NOW).len(), 1);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(topic in "[a-z/+#$]{0,20}", payload in proptest::collection::vec(any::<u8>(), 0..100), json in "[\\[\\]{}\",:0-9a-z.eE+-]{0,60}") {
            let mut source = source(
                "[[point]]\nname='{1}'\ntopic='#'\nvalue='/a'\ntime='/t'\ntype='f32'\n[[point]]\nname='s{1}'\ntopic='#'\ntype='i16'",
            );
            for payload in [payload.as_slice(), json.as_bytes()] {
                for reading in source.accept(&topic, payload, NOW) {
                    prop_assert_eq!(reading.sample.status.has_value(), reading.sample.value != crate::value::Value::None);
                }
            }
        }
    }
}
