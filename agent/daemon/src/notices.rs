//! What the pipeline notices, as log lines: one place for each, said once and then counted.
//!
//! At `info` a quiet hour prints nothing. A connection that fails again for the same reason is not said again; when it
//! stands, how often it failed meanwhile is. Losses are said when they have doubled: a storm of them is some thirty lines.

use std::collections::BTreeMap;

use tributary_core::pipeline::Notice;

/// The log's memory.
#[derive(Debug, Default)]
pub struct Notices {
    reason: Option<String>,
    told: Option<String>,
    failures: u64,
    /// Readings lost by reason: in all, and when that was last said.
    lost: BTreeMap<String, (u64, u64)>,
}

impl Notices {
    /// Why the connection ended; told with the notice that follows.
    pub fn why_disconnected(&mut self, reason: String) {
        self.reason = Some(reason);
    }

    /// Says it, unless it was just said.
    pub fn tell(&mut self, notice: &Notice) {
        match notice {
            Notice::Connected => {
                tracing::info!(failures = self.failures, "connected to the broker");
                (self.told, self.failures) = (None, 0);
            }
            Notice::Disconnected { retry_in } => {
                let reason = self.reason.take().unwrap_or_default();
                self.failures += 1;
                if self.told.as_ref() != Some(&reason) {
                    let retry_ms = retry_in.as_millis();
                    tracing::warn!(%reason, retry_ms, "no connection to the broker; readings are kept");
                    self.told = Some(reason);
                }
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
            Notice::Replay { first, last } => tracing::info!(first, last, "the centre asks for batches again"),
            Notice::Unreadable { topic } => tracing::warn!(topic, "a message of the centre cannot be read"),
        }
    }
}
