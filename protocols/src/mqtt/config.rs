//! What an MQTT device looks like in TOML: a broker, and rows that pick values out of its messages.
//!
//! Serde reads the keys here; [`resolve`] checks what they mean. sample.toml is the manual of the keys.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use crate::mqtt::resolve::{BrokerSpec, Rule, resolve};
use crate::number::Number;
use crate::point::{DeadbandRow, WindowRow};
use crate::units::{Size, Span};

/// `[[mqtt]]`: a broker.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Unique among devices: the broker is the device of its points.
    pub name: String,
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`; ports 1883 and 8883 if absent.
    pub url: String,
    /// ISA-95 asset path.
    #[serde(default)]
    pub path: String,
    /// Default `tributary-AGENT-NAME`. The broker keeps its session under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Where the broker asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// A file whose first line is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// With `mqtts`: the authority that signed the broker's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// With `mqtts`: the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// With `mqtts`: the client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Silence after which the connection is tested; 1 s to 18 h.
    #[serde(default = "Broker::default_keep_alive")]
    pub keep_alive: Span,
    /// Larger messages are counted and dropped; 1 B to 1 MB.
    #[serde(default = "Broker::default_max_payload")]
    pub max_payload: Size,
    /// Points that wildcards may make, 1 to 100,000; more topics are counted and dropped.
    #[serde(default = "Broker::default_max_topics")]
    pub max_topics: u32,
    /// Longest time between two attempts to connect; 100 ms to 1 h.
    #[serde(default = "Broker::default_reconnect_max")]
    pub reconnect_max: Span,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What to pick out.
    #[serde(default)]
    pub point: Vec<PointRow>,
}

impl Broker {
    fn default_keep_alive() -> Span {
        Span::from_secs(30)
    }

    fn default_max_payload() -> Size {
        Size::from_bytes(64 << 10)
    }

    fn default_max_topics() -> u32 {
        1_000
    }

    fn default_reconnect_max() -> Span {
        Span::from_secs(30)
    }
}

/// `[[mqtt.point]]`: a rule that makes readings out of messages.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PointRow {
    /// `{1}` stands for what the first wildcard of the topic matched, and so on; each must be named.
    pub name: String,
    /// A topic filter, `+` and `#` allowed.
    pub topic: String,
    /// JSON pointer (RFC 6901) to the value; `""` = the payload itself is the value.
    #[serde(default)]
    pub value: String,
    /// JSON pointer to its stamp; without it the time of arrival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// What the value is.
    #[serde(rename = "type")]
    pub ty: ValueType,
    /// UCUM.
    #[serde(default)]
    pub unit: String,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// real = raw · scale + offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// Real values outside are marked OUT_OF_RANGE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<[f64; 2]>,
    /// Values as published that mean "not available".
    #[serde(default)]
    pub bad: Vec<Number>,
    /// Withholds what hardly changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadband: Option<DeadbandRow>,
    /// At the latest after this long a reading passes the deadband.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Span>,
    /// Folds readings into summaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowRow>,
    /// With a window: also send the readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<bool>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Names of an integer's values.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the value only grows.
    #[serde(default)]
    pub counter: bool,
    /// Where the counter rolls over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_modulus: Option<u64>,
}

/// What a published value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// true or false.
    Bool,
    /// 0 to 2^16 − 1.
    U16,
    /// −2^15 to 2^15 − 1.
    I16,
    /// 0 to 2^32 − 1.
    U32,
    /// −2^31 to 2^31 − 1.
    I32,
    /// 0 to 2^64 − 1.
    U64,
    /// −2^63 to 2^63 − 1.
    I64,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// Text.
    String,
}

impl ValueType {
    /// As configuration names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::String => "string",
        }
    }
}
