//! The disk of the world: [`MemStore`] with latency, moods and damage. One command at a time, in order.

use std::collections::{BTreeSet, HashSet, VecDeque};

use fastrand::Rng;
use prost::Message;
use sha2::{Digest, Sha256};
use tributary::store::Reserve;
use tributary_core::record::Head;
use tributary_core::state::State;
use tributary_core::store::{Commit, DirId, Recovered, Store, StoreCommand, StoreError, StoreReply};

use crate::store::MemStore;

const CAPACITY: u64 = 1 << 30;

/// What the disk answers for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Away,
    Full,
}

/// The disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) store: MemStore,
    pub(super) mood: Mood,
    /// Since when it is well, ns.
    pub(super) well_since: u64,
    queue: VecDeque<StoreCommand>,
    begun: Option<Result<(), StoreError>>,
    damaged: BTreeSet<(DirId, u64)>,
    /// Bodies whose commit returned.
    durable: HashSet<[u8; 32]>,
    /// Epoch and published mark of the last commit that returned, or was found whole after a crash.
    pub(super) mark: (u64, u64),
    /// Commits that became durable.
    pub(super) learned: u64,
    clean: bool,
    /// A commit returned since the agent's start: what is clean tells of this life, not of the one before.
    said: bool,
    /// What the next start finds that cannot be read.
    set_aside: Vec<DirId>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            store: MemStore::new(CAPACITY),
            mood: Mood::Well,
            well_since: 0,
            queue: VecDeque::new(),
            begun: None,
            damaged: BTreeSet::new(),
            durable: HashSet::new(),
            mark: (0, 0),
            learned: 0,
            clean: false,
            said: false,
            set_aside: Vec::new(),
        }
    }

    /// Takes a command; whether the disk was idle, so that its work has to be scheduled.
    pub(super) fn take(&mut self, command: StoreCommand) -> bool {
        self.queue.push_back(command);
        if self.queue.len() == 1 {
            self.begin();
        }
        self.queue.len() == 1
    }

    fn begin(&mut self) {
        if let Some(StoreCommand::Commit(commit)) = self.queue.front() {
            self.begun = Some(match self.mood {
                Mood::Well => self.store.begin(commit),
                Mood::Away => Err(StoreError::Unavailable("away".into())),
                Mood::Full => Err(StoreError::Full("full".into())),
            });
        }
    }

    /// The command in hand is done. Its answer, and whether another one begins.
    pub(super) fn done(&mut self, rng: &mut Rng) -> Option<(StoreReply, bool)> {
        let command = self.queue.pop_front()?;
        let reply = match &command {
            StoreCommand::Commit(commit) => {
                let result = match self.begun.take() {
                    Some(Ok(())) => {
                        let usage = self.store.finish();
                        self.learn(commit);
                        // The fsync may return after an error that it does not tell of, and the other way round.
                        if self.mood == Mood::Away && rng.bool() {
                            Err(StoreError::Unavailable("away while it was written".into()))
                        } else {
                            Ok(usage)
                        }
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(StoreError::Unavailable("never begun".into())),
                };
                StoreReply::Committed(result)
            }
            StoreCommand::Load(dir) if self.mood == Mood::Away => {
                StoreReply::Loaded(*dir, Err(StoreError::Unavailable("away".into())))
            }
            StoreCommand::Read { dir, seq } if self.mood == Mood::Away => {
                StoreReply::Read(*dir, *seq, Err(StoreError::Unavailable("away".into())))
            }
            StoreCommand::Read { dir, seq } if self.damaged.contains(&(*dir, *seq)) => {
                StoreReply::Read(*dir, *seq, Ok(None))
            }
            command => match command.run(&mut self.store) {
                StoreReply::Loaded(dir, Ok(mut index)) => {
                    index.retain(|entry| !self.damaged.contains(&(dir, entry.seq)));
                    StoreReply::Loaded(dir, Ok(index))
                }
                reply => reply,
            },
        };
        self.begin();
        Some((reply, !self.queue.is_empty()))
    }

    fn learn(&mut self, commit: &Commit) {
        for (_, record) in &commit.records {
            let (_, body) = Head::split(record).expect("a record");
            self.durable.insert(Sha256::digest(body).into());
        }
        let state = State::decode(commit.state.as_slice()).expect("a state record");
        self.mark = (state.epoch, state.mark);
        self.learned += 1;
        self.clean = state.clean;
        self.said = true;
    }

    /// The power fails. What is there when it comes back.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let begun = matches!(self.begun, Some(Ok(())));
        let command = self.queue.front().cloned();
        self.store.crash(rng.u64(..));
        if let (true, Some(StoreCommand::Commit(commit))) = (begun, command) {
            // Whole, if the newest state is the one of that commit.
            let found = self.store.recover().expect("memory");
            if found.state.as_deref() == Some(commit.state.as_slice()) {
                self.learn(&commit);
            }
        }
        self.queue.clear();
        self.begun = None;
    }

    /// Others take what is free of it, until somebody makes room.
    pub(super) fn fill(&mut self) {
        self.store.fill(Reserve::default().ballast);
    }

    /// Somebody makes room.
    pub(super) fn make_room(&mut self) {
        self.store.resize(CAPACITY);
    }

    /// Another disk is put in its place.
    pub(super) fn restore(&mut self, store: MemStore) {
        self.store = store;
        self.clean = false;
    }

    pub(super) fn recover(&mut self) -> Recovered {
        let mut found = self.store.recover().expect("memory");
        found.set_aside = std::mem::take(&mut self.set_aside);
        self.said = false;
        found
    }

    /// The newest directory cannot be read at the next start.
    pub(super) fn lose_newest(&mut self) {
        let found = self.store.recover().expect("memory");
        if let [_, .., (newest, _)] = found.dirs[..] {
            self.store.remove(newest).expect("memory");
            self.set_aside.push(newest);
            self.clean = false;
        }
    }

    /// Damages some records of the spool for good, of any directory; most are among the newest, which wait to be sent.
    pub(super) fn damage(&mut self, rng: &mut Rng) {
        let dirs = self.store.recover().expect("memory").dirs;
        if dirs.is_empty() {
            return;
        }
        let (dir, last) = dirs[rng.usize(..dirs.len()).max(rng.usize(..dirs.len()))];
        let first = if rng.bool() { dir.first } else { dir.first.max(last.saturating_sub(20)) };
        for _ in 0..rng.u32(1..6) {
            if last >= first {
                self.damaged.insert((dir, rng.u64(first..=last)));
            }
        }
    }

    /// A directory that is not the newest is gone.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        let dirs = self.store.recover().expect("memory").dirs;
        if dirs.len() >= 2 {
            let (dir, _) = dirs[rng.usize(..dirs.len() - 1)];
            self.store.remove(dir).expect("memory");
        }
    }

    /// Whether the last state record tells of a clean stop.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    /// Whether this life's last state record tells of a clean stop.
    pub(super) fn says_clean(&self) -> bool {
        self.said && self.clean
    }

    pub(super) fn is_durable(&self, body: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(body).into();
        self.durable.contains(&hash)
    }
}
