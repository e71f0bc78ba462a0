//! What the pipeline notices, as log lines: one place for each, said once and then counted.
//!
//! At `info` a quiet hour prints nothing. Why there is no connection is said once for each reason, until a connection has
//! stood for a minute; one that comes and goes is said not to hold, and then to hold. Losses are said when they have
//! doubled: a storm of them is some thirty lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tributary_core::pipeline::Notice;
use tributary_protocols::time::Mono;

use crate::mqtt::{CHANGED, RENEWED};
use crate::tls::trust::News;

/// A connection that stands so long holds.
const HOLDS: Duration = Duration::from_secs(60);

/// The log's memory.
#[derive(Debug, Default)]
pub struct Notices {
    reason: Option<String>,
    /// Reasons that were said since a connection held last.
    told: BTreeSet<String>,
    /// Connections that failed or ended since then.
    failures: u64,
    /// Since when there is one.
    since: Option<Mono>,
    /// Whether it was said that connections do not hold.
    flapping: bool,
    /// Readings lost by reason: in all, and when that was last said.
    lost: BTreeMap<String, (u64, u64)>,
}

impl Notices {
    /// Why the connection ended; told with the notice that follows.
    pub fn why_disconnected(&mut self, reason: String) {
        self.reason = Some(reason);
    }

    /// Why the last connection ended or did not come about, or what keeps it from its use.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Time passes: a connection that stands may hold.
    pub fn look(&mut self, now: Mono) {
        if self.told.is_empty() || self.since.is_none_or(|since| now.since(since) < HOLDS) {
            return;
        }
        if self.flapping {
            tracing::info!(failures = self.failures, "the connection to the broker holds");
        }
        self.told.clear();
        (self.failures, self.flapping) = (0, false);
    }

    fn disconnected(&mut self, retry_in: Duration) {
        let stood = self.since.take().is_some();
        self.failures += 1;
        let reason = self.reason.clone().unwrap_or_default();
        if [RENEWED, CHANGED].contains(&reason.as_str()) {
            self.failures -= 1; // it was said as what it is
            return;
        }
        if self.told.insert(reason.clone()) {
            let retry_ms = retry_in.as_millis();
            tracing::warn!(%reason, retry_ms, "no connection to the broker; readings are kept");
        } else if stood && !self.flapping {
            self.flapping = true;
            tracing::warn!(%reason, failures = self.failures, "the connection to the broker does not hold");
        }
    }

    /// What is new with the certificates.
    pub fn tell_trust(&mut self, news: &News) {
        match news {
            News::Renewed(whose) => tracing::info!(%whose, "the certificates are renewed"),
            News::Trouble(trouble) => {
                tracing::error!(%trouble, "the certificates in the files cannot be used; what was in force before, if any, stays");
            }
            News::Mended => tracing::info!("the certificates are good again"),
            News::Due(what) => tracing::warn!("{what}: renew it, `tributary enroll` asks for a new one"),
            News::Expired(what) => {
                tracing::error!("{what}, or the clock is wrong; readings are kept until the broker takes them");
            }
        }
    }

    /// Says it, unless it was just said.
    pub fn tell(&mut self, now: Mono, notice: &Notice) {
        match notice {
            Notice::Connected => {
                self.look(now);
                self.since = Some(now);
                if !self.flapping {
                    tracing::info!(failures = self.failures, "connected to the broker");
                }
            }
            Notice::Disconnected { retry_in } => {
                self.look(now);
                self.disconnected(*retry_in);
            }
            Notice::NewEpoch { epoch, why } => {
                tracing::warn!(epoch = format!("{epoch:016x}"), %why, "a new epoch begins");
            }
            Notice::StoreFailing(error) => tracing::error!(%error, "the spool cannot be written"),
            Notice::StoreRecovered => tracing::info!("the spool can be written again"),
            Notice::Lost { reason, readings } => {
                let reason = reason.as_str_name().to_lowercase();
                let (all, said) = self.lost.entry(reason.clone()).or_default();
                *all = all.saturating_add(*readings);
                if *all >= said.saturating_mul(2) {
                    *said = *all;
                    tracing::warn!(%reason, readings = all, "readings are lost; the centre is told");
                }
            }
            Notice::CatalogAway { bytes } => {
                let reason = format!(
                    "the centre does not get the catalogue, a message of {bytes} bytes: does the broker take such packets, \
                     and may this agent publish on …/cat?"
                );
                if self.told.insert(reason.clone()) {
                    tracing::warn!("{reason}");
                }
                self.reason = Some(reason);
            }
            Notice::Replay { first, last } => tracing::info!(first, last, "the centre asks for batches again"),
            Notice::Unreadable { topic } => tracing::warn!(topic, "a message of the centre cannot be read"),
        }
    }
}
