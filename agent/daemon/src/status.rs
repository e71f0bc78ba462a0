//! What the running agent says of itself, and the Unix socket over which it says it.
//!
//! One connection, one JSON object, then the end of the stream. Nothing is read from a client, so nothing can be
//! asked wrongly. [`serve`] asks the owner of the state for a fresh [`Status`] over a channel: no copy is kept and no
//! lock is held.
//!
//! Limits: [`CLIENTS`] connections at a time, [`PATIENCE`] for each; a path of 107 bytes (checked with the
//! configuration); the socket has mode 0600, and the folder around it decides who may reach it at all.

mod source;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as ClientStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::TimeQuality;
use crate::config::AckMode;

pub use source::Source;

/// Most connections served at a time; more wait.
const CLIENTS: usize = 8;

/// How long the owner may take to answer, and a client to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer a client takes: 10,000 devices of some 200 bytes, and room.
const LARGEST: u64 = 16 * 1024 * 1024;

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
}

/// A bus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bus {
    /// As configured.
    pub name: String,
    /// Share of the time in which a request was out, 0 to 1.
    pub utilisation: f64,
    /// Requests sent.
    pub requests: u64,
    /// Requests without an answer in time.
    pub timeouts: u64,
    /// Whether it has a connection.
    pub connected: bool,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// A wish for a fresh status: the owner of the state sends it back.
pub type Ask = oneshot::Sender<Status>;

/// Takes the socket at `path`. A socket left behind by an agent that is gone is replaced; one that answers is not.
/// Must be called within a tokio runtime.
///
/// # Errors
/// `AddrInUse` if an agent answers there or something else than a socket is in the way; else those of the file system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let message = format!("{} is in the way and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Ok(_) => {
            if ClientStream::connect(path).is_ok() {
                let message = format!("another agent answers at {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
            }
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers every connection with a status asked of `owner`, until `owner` is gone. To be spawned; ends by being dropped.
pub async fn serve(listener: UnixListener, owner: mpsc::Sender<Ask>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    while !owner.is_closed() {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a client that is gone already: give others a turn.
                Err(_) => {
                    tokio::task::yield_now().await;
                    continue;
                }
            },
            () = owner.closed() => return,
        };
        let owner = owner.clone();
        tokio::spawn(async move {
            let _ = timeout(PATIENCE, answer(stream, owner)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, owner: mpsc::Sender<Ask>) -> io::Result<()> {
    let (reply, status) = oneshot::channel();
    if owner.send(reply).await.is_ok()
        && let Ok(status) = status.await
    {
        let mut text = serde_json::to_vec(&status)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
    }
    stream.shutdown().await
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent is running: nothing answers at {path}")]
    NotRunning {
        /// The socket.
        path: String,
    },
    /// The socket is there, but not for us.
    #[error("the agent cannot be asked at {path}: {source}")]
    Refused {
        /// The socket.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// It answered with something else, or not at all.
    #[error("the agent at {path} gave no status: {reason}")]
    NoStatus {
        /// The socket.
        path: String,
        /// What came.
        reason: String,
    },
}

/// Asks the agent that listens at `path`; waits at most 10 s.
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path) -> Result<Status, AskError> {
    let name = || path.display().to_string();
    let mut stream = ClientStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning { path: name() },
        _ => AskError::Refused { path: name(), source },
    })?;
    let mut text = Vec::new();
    let read =
        stream.set_read_timeout(Some(2 * PATIENCE)).and_then(|()| stream.by_ref().take(LARGEST).read_to_end(&mut text));
    let reason = match read {
        Ok(0) => "it closed the connection".to_owned(),
        Ok(_) => match serde_json::from_slice(&text) {
            Ok(status) => return Ok(status),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    Err(AskError::NoStatus { path: name(), reason })
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
            serde_json::json!({ "connected": false, "healthy": false, "last_ack_ms": null, "reconnects": 0, "ack": "receiver" })
        );
        assert_eq!(
            json["spool"],
            serde_json::json!({ "disk_bytes": 0, "records": 0, "oldest_ms": null, "quarantined": 0 })
        );
        assert_eq!(
            json["buses"][0],
            serde_json::json!({ "name": "plc-net", "utilisation": 0.0, "requests": 0, "timeouts": 0, "connected": false })
        );
        assert_eq!(
            json["devices"][0],
            serde_json::json!({ "name": "tank", "state": "ok", "polls_due": 0, "polls_ok": 0, "last_error": null })
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

    #[tokio::test]
    async fn an_agent_answers_each_that_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        assert!(matches!(ask(&path), Err(AskError::NotRunning { .. })));
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (owner, mut asks) = mpsc::channel::<Ask>(1);
        let server = tokio::spawn(serve(listener, owner));
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let path = path.clone();
                tokio::task::spawn_blocking(move || ask(&path))
            })
            .collect();
        for _ in 0..20 {
            asks.recv().await.unwrap().send(sample()).unwrap();
        }
        for client in clients {
            assert_eq!(client.await.unwrap().unwrap(), sample());
        }
        assert_eq!(bind(&path).expect_err("one agent a socket").kind(), io::ErrorKind::AddrInUse);
        drop(asks);
        server.await.unwrap();
        bind(&path).expect("a socket left behind is replaced");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).expect_err("in the way").kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn an_agent_that_is_going_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let (owner, mut asks) = mpsc::channel::<Ask>(1);
        let server = tokio::spawn(serve(bind(&path).unwrap(), owner));
        let client = tokio::task::spawn_blocking(move || ask(&path));
        drop(asks.recv().await.unwrap());
        assert!(matches!(client.await.unwrap(), Err(AskError::NoStatus { .. })));
        drop(asks);
        server.await.unwrap();
    }
}
