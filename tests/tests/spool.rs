//! `tributary spool`: what a person sees of the spool of a stopped agent, or of a copy from a dead gateway.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tributary::socket;
use tributary_tests::agent::{Agent, Configuration};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{binary, eventually};

fn spool(config: &Path, arguments: &[&str]) -> Output {
    Command::new(binary("tributary")).arg("spool").args(arguments).arg("-c").arg(config).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file below a folder with its contents.
fn contents(folder: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(contents(&entry)),
            false => drop(found.insert((entry.clone(), fs::read(&entry).unwrap()))),
        }
    }
    found
}

#[tokio::test]
async fn what_waits_is_told_verified_and_exported_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await.unwrap();
    // Nobody is there: everything stays in the spool.
    let configuration = Configuration::new("gw", "mqtt://127.0.0.1:9")
        .bus("bus", device.address(), "30s")
        .device("plc", "bus", 1, "50ms")
        .point("count", "holding", 0, "u32");
    let mut agent = Agent::start(folder.path(), &configuration).unwrap();
    let (config, root) = (folder.path().join("agent.toml"), folder.path().join("state/spool"));
    let at = folder.path().join("state/status.sock");
    eventually("some batches", Duration::from_secs(30), async || {
        socket::status(&at).ok().filter(|status| status.spool.records >= 10)
    })
    .await;

    let running = spool(&config, &["verify"]);
    assert_eq!(running.status.code(), Some(1));
    assert!(text(&running.stderr).contains("an agent uses the spool"), "{}", text(&running.stderr));
    assert!(agent.stop().await.success());

    let before = contents(&root);
    let verified = spool(&config, &["verify"]);
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
    let said = text(&spool(&config, &["status"]).stdout);
    assert!(said.contains("stopped cleanly") && said.contains("wait for their acknowledgement"), "{said}");

    let exported = spool(&config, &["export"]);
    let rows: Vec<String> = text(&exported.stdout).lines().skip(1).map(str::to_owned).collect();
    assert!(exported.status.success() && rows.len() >= 3, "{} rows: {}", rows.len(), text(&exported.stderr));
    assert!(said.contains(&format!("with {} readings", rows.len())), "{said}");
    // The device counts its polls: each is there once. One that fell due while this process stood still has no value.
    let raw = |row: &String| row.split(',').nth(8).unwrap().parse::<u64>().ok();
    let counts: Vec<u64> = rows.iter().filter_map(raw).collect();
    assert!(counts.len() >= 3 && counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counts:?}");
    let without = rows.iter().filter(|row| raw(row).is_none());
    assert!(without.clone().all(|row| row.contains(",COMM_FAIL,,,")), "{:?}", without.collect::<Vec<_>>());
    let json = text(&spool(&config, &["export", "--format", "json"]).stdout);
    assert_eq!(json.lines().count(), rows.len());
    let first = rows.iter().position(|row| raw(row).is_some()).unwrap();
    let first: serde_json::Value = serde_json::from_str(json.lines().nth(first).unwrap()).unwrap();
    assert_eq!((&first["device"], &first["point"], &first["raw"]), (&"plc".into(), &"count".into(), &counts[0].into()));
    assert!(contents(&root) == before, "looking changes nothing");

    // A directory that was set aside, in a copy: the same readings.
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-r").arg(&root).arg(&copy).status().unwrap();
    assert!(copied.success());
    let epoch = fs::read_dir(&copy)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|path| path.is_dir() && path.join("0000000000000001").exists());
    let epoch = epoch.unwrap();
    let aside = copy.join(format!("bad-{}-0000000000000001", epoch.file_name().unwrap().to_str().unwrap()));
    fs::rename(epoch.join("0000000000000001"), &aside).unwrap();
    let copy = copy.display().to_string();
    let salvaged = spool(&config, &["salvage", "--dir", &copy]);
    assert!(salvaged.status.success(), "{}", text(&salvaged.stderr));
    assert_eq!(text(&salvaged.stdout).lines().skip(1).collect::<Vec<_>>(), rows);
    assert_eq!(spool(&config, &["verify", "--dir", &copy]).status.code(), Some(1));

    // Damaged in the middle: named, and never a wrong value.
    let data = aside.join("db");
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes.iter_mut().skip(middle / 8).step_by(97).for_each(|byte| *byte ^= 0x55);
    fs::write(&data, bytes).unwrap();
    let salvaged = spool(&config, &["salvage", "--dir", &copy]);
    assert!(salvaged.status.code().is_some_and(|code| code <= 1), "{}", text(&salvaged.stderr));
    assert!(text(&salvaged.stdout).lines().skip(1).all(|row| rows.iter().any(|known| known == row)));
    assert!(!text(&spool(&config, &["verify", "--dir", "/nowhere"]).stderr).is_empty());
}
