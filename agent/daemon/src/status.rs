//! What the running agent says of itself.
//!
//! A [`Source`] puts a [`Status`] together from those who know, whenever one is wanted; no copy is kept. `socket.rs` hands
//! it out.

mod source;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::TimeQuality;
use crate::config::AckMode;

pub use source::{Source, Way};

/// The state of the agent, in the words of `AgentStatus.State`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not running, or not yet.
    #[default]
    Offline,
    /// All is well.
    Online,
    /// Draining before it ends.
    Stopping,
    /// Something it needs is missing.
    Degraded,
}

/// What `tributary status --json` prints. Keys are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// How the agent is.
    pub state: State,
    /// Version of the program.
    pub version: String,
    /// The site.
    pub site: String,
    /// The agent's id.
    pub agent: String,
    /// Life of the spool, 16 hex digits.
    pub epoch: String,
    /// Highest seq given.
    pub last_seq: u64,
    /// Every seq up to here is settled.
    pub acked_seq: u64,
    /// Oldest seq that can still be sent.
    pub first_retained_seq: u64,
    /// Where every reading is.
    pub ledger: Ledger,
    /// The way to the broker.
    pub uplink: Uplink,
    /// What is on disk.
    pub spool: Spool,
    /// Modbus buses, then MQTT brokers.
    pub buses: Vec<Bus>,
    /// Devices, brokers among them.
    pub devices: Vec<Device>,
    /// Revision of the catalogue.
    pub catalog_rev: u32,
    /// SHA-256 of the configuration and its profiles.
    pub config_sha256: String,
    /// Why the configuration was refused that the agent was last told to read again.
    pub reload_error: Option<String>,
    /// Whether the wall clock can be believed.
    pub time_quality: TimeQuality,
    /// Since the agent started, in ms.
    pub uptime_ms: u64,
}

/// Counts of readings since the epoch began; the law is `admitted = delivered + held + filtered + lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Entered the pipeline.
    pub admitted: u64,
    /// In batches the centre acknowledged.
    pub delivered: u64,
    /// In memory or in the spool.
    pub held: u64,
    /// Withheld by a configured filter, or folded into a summary.
    pub filtered: u64,
    /// Will never arrive, by the names of `Loss.Reason` in lower case.
    pub lost: BTreeMap<String, u64>,
}

impl Ledger {
    /// Readings that will never arrive, whatever the reason.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.lost.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether the law holds.
    #[must_use]
    pub fn balances(&self) -> bool {
        let sum = [self.delivered, self.held, self.filtered].into_iter().try_fold(self.lost_total(), u64::checked_add);
        sum == Some(self.admitted)
    }
}

/// The way to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uplink {
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether an Ack came on it (contract rule 21).
    pub healthy: bool,
    /// Age of the last Ack in ms.
    pub last_ack_ms: Option<u64>,
    /// Connections after the first.
    pub reconnects: u64,
    /// Who acknowledges: `"receiver"`, or `"broker"`, whose word says nothing of a database.
    pub ack: AckMode,
    /// Why the last connection ended or did not come about, or what keeps it from its use.
    pub last_error: Option<String>,
    /// The certificates in force; none without TLS.
    pub identity: Option<Identity>,
}

/// What the agent shows of itself to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// How it stands with it.
    pub state: IdentityState,
    /// Subject of the certificate in force.
    pub subject: Option<String>,
    /// Its last day, `"2027-11-30"`.
    pub not_after: Option<String>,
    /// Whole days until then.
    pub days_left: Option<u64>,
    /// Why the files cannot be used as they are; what was in force before stays so.
    pub trouble: Option<String>,
}

/// How it stands with the certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityState {
    /// Well.
    #[default]
    Ok,
    /// A third of its life is left, or less.
    RenewSoon,
    /// Its time is over, by this machine's clock.
    Expired,
    /// The files are not what they must be.
    Trouble,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spool {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Batches that are not acknowledged.
    pub records: u64,
    /// Age of the oldest of them in ms.
    pub oldest_ms: Option<u64>,
    /// Refused batches and damaged folders kept for the owner.
    pub quarantined: u64,
    /// Why it cannot be written, while it cannot.
    pub last_error: Option<String>,
    /// Bytes that the agent had the disk write since it started, as the kernel counts them; unknown if it does not.
    pub written_bytes: Option<u64>,
}

/// A bus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bus {
    /// As configured.
    pub name: String,
    /// Share of the time in which a request was out, 0 to 1.
    pub utilisation: f64,
    /// What the plan expects of it, 0 to 1 and above.
    pub planned_utilisation: f64,
    /// How long it takes to ask everything once, in ms.
    pub cycle_ms: f64,
    /// The same as the plan expects it.
    pub planned_cycle_ms: f64,
    /// Requests sent.
    pub requests: u64,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Requests without an answer in time.
    pub timeouts: u64,
    /// Due polls that were not sent: overdue, without a connection, or to a silent device.
    pub missed: u64,
    /// Answers that could not be trusted, and connections refused or lost in mid-request.
    pub errors: u64,
    /// Answers whose checksum was wrong, or that ended in the middle.
    pub crc_errors: u64,
    /// Late and doubled answers that were passed over.
    pub stale: u64,
    /// Requests to devices that had not answered for some time.
    pub probes: u64,
    /// Questions beside the schedule.
    pub asks: u64,
    /// Whether it has a connection.
    pub connected: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// As configured.
    pub name: String,
    /// How it does.
    pub state: DeviceState,
    /// Polls that were due.
    pub polls_due: u64,
    /// Polls that brought values.
    pub polls_ok: u64,
    /// How long it takes to answer, of late, in ms.
    pub answer_ms: f64,
    /// The longest that it took, in ms.
    pub answer_max_ms: f64,
    /// Registers that it says it does not have, `"holding 100..=101"`: asked for rarely.
    pub unsupported: Vec<String>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// How a device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// It answers.
    #[default]
    Ok,
    /// It answers, but not to everything.
    Degraded,
    /// It does not answer.
    Silent,
    /// Not polled on purpose.
    Disabled,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        Status {
            state: State::Online,
            version: "0.1.0".into(),
            site: "plant-1".into(),
            agent: "gw-017".into(),
            epoch: format!("{:016x}", 0x0123_4567_89ab_cdef_u64),
            ledger: Ledger {
                admitted: 10,
                delivered: 4,
                held: 3,
                filtered: 2,
                lost: [("spool_full".into(), 1)].into(),
            },
            buses: vec![Bus { name: "plc-net".into(), ..Bus::default() }],
            devices: vec![Device { name: "tank".into(), ..Device::default() }],
            ..Status::default()
        }
    }

    #[test]
    fn json_has_the_keys_people_rely_on() {
        let json = serde_json::to_value(sample()).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        for key in [
            "state",
            "version",
            "site",
            "agent",
            "epoch",
            "last_seq",
            "acked_seq",
            "first_retained_seq",
            "ledger",
            "uplink",
            "spool",
            "buses",
            "devices",
        ] {
            assert!(keys(&json).contains(&key.to_owned()), "{key}");
        }
        assert_eq!(json["state"], "online");
        assert_eq!(json["epoch"], "0123456789abcdef");
        assert_eq!(
            json["ledger"],
            serde_json::json!({ "admitted": 10, "delivered": 4, "held": 3, "filtered": 2, "lost": { "spool_full": 1 } })
        );
        assert_eq!(
            json["uplink"],
            serde_json::json!({ "connected": false, "healthy": false, "last_ack_ms": null, "reconnects": 0, "ack": "receiver", "last_error": null, "identity": null })
        );
        assert_eq!(
            json["spool"],
            serde_json::json!({
                "disk_bytes": 0, "records": 0, "oldest_ms": null, "quarantined": 0, "last_error": null,
                "written_bytes": null
            })
        );
        for (value, expected) in [
            (&json["buses"][0], vec!["name", "utilisation", "requests", "timeouts"]),
            (&json["devices"][0], vec!["name", "state", "polls_due", "polls_ok", "last_error"]),
        ] {
            for key in expected {
                assert!(keys(value).contains(&key.to_owned()), "{key}");
            }
        }
        assert_eq!(
            (&json["devices"][0]["state"], &json["devices"][0]["last_error"]),
            (&"ok".into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn an_older_or_newer_agent_is_understood() {
        let status: Status =
            serde_json::from_str(r#"{ "state": "degraded", "later": [1], "uplink": { "connected": true } }"#).unwrap();
        assert_eq!(status.state, State::Degraded);
        assert!(status.uplink.connected);
    }

    #[test]
    fn the_law_is_checked_without_overflow() {
        let mut ledger = sample().ledger;
        assert!(ledger.balances());
        ledger.held += 1;
        assert!(!ledger.balances());
        ledger.held = u64::MAX;
        assert!(!ledger.balances());
    }
}
