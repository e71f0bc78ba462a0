//! Certificates are replaced while an agent sends to a mosquitto that demands them: in every order, at once or in steps,
//! half written, mismatched, open to everyone. Each replacement costs one new connection at the most, what is bad leaves
//! what was good in force and is said, and every poll arrives exactly once. Secrets are in none of what is printed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tributary::clock::SystemClock;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration, Receiver};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::{Database, Fault, Lost, every_count_once, every_due_poll_left_a_trace};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::pki::{Authority, Issued, Wanted};
use tributary_tests::process::{binary, eventually_or, free_port, pause};

const SOON: Duration = Duration::from_secs(20);
const PERIOD_MS: i64 = 20;
/// Longer than two looks at the files.
const STEP: Duration = Duration::from_millis(2_100);

/// The agent's files.
struct Pki {
    folder: PathBuf,
    broker_ca: Authority,
    agents_ca: Authority,
}

impl Pki {
    fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let pki = Self {
            folder: folder.to_path_buf(),
            broker_ca: Authority::new("brokers"),
            agents_ca: Authority::new("agents"),
        };
        pki.write("ca.pem", &pki.broker_ca.pem, 0o644);
        pki
    }

    fn client(&self, number: u32) -> Issued {
        self.agents_ca.issue(&Wanted { organization: &format!("r{number}"), ..Wanted::client("rotating") })
    }

    /// In place: whoever reads meanwhile sees a part.
    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Beside it, then by rename.
    fn rename(&self, name: &str, text: &str, mode: u32) {
        self.write("fresh", text, mode);
        fs::rename(self.folder.join("fresh"), self.folder.join(name)).unwrap();
    }

    fn head(&self, port: u16) -> String {
        let at = |name: &str| self.folder.join(name).display().to_string();
        format!(
            "log = \"trace\"\n[uplink]\nurl = \"mqtts://localhost:{port}\"\nreconnect_max = \"1s\"\norder = \"oldest-first\"\nca = \"{}\"\ncert = \"{}\"\n\
             key = \"{}\"\nusername = \"gw\"\npassword_file = \"{}\"\n[batch]\nmax_age = \"50ms\"\n[spool]\ncommit = \"100ms\"\n",
            at("ca.pem"),
            at("client.pem"),
            at("client.key"),
            at("password"),
        )
    }
}

struct Line {
    pki: Pki,
    agent: Agent,
    _device: Simulator,
    receiver: Receiver,
    broker: Mosquitto,
    database: Database,
}

impl Line {
    async fn start(folder: &Path, pki: Pki, first: &Issued) -> Result<Self, Fault> {
        Self::start_under(folder, pki, first, &[]).await
    }

    /// The agent by a program that becomes it.
    async fn start_under(folder: &Path, pki: Pki, first: &Issued, under: &[&str]) -> Result<Self, Fault> {
        pki.write("client.key", &first.key, 0o600);
        pki.write("client.pem", &first.chain, 0o644);
        pki.write("password", "correct-horse-battery-staple\n", 0o600);
        let server = pki.broker_ca.issue(&Wanted::server(&["localhost"]));
        pki.write("server.pem", &server.chain, 0o644);
        pki.write("server.key", &server.key, 0o600);
        pki.write("agents.pem", &pki.agents_ca.pem, 0o644);
        let at = |name: &str| pki.folder.join(name).display().to_string();
        // The receiver comes by a listener of its own.
        let inside = free_port();
        let conf = format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nmax_queued_messages 100000\nlistener {inside} 127.0.0.1\n",
            at("agents.pem"),
            at("server.pem"),
            at("server.key"),
        );
        let broker = Mosquitto::start_with(&folder.join("broker"), &conf).await?;
        let file = folder.join("centre.db");
        let store = format!("sqlite:{}", file.display());
        let receiver = Receiver::start("receiver", folder, &format!("mqtt://127.0.0.1:{inside}"), &store)?;
        let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
        let configuration = Configuration::new("rotating", "")
            .with_head(&pki.head(broker.port()))
            .bus("bus", device.address(), "30s")
            .device("plc", "bus", 1, &format!("{PERIOD_MS}ms"))
            .point("count", "holding", 0, "u32");
        let agent = Agent::start_under(&folder.join("agent"), &configuration, under)?;
        let database = Database::sqlite(&file);
        Ok(Self { pki, agent, _device: device, receiver, broker, database })
    }

    fn uplink(&self) -> Option<Value> {
        Some(self.agent.status()?["uplink"].take())
    }

    /// Waits until that one is in force and acknowledged; how many connections were made until now.
    async fn has(&self, number: u32) -> u64 {
        let whose = format!("O=r{number}");
        eventually_or(&format!("{whose} to be in force"), SOON, async || {
            let uplink = self.uplink().ok_or_else(|| "no status".to_owned())?;
            let identity = &uplink["identity"];
            let subject = identity["subject"].as_str().unwrap_or_default();
            if subject.split(',').any(|part| part == whose) && uplink["healthy"] == true && identity["state"] == "ok" {
                uplink["reconnects"].as_u64().ok_or_else(|| "no count".to_owned())
            } else {
                Err(uplink.to_string())
            }
        })
        .await
    }

    /// Waits until the agent says so of its files.
    async fn complains(&self, words: &str) {
        eventually_or(&format!("the agent to say {words:?}"), SOON, async || {
            let uplink = self.uplink().ok_or_else(|| "no status".to_owned())?;
            let said = uplink["identity"]["trouble"].as_str().unwrap_or_default().to_owned();
            if said.contains(words) && uplink["identity"]["state"] == "trouble" {
                Ok(())
            } else {
                Err(uplink.to_string())
            }
        })
        .await;
    }

    /// Everything polled until now arrives, once.
    async fn all_arrives(&mut self) -> Result<usize, Fault> {
        let now_ms = SystemClock::new().wall().0;
        eventually_or("what was polled to arrive", SOON, async || {
            let rows = self.database.readings("plc", "count").await?;
            every_count_once(&rows, &[])?;
            let last = rows.last().map_or(0, |row| row.at_ms);
            if last >= now_ms { Ok(()) } else { Err(Fault::from(format!("{} ms behind", now_ms - last))) }
        })
        .await;
        self.agent.assert_alive();
        self.receiver.assert_alive();
        let rows = self.database.readings("plc", "count").await?;
        assert_eq!(every_count_once(&rows, &[])?, 0, "a count is missing");
        every_due_poll_left_a_trace(&rows, &[], PERIOD_MS, 1)?;
        for table in ["gap", "loss", "quarantine"] {
            assert_eq!(self.database.number(&format!("SELECT count(*) FROM {table}")).await?, 0, "{table}");
        }
        Ok(rows.len())
    }
}

/// How a pair is put in its place.
#[derive(Clone, Copy, Debug)]
enum How {
    Renamed,
    InPlace,
    KeyFirst,
    InSteps,
    HalfWritten,
    Mismatched,
    OpenToEveryone,
    WithAuthority,
}

impl How {
    const ALL: [Self; 8] = [
        Self::Renamed,
        Self::KeyFirst,
        Self::InPlace,
        Self::InSteps,
        Self::HalfWritten,
        Self::Mismatched,
        Self::OpenToEveryone,
        Self::WithAuthority,
    ];

    /// The slow ones once, the quick ones until there are twenty.
    fn of(number: u32) -> Self {
        let all = Self::ALL;
        let number = number as usize;
        if number < all.len() { all[number] } else { [Self::Renamed, Self::KeyFirst, Self::InPlace][number % 3] }
    }

    async fn replace(self, line: &Line, pair: &Issued) {
        let pki = &line.pki;
        let cert = |text: &str| pki.rename("client.pem", text, 0o644);
        let key = |text: &str| pki.rename("client.key", text, 0o600);
        match self {
            Self::Renamed => {
                cert(&pair.chain);
                key(&pair.key);
            }
            Self::InPlace => {
                pki.write("client.pem", &pair.chain, 0o644);
                pki.write("client.key", &pair.key, 0o600);
            }
            Self::KeyFirst => {
                key(&pair.key);
                cert(&pair.chain);
            }
            Self::InSteps => {
                cert(&pair.chain);
                line.complains("must be a pair").await;
                key(&pair.key);
            }
            Self::HalfWritten => {
                pki.write("client.pem", &pair.chain[..pair.chain.len() / 2], 0o644);
                line.complains("half written").await;
                pki.write("client.pem", &pair.chain, 0o644);
                key(&pair.key);
            }
            Self::Mismatched => {
                cert(&pair.chain);
                key(&pki.client(99).key);
                line.complains("must be a pair").await;
                key(&pair.key);
            }
            Self::OpenToEveryone => {
                cert(&pair.chain);
                pki.rename("client.key", &pair.key, 0o644);
                line.complains("open to everyone").await;
                key(&pair.key);
            }
            Self::WithAuthority => {
                // One more authority beside the broker's, then the pair.
                pki.rename("ca.pem", &format!("{}{}", Authority::new("next").pem, pki.broker_ca.pem), 0o644);
                cert(&pair.chain);
                key(&pair.key);
            }
        }
    }
}

#[tokio::test]
async fn live_twenty_rotations_lose_nothing() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let pki = Pki::new(&folder.path().join("pki"));
    let first = pki.client(0);
    let mut secrets = vec![first.key.clone(), "correct-horse-battery-staple".to_owned()];
    let mut line = Line::start(folder.path(), pki, &first).await?;
    let mut before = line.has(0).await;
    let mut reconnects = Vec::new();
    for number in 1..=20 {
        let how = How::of(number - 1);
        let pair = line.pki.client(number);
        secrets.push(pair.key.clone());
        how.replace(&line, &pair).await;
        let after = line.has(number).await;
        assert!(after - before <= 1, "{how:?} cost {} connections", after - before);
        reconnects.push(after - before);
        before = after;
    }
    let rows = line.all_arrives().await?;
    let log = line.agent.log();
    println!("{rows} counts; connections made anew: {reconnects:?}, {} bytes of log", log.len());
    assert!(reconnects.iter().sum::<u64>() > 0, "no rotation was seen");
    assert_eq!(log.matches("the certificates are renewed").count(), 20, "each is said once");
    assert!(!log.contains("no connection to the broker"), "a rotation is no trouble");
    assert_eq!(line.database.number("SELECT count(*) FROM event WHERE code = 'identity.renewed'").await?, 20);

    // The broker was told each time, so the centre never took the agent for gone.
    let goodbyes = line.broker.log().matches("Received DISCONNECT from plant-1-rotating").count();
    assert!(goodbyes >= 19, "{goodbyes} goodbyes; one may be overtaken by the next connection");

    // Secrets are nowhere: of a key any line of its text will do.
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary("tributary"));
        let output = output_of(command.args(arguments).arg("-c").arg(folder.path().join("agent/agent.toml")));
        assert!(output.len() > 100, "{arguments:?}: {output}");
        output
    };
    let printed =
        [log, run(&["status", "--json"]), run(&["status"]), run(&["check", "--json", "--plan"]), run(&["check"])];
    assert!(printed[0].contains("DEBUG"), "the log says all that it can");
    for secret in &secrets {
        let parts: Vec<&str> = secret.lines().filter(|part| part.len() > 20 && !part.starts_with("-----")).collect();
        assert!(!parts.is_empty());
        for part in parts {
            assert!(!printed.iter().any(|text| text.contains(part)), "a secret is printed");
        }
    }
    assert!(line.agent.stop().await.success());
    Ok(())
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The wrong certificate, or none: the agent runs, polls and keeps; the right one, and all of it arrives.
#[tokio::test]
async fn live_without_a_certificate_it_polls_and_keeps() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let pki = Pki::new(&folder.path().join("pki"));
    let old = pki.agents_ca.issue(&Wanted { days: (-40, -3), organization: "r0", ..Wanted::client("rotating") });
    let mut line = Line::start(folder.path(), pki, &old).await?;
    // Expired: mosquitto says so, and the agent says it on.
    eventually_or("the agent to say why", SOON, async || {
        let uplink = line.uplink().ok_or_else(|| "no status".to_owned())?;
        let said = uplink["last_error"].as_str().unwrap_or_default().to_owned();
        let held = line.agent.status().ok_or("no status")?["ledger"]["held"].as_u64().unwrap_or(0);
        if said.contains("certificate") && uplink["identity"]["state"] == "expired" && held > 50 {
            Ok(())
        } else {
            Err(format!("{uplink}, {held} held"))
        }
    })
    .await;
    // A restart in the middle of a replacement: half a key.
    let new = line.pki.client(1);
    line.pki.write("client.pem", &new.chain, 0o644);
    line.pki.write("client.key", &new.key[..80], 0o600);
    let stopped_ms = SystemClock::new().wall().0;
    assert!(line.agent.stop().await.success());
    line.agent.restart()?;
    line.complains("half written").await;
    pause(STEP).await;
    line.agent.assert_alive();
    line.pki.write("client.key", &new.key, 0o600);
    assert_eq!(line.has(1).await, 0, "the first connection of this run");
    let now_ms = SystemClock::new().wall().0;
    // The answer of one poll may have been on its way when the stop came.
    let broken_off = Lost { reason: "stop".into(), from_ms: 0, to_ms: 0, readings: 1 };
    let rows = eventually_or("what was kept to arrive", SOON, async || {
        let rows = line.database.readings("plc", "count").await?;
        let mut losses = line.database.losses("plc", "count").await?;
        losses.push(broken_off.clone());
        every_count_once(&rows, &losses)?;
        let last = rows.last().map_or(0, |row| row.at_ms);
        if last >= now_ms { Ok(rows) } else { Err(Fault::from(format!("{} ms behind", now_ms - last))) }
    })
    .await;
    assert!(rows.iter().filter(|row| row.at_ms < stopped_ms).count() > 50, "it polled from the start on: {rows:?}");
    assert!(line.agent.stop().await.success());
    Ok(())
}

/// A gateway whose clock begins in 1970, as one without a battery does: no certificate is valid by it, so nothing is sent,
/// and nothing is skipped; when the clock is set, it connects by itself.
#[tokio::test]
async fn live_a_clock_of_1970_keeps_until_it_is_set() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let pki = Pki::new(&folder.path().join("pki"));
    let first = pki.client(0);
    let days = SystemClock::new().wall().0 / 86_400_000 - 1;
    let file = folder.path().join("clock");
    fs::write(&file, format!("-{days}d"))?;
    let faked = [
        format!("LD_PRELOAD={}", libfaketime().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let under: Vec<&str> = std::iter::once("env").chain(faked.iter().map(String::as_str)).collect();
    let line = Line::start_under(folder.path(), pki, &first, &under).await?;
    eventually_or("the agent to say what is wrong with its clock", SOON, async || {
        let status = line.agent.status().ok_or_else(|| "no status".to_owned())?;
        let uplink = &status["uplink"];
        let said = uplink["last_error"].as_str().unwrap_or_default();
        let waits = uplink["connected"] == false && status["ledger"]["held"].as_u64() > Some(20);
        if waits && said.contains("not valid before") && said.contains("1970-01-0") {
            Ok(())
        } else {
            Err(uplink.to_string())
        }
    })
    .await;
    assert_eq!(line.database.number("SELECT count(*) FROM batch").await?, 0);
    // At once: the agent looks at it all the time.
    let right = folder.path().join("right");
    fs::write(&right, "+0")?;
    fs::rename(&right, &file)?;
    line.has(0).await;
    eventually_or("what was kept in 1970 to arrive", SOON, async || {
        let rows = line.database.readings("plc", "count").await?;
        let missing = every_count_once(&rows, &[])?;
        let early = rows.iter().filter(|row| row.at_ms < 10 * 86_400_000).count();
        let late = rows.len() - early;
        if early > 20 && late > 20 && missing == 0 { Ok(()) } else { Err(Fault::from(format!("{early} and {late}"))) }
    })
    .await;
    Ok(())
}

fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let file = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|file| file.is_file());
    file.expect("libfaketime is not installed: run tests/run once as root, or install Debian's faketime")
}
