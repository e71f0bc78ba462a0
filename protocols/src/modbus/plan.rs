//! Points → the fewest requests that read them all.
//!
//! Between configuration and schedule, computed once. Points of one table and one period may share a request; a value
//! of several registers is never split, since its halves would come from two moments. Sorted by address, a request takes
//! every point that still fits, and only then the next begins. That is optimal: a request with the leftmost point may
//! as well begin there, and what it could take and leaves out can bridge no gap for a later one (the test compares it
//! with all partitions). Balancing the sizes of requests was turned down: it saves no request and reads more registers.
//!
//! Limits: 125 registers or 2,000 bits a request, less where the device's caps say so; gaps of at most `max_gap` unused
//! registers, or 16 times as many bits, which are as many bytes.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::modbus::config::{Caps, ModbusPoint};
use crate::modbus::register::{Order, RegisterType, Table};

/// One question to a device, and what its answer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The table it reads.
    pub table: Table,
    /// First register or bit, as on the wire.
    pub address: u16,
    /// Registers (1 to 125) or bits (1 to 2,000).
    pub count: u16,
    /// Time between two polls, 10 ms to a day.
    pub period_ms: u32,
    /// What it brings, by ascending offset. The samples of its polls are in this order.
    pub points: Vec<PlannedPoint>,
}

/// A point's place in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedPoint {
    /// The point's index in the list that was planned.
    pub index: u32,
    /// Registers or bits from the request's first.
    pub offset: u16,
    /// What stands there.
    pub ty: RegisterType,
    /// The order of its registers and bytes.
    pub order: Order,
}

/// The requests of one device, by table, period and address. Every point is in exactly one of them.
#[must_use]
pub fn plan(points: &[ModbusPoint], caps: Caps) -> Vec<Request> {
    let mut groups: BTreeMap<(Table, u32), Vec<(u32, &ModbusPoint)>> = BTreeMap::new();
    for (index, point) in (0..).zip(points) {
        groups.entry((point.table, point.period_ms)).or_default().push((index, point));
    }
    let mut requests = Vec::new();
    for ((table, period_ms), mut members) in groups {
        members.sort_by_key(|(index, point)| (point.address, point.ty.width(), *index));
        let (max, gap) = match table.is_bits() {
            true => (u32::from(caps.max_bits), u32::from(caps.max_gap) * 16),
            false => (u32::from(caps.max_registers), u32::from(caps.max_gap)),
        };
        while let Some((_, first)) = members.first() {
            let start = u32::from(first.address);
            let mut end = start;
            let mut taken = Vec::new();
            members.retain(|(index, point)| {
                let (from, to) = (u32::from(point.address), u32::from(point.address) + u32::from(point.ty.width()));
                // The first always goes in: resolve has refused values wider than the cap.
                let fits = taken.is_empty() || (to <= start + max && from <= end + gap);
                if fits {
                    end = end.max(to);
                    let offset = u16::try_from(from - start).unwrap_or(u16::MAX);
                    taken.push(PlannedPoint { index: *index, offset, ty: point.ty, order: point.order });
                }
                !fits
            });
            let count = u16::try_from(end - start).unwrap_or(u16::MAX);
            requests.push(Request { table, address: first_address(start), count, period_ms, points: taken });
        }
    }
    requests
}

fn first_address(start: u32) -> u16 {
    u16::try_from(start).unwrap_or(u16::MAX)
}
