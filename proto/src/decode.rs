//! From an `Envelope` to readings, or to a refusal that names the rule (columns.md, whose numbers are used throughout).
//!
//! Where it stands: between broker and database at the centre, and in the tests of everything that encodes. Two steps,
//! because a catalogue is found by what the first one yields: [`open`] does rules 1 to 3 and [`decode`] the others.
//!
//! A batch is accepted whole or not at all, and nothing in it is believed. In particular nothing is allocated by a
//! number that the sender wrote before rule 8 has bounded it, so the work goes in two passes over the same bytes: the
//! first counts (`scan`: rules 5, 7, 8, allocating nothing), the second builds frame by frame and column by column, each
//! column parsed, checked and dropped before the next. Parsing the whole `Batch` first was turned down: two bytes of a
//! body that say "an empty column" become some 300 bytes of memory, 16 MiB of them 2 GiB.
//!
//! Floats are moved as bits from end to end: a signalling NaN in a floating point register may come out quiet.
//!
//! Limits: 122,880 bytes of body, 16 MiB inflated, 1,048,576 readings; beyond the contract and only against malice,
//! 65,536 losses and events together and 1,048,576 texts a batch.

mod columns;
mod scan;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use prost::Message;

use crate::catalog::Schema;
use crate::pb;
use crate::{MAX_BODY, MAX_INFLATED, SCHEMA, crc32c, inflate};

/// A rule of columns.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The rule of that number.
    Number(u8),
    /// The table of types and kinds in section 5.
    Types,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "rule {number}"),
            Self::Types => f.write_str("the table of types"),
        }
    }
}

/// Why no reading of a batch is used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not damaged, only newer than this decoder: the batch stays at the edge.
    #[error("too new ({rule}): {reason}")]
    TooNew {
        /// The rule that sorts it out.
        rule: Rule,
        /// What is not known here.
        reason: Reason,
    },
    /// Damaged: refused for good.
    #[error("{rule}: {reason}")]
    Bad {
        /// The rule it breaks.
        rule: Rule,
        /// What is wrong.
        reason: Reason,
    },
}

impl Refusal {
    /// The verdict that the `Ack` carries.
    #[must_use]
    pub const fn verdict(&self) -> pb::Verdict {
        match self {
            Self::TooNew { .. } => pb::Verdict::TooNew,
            Self::Bad { .. } => pb::Verdict::BadPayload,
        }
    }

    /// The rule in question.
    #[must_use]
    pub const fn rule(&self) -> Rule {
        match self {
            Self::TooNew { rule, .. } | Self::Bad { rule, .. } => *rule,
        }
    }

    /// What is wrong.
    #[must_use]
    pub const fn reason(&self) -> &Reason {
        match self {
            Self::TooNew { reason, .. } | Self::Bad { reason, .. } => reason,
        }
    }

    pub(crate) const fn bad(rule: u8, reason: Reason) -> Self {
        Self::Bad { rule: Rule::Number(rule), reason }
    }

    pub(crate) const fn types(reason: Reason) -> Self {
        Self::Bad { rule: Rule::Types, reason }
    }
}

/// What is wrong with a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Rules 1 and 5.
    #[error("not the protobuf message it should be: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Rule 1: a number that must not be 0 is.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// Rule 1.
    #[error("first_retained_seq {first} is above seq {seq}")]
    FirstRetained {
        /// Oldest seq the agent claims to hold.
        first: u64,
        /// The seq of this batch.
        seq: u64,
    },
    /// Rule 2.
    #[error("schema {0}; this decoder knows {SCHEMA}")]
    Schema(u32),
    /// Rule 2: a dense body, none, or one in a field that is not known.
    #[error("no body of a known coding")]
    Body,
    /// Rule 3: bytes.
    #[error("body of {0} bytes; at most {MAX_BODY}")]
    Long(usize),
    /// Rule 3.
    #[error("CRC-32C of the body is {found:#010x}, the header says {stated:#010x}")]
    Crc {
        /// Of the bytes that came.
        found: u32,
        /// In the header.
        stated: u32,
    },
    /// Rule 4.
    #[error("{0}")]
    Zstd(#[from] crate::Damaged),
    /// Rule 7.
    #[error("a frame of 0 rows")]
    NoRows,
    /// Rule 7: group and point both set, or neither.
    #[error("a frame must name a group or a point; this one names group {group} and point {point}")]
    Frame {
        /// The group it names.
        group: u32,
        /// The point it names.
        point: u32,
    },
    /// Rule 7.
    #[error("group {0} is not in the catalogue")]
    Group(u32),
    /// Rule 7.
    #[error("point {0} is not in the catalogue")]
    Point(u32),
    /// Rule 7.
    #[error("{found} columns for {points} points")]
    Columns {
        /// In the frame.
        found: usize,
        /// In the catalogue's group; 1 for a point frame.
        points: usize,
    },
    /// Rule 8.
    #[error("{0} readings; a batch has at most 1048576")]
    TooMany(u64),
    /// Rule 8.
    #[error("{found} readings, the header says {stated}")]
    Readings {
        /// Σ rows × columns.
        found: u64,
        /// In the header.
        stated: u32,
    },
    /// Rule 10: a code without its run, an empty run, or runs that do not sum to the rows.
    #[error("status runs do not cover the {0} rows in pairs")]
    StatusRuns(u32),
    /// Rule 10.
    #[error("status {0} is not known")]
    Status(u32),
    /// Rule 12.
    #[error("a column without values has a coding")]
    NotEmpty,
    /// Rule 13: ints for values.
    #[error("{ints} ints in {runs} runs for {values} values")]
    Count {
        /// Entries of `ints`.
        ints: usize,
        /// Entries of `runs`.
        runs: usize,
        /// Values to be coded.
        values: usize,
    },
    /// Rule 13: a run is 0, or they do not sum to the values.
    #[error("runs do not cover the {0} values")]
    Runs(usize),
    /// Rule 14.
    #[error("order {0}; at most 2")]
    Order(u32),
    /// Rule 16.
    #[error("the dictionary does not ascend")]
    DictionaryOrder,
    /// Rule 16.
    #[error("index {index} in a dictionary of {len}")]
    DictionaryIndex {
        /// The index.
        index: i64,
        /// Entries there are.
        len: usize,
    },
    /// Rule 17.
    #[error("offset {0} without a step")]
    Offset(i64),
    /// Section 5.
    #[error("point type {0} is not known")]
    Type(i32),
    /// Section 5.
    #[error("kind {kind} for a point of type {ty}")]
    Kind {
        /// The kind of the column.
        kind: i32,
        /// The type of the point.
        ty: i32,
    },
    /// Sections 5 and 6: a parameter, text or exception where the kind has none.
    #[error("the kind has no {0}")]
    Foreign(&'static str),
    /// Section 5.
    #[error("{0} as a BOOL")]
    Bool(i64),
    /// Section 5.
    #[error("index {index} in {len} texts")]
    Text {
        /// The index.
        index: i64,
        /// Texts there are.
        len: usize,
    },
    /// Rule 18.
    #[error("{0} decimal digits; at most 22")]
    Digits(u32),
    /// Rule 18.
    #[error("decimal integer {0} is beyond 2^53")]
    Decimal(i64),
    /// Rule 19: lists of different length, a distance of 0, or a position beyond the values.
    #[error("exceptions do not name distinct values of {0}")]
    Exceptions(usize),
    /// Rule 19.
    #[error("exception {0:#x} does not fit 32 bits")]
    ExceptionBits(u64),
    /// Rule 20.
    #[error("shift {0} is beyond the type's width")]
    Shift(u32),
    /// Rule 20.
    #[error("image {0} shifted does not fit the type's width")]
    Image(i64),
    /// Rule 21.
    #[error("no time column")]
    NoTime,
    /// Beyond the contract: more losses, events or texts than any agent has.
    #[error("more {0} than a decoder takes in")]
    Flood(&'static str),
}

/// A batch, decoded and checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// How good the stamps are: a [`pb::TimeQuality`], or a number that is not known here.
    pub time_quality: i32,
    /// Bound on the clock's error when not SYNCED; 0 = unknown.
    pub time_error_ms: u32,
    /// Readings that will never arrive.
    pub losses: Vec<pb::Loss>,
    /// What happened.
    pub events: Vec<pb::Event>,
    /// The readings.
    pub frames: Vec<Frame>,
}

/// Readings that share their stamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The group of the catalogue, or 0.
    pub group: u32,
    /// The point, if there is no group.
    pub point: u32,
    /// One stamp a row: ms since 1970-01-01T00:00Z.
    pub times: Vec<i64>,
    /// One column a point, in the group's order.
    pub columns: Vec<Column>,
}

/// The readings of one point in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Whose they are.
    pub point: u32,
    /// The point's type; never `Unspecified`.
    pub ty: pb::point::Type,
    /// One code a row; below 16 with a value, from 16 on without.
    pub statuses: Vec<u8>,
    /// The values of the rows that have one, in row order.
    pub values: Values,
}

/// The values of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// BOOL (0 or 1), INT, ENUM, and UINT64 as the same 64 bits.
    Int(Vec<i64>),
    /// Bits of binary32.
    Float32(Vec<u32>),
    /// Bits of binary64.
    Float64(Vec<u64>),
    /// STRING.
    Text {
        /// One index into `texts` a value, all within it.
        indices: Vec<u32>,
        /// The table.
        texts: Vec<String>,
    },
}

/// One value, read by its point's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// BOOL.
    Bool(bool),
    /// INT and ENUM.
    Int(i64),
    /// UINT64.
    Uint64(u64),
    /// FLOAT32, its bits.
    Float32(u32),
    /// FLOAT64, its bits.
    Float64(u64),
    /// STRING.
    Text(&'a str),
}

impl Column {
    /// Value number `n` (counting values, not rows).
    #[must_use]
    pub fn value(&self, n: usize) -> Option<Value<'_>> {
        Some(match &self.values {
            Values::Int(ints) => {
                let int = *ints.get(n)?;
                match self.ty {
                    pb::point::Type::Bool => Value::Bool(int != 0),
                    pb::point::Type::Uint64 => Value::Uint64(int.cast_unsigned()),
                    _ => Value::Int(int),
                }
            }
            Values::Float32(bits) => Value::Float32(*bits.get(n)?),
            Values::Float64(bits) => Value::Float64(*bits.get(n)?),
            Values::Text { indices, texts } => Value::Text(texts.get(*indices.get(n)? as usize)?),
        })
    }
}

/// One reading of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// Its place in the batch, from 0: with (agent, epoch, seq) its name for ever (rule 9).
    pub index: u32,
    /// Whose it is.
    pub point: u32,
    /// When: ms since 1970-01-01T00:00Z.
    pub at_ms: i64,
    /// A [`pb::Status`] code.
    pub status: u8,
    /// What, if the status comes with a value.
    pub value: Option<Value<'a>>,
}

impl Batch {
    /// The readings in the order of their index: frames as sent, in a frame its columns, in a column its rows (rule 9).
    pub fn readings(&self) -> impl Iterator<Item = Reading<'_>> {
        let columns = self.frames.iter().flat_map(|frame| frame.columns.iter().map(move |column| (frame, column)));
        let rows = columns.flat_map(|(frame, column)| {
            let mut values = 0;
            frame.times.iter().zip(&column.statuses).map(move |(&at_ms, &status)| {
                let value = if status < 16 { column.value(values) } else { None };
                values += usize::from(status < 16);
                (column.point, at_ms, status, value)
            })
        });
        (0..).zip(rows).map(|(index, (point, at_ms, status, value))| Reading { index, point, at_ms, status, value })
    }
}

/// Parses an `Envelope` and checks rules 1 to 3: after this its header can be believed as far as it concerns the body.
///
/// # Errors
/// A refusal by rule 1, 2 or 3.
pub fn open(bytes: &[u8]) -> Result<pb::Envelope, Refusal> {
    let envelope = pb::Envelope::decode(bytes).map_err(|error| Refusal::bad(1, error.into()))?;
    check_header(&envelope)?;
    Ok(envelope)
}

/// Rules 1 to 3, in this order.
fn check_header(envelope: &pb::Envelope) -> Result<(), Refusal> {
    let pb::Envelope { epoch, seq, first_retained_seq: first, .. } = *envelope;
    let too_new = |reason| Refusal::TooNew { rule: Rule::Number(2), reason };
    for (number, name) in [(epoch, "epoch"), (seq, "seq"), (first, "first_retained_seq")] {
        if number == 0 {
            return Err(Refusal::bad(1, Reason::Zero(name)));
        }
    }
    if first > seq {
        return Err(Refusal::bad(1, Reason::FirstRetained { first, seq }));
    }
    if envelope.schema != SCHEMA {
        return Err(too_new(Reason::Schema(envelope.schema)));
    }
    let body = match &envelope.body {
        Some(pb::envelope::Body::Plain(body) | pb::envelope::Body::PlainZstd(body)) => body,
        Some(pb::envelope::Body::Dense(_)) | None => return Err(too_new(Reason::Body)),
    };
    if body.len() > MAX_BODY {
        return Err(Refusal::bad(3, Reason::Long(body.len())));
    }
    let (found, stated) = (crc32c(body), envelope.body_crc32c);
    if found != stated {
        return Err(Refusal::bad(3, Reason::Crc { found, stated }));
    }
    Ok(())
}

/// The batch in an [`open`]ed envelope, resolved by a catalogue of its site, agent and epoch that is not older than
/// `catalog_rev` (without one at hand: keep the batch, do not acknowledge it).
///
/// # Errors
/// A refusal by rules 1 to 21; no part of a refused batch may be used.
pub fn decode(envelope: &pb::Envelope, schema: &impl Schema) -> Result<Batch, Refusal> {
    check_header(envelope)?;
    match &envelope.body {
        Some(pb::envelope::Body::PlainZstd(body)) => {
            let content = inflate(body, MAX_INFLATED).map_err(|damage| Refusal::bad(4, damage.into()))?;
            body_of(&content, envelope.readings, schema)
        }
        Some(pb::envelope::Body::Plain(body)) => body_of(body, envelope.readings, schema),
        Some(pb::envelope::Body::Dense(_)) | None => {
            Err(Refusal::TooNew { rule: Rule::Number(2), reason: Reason::Body })
        }
    }
}

fn body_of(bytes: &[u8], readings: u32, schema: &impl Schema) -> Result<Batch, Refusal> {
    scan::counts(bytes, readings, schema)?;
    columns::batch(bytes, schema)
}

/// The integers of a column alone, for the encoder's tests.
#[cfg(test)]
pub(crate) fn integers(coded: &mut pb::Column, n: usize) -> Result<Vec<i64>, Refusal> {
    columns::ints(coded, n)
}
