//! The JSON Schemas of configuration and profile, made from the types that are read.
//!
//! Only a test makes them (`tests/tests/schema.rs`); the command prints the files that it keeps up to date.

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use tributary_protocols::modbus::config::{Bus, Device, Profile};
use tributary_protocols::mqtt::config::Broker;

use super::{AgentConfig, BatchConfig, SpoolConfig, UplinkConfig};

/// A whole configuration, as `load` reads it part by part.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "its shape is what counts")]
struct Configuration {
    agent: AgentConfig,
    uplink: UplinkConfig,
    #[serde(default)]
    batch: BatchConfig,
    #[serde(default)]
    spool: SpoolConfig,
    #[serde(default)]
    bus: Vec<Bus>,
    #[serde(default)]
    device: Vec<Device>,
    #[serde(default)]
    mqtt: Vec<Broker>,
}

/// Of a configuration file.
#[must_use]
pub fn configuration() -> Schema {
    schema_for!(Configuration)
}

/// Of a profile file.
#[must_use]
pub fn profile() -> Schema {
    schema_for!(Profile)
}
