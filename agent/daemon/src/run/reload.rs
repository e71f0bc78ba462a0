//! A new configuration while running (SIGHUP, `systemctl reload`).
//!
//! ```text
//! SIGHUP ─▶ load and check, beside the loop ─▶ end the drivers that change ─▶ pipeline and drivers go on under the new one
//!               refused: the old one runs on, the log and `status` say why
//! ```
//!
//! What does not change goes on: its bus misses no poll, its points keep their ids, its windows stay open. What was taken
//! in before is sealed under the old configuration. Who the agent is and where it keeps its state is for a restart.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Agent, RunError, core_config};
use crate::clock::QualityWatch;
use crate::config::{self, Config, Occasion, Report};
use crate::status;
use crate::tls::trust::Trust;

/// Drivers that change get this long to end; one that has not is broken off.
const DRIVERS_END: Duration = Duration::from_secs(5);

/// How far a reload is.
#[derive(Default)]
pub(super) enum Reload {
    /// None is under way.
    #[default]
    Idle,
    /// The files are read and checked.
    Loading(JoinHandle<(Option<Config>, Report)>),
    /// Drivers that change come to their end.
    Ending(Box<Config>, JoinHandle<()>),
    /// All have ended; the spool has no room for the open batch yet.
    Waiting(Box<Config>),
}

/// What a reload waited for.
pub(super) enum Step {
    Loaded(Option<Box<Config>>, String),
    Ended,
}

impl Reload {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Resolves when there is something to do; may be dropped and asked again.
    pub(super) async fn step(&mut self) -> Step {
        match self {
            Self::Loading(task) => match task.await {
                Ok((config, report)) => Step::Loaded(config.map(Box::new), report.brief()),
                Err(error) => Step::Loaded(None, error.to_string()),
            },
            Self::Ending(_, task) => {
                let _ = task.await;
                Step::Ended
            }
            Self::Idle | Self::Waiting(_) => std::future::pending().await,
        }
    }
}

impl Agent {
    /// SIGHUP.
    pub(super) fn reload(&mut self) {
        let file = self.file.clone();
        use sd_notify::NotifyState::{Reloading, Status};
        let _ = sd_notify::notify(&[Reloading, Status("reads its configuration again")]);
        self.reload = Reload::Loading(tokio::task::spawn_blocking(move || config::load(&file, Occasion::Run)));
    }

    pub(super) fn reload_step(&mut self, step: Step) -> Result<(), RunError> {
        match (step, std::mem::take(&mut self.reload)) {
            (Step::Loaded(Some(config), _), _) => match self.refusal(&config) {
                Some(reason) => self.reloaded(Err(reason)),
                None => {
                    let mut drivers = self.field.retire(&config.buses, &config.brokers);
                    let end = tokio::spawn(async move {
                        let all = async {
                            for driver in &mut drivers {
                                let _ = driver.await;
                            }
                        };
                        if tokio::time::timeout(DRIVERS_END, all).await.is_err() {
                            // Its device or port is for the next one.
                            drivers.iter().for_each(JoinHandle::abort);
                        }
                    });
                    self.reload = Reload::Ending(config, end);
                }
            },
            (Step::Loaded(None, reason), _) => self.reloaded(Err(reason)),
            (Step::Ended, Reload::Ending(config, _)) => {
                self.reload = Reload::Waiting(config);
                self.try_reload()?;
            }
            (Step::Ended, other) => self.reload = other,
        }
        Ok(())
    }

    /// Goes on under the new configuration, if the pipeline can now.
    pub(super) fn try_reload(&mut self) -> Result<(), RunError> {
        if !matches!(self.reload, Reload::Waiting(_)) || !self.pipeline.can_reload() {
            return Ok(());
        }
        // What the drivers that have ended said last is of the old configuration.
        let now = self.now();
        while let Ok((_, poll)) = self.facts.polls.try_recv() {
            self.take_poll(now, poll);
        }
        while let Ok(message) = self.facts.messages.try_recv() {
            self.take_message(message);
        }
        let now = self.now();
        if !self.pipeline.can_reload() {
            return Ok(());
        }
        let Reload::Waiting(config) = std::mem::take(&mut self.reload) else { return Ok(()) };
        // `refusal` has built it before.
        self.pipeline.reload(now, core_config(&config), &config.model)?;
        let mut status = status::Source::new(&config);
        status.time_quality = self.status.time_quality;
        self.status = status;
        if config.agent.time_sync != self.time_sync {
            self.quality = QualityWatch::new(&config.agent.time_sync);
            self.time_sync = config.agent.time_sync.clone();
        }
        self.field.enter(config.buses, config.brokers);
        if let Some(endpoint) = config.uplink.endpoint()
            && self.wire.reload(&config.uplink, endpoint, &config.agent)
        {
            self.trust = Trust::new(&config.uplink);
            self.look(now);
            self.pipeline.hasten(now);
        }
        self.reloaded(Ok(config.sha256));
        Ok(())
    }

    /// Why a sound configuration cannot be taken while running.
    fn refusal(&self, config: &Config) -> Option<String> {
        let (old, new) = (&self.identity, Identity::of(config));
        let restart = |key: &str| Some(format!("agent.{key} cannot change while the agent runs: restart it"));
        if old.site != new.site {
            restart("site")
        } else if old.id != new.id {
            restart("id")
        } else if old.state_dir != new.state_dir {
            restart("state_dir")
        } else if old.socket != new.socket {
            restart("socket")
        } else if old.log != new.log {
            restart("log")
        } else {
            self.pipeline.fits(&config.model).err().map(|error| error.to_string())
        }
    }

    /// The end of it.
    fn reloaded(&mut self, outcome: Result<String, String>) {
        self.reload = Reload::Idle;
        match outcome {
            Ok(sha256) => {
                tracing::info!(config_sha256 = %sha256, "runs under the new configuration");
                self.status.reload_error = None;
            }
            Err(reason) => {
                tracing::error!(%reason, "the new configuration is refused; the old one runs on");
                self.status.reload_error = Some(reason);
            }
        }
        self.tell_systemd(true);
    }
}

/// What only a restart changes.
pub(super) struct Identity {
    site: String,
    id: String,
    state_dir: PathBuf,
    socket: PathBuf,
    log: String,
}

impl Identity {
    pub(super) fn of(config: &Config) -> Self {
        let agent = &config.agent;
        Self {
            site: agent.site.clone(),
            id: agent.id.clone(),
            state_dir: agent.state_dir.clone(),
            socket: agent.socket(),
            log: agent.log.clone(),
        }
    }
}
