//! Puts the status together from those who know: the pipeline, the drivers, the configuration.

use std::time::Duration;

use tributary_core::pipeline::{Now, Pipeline};
use tributary_proto::pb;
use tributary_protocols::gather;
use tributary_protocols::modbus::status::{DeviceState as ModbusState, DeviceStatus, Unsupported};
use tributary_protocols::time::Mono;

use super::{Bus, Device, DeviceState, Ledger, Spool, State, Status, Uplink};
use crate::clock::TimeQuality;
use crate::config::{AckMode, Config};
use crate::field::Field;
use crate::tls::trust::Trust;

/// What the configuration says of the status.
#[derive(Debug)]
pub struct Source {
    site: String,
    agent: String,
    ack: AckMode,
    config_sha256: String,
    /// Names of the model's devices.
    devices: Vec<String>,
    /// What the system last said of its clock.
    pub time_quality: pb::TimeQuality,
    /// Why the last new configuration was refused.
    pub reload_error: Option<String>,
}

/// What the shell knows of the way to the broker.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Why there is no connection.
    pub last_error: Option<&'a str>,
    /// The certificates.
    pub trust: Option<&'a Trust>,
}

impl Source {
    /// From the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            site: config.agent.site.clone(),
            agent: config.agent.id.clone(),
            ack: config.uplink.ack,
            config_sha256: config.sha256.clone(),
            devices: config.model.devices.iter().map(|device| device.name.clone()).collect(),
            time_quality: pb::TimeQuality::Unsynced,
            reload_error: None,
        }
    }

    /// How things are, for `systemctl status`: in one line, for each line would be a word of its own to systemd.
    #[must_use]
    pub fn words(&self, pipeline: &Pipeline, field: &Field) -> String {
        let (mut devices, mut answering) = (0, 0);
        for (bus, places, _) in field.buses() {
            devices += places.len();
            let answers = |device: &&DeviceStatus| device.answers > 0 && device.state != ModbusState::Silent;
            answering += bus.devices.iter().filter(answers).count();
        }
        for (broker, _) in field.brokers() {
            devices += 1;
            answering += usize::from(broker.connected);
        }
        let uplink = match (pipeline.uplink().connected(), pipeline.uplink().healthy()) {
            (_, true) => "the centre acknowledges",
            (true, false) => "the centre does not acknowledge",
            (false, false) => "no connection to the broker",
        };
        let spool = pipeline.spool().failing().map(|error| format!("; the spool cannot be written: {error}"));
        let reload = self.reload_error.as_ref().map(|error| format!("; the new configuration is refused: {error}"));
        let (spool, reload) = (spool.unwrap_or_default(), reload.unwrap_or_default());
        format!("{answering} of {devices} devices answer; {uplink}{spool}{reload}").replace(char::is_control, " ")
    }

    /// How things are now.
    #[must_use]
    pub fn status(&self, now: Now, pipeline: &Pipeline, field: &Field, way: Way<'_>) -> Status {
        let age = |at: Mono| u64::try_from(now.mono.since(at).as_millis()).unwrap_or(u64::MAX);
        let (spool, uplink) = (pipeline.spool(), pipeline.uplink());
        let usage = spool.usage();
        let mut status = Status {
            state: match pipeline.state() {
                pb::agent_status::State::Online => State::Online,
                pb::agent_status::State::Stopping => State::Stopping,
                pb::agent_status::State::Degraded => State::Degraded,
                pb::agent_status::State::Offline => State::Offline,
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: self.site.clone(),
            agent: self.agent.clone(),
            epoch: format!("{:016x}", spool.epoch()),
            last_seq: spool.durable(),
            acked_seq: spool.first_retained().saturating_sub(1),
            first_retained_seq: spool.first_retained(),
            ledger: ledger(pipeline),
            uplink: Uplink {
                connected: uplink.connected(),
                healthy: uplink.healthy(),
                last_ack_ms: uplink.last_ack().map(age),
                reconnects: uplink.reconnects(),
                ack: self.ack,
                last_error: way.last_error.map(str::to_owned),
                identity: way.trust.map(|trust| trust.status(now.wall)),
            },
            spool: Spool {
                disk_bytes: usage.disk_bytes,
                records: spool.backlog(),
                oldest_ms: spool.oldest().map(|oldest| now.wall.0.saturating_sub(oldest.0).max(0).unsigned_abs()),
                quarantined: usage.quarantined,
                last_error: spool.failing().map(ToString::to_string),
                written_bytes: written(),
            },
            catalog_rev: pipeline.catalog_rev(),
            config_sha256: self.config_sha256.clone(),
            time_quality: match self.time_quality {
                pb::TimeQuality::Synced => TimeQuality::Synced,
                pb::TimeQuality::Holdover => TimeQuality::Holdover,
                _ => TimeQuality::Unsynced,
            },
            reload_error: self.reload_error.clone(),
            uptime_ms: now.mono.as_millis(),
            devices: self
                .devices
                .iter()
                .map(|name| Device { name: name.clone(), state: DeviceState::Disabled, ..Device::default() })
                .collect(),
            ..Status::default()
        };
        for (bus, keys, forecast) in field.buses() {
            for (device, key) in bus.devices.iter().zip(keys) {
                let Some(entry) = status.devices.get_mut(*key as usize) else { continue };
                entry.state = match device.state {
                    ModbusState::Ok => DeviceState::Ok,
                    ModbusState::Degraded => DeviceState::Degraded,
                    ModbusState::Silent => DeviceState::Silent,
                };
                (entry.polls_due, entry.polls_ok) = (device.polls_due, device.polls_ok);
                entry.last_error.clone_from(&device.last_error);
                (entry.answer_ms, entry.answer_max_ms) = (millis(device.answer_mean), millis(device.answer_max));
                entry.unsupported = device.unsupported.iter().map(unsupported).collect();
            }
            status.buses.push(Bus {
                name: bus.name.clone(),
                utilisation: bus.utilisation,
                planned_utilisation: forecast.utilisation,
                cycle_ms: millis(bus.cycle),
                planned_cycle_ms: millis(forecast.cycle),
                requests: bus.requests,
                requests_per_second: bus.requests_per_second,
                timeouts: bus.timeouts,
                missed: bus.missed,
                errors: bus.errors,
                crc_errors: bus.crc_errors,
                stale: bus.stale,
                probes: bus.probes,
                asks: bus.asks,
                connected: bus.connected,
                last_error: bus.last_error.clone(),
            });
        }
        for (broker, key) in field.brokers() {
            if let Some(entry) = status.devices.get_mut(key as usize) {
                entry.state = if broker.connected { DeviceState::Ok } else { DeviceState::Silent };
                (entry.polls_due, entry.polls_ok) = (broker.counters.messages, broker.counters.readings);
                entry.last_error.clone_from(&broker.last_error);
            }
            status.buses.push(Bus {
                name: broker.name.clone(),
                requests: broker.counters.messages,
                connected: broker.connected,
                ..Bus::default()
            });
        }
        status
    }
}

/// `write_bytes` of proc_pid_io(5): what goes to the disk, journal and metadata of the file system not counted.
fn written() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn unsupported(range: &Unsupported) -> String {
    let last = u32::from(range.address) + u32::from(range.count) - 1;
    match range.count {
        1 => format!("{} {}", range.table.name(), range.address),
        _ => format!("{} {}..={last}", range.table.name(), range.address),
    }
}

fn ledger(pipeline: &Pipeline) -> Ledger {
    let ledger = pipeline.ledger();
    Ledger {
        admitted: ledger.admitted,
        delivered: ledger.delivered,
        held: pipeline.held(),
        filtered: ledger.filtered,
        lost: gather(ledger.losses().map(|(reason, readings)| (reason.as_str_name().to_lowercase(), readings))),
    }
}
