//! Carries out what the schedule of a bus says, on a TCP connection.

use alloc::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::modbus::bus::{Bus, BusStatus};
use crate::modbus::config::BusSpec;
use crate::reading::Poll;
use crate::time::{Clock, Mono};

/// Runs a bus until `shutdown` says true or the receiver of `polls` is gone. The [`Mono`] beside a poll is when its
/// outcome was known. A full channel makes the bus wait: deadlines missed meanwhile are reported as such. `status` is
/// renewed at most once a second, and at the end.
pub async fn run(
    spec: BusSpec,
    bus: Bus,
    clock: Arc<dyn Clock>,
    polls: mpsc::Sender<(Mono, Poll)>,
    status: watch::Sender<BusStatus>,
    shutdown: watch::Receiver<bool>,
) {
    let _ = (spec, bus, clock, polls, status, shutdown);
}
