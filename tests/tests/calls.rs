//! The spool on a disk whose calls do half, or fail while it is opened: nothing acknowledged is lost, and what could not be
//! read now is not taken for damage. A spot that stays bad costs what lies there, and the agent runs on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, Fault, Lost, every_count_once};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::eventually;
use tributary_tests::store::audit;
use tributary_tests::{seed, shim};

/// Runs the writer for so many commits, with a fault; gives what it said and the last seq that it was promised.
fn write(root: &Path, seed: u64, commits: u64, fault: Option<(&Path, &str, &str)>) -> (Output, u64) {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_store_writer"));
    writer.arg(root).arg(seed.to_string()).arg(commits.to_string());
    if let Some((library, name, value)) = fault {
        writer.env("LD_PRELOAD", library).env(name, value);
    }
    let output = writer.output().expect("runs");
    let said = String::from_utf8(output.stdout.clone()).expect("is text");
    let lines = said.lines().rev();
    let last = lines.filter_map(|line| line.strip_prefix("acked ").or(line.strip_prefix("opened "))).next();
    (output, last.map_or(0, |seq| seq.parse().expect("a number")))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("is made");
    for entry in fs::read_dir(from).expect("is read") {
        let entry = entry.expect("is read");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("has a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("is copied");
        }
    }
}

#[test]
fn short_writes_lose_nothing() {
    let folder = TempDir::new().expect("a directory");
    let (library, root) = (shim::library(folder.path()).expect("cc"), folder.path().join("spool"));
    let mut acked = 0;
    for seed in seed(0)..seed(0) + 3 {
        let (output, last) = write(&root, seed, 60, Some((&library, "SHORT", "1")));
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(last > acked, "seed {seed}");
        acked = last;
        let found = audit(&root, acked).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert_eq!(found, acked, "seed {seed}");
    }
}

/// Every read of an opening fails once, in one start each; the next start finds all.
#[test]
fn a_read_that_fails_at_the_start_is_no_damage() {
    let folder = TempDir::new().expect("a directory");
    let (library, root) = (shim::library(folder.path()).expect("cc"), folder.path().join("spool"));
    let (_, acked) = write(&root, seed(0), 80, None);
    let (mut refused, mut reads) = (0, 1);
    loop {
        let scratch = folder.path().join("scratch");
        copy(&root, &scratch);
        let (output, _) = write(&scratch, 1, 0, Some((&library, "READ_FAILS", &reads.to_string())));
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(said.contains("os error 5") || said.contains("Input/output error"), "read {reads}: {said}");
            refused += 1;
        }
        audit(&scratch, acked).unwrap_or_else(|fault| panic!("read {reads} failed: {fault}; the start said: {said}"));
        fs::remove_dir_all(&scratch).expect("is removed");
        // The first reads are those of the program's own start; the last are behind the end of what it reads.
        if output.status.success() && reads > 40 {
            break;
        }
        reads += 1;
    }
    println!("{refused} of {reads} starts were refused for now, none took it for damage");
    assert!(refused >= 20, "{refused} of {reads}");
}

/// A page in the middle of the newest directory goes bad, for ever, while the agent is away: it is tried for some seconds,
/// then the directory is set aside, the rest of it put in its place, and the loss is named.
#[tokio::test]
async fn live_a_spot_that_has_gone_bad_is_salvaged_round() -> Result<(), Fault> {
    let patience = Duration::from_secs(60);
    let folder = TempDir::new()?;
    let broker = Mosquitto::start(&folder.path().join("broker")).await?;
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
    let configuration = Configuration::new("gw", &broker.url())
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "20ms")
        .point("count", "holding", 0, "u32");
    let mut agent = Agent::start(folder.path(), &configuration)?;
    let records = |status: &serde_json::Value| status["spool"]["records"].as_u64().unwrap_or(0);
    eventually("a backlog", patience, async || agent.status().filter(|status| records(status) >= 60)).await;
    agent.kill();

    let mut files = Vec::new();
    for epoch in fs::read_dir(folder.path().join("state/spool"))?.flatten().filter(|entry| entry.path().is_dir()) {
        files.extend(fs::read_dir(epoch.path())?.flatten().map(|dir| dir.path().join("db")).filter(|db| db.exists()));
    }
    let newest = files.iter().max().ok_or("no database")?;
    let bytes = fs::read(newest)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).ok_or("an empty database")?;
    let bad = format!("BAD_SPOT={}:{}", fs::metadata(newest)?.ino(), written / 2 / 4096 * 4096);
    let preload = format!("LD_PRELOAD={}", shim::library(folder.path())?.display());
    let mut agent = Agent::start_under(folder.path(), &configuration, &["env", &preload, &bad])?;
    let before = device.requests();
    eventually("polls", patience, async || (device.requests() > before + 20).then_some(())).await;
    assert!(agent.log().contains("the spool cannot be opened"), "{}", agent.log());
    assert!(agent.log().contains("damaged directory set aside"), "{}", agent.log());

    let centre = folder.path().join("centre.db");
    let store = format!("sqlite:{}", centre.display());
    let _receiver = Receiver::start("receiver", folder.path(), &broker.url(), &store)?;
    let done = |status: &serde_json::Value| status["spool"]["records"] == 0 && status["ledger"]["delivered"] != 0;
    eventually("an empty spool", patience, async || agent.status().filter(done)).await;
    assert!(agent.stop().await.success());
    let database = Database::sqlite(&centre);
    let ledger = database.last_word("gw").await;
    assert!(ledger.holds(), "{ledger:?}");
    let rows = database.readings("plc", "count").await?;
    let readings = database.number("SELECT sum(readings) FROM loss").await?;
    let losses = [Lost { reason: String::new(), from_ms: 0, to_ms: 0, readings }];
    let missing = every_count_once(&rows, &losses).map_err(|wrong| format!("{wrong}\n{}", agent.log()))?;
    println!("{missing} counts are missing, {readings} are said to be lost, {} arrived", rows.len());
    assert!(missing < rows.len(), "the rest was put back");
    Ok(())
}
