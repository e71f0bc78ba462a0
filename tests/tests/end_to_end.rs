//! The whole line on real peers: pymodbus, mosquitto, PostgreSQL, the agent, two receivers; each killed in mid-run.
//!
//! The device counts its polls in a register and a sensor counts its messages, so the database itself shows what is
//! missing and what is double. In the end every due poll is there exactly once or in a reported loss, every message is
//! there, and the law holds in the agent's own figures.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, Fault, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{READ_HOLDING, register};
use tributary_tests::postgres::Postgres;
use tributary_tests::process::{Process, eventually, pause, python};

const AGENT: &str = "gw-e2e";
const PERIOD_MS: i64 = 100;
/// What one step may take at the most on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many readings further the line must get between two faults.
const STRIDE: i64 = 20;

/// The device: pymodbus, and how many polls it has served.
struct Device(Process);

impl Device {
    fn start(folder: &Path) -> std::io::Result<Self> {
        let mut command = Command::new(python());
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/counting_server.py"));
        Ok(Self(Process::start("device", folder, &command)?))
    }

    /// The number behind the last line that begins with `word`.
    fn said(&self, word: &str) -> Option<i64> {
        let log = self.0.log();
        log.lines().rev().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
    }

    async fn port(&self) -> u16 {
        let port = eventually("the device to listen", PATIENCE, async || self.said("port")).await;
        u16::try_from(port).expect("a port")
    }

    /// Waits until it has served so many polls more: that much time passes for the line, whatever the machine's load.
    async fn polls_more(&self, more: i64) {
        let until = self.said("served").unwrap_or(0) + more;
        eventually("polls at the device", PATIENCE, async || (self.said("served")? >= until).then_some(())).await;
    }
}

/// The sensor: publishes {"value": n} for n = 1, 2, 3 … at QoS 1, the next when the one before is PUBACKed. Gives the last.
async fn sensor(port: u16, stop: tokio::sync::oneshot::Receiver<()>) -> i64 {
    let mut options = MqttOptions::new("sensor", "127.0.0.1", port);
    options.set_clean_session(false);
    let (client, mut events) = AsyncClient::new(options, 10);
    let counting = async {
        let mut sent = 0;
        let mut acknowledged = 0;
        tokio::pin!(stop);
        loop {
            if sent == acknowledged {
                if !matches!(stop.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
                    return sent;
                }
                pause(Duration::from_millis(20)).await;
                sent += 1;
                let message = format!("{{\"value\": {sent}}}");
                client.publish("sensors/hall-2/temp", QoS::AtLeastOnce, false, message).await.expect("the loop runs");
            }
            match events.poll().await {
                Ok(Event::Incoming(Packet::PubAck(_))) => acknowledged += 1,
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return sent,
                // The client resends by itself: this broker is never killed, and keeps the session.
                Ok(_) | Err(_) => {}
            }
        }
    };
    counting.await
}

/// Waits until `STRIDE` more counts are in the database.
async fn gets_further(what: &str, postgres: &Postgres) {
    let sql = "SELECT count(*) FROM reading WHERE point = 'count'";
    let count = async || Database::Postgres(postgres.connect().await.ok()?).number(sql).await.ok();
    let before = eventually("an answer of the database", PATIENCE, async || count().await).await;
    eventually(what, PATIENCE, async || (count().await? >= before + STRIDE).then_some(())).await;
}

#[tokio::test]
async fn live_every_part_is_killed_and_nothing_is_lost_unsaid() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let mut postgres = Postgres::start().await?;
    let mut broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let cell = Mosquitto::start(&folder.path().join("cell")).await?;
    let device = Device::start(folder.path())?;
    let port = device.port().await;
    let mut receivers = [
        Receiver::start("receiver-a", folder.path(), &broker.url(), &postgres.url())?,
        Receiver::start("receiver-b", folder.path(), &broker.url(), &postgres.url())?,
    ];
    let mut configuration = Configuration::new(AGENT, &broker.url())
        .bus("bus", ([127, 0, 0, 1], port).into(), "1s")
        .device("feeder", "bus", 1, &format!("{PERIOD_MS}ms"))
        .point("count", "holding", 0, "u32");
    for address in 10..20 {
        configuration = configuration.point(&format!("v{address}"), "holding", address, "u16");
    }
    let configuration = configuration
        .point("folded", "holding", 20, "u16")
        .toml("window = { every = \"1s\", stats = [\"mean\", \"min\", \"max\", \"count\"] }\n")
        .toml(&format!("[[mqtt]]\nname = \"cell\"\nurl = \"{}\"\n[[mqtt.point]]\nname = \"temp/{{1}}\"\n", cell.url()))
        .toml("topic = \"sensors/+/temp\"\nvalue = \"/value\"\ntype = \"i64\"\nunit = \"Cel\"\n");
    let mut agent = Agent::start(&folder.path().join("agent"), &configuration)?;

    // The sensor speaks once the agent listens, or the field's broker would have nobody to keep its messages for.
    eventually("the first readings", PATIENCE, async || {
        agent.assert_alive();
        let status = agent.status()?;
        (status["ledger"]["delivered"].as_u64()? > 0).then_some(())
    })
    .await;
    let (stop_sensor, stopped) = tokio::sync::oneshot::channel();
    let sensor = tokio::spawn(sensor(cell.port(), stopped));
    gets_further("the line to run", &postgres).await;

    broker.kill();
    device.polls_more(STRIDE).await;
    broker.restart().await?;
    gets_further("readings after the broker's death", &postgres).await;

    receivers[0].kill();
    gets_further("readings through the other receiver", &postgres).await;
    receivers[0].restart()?;
    gets_further("readings with both receivers again", &postgres).await;

    postgres.kill();
    device.polls_more(STRIDE).await;
    postgres.restart().await?;
    gets_further("readings after the database's death", &postgres).await;

    for outage in [Duration::from_millis(50), Duration::from_secs(2)] {
        agent.kill();
        pause(outage).await;
        agent.restart()?;
        gets_further("readings after the agent's death", &postgres).await;
    }

    // The agent dies while the broker is away: what it held is on its disk alone.
    broker.kill();
    device.polls_more(STRIDE).await;
    agent.kill();
    agent.restart()?;
    broker.restart().await?;
    gets_further("readings after both died", &postgres).await;

    stop_sensor.send(()).map_err(|()| "the sensor has ended before")?;
    let messages = sensor.await?;
    let database = Database::Postgres(postgres.connect().await?);
    let sql = "SELECT coalesce(max(value_int), 0) FROM reading WHERE device = 'cell'";
    eventually("the sensor's last message", PATIENCE, async || {
        (database.number(sql).await.ok()? >= messages).then_some(())
    })
    .await;
    let ended = agent.stop().await;
    assert_eq!(ended.code(), Some(0));
    let ledger = database.last_word(AGENT).await;

    // The law, and the database against it.
    assert!(ledger.holds() && ledger.held == 0, "{ledger:?}");
    assert_eq!(
        database.number("SELECT count(DISTINCT epoch) FROM batch").await?,
        1,
        "a kill is no reason for an epoch"
    );
    assert_eq!(database.number("SELECT count(*) FROM reading").await?, ledger.delivered, "{ledger:?}");
    assert_eq!(database.number("SELECT count(*) FROM quarantine").await?, 0);
    assert_eq!(database.number("SELECT count(*) FROM gap").await?, 0);
    let twice = "SELECT count(*) FROM (SELECT 1 FROM reading GROUP BY epoch, seq, idx HAVING count(*) > 1) AS doubles";
    assert_eq!(database.number(twice).await?, 0);

    // Every due poll exactly once, or in a reported loss; every value the device's.
    let rows = database.readings("feeder", "count").await?;
    let losses = database.losses("feeder", "count").await?;
    assert!(losses.iter().all(|lost| lost.reason == "agent_down"), "{losses:?}");
    let said = database.all_losses().await?;
    let explained = |wrong| format!("{wrong}\nall losses:\n{said}");
    let missing = every_count_once(&rows, &losses).map_err(explained)?;
    every_due_poll_left_a_trace(&rows, &losses, PERIOD_MS, agent.starts()).map_err(explained)?;
    for address in 10..20 {
        let rows = database.readings("feeder", &format!("v{address}")).await?;
        let truth = i64::from(register(1, READ_HOLDING, address));
        let wrong: Vec<_> = rows.iter().filter(|row| row.status < 16 && row.value != Some(truth)).collect();
        assert!(wrong.is_empty(), "v{address} is {truth}, not {wrong:?}");
    }
    let folded = register(1, READ_HOLDING, 20);
    let sql =
        format!("SELECT count(*) FROM reading WHERE point = 'folded' AND statistic = 'mean' AND value_num <> {folded}");
    assert_eq!(database.number(&sql).await?, 0);

    // Every message of the sensor; twice only what the agent's death made the broker deliver again.
    let sql = "SELECT count(DISTINCT value_int) FROM reading WHERE device = 'cell'";
    assert_eq!(database.number(sql).await?, messages, "a PUBACKed message is missing");
    let repeated =
        database.number("SELECT count(*) - count(DISTINCT value_int) FROM reading WHERE device = 'cell'").await?;
    assert!(repeated <= 20 * i64::from(agent.starts() - 1), "{repeated} messages are there again");

    println!(
        "{} polls there, {missing} lost and said, {messages} messages, {repeated} again, {} starts of the agent: {ledger:?}",
        rows.len(),
        agent.starts()
    );
    for mut receiver in receivers {
        assert!(receiver.stop().await.success());
    }
    Ok(())
}
