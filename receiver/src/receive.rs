//! The receiver at work: messages from the broker become groups, groups become transactions, and Acks follow.
//!
//! ```text
//! broker → intake → group (200 batches or 50 ms) → store: settle, COMMIT → Ack → PUBACK
//! ```
//!
//! Two threads: the caller's runtime has the broker, a thread of its own has the store, so that an fsync or a large decode
//! never keeps a ping waiting. Between them bounded channels; the way back is unbounded, but nothing goes back that did
//! not come, so it holds no more than the way in.
//!
//! The database away: the group is tried again until it is in, no Ack is sent meanwhile, and what the broker may have under
//! way fills up; agents keep what is not acknowledged. A group that the database will not take is tried piece by piece, and
//! the piece that is at fault goes to quarantine: it never blocks what comes behind.
//!
//! Limits: a group has at most 200 messages and about 1,000,000 readings, 17 bytes each in memory.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock::now_ms;
use crate::config::{Config, ConfigError};
use crate::ingest::{Cause, Quarantined};
use crate::intake::Intake;
use crate::ledger::Arrival;
use crate::mqtt::{self, Link, Message, Receipt};
use crate::store::{Acks, Group, Store};
use crate::tls;
use crate::topic::{self, AgentKey};

/// Most messages in a group, and how long it stays open (contract, What the receiver does).
const GROUP_MESSAGES: usize = 200;
const GROUP_OPEN: Duration = Duration::from_millis(50);

/// A group closes at this many readings; the batch that passes it may have 1,048,576 more.
const GROUP_READINGS: usize = 1_000_000;

/// Messages between broker and store: more than the broker may have under way, so that its window is what bounds.
const QUEUE: usize = 1_024;

/// Why the receiver ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Exit code 78.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A bug: the store's thread is gone.
    #[error("the store's thread ended")]
    Store,
    /// The system gave no thread or runtime.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What goes back to the broker.
enum Out {
    Ack(String, Vec<u8>),
    Settled(Receipt),
}

/// Runs until `shutdown` resolves; then finishes the group in hand, sends its Acks and says goodbye: 4 s at most.
///
/// # Errors
/// A configuration that cannot work. What may pass (broker or database away) is waited for.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
    start(config, Box::pin(shutdown)).await
}

/// Boxed: else each crate that runs it compiles all of it again.
fn start(config: Config, shutdown: BoxFuture<'_, ()>) -> BoxFuture<'_, Result<(), RunError>> {
    Box::pin(receive(config, shutdown))
}

async fn receive(config: Config, shutdown: BoxFuture<'_, ()>) -> Result<(), RunError> {
    if let Some(tls) = &config.broker.tls {
        tls::client_config(tls)?;
    }
    if let Some((_, path)) = &config.broker.login {
        mqtt::password(path)?;
    }
    let store = Store::open(&config.store).map_err(|error| ConfigError::new("--store", error.to_string()))?;

    let (messages, inbox) = mpsc::channel(QUEUE);
    let (out, outbox) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let (link, linked) = watch::channel(None);
    let (ended, mut store_ended) = oneshot::channel();
    let prefix = config.prefix.clone();
    let committer = Committer { store, intake: Intake::new(), prefix, inbox, out, stopped };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("store".into()).spawn(move || {
        runtime.block_on(committer.run());
        let _ = ended.send(());
    })?;
    let broker = tokio::spawn(mqtt::run(config.broker, config.prefix, config.group, messages, link));
    let mut sender = tokio::spawn(send(outbox, linked.clone()));

    let grace = Duration::from_secs(1);
    let early = tokio::select! {
        () = shutdown => false,
        _ = &mut store_ended => true,
    };
    stop.send_replace(true);
    if !early {
        // The group in hand may be waiting for a slow disk, and is worth it: else its agents send it again.
        drop(timeout(2 * grace, store_ended).await);
        drop(timeout(grace, &mut sender).await);
    }
    sender.abort();
    let link = linked.borrow().clone();
    if let Some(link) = link {
        drop(timeout(grace / 2, link.disconnect()).await);
    }
    let farewell = broker.abort_handle();
    drop(timeout(grace / 2, broker).await);
    farewell.abort();
    if early { Err(RunError::Store) } else { Ok(()) }
}

/// Sends what goes back. An Ack waits for a connection: at the start the greetings are ready before it is.
async fn send(mut outbox: mpsc::UnboundedReceiver<Out>, mut linked: watch::Receiver<Option<Link>>) {
    while let Some(out) = outbox.recv().await {
        match out {
            Out::Settled(receipt) => receipt.give().await,
            Out::Ack(topic, payload) => {
                let link = match linked.wait_for(Option::is_some).await {
                    Ok(link) => link.clone(),
                    Err(_) => return,
                };
                if let Some(link) = link {
                    link.publish(&topic, payload).await;
                }
            }
        }
    }
}

/// What makes groups and commits them.
struct Committer {
    store: Store,
    intake: Intake,
    prefix: String,
    inbox: mpsc::Receiver<Message>,
    out: mpsc::UnboundedSender<Out>,
    stopped: watch::Receiver<bool>,
}

/// A group on its way.
#[derive(Default)]
struct Pending {
    group: Group,
    receipts: Vec<Receipt>,
    readings: usize,
}

/// The receiver was told to end.
struct Stopped;

impl Committer {
    async fn run(mut self) {
        if self.greet().await.is_err() {
            return;
        }
        loop {
            let first = tokio::select! {
                biased;
                _ = self.stopped.wait_for(|&stop| stop) => return,
                first = self.inbox.recv() => first,
            };
            let Some(first) = first else { return };
            let close = Instant::now() + GROUP_OPEN;
            let mut pending = Pending::default();
            let mut next = Some(first);
            while let Some(message) = next {
                if self.add(message, &mut pending).await.is_err() {
                    return;
                }
                let full = pending.receipts.len() >= GROUP_MESSAGES || pending.readings >= GROUP_READINGS;
                next = if full { None } else { timeout_at(close, self.inbox.recv()).await.ok().flatten() };
            }
            if self.persist(pending.group).await.is_err() {
                return;
            }
            for receipt in pending.receipts {
                drop(self.out.send(Out::Settled(receipt)));
            }
        }
    }

    /// An Ack to each agent that is known, so that a receiver that was away is noticed at once (rule 5).
    async fn greet(&mut self) -> Result<(), Stopped> {
        let mut tries = 0;
        let agents = loop {
            match self.store.agents().await {
                Ok(agents) => break agents,
                Err(error) => self.wait(&error.to_string(), &mut tries).await?,
            }
        };
        for agents in agents.chunks(GROUP_MESSAGES) {
            let group = agents.iter().map(|key| (key.clone(), vec![Arrival::Greeting])).collect();
            self.persist(group).await?;
        }
        Ok(())
    }

    async fn add(&mut self, message: Message, pending: &mut Pending) -> Result<(), Stopped> {
        let Some((key, kind)) = topic::parse(&self.prefix, &message.topic) else {
            tracing::debug!(topic = message.topic, "not an agent's topic");
            pending.receipts.push(message.receipt);
            return Ok(());
        };
        let mut arrivals = self.intake.take(&key, kind, &message.payload);
        if let [Arrival::Waiting { epoch, .. }] = arrivals[..] {
            let mut tries = 0;
            let known = loop {
                match self.store.catalog(&key, epoch).await {
                    Ok(known) => break known,
                    Err(error) => self.wait(&error.to_string(), &mut tries).await?,
                }
            };
            if let Some(known) = known {
                arrivals = self.intake.learn(&key, &known);
            }
        }
        for arrival in &arrivals {
            if let Arrival::Batch(delivery) = arrival {
                pending.readings += delivery.readings as usize;
            }
        }
        pending.group.entry(key).or_default().extend(arrivals);
        pending.receipts.push(message.receipt);
        Ok(())
    }

    /// Commits the group, however long it takes, and sends its Acks.
    async fn persist(&mut self, group: Group) -> Result<(), Stopped> {
        if group.is_empty() {
            return Ok(());
        }
        match self.commit(&group).await? {
            Ok(acks) => self.acknowledge(acks),
            Err(error) => {
                tracing::warn!(error, "the database does not take a group; trying piece by piece");
                for (key, arrivals) in group {
                    for arrival in arrivals {
                        self.persist_one(&key, arrival).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn persist_one(&mut self, key: &AgentKey, arrival: Arrival) -> Result<(), Stopped> {
        let alone = |arrival| Group::from([(key.clone(), vec![arrival])]);
        let detail = match self.commit(&alone(arrival.clone())).await? {
            Ok(acks) => {
                self.acknowledge(acks);
                return Ok(());
            }
            Err(detail) => detail,
        };
        tracing::error!(agent = %key, error = detail, "the database does not take what came; it goes to quarantine");
        let set_aside = match arrival {
            Arrival::Batch(delivery) => {
                let (epoch, seq, message) = (delivery.epoch, delivery.seq, delivery.message.clone());
                Quarantined { epoch, seq, cause: Cause::Database, detail, message }
            }
            Arrival::Catalog(catalog) => {
                let (epoch, message) = (catalog.epoch, catalog.message.clone());
                Quarantined { epoch, seq: 0, cause: Cause::BadCatalog, detail, message }
            }
            // A status has no readings, and what is said of the others is said again.
            _ => return Ok(()),
        };
        match self.commit(&alone(Arrival::Quarantine(set_aside.into()))).await? {
            Ok(acks) => self.acknowledge(acks),
            Err(error) => tracing::error!(agent = %key, error, "not even quarantine takes it; it stays at the edge"),
        }
        Ok(())
    }

    /// Commits, trying again for as long as the fault may pass; the error is about the data.
    async fn commit(&mut self, group: &Group) -> Result<Result<Acks, String>, Stopped> {
        let mut tries = 0;
        loop {
            match self.store.commit(group, now_ms()).await {
                Ok(acks) => return Ok(Ok(acks)),
                Err(error) if error.is_about_the_data() => return Ok(Err(error.to_string())),
                Err(error) => self.wait(&error.to_string(), &mut tries).await?,
            }
        }
    }

    fn acknowledge(&self, acks: Acks) {
        for (key, ack) in acks {
            let topic = key.ack_topic(&self.prefix);
            drop(self.out.send(Out::Ack(topic, ack.encode_to_vec())));
        }
    }

    /// Waits before the next try: 0.1 s · 2ⁿ up to 3 s, half of it by chance. Says so at the first, then every eighth time.
    async fn wait(&mut self, error: &str, tries: &mut u32) -> Result<(), Stopped> {
        if tries.is_multiple_of(8) {
            tracing::warn!(error, tries, "the database does not answer; trying again");
        }
        let most = Duration::from_millis(100).saturating_mul(1 << (*tries).min(7)).min(Duration::from_secs(3));
        *tries = tries.saturating_add(1);
        let stop = timeout(most.mul_f64(0.5 + fastrand::f64() / 2.0), self.stopped.wait_for(|&stop| stop));
        if stop.await.is_ok() { Err(Stopped) } else { Ok(()) }
    }
}
