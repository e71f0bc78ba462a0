//! The course of the demo: starts the parts, breaks them at their time, stops, and asks for the proof.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tributary::{socket, status::Status};

use crate::gateway::configuration;
use crate::machines::{FURNACE, METER, PRESS};
use crate::narrator::Narrator;
use crate::parts::{self, Process, free_port};
use crate::plant::{Slave, now_ms};
use crate::proof::{self, Marks, Proof};
use crate::sensors::Sensor;
use crate::view::View;

/// How long parts may take to come up, to drain and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(400);
/// Batches that wait while all is well: the newest, and one whose Ack is on its way.
const AT_REST: u64 = 2;
/// What a shell gives for SIGINT.
const INTERRUPTED: u8 = 130;

/// What happens, and when: a share of the whole time.
const COURSE: [(f64, Turn); 6] = [
    (0.10, Turn::SlaveFallsSilent),
    (0.24, Turn::SlaveSpeaks),
    (0.30, Turn::BrokerDies),
    (0.48, Turn::BrokerReturns),
    (0.66, Turn::AgentDies),
    (0.72, Turn::AgentReturns),
];

#[derive(Clone, Copy)]
enum Turn {
    SlaveFallsSilent,
    SlaveSpeaks,
    BrokerDies,
    BrokerReturns,
    AgentDies,
    AgentReturns,
}

/// Runs it all. The exit code says whether law and database agree.
pub(crate) fn tell(seconds: u64, json: bool, keep: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let told = runtime.block_on(async {
        let interrupted = interruption()?;
        tokio::select! {
            told = play(seconds, json, keep) => told.map(Some),
            () = interrupted => Ok(None),
        }
    });
    match told {
        Ok(Some(proof)) => {
            println!("{}", if json { serde_json::to_string(&proof).unwrap_or_default() } else { proof.words() });
            for disagreement in &proof.disagreements {
                eprintln!("tributary-demo: {disagreement}");
            }
            if proof.disagreements.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(None) => {
            eprintln!("tributary-demo: interrupted; every part of it is ended");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("tributary-demo: {error:#}");
    ExitCode::FAILURE
}

/// Resolves when somebody wants the demo to end.
fn interruption() -> anyhow::Result<impl Future<Output = ()>> {
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind)?);
    }
    Ok(std::future::poll_fn(move |context| {
        let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    }))
}

/// Says where the working directory is, last of all.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        eprintln!("tributary-demo: kept {}", self.0.display());
    }
}

/// Everything from an empty directory to the proof. Given up half-way, it leaves nothing running and nothing on disk.
async fn play(seconds: u64, json: bool, keep: bool) -> anyhow::Result<Proof> {
    let mut builder = tempfile::Builder::new();
    let folder = builder.prefix("tributary-demo-").disable_cleanup(keep).tempdir().context("no temporary directory")?;
    let _kept = keep.then(|| Kept(folder.path().to_path_buf()));
    let mut view = View::new(&folder.path().join("centre.sqlite"), seconds, json);
    let told = async {
        let mut stage = Stage::set(folder.path()).await?;
        stage.perform(&mut view, seconds).await
    }
    .await;
    drop(view);
    if !told.as_ref().is_ok_and(|proof| proof.disagreements.is_empty()) {
        eprint!("{}", parts::last_words(folder.path()));
    }
    told
}

/// The places of one run.
struct Stage {
    database: PathBuf,
    socket: PathBuf,
    slaves: Vec<Arc<Slave>>,
    sensors: Vec<Sensor>,
    broker: Process,
    agent: Process,
    receiver: Process,
    /// The cell's own broker, which nobody kills: rumqttd forgets everything, and what a broker acknowledged to a sensor
    /// and then forgot no agent could have saved.
    cell: Process,
    narrator: Narrator,
    marks: Marks,
    began: Instant,
}

impl Stage {
    #[expect(clippy::disallowed_methods, reason = "the demo is the world outside: it has a clock of its own")]
    async fn set(folder: &Path) -> anyhow::Result<Self> {
        let (mut slaves, mut machines) = (Vec::new(), Vec::new());
        for (machine, seed) in [&PRESS, &FURNACE, &METER].into_iter().zip(1..) {
            let (slave, port) = Slave::serve(machine, seed).await.context("a simulated slave")?;
            slaves.push(slave);
            machines.push((machine, port));
        }
        let (port, cell_port) = (free_port()?, free_port()?);
        let (database, config) = (folder.join("centre.sqlite"), folder.join("agent.toml"));
        std::fs::write(&config, configuration(folder, port, cell_port, &machines))?;
        let start = |name, arguments: &[&str]| {
            let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
            Process::start(name, arguments, folder).with_context(|| format!("the {name}"))
        };
        let broker = start("broker", &["broker", &port.to_string()])?;
        let cell = start("cell", &["broker", &cell_port.to_string()])?;
        eventually("the brokers", || {
            [port, cell_port].iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok())
        })
        .await?;
        let receiver = start("receiver", &["receiver", &port.to_string(), &database.display().to_string()])?;
        let agent = start("agent", &["agent", &config.display().to_string()])?;
        let socket = folder.join("status.sock");
        eventually("the agent", || {
            socket::status(&socket).is_ok_and(|status| status.buses.iter().all(|bus| bus.connected))
        })
        .await?;
        let sensors = ["north", "south", "west"].into_iter().zip(11..);
        let sensors = sensors.map(|(name, seed)| Sensor::start(name, cell_port, seed)).collect();
        let (narrator, marks, began) = (Narrator::default(), Marks::default(), Instant::now());
        Ok(Self { database, socket, slaves, sensors, broker, agent, receiver, cell, narrator, marks, began })
    }

    async fn perform(&mut self, view: &mut View, seconds: u64) -> anyhow::Result<Proof> {
        view.say(0, "3 Modbus slaves, 3 MQTT sensors, broker, receiver and agent run");
        for (share, turn) in COURSE {
            self.watch(view, Duration::from_secs(seconds).mul_f64(share)).await?;
            view.say(self.second(), self.turn(turn)?);
        }
        self.watch(view, Duration::from_secs(seconds)).await?;
        view.say(self.second(), "the sensors stop; the agent sends what it has, then gets a SIGTERM");
        self.stop(view).await?;
        proof::read(&self.database, &self.slaves, &self.sensors, self.marks).context("the receiver's database")
    }

    /// Does it, and says what was done.
    fn turn(&mut self, turn: Turn) -> anyhow::Result<&'static str> {
        Ok(match turn {
            Turn::SlaveFallsSilent => {
                self.meter(true);
                "the meter falls silent: it takes requests and answers none"
            }
            Turn::SlaveSpeaks => {
                self.meter(false);
                "the meter would answer again; the agent tries it now and then"
            }
            Turn::BrokerDies => {
                self.broker.kill().context("the broker")?;
                "the broker is killed (SIGKILL)"
            }
            Turn::BrokerReturns => {
                self.broker.restart().context("the broker")?;
                "the broker is back, empty: new batches go first, the backlog beside"
            }
            Turn::AgentDies => {
                self.agent.kill().context("the agent")?;
                self.marks.killed = now_ms();
                self.narrator.forget();
                "the agent is killed (SIGKILL): its last commit is a second old at most"
            }
            Turn::AgentReturns => {
                self.marks.restarted = now_ms();
                self.agent.restart().context("the agent")?;
                "the agent is back: it has to name what was in memory, and unmade polls"
            }
        })
    }

    fn meter(&self, silent: bool) {
        for slave in self.slaves.iter().filter(|slave| slave.machine.name == METER.name) {
            slave.be_silent(silent);
        }
    }

    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Shows how things are until then, and sees to it that no part ends unasked.
    async fn watch(&mut self, view: &mut View, until: Duration) -> anyhow::Result<()> {
        while let Some(left) = until.checked_sub(self.began.elapsed()) {
            self.look(view).await?;
            pause(left.min(TICK)).await;
        }
        Ok(())
    }

    async fn look(&mut self, view: &mut View) -> anyhow::Result<Option<Status>> {
        for part in [&mut self.broker, &mut self.cell, &mut self.receiver, &mut self.agent] {
            part.look()?;
        }
        if let Some(sensor) = self.sensors.iter().find(|sensor| sensor.failed()) {
            bail!("the sensor {} has lost the cell's broker", sensor.name);
        }
        let socket = self.socket.clone();
        let status = tokio::task::spawn_blocking(move || socket::status(&socket).ok()).await?;
        if let Some(status) = &status {
            for line in self.narrator.compare(status) {
                view.say(self.second(), &line);
            }
        }
        view.draw(self.second(), status.as_ref());
        Ok(status)
    }

    /// A clean stop of the agent, once everything has come through, and the receiver's last word of it.
    async fn stop(&mut self, view: &mut View) -> anyhow::Result<()> {
        for sensor in &self.sensors {
            sensor.stop();
        }
        pause(TICK).await;
        let until = self.began.elapsed() + PATIENCE;
        while self.began.elapsed() < until {
            let status = self.look(view).await?;
            let at_rest = status.is_some_and(|status| status.uplink.healthy && status.spool.records <= AT_REST);
            if at_rest && proof::has_every_message(&self.database, &self.sensors) {
                break;
            }
            pause(TICK).await;
        }
        self.marks.stopped = now_ms();
        self.agent.ask_to_stop().context("the agent")?;
        let agent = &mut self.agent;
        eventually("the agent's end", || !matches!(agent.ended(), Ok(None))).await?;
        if let Some(status) = self.agent.ended()?.filter(|status| !status.success()) {
            bail!("the agent did not stop cleanly: {status}");
        }
        eventually("the agent's last status at the receiver", || {
            let state = proof::open(&self.database).and_then(|connection| {
                connection.query_row("SELECT state FROM agent", [], |row| row.get::<_, String>(0))
            });
            state.is_ok_and(|state| state == "offline")
        })
        .await?;
        view.draw(self.second(), None);
        Ok(())
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
        pause(TICK / 8).await;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the demo is watched, and a view is redrawn now and then")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
