//! The first pass: counts, before anything is allocated (columns.md rules 7 and 8).
//!
//! It walks the fields of the batch and its frames without building them. A frame that says 4,294,967,295 rows in a few
//! bytes, or ten thousand columns for a group of four, ends here, at the price of a walk over its bytes.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field, uint32};

use super::{Reason, Refusal};
use crate::MAX_READINGS;
use crate::catalog::Schema;

/// Most losses and events together; a fleet's longest outage makes a few hundred.
const MAX_REPORTS: usize = 1 << 16;

/// Most texts in a batch: as many as it may have readings.
const MAX_TEXTS: usize = 1 << 20;

/// One field of a message as it stands in the bytes.
pub(super) struct Field<'a> {
    pub(super) tag: u32,
    wire_type: WireType,
    /// The value, without the key; with its length if it has one.
    value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The next field of `rest`, which moves behind it; `None` at the end.
    pub(super) fn next(rest: &mut &'a [u8]) -> Result<Option<Self>, DecodeError> {
        if rest.is_empty() {
            return Ok(None);
        }
        let (tag, wire_type) = decode_key(rest)?;
        let from = *rest;
        skip_field(wire_type, tag, rest, DecodeContext::default())?;
        let (value, _) = from.split_at(from.len() - rest.len());
        Ok(Some(Self { tag, wire_type, value }))
    }

    /// The content of a message or text.
    pub(super) fn content(&self) -> Result<&'a [u8], DecodeError> {
        prost::encoding::check_wire_type(WireType::LengthDelimited, self.wire_type)?;
        let mut content = self.value;
        decode_varint(&mut content)?;
        Ok(content)
    }

    /// The value of a `uint32`.
    pub(super) fn number(&self) -> Result<u32, DecodeError> {
        let mut number = 0;
        uint32::merge(self.wire_type, &mut number, &mut { self.value }, DecodeContext::default())?;
        Ok(number)
    }
}

/// The numbers of a frame.
#[derive(Default)]
pub(super) struct Head {
    pub(super) group: u32,
    pub(super) point: u32,
    pub(super) rows: u32,
}

impl Head {
    /// Takes `field` if it is one of these; the last of a kind counts, as protobuf has it.
    pub(super) fn take(&mut self, field: &Field<'_>) -> Result<(), DecodeError> {
        match field.tag {
            1 => self.group = field.number()?,
            2 => self.point = field.number()?,
            3 => self.rows = field.number()?,
            _ => {}
        }
        Ok(())
    }

    /// The points of the frame's columns (rule 7).
    pub(super) fn points<'s>(&'s self, schema: &'s impl Schema) -> Result<&'s [u32], Refusal> {
        let &Self { group, point, .. } = self;
        match (group, point) {
            (0, 0) => Err(Refusal::bad(7, Reason::Frame { group, point })),
            (0, _) if schema.point_type(point).is_none() => Err(Refusal::bad(7, Reason::Point(point))),
            (0, _) => Ok(core::slice::from_ref(&self.point)),
            (_, 0) => schema.group(group).ok_or_else(|| Refusal::bad(7, Reason::Group(group))),
            _ => Err(Refusal::bad(7, Reason::Frame { group, point })),
        }
    }
}

/// Checks rules 7 and 8 on the bytes of a batch.
pub(super) fn counts(bytes: &[u8], stated: u32, schema: &impl Schema) -> Result<(), Refusal> {
    let parse = |error: DecodeError| Refusal::bad(5, error.into());
    let (mut readings, mut reports, mut texts) = (0_u64, 0_usize, 0_usize);
    let mut rest = bytes;
    while let Some(field) = Field::next(&mut rest).map_err(parse)? {
        match field.tag {
            1 => {
                let content = field.content().map_err(parse)?;
                let (head, columns) = frame(content, &mut texts).map_err(parse)?;
                if head.rows == 0 {
                    return Err(Refusal::bad(7, Reason::NoRows));
                }
                let points = head.points(schema)?.len();
                if columns != points {
                    return Err(Refusal::bad(7, Reason::Columns { found: columns, points }));
                }
                // At most 2^20 + 2^32 · 2^24: the sum is refused before it can overflow.
                readings += u64::from(head.rows) * columns as u64;
                if readings > MAX_READINGS {
                    return Err(Refusal::bad(8, Reason::TooMany(readings)));
                }
            }
            4 | 5 => reports += 1,
            _ => {}
        }
    }
    if readings != u64::from(stated) {
        return Err(Refusal::bad(8, Reason::Readings { found: readings, stated }));
    }
    if reports > MAX_REPORTS {
        return Err(Refusal::bad(5, Reason::Flood("losses and events")));
    }
    if texts > MAX_TEXTS {
        return Err(Refusal::bad(5, Reason::Flood("texts")));
    }
    Ok(())
}

/// The numbers of a frame and how many columns it has; adds its texts to `texts`.
fn frame(bytes: &[u8], texts: &mut usize) -> Result<(Head, usize), DecodeError> {
    let (mut head, mut columns) = (Head::default(), 0);
    let mut rest = bytes;
    while let Some(field) = Field::next(&mut rest)? {
        head.take(&field)?;
        columns += usize::from(field.tag == 5);
        if matches!(field.tag, 4 | 5) {
            let mut column = field.content()?;
            while let Some(field) = Field::next(&mut column)? {
                *texts += usize::from(field.tag == 12);
            }
        }
    }
    Ok((head, columns))
}
