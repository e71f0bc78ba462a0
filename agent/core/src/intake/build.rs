//! Building the intake: which points form a group, which a window, and the wire ids of all.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::PointType;

use super::{Intake, Member, Point, Raw, Request, Scaled, Unbuildable, Windows};
use crate::batch::Batcher;
use crate::catalog::Catalog;
use crate::filter::counter::Counter;
use crate::filter::deadband::Deadband;
use crate::filter::mark::Mark;
use crate::model::{self, PointKey, Statistic};
use crate::window::accumulator::Accumulator;
use crate::window::clock::WindowClock;

impl Intake {
    /// Builds points, groups and windows, and gives them their wire ids.
    ///
    /// # Errors
    /// A ceiling of `limits.rs` is passed, or the model contradicts itself.
    pub fn new(
        model: &model::Model,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> Result<Self, Unbuildable> {
        let mut intake = Self::default();
        for device in &model.devices {
            let id = catalog.device(device);
            intake.devices.push((id, device.name.clone()));
        }
        let mut polled = alloc::vec![false; model.points.len()];
        for point in model.requests.iter().flat_map(|request| &request.points) {
            *polled.get_mut(point.0 as usize).ok_or(Unbuildable::Dangling)? = true;
        }
        intake.add_factors(&model.points);
        for (point, polled) in model.points.iter().zip(polled) {
            intake.add_point(point, polled, catalog)?;
        }
        for request in &model.requests {
            intake.add_request(request, &model.points, catalog, batcher)?;
        }
        intake.add_windows(&model.points, 0, catalog, batcher, now, wall)?;
        Ok(intake)
    }

    pub(super) fn add_point(
        &mut self,
        point: &model::Point,
        polled: bool,
        catalog: &mut Catalog,
    ) -> Result<(), Unbuildable> {
        let (device, _) = self.devices.get(point.device as usize).ok_or(Unbuildable::Dangling)?;
        let deadband = Deadband::new(point).map(Box::new);
        let scaled = Scaled::new(point);
        let raw = match (&point.window, point.raw, polled, &deadband) {
            (Some(_), false, _, _) => Raw::No,
            (_, _, true, None) if scaled.is_none() => Raw::Group,
            _ => Raw::Own,
        };
        self.points.push(Point {
            id: catalog.point(*device, point),
            ty: point.ty,
            scale: point.scale,
            mark: Mark::new(point),
            counter: Counter::new(point).filter(|_| scaled.is_none()),
            deadband,
            raw,
            window: None,
            set: None,
            scaled,
        });
        Ok(())
    }

    pub(super) fn add_request(
        &mut self,
        request: &model::Request,
        points: &[model::Point],
        catalog: &mut Catalog,
        batcher: &mut Batcher,
    ) -> Result<(), Unbuildable> {
        let (_, device) = self.devices.get(request.device as usize).ok_or(Unbuildable::Dangling)?;
        let of_group: Vec<&Point> = request
            .points
            .iter()
            .filter_map(|key| self.points.get(key.0 as usize))
            .filter(|point| point.raw == Raw::Group)
            .collect();
        let ids: Vec<u32> = of_group.iter().map(|point| point.id).collect();
        let types: Vec<PointType> = of_group.iter().map(|point| point.ty).collect();
        let group = if ids.is_empty() {
            None
        } else {
            let first = request.points.first().and_then(|key| points.get(key.0 as usize));
            let name = format!("{device}/{}", first.map_or("", |point| point.name.as_str()));
            let id = catalog.group(name.clone(), ids, request.period_ms);
            let width = types.len();
            let key = batcher.add_group(id, types).map_err(|refused| Unbuildable::Width { what: name, refused })?;
            Some((key, self.sets.add_group(id, key, width, request.period_ms)))
        };
        for key in &request.points {
            let point = self.points.get_mut(key.0 as usize).ok_or(Unbuildable::Dangling)?;
            if point.raw != Raw::Group {
                point.set = Some(self.sets.add_point(point.id, request.period_ms));
            }
        }
        let factors = request.points.iter().zip(0..).filter(|(key, _)| self.factors.contains_key(key));
        let factors = factors.map(|(key, place)| (place, *key)).collect();
        self.requests.push(Request { points: request.points.clone().into(), group, factors });
        Ok(())
    }

    /// Summaries of the polled points of a device with one window length are one group; those of a point on its own
    /// clock are a group of that point alone.
    pub(super) fn add_windows(
        &mut self,
        points: &[model::Point],
        from: usize,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> Result<(), Unbuildable> {
        let mut places: Vec<((u32, u32), Vec<usize>)> = Vec::new();
        for (index, point) in points.iter().enumerate() {
            let Some(window) = &point.window else { continue };
            let key = (point.device, window.every_ms);
            let polled = self
                .points
                .get(from + index)
                .is_some_and(|point| (point.set.is_some() || point.raw == Raw::Group) && point.scaled.is_none());
            match places.iter_mut().find(|(place, _)| polled && *place == key) {
                Some((_, members)) => members.push(index),
                None if polled => places.push((key, alloc::vec![index])),
                None => self.add_window(&[(from + index, point)], true, catalog, batcher, now, wall)?,
            }
        }
        for (_, members) in places {
            let members: Vec<_> =
                members.iter().filter_map(|index| Some((from + index, points.get(*index)?))).collect();
            self.add_window(&members, false, catalog, batcher, now, wall)?;
        }
        Ok(())
    }

    pub(super) fn add_window(
        &mut self,
        points: &[(usize, &model::Point)],
        on_arrival: bool,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> Result<(), Unbuildable> {
        let Some((_, first)) = points.first() else { return Ok(()) };
        let every_ms = first.window.as_ref().map_or(1, |window| window.every_ms);
        let (device, device_name) = self.devices.get(first.device as usize).ok_or(Unbuildable::Dangling)?.clone();
        let (mut ids, mut types, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for (index, point) in points {
            let stats: Box<[Statistic]> = point.window.iter().flat_map(|window| window.stats.iter().copied()).collect();
            for statistic in &stats {
                ids.push(catalog.summary(device, point, *statistic, every_ms));
                types.push(match statistic {
                    Statistic::Count => PointType::Int,
                    statistic if statistic.keeps_type() => point.ty,
                    _ => PointType::Float64,
                });
            }
            let group = u32::try_from(self.windows.len()).unwrap_or(u32::MAX);
            let member = u32::try_from(members.len()).unwrap_or(u32::MAX);
            if let Some(point) = self.points.get_mut(*index) {
                point.window = Some((group, member));
            }
            let key = PointKey(u32::try_from(*index).unwrap_or(u32::MAX));
            members.push(Member { point: key, stats, accumulator: Accumulator::new(point.ty, point.scale) });
        }
        let name = if on_arrival { format!("{device_name}/{}", first.name) } else { device_name };
        let name = format!("{name} every {every_ms} ms");
        let id = catalog.group(name.clone(), ids, every_ms);
        let group = batcher.add_group(id, types).map_err(|refused| Unbuildable::Width { what: name, refused })?;
        let running = self.lengths.iter().position(|length| *length == every_ms);
        let clock = running.unwrap_or_else(|| {
            self.lengths.push(every_ms);
            self.clocks.push(WindowClock::start(every_ms, now, wall));
            self.clocks.len() - 1
        });
        let set = self.sets.add_summaries(id, group, every_ms);
        // One that begins in the middle of the others of its length has missed what was before; at the start all are PARTIAL.
        self.windows.push(Windows { clock, group, members, set, on_arrival, missed: running.is_some() });
        Ok(())
    }

    /// Adds a point that appeared while running; it is on its own clock.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn declare(
        &mut self,
        point: &model::Point,
        catalog: &mut Catalog,
        batcher: &mut Batcher,
        now: Mono,
        wall: Wall,
    ) -> Result<PointKey, Unbuildable> {
        let index = self.points.len();
        self.add_point(point, false, catalog)?;
        self.add_windows(core::slice::from_ref(point), index, catalog, batcher, now, wall)?;
        Ok(PointKey(u32::try_from(index).unwrap_or(u32::MAX)))
    }
}
