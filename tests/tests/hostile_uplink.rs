//! The agent and a centre that breaks its promises: PUBACKs, connections and Acks, one fault an agent, all at once.
//!
//! Each agent polls a device that counts its polls. In the end every count is at the centre exactly once, the agent has
//! broken no rule of the contract, and the law held in every status it published.

use std::path::Path;
use std::time::Duration;

use tokio::task::{JoinSet, LocalSet};
use tributary_tests::agent::{Agent, Configuration, SITE};
use tributary_tests::evidence::{Fault as Wrong, Row, every_count_once};
use tributary_tests::hostile_broker::{self, ConnectFault, HostileBroker};
use tributary_tests::hostile_receiver::{self, HostileReceiver, law_holds};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{eventually, eventually_or};
use tributary_tests::{count, seed};

const SEED: u64 = 20_250_818;
/// How many counts must be at the centre before an agent may stop.
const COUNTS: usize = 150;
/// Two ack timeouts and a rebuilt connection take 10 to 20 s; some faults need several.
const PATIENCE: Duration = Duration::from_secs(400);
/// How many batches each fault of a PUBACK is played among; `tests/soak` says more.
const PUBLISHES: u64 = 200;
/// From so many on they come faster, and fewer of them meet the fault: some faults cost ten seconds each.
const MANY: u64 = 1_000;

/// One agent with its device, broker and receiver.
struct Line {
    name: String,
    agent: Agent,
    broker: HostileBroker,
    receiver: HostileReceiver,
    _device: Simulator,
}

impl Line {
    async fn start(
        folder: &Path,
        name: &str,
        broker: hostile_broker::Plan,
        receiver: hostile_receiver::Plan,
    ) -> Result<Self, Wrong> {
        Self::start_polling(folder, name, broker, receiver, "100ms").await
    }

    async fn start_polling(
        folder: &Path,
        name: &str,
        broker: hostile_broker::Plan,
        receiver: hostile_receiver::Plan,
        period: &str,
    ) -> Result<Self, Wrong> {
        let broker = HostileBroker::start(broker).await?;
        let receiver = HostileReceiver::start(&broker, &format!("edge/v1/{SITE}/{name}"), receiver);
        let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
        let url = broker.url();
        let head = format!("[uplink]\nurl = \"{url}\"\nreconnect_max = \"1s\"\n[batch]\nmax_age = \"{period}\"\n");
        let configuration = Configuration::new(name, &url)
            .with_head(&format!("{head}[spool]\ncommit = \"100ms\"\n"))
            .bus("bus", device.address(), "1s")
            .device("plc", "bus", 1, period)
            .point("count", "holding", 0, "u32");
        let agent = Agent::start(&folder.join(name), &configuration)?;
        Ok(Self { name: name.to_owned(), agent, broker, receiver, _device: device })
    }

    /// The counts at the centre, each in the order of its stamp.
    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.receiver.look(|books| {
            let row = |reading: &hostile_receiver::Reading| Row {
                at_ms: reading.at_ms,
                status: i64::from(reading.status),
                value: reading.bits.map(u64::cast_signed),
            };
            books.readings().map(row).collect()
        });
        rows.sort_by_key(|row| row.at_ms);
        rows
    }

    /// Says what is missing until the broker was sent so many batches, the centre has so many counts, and none is missing
    /// among them.
    fn has(&self, publishes: u64, counts: usize) -> Result<(), String> {
        let sent = self.broker.record().batches;
        if sent < publishes {
            return Err(format!("{}: {sent} of {publishes} batches were sent", self.name));
        }
        let rows = self.rows();
        if rows.len() < counts {
            return Err(format!("{}: {} of {counts} counts", self.name, rows.len()));
        }
        every_count_once(&rows, &[]).map(|_| ()).map_err(|wrong| format!("{}: {wrong}", self.name))
    }

    fn judge(&self) -> Result<(), String> {
        let books = self.receiver.books();
        let name = &self.name;
        let broker = self.broker.record();
        if !broker.violations.is_empty() || !books.broken.is_empty() {
            return Err(format!("{name} broke the contract: {:#?} {:#?}", broker.violations, books.broken));
        }
        let laws = books.statuses.iter().filter_map(|status| status.ledger.as_ref());
        if let Some(ledger) = laws.clone().find(|ledger| !law_holds(ledger)) {
            return Err(format!("{name}: the law does not hold in {ledger:?}"));
        }
        if laws.count() == 0 {
            return Err(format!("{name} never published a ledger"));
        }
        if !books.lost().is_empty() {
            return Err(format!("{name}: nothing was lost, and yet it says {:?}", books.lost()));
        }
        println!(
            "{name}: {} counts, {} connections, {} batches sent, {} twice, played {:?} {:?} {:?}",
            self.rows().len(),
            broker.connections,
            broker.batches,
            books.duplicates,
            broker.acks,
            broker.connects,
            books.played
        );
        Ok(())
    }
}

/// Runs each line until it has its counts, stops its agent and judges it.
async fn run(lines: Vec<Line>, publishes: u64) -> Result<(), Wrong> {
    let patience = PATIENCE + Duration::from_millis(200) * u32::try_from(publishes)?;
    let (local, mut tasks) = (LocalSet::new(), JoinSet::new());
    for mut line in lines {
        let whole = async move {
            eventually_or(&format!("every count of {}", line.name), patience, async || {
                line.agent.assert_alive();
                line.has(publishes, COUNTS)
            })
            .await;
            assert!(line.agent.stop().await.success(), "{}", line.name);
            line.judge()
        };
        tasks.spawn_local_on(whole, &local);
    }
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no line panics").expect("no line fails");
        }
    };
    local.run_until(all).await;
    Ok(())
}

#[tokio::test]
async fn live_acks_of_the_broker_cannot_be_trusted() -> Result<(), Wrong> {
    let (seed, publishes) = (seed(SEED), count("TRIBUTARY_PUBACKS", PUBLISHES));
    let (period, ack_percent) = if publishes < MANY { ("100ms", 5) } else { ("20ms", 1) };
    let folder = tempfile::tempdir()?;
    let mut lines = Vec::new();
    for (number, fault) in (0..).zip(hostile_broker::AckFault::ALL) {
        let honest = hostile_broker::Plan::honest();
        let seed = seed.wrapping_add(number);
        // Some faults cost more time than passes between two counts: without an end the agent would never have sent all.
        let plan = hostile_broker::Plan { seed, acks: vec![fault], ack_percent, publishes: Some(publishes), ..honest };
        let name = format!("puback-{fault:?}");
        lines.push(Line::start_polling(folder.path(), &name, plan, hostile_receiver::Plan::honest(), period).await?);
    }
    run(lines, publishes).await
}

#[tokio::test]
async fn live_connections_come_late_or_wrong() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let folder = tempfile::tempdir()?;
    let mut lines = Vec::new();
    for (number, fault) in (0..).zip(ConnectFault::ALL) {
        // The connections die often enough to meet the fault.
        let plan = hostile_broker::Plan {
            seed: seed.wrapping_add(number),
            acks: vec![hostile_broker::AckFault::ResetAfter],
            ack_percent: 5,
            connects: vec![fault],
            connect_percent: 40,
            ..hostile_broker::Plan::honest()
        };
        let name = format!("connect-{fault:?}");
        lines.push(Line::start(folder.path(), &name, plan, hostile_receiver::Plan::honest()).await?);
    }
    run(lines, 0).await
}

#[tokio::test]
async fn live_acks_of_the_receiver_come_late_or_wrong() -> Result<(), Wrong> {
    let seed = seed(SEED);
    let folder = tempfile::tempdir()?;
    let mut lines = Vec::new();
    for (number, fault) in (0..).zip(hostile_receiver::AckFault::ALL) {
        let honest = hostile_receiver::Plan::honest();
        let plan = hostile_receiver::Plan { seed: seed.wrapping_add(number), acks: vec![fault], percent: 30, ..honest };
        let name = format!("ack-{fault:?}");
        lines.push(Line::start(folder.path(), &name, hostile_broker::Plan::honest(), plan).await?);
    }
    run(lines, 0).await
}

/// FORKED, and an Ack from the future: each begins a new epoch (contract rule 2), and no count is lost or double.
#[tokio::test]
async fn live_a_new_epoch_loses_nothing() -> Result<(), Wrong> {
    let folder = tempfile::tempdir()?;
    let honest = (hostile_broker::Plan::honest(), hostile_receiver::Plan::honest());
    let mut line = Line::start(folder.path(), "epochs", honest.0, honest.1).await?;
    eventually_or("the first counts", PATIENCE, async || line.has(0, 10)).await;
    let epochs =
        |line: &Line| line.receiver.look(|books| books.epochs.values().filter(|e| !e.batches.is_empty()).count());
    line.receiver.say_forked();
    eventually("a second epoch", PATIENCE, async || (epochs(&line) >= 2).then_some(())).await;
    line.receiver.acknowledge_the_future();
    eventually("a third epoch", PATIENCE, async || (epochs(&line) >= 3).then_some(())).await;
    eventually_or("counts of the third epoch", PATIENCE, async || line.has(0, COUNTS / 2)).await;
    assert!(line.agent.stop().await.success());
    assert_eq!(epochs(&line), 3, "one cause, one epoch");
    Ok(line.judge()?)
}
