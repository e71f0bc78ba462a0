//! A call into the store that never returns, as sled's deadlock would be (and as a card does that has died): the agent ends
//! the process for a supervised restart, and nothing that was accepted is lost by it.
//!
//! Half a minute passes in which nothing happens: no test that wants both cores, so not one of the `live_` ones.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::time::Duration;

use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, every_count_once};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::eventually;
use tributary_tests::shim;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_store_that_hangs_ends_the_process_and_a_restart_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(&folder.path().join("broker")).await.unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let file = folder.path().join("centre.db");
    let store = format!("sqlite:{}", file.display());
    let receiver = Receiver::start("receiver", folder.path(), &broker.url(), &store).unwrap();
    let configuration = Configuration::new("gw", &broker.url())
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "100ms")
        .point("count", "holding", 0, "u32");
    let (shim, hang) = (shim::library(folder.path()).unwrap(), folder.path().join("hang"));
    let (preload, hangs) = (format!("LD_PRELOAD={}", shim.display()), format!("HANG={}", hang.display()));
    let mut agent = Agent::start_under(folder.path(), &configuration, &["env", &preload, &hangs]).unwrap();
    let database = Database::sqlite(&file);
    let readings =
        async |least: i64| (database.number("SELECT count(*) FROM reading").await.ok()? >= least).then_some(());
    eventually("50 readings", PATIENCE, async || readings(50).await).await;

    File::create(&hang).unwrap();
    let ended = eventually("the agent to give up", PATIENCE, async || agent.ended()).await;
    assert_eq!(ended.code(), Some(1), "systemd starts it again");
    assert!(agent.log().contains("the store does not answer"), "it says why");
    fs::remove_file(&hang).unwrap();

    let before = database.number("SELECT count(*) FROM reading").await.unwrap();
    agent.restart().unwrap();
    eventually("more readings", PATIENCE, async || readings(before + 50).await).await;
    assert!(agent.stop().await.success());
    let ledger = database.last_word("gw").await;
    assert!(ledger.holds(), "{ledger:?}");
    let rows = database.readings("plc", "count").await.unwrap();
    let losses = database.losses("plc", "count").await.unwrap();
    let missing = every_count_once(&rows, &losses).unwrap();
    assert!(losses.iter().all(|loss| loss.reason == "agent_down"), "{losses:?}");
    println!("{missing} counts were in memory alone, {losses:?}");
    drop(receiver);
}
