//! A start on a disk that cannot be used: the agent waits for it, and begins when it can. And who may ask it how it is.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
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
    let waits = async |agent: &Agent| agent.log().contains("nothing is polled until it can").then_some(());
    eventually("the agent says that it waits", PATIENCE, async || waits(&agent).await).await;
    assert_eq!(agent.stop().await.code(), Some(0), "a waiting agent can be stopped");
    assert_eq!(device.requests(), 0);

    agent.restart().unwrap();
    eventually("it says so again", PATIENCE, async || waits(&agent).await).await;
    fs::remove_dir(&in_the_way).unwrap();
    eventually("100 polls", PATIENCE, async || (device.requests() >= 100).then_some(())).await;
    let socket = folder.path().join("state/status.sock");
    let status = async || socket::status(&socket).ok();
    eventually("its status", PATIENCE, status).await;
    assert_eq!(agent.stop().await.code(), Some(0));
}

/// The modes of socket and folder are the first gate; behind it the kernel says who asks.
#[tokio::test]
async fn live_nobody_but_root_and_its_user_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    let configuration = Configuration::new("gw", "mqtt://127.0.0.1:9")
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "100ms")
        .point("count", "holding", 0, "u32");
    let mut agent = Agent::start(folder.path(), &configuration).unwrap();
    let socket = folder.path().join("state/status.sock");
    eventually("its status", PATIENCE, async || socket::status(&socket).ok()).await;
    for path in [folder.path(), &folder.path().join("state"), &socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let asked_by = |user: &str| {
        let mut client = Command::new("setpriv");
        client.args(["--reuid", user, "--regid", user, "--clear-groups", "socat", "-t", "5", "-"]);
        let output = client.arg(format!("UNIX-CONNECT:{}", socket.display())).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(asked_by("0").contains("\"ledger\""));
    assert_eq!(asked_by("65534"), "");
    assert_eq!(agent.stop().await.code(), Some(0));
}
