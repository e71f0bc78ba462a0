//! The checked plant as the pipeline's [`Model`] and as the lists that the drivers work from.
//!
//! Numbers are given here, once: devices are `[[device]]` then `[[mqtt]]`, points follow their devices, requests follow
//! their devices and within them the planner. [`Poll::request`](tributary_protocols::reading::Poll) counts in
//! [`Model::requests`]; the points of MQTT wildcards appear while running and are not here.

use tributary_core::model::{Deadband, Device, Model, Point, PointKey, Request, Statistic, Window};
use tributary_protocols::modbus::bus::BusDevice;
use tributary_protocols::modbus::config::{BusSpec, DeviceSpec, ModbusPoint};
use tributary_protocols::modbus::forecast::Forecast;
use tributary_protocols::modbus::plan::plan;
use tributary_protocols::mqtt::config::BrokerSpec;
use tributary_protocols::point;

use super::Occasion;
use super::plant::Plant;

/// A Modbus bus and what is asked on it.
#[derive(Clone, Debug)]
pub struct BusSource {
    /// The bus.
    pub spec: BusSpec,
    /// Its enabled devices with their requests, numbered as in [`Model::requests`].
    pub devices: Vec<BusDevice>,
    /// For each of `devices` its index in [`Model::devices`].
    pub keys: Vec<u32>,
    /// What it will have to carry.
    pub forecast: Forecast,
}

/// A broker and what is taken from it.
#[derive(Clone, Debug)]
pub struct BrokerSource {
    /// The broker, the places of its files resolved.
    pub spec: BrokerSpec,
    /// Its index in [`Model::devices`].
    pub device: u32,
    /// For each of the spec's rules its point, if its topic has no wildcard.
    pub points: Vec<Option<PointKey>>,
}

impl BrokerSource {
    /// The point of a rule for the pipeline: for wildcards the one to add when a topic appears, whose `name` and
    /// `source` are then the topic's own.
    #[must_use]
    pub fn template(&self, rule: usize) -> Option<Point> {
        self.spec.rules.get(rule).map(|rule| of_point(rule.point.clone(), self.device))
    }
}

/// Builds all of it. To run, the devices' points are moved rather than copied: they are most of the memory that a start
/// takes.
pub(super) fn build(plant: &mut Plant, occasion: Occasion) -> (Model, Vec<BusSource>, Vec<BrokerSource>) {
    let mut model = Model::default();
    let mut buses: Vec<BusSource> = plant
        .buses
        .iter()
        .map(|spec| BusSource {
            spec: spec.clone(),
            devices: Vec::new(),
            keys: Vec::new(),
            forecast: Forecast::new(spec, &[]),
        })
        .collect();
    for spec in &mut plant.devices {
        let key = count(model.devices.len());
        let bus = buses.iter_mut().find(|bus| bus.spec.name == spec.bus);
        model.devices.push(Device {
            name: spec.name.clone(),
            path: spec.path.clone(),
            protocol: "modbus".into(),
            endpoint: bus.as_ref().map(|bus| format!("{}#{}", bus.spec.endpoint(), spec.unit)).unwrap_or_default(),
            vendor: spec.vendor.clone(),
            model: spec.model.clone(),
            serial: spec.serial.clone(),
        });
        let first_point = count(model.points.len());
        let first_request = count(model.requests.len());
        let requests = plan(&spec.points, spec.caps);
        model.requests.extend(requests.iter().map(|request| Request {
            device: key,
            points: request.points.iter().map(|point| PointKey(first_point + point.index)).collect(),
            period_ms: request.period_ms,
        }));
        if let Some(bus) = bus
            && spec.enabled
        {
            bus.devices.push(BusDevice::new(spec, requests, first_request));
            bus.keys.push(key);
        }
        let scales: Vec<Option<PointKey>> =
            spec.points.iter().map(|point| scale_of(point, spec, first_point)).collect();
        let points = match occasion {
            Occasion::Run => std::mem::take(&mut spec.points),
            Occasion::Check | Occasion::Beside => spec.points.clone(),
        };
        let points = points.into_iter().zip(scales);
        model.points.extend(points.map(|(point, scale_from)| Point { scale_from, ..of_point(point.point, key) }));
    }
    for bus in &mut buses {
        bus.forecast = Forecast::new(&bus.spec, &bus.devices);
    }
    let mut brokers = Vec::new();
    for spec in &plant.brokers {
        let device = count(model.devices.len());
        let scheme = if spec.tls { "mqtts" } else { "mqtt" };
        let host = if spec.host.contains(':') { format!("[{}]", spec.host) } else { spec.host.clone() };
        model.devices.push(Device {
            name: spec.name.clone(),
            path: spec.path.clone(),
            protocol: "mqtt".into(),
            endpoint: format!("{scheme}://{host}:{}", spec.port),
            ..Device::default()
        });
        let points = spec
            .rules
            .iter()
            .map(|rule| {
                (!rule.wildcard).then(|| {
                    model.points.push(of_point(rule.point.clone(), device));
                    PointKey(count(model.points.len() - 1))
                })
            })
            .collect();
        brokers.push(BrokerSource { spec: spec.clone(), device, points });
    }
    (model, buses, brokers)
}

/// Lengths here stay far below 2^32: files have 4 MB, devices 20,000 points, and 10,000 devices share a profile.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The point of its device that brings a point's exponent.
fn scale_of(point: &ModbusPoint, spec: &DeviceSpec, first: u32) -> Option<PointKey> {
    let name = point.point.scale_from.as_ref()?;
    let at = spec.points.iter().position(|other| other.point.name == *name)?;
    Some(PointKey(first + count(at)))
}

fn of_point(point: point::Point, device: u32) -> Point {
    Point {
        device,
        name: point.name,
        ty: point.ty,
        unit: point.unit,
        scale: point.scale,
        scale_from: None,
        description: point.description,
        source: point.source,
        counter: point.counter,
        counter_modulus: point.counter_modulus,
        max_rate: point.max_rate,
        labels: point.labels,
        extra: point.extra,
        valid: point.valid,
        bad: point.bad,
        deadband: match point.deadband {
            point::Deadband::None => Deadband::None,
            point::Deadband::Absolute(by) => Deadband::Absolute(by),
            point::Deadband::Percent(by) => Deadband::Percent(by),
        },
        heartbeat: point.heartbeat,
        window: point.window.as_ref().map(|window| Window {
            every_ms: window.every_ms,
            stats: window.stats.iter().filter_map(|name| Statistic::from_name(name)).collect(),
        }),
        raw: point.raw,
    }
}
