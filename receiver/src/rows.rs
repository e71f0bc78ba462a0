//! A batch as rows of the database: readings, losses and events under the names of the catalogue.
//!
//! Pure; both stores write the same rows. Limits: as many rows as the batch has readings and events; a `Loss` of a group
//! becomes one row per point, as long as a batch makes no more than [`MAX_LOSS_ROWS`] of them.

use tributary_proto::catalog::Schema;
use tributary_proto::decode::Value;
use tributary_proto::pb;

use crate::catalog::Catalog;
use crate::ingest::Delivery;

/// Most rows that the losses of a batch become: as many as it may have readings. Beyond, a group's loss is one row without
/// names, so that 65,536 losses of a group of 100,000 points cannot drown the database.
pub const MAX_LOSS_ROWS: usize = 1 << 20;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadingRow<'a> {
    /// Place in the batch (columns.md rule 9).
    pub idx: u32,
    /// The point's id.
    pub point: u32,
    /// ms since 1970 UTC.
    pub at_ms: i64,
    /// A `Status` code.
    pub status: u8,
    /// The real value, scaled.
    pub num: Option<f64>,
    /// The raw integer, BOOL as 0 or 1; none above `i64::MAX`.
    pub int: Option<i64>,
    /// Of a STRING point.
    pub text: Option<&'a str>,
}

/// The readings of a batch, in the order of their index.
pub fn readings(delivery: &Delivery) -> impl Iterator<Item = ReadingRow<'_>> {
    // One look-up a column, not a reading: neighbours mostly are of one point.
    let mut last: Option<(u32, Option<&crate::catalog::Point>)> = None;
    delivery.batch.readings().map(move |reading| {
        let point = match last {
            Some((id, point)) if id == reading.point => point,
            _ => delivery.catalog.points.get(&reading.point),
        };
        last = Some((reading.point, point));
        let real = |raw: f64| point.map(|point| point.scale.real(raw));
        #[expect(clippy::cast_precision_loss, reason = "the contract's formula is in doubles")]
        let (num, int, text) = match reading.value {
            None => (None, None, None),
            Some(Value::Bool(bit)) => (real(f64::from(u8::from(bit))), Some(i64::from(bit)), None),
            Some(Value::Int(int)) => (real(int as f64), Some(int), None),
            Some(Value::Uint64(int)) => (real(int as f64), i64::try_from(int).ok(), None),
            Some(Value::Float32(bits)) => (real(f64::from(f32::from_bits(bits))), None, None),
            Some(Value::Float64(bits)) => (real(f64::from_bits(bits)), None, None),
            Some(Value::Text(text)) => (None, None, Some(text)),
        };
        let (idx, point) = (reading.index, reading.point);
        ReadingRow { idx, point, at_ms: reading.at_ms, status: reading.status, num, int, text }
    })
}

/// One loss of one point, or of whole batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossRow<'a> {
    /// In lower case.
    pub reason: String,
    /// The epoch that the seqs are of; the batch's own where the loss names none.
    pub loss_epoch: u64,
    /// Whole batches first..=last; 0 if none.
    pub first_seq: u64,
    /// See `first_seq`.
    pub last_seq: u64,
    /// The device's and the point's name, if a point is meant.
    pub point: Option<(&'a str, &'a str)>,
    /// Start of the span.
    pub from_ms: i64,
    /// End of it; 0 = unknown.
    pub to_ms: i64,
    /// Readings lost.
    pub readings: u64,
}

/// The name of a `Loss.Reason`, as in the contract but in lower case.
#[must_use]
pub fn reason_name(reason: i32) -> String {
    pb::loss::Reason::try_from(reason)
        .map_or_else(|_| format!("reason_{reason}"), |reason| reason.as_str_name().to_ascii_lowercase())
}

/// The losses of a batch. A group's is shared out over its points; what does not divide goes to the first ones, so that
/// the sum stays what the agent said.
#[must_use]
pub fn losses(delivery: &Delivery) -> Vec<LossRow<'_>> {
    let catalog: &Catalog = &delivery.catalog;
    let name = |id: u32| catalog.points.get(&id).map(|point| (point.device.as_str(), point.name.as_str()));
    let mut rows = Vec::new();
    for loss in &delivery.batch.losses {
        let row = |point, readings| LossRow {
            reason: reason_name(loss.reason),
            loss_epoch: if loss.epoch == 0 { delivery.epoch } else { loss.epoch },
            first_seq: loss.first_seq,
            last_seq: loss.last_seq,
            point,
            from_ms: loss.from_ms,
            to_ms: loss.to_ms,
            readings,
        };
        match catalog.group(loss.group) {
            Some(points) if !points.is_empty() && rows.len() + points.len() <= MAX_LOSS_ROWS => {
                let count = points.len() as u64;
                let (share, rest) = (loss.readings / count, loss.readings % count);
                rows.extend((0..).zip(points).map(|(n, &id)| row(name(id), share + u64::from(n < rest))));
            }
            _ => rows.push(row(name(loss.point), loss.readings)),
        }
    }
    rows
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow<'a> {
    /// Place among the events of the batch, from 0.
    pub idx: u32,
    /// The device's and the point's name; none for the agent itself.
    pub point: Option<(&'a str, &'a str)>,
    /// The event.
    pub event: &'a pb::Event,
    /// `number`.
    pub num: Option<f64>,
    /// `integer`, or `flag` as 0 or 1.
    pub int: Option<i64>,
    /// `string`.
    pub string: Option<&'a str>,
}

/// The events of a batch.
pub fn events(delivery: &Delivery) -> impl Iterator<Item = EventRow<'_>> {
    (0..).zip(&delivery.batch.events).map(|(idx, event)| {
        use pb::event::Value as V;
        let point = delivery.catalog.points.get(&event.point);
        let point = point.map(|point| (point.device.as_str(), point.name.as_str()));
        let (num, int, string) = match &event.value {
            None => (None, None, None),
            Some(V::Number(number)) => (Some(*number), None, None),
            Some(V::Integer(integer)) => (None, Some(*integer), None),
            Some(V::Flag(flag)) => (None, Some(i64::from(*flag)), None),
            Some(V::String(string)) => (None, None, Some(string.as_str())),
        };
        EventRow { idx, point, event, num, int, string }
    })
}

/// The name of a `Point.Type`, in lower case.
#[must_use]
pub fn type_name(ty: i32) -> String {
    pb::point::Type::try_from(ty).map_or_else(|_| format!("type_{ty}"), |ty| ty.as_str_name().to_ascii_lowercase())
}
