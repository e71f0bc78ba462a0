//! The agent on disks that fail: full, without inodes, read-only, away, or with calls that fail; and two on one spool.
//!
//! Each line is an agent with a small file system of its own (`src/disk.rs`), devices that count their polls, and a centre
//! that keeps books. The trouble begins, is said once, and ends; the agent lives, and goes on within 5 s. In the end each
//! poll is at the centre once, or in a loss that the centre was told of: the sums are equal, not near.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::{JoinSet, LocalSet};
use tributary::clock::SystemClock;
use tributary::socket;
use tributary::status::{State, Status};
use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Commit, DirId, Store, StoreError};
use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::Clock;
use tributary_tests::agent::{Agent, Configuration, SITE};
use tributary_tests::count;
use tributary_tests::disk::{Disk, Kind, Trouble};
use tributary_tests::evidence::Fault as Wrong;
use tributary_tests::hostile_broker::{self, HostileBroker};
use tributary_tests::hostile_receiver::{self, Books, HostileReceiver, law_holds};
use tributary_tests::modbus_device::{Registers, Simulator};
use tributary_tests::process::{Process, binary, eventually};
use tributary_tests::proxy::{Link, Proxy};

/// How long a fact may be waited for on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What going on may take once the disk can be used again.
const RECOVERY: Duration = Duration::from_secs(5);
/// Readings of a poll: the count, and others that make a batch of a poll some 300 bytes, so that memory is soon full.
const READINGS: u64 = 31;
const FAILS: &str = "the spool cannot be written";
const GOES_ON: &str = "the spool can be written again";

/// One agent with all that belongs to it.
struct Line {
    name: String,
    trouble: Trouble,
    agent: Agent,
    link: Proxy,
    broker: HostileBroker,
    receiver: HostileReceiver,
    devices: Vec<Simulator>,
    /// After the agent: what is unmounted must not be in use.
    disk: Disk,
}

impl Line {
    async fn start(folder: &Path, name: &str, full: &str, trouble: Trouble) -> Result<Self, Wrong> {
        let folder = folder.join(name);
        let broker = HostileBroker::start(hostile_broker::Plan::honest()).await?;
        let receiver =
            HostileReceiver::start(&broker, &format!("edge/v1/{SITE}/{name}"), hostile_receiver::Plan::honest());
        let link = Proxy::start(broker.address(), Link::default()).await?;
        // A batch for nearly every poll, and a directory of the spool for 256 KB of them. Who must fill memory, or come to
        // the next directory, needs more.
        let many = if matches!(trouble, Trouble::Away | Trouble::Calls(..)) { 1 } else { 3 };
        let devices = Simulator::start_many(many, Registers::Counting, Duration::ZERO).await?;
        let head = format!(
            "[uplink]\nurl = \"mqtt://{}\"\nreconnect_max = \"1s\"\n[batch]\nmax_age = \"10ms\"\n\
             [spool]\ncommit = \"100ms\"\nmax_disk = \"4MB\"\nwhen_full = \"{full}\"\n",
            link.address()
        );
        let mut configuration = Configuration::new(name, &broker.url()).with_head(&head);
        for (at, device) in devices.iter().enumerate() {
            let plc = format!("plc{at}");
            configuration = configuration.bus(&plc, device.address(), "1s").device(&plc, &plc, at as u8 + 1, "10ms");
            configuration = configuration.point("count", "holding", 0, "u32");
            for other in 1..READINGS as u16 {
                configuration = configuration.point(&format!("other{other}"), "holding", other * 4 - 2, "u64");
            }
        }
        // One policy on each kind of full disk.
        let kind = if full == "stop-polling" { Kind::Ext4 } else { Kind::Tmpfs };
        let disk = Disk::mount(&folder, "state", kind)?;
        let agent = Agent::start(&folder, &configuration)?;
        Ok(Self { name: name.to_owned(), trouble, agent, link, broker, receiver, devices, disk })
    }

    /// How often the log says that the disk fails, and whether it still does. Each time is said once: no second line comes
    /// before it went on.
    fn outages(&self) -> (usize, bool) {
        let (mut count, mut fails) = (0, false);
        for line in self.agent.log().lines() {
            if line.contains(FAILS) {
                assert!(!fails, "{}: said more than once:\n{}", self.name, self.agent.log());
                (count, fails) = (count + 1, true);
            } else if line.contains(GOES_ON) {
                fails = false;
            }
        }
        (count, fails)
    }

    /// How many directories the spool has.
    fn directories(&self) -> usize {
        let inside = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        inside(&self.disk.place().join("spool"))
            .flat_map(|epoch| inside(&epoch.path()))
            .filter(|dir| dir.path().is_dir())
            .count()
    }

    /// The agent's own word; it is asked on its socket.
    fn status(&self) -> Status {
        socket::status(&self.disk.place().join("status.sock")).unwrap_or_default()
    }

    fn lost(&self, reason: &str) -> u64 {
        self.status().ledger.lost.get(reason).copied().unwrap_or_default()
    }

    /// Until the device has answered so many more polls: the agent lives.
    async fn polled(&mut self, more: u64) {
        let until = self.devices[0].requests() + more;
        eventually("more polls", PATIENCE, async || {
            self.agent.assert_alive();
            (self.devices[0].requests() >= until).then_some(())
        })
        .await;
    }

    /// Until the trouble shows as `fact` says. Meanwhile who takes the room goes on taking it.
    async fn troubled(&mut self, what: &str, mut fact: impl FnMut(&Self) -> bool) {
        eventually(&format!("{}: {what}", self.name), PATIENCE, async || {
            self.agent.assert_alive();
            self.disk.take().expect("room can be taken");
            fact(self).then_some(())
        })
        .await;
    }

    /// The disk is in trouble until the agent has said so and, `long`, has lost what memory could not hold; then it is not.
    async fn cycle(&mut self, number: usize, long: bool) -> Result<(), Wrong> {
        let (before, _) = self.outages();
        self.disk.begin(self.trouble, self.agent.pid()).await?;
        self.troubled("the disk fails", |line| line.outages().0 > before).await;
        if long {
            self.troubled("losses", |line| line.lost("store_unavailable") > 0).await;
        }
        if self.trouble == Trouble::Away {
            self.polled(20).await;
            let found = fs::read_dir(self.disk.place())?.count();
            assert_eq!(found, 0, "{}: written where the disk was", self.name);
        } else {
            self.troubled("the status says so", |line| {
                let status = line.status();
                status.state == State::Degraded && status.spool.last_error.is_some()
            })
            .await;
        }
        // Sled gives a little room back when it fails: the agent may have gone on for a moment.
        self.troubled("the disk fails still", |line| line.outages().1).await;
        let clock = SystemClock::new();
        let begun = clock.mono();
        self.disk.mend().await?;
        eventually(&format!("{} to go on", self.name), RECOVERY, async || {
            self.agent.assert_alive();
            (!self.outages().1).then_some(())
        })
        .await;
        let took = clock.mono().since(begun);
        println!("{} {:?} {number}: went on after {took:?}", self.name, self.trouble);
        self.polled(20).await;
        let (said, fails) = self.outages();
        assert!(!fails, "{}: fails again on a good disk", self.name);
        assert!(self.trouble == Trouble::Full || said == number, "{}: said {said} times", self.name);
        Ok(())
    }

    /// Stops the agent, and compares what the devices served with what the centre has and was told of.
    async fn judge(&mut self) -> Result<Books, Wrong> {
        let name = &self.name;
        assert!(self.agent.stop().await.success(), "{name}");
        assert!(!self.agent.log().contains("panicked"), "{name}: {}", self.agent.log());
        // Broker and receiver are in this process, and may still have to read it.
        let offline = pb::agent_status::State::Offline as i32;
        let books = eventually(&format!("{name}: its last word"), PATIENCE, async || {
            let books = self.receiver.books();
            books.statuses.last().is_some_and(|last| last.state == offline && last.at_ms > 0).then_some(books)
        })
        .await;
        let violations = self.broker.record().violations;
        assert!(violations.is_empty() && books.broken.is_empty(), "{name}: {violations:#?} {:#?}", books.broken);
        let mut ledgers = books.statuses.iter().filter_map(|status| status.ledger.as_ref());
        assert!(ledgers.all(law_holds), "{name}: the law does not hold");
        let last = books.ledger().ok_or("a ledger")?;
        assert_eq!(last.held, 0, "{name}: {last:?}");
        let told: u64 = books.lost().values().sum();
        let lost: u64 = last.lost.iter().map(|lost| lost.readings).sum();
        assert_eq!(told, lost, "{name}: lost by the agent's books, told to the centre: {:?} {last:?}", books.lost());

        let (mut rows_here, mut missing, mut without) = (0, 0, 0);
        for (at, device) in self.devices.iter().enumerate() {
            let point = format!("plc{at}/count");
            let mut rows: Vec<_> = books.readings().filter(|reading| reading.point == point).collect();
            rows.sort_by_key(|reading| reading.at_ms);
            let counts: Vec<u64> = rows.iter().filter_map(|reading| reading.bits).collect();
            assert!(counts.is_sorted_by(|a, b| a < b), "{name}: a count of {point} is there twice, or out of order");
            rows_here += rows.len() as u64;
            missing += device.requests() - counts.len() as u64;
            without += (rows.len() - counts.len()) as u64;
        }
        // A batch that arrived although its directory was given up while its Ack was on the way.
        let both: usize = books
            .epochs
            .values()
            .flat_map(|epoch| epoch.losses.iter().map(move |loss| (epoch, loss)))
            .filter(|(_, loss)| loss.first_seq > 0)
            .flat_map(|(epoch, loss)| epoch.batches.range(loss.first_seq..=loss.last_seq))
            .map(|(_, (_, readings))| readings.len())
            .sum();
        let gone = told - both as u64;
        assert_eq!(gone % READINGS, 0, "{name}: a loss of a part of a poll");
        println!(
            "{name}: {} batches, {missing} polls missing, {} lost {:?}, {without} without a value, ledger {last:?}",
            books.epochs.values().map(|epoch| epoch.batches.len()).sum::<usize>(),
            gone / READINGS,
            books.lost()
        );
        assert_eq!(
            (rows_here + gone / READINGS) * READINGS,
            last.admitted,
            "{name}: {rows_here} polls arrived, {gone} readings are said to be lost"
        );
        // An answer on its way at the stop is nobody's; a poll given up before its answer came has a row without a value.
        assert!(
            missing <= gone / READINGS + without + self.devices.len() as u64,
            "{name}: {missing} polls are missing, {} are said to be lost, {without} have no value",
            gone / READINGS
        );
        Ok(books)
    }
}

/// What happens to each line, side by side.
async fn side_by_side<F: Future<Output = Result<(), Wrong>> + 'static>(lines: impl IntoIterator<Item = F>) {
    let mut tasks = JoinSet::new();
    let local = LocalSet::new();
    lines.into_iter().for_each(|line| drop(tasks.spawn_local_on(line, &local)));
    local
        .run_until(async {
            while let Some(ended) = tasks.join_next().await {
                ended.expect("no line panics").expect("no line fails");
            }
        })
        .await;
}

#[tokio::test]
async fn live_a_full_disk_is_survived_again_and_again() {
    let folder = TempDir::new().unwrap();
    let line = async |full: &'static str, folder: PathBuf| {
        let mut line = Line::start(&folder, full, full, Trouble::Full).await?;
        let cycles = count("TRIBUTARY_DISK_FULLS", 5) as usize;
        line.polled(100).await;
        for number in 1..=cycles {
            line.cycle(number, number == cycles).await?;
        }
        let lost = line.judge().await?.lost();
        assert!(lost.contains_key(&(Reason::StoreUnavailable as i32)), "{full}: {lost:?}");
        Ok(())
    };
    side_by_side(["drop-oldest", "stop-polling"].map(|full| line(full, folder.path().to_owned()))).await;
}

#[tokio::test]
async fn live_a_disk_that_fails_otherwise_is_survived() {
    let folder = TempDir::new().unwrap();
    let line = async |(name, trouble), folder: PathBuf| {
        let mut line = Line::start(&folder, name, "drop-oldest", trouble).await?;
        line.polled(100).await;
        line.cycle(1, false).await?;
        let lost = line.judge().await?.lost();
        assert!(lost.is_empty(), "{name}: memory had room, and yet {lost:?} are lost");
        Ok(())
    };
    let troubles = [
        ("inodes", Trouble::NoInodes),
        ("read-only", Trouble::ReadOnly),
        ("away", Trouble::Away),
        ("sync-eio", Trouble::Calls("fdatasync", "EIO")),
        ("write-eio", Trouble::Calls("pwrite64", "EIO")),
        ("write-enospc", Trouble::Calls("pwrite64", "ENOSPC")),
    ];
    side_by_side(troubles.map(|trouble| line(trouble, folder.path().to_owned()))).await;
}

/// Nobody makes room, and the spool holds what the centre does not have yet. `drop-oldest` gives up the oldest and never
/// stops; `stop-polling` keeps all it has. When the centre can be reached, the spool empties itself on the full disk.
#[tokio::test]
async fn live_a_full_disk_under_a_backlog_empties_by_itself() {
    let folder = TempDir::new().unwrap();
    let line = async |full: &'static str, folder: PathBuf| {
        let mut line = Line::start(&folder, full, full, Trouble::Full).await?;
        line.link.set_up(false);
        // More would be near the quota, and at the quota nothing is written that could fail.
        eventually("two directories", PATIENCE, async || (line.directories() >= 2).then_some(())).await;
        line.disk.begin(Trouble::Full, line.agent.pid()).await?;
        eventually("that the disk fails", PATIENCE, async || {
            line.agent.assert_alive();
            line.disk.take().ok()?;
            (line.outages().0 > 0).then_some(())
        })
        .await;
        let reason = if full == "drop-oldest" { "spool_full" } else { "store_unavailable" };
        eventually(&format!("{full}: losses"), PATIENCE, async || (line.lost(reason) > 0).then_some(())).await;
        line.polled(200).await;
        line.link.set_up(true);
        eventually(&format!("{full} to go on with what it sends"), PATIENCE, async || {
            line.agent.assert_alive();
            let status = line.status();
            (status.state == State::Online && status.spool.records < 20).then_some(())
        })
        .await;
        // On the full disk each commit may fill it again, also the last one, and what memory holds then is lost unsaid here.
        line.disk.mend().await?;
        eventually(&format!("{full} to go on for good"), PATIENCE, async || (!line.outages().1).then_some(())).await;
        line.polled(100).await;
        let lost = line.judge().await?.lost();
        let (dropped, stopped) = (Reason::SpoolFull as i32, Reason::StoreUnavailable as i32);
        let only = if full == "drop-oldest" { dropped } else { stopped };
        assert_eq!(lost.keys().copied().collect::<Vec<_>>(), [only], "{full}: {lost:?}");
        Ok(())
    };
    side_by_side(["drop-oldest", "stop-polling"].map(|full| line(full, folder.path().to_owned()))).await;
}

/// The ballast is for what empties the spool. A commit that lets the rest of the spool go is of that kind, others are not.
#[tokio::test]
async fn what_frees_more_than_it_takes_may_use_the_ballast() -> Result<(), Wrong> {
    let folder = TempDir::new()?;
    let mut disk = Disk::mount(folder.path(), "state", Kind::Tmpfs)?;
    let root = disk.place().join("spool");
    let mut store = SledStore::open(&root, Reserve::default())?;
    let commit = |seq: u64, frees| Commit {
        dir: DirId { epoch: 1, first: if frees { seq } else { 1 } },
        records: vec![(seq, vec![seq as u8; 60_000])],
        state: seq.to_be_bytes().to_vec(),
        catalog: frees.then(|| vec![7; 9_000]),
        frees,
    };
    store.commit(&commit(1, true))?;
    disk.begin(Trouble::Full, 0).await?;
    let mut last = 1;
    let refused = loop {
        match store.commit(&commit(last + 1, false)) {
            Ok(_) => last += 1,
            Err(error) => break error,
        }
        disk.take()?;
    };
    assert!(matches!(refused, StoreError::Full(_)), "{refused}");
    assert!(root.join("ballast").exists(), "kept after {last} records");
    let mut old = DirId { epoch: 1, first: 1 };
    for _ in 0..10 {
        let frees = commit(last + 1, true);
        store.commit(&frees)?;
        let refused = store.commit(&Commit { frees: false, ..frees.clone() }).err();
        assert!(matches!(refused, Some(StoreError::Full(_))), "{refused:?}");
        let free = store.remove(old)?.free_bytes;
        assert!(free >= Reserve::default().ballast, "{free} bytes are free when {old:?} is gone");
        (old, last) = (frees.dir, last + 1);
    }
    // One that does not fit even so leaves its remains, which are in nobody's way at the next start.
    let records = (last + 1..last + 50).map(|seq| (seq, vec![seq as u8; 60_000])).collect();
    let refused = store.commit(&Commit { records, ..commit(last + 1, true) }).err();
    assert!(matches!(refused, Some(StoreError::Full(_))), "{refused:?}");
    drop(store);
    assert_eq!(SledStore::open(&root, Reserve::default())?.recover()?.dirs, [(old, last)]);
    Ok(())
}

#[tokio::test]
async fn live_a_second_agent_on_a_spool_is_refused() -> Result<(), Wrong> {
    let folder = TempDir::new()?;
    let device = Simulator::start(Registers::Counting, Duration::ZERO).await?;
    let configuration = Configuration::new("gw", "mqtt://127.0.0.1:9")
        .bus("bus", device.address(), "1s")
        .device("plc", "bus", 1, "20ms")
        .point("count", "holding", 0, "u32");
    let mut first = Agent::start(folder.path(), &configuration)?;
    eventually("a status", PATIENCE, async || first.status()).await;
    let mut command = Command::new(binary("tributary"));
    command.args(["run", "-c"]).arg(folder.path().join("agent.toml"));
    let mut second = Process::start("second", folder.path(), &command)?;
    assert!(!second.end(PATIENCE).await.success());
    let said = second.log();
    assert!(said.contains("another agent uses the spool") && said.contains("state_dir of its own"), "{said}");
    let before = device.requests();
    eventually("more polls", PATIENCE, async || (device.requests() > before + 20).then_some(())).await;
    let status = eventually("the first one's status", PATIENCE, async || first.status()).await;
    assert_eq!(status["state"], "online", "{status}");
    assert!(first.stop().await.success());
    Ok(())
}
