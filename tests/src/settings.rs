//! The pipeline's settings as `check` would have them by default, for whoever drives a pipeline without a configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use tributary_core::batch;
use tributary_core::model::{self, Deadband, Model, PointKey};
use tributary_core::pipeline::Config;
use tributary_core::spool::{self, WhenFull};
use tributary_core::uplink::{self, AckMode, Order};
use tributary_protocols::value::{PointType, Scale};

/// With the shortest names, and everything of chance from the seed.
#[must_use]
pub fn usual(seed: u64) -> Config {
    Config {
        batch: batch::Config { max_age: Duration::from_secs(1), max_bytes: 48 << 10 },
        spool: spool::Config { max_disk: 256 << 20, commit: Duration::from_secs(1), when_full: WhenFull::DropOldest },
        uplink: uplink::Config {
            ack: AckMode::Receiver,
            order: Order::LiveFirst,
            reconnect_max: Duration::from_secs(300),
            window_batches: 16,
            window_bytes: 64 << 10,
            backlog_rate: None,
        },
        version: "0".into(),
        config_sha256: String::new(),
        boot_id: u128::from(seed).to_le_bytes(),
        seed,
    }
}

/// One point, polled every second.
#[must_use]
pub fn one_point() -> Model {
    let point = model::Point {
        device: 0,
        name: "p".into(),
        ty: PointType::Uint64,
        unit: String::new(),
        scale: Scale::default(),
        description: String::new(),
        source: "holding:0:u64".into(),
        counter: false,
        counter_modulus: 0,
        max_rate: None,
        scale_from: None,
        labels: BTreeMap::new(),
        extra: BTreeMap::new(),
        valid: None,
        bad: Vec::new(),
        deadband: Deadband::None,
        heartbeat: None,
        window: None,
        raw: false,
    };
    Model {
        devices: vec![model::Device { name: "d".into(), protocol: "modbus".into(), ..Default::default() }],
        points: vec![point],
        requests: vec![model::Request { device: 0, points: vec![PointKey(0)], period_ms: 1_000 }],
    }
}
