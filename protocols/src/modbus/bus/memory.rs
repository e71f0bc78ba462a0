//! What a bus has learnt of its devices, to be kept across restarts: the registers that they refuse.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Bus;
use super::split::{self, Part, Refused};
use crate::modbus::plan::Request;
use crate::modbus::register::Table;
use crate::time::Mono;

/// What a bus has learnt. A plain value; the shell keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Memory {
    /// Of each request that is not answered whole.
    pub blocks: Vec<RefusedBlock>,
}

/// A request, and what of it is refused. It is forgotten when no request is planned like this any more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RefusedBlock {
    /// 1 to 255.
    pub unit: u8,
    /// The table it reads.
    pub table: Table,
    /// First register or bit, as on the wire.
    pub address: u16,
    /// Registers or bits.
    pub count: u16,
    /// What is refused.
    pub refused: Vec<Refusal>,
}

/// Registers or bits that are refused when they are asked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Refusal {
    /// First register or bit, as on the wire.
    pub address: u16,
    /// Registers or bits.
    pub count: u16,
    /// Where the second of two parts begins that are good alone; absent where it is one point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<u16>,
}

impl Bus {
    /// What is to be kept: what stands, not what was refused once.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut blocks = Vec::new();
        for slot in &self.slots {
            let refusal = |one: &Refused| {
                let (address, count) = split::span(&slot.request, one.part);
                let cut = split::points(&slot.request, (one.cut, one.part.1)).first();
                let cut = cut
                    .filter(|_| one.part.1 - one.part.0 > 1)
                    .map(|point| slot.request.address.wrapping_add(point.offset));
                Refusal { address, count, cut }
            };
            let refused: Vec<_> = slot.refused.iter().filter(|one| one.stands()).map(refusal).collect();
            if !refused.is_empty() {
                let unit = self.units.get(slot.unit).map_or(0, |unit| unit.unit);
                let Request { table, address, count, .. } = slot.request;
                blocks.push(RefusedBlock { unit, table, address, count, refused });
            }
        }
        Memory { blocks }
    }

    /// Counts the changes of [`memory`](Self::memory), so that it is written when there is something new.
    #[must_use]
    pub const fn memory_revision(&self) -> u64 {
        self.memory_revision
    }

    /// What was learnt in an earlier life; what does not fit the plan is passed over. It is asked again after a minute.
    pub fn remember(&mut self, now: Mono, memory: &Memory) {
        for slot in &mut self.slots {
            let unit = self.units.get(slot.unit).map_or(0, |unit| unit.unit);
            let Request { table, address, count, .. } = slot.request;
            let same = |block: &&RefusedBlock| {
                (block.unit, block.table, block.address, block.count) == (unit, table, address, count)
            };
            let Some(block) = memory.blocks.iter().find(same) else { continue };
            if slot.open.is_some() {
                continue;
            }
            slot.refused.clear();
            for refusal in &block.refused {
                slot.refused.extend(recalled(&slot.request, refusal, now));
            }
            split::prune(&mut slot.refused);
        }
    }
}

/// The points of the request that this is, if there are such.
fn recalled(request: &Request, refusal: &Refusal, now: Mono) -> Vec<Refused> {
    let from = u32::from(refusal.address);
    let to = from + u32::from(refusal.count);
    let start = |offset: u16| u32::from(request.address) + u32::from(offset);
    let places = || (0_u16..).zip(&request.points);
    let mut found = Vec::new();
    match refusal.cut {
        None => {
            for (place, point) in places() {
                if start(point.offset) == from && start(point.offset) + u32::from(point.ty.width()) == to {
                    found.push(Refused::remembered((place, place + 1), place, now));
                }
            }
        }
        Some(cut) => {
            let inside = |(_, point): &(u16, &crate::modbus::plan::PlannedPoint)| {
                start(point.offset) >= from && start(point.offset) + u32::from(point.ty.width()) <= to
            };
            let mut inside = places().filter(inside).map(|(place, _)| place);
            let first = inside.next();
            let part = first.map(|first| (first, inside.last().unwrap_or(first) + 1));
            let cut = places().find(|(_, point)| start(point.offset) == u32::from(cut)).map(|(place, _)| place);
            if let (Some(part), Some(cut)) = (part, cut)
                && fits(request, part, cut, refusal)
            {
                found.push(Refused::remembered(part, cut, now));
            }
        }
    }
    found
}

fn fits(request: &Request, part: Part, cut: u16, refusal: &Refusal) -> bool {
    part.0 < cut && cut < part.1 && split::span(request, part) == (refusal.address, refusal.count)
}
