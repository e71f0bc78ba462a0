//! From columns of readings to a batch's body, and from a body to an `Envelope`.
//!
//! Where it stands: between the open batch and the spool. [`Encoder::column`] gives each column whichever coding of
//! columns.md is smallest for its values; [`Encoder::body`] serializes the batch and compresses it where that is smaller;
//! [`envelope`] puts the header around a body, fresh or from the spool, without touching it: the body is immutable
//! (contract rule 3).
//!
//! The choice is made by weighing every coding, not by a guess at the kind of signal. Lossless for every bit pattern.
//!
//! The encoder trusts its caller in two things that it cannot see in one column: that a column has as many values as its
//! statuses say, and that all columns of a frame have the frame's rows. [`crate::decode`] refuses a batch that breaks
//! this.

mod floats;
mod ints;

use alloc::string::String;
use alloc::vec::Vec;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use zstd_safe::{CCtx, CParameter};

use crate::pb::{self, Kind};
use crate::{SCHEMA, crc32c};
use floats::{Decimals, Digits, Width};
use ints::{BYTE, Chooser, varint};

/// The level bodies and catalogues are compressed at: above 3 zstd gains little on some kilobytes and costs a lot.
pub(crate) const ZSTD_LEVEL: i32 = 3;

/// The values of a column: one for each row whose status has one (code below 16), in row order.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// BOOL (0 or 1), INT, ENUM, UINT64 (the same 64 bits), times.
    Int(&'a [i64]),
    /// Bits of binary32.
    Float32(&'a [u32]),
    /// Bits of binary64.
    Float64(&'a [u64]),
    /// STRING: indices into a table, which may hold more than this column uses.
    Text {
        /// One a value. An index outside the table is written as one that the decoder refuses.
        indices: &'a [i64],
        /// The table.
        texts: &'a [String],
    },
}

/// A body as it is sent and spooled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// A serialized [`pb::Batch`], or a zstd frame of one.
    pub bytes: Vec<u8>,
    /// Whether it is a zstd frame.
    pub zstd: bool,
    /// CRC-32C of `bytes`.
    pub crc32c: u32,
}

/// What stands around a body; `schema` is this crate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One life of the spool; never 0.
    pub epoch: u64,
    /// 1, 2, 3 … within the epoch.
    pub seq: u64,
    /// Oldest seq the agent can still send.
    pub first_retained_seq: u64,
    /// Live, or backlog.
    pub lane: pb::Lane,
    /// Revision of the catalogue that resolves the body's numbers.
    pub catalog_rev: u32,
    /// Readings in the body.
    pub readings: u32,
}

/// The serialized `Envelope` of `body` under `header`. Copies the body once and changes nothing in it.
#[must_use]
pub fn envelope(header: &Header, body: &Body) -> Vec<u8> {
    let around = pb::Envelope {
        epoch: header.epoch,
        seq: header.seq,
        first_retained_seq: header.first_retained_seq,
        lane: header.lane.into(),
        schema: SCHEMA,
        catalog_rev: header.catalog_rev,
        readings: header.readings,
        body_crc32c: body.crc32c,
        agent_id: String::new(),
        body: None,
    };
    let len = body.bytes.len();
    let mut bytes = Vec::with_capacity(around.encoded_len() + 1 + varint(len as u64) + len);
    around.encode_raw(&mut bytes);
    encode_key(if body.zstd { 11 } else { 10 }, WireType::LengthDelimited, &mut bytes);
    encode_varint(len as u64, &mut bytes);
    bytes.extend_from_slice(&body.bytes);
    bytes
}

/// Codes columns and seals bodies. It holds buffers and a compression context (some hundred KB once used), nothing
/// else: the same columns always give the same bytes.
pub struct Encoder {
    chooser: Chooser,
    bits: Vec<u64>,
    images: Vec<i64>,
    decimals: Decimals,
    plain: Vec<u8>,
    zstd: CCtx<'static>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder with empty buffers.
    #[must_use]
    pub fn new() -> Self {
        let mut zstd = CCtx::create();
        // A level that exists cannot be refused.
        let _ = zstd.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL));
        Self {
            chooser: Chooser::default(),
            bits: Vec::new(),
            images: Vec::new(),
            decimals: Decimals::default(),
            plain: Vec::new(),
            zstd,
        }
    }

    /// The column of `values` that will be smallest in the body, under `statuses`: one code a row, or empty if all rows are GOOD.
    #[must_use]
    pub fn column(&mut self, statuses: &[u8], values: Values<'_>) -> pb::Column {
        let mut column = match values {
            Values::Int(ints) => self.ints(ints),
            Values::Float32(bits) => {
                let mut wide = core::mem::take(&mut self.bits);
                wide.clear();
                wide.extend(bits.iter().map(|&bits| u64::from(bits)));
                let column = self.floats(&wide, Width::Single);
                self.bits = wide;
                column
            }
            Values::Float64(bits) => self.floats(bits, Width::Double),
            Values::Text { indices, texts } => self.texts(indices, texts),
        };
        column.status_runs = status_runs(statuses);
        column
    }

    /// The column of a frame's stamps, one a row: ms since 1970-01-01T00:00Z.
    #[must_use]
    pub fn time(&mut self, stamps: &[i64]) -> pb::Column {
        self.ints(stamps)
    }

    /// The body of `batch`.
    #[must_use]
    pub fn body(&mut self, batch: &pb::Batch) -> Body {
        self.plain.clear();
        // A Vec grows, so it cannot be too small.
        let _ = batch.encode(&mut self.plain);
        let mut bytes = Vec::with_capacity(zstd_safe::compress_bound(self.plain.len()));
        let zstd = self.zstd.compress2(&mut bytes, &self.plain).is_ok() && bytes.len() < self.plain.len();
        if zstd {
            bytes.shrink_to_fit();
        } else {
            bytes.clear();
            bytes.shrink_to(self.plain.len());
            bytes.extend_from_slice(&self.plain);
        }
        let crc32c = crc32c(&bytes);
        Body { bytes, zstd, crc32c }
    }

    fn ints(&mut self, ints: &[i64]) -> pb::Column {
        let mut column = pb::Column::default();
        if !ints.is_empty() {
            let plan = self.chooser.plan(ints);
            self.chooser.write(ints, &plan, &mut column);
        }
        column
    }

    fn texts(&mut self, indices: &[i64], texts: &[String]) -> pb::Column {
        // Only the texts in use, in the order of the table.
        let mut used = alloc::vec![-1_i64; texts.len()];
        let slot = |used: &mut [i64], index: i64| usize::try_from(index).ok().and_then(|i| used.get_mut(i).map(|_| i));
        for &index in indices {
            if let Some(at) = slot(&mut used, index) {
                used[at] = 0;
            }
        }
        let mut table = Vec::new();
        for (entry, text) in used.iter_mut().zip(texts) {
            if *entry == 0 {
                *entry = table.len().cast_signed() as i64;
                table.push(text.clone());
            }
        }
        let indices: Vec<i64> = indices.iter().map(|&index| slot(&mut used, index).map_or(-1, |at| used[at])).collect();
        let mut column = self.ints(&indices);
        if !indices.is_empty() {
            column.kind = Kind::Text.into();
            column.texts = table;
        }
        column
    }

    fn floats(&mut self, bits: &[u64], width: Width) -> pb::Column {
        let mut column = pb::Column::default();
        if bits.is_empty() {
            return column;
        }
        let digits = Digits::of(bits, width);
        let mut best: Option<(usize, usize, ints::Plan)> = None;
        for candidate in digits.candidates() {
            self.decimals.fill(bits, width, candidate);
            let plan = self.chooser.plan(&self.decimals.ints);
            let own = self.decimals.exception_len() + if candidate == 0 { 0 } else { 2 };
            let weight = plan.weight + own * BYTE;
            if best.as_ref().is_none_or(|(least, _, _)| weight < *least) {
                best = Some((weight, candidate, plan));
            }
        }
        // Images of decimals are no better than the decimals themselves, unless those are long.
        let short = matches!(&best, Some((_, digits, _)) if *digits < 6);
        if !(short && digits.all()) {
            let shift = floats::images(bits, width, &mut self.images);
            let plan = self.chooser.plan(&self.images);
            let weight = plan.weight + if shift == 0 { 0 } else { 2 * BYTE };
            if best.as_ref().is_none_or(|(least, _, _)| weight < *least) {
                self.chooser.write(&self.images, &plan, &mut column);
                column.kind = Kind::Bits.into();
                column.param = shift;
                return column;
            }
        }
        if let Some((_, digits, plan)) = best {
            self.decimals.fill(bits, width, digits);
            self.chooser.write(&self.decimals.ints, &plan, &mut column);
            column.kind = Kind::Decimal.into();
            column.param = u32::try_from(digits).unwrap_or_default();
            column.exception_rows.clone_from(&self.decimals.exception_rows);
            column.exception_bits.clone_from(&self.decimals.exception_bits);
        }
        column
    }
}

/// Pairs (code, rows); nothing if all rows are GOOD.
fn status_runs(statuses: &[u8]) -> Vec<u32> {
    let mut runs = Vec::new();
    let mut rest = statuses;
    while let [code, ..] = rest {
        let run = rest.iter().take_while(|&other| other == code).count();
        if *code == 0 && run == statuses.len() {
            return runs;
        }
        runs.extend([u32::from(*code), u32::try_from(run).unwrap_or(u32::MAX)]);
        rest = rest.get(run..).unwrap_or_default();
    }
    runs
}
