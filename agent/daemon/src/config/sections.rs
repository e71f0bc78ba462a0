//! The sections `[agent]`, `[uplink]`, `[batch]` and `[spool]`: keys, defaults, and what each value must satisfy.
//!
//! Defaults stand in the `Default` of each struct and nowhere else; `sample.toml` shows them, and a test compares the
//! two. A required key is one whose default is empty. Each `check` looks at values only; files are looked at in
//! `files.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tributary_core::limits::MAX_BODY;
use tributary_core::{batch, spool, uplink};
use tributary_protocols::units::{Size, Span};

use super::endpoint::{self, Endpoint};
use super::files::FileRef;
use super::{Check, topic};

/// `[agent]`: who this gateway is and where it keeps its state.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The site, `[A-Za-z0-9_-]{1,64}`; a level of every topic. Required.
    pub site: String,
    /// The agent, `[A-Za-z0-9_-]{1,64}`; a level of every topic, and the name in its certificate. Required.
    pub id: String,
    /// Where the spool is; relative to the configuration's folder.
    pub state_dir: PathBuf,
    /// Where the status socket is; the `state_dir` if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_dir: Option<PathBuf>,
    /// Where profiles are looked for, in this order.
    pub profiles: Vec<PathBuf>,
    /// How the agent knows that the clock is right: `"auto"`, `"trust"`, or a file that the clock's daemon renews.
    pub time_sync: String,
    /// Files that tell this machine from another; none: a copy of the state is not noticed.
    pub machine: Vec<PathBuf>,
    /// What is logged: a level, or directives such as `"info,tributary::mqtt=debug"`.
    pub log: String,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            site: String::new(),
            id: String::new(),
            state_dir: "/var/lib/tributary".into(),
            runtime_dir: None,
            profiles: vec!["/etc/tributary/profiles".into(), "/usr/share/tributary/profiles".into()],
            time_sync: "auto".into(),
            machine: vec!["/etc/machine-id".into(), "/sys/firmware/devicetree/base/serial-number".into()],
            log: "info".into(),
        }
    }
}

/// Most bytes of a Unix socket's path on Linux: `sun_path` has 108, the last of which ends it.
const SOCKET_PATH: usize = 107;

impl AgentConfig {
    /// The status socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.as_ref().unwrap_or(&self.state_dir).join("status.sock")
    }

    pub(super) fn check(&mut self, check: &mut Check<'_, '_>) {
        for (key, value) in [("site", &self.site), ("id", &self.id)] {
            if !check.required("agent", key) {
                continue;
            }
            let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if value.is_empty() || value.len() > 64 || !value.chars().all(good) {
                check.error(
                    &format!("agent.{key}"),
                    format!("{value:?} cannot be a level of a topic"),
                    "1 to 64 of the characters A-Z a-z 0-9 _ -",
                );
            }
        }
        self.state_dir = check.resolve(&self.state_dir);
        self.runtime_dir = self.runtime_dir.as_ref().map(|dir| check.resolve(dir));
        self.profiles = self.profiles.iter().map(|dir| check.resolve(dir)).collect();
        self.machine = self.machine.iter().map(|file| check.resolve(file)).collect();
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET_PATH {
            let key = if self.runtime_dir.is_some() { "agent.runtime_dir" } else { "agent.state_dir" };
            check.error(
                key,
                format!("the status socket {} has {} bytes in its path", socket.display(), socket.as_os_str().len()),
                format!(
                    "a Unix socket takes {SOCKET_PATH}: set `runtime_dir` to a shorter path, such as \"/run/tributary\""
                ),
            );
        }
        if !self.state_dir.is_dir() {
            check.warning(
                "agent.state_dir",
                format!("{} is not there yet", self.state_dir.display()),
                "the agent makes it at its start if it may; systemd makes it with StateDirectory=tributary",
            );
        }
        if self.time_sync.contains('/') {
            self.time_sync = check.resolve(self.time_sync.as_ref()).display().to_string();
        } else if !matches!(self.time_sync.as_str(), "auto" | "trust") {
            check.error(
                "agent.time_sync",
                format!("{:?} is no source of trust in the clock", self.time_sync),
                "\"auto\", \"trust\", or the path of a file that the clock's daemon renews",
            );
        }
        if self.log.parse::<tracing_subscriber::filter::Targets>().is_err() {
            check.error(
                "agent.log",
                format!("{:?} says not what to log", self.log),
                "error, warn, info, debug or trace; also per part, as in \"info,tributary::mqtt=debug\"",
            );
        }
    }
}

/// Who frees a batch from the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// An Ack of the receiver, after its database commit.
    #[default]
    Receiver,
    /// The broker's PUBACK.
    Broker,
}

/// What goes first after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// New batches, the backlog beside them.
    #[default]
    LiveFirst,
    /// In the order of their seqs.
    OldestFirst,
}

/// The oldest TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 alone.
    #[default]
    #[serde(rename = "1.3")]
    V1_3,
}

/// `[uplink]`: the way to the broker.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UplinkConfig {
    /// `mqtts://HOST[:8883]`, or `mqtt://HOST[:1883]` without TLS. Required.
    pub url: String,
    /// What frees a batch from the spool.
    pub ack: AckMode,
    /// What goes first after an outage.
    pub order: Order,
    /// First levels of every topic.
    pub prefix: String,
    /// Certificates that sign the broker's, PEM. Required for `mqtts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<FileRef>,
    /// Lists of what the authorities have revoked, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl: Option<FileRef>,
    /// The client's certificate chain, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<FileRef>,
    /// The client's private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<FileRef>,
    /// For brokers without client certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File whose first line is the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<FileRef>,
    /// The oldest TLS that is spoken.
    pub tls_min: TlsVersion,
    /// Longest pause between two attempts to connect (contract rule 19).
    pub reconnect_max: Span,
    /// MQTT keep-alive.
    pub keep_alive: Span,
    /// Largest MQTT packet that the broker takes.
    pub max_packet: Size,
    /// Most batches unacknowledged (contract rule 6).
    pub window_batches: u16,
    /// Most bytes of bodies unacknowledged (contract rule 6).
    pub window_bytes: Size,
    /// Most bytes a second of the backlog lane; no limit if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_rate: Option<Size>,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            ack: AckMode::Receiver,
            order: Order::LiveFirst,
            prefix: "edge/v1".into(),
            ca: None,
            crl: None,
            cert: None,
            key: None,
            username: None,
            password_file: None,
            tls_min: TlsVersion::V1_3,
            reconnect_max: Span::from_secs(300),
            keep_alive: Span::from_secs(30),
            max_packet: Size::from_bytes(1 << 20),
            window_batches: 16,
            window_bytes: Size::from_bytes(64 << 10),
            backlog_rate: None,
        }
    }
}

/// What an Envelope and its topic add to a body, at the most: prefix 200 B, names 2 × 64 B, header fields 80 B.
const ENVELOPE: u64 = 512;

impl UplinkConfig {
    /// The broker, taken from `url`; `None` only before `check`.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        endpoint::parse(&self.url).ok()
    }

    /// As the pipeline's uplink takes it.
    #[must_use]
    pub fn core(&self) -> uplink::Config {
        uplink::Config {
            ack: match self.ack {
                AckMode::Receiver => uplink::AckMode::Receiver,
                AckMode::Broker => uplink::AckMode::Broker,
            },
            order: match self.order {
                Order::LiveFirst => uplink::Order::LiveFirst,
                Order::OldestFirst => uplink::Order::OldestFirst,
            },
            reconnect_max: self.reconnect_max.duration(),
            window_batches: usize::from(self.window_batches),
            window_bytes: self.window_bytes.bytes(),
            backlog_rate: self.backlog_rate.map(Size::bytes),
        }
    }

    pub(super) fn check(&mut self, batch: Option<&BatchConfig>, check: &mut Check<'_, '_>) {
        if check.required("uplink", "url") {
            match endpoint::parse(&self.url) {
                Ok(endpoint) => self.check_security(&endpoint, check),
                Err(message) => {
                    let help = "mqtts://HOST:8883, or mqtt://HOST:1883 without TLS";
                    let mut fault = check.document.fault("uplink.url", message, help);
                    fault.hide_login();
                    check.report.error(fault);
                }
            }
        }
        self.check_ranges(batch, check);
        if let Err(message) = topic::prefix(&self.prefix) {
            check.error(
                "uplink.prefix",
                message,
                "levels divided by /, as in \"edge/v1\", without + # $ and empty levels",
            );
        }
        if self.ack == AckMode::Broker {
            check.warning(
                "uplink.ack",
                "with ack = \"broker\" a batch leaves this gateway once the broker has taken it, whether or not it ever \
                 reaches a database: what the broker drops, loses in a crash or has no subscriber for is gone, and no \
                 loss is reported",
                "keep \"receiver\" wherever a receiver can answer",
            );
        }
    }

    fn check_security(&mut self, endpoint: &Endpoint, check: &mut Check<'_, '_>) {
        if endpoint.tls && self.ca.is_none() && check.absent("uplink", "ca") {
            check.error(
                "uplink.url",
                "mqtts:// needs `ca`, the certificates that sign the broker's",
                "add `ca = \"/etc/tributary/pki/ca.pem\"`",
            );
        }
        if !endpoint.tls {
            if !endpoint.is_loopback() {
                check.warning(
                    "uplink.url",
                    format!("readings travel to {} in the clear, and anyone between may forge acknowledgements, which delete data", endpoint.host),
                    "use mqtts:// with `ca`, `cert` and `key`",
                );
            }
            for key in ["ca", "crl", "cert", "key"] {
                if !check.absent("uplink", key) {
                    check.warning(
                        &format!("uplink.{key}"),
                        format!("`{key}` is not used with mqtt://"),
                        "use mqtts://, or remove it",
                    );
                }
            }
        }
        for (one, other) in [("cert", "key"), ("key", "cert"), ("password_file", "username")] {
            if !check.absent("uplink", one) && check.absent("uplink", other) {
                check.error(
                    &format!("uplink.{one}"),
                    format!("`{one}` needs `{other}` beside it"),
                    format!("add `{other}`, or remove `{one}`"),
                );
            }
        }
        check.file("uplink.ca", self.ca.as_mut(), "-----BEGIN CERTIFICATE-----", false);
        check.file("uplink.crl", self.crl.as_mut(), "-----BEGIN X509 CRL-----", false);
        check.file("uplink.cert", self.cert.as_mut(), "-----BEGIN CERTIFICATE-----", false);
        check.file("uplink.key", self.key.as_mut(), "PRIVATE KEY-----", true);
        check.certificates(self);
        check.file("uplink.password_file", self.password_file.as_mut(), "", true);
        if self.username.as_ref().is_some_and(|name| name.is_empty() || name.len() > 1_024 || name.contains('\0')) {
            check.error("uplink.username", "is no user name", "1 to 1,024 bytes");
        }
    }

    fn check_ranges(&self, batch: Option<&BatchConfig>, check: &mut Check<'_, '_>) {
        check.span("uplink.reconnect_max", self.reconnect_max, "100ms", "1d");
        check.span("uplink.keep_alive", self.keep_alive, "5s", "18h");
        check.size("uplink.max_packet", self.max_packet, "8KB", "4MB");
        check.size("uplink.window_bytes", self.window_bytes, "1KB", "16MB");
        if let Some(rate) = self.backlog_rate {
            check.size("uplink.backlog_rate", rate, "1KB", "1GB");
        }
        if !(1..=100).contains(&self.window_batches) {
            check.error(
                "uplink.window_batches",
                format!("{} batches cannot be in flight", self.window_batches),
                "1 to 100: more than 100 missing PUBACKs stall the MQTT client",
            );
        }
        if let Some(batch) = batch
            && batch.max_bytes.bytes() <= MAX_BODY as u64
            && batch.max_bytes.bytes() + ENVELOPE > self.max_packet.bytes()
        {
            check.error(
                "uplink.max_packet",
                format!(
                    "a batch of {} with its envelope does not fit into packets of {}",
                    batch.max_bytes, self.max_packet
                ),
                format!("at least batch.max_bytes + {ENVELOPE} bytes"),
            );
        }
    }
}

/// `[batch]`: when the open batch is sealed.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// At this age at the latest.
    pub max_age: Span,
    /// At this size of the body as sent.
    pub max_bytes: Size,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_age: Span::from_secs(1), max_bytes: Size::from_bytes(48 << 10) }
    }
}

impl BatchConfig {
    /// As the pipeline's batcher takes it.
    #[must_use]
    pub fn core(&self) -> batch::Config {
        batch::Config { max_age: self.max_age.duration(), max_bytes: self.max_bytes.as_len() }
    }

    pub(super) fn check(&self, check: &mut Check<'_, '_>) {
        check.span("batch.max_age", self.max_age, "10ms", "1h");
        let ceiling = Size::from_bytes(MAX_BODY as u64);
        if !(1_024..=ceiling.bytes()).contains(&self.max_bytes.bytes()) {
            check.error(
                "batch.max_bytes",
                format!("{} is out of range", self.max_bytes),
                format!("\"1KB\" to \"{ceiling}\", the ceiling of a body (MAX_BODY): brokers take packets of 128KB"),
            );
        }
    }
}

/// What happens when the spool has reached `max_disk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest batches are dropped, and their loss is reported.
    #[default]
    DropOldest,
    /// Nothing is polled until there is room; due polls are lost as STORE_UNAVAILABLE.
    StopPolling,
}

/// `[spool]`: what is kept on disk until it is acknowledged.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Most bytes on disk.
    pub max_disk: Size,
    /// Least spacing of commits.
    pub commit: Span,
    /// What happens at `max_disk`.
    pub when_full: WhenFull,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { max_disk: Size::from_bytes(256 << 20), commit: Span::from_secs(1), when_full: WhenFull::DropOldest }
    }
}

impl SpoolConfig {
    /// As the pipeline's spool takes it.
    #[must_use]
    pub fn core(&self) -> spool::Config {
        spool::Config {
            max_disk: self.max_disk.bytes(),
            commit: self.commit.duration(),
            when_full: match self.when_full {
                WhenFull::DropOldest => spool::WhenFull::DropOldest,
                WhenFull::StopPolling => spool::WhenFull::StopPolling,
            },
        }
    }

    pub(super) fn check(&self, check: &mut Check<'_, '_>) {
        // A directory takes a sixteenth of it, and the active one four times that: less leaves nothing to hold back.
        check.size("spool.max_disk", self.max_disk, "4MB", "1024GB");
        check.span("spool.commit", self.commit, "10ms", "60s");
    }
}
