//! The loss test: a real broker on a link that is cut every 0.4 s, 2,000 small batches, nothing missing at the receiver.
//!
//! A plain use of the MQTT client loses 5 to 30 % of them here: it drops what is pending when the broker has no session,
//! and trips over its own packet ids. The spool drives retransmission instead (contract rule 5), and this test keeps it so.

use std::time::Duration;

use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, Fault, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::eventually;
use tributary_tests::proxy::{Link, Proxy};

/// How many batches must arrive.
const BATCHES: i64 = 2_000;
/// How often the link is cut.
const CUT: Duration = Duration::from_millis(400);
/// A batch a poll: 100 a second.
const PERIOD_MS: i64 = 10;

#[tokio::test]
async fn live_nothing_is_lost_on_a_link_cut_every_400_ms() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let link = Link { cut_every: Some(CUT), delay: Duration::from_millis(5), ..Link::default() };
    let proxy = Proxy::start(([127, 0, 0, 1], broker.port()).into(), link).await?;
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
    let file = folder.path().join("centre.db");
    let mut receiver =
        Receiver::start("receiver", folder.path(), &broker.url(), &format!("sqlite:{}", file.display()))?;

    let head = format!(
        "[uplink]\nurl = \"mqtt://{}\"\nreconnect_max = \"100ms\"\n[batch]\nmax_age = \"10ms\"\n[spool]\ncommit = \"50ms\"\n",
        proxy.address()
    );
    let configuration = Configuration::new("cut", &broker.url())
        .with_head(&head)
        .bus("bus", device.address(), "30s")
        .device("plc", "bus", 1, &format!("{PERIOD_MS}ms"))
        .point("count", "holding", 0, "u32");
    let mut agent = Agent::start(&folder.path().join("agent"), &configuration)?;

    let database = Database::sqlite(&file);
    eventually("2,000 batches at the receiver", Duration::from_secs(400), async || {
        agent.assert_alive();
        receiver.assert_alive();
        let batches = database.number("SELECT count(*) FROM batch").await.ok()?;
        (batches >= BATCHES).then_some(())
    })
    .await;
    assert!(proxy.cuts() >= 10, "the link was cut only {} times: the test shows nothing", proxy.cuts());

    // On a link that holds what is left drains, and the stop sends the rest.
    proxy.stop_cutting();
    let behind = "SELECT (SELECT max(seq) FROM batch) - (SELECT max(contiguous_seq) FROM agent)";
    eventually("the backlog to drain", Duration::from_secs(60), async || {
        (database.number(behind).await.ok()? == 0).then_some(())
    })
    .await;
    // An agent that has no connection when it is asked to stop keeps what is left.
    eventually("the connection to hold", Duration::from_secs(60), async || {
        agent.status()?["uplink"]["healthy"].as_bool()?.then_some(())
    })
    .await;
    assert!(agent.stop().await.success());
    let ledger = database.last_word("cut").await;
    assert!(ledger.holds() && ledger.held == 0, "{ledger:?}");

    let batches = database.number("SELECT count(*) FROM batch").await?;
    assert_eq!(database.number("SELECT max(seq) FROM batch").await?, batches, "a seq is missing");
    assert_eq!(database.number("SELECT count(*) FROM gap").await?, 0);
    assert_eq!(database.number("SELECT count(*) FROM loss").await?, 0);
    assert_eq!(database.number("SELECT count(*) FROM quarantine").await?, 0);
    let rows = database.readings("plc", "count").await?;
    assert_eq!(every_count_once(&rows, &[])?, 0, "a count is missing");
    every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1)?;
    println!("{batches} batches, {} connections, {} cuts, none missing", proxy.connections(), proxy.cuts());
    assert!(receiver.stop().await.success());
    Ok(())
}
