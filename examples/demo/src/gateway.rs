//! The agent's configuration, made from the same tables as the plant.
//!
//! The demo's clock is trusted (`time_sync`), so that what a kill takes is counted exactly; and the agent tries a broker
//! that is gone at least every 2 s, because nobody wants to watch for five minutes.

use std::fmt::Write;
use std::path::Path;

use crate::machines::{Coding, Machine, Sent};

/// How long the agent waits for an answer of a slave.
pub(crate) const TIMEOUT_MS: i64 = 500;

/// The whole file. `broker` is the uplink's port, `cell` that of the sensors' broker; each machine comes with its port.
pub(crate) fn configuration(folder: &Path, broker: u16, cell: u16, machines: &[(&Machine, u16)]) -> String {
    let mut text = format!(
        r#"[agent]
site = "demo"
id = "gateway-1"
state_dir = {:?}
time_sync = "trust"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
reconnect_max = "2s"

[[mqtt]]
name = "cell"
url = "mqtt://127.0.0.1:{cell}"
point = [
  {{ name = "{{1}}/n", topic = "cell/+/climate", value = "/n", type = "i64" }},
  {{ name = "{{1}}/temperature", topic = "cell/+/climate", value = "/temperature", type = "f64", unit = "Cel", window = {{ every = "5s", stats = ["mean", "min", "max"] }} }},
  {{ name = "{{1}}/humidity", topic = "cell/+/climate", value = "/humidity", type = "f64", unit = "%", deadband = {{ abs = 0.5 }}, heartbeat = "10s" }},
]
"#,
        folder.display().to_string()
    );
    for (machine, port) in machines {
        text += &device(machine, *port);
    }
    text
}

fn device(machine: &Machine, port: u16) -> String {
    let (name, period) = (machine.name, machine.period_ms);
    let mut text = format!(
        r#"
[[bus]]
name = "{name}-bus"
tcp = "127.0.0.1:{port}"
timeout = "{TIMEOUT_MS}ms"

[[device]]
name = "{name}"
bus = "{name}-bus"
unit_id = 1
path = "demo/hall-1/{name}"
addressing = "zero"
order = "ABCD"
period = "{period}ms"
point = [
"#
    );
    for (address, point) in machine.addresses() {
        let coding = match point.coding {
            Coding::U16 => "u16",
            Coding::U32 => "u32",
            Coding::F32 => "f32",
        };
        let sent = match point.sent {
            Sent::Each => String::new(),
            Sent::Moved(by) => format!(r#", deadband = {{ abs = {by:?} }}, heartbeat = "10s""#),
            Sent::Folded => r#", window = { every = "5s", stats = ["mean", "min", "max"] }"#.to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            r#"  {{ name = "{}", table = "holding", address = {address}, type = "{coding}", scale = {:?}, unit = "{}"{sent} }},"#,
            point.name, point.scale, point.unit
        );
    }
    text + "]\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::{FURNACE, METER, PRESS};
    use tributary::config::{Occasion, load};

    #[test]
    fn the_agent_takes_it_and_asks_each_machine_once_a_period() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let machines = [(&PRESS, 1_502), (&FURNACE, 1_503), (&METER, 1_504)];
        std::fs::write(&file, configuration(folder.path(), 1_883, 1_884, &machines)).unwrap();
        let (config, report) = load(&file, Occasion::Run);
        assert!(report.errors.is_empty(), "{report:?}");
        let config = config.unwrap();
        assert_eq!(config.model.requests.len(), machines.len());
        assert_eq!(config.brokers.len(), 1);
    }
}
