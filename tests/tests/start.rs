//! A start on a disk that cannot be used: the agent waits for it, and begins when it can.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use tributary::socket;
use tributary_tests::agent::{Agent, Configuration};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn live_a_spool_that_cannot_be_opened_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let configuration = Configuration::new("gw", "mqtt://127.0.0.1:9")
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "20ms")
        .point("count", "holding", 0, "u32");
    // Neither root nor anybody else can write a file where a folder is.
    let in_the_way = folder.path().join("state/spool/SPOOL_FORMAT");
    fs::create_dir_all(&in_the_way).unwrap();

    let mut agent = Agent::start(folder.path(), &configuration).unwrap();
    let waits = async || agent.log().contains("nothing is polled until it can").then_some(());
    eventually("the agent says that it waits", PATIENCE, waits).await;
    assert_eq!(agent.stop().await.code(), Some(0), "a waiting agent can be stopped");
    assert_eq!(device.requests(), 0);

    agent.restart().unwrap();
    let waits = async || (agent.log().matches("nothing is polled until it can").count() == 1).then_some(());
    eventually("it says so again", PATIENCE, waits).await;
    fs::remove_dir(&in_the_way).unwrap();
    eventually("100 polls", PATIENCE, async || (device.requests() >= 100).then_some(())).await;
    let socket = folder.path().join("state/status.sock");
    let status = async || socket::status(&socket).ok();
    eventually("its status", PATIENCE, status).await;
    assert_eq!(agent.stop().await.code(), Some(0));
}
