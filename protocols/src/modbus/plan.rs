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

use crate::modbus::config::{Caps, ModbusPoint, Slice};
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
    /// The bits that are meant, if not all.
    pub slice: Option<Slice>,
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
        // Descending, so that the lowest address is at the end, where it is cheap to take away.
        let key = |(index, point): &(u32, &ModbusPoint)| (point.address, point.ty.width(), *index);
        crate::sort(&mut members, |one, other| key(other).cmp(&key(one)));
        let (max, gap) = match table.is_bits() {
            true => (u32::from(caps.max_bits), u32::from(caps.max_gap) * 16),
            false => (u32::from(caps.max_registers), u32::from(caps.max_gap)),
        };
        while let Some((_, first)) = members.last() {
            let (address, start) = (first.address, u32::from(first.address));
            let mut end = start;
            let (mut taken, mut left) = (Vec::new(), Vec::new());
            while let Some((index, point)) = members.pop_if(|(_, point)| u32::from(point.address) < start + max) {
                let offset = point.address - address;
                let to = u32::from(point.address) + u32::from(point.ty.width());
                // The first always goes in: resolve has refused values wider than the cap.
                if taken.is_empty()
                    || (!caps.one_request_per_point && to <= start + max && u32::from(point.address) <= end + gap)
                {
                    end = end.max(to);
                    taken.push(PlannedPoint { index, offset, ty: point.ty, order: point.order, slice: point.slice });
                } else {
                    left.push((index, point));
                }
            }
            members.extend(left.into_iter().rev());
            let count = u16::try_from(end - start).unwrap_or(u16::MAX);
            requests.push(Request { table, address, count, period_ms, points: taken });
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::modbus::register::Layout;

    fn map(table: &str, cells: impl IntoIterator<Item = (u16, RegisterType)>) -> Vec<ModbusPoint> {
        let rows = cells.into_iter().map(|(address, ty)| {
            alloc::format!("[[point]]\nname='p{address}-{ty}'\ntable='{table}'\naddress={address}\ntype='{ty}'\n")
        });
        let text = alloc::format!(
            "name='d'\nbus='b'\nunit_id=1\naddressing='zero'\n{}",
            rows.collect::<alloc::string::String>()
        );
        let device = toml::from_str(&text).expect("keys are right");
        crate::modbus::config::resolve(&device, "device[0]", None).expect("no fault").points
    }

    fn places(requests: &[Request]) -> Vec<(u16, u16)> {
        requests.iter().map(|request| (request.address, request.count)).collect()
    }

    #[test]
    fn a_hundred_floats_are_two_requests_two_hundred_four() {
        let floats = |count: u16| map("holding", (0..count).map(|index| (index * 2, RegisterType::F32)));
        let plan_100 = plan(&floats(100), Caps::default());
        assert_eq!(places(&plan_100), [(0, 124), (124, 76)], "a float is never split");
        assert_eq!(plan(&floats(200), Caps::default()).len(), 4);
    }

    #[test]
    fn gaps_up_to_the_cap_are_read_over() {
        let points = map("input", [(0, RegisterType::U16), (9, RegisterType::U16), (19, RegisterType::U16)]);
        assert_eq!(places(&plan(&points, Caps::default())), [(0, 10), (19, 1)], "8 are bridged, 9 are not");
        assert_eq!(plan(&points, Caps { max_gap: 0, ..Caps::default() }).len(), 3);
        let bits = map("coil", [(0, RegisterType::Bool), (129, RegisterType::Bool), (259, RegisterType::Bool)]);
        assert_eq!(places(&plan(&bits, Caps::default())), [(0, 130), (259, 1)]);
    }

    #[test]
    fn tables_and_periods_are_apart() {
        let mut points = map("holding", [(0, RegisterType::U16), (1, RegisterType::U16), (2, RegisterType::U16)]);
        points[1].period_ms = 100;
        points[2].table = Table::Input;
        let requests = plan(&points, Caps::default());
        assert_eq!(requests.len(), 3);
        assert!(requests.iter().all(|request| request.count == 1));
    }

    #[test]
    fn overlapping_points_share_their_registers() {
        let points = map(
            "holding",
            [
                (0, RegisterType::U32),
                (0, RegisterType::F32),
                (1, RegisterType::U16),
                (0, RegisterType::String(Layout::HighFirst, 8)),
            ],
        );
        let requests = plan(&points, Caps::default());
        assert_eq!(places(&requests), [(0, 4)]);
        assert_eq!(
            requests[0].points.iter().map(|point| (point.index, point.offset)).collect::<Vec<_>>(),
            [(0, 0), (1, 0), (3, 0), (2, 1)]
        );
    }

    #[test]
    fn the_last_register_is_reachable() {
        assert_eq!(places(&plan(&map("holding", [(65_535, RegisterType::U16)]), Caps::default())), [(65_535, 1)]);
        assert_eq!(places(&plan(&map("coil", [(65_535, RegisterType::Bool)]), Caps::default())), [(65_535, 1)]);
    }

    /// The fewest requests over all partitions of `cells`.
    fn fewest(cells: &[(u32, u32)], max: u32, gap: u32) -> usize {
        fn possible(group: &[(u32, u32)], max: u32, gap: u32) -> bool {
            let mut group = group.to_vec();
            group.sort_unstable();
            let (start, mut end) = (group[0].0, group[0].1);
            for (from, to) in &group {
                if *from > end + gap {
                    return false;
                }
                end = end.max(*to);
            }
            end - start <= max
        }
        fn search(rest: &[(u32, u32)], groups: &mut Vec<Vec<(u32, u32)>>, max: u32, gap: u32, best: &mut usize) {
            let Some((cell, rest)) = rest.split_first() else {
                if groups.iter().all(|group| possible(group, max, gap)) {
                    *best = (*best).min(groups.len());
                }
                return;
            };
            for index in 0..groups.len() {
                groups[index].push(*cell);
                search(rest, groups, max, gap, best);
                groups[index].pop();
            }
            if groups.len() + 1 < *best {
                groups.push(alloc::vec![*cell]);
                search(rest, groups, max, gap, best);
                groups.pop();
            }
        }
        let mut best = cells.len() + 1;
        search(cells, &mut Vec::new(), max, gap, &mut best);
        best
    }

    proptest! {
        #[test]
        fn no_partition_is_smaller(
            cells in proptest::collection::vec((0_u16..40, 0_usize..5), 1..8),
            max_registers in 4_u16..20,
            max_gap in 0_u16..5,
        ) {
            let types = [RegisterType::U16, RegisterType::F32, RegisterType::I64, RegisterType::U16, RegisterType::String(Layout::HighFirst, 7)];
            let mut points = map("holding", [(0, RegisterType::U16)]);
            points = cells.iter().map(|(address, ty)| {
                ModbusPoint { address: *address, ty: types[*ty], ..points[0].clone() }
            }).collect();
            let requests = plan(&points, Caps { max_registers, max_bits: 2_000, max_gap, one_request_per_point: false });

            let mut seen = alloc::vec![0; points.len()];
            for request in &requests {
                prop_assert!(request.count <= max_registers);
                for planned in &request.points {
                    let point = &points[planned.index as usize];
                    seen[planned.index as usize] += 1;
                    prop_assert_eq!(point.address, request.address + planned.offset);
                    prop_assert!(planned.offset + planned.ty.width() <= request.count, "not split");
                }
            }
            prop_assert!(seen.iter().all(|times| *times == 1), "each point once");
            let spans: Vec<_> = points.iter().map(|point| (u32::from(point.address), u32::from(point.address + point.ty.width()))).collect();
            prop_assert_eq!(requests.len(), fewest(&spans, max_registers.into(), max_gap.into()));
        }
    }
}
