//! The course of the demo: starts the parts, breaks them at their time, stops, and asks for the proof.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tributary::status::{Status, ask};

use crate::parts::{Process, free_port};
use crate::plant::{Sensor, Slave, sensor};
use crate::proof::{self, Proof};
use crate::view::View;

/// How long parts may take to come up, to drain and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(400);

/// Runs it all. The exit code says whether law and database agree.
pub(crate) fn tell(seconds: u64, json: bool, keep: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tributary-demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let told = runtime.block_on(async {
        tokio::select! {
            told = course(seconds, json, keep) => told,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    });
    match told {
        Ok(proof) => {
            if json {
                println!("{}", serde_json::to_string(&proof).unwrap_or_default());
            } else {
                println!("{}", words(&proof));
            }
            for disagreement in &proof.disagreements {
                eprintln!("tributary-demo: {disagreement}");
            }
            if proof.disagreements.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("tributary-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The places of one run.
struct Stage {
    folder: PathBuf,
    database: PathBuf,
    socket: PathBuf,
    slaves: Vec<Slave>,
    sensors: Vec<Sensor>,
    broker: Process,
    agent: Process,
    receiver: Process,
    /// The cell's own broker, which nobody kills: what it acknowledged it has to keep.
    _cell: Process,
    began: Instant,
}

async fn course(seconds: u64, json: bool, keep: bool) -> anyhow::Result<Proof> {
    let folder = tempfile::Builder::new().prefix("tributary-demo-").tempdir().context("no temporary directory")?;
    let place = folder.path().to_path_buf();
    if keep {
        eprintln!("working directory: {}", folder.keep().display());
    }
    let mut view = View::new(json);
    let mut stage = Stage::set(&place).await?;
    view.say(0, "plant, broker, receiver and agent run");
    let at = |share: f64| (seconds as f64 * share) as u64;
    stage.watch(&mut view, at(0.30), seconds).await?;
    stage.broker.kill().context("the broker")?;
    view.say(stage.second(), "broker killed (SIGKILL): batches wait on disk");
    stage.watch(&mut view, at(0.48), seconds).await?;
    stage.broker.restart().context("the broker")?;
    view.say(stage.second(), "broker is back: new batches first, the backlog beside them");
    stage.watch(&mut view, at(0.68), seconds).await?;
    stage.agent.kill().context("the agent")?;
    view.say(stage.second(), "agent killed (SIGKILL): what was only in memory will be named");
    stage.watch(&mut view, at(0.74), seconds).await?;
    stage.agent.restart().context("the agent")?;
    view.say(stage.second(), "agent is back");
    stage.watch(&mut view, seconds, seconds).await?;
    view.say(stage.second(), "stopping: everything is sent, then counted");
    stage.stop(&mut view, seconds).await?;
    let proof = proof::read(&stage.database, &stage.slaves, &stage.sensors).context("the receiver's database")?;
    drop(stage);
    Ok(proof)
}

impl Stage {
    #[expect(clippy::disallowed_methods, reason = "the demo is the world outside: it has a clock of its own")]
    async fn set(folder: &Path) -> anyhow::Result<Self> {
        let slaves = vec![Slave::new("press", 100, 1), Slave::new("furnace", 200, 2)];
        let mut ports = Vec::new();
        for slave in &slaves {
            ports.push(slave.serve().await.context("a simulated slave")?);
        }
        let (port, cell_port) = (free_port()?, free_port()?);
        let log = |part: &str| folder.join(format!("{part}.log"));
        let database = folder.join("centre.sqlite");
        let start = |name: &str, arguments: Vec<String>| {
            Process::start(arguments, log(name)).with_context(|| format!("the {name}"))
        };
        let broker = start("broker", vec!["broker".into(), port.to_string()])?;
        let cell = start("cell", vec!["broker".into(), cell_port.to_string()])?;
        eventually("the brokers", || {
            [port, cell_port].iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok())
        })
        .await?;
        let place = database.display().to_string();
        let receiver = start("receiver", vec!["receiver".into(), port.to_string(), place])?;
        let config = folder.join("agent.toml");
        std::fs::write(&config, configuration(folder, port, cell_port, &slaves, &ports))?;
        let agent = start("agent", vec!["agent".into(), config.display().to_string()])?;
        let socket = folder.join("status.sock");
        eventually("the agent", || ask(&socket).is_ok_and(|status| status.buses.iter().all(|bus| bus.connected)))
            .await?;
        let sensors = ["north", "south"]
            .into_iter()
            .zip(3..)
            .map(|(name, seed)| sensor(name, cell_port, Duration::from_millis(250), seed))
            .collect();
        let folder = folder.to_path_buf();
        Ok(Self {
            folder,
            database,
            socket,
            slaves,
            sensors,
            broker,
            agent,
            receiver,
            _cell: cell,
            began: Instant::now(),
        })
    }

    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Shows how things are until that second, and sees to it that no part ends unasked.
    async fn watch(&mut self, view: &mut View, until: u64, of: u64) -> anyhow::Result<()> {
        while self.second() < until {
            let status = self.status().await;
            view.draw(self.second(), of, status.as_ref(), &self.database);
            pause().await;
        }
        if let Some(code) = self.receiver.ended()? {
            bail!("the receiver ended with {code}; see {}", self.folder.join("receiver.log").display());
        }
        Ok(())
    }

    async fn status(&self) -> Option<Status> {
        let socket = self.socket.clone();
        tokio::task::spawn_blocking(move || ask(&socket).ok()).await.ok()?
    }

    /// A clean stop of the agent, once the spool is empty, and the receiver's last word of it.
    async fn stop(&mut self, view: &mut View, of: u64) -> anyhow::Result<()> {
        for sensor in &self.sensors {
            sensor.stop();
        }
        pause().await;
        let began = self.second();
        while self.second() < began + PATIENCE.as_secs() {
            let status = self.status().await;
            view.draw(self.second(), of, status.as_ref(), &self.database);
            if status.is_some_and(|status| status.spool.records <= 1 && status.uplink.healthy) {
                break;
            }
            pause().await;
        }
        self.agent.ask_to_stop()?;
        let agent = &mut self.agent;
        eventually("the agent to stop", || matches!(agent.ended(), Ok(Some(_)) | Err(_))).await?;
        if let Some(code) = self.agent.ended()?.filter(|code| *code != 0) {
            bail!("the agent ended with {code}; see {}", self.folder.join("agent.log").display());
        }
        let database = self.database.clone();
        eventually("the agent's last status at the receiver", || {
            let state = proof::open(&database).and_then(|connection| {
                connection.query_row("SELECT state FROM agent", [], |row| row.get::<_, String>(0))
            });
            state.is_ok_and(|state| state == "offline")
        })
        .await
    }
}

/// Asks again and again, within patience.
#[expect(clippy::disallowed_methods, reason = "the demo is the world outside: it has a clock of its own")]
async fn eventually(what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !ready() {
        if began.elapsed() > PATIENCE {
            bail!("{what}: not within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(TICK / 4).await;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a view is redrawn now and then")]
async fn pause() {
    tokio::time::sleep(TICK).await;
}

/// The agent's configuration. The demo's clock is trusted, so that what a kill takes is counted exactly.
fn configuration(folder: &Path, port: u16, cell: u16, slaves: &[Slave], ports: &[u16]) -> String {
    let mut text = format!(
        r#"[agent]
site = "demo"
id = "gateway-1"
state_dir = "{}"
time_sync = "trust"

[uplink]
url = "mqtt://127.0.0.1:{port}"
reconnect_max = "2s"

[[mqtt]]
name = "cell"
url = "mqtt://127.0.0.1:{cell}"
[[mqtt.point]]
name = "{{1}}/n"
topic = "cell/+/climate"
value = "/n"
type = "i64"
[[mqtt.point]]
name = "{{1}}/temperature"
topic = "cell/+/climate"
value = "/value"
type = "f64"
unit = "Cel"
window = {{ every = "5s", stats = ["mean", "min", "max"] }}
"#,
        folder.display()
    );
    for (slave, port) in slaves.iter().zip(ports) {
        text += &format!(
            r#"
[[bus]]
name = "{name}-bus"
tcp = "127.0.0.1:{port}"
timeout = "500ms"
[[device]]
name = "{name}"
bus = "{name}-bus"
unit_id = 1
path = "demo/hall-1/{name}"
addressing = "zero"
order = "ABCD"
period = "{period}ms"
point = [
  {{ name = "n", table = "holding", address = 0, type = "u32" }},
  {{ name = "temperature", table = "holding", address = 2, type = "u16", scale = 0.1, unit = "Cel", valid = [0.0, 1200.0] }},
  {{ name = "current", table = "holding", address = 3, type = "u16", scale = 0.01, unit = "A" }},
  {{ name = "energy", table = "holding", address = 4, type = "u32", unit = "W.h", counter = true }},
  {{ name = "pressure", table = "holding", address = 6, type = "f32", unit = "bar", deadband = {{ abs = 0.05 }}, heartbeat = "10s" }},
  {{ name = "running", table = "holding", address = 8, type = "u16" }},
  {{ name = "vibration", table = "holding", address = 10, type = "u16", window = {{ every = "5s", stats = ["mean", "min", "max"] }} }},
"#,
            name = slave.name,
            period = slave.period_ms
        );
        for address in 11..20 {
            text += &format!(
                "  {{ name = \"zone-{address}\", table = \"holding\", address = {address}, type = \"u16\" }},\n"
            );
        }
        text += "]\n";
    }
    text
}

fn words(proof: &Proof) -> String {
    let mut text = format!(
        "\nThe proof, read from the receiver's database\n\
         \x20 due            {:>8} readings of polls and acknowledged messages, by the plant's own notes\n\
         \x20 in the database{:>8}, twice {}, missing {}\n",
        proof.due, proof.readings_in_db, proof.duplicates, proof.missing
    );
    for (reason, readings) in &proof.lost_by_reason {
        text += &format!("  lost           {readings:>8} {reason}, each span named\n");
    }
    text += &format!(
        "  law            {} admitted = {} delivered + {} held + {} filtered + {} lost\n",
        proof.admitted, proof.delivered, proof.held, proof.filtered, proof.lost
    );
    text += &format!(
        "  on the wire    {:.2} bytes a reading ({} batches, {} bytes, envelopes included)\n",
        proof.bytes_per_reading, proof.batches, proof.bytes
    );
    text += if proof.disagreements.is_empty() { "  Everything agrees." } else { "  NOT everything agrees:" };
    text
}
