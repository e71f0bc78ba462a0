//! The agent running: opens the spool, starts the drivers, and drives the pipeline until a signal.
//!
//! ```text
//! bus tasks ──polls──▶ ┌──────────┐ ──commands──▶ store thread
//! broker tasks ─msgs─▶ │   run    │ ◀──replies───
//! status socket ─ask─▶ │ pipeline │ ──publish───▶ wire task
//! signals ───────────▶ └──────────┘ ◀──events────
//! ```
//!
//! systemd hears how it is (`STATUS=`), and its watchdog is fed while the loop runs and the store answers: a process in
//! which one of them stands still is ended and started again.
//!
//! One loop owns the pipeline: it tells what happened, does what the pipeline answers, and sleeps until its next
//! deadline. It holds no rule of any stage. Every channel is bounded; what would block has a thread or task of its own.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};
use tributary_core::pipeline::{self, Now, Output, Pipeline};
use tributary_core::store::{Recovered, StoreCommand, StoreError, StoreReply};
use tributary_protocols::reading::Poll;
use tributary_protocols::time::{Clock, Mono};

use crate::clock::{QualityWatch, StepDetector, SystemClock, TimeQuality};
use crate::config::Config;
use crate::field::{self, Field};
use crate::machine::Stranger;
use crate::mqtt::{self, Wire, WireEvent};
use crate::notices::Notices;
use crate::socket::{self, WATCHED, Watched, Wish};
use crate::status;
use crate::store::SledStore;
use crate::store::thread::{Refused, STUCK, StoreThread};
use crate::tls::trust::{News, Trust};

mod reload;
mod start;

use reload::{Identity, Reload};
pub use start::{agent, run};

/// Commands that may wait for the disk.
const COMMANDS: usize = 16;
/// How often the clocks are compared and the store is looked after, at the least.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often systemd hears of us though nothing changes; its watchdog waits a minute.
const TELL_SYSTEMD: Duration = Duration::from_secs(10);
/// A call of the store that takes longer does not feed the watchdog.
const SLOW: Duration = Duration::from_secs(20);
/// Polls taken in before anything else is done.
const AT_ONCE: usize = 256;
/// Drivers get this long to end.
const DRIVERS_END: Duration = Duration::from_millis(300);
/// A clean stop has this long to send what it can, of the 5 s in all.
const GRACE: Duration = Duration::from_millis(3_800);
/// The goodbye to the broker.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The spool cannot be used.
    #[error("the spool in {dir}: {source}")]
    Spool {
        /// Its folder.
        dir: String,
        /// What is wrong.
        source: StoreError,
    },
    /// The status socket cannot be made.
    #[error("the status socket {path}: {source}")]
    Socket {
        /// Its path.
        path: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The state is of another machine.
    #[error("{0}")]
    Stranger(#[from] Stranger),
    /// The configuration passes a ceiling.
    #[error("{0}")]
    Model(#[from] tributary_core::intake::Unbuildable),
    /// The system gives no thread, timer or signal handler.
    #[error("the system refuses: {0}")]
    System(#[from] std::io::Error),
    /// The store has hung or ended: a supervised restart is safe, and the only cure.
    #[error("the store does not answer; ending for a restart, nothing accepted is lost")]
    StoreHung,
    /// The driver of a bus or broker has ended of itself.
    #[error("the driver of {0} has ended; ending for a restart, nothing accepted is lost")]
    DriverEnded(String),
}

/// The pipeline's own settings. Boot id and seed are new at each call: a reload keeps those of the start.
fn core_config(config: &Config) -> pipeline::Config {
    pipeline::Config {
        batch: config.batch.core(),
        spool: config.spool.core(),
        uplink: config.uplink.core(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config_sha256: config.sha256.clone(),
        boot_id: fastrand::u128(..).to_be_bytes(),
        seed: fastrand::u64(..),
    }
}

/// Everything the loop owns.
struct Agent {
    clock: SystemClock,
    quality: QualityWatch,
    steps: StepDetector,
    pipeline: Pipeline,
    store: StoreThread,
    replies: mpsc::Receiver<StoreReply>,
    /// Commands that the thread had no room for.
    commands: VecDeque<StoreCommand>,
    wire: Wire,
    /// The certificates of an uplink that has TLS.
    trust: Option<Trust>,
    /// Whether the connection is to be dropped because they were renewed.
    renewed: bool,
    wire_events: mpsc::Receiver<(u64, WireEvent)>,
    field: Field,
    facts: field::Facts,
    notices: Notices,
    status: status::Source,
    /// Takes readings for those who watch.
    watched: broadcast::Sender<Arc<Watched>>,
    /// The configuration's file, and what of it only a restart changes.
    file: PathBuf,
    identity: Identity,
    time_sync: String,
    reload: Reload,
    last_look: Mono,
    /// When, and in which words.
    told_systemd: Option<(Mono, String)>,
    goodbye: bool,
}

impl Agent {
    fn new(config: Config, clock: SystemClock, store: SledStore, found: Recovered) -> Result<Self, RunError> {
        let (mono, wall) = clock.both();
        let now = Now { mono, wall };
        let status = status::Source::new(&config);
        let core = core_config(&config);
        let (file, identity, time_sync) = (config.file.clone(), Identity::of(&config), config.agent.time_sync.clone());
        let Some(endpoint) = config.uplink.endpoint() else {
            // `check` refuses such a configuration; nobody else makes one.
            return Err(RunError::System(std::io::ErrorKind::InvalidInput.into()));
        };
        let (wire, wire_events) = Wire::new(&config.agent, &config.uplink, endpoint);
        let pipeline = Pipeline::new(core, config.model, found, now)?;
        let (store, replies) = StoreThread::spawn(store, Arc::new(clock), COMMANDS)?;
        let (field, facts) = Field::start(config.buses, config.brokers, &config.agent.state_dir, clock);
        let mut agent = Self {
            clock,
            quality: QualityWatch::new(&config.agent.time_sync),
            steps: StepDetector::default(),
            pipeline,
            store,
            replies,
            commands: VecDeque::new(),
            wire,
            trust: Trust::new(&config.uplink),
            renewed: false,
            wire_events,
            field,
            facts,
            notices: Notices::default(),
            status,
            watched: broadcast::channel(WATCHED).0,
            file,
            identity,
            time_sync,
            reload: Reload::Idle,
            last_look: mono,
            told_systemd: None,
            goodbye: false,
        };
        agent.look(now);
        Ok(agent)
    }

    fn now(&mut self) -> Now {
        let (mono, wall) = self.clock.both();
        let now = Now { mono, wall };
        if let Some(offset_ms) = self.steps.look(mono, wall) {
            tracing::warn!(offset_ms, "the wall clock stepped");
            self.pipeline.handle_step(now, offset_ms);
            if self.trust.is_some() {
                self.pipeline.hasten(now); // no certificate is valid by a wrong clock, and this one may be right
            }
            self.look(now);
        }
        now
    }

    /// What the system says of its clock.
    fn look(&mut self, now: Now) {
        use tributary_proto::pb;
        self.last_look = now.mono;
        self.notices.look(now.mono);
        for news in self.trust.as_mut().map(|trust| trust.look(now.mono, now.wall)).unwrap_or_default() {
            self.notices.tell_trust(&news);
            let renewed = matches!(news, News::Renewed(_));
            self.renewed |= renewed;
            self.pipeline.handle_identity(now, news.code(), news.to_string(), renewed);
        }
        let quality = match self.quality.look(now.wall) {
            TimeQuality::Synced => pb::TimeQuality::Synced,
            TimeQuality::Holdover => pb::TimeQuality::Holdover,
            TimeQuality::Unsynced => pb::TimeQuality::Unsynced,
        };
        self.status.time_quality = quality;
        self.pipeline.handle_clock(now, quality, 0);
    }

    async fn run(
        &mut self,
        listener: UnixListener,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
        mut reloads: mpsc::Receiver<()>,
    ) -> Result<(), RunError> {
        let (wishes, mut wished) = mpsc::channel::<Wish>(8);
        tokio::spawn(socket::serve(listener, wishes));
        self.tell_systemd(true);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "the agent runs");
        // When the drivers must have ended, once a stop was asked for.
        let mut drivers_end: Option<Mono> = None;
        let (mut polling, mut listening, mut stopping) = (true, true, false);
        loop {
            let now = self.now();
            if self.store.stuck_for(now.mono).is_some_and(|stuck| stuck >= STUCK) {
                return Err(RunError::StoreHung);
            }
            if now.mono.since(self.last_look) >= LOOK_EVERY {
                self.look(now);
                if let Some(name) = self.field.ended() {
                    return Err(RunError::DriverEnded(name.to_owned()));
                }
                self.tell_systemd(false);
            }
            self.try_reload()?;
            if let Some(end) = drivers_end
                && !stopping
                && ((!polling && !listening) || now.mono >= end)
            {
                stopping = true;
                self.pipeline.stop(now, GRACE);
            }
            self.act(now)?;
            if self.pipeline.is_finished() && self.goodbye {
                return self.goodbye().await;
            }
            let deadline = self
                .pipeline
                .next_deadline()
                .into_iter()
                .chain([now.mono + LOOK_EVERY])
                .chain(drivers_end.filter(|_| !stopping))
                .min()
                .unwrap_or(now.mono);
            let alarm = tokio::time::sleep_until(self.clock.instant(deadline).into());
            tokio::select! {
                reply = self.replies.recv() => match reply {
                    Some(reply) => { let now = self.now(); self.pipeline.handle_store(now, reply); }
                    None => return Err(RunError::StoreHung),
                },
                Some((connection, event)) = self.wire_events.recv() => self.wire_event(connection, event),
                poll = self.facts.polls.recv(), if polling => match poll {
                    Some((_, poll)) => self.take_polls(poll),
                    None => polling = false,
                },
                message = self.facts.messages.recv(), if listening => match message {
                    Some(message) => self.take_message(message),
                    None => listening = false,
                },
                Some(wish) = wished.recv() => self.grant(wish),
                Some(()) = reloads.recv(), if self.reload.is_idle() && drivers_end.is_none() => self.reload(),
                step = self.reload.step() => self.reload_step(step)?,
                () = &mut shutdown, if drivers_end.is_none() => {
                    tracing::info!("stopping");
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                    self.reload = Reload::Idle;
                    self.field.stop();
                    drivers_end = Some(self.clock.mono() + DRIVERS_END);
                }
                () = alarm => {}
            }
        }
    }

    /// Does what the pipeline wants done now.
    fn act(&mut self, now: Now) -> Result<(), RunError> {
        while let Some(output) = self.pipeline.poll(now) {
            match output {
                Output::Store(command) => self.commands.push_back(command),
                Output::Connect { will } => {
                    self.renewed = false;
                    self.wire.connect(will, self.trust.as_ref().map(Trust::config));
                }
                Output::Abort if self.renewed => self.wire.leave(mqtt::RENEWED),
                Output::Abort => self.wire.abort(mqtt::NO_PROGRESS),
                Output::Publish(publish) => self.wire.publish(publish),
                Output::Disconnect => {}
                Output::Release(receipt) => self.field.release(receipt),
                Output::Notice(notice) => self.notices.tell(now.mono, &notice),
            }
        }
        self.goodbye |= self.pipeline.is_finished();
        while let Some(command) = self.commands.pop_front() {
            match self.store.send(command) {
                Ok(()) => {}
                Err(Refused::Busy(command)) => {
                    self.commands.push_front(*command);
                    break;
                }
                Err(Refused::Ended) => return Err(RunError::StoreHung),
            }
        }
        Ok(())
    }

    fn take_polls(&mut self, first: Poll) {
        let now = self.now();
        self.take_poll(now, first);
        for _ in 1..AT_ONCE {
            let Ok((_, poll)) = self.facts.polls.try_recv() else { break };
            self.take_poll(now, poll);
        }
    }

    fn take_poll(&mut self, now: Now, poll: Poll) {
        let Some(request) = self.field.request(poll.request) else { return };
        let poll = Poll { request, ..poll };
        self.show(|| Watched::from(&poll));
        self.pipeline.handle_poll(now, &poll);
    }

    fn take_message(&mut self, message: field::Message) {
        let now = self.now();
        if self.watched.receiver_count() > 0 {
            self.field.watched(&message).for_each(|watched| self.show(|| watched));
        }
        self.field.take(now, message, &mut self.pipeline);
    }

    /// For those who watch, if somebody does.
    fn show(&self, watched: impl FnOnce() -> Watched) {
        if self.watched.receiver_count() > 0 {
            let _ = self.watched.send(Arc::new(watched()));
        }
    }

    /// Who asked may be gone by now: then nothing is sent.
    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Status(reply) => {
                let now = self.now();
                let way = status::Way { last_error: self.notices.last_error(), trust: self.trust.as_ref() };
                let _ = reply.send(self.status.status(now, &self.pipeline, &self.field, way));
            }
            Wish::Bus(name, reply) => {
                let _ = reply.send(self.field.asks(&name));
            }
            Wish::Watch(reply) => {
                let _ = reply.send(self.watched.subscribe());
            }
        }
    }

    fn wire_event(&mut self, connection: u64, event: WireEvent) {
        if !self.wire.is_current(connection) {
            return;
        }
        let now = self.now();
        match event {
            WireEvent::Connected => self.pipeline.handle_connected(now),
            WireEvent::Disconnected(reason) => {
                self.notices.why_disconnected(reason);
                self.pipeline.handle_disconnected(now);
            }
            WireEvent::Puback(seq) => self.pipeline.handle_puback(now, seq),
            WireEvent::Ack(bytes) => self.pipeline.handle_ack(now, &bytes),
            WireEvent::Control(bytes) => self.pipeline.handle_control(now, &bytes),
        }
    }

    /// Feeds systemd's watchdog, if the store is well, and says how the agent is.
    fn tell_systemd(&mut self, now: bool) {
        use sd_notify::NotifyState::{Ready, Status, Watchdog};
        let mono = self.clock.mono();
        let words = self.status.words(&self.pipeline, &self.field);
        let is_told = |(told, said): &(Mono, String)| mono.since(*told) < TELL_SYSTEMD && *said == words;
        if !now && self.told_systemd.as_ref().is_some_and(is_told) {
            return;
        }
        let line = format!("{words}; {} readings held", self.pipeline.held());
        self.told_systemd = Some((mono, words));
        let mut states = vec![Status(&line)];
        states.extend(now.then_some(Ready));
        if self.store.stuck_for(mono).is_none_or(|stuck| stuck < SLOW) {
            states.push(Watchdog);
        }
        let _ = sd_notify::notify(&states);
    }

    async fn goodbye(&mut self) -> Result<(), RunError> {
        let _ = tokio::time::timeout(GOODBYE, self.wire.disconnect()).await;
        let ledger = self.pipeline.ledger();
        tracing::info!(
            admitted = ledger.admitted,
            delivered = ledger.delivered,
            held = self.pipeline.held(),
            filtered = ledger.filtered,
            lost = ledger.lost(),
            "the agent ended"
        );
        Ok(())
    }
}
