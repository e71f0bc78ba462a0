//! The whole line as one value: it is told what happened and when, and answers what to do next.
//!
//! ```text
//! handle_poll, handle_message ─▶ intake ─▶ batcher ─▶ spool ⇄ disk
//!                                                       │
//! handle_connected, handle_ack … ───────────────────▶ uplink ─▶ broker
//! ```
//!
//! This file orders the stages and holds no rule of any. The shell calls [`Pipeline::poll`] until it answers `None`,
//! carries out each [`Output`], sleeps until [`Pipeline::next_deadline`] or the next event, and tells it.
//!
//! The law is checked here, from what each stage has in hand: [`Pipeline::held`].

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use tributary_proto::pb;
use tributary_proto::pb::loss::Reason;
use tributary_protocols::time::{Mono, Wall};

use crate::batch::{self, Batcher};
use crate::catalog::Catalog;
pub use crate::intake::Arrival;
use crate::intake::{Books, Intake, Unbuildable};
use crate::ledger::Ledger;
use crate::losses::Losses;
use crate::model;
use crate::spool::{self, Spool};
use crate::store::{Recovered, StoreCommand, StoreError};
use crate::uplink::{self, Doubt, Publish, Step, Uplink};

mod happened;
mod reload;
mod seal;
mod tell;

/// A status is published at least this often (contract, Topics).
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// So many waiting acknowledgements of local messages do not wait for the next commit (rule 23).
const MANY_RECEIPTS: usize = 10;
/// How long they wait then.
const RECEIPTS_WAIT: Duration = Duration::from_millis(100);
/// New points that appear within this time make one revision (rule 12).
const REVISION_WAIT: Duration = Duration::from_secs(1);
/// What a clean stop keeps of its time for the last commit.
const LAST_COMMIT: Duration = Duration::from_millis(800);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub mono: Mono,
    /// For stamps.
    pub wall: Wall,
}

/// Settings of the line, and who this agent is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the batch.
    pub batch: batch::Config,
    /// Of the spool.
    pub spool: spool::Config,
    /// Of the uplink.
    pub uplink: uplink::Config,
    /// Version of the agent, for the centre.
    pub version: String,
    /// Hash of the configuration, in hex.
    pub config_sha256: String,
    /// New at each start.
    pub boot_id: [u8; 16],
    /// For jitter and epochs.
    pub seed: u64,
}

/// A local message whose acknowledgement waits until its readings are safe; the number is the shell's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt(pub u64);

/// What the shell is to do.
#[derive(Debug)]
pub enum Output {
    /// Let the disk do this and tell how it went by [`Pipeline::handle_store`].
    Store(StoreCommand),
    /// Connect to the broker with this will on [`Channel::Status`]; tell by `handle_connected` or `handle_disconnected`.
    Connect {
        /// Serialized `AgentStatus`.
        will: Vec<u8>,
    },
    /// Drop the connection and tell `handle_disconnected`.
    Abort,
    /// Publish, in this order.
    Publish(Publish),
    /// After everything published: say goodbye to the broker.
    Disconnect,
    /// The readings of this local message are safe, or counted.
    Release(Receipt),
    /// Something the owner may want to know.
    Notice(Notice),
}

/// What happened, for log and counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A connection stands.
    Connected,
    /// A connection ended or could not be made; the next try is after this.
    Disconnected {
        /// Until the next try.
        retry_in: Duration,
    },
    /// A new epoch began.
    NewEpoch {
        /// The epoch.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// The disk refuses.
    StoreFailing(StoreError),
    /// The disk works again.
    StoreRecovered,
    /// Readings were lost.
    Lost {
        /// Why.
        reason: Reason,
        /// How many since the last notice.
        readings: u64,
    },
    /// The centre asks for the catalogue again and again: what was published does not reach it.
    CatalogAway {
        /// How large its message is.
        bytes: usize,
    },
    /// The centre asked for batches again.
    Replay {
        /// First seq.
        first: u64,
        /// Last seq.
        last: u64,
    },
    /// A message of the centre could not be read.
    Unreadable {
        /// `"ack"` or `"ctl"`.
        topic: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    /// Sending what can be sent until then.
    Draining(Mono),
    /// Waiting for the last commit until then.
    Committing(Mono),
    Finished,
}

/// The line.
#[derive(Debug)]
pub struct Pipeline {
    config: Config,
    rng: fastrand::Rng,
    catalog: Catalog,
    /// Revision that is durable.
    catalog_stored: u32,
    /// Revision in the commit under way.
    catalog_committing: u32,
    draft_since: Option<Mono>,
    intake: Intake,
    batcher: Batcher,
    spool: Spool,
    uplink: Uplink,
    ledger: Ledger,
    losses: Losses,
    lost_told: Ledger,
    events: Vec<pb::Event>,
    quality: pb::TimeQuality,
    time_error_ms: u32,
    outputs: VecDeque<Output>,
    /// Messages whose readings wait in the open batch.
    receipts: Vec<Receipt>,
    receipts_since: Option<Mono>,
    /// Messages whose readings are in a sealed batch, with its seq.
    sealed_receipts: VecDeque<(u64, Receipt)>,
    /// Messages whose readings are only folded; the flag is set once a commit counts them.
    folded_receipts: Vec<(bool, Receipt)>,
    doubt: Option<Doubt>,
    status_due: Option<Mono>,
    status_said: Option<(pb::agent_status::State, u64, u32)>,
    life: Life,
    /// The commit under way tells of a clean stop.
    clean_committing: bool,
    store_failing: bool,
}

impl Pipeline {
    /// Builds the line over what the disk held.
    ///
    /// # Errors
    /// The model passes a ceiling.
    pub fn new(config: Config, model: model::Model, mut found: Recovered, now: Now) -> Result<Self, Unbuildable> {
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let stored = found.catalog.clone().and_then(|message| Catalog::restore(message).ok());
        if stored.is_none() {
            found.catalog = None;
        }
        let started = Spool::start(config.spool, now.mono, found, |previous| fresh_epoch(previous, now.wall, &mut rng));
        let mut spool = started.spool;
        let mut catalog = match stored {
            Some(catalog) if catalog.epoch() == spool.epoch() => catalog,
            Some(mut catalog) => {
                catalog.new_epoch(spool.epoch());
                catalog
            }
            None => Catalog::new(spool.epoch()),
        };
        let restored_rev = catalog.rev();
        let (mut ledger, mut losses) = (started.ledger, started.losses);
        let mut batcher = Batcher::new(config.batch);
        let mut intake = Intake::new(&model, &mut catalog, &mut batcher, now.mono, now.wall)?;
        catalog.close();
        if let Some(state) = &started.state {
            intake.sets().restore(state, now.wall, &mut ledger, &mut losses);
        }
        spool.hurry();
        let same_epoch = started.state.is_some();
        let uplink = Uplink::new(config.uplink, now.mono);
        let mut pipeline = Self {
            rng,
            catalog_stored: if same_epoch { restored_rev } else { 0 },
            catalog_committing: 0,
            catalog,
            draft_since: None,
            intake,
            batcher,
            spool,
            uplink,
            ledger,
            losses,
            lost_told: ledger,
            events: Vec::new(),
            quality: pb::TimeQuality::Unsynced,
            time_error_ms: 0,
            outputs: VecDeque::new(),
            receipts: Vec::new(),
            receipts_since: None,
            sealed_receipts: VecDeque::new(),
            folded_receipts: Vec::new(),
            doubt: started.in_doubt.then_some(Doubt::Damaged),
            status_due: None,
            status_said: None,
            life: Life::Running,
            clean_committing: false,
            store_failing: false,
            config,
        };
        if !same_epoch {
            let epoch = pipeline.spool.epoch();
            let why = "no state of an earlier run was found".to_string();
            pipeline.notice(Notice::NewEpoch { epoch, why });
        }
        let boot_id = hex(&pipeline.config.boot_id);
        pipeline.event(now, "agent.start", pb::event::Value::String(boot_id), String::new());
        Ok(pipeline)
    }

    // ----------------------------------------------------------------------------------------------- what next

    /// What to do at `now`; call until `None`.
    pub fn poll(&mut self, now: Now) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if self.life == Life::Finished {
                return None;
            }
            self.close_windows(now);
            if self.losses.waiting() && self.spool.accepts() && !matches!(self.life, Life::Committing(_)) {
                self.batcher.open(now.mono); // they want a batch, readings or not
            }
            self.seal_due(now);
            self.change_epoch(now);
            self.drain(now);
            if !self.outputs.is_empty() {
                continue;
            }
            if let Some(command) = self.poll_spool(now) {
                return Some(Output::Store(command));
            }
            if self.say_status(now) {
                continue;
            }
            if self.holds_back() {
                return None;
            }
            let Some(step) = self.uplink.poll(now.mono, &mut self.spool, self.catalog_stored) else {
                // It may have asked the spool for an index or a commit.
                return self.poll_spool(now).map(Output::Store);
            };
            return Some(match step {
                Step::Connect => Output::Connect { will: self.will() },
                Step::Abort => Output::Abort,
                Step::Read(command) => Output::Store(command),
                Step::Catalog => {
                    self.publish_catalog();
                    continue;
                }
            });
        }
    }

    /// When [`poll`](Self::poll) has something to do again, if nothing happens before; never late, at times early.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        if self.life == Life::Finished {
            return None;
        }
        if !self.outputs.is_empty() {
            return Some(Mono::ZERO);
        }
        let seal = self.seal_deadline();
        let life = match self.life {
            Life::Draining(until) | Life::Committing(until) => Some(until),
            Life::Running | Life::Finished => None,
        };
        let status = self.status_due.filter(|_| self.uplink.connected());
        let spool = if self.commits() { self.spool.next_deadline() } else { self.spool.commands_deadline() };
        let uplink = if self.holds_back() { None } else { self.uplink.next_deadline(&self.spool) };
        let windows = self.intake.next_deadline().filter(|_| self.life == Life::Running);
        [windows, seal, spool, status, life, uplink].into_iter().flatten().min()
    }

    /// Whether data has to wait: the spool's identity is in doubt, or a revision is on its way to the disk.
    fn holds_back(&self) -> bool {
        self.uplink.open() && (self.doubt.is_some() || self.catalog_stored != self.catalog.rev())
    }

    /// Whether commits may begin: in doubt, none under the old numbers any more.
    fn commits(&self) -> bool {
        self.doubt.is_none()
    }

    /// Whether a clean stop has come to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.life == Life::Finished
    }

    // -------------------------------------------------------------------------------------------- nouns to look

    /// The law's left side and most of its right.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Readings in hand: in open windows, in the open batch, in the spool.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.intake.held() + self.batcher.held() + self.spool.held()
    }

    /// The spool.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The uplink.
    #[must_use]
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Newest catalogue revision.
    #[must_use]
    pub fn catalog_rev(&self) -> u32 {
        self.catalog.rev()
    }

    /// As the centre is told.
    #[must_use]
    pub fn state(&self) -> pb::agent_status::State {
        use pb::agent_status::State;
        match self.life {
            Life::Draining(_) | Life::Committing(_) => State::Stopping,
            Life::Finished => State::Offline,
            Life::Running if self.spool.failing().is_some() || !self.spool.accepts() => State::Degraded,
            Life::Running => State::Online,
        }
    }

    // ------------------------------------------------------------------------------------------------- in order

    fn books(&mut self) -> (&mut Intake, Books<'_>) {
        let overrun = if self.spool.failing().is_some() { Reason::StoreUnavailable } else { Reason::Overrun };
        let books = Books { ledger: &mut self.ledger, losses: &mut self.losses, batcher: &mut self.batcher, overrun };
        (&mut self.intake, books)
    }

    fn close_windows(&mut self, now: Now) {
        if self.life == Life::Running && self.intake.next_deadline().is_some_and(|deadline| now.mono >= deadline) {
            let accepts = self.spool.accepts();
            let (intake, books) = self.books();
            intake.close_windows(now.mono, now.wall, accepts, books);
        }
    }
}

/// An epoch later than `previous`: 42 bits of Unix ms, then 22 random bits (edge.proto).
fn fresh_epoch(previous: u64, wall: Wall, rng: &mut fastrand::Rng) -> u64 {
    let ms = u64::try_from(wall.0).unwrap_or(0).clamp(1, (1 << 42) - 2).max((previous >> 22) + 1);
    (ms << 22) | rng.u64(0..1 << 22)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
