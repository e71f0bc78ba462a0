//! The beginning and the end of the agent: its runtime, its signals, and the spool, without which no reading has a name.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use tributary_core::store::{Recovered, Store, StoreError};
use tributary_protocols::time::Clock;

use super::{Agent, RunError};
use crate::cli::BAD_CONFIGURATION;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::store::{Reserve, SledStore, Tries};
use crate::{field, machine, socket};

/// How often a spool that cannot be opened is tried again.
const SPOOL_RETRY: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::System).and_then(
            |runtime| {
                let outcome = runtime.block_on(async { agent(config, signal()?, hangups()?).await });
                runtime.shutdown_background();
                outcome
            },
        );
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent ends");
            // What only a person can mend is not tried again.
            if matches!(error, RunError::Stranger(_)) { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::FAILURE }
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT.
fn signal() -> Result<impl Future<Output = ()>, RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// One message for any number of SIGHUPs that came since the last was taken.
fn hangups() -> Result<mpsc::Receiver<()>, RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    let (heard, hangups) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let _ = heard.try_send(());
        }
    });
    Ok(hangups)
}

/// The agent, until `shutdown` resolves and a clean stop has come to its end. A message of `reloads` has it read its
/// configuration again.
///
/// # Errors
/// See [`RunError`].
pub async fn agent(
    config: Config,
    shutdown: impl Future<Output = ()>,
    reloads: mpsc::Receiver<()>,
) -> Result<(), RunError> {
    field::install_crypto();
    let clock = SystemClock::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let root = config.agent.state_dir.join("spool");
    machine::check(&config.agent)?;
    let (store, found) = tokio::select! {
        biased;
        opened = open_spool(&root, clock) => opened.map_err(|source| RunError::Spool { dir: root.display().to_string(), source })?,
        () = &mut shutdown => return Ok(()),
    };
    machine::remember(&config.agent);
    let socket = config.agent.socket();
    let listener =
        socket::bind(&socket).map_err(|source| RunError::Socket { path: socket.display().to_string(), source })?;
    let mut agent = Agent::new(config, clock, store, found)?;
    let outcome = agent.run(listener, shutdown, reloads).await;
    let _ = std::fs::remove_file(&socket);
    outcome
}

/// Opens the spool, and waits for a disk that cannot be used: a restart would not mend it. Until then nothing is polled,
/// for without the state record no reading has a name; the next start counts what was due.
async fn open_spool(root: &Path, clock: SystemClock) -> Result<(SledStore, Recovered), StoreError> {
    let (mut tries, mut told) = (Tries::new(), None);
    loop {
        // Each time anew: what is held open would keep a disk from being mounted again.
        let opened = SledStore::open(root, Reserve::default()).and_then(|store| {
            let mut store = store.after(std::mem::take(&mut tries));
            match store.recover() {
                Ok(found) => Ok((store, found)),
                Err(error) => {
                    tries = store.tries();
                    Err(error)
                }
            }
        });
        let error = match opened {
            Err(error @ (StoreError::Full(_) | StoreError::Unavailable(_))) => error,
            opened => return opened,
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        if told.as_ref() != Some(&error) {
            tracing::error!(dir = %root.display(), %error, "the spool cannot be opened: nothing is polled until it can, it is tried again");
            let status = format!("waits for its spool: {error}");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
            told = Some(error);
        }
        tokio::time::sleep_until(clock.instant(clock.mono() + SPOOL_RETRY).into()).await;
    }
}
