//! A message → its readings.

use alloc::sync::Arc;

use alloc::vec::Vec;

use crate::mqtt::config::BrokerSpec;
use crate::reading::{Sample, StampedBy};
use crate::time::Wall;

/// Finds the points of messages and reads their values.
#[derive(Debug)]
pub struct Source {}

/// A reading of a point of a broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrived {
    /// The rule, an index in [`BrokerSpec::rules`].
    pub rule: u32,
    /// The point: counts from 0 in the order in which points first appeared at this source. The same number always
    /// means the same rule, name and source text.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Messages, in all.
    pub messages: u64,
    /// Readings made.
    pub readings: u64,
    /// Messages larger than `max_payload`.
    pub too_large: u64,
    /// Messages that are no JSON where a pointer asks for it, or nested deeper than 32.
    pub malformed: u64,
    /// Values that a pointer did not find.
    pub not_found: u64,
    /// Topics beyond `max_topics`, or whose names cannot be used.
    pub refused_topics: u64,
    /// Stamps that could not be read, so that the time of arrival took their place.
    pub bad_stamps: u64,
}

impl Source {
    /// The source of a broker's readings.
    #[must_use]
    pub fn new(spec: &BrokerSpec) -> Self {
        let _ = spec;
        Self {}
    }

    /// The readings of a message that arrived at `arrival`; none if it cannot be used.
    pub fn accept(&mut self, topic: &str, payload: &[u8], arrival: Wall) -> Vec<Arrived> {
        let _ = (topic, payload, arrival);
        Vec::new()
    }
}
