//! The centre at its worst moments: receivers killed between COMMIT and Ack, and an agent that nobody hears any more.
//!
//! Two receivers share the load over one PostgreSQL. Each way from a receiver to the broker has a snare: the piece that
//! carries an Ack goes nowhere, and the receiver that sent it is killed there and then, with the commit behind it. Nothing
//! is lost of that, nothing doubled, and the ranges at the centre are whole.

use std::time::Duration;

use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::count;
use tributary_tests::evidence::{Database, Fault, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::postgres::Postgres;
use tributary_tests::process::{eventually, eventually_or, signal};
use tributary_tests::proxy::{Link, Proxy};

const PATIENCE: Duration = Duration::from_secs(30);
const PERIOD_MS: i64 = 50;
/// How often an agent publishes its status (contract, Topics).
const STATUS: Duration = Duration::from_secs(60);

#[tokio::test]
async fn live_receivers_die_between_commit_and_ack() -> Result<(), Fault> {
    let kills = count("TRIBUTARY_RECEIVER_KILLS", 12);
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let mut postgres = Postgres::start().await?;
    let link = Link { snare: Some("/ack"), ..Link::default() };
    let mut receivers = Vec::new();
    for name in ["first", "second"] {
        let way = Proxy::start(([127, 0, 0, 1], broker.port()).into(), link).await?;
        let url = format!("mqtt://{}", way.address());
        receivers.push((Receiver::start(name, folder.path(), &url, &postgres.url())?, way));
    }
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
    let configuration = Configuration::new("gw", &broker.url())
        .bus("bus", device.address(), "5s")
        .device("plc", "bus", 1, &format!("{PERIOD_MS}ms"))
        .point("count", "holding", 0, "u32");
    let mut agent = Agent::start(&folder.path().join("agent"), &configuration)?;
    let database = Database::Postgres(postgres.connect().await?);

    let clock = SystemClock::new();
    let (mut ahead, mut longest) = (0, Duration::ZERO);
    for _ in 0..kills {
        let before = eventually("a batch at the centre", PATIENCE, async || {
            agent.assert_alive();
            database.number("SELECT max(seq) FROM batch").await.ok()
        })
        .await;
        receivers.iter().for_each(|(_, way)| way.arm(true));
        let caught: Vec<u64> = receivers.iter().map(|(_, way)| way.caught()).collect();
        eventually("an Ack in a snare", PATIENCE, async || {
            receivers.iter().zip(&caught).any(|((_, way), before)| way.caught() > *before).then_some(())
        })
        .await;
        receivers.iter().for_each(|(_, way)| way.arm(false));
        let victims: Vec<usize> = (0..receivers.len()).filter(|at| receivers[*at].1.caught() > caught[*at]).collect();
        victims.iter().for_each(|at| receivers[*at].0.kill());
        // The Ack did not get through; what it spoke of is in the database.
        let acked = agent.status().and_then(|status| status["acked_seq"].as_i64()).unwrap_or(0);
        ahead += u32::from(database.number("SELECT max(seq) FROM batch").await? > acked);
        for at in victims {
            receivers[at].0.restart()?;
        }
        let began = clock.mono();
        eventually("what is taken to arrive again", PATIENCE, async || {
            let seq = database.number("SELECT max(contiguous_seq) FROM agent").await.ok()?;
            (seq > before + 5).then_some(())
        })
        .await;
        longest = longest.max(clock.mono().since(began));
    }
    assert!(u64::from(ahead) >= kills / 2, "only {ahead} of {kills} Acks were of something committed");

    // The database goes away under both, too.
    postgres.kill();
    let held = eventually("batches to wait", PATIENCE, async || agent.status()?["spool"]["records"].as_i64()).await;
    postgres.restart().await?;
    let database = Database::Postgres(postgres.connect().await?);
    let settled = "SELECT (SELECT max(seq) FROM batch) - (SELECT max(contiguous_seq) FROM agent)";
    let from = database.number("SELECT max(seq) FROM batch").await?;
    eventually_or("everything to be settled", PATIENCE, async || {
        let (behind, last) = (database.number(settled).await?, database.number("SELECT max(seq) FROM batch").await?);
        if behind == 0 && last > from { Ok(()) } else { Err(Fault::from(format!("{behind} behind {last}"))) }
    })
    .await;
    assert!(agent.stop().await.success());
    let ledger = database.last_word("gw").await;
    assert!(ledger.holds() && ledger.held == 0 && ledger.lost == 0, "{ledger:?}");
    let rows = database.readings("plc", "count").await?;
    every_count_once(&rows, &[])?;
    every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1)?;
    let batches = database.number("SELECT count(*) FROM batch").await?;
    assert_eq!(database.number("SELECT max(seq) FROM batch").await?, batches, "a seq is missing");
    for table in ["gap", "loss", "quarantine"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await?, 0, "{table}");
    }
    println!(
        "{kills} kills, {ahead} with a commit ahead of the Ack, longest pause {longest:?}, {held} held, {batches} batches"
    );
    for (receiver, _) in &mut receivers {
        assert!(receiver.stop().await.success());
    }
    Ok(())
}

/// A dead agent, a stopped one and one behind a dead line are offline at the centre within three status periods: the
/// broker notices by keep-alive and publishes the will, and the row keeps the ledger and the time of the last word.
#[tokio::test]
async fn live_a_silent_agent_is_offline_at_the_centre() -> Result<(), Fault> {
    let keep_alive = tributary::config::UplinkConfig::default().keep_alive.duration();
    assert!(keep_alive * 3 / 2 + PATIENCE <= STATUS * 3, "the broker waits one and a half keep-alives: {keep_alive:?}");
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let way = Proxy::start(([127, 0, 0, 1], broker.port()).into(), Link::default()).await?;
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
    let file = folder.path().join("centre.db");
    let _receiver = Receiver::start("receiver", folder.path(), &broker.url(), &format!("sqlite:{}", file.display()))?;
    let database = Database::sqlite(&file);
    let mut agents = Vec::new();
    for name in ["killed", "stopped", "unheard"] {
        let url = if name == "unheard" { format!("mqtt://{}", way.address()) } else { broker.url() };
        let head = format!("[uplink]\nurl = \"{url}\"\nkeep_alive = \"5s\"\nreconnect_max = \"1s\"\n");
        let configuration = Configuration::new(name, "")
            .with_head(&head)
            .bus("bus", device.address(), "5s")
            .device("plc", "bus", 1, "500ms")
            .point("count", "holding", 0, "u32");
        agents.push(Agent::start(&folder.path().join(name), &configuration)?);
    }
    eventually("three agents that are online and heard of", PATIENCE, async || {
        let with_data = "SELECT count(DISTINCT agent) FROM batch";
        let online = "SELECT count(*) FROM agent WHERE state = 'online' AND at_ms > 0";
        (database.number(online).await.ok()? == 3 && database.number(with_data).await.ok()? == 3).then_some(())
    })
    .await;
    let clock = SystemClock::new();
    let began = clock.mono();
    agents[0].kill();
    signal(agents[1].pid(), "-STOP");
    way.set_half_open(true);
    let silent = "SELECT count(*) FROM agent WHERE state = 'offline' AND at_ms > 0";
    eventually("three agents that are offline", PATIENCE, async || {
        (database.number(silent).await.ok()? == 3).then_some(())
    })
    .await;
    println!("offline after {:?}", clock.mono().since(began));
    signal(agents[1].pid(), "-CONT");
    way.set_half_open(false);
    agents[0].restart()?;
    eventually("three agents that are online again", PATIENCE, async || {
        (database.number("SELECT count(*) FROM agent WHERE state = 'online'").await.ok()? == 3).then_some(())
    })
    .await;
    for agent in &mut agents {
        assert!(agent.stop().await.success());
    }
    Ok(())
}
