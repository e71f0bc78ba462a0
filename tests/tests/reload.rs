//! SIGHUP: a new configuration while the agent runs, under load, many times. What does not change goes on without a missed
//! poll and under the same ids; what is wrong is refused, said, and changes nothing.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::eventually;

const PATIENCE: Duration = Duration::from_secs(30);
const PERIOD_MS: i64 = 20;

#[tokio::test]
async fn live_reloads_lose_nothing_and_touch_only_what_changes() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(&folder.path().join("broker")).await.unwrap();
    let (calm, changing) = (
        Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap(),
        Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap(),
    );
    let file = folder.path().join("centre.db");
    let store = format!("sqlite:{}", file.display());
    let receiver = Receiver::start("receiver", folder.path(), &broker.url(), &store).unwrap();
    let calm_line = |configuration: Configuration| {
        configuration
            .bus("calm", calm.address(), "30s")
            .device("calm", "calm", 1, &format!("{PERIOD_MS}ms"))
            .point("count", "holding", 0, "u32")
    };
    let changing_line = |configuration: Configuration| {
        configuration
            .bus("changing", changing.address(), "30s")
            .device("plc", "changing", 1, "20ms")
            .point("count", "holding", 0, "u32")
    };
    let new = || Configuration::new("gw", &broker.url());
    // The calm bus first or last: its requests and points have other places in the model each time.
    let plain = calm_line(new());
    let both = calm_line(changing_line(new()));
    let more = calm_line(changing_line(new()).point("level", "holding", 10, "u16"));
    let slower = changing_line(calm_line(new())).toml("description = \"the same polls\"\n");
    let head = format!(
        "[uplink]\nurl = \"{}\"\nreconnect_max = \"2s\"\n[batch]\nmax_age = \"50ms\"\n[spool]\ncommit = \"200ms\"\n",
        broker.url()
    );
    let settings = calm_line(changing_line(new().with_head(&head)));

    let mut agent = Agent::start(folder.path(), &plain).unwrap();
    let database = Database::sqlite(&file);
    let sha256 = |agent: &Agent| agent.status().map(|status| status["config_sha256"].clone());
    eventually("the first readings", PATIENCE, async || {
        (database.number("SELECT count(*) FROM reading").await.ok()? > 20).then_some(())
    })
    .await;
    for (round, configuration) in
        [&both, &more, &slower, &both, &settings, &more, &plain, &both].into_iter().enumerate()
    {
        let before = eventually("a status", PATIENCE, async || sha256(&agent)).await;
        agent.reload(configuration).unwrap();
        eventually("the new configuration", PATIENCE, async || (sha256(&agent)? != before).then_some(())).await;
        // Some polls under it.
        let seen = calm.requests();
        eventually("more polls", PATIENCE, async || (calm.requests() >= seen + 10).then_some(())).await;
        let status = eventually("a status", PATIENCE, async || agent.status()).await;
        assert_eq!(status["reload_error"], serde_json::Value::Null, "round {round}");
    }

    // Refused: what is no configuration, and what only a restart changes.
    let before = eventually("a status", PATIENCE, async || sha256(&agent)).await;
    for (wrong, word) in [
        (calm_line(new()).toml("[[bus]]\nname = \"calm\"\n"), "bus[1]"),
        (calm_line(Configuration::new("other", &broker.url())), "restart"),
    ] {
        agent.reload(&wrong).unwrap();
        let refused = async || agent.status()?["reload_error"].as_str()?.contains(word).then_some(());
        eventually("the refusal", PATIENCE, refused).await;
        let after = eventually("a status", PATIENCE, async || sha256(&agent)).await;
        assert_eq!(after, before, "the old one runs on");
    }
    agent.reload(&both).unwrap();
    eventually("a sound one again", PATIENCE, async || agent.status()?["reload_error"].is_null().then_some(())).await;

    eventually("the connection to hold", PATIENCE, async || {
        agent.status()?["uplink"]["healthy"].as_bool()?.then_some(())
    })
    .await;
    assert!(agent.stop().await.success());
    assert_eq!(agent.starts(), 1);
    let ledger = database.last_word("gw").await;
    assert!(ledger.holds() && ledger.held == 0 && ledger.lost == 0, "{ledger:?}");
    let rows = database.readings("calm", "count").await.unwrap();
    assert_eq!(every_count_once(&rows, &[]).unwrap(), 0, "a count is missing");
    every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1).unwrap();
    let ids = |what: &str| format!("SELECT count(DISTINCT id) FROM point WHERE {what}");
    assert_eq!(database.number(&ids("device = 'calm'")).await.unwrap(), 1, "what does not change keeps its id");
    assert_eq!(database.number(&ids("device = 'plc' AND point = 'count'")).await.unwrap(), 1);
    // A bus that ends waits for the answer to the question that is out.
    let rows = database.readings("plc", "count").await.unwrap();
    assert_eq!(every_count_once(&rows, &[]).unwrap(), 0, "a count is missing");
    drop(receiver);
}
