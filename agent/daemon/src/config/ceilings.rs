//! What of a configuration is too large: rings, points in all, the catalogue.
//!
//! Core's rings are heapless, so their sizes are fixed when the program is built (`tributary_core::limits`); a plant
//! that does not fit is refused here, with the ceiling's name, and not found out while running.

use std::collections::BTreeMap;

use tributary_core::catalog::Catalog;
use tributary_core::limits::RING_CELLS;
use tributary_core::model::{Deadband, Model};

use super::plant::Plant;
use super::{Check, UplinkConfig};

/// Most points in all: 500,000 × some 400 bytes of model, filter and window = 200 MB, more than a gateway has.
const POINTS: usize = 500_000;

/// What stands around a published catalogue in its MQTT packet: a topic of at most 400 bytes and the packet's head.
const AROUND: usize = 420;

/// Checks rings and numbers.
pub(super) fn check(model: &Model, plant: &Plant, check: &mut Check<'_, '_>) {
    if model.points.len() > POINTS {
        check.error(
            "device",
            format!("{} points in all", model.points.len()),
            format!("at most {POINTS} in one gateway"),
        );
    }
    let mut cells: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for point in &model.points {
        if let Some(window) = &point.window {
            *cells.entry((point.device, window.every_ms)).or_default() += window.stats.len();
        }
    }
    for ((device, every_ms), cells) in cells {
        if cells > RING_CELLS {
            let device = device as usize;
            let path = match device.checked_sub(plant.devices.len()) {
                None => format!("device[{device}]"),
                Some(broker) => format!("mqtt[{broker}]"),
            };
            check.error(
                &path,
                format!(
                    "its windows of {every_ms} ms give {cells} values at a time; the ceiling RING_CELLS is {RING_CELLS}"
                ),
                "fewer statistics, another window length for some points, or two devices",
            );
        }
    }
}

/// Size of the first catalogue as it is published; refused if it does not fit into a packet.
pub(super) fn catalog(model: &Model, uplink: &UplinkConfig, check: &mut Check<'_, '_>) -> usize {
    let bytes = first(model).message().len() + AROUND;
    if bytes as u64 > uplink.max_packet.bytes() {
        check.error(
            "uplink.max_packet",
            format!(
                "the catalogue has {}KB and does not fit into packets of {}",
                bytes.div_ceil(1_024),
                uplink.max_packet
            ),
            "raise max_packet if the broker takes more (receivers accept 4MB), or divide the points among gateways",
        );
    }
    bytes
}

/// The first catalogue: devices, points, statistics and groups (contract rules 12, 13 and 15). Points of MQTT wildcards
/// are not known yet and come on top.
fn first(model: &Model) -> Catalog {
    let mut catalog = Catalog::new(u64::MAX);
    let devices: Vec<u32> = model.devices.iter().map(|device| catalog.device(device)).collect();
    let mut summaries: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    let mut raw = Vec::with_capacity(model.points.len());
    for point in &model.points {
        let device = devices.get(point.device as usize).copied().unwrap_or(0);
        raw.push(catalog.point(device, point));
        if let Some(window) = &point.window {
            let ids = summaries.entry((device, window.every_ms)).or_default();
            ids.extend(window.stats.iter().map(|stat| catalog.summary(device, point, *stat, window.every_ms)));
        }
    }
    for request in &model.requests {
        let sent = request.points.iter().filter(|key| {
            model.points.get(key.0 as usize).is_some_and(|point| point.deadband == Deadband::None && point.raw)
        });
        let ids: Vec<u32> = sent.filter_map(|key| raw.get(key.0 as usize).copied()).collect();
        if !ids.is_empty() {
            catalog.group(String::new(), ids, request.period_ms);
        }
    }
    for ((_, every_ms), ids) in summaries {
        catalog.group(String::new(), ids, every_ms);
    }
    catalog.close();
    catalog
}
