//! The one thread that drives a store: it may block, nobody else has to.
//!
//! ```text
//! run ── StoreCommand (bounded) ──▶ thread ── Store call ──▶ disk
//!  ▲                                  │
//!  └─────── StoreReply, in order ◀────┘
//! ```
//!
//! An OS thread of its own and not tokio's blocking pool, because a call into sled can hang for good: the thread stamps
//! the beginning of each call, and [`StoreThread::stuck_for`] says how long it has been at it. Above [`STUCK`] the owner
//! ends the process for a supervised restart, which is safe: nothing is committed before its fsync returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;
use tributary_core::store::{Store, StoreCommand, StoreReply};
use tributary_protocols::time::{Clock, Mono};

/// A single call of the store that takes longer has hung.
pub const STUCK: Duration = Duration::from_secs(30);

/// Why a command was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// As many commands wait as the channel holds; come again after a reply.
    #[error("the store has too much to do")]
    Busy(Box<StoreCommand>),
    /// The thread has ended.
    #[error("the store has ended")]
    Ended,
}

/// The owner's end. Dropping it ends the thread once every command taken is answered.
#[derive(Debug)]
pub struct StoreThread {
    commands: SyncSender<StoreCommand>,
    /// Nanoseconds on the monotonic clock when the call under way began, plus one; 0 = idle.
    began: Arc<AtomicU64>,
}

impl StoreThread {
    /// Gives the store, already recovered, to a thread of its own. At most `capacity` commands wait. Replies come by the
    /// receiver, one for each command, in their order. It ends when the thread has ended and let go of the spool: after
    /// this was dropped, or, before that, if the store panicked.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(
        store: impl Store + Send + 'static,
        clock: Arc<dyn Clock>,
        capacity: usize,
    ) -> std::io::Result<(Self, mpsc::Receiver<StoreReply>)> {
        let (commands, waiting) = sync_channel(capacity);
        let (replies, received) = mpsc::channel(capacity.max(1));
        let began = Arc::new(AtomicU64::new(0));
        let stamp = Arc::clone(&began);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(store, &*clock, &waiting, &stamp, replies))?;
        Ok((Self { commands, began }, received))
    }

    /// Hands over a command; never waits.
    ///
    /// # Errors
    /// [`Refused::Busy`] gives the command back.
    pub fn send(&self, command: StoreCommand) -> Result<(), Refused> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => Refused::Busy(Box::new(command)),
            TrySendError::Disconnected(_) => Refused::Ended,
        })
    }

    /// How long the store has been at one call; `None` if it waits for one.
    #[must_use]
    pub fn stuck_for(&self, now: Mono) -> Option<Duration> {
        let began = self.began.load(Ordering::Acquire).checked_sub(1)?;
        Some(now.since(Mono::from_nanos(began)))
    }
}

fn run(
    mut store: impl Store,
    clock: &dyn Clock,
    commands: &Receiver<StoreCommand>,
    began: &AtomicU64,
    replies: mpsc::Sender<StoreReply>,
) {
    while let Ok(command) = commands.recv() {
        began.store(clock.mono().as_nanos().saturating_add(1), Ordering::Release);
        let reply = command.run(&mut store);
        began.store(0, Ordering::Release);
        if replies.blocking_send(reply).is_err() {
            break;
        }
    }
    // The spool is free before the owner hears that the replies have ended.
    drop(store);
    drop(replies);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tributary_core::store::{Commit, DirId, IndexEntry, Recovered, StoreError, Usage};
    use tributary_protocols::time::Wall;

    /// A store whose every call lasts until it is let go.
    struct Slow {
        entered: std::sync::mpsc::Sender<()>,
        go: Receiver<()>,
    }

    impl Store for Slow {
        fn recover(&mut self) -> Result<Recovered, StoreError> {
            Ok(Recovered::default())
        }
        fn commit(&mut self, _: &Commit) -> Result<Usage, StoreError> {
            Ok(Usage::default())
        }
        fn load(&mut self, _: DirId) -> Result<Vec<IndexEntry>, StoreError> {
            Ok(Vec::new())
        }
        fn read(&mut self, _: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError> {
            self.entered.send(()).unwrap();
            self.go.recv().unwrap();
            Ok(Some(vec![seq as u8]))
        }
        fn remove(&mut self, _: DirId) -> Result<Usage, StoreError> {
            Ok(Usage::default())
        }
        fn quarantine(&mut self, _: DirId, _: u64) -> Result<Usage, StoreError> {
            Ok(Usage::default())
        }
    }

    struct Stopped;
    impl Clock for Stopped {
        fn mono(&self) -> Mono {
            Mono::from_millis(1_000)
        }
        fn wall(&self) -> Wall {
            Wall(0)
        }
    }

    #[test]
    fn answers_in_order_and_tells_how_long_it_hangs() {
        let ((entered, inside), (go, held)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let (thread, mut replies) = StoreThread::spawn(Slow { entered, go: held }, Arc::new(Stopped), 1).unwrap();
        assert_eq!(thread.stuck_for(Mono::MAX), None);

        let dir = DirId { epoch: 1, first: 1 };
        thread.send(StoreCommand::Read { dir, seq: 1 }).unwrap();
        inside.recv().unwrap();
        assert_eq!(thread.stuck_for(Mono::from_millis(31_000)), Some(STUCK));
        thread.send(StoreCommand::Read { dir, seq: 2 }).unwrap();
        let refused = thread.send(StoreCommand::Load(dir));
        assert!(matches!(refused, Err(Refused::Busy(command)) if matches!(*command, StoreCommand::Load(_))));

        drop(thread);
        go.send(()).unwrap();
        go.send(()).unwrap();
        for expected in [1, 2] {
            let reply = replies.blocking_recv();
            assert!(matches!(reply, Some(StoreReply::Read(_, seq, Ok(Some(_)))) if seq == expected), "{reply:?}");
        }
        assert!(replies.blocking_recv().is_none());
    }
}
