//! A broker that refuses, swallows, closes or dies, and a way to it that does not carry: real mosquitto, one trouble an
//! agent, all at once.
//!
//! While the trouble lasts the agent says why, once, in words that help; soon after its end everything is at the centre,
//! exactly once, and nothing is said to be lost. "Soon" is two ack timeouts, after which a connection without progress is
//! made anew (contract rule 5), the longest pause before that, and what a loaded machine adds.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::{Mosquitto, QUEUE};
use tributary_tests::evidence::{Database, Fault, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{eventually, eventually_or, pause, program, signal};
use tributary_tests::proxy::{Link, Proxy};

/// Two ack timeouts, reconnects of 1 s at agent and receiver, and a loaded machine. An ack timeout is 4 s, or four times
/// what the slowest Ack of late has taken: 12 s here, where so many brokers begin at once.
const SOON: Duration = Duration::from_secs(30);
/// How long the agent has to meet the trouble.
const MEETS: Duration = Duration::from_secs(60);
/// How long the trouble lasts after that: some ten attempts to connect.
const LASTS: Duration = Duration::from_secs(6);
const PERIOD_MS: i64 = 100;
const USER: &str = "gw";

/// An agent with its device, broker and receiver.
struct Line {
    name: &'static str,
    agent: Agent,
    receiver: Receiver,
    broker: Mosquitto,
    database: Database,
    _device: Simulator,
}

impl Line {
    /// `conf` is for mosquitto; `url` where the agent finds it, if not directly.
    async fn start(name: &'static str, folder: &Path, conf: &str, url: Option<String>) -> Result<Self, Fault> {
        let broker = Mosquitto::start_with(&folder.join("broker"), conf).await?;
        Self::with(name, folder, broker, url, None).await
    }

    async fn with(
        name: &'static str,
        folder: &Path,
        broker: Mosquitto,
        url: Option<String>,
        hosts: Option<&Path>,
    ) -> Result<Self, Fault> {
        let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
        let file = folder.join("centre.db");
        let receiver = Receiver::start("receiver", folder, &broker.url(), &format!("sqlite:{}", file.display()))?;
        let secret = folder.join("secret");
        fs::write(&secret, "right\n")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let head = format!(
            "[uplink]\nurl = \"{}\"\nusername = \"{USER}\"\npassword_file = \"{}\"\nreconnect_max = \"1s\"\n\
             [batch]\nmax_age = \"100ms\"\n[spool]\ncommit = \"100ms\"\n",
            url.unwrap_or_else(|| broker.url()),
            secret.display()
        );
        let configuration = Configuration::new(name, "")
            .with_head(&head)
            .bus("bus", device.address(), "5s")
            .device("plc", "bus", 1, &format!("{PERIOD_MS}ms"))
            .point("count", "holding", 0, "u32")
            // It makes the catalogue longer than a batch.
            .toml("description = \"counts the polls of this device, so that each of them has a value of its own\"\n");
        let agent = match hosts {
            None => Agent::start(&folder.join("agent"), &configuration)?,
            Some(hosts) => Agent::start_among(&folder.join("agent"), &configuration, hosts)?,
        };
        Ok(Self { name, agent, receiver, broker, database: Database::sqlite(&file), _device: device })
    }

    async fn is_acknowledged(&mut self) {
        eventually(&format!("{}: an acknowledgement", self.name), MEETS, async || {
            self.agent.status()?["uplink"]["healthy"].as_bool().filter(|healthy| *healthy)
        })
        .await;
    }

    /// Waits until the agent says so of its uplink, and lets the trouble last.
    async fn meets(&mut self, words: &str) {
        eventually_or(&format!("{}: the agent to say {words:?}", self.name), MEETS, async || {
            self.agent.assert_alive();
            let said = self.agent.status().ok_or("no status")?["uplink"]["last_error"].to_string();
            if said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
        pause(LASTS).await;
    }

    /// The trouble is over: everything taken until now is at the centre soon, and the end is as it must be.
    /// `said`: what stands once in the log.
    async fn recovers(mut self, said: &str) -> Result<(), Fault> {
        let clock = SystemClock::new();
        let (began, name) = (clock.mono(), self.name);
        let now_ms = clock.wall().0;
        eventually_or(&format!("{name}: what was kept to arrive"), MEETS, async || {
            let rows = self.database.readings("plc", "count").await?;
            every_count_once(&rows, &[])?;
            let last = rows.last().map_or(0, |row| row.at_ms);
            if last >= now_ms { Ok(()) } else { Err(Fault::from(format!("{} ms behind", now_ms - last))) }
        })
        .await;
        let took = clock.mono().since(began);
        let since = format!("SELECT min(received_at) - {now_ms} FROM batch WHERE received_at >= {now_ms}");
        let first = self.database.number(&since).await?;
        let status = eventually("a status", MEETS, async || self.agent.status()).await;
        assert!(self.agent.stop().await.success(), "{name}");
        let database = &self.database;
        let ledger = database.last_word(name).await;
        assert!(ledger.holds() && ledger.held == 0 && ledger.lost == 0, "{name}: {ledger:?}");
        let rows = database.readings("plc", "count").await?;
        every_count_once(&rows, &[])?;
        every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1)?;
        let batches = database.number("SELECT count(*) FROM batch").await?;
        assert_eq!(database.number("SELECT max(seq) FROM batch").await?, batches, "{name}: a seq is missing");
        for table in ["gap", "loss", "quarantine"] {
            assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await?, 0, "{name}: {table}");
        }
        let log = self.agent.log();
        let told: Vec<&str> =
            log.lines().filter(|line| line.contains("tributary::notices") && line.contains("connect")).collect();
        println!(
            "{name}: {} counts, {} reconnects, first batch after {first} ms, all after {took:?}\n{}",
            rows.len(),
            status["uplink"]["reconnects"],
            told.join("\n")
        );
        let times = told.iter().filter(|line| line.contains("no connection") && line.contains(said)).count();
        assert!(said.is_empty() || times == 1, "{name}: {said:?} is said {times} times:\n{log}");
        assert!(told.len() <= 8, "{name}: the log is flooded:\n{log}");
        assert!(took < SOON, "{name}: back only after {took:?}");
        assert!(self.receiver.stop().await.success(), "{name}");
        Ok(())
    }
}

/// Makes mosquitto's list of users: the one of the agent, with that password.
fn users(file: &Path, password: &str) -> io::Result<String> {
    let mut command = Command::new(program("mosquitto_passwd", "Debian's mosquitto"));
    let made = command.args(["-b", "-c"]).arg(file).args([USER, password]).output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(format!("{QUEUE}\npassword_file {}", file.display()))
}

async fn refuses_the_login(folder: PathBuf) -> Result<(), Fault> {
    let file = folder.join("users");
    let mut line = Line::start("login", &folder, &users(&file, "another")?, None).await?;
    line.meets("the login is refused").await;
    line.broker.restart_with(&users(&file, "right")?).await?;
    line.recovers("the login is refused").await
}

/// mosquitto answers PUBACK for what the agent may not publish, and drops it.
async fn swallows_what_is_not_allowed(folder: PathBuf) -> Result<(), Fault> {
    let file = folder.join("acl");
    let may = |agent: &str| fs::write(&file, format!("topic readwrite #\nuser {USER}\n{agent}\n"));
    may("topic readwrite edge/v1/plant-1/acl/stat\ntopic read edge/v1/plant-1/acl/ack")?;
    let conf = format!("{QUEUE}\nacl_file {}", file.display());
    let mut line = Line::start("acl", &folder, &conf, None).await?;
    line.meets("no acknowledgement came in time").await;
    may("topic readwrite edge/v1/plant-1/acl/#")?;
    signal(line.broker.pid(), "-HUP");
    line.recovers("no acknowledgement came in time").await
}

/// mosquitto answers PUBACK for a message above its limit, and drops it; the catalogue is one.
async fn swallows_what_is_too_large(folder: PathBuf) -> Result<(), Fault> {
    let mut line = Line::start("too-large", &folder, &format!("{QUEUE}\nmessage_size_limit 200"), None).await?;
    line.meets("does not get the catalogue, a message of").await;
    assert!(line.broker.log().contains("Dropped too large PUBLISH"), "mosquitto dropped nothing");
    line.broker.restart_with(QUEUE).await?;
    line.recovers("").await
}

/// mosquitto closes the connection at a packet above its limit.
async fn closes_at_what_is_too_large(folder: PathBuf) -> Result<(), Fault> {
    let mut line = Line::start("packet", &folder, &format!("{QUEUE}\nmax_packet_size 190"), None).await?;
    line.meets("closed").await;
    line.broker.restart_with(QUEUE).await?;
    line.recovers("closed").await
}

/// The receiver stands still, and the broker drops what it has no room for.
async fn has_no_room(folder: PathBuf) -> Result<(), Fault> {
    let mut line = Line::start("quota", &folder, "max_inflight_messages 5\nmax_queued_messages 5", None).await?;
    eventually("quota: the first counts", MEETS, async || {
        (line.database.readings("plc", "count").await.ok()?.len() > 5).then_some(())
    })
    .await;
    signal(line.receiver.pid(), "-STOP");
    line.meets("no acknowledgement came in time").await;
    signal(line.receiver.pid(), "-CONT");
    line.recovers("no acknowledgement came in time").await
}

async fn is_killed(folder: PathBuf) -> Result<(), Fault> {
    let mut line = Line::start("killed", &folder, QUEUE, None).await?;
    for _ in 0..3 {
        line.is_acknowledged().await;
        line.broker.kill();
        // An error that stands there from the last time is not it.
        eventually("killed: the end of the connection", MEETS, async || {
            (line.agent.status()?["uplink"]["connected"] == false).then_some(())
        })
        .await;
        line.meets("refused").await;
        line.broker.restart().await?;
    }
    line.recovers("refused").await
}

#[tokio::test]
async fn live_a_broker_refuses_swallows_closes_and_dies() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let at = |name| folder.path().join(name);
    for name in ["login", "acl", "too-large", "packet", "quota", "killed"] {
        fs::create_dir_all(at(name))?;
    }
    tokio::try_join!(
        refuses_the_login(at("login")),
        swallows_what_is_not_allowed(at("acl")),
        swallows_what_is_too_large(at("too-large")),
        closes_at_what_is_too_large(at("packet")),
        has_no_room(at("quota")),
        is_killed(at("killed")),
    )?;
    Ok(())
}

/// A line whose agent goes by a proxy.
async fn by_proxy(name: &'static str, folder: &Path, link: Link) -> Result<(Line, Proxy), Fault> {
    let broker = Mosquitto::start(&folder.join("broker")).await?;
    let proxy = Proxy::start(([127, 0, 0, 1], broker.port()).into(), link).await?;
    let url = format!("mqtt://{}", proxy.address());
    Ok((Line::with(name, folder, broker, Some(url), None).await?, proxy))
}

async fn is_half_open(folder: PathBuf) -> Result<(), Fault> {
    let (mut line, proxy) = by_proxy("half-open", &folder, Link::default()).await?;
    line.is_acknowledged().await;
    let clock = SystemClock::new();
    let (before, began) = (proxy.connections(), clock.mono());
    proxy.set_half_open(true);
    eventually("half-open: another connection", SOON, async || (proxy.connections() > before).then_some(())).await;
    println!("half-open: noticed after {:?}", clock.mono().since(began));
    line.meets("no a").await;
    proxy.set_half_open(false);
    line.recovers("no acknowledgement came in time").await
}

async fn is_slow(folder: PathBuf) -> Result<(), Fault> {
    let link = Link { delay: Duration::from_millis(400), ..Link::default() };
    let (line, proxy) = by_proxy("slow", &folder, link).await?;
    eventually("slow: 200 counts", MEETS, async || {
        (line.database.readings("plc", "count").await.ok()?.len() >= 200).then_some(())
    })
    .await;
    assert_eq!(proxy.connections(), 1, "a slow connection is given up");
    line.recovers("").await
}

async fn flaps(folder: PathBuf) -> Result<(), Fault> {
    let link = Link { cut_every: Some(Duration::from_millis(300)), ..Link::default() };
    let (line, proxy) = by_proxy("flapping", &folder, link).await?;
    eventually("flapping: 40 cuts", MEETS, async || (proxy.cuts() >= 40).then_some(())).await;
    proxy.stop_cutting();
    line.recovers("").await
}

async fn has_no_name(folder: PathBuf) -> Result<(), Fault> {
    let broker = Mosquitto::start(&folder.join("broker")).await?;
    let hosts = folder.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    let url = format!("mqtt://broker.plant.test:{}", broker.port());
    let mut line = Line::with("name", &folder, broker, Some(url), Some(&hosts)).await?;
    line.meets("broker.plant.test").await;
    fs::write(&hosts, "127.0.0.1 localhost broker.plant.test\n")?;
    line.recovers("broker.plant.test").await
}

#[tokio::test]
async fn live_the_way_is_half_open_slow_flapping_or_unknown() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let at = |name| folder.path().join(name);
    for name in ["half-open", "slow", "flapping", "name"] {
        fs::create_dir_all(at(name))?;
    }
    tokio::try_join!(
        is_half_open(at("half-open")),
        is_slow(at("slow")),
        flaps(at("flapping")),
        has_no_name(at("name"))
    )?;
    Ok(())
}
