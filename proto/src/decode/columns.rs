//! The second pass: frames and columns become values (columns.md sections 3 to 6), once rule 8 has bounded them.
//!
//! The integers of a column, in the order of the rules: 13 `ints` → 14 `order` → 15 `runs` → 16 `dictionary` → 17 `step`
//! → section 5, the values. Sums wrap at 64 bits.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use prost::{DecodeError, Message};

use super::scan::{Field, Head};
use super::{Batch, Column, Frame, Reason, Refusal, Values};
use crate::catalog::Schema;
use crate::float::{MAX_DECIMAL, POWERS, double, image32, image64, single};
use crate::pb::{self, Kind, point::Type};

fn parse(error: DecodeError) -> Refusal {
    Refusal::bad(5, error.into())
}

/// The batch of `bytes`, on which rules 7 and 8 were checked with the same `schema`.
pub(super) fn batch(bytes: &[u8], schema: &impl Schema) -> Result<Batch, Refusal> {
    let mut batch = Batch::default();
    let mut rest = bytes;
    while let Some(field) = Field::next(&mut rest).map_err(parse)? {
        match field.tag {
            1 => batch.frames.push(frame(field.content().map_err(parse)?, schema)?),
            // An enum travels as an int32; the low 32 bits are it, whatever they are (rule 5).
            2 => batch.time_quality = field.number().map_err(parse)?.cast_signed(),
            3 => batch.time_error_ms = field.number().map_err(parse)?,
            4 => batch.losses.push(pb::Loss::decode(field.content().map_err(parse)?).map_err(parse)?),
            5 => batch.events.push(pb::Event::decode(field.content().map_err(parse)?).map_err(parse)?),
            _ => {}
        }
    }
    Ok(batch)
}

fn frame(bytes: &[u8], schema: &impl Schema) -> Result<Frame, Refusal> {
    let mut head = Head::default();
    let mut time: Option<pb::Column> = None;
    let mut rest = bytes;
    while let Some(field) = Field::next(&mut rest).map_err(parse)? {
        head.take(&field).map_err(parse)?;
        if field.tag == 4 {
            // A message field that comes twice is merged, as protobuf has it.
            time.get_or_insert_default().merge(field.content().map_err(parse)?).map_err(parse)?;
        }
    }
    let time = time.ok_or(Refusal::bad(21, Reason::NoTime))?;
    let times = times(time, head.rows as usize)?;

    let points = head.points(schema)?;
    let mut columns = Vec::with_capacity(points.len());
    let mut rest = bytes;
    while let Some(field) = Field::next(&mut rest).map_err(parse)? {
        if field.tag != 5 {
            continue;
        }
        let coded = pb::Column::decode(field.content().map_err(parse)?).map_err(parse)?;
        let unequal = Reason::Columns { found: columns.len() + 1, points: points.len() };
        let &point = points.get(columns.len()).ok_or(Refusal::bad(7, unequal))?;
        columns.push(column(coded, point, head.rows, schema)?);
    }
    Ok(Frame { group: head.group, point: head.point, times, columns })
}

/// Rule 21.
fn times(mut time: pb::Column, rows: usize) -> Result<Vec<i64>, Refusal> {
    let foreign = [
        ("kind but INT", time.kind != Kind::Int as i32),
        ("param", time.param != 0),
        ("status", !time.status_runs.is_empty()),
        ("exceptions", !time.exception_rows.is_empty() || !time.exception_bits.is_empty()),
        ("texts", !time.texts.is_empty()),
    ];
    match foreign.into_iter().find(|(_, is_there)| *is_there) {
        Some((name, _)) => Err(Refusal::bad(21, Reason::Foreign(name))),
        None => ints(&mut time, rows),
    }
}

fn column(mut coded: pb::Column, point: u32, rows: u32, schema: &impl Schema) -> Result<Column, Refusal> {
    let number = schema.point_type(point).ok_or(Refusal::bad(7, Reason::Point(point)))?;
    let ty = match Type::try_from(number) {
        Ok(Type::Unspecified) | Err(_) => return Err(Refusal::types(Reason::Type(number))),
        Ok(ty) => ty,
    };
    let statuses = statuses(&coded.status_runs, rows)?;
    let n = statuses.iter().filter(|&&code| code < 16).count();
    let values = if n == 0 { none(&coded, ty)? } else { values(&mut coded, ty, n)? };
    Ok(Column { point, ty, statuses, values })
}

/// Rule 10.
fn statuses(runs: &[u32], rows: u32) -> Result<Vec<u8>, Refusal> {
    if runs.is_empty() {
        return Ok(alloc::vec![0; rows as usize]);
    }
    let refused = Refusal::bad(10, Reason::StatusRuns(rows));
    let (pairs, []) = runs.as_chunks::<2>() else { return Err(refused) };
    let covered: u64 = pairs.iter().map(|&[_, run]| u64::from(run)).sum();
    if covered != u64::from(rows) || pairs.iter().any(|&[_, run]| run == 0) {
        return Err(refused);
    }
    let mut statuses = Vec::with_capacity(rows as usize);
    for &[code, run] in pairs {
        let known = i32::try_from(code).ok().and_then(|code| pb::Status::try_from(code).ok());
        let status = known.ok_or(Refusal::bad(10, Reason::Status(code)))?;
        statuses.resize(statuses.len() + run as usize, status as u8);
    }
    Ok(statuses)
}

/// Rule 12: a column without values codes nothing; its kind means nothing.
fn none(coded: &pb::Column, ty: Type) -> Result<Values, Refusal> {
    let empty = coded.param == 0
        && coded.order == 0
        && coded.ints.is_empty()
        && coded.runs.is_empty()
        && coded.step == 0
        && coded.offset == 0
        && coded.dictionary.is_empty()
        && coded.exception_rows.is_empty()
        && coded.exception_bits.is_empty()
        && coded.texts.is_empty();
    if !empty {
        return Err(Refusal::bad(12, Reason::NotEmpty));
    }
    Ok(match ty {
        Type::Float32 => Values::Float32(Vec::new()),
        Type::Float64 => Values::Float64(Vec::new()),
        Type::String => Values::Text { indices: Vec::new(), texts: Vec::new() },
        _ => Values::Int(Vec::new()),
    })
}

/// Section 5.
fn values(coded: &mut pb::Column, ty: Type, n: usize) -> Result<Values, Refusal> {
    let unfit = Refusal::types(Reason::Kind { kind: coded.kind, ty: ty.into() });
    let kind = match (Kind::try_from(coded.kind), ty) {
        (Ok(kind @ Kind::Int), Type::Int | Type::Enum | Type::Uint64 | Type::Bool) => kind,
        (Ok(kind @ Kind::Text), Type::String) => kind,
        (Ok(kind @ (Kind::Decimal | Kind::Bits)), Type::Float64 | Type::Float32) => kind,
        _ => return Err(unfit),
    };
    let foreign = [
        ("param", matches!(kind, Kind::Int | Kind::Text) && coded.param != 0),
        ("texts", kind != Kind::Text && !coded.texts.is_empty()),
        ("exceptions", kind != Kind::Decimal && !(coded.exception_rows.is_empty() && coded.exception_bits.is_empty())),
    ];
    if let Some((name, _)) = foreign.into_iter().find(|(_, is_there)| *is_there) {
        return Err(Refusal::types(Reason::Foreign(name)));
    }
    let ints = ints(coded, n)?;
    match (kind, ty) {
        (Kind::Text, _) => texts(&ints, mem::take(&mut coded.texts)),
        (Kind::Decimal, Type::Float32) => {
            let power = power(coded.param)?;
            let mut bits = decimals(&ints, coded, |int| single(int, power))?;
            except(coded, &mut bits, |bits| u32::try_from(bits).ok())?;
            Ok(Values::Float32(bits))
        }
        (Kind::Decimal, _) => {
            let power = power(coded.param)?;
            let mut bits = decimals(&ints, coded, |int| double(int, power))?;
            except(coded, &mut bits, Some)?;
            Ok(Values::Float64(bits))
        }
        (Kind::Bits, Type::Float32) => {
            let shift = shift(coded.param, 31)?;
            let image = |int| i32::try_from(unshift(int, shift)?).ok().map(|image| image32(image).cast_unsigned());
            let bits = ints.into_iter().map(|int| image(int).ok_or(Refusal::bad(20, Reason::Image(int))));
            Ok(Values::Float32(bits.collect::<Result<_, _>>()?))
        }
        (Kind::Bits, _) => {
            let shift = shift(coded.param, 63)?;
            let image = |int| unshift(int, shift).map(|image| image64(image).cast_unsigned());
            let bits = ints.into_iter().map(|int| image(int).ok_or(Refusal::bad(20, Reason::Image(int))));
            Ok(Values::Float64(bits.collect::<Result<_, _>>()?))
        }
        (Kind::Int, _) => {
            if let (Type::Bool, Some(&int)) = (ty, ints.iter().find(|&&int| int != 0 && int != 1)) {
                return Err(Refusal::types(Reason::Bool(int)));
            }
            Ok(Values::Int(ints))
        }
    }
}

fn texts(ints: &[i64], texts: Vec<String>) -> Result<Values, Refusal> {
    let len = texts.len();
    let index = |&index: &i64| match u32::try_from(index) {
        Ok(number) if (number as usize) < len => Ok(number),
        _ => Err(Refusal::types(Reason::Text { index, len })),
    };
    Ok(Values::Text { indices: ints.iter().map(index).collect::<Result<_, _>>()?, texts })
}

/// 10^param of rule 18.
fn power(digits: u32) -> Result<f64, Refusal> {
    POWERS.get(digits as usize).copied().ok_or(Refusal::bad(18, Reason::Digits(digits)))
}

/// Rule 18, but for the slots of exceptions, on which its limit does not bind; their value is replaced by [`except`].
fn decimals<T>(ints: &[i64], coded: &pb::Column, value: impl Fn(i64) -> T) -> Result<Vec<T>, Refusal> {
    let mut gaps = coded.exception_rows.iter();
    let mut slot = gaps.next().map(|&first| first as usize);
    let mut values = Vec::with_capacity(ints.len());
    for (position, &int) in ints.iter().enumerate() {
        if slot == Some(position) {
            slot = gaps.next().map(|&gap| position.saturating_add(gap as usize));
        } else if int.unsigned_abs() > MAX_DECIMAL {
            return Err(Refusal::bad(18, Reason::Decimal(int)));
        }
        values.push(value(int));
    }
    Ok(values)
}

/// Rule 19: puts the exceptions in their places.
fn except<T>(coded: &pb::Column, values: &mut [T], narrow: impl Fn(u64) -> Option<T>) -> Result<(), Refusal> {
    let n = values.len();
    let refused = || Refusal::bad(19, Reason::Exceptions(n));
    if coded.exception_rows.len() != coded.exception_bits.len() {
        return Err(refused());
    }
    let mut position = 0_usize;
    for (i, (&gap, &bits)) in coded.exception_rows.iter().zip(&coded.exception_bits).enumerate() {
        if i > 0 && gap == 0 {
            return Err(refused());
        }
        position = position.saturating_add(gap as usize);
        let value = values.get_mut(position).ok_or_else(refused)?;
        *value = narrow(bits).ok_or(Refusal::bad(19, Reason::ExceptionBits(bits)))?;
    }
    Ok(())
}

fn shift(param: u32, max: u32) -> Result<u32, Refusal> {
    if param > max { Err(Refusal::bad(20, Reason::Shift(param))) } else { Ok(param) }
}

/// `int << shift` if no bit falls out.
fn unshift(int: i64, shift: u32) -> Option<i64> {
    let image = int.wrapping_shl(shift);
    (image >> shift == int).then_some(image)
}

/// Rules 13 to 17: the n integers of a column. n is at least 1 and bounded by rule 8.
pub(super) fn ints(coded: &mut pb::Column, n: usize) -> Result<Vec<i64>, Refusal> {
    let mut ints = mem::take(&mut coded.ints);
    let runs = &coded.runs;
    let counted = if runs.is_empty() { ints.len() == n || ints.len() == 1 } else { ints.len() == runs.len() };
    if !counted {
        return Err(Refusal::bad(13, Reason::Count { ints: ints.len(), runs: runs.len(), values: n }));
    }
    if !runs.is_empty() {
        let covered: u64 = runs.iter().map(|&run| u64::from(run)).sum();
        if covered != n as u64 || runs.contains(&0) {
            return Err(Refusal::bad(13, Reason::Runs(n)));
        }
    }

    if coded.order > 2 {
        return Err(Refusal::bad(14, Reason::Order(coded.order)));
    }
    for from in (1..=coded.order as usize).rev() {
        // Entry `from` is the first that is a difference of this order.
        let mut sum = 0_i64;
        for int in ints.iter_mut().skip(from - 1) {
            sum = sum.wrapping_add(*int);
            *int = sum;
        }
    }

    if !runs.is_empty() {
        let mut expanded = Vec::with_capacity(n);
        for (&int, &run) in ints.iter().zip(runs) {
            expanded.resize(expanded.len() + run as usize, int);
        }
        ints = expanded;
    } else if let (&[constant], true) = (ints.as_slice(), n > 1) {
        ints = alloc::vec![constant; n];
    }

    if !coded.dictionary.is_empty() {
        let mut dictionary = mem::take(&mut coded.dictionary);
        for i in 1..dictionary.len() {
            let entry = dictionary[i - 1].wrapping_add(dictionary[i]);
            if entry <= dictionary[i - 1] {
                return Err(Refusal::bad(16, Reason::DictionaryOrder));
            }
            dictionary[i] = entry;
        }
        for int in &mut ints {
            let entry = usize::try_from(*int).ok().and_then(|index| dictionary.get(index));
            *int = *entry.ok_or(Refusal::bad(16, Reason::DictionaryIndex { index: *int, len: dictionary.len() }))?;
        }
    }

    if coded.step != 0 {
        let step = coded.step.cast_signed();
        for int in &mut ints {
            *int = coded.offset.wrapping_add(step.wrapping_mul(*int));
        }
    } else if coded.offset != 0 {
        return Err(Refusal::bad(17, Reason::Offset(coded.offset)));
    }
    Ok(ints)
}
