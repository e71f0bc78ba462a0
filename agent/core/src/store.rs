//! The disk as the pipeline sees it: a few commands, each answered, and the trait that carries them out.
//!
//! ```text
//! spool/<epoch:016x>/<first:016x>/     one directory = one database, about 2 MB of payload, deleted whole
//!     record seq …                     sealed batches, keyed by the seq they were stored under
//!     state                            the newest state record
//!     catalog                          the newest catalogue
//! ```
//!
//! Invariants a store keeps:
//! 1. [`Store::commit`] returns `Ok` only after an fsync of the file that holds everything in that commit. If it
//!    returns an error, nothing of it may be assumed there, nor gone: the pipeline commits the same again.
//! 2. A commit is atomic as far as recovery can see: [`Store::recover`] gives the state record of the last commit whose
//!    fsync returned, or of a later one that reached the disk whole.
//! 3. A record comes back byte for byte or not at all: the store checks its own checksum and reports damage as an
//!    absent record, never as another value.
//! 4. The newest directory always has a state record and a catalogue: the first commit into a directory carries both.
//! 5. What is removed gives its space back.

use alloc::string::String;
use alloc::vec::Vec;

/// A directory of the spool: the epoch it was made in and the seq of its first record, as stored then. Neither changes
/// when a new epoch renumbers its batches. Orders by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirId {
    /// Epoch of the time it was made.
    pub epoch: u64,
    /// Key of its first record.
    pub first: u64,
}

/// What becomes durable together.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The active directory, made if it is not there; for a state record alone it may be the one before.
    pub dir: DirId,
    /// Sealed batches with their stored seq, ascending and without holes; each at most
    /// [`MAX_RECORD`](crate::limits::MAX_RECORD) bytes.
    pub records: Vec<(u64, Vec<u8>)>,
    /// The state record.
    pub state: Vec<u8>,
    /// The catalogue, when it changed or the directory is new.
    pub catalog: Option<Vec<u8>>,
    /// Nothing waits in the spool, and nothing in this directory: with this commit every other can go. On a full disk it
    /// may use the room that is kept for emptying the spool.
    pub frees: bool,
}

/// One thing for the disk to do. Each is answered, in order.
#[derive(Clone, Debug)]
pub enum StoreCommand {
    /// [`Store::commit`].
    Commit(Commit),
    /// [`Store::load`].
    Load(DirId),
    /// [`Store::read`].
    Read {
        /// Where.
        dir: DirId,
        /// Stored seq.
        seq: u64,
    },
    /// [`Store::remove`].
    Remove(DirId),
    /// [`Store::quarantine`].
    Quarantine {
        /// Where.
        dir: DirId,
        /// Stored seq.
        seq: u64,
    },
}

/// How a [`StoreCommand`] went.
#[derive(Clone, Debug)]
pub enum StoreReply {
    /// To `Commit`.
    Committed(Result<Usage, StoreError>),
    /// To `Load`.
    Loaded(DirId, Result<Vec<IndexEntry>, StoreError>),
    /// To `Read`, with the stored seq.
    Read(DirId, u64, Result<Option<Vec<u8>>, StoreError>),
    /// To `Remove`.
    Removed(DirId, Result<Usage, StoreError>),
    /// To `Quarantine`, with the stored seq.
    Quarantined(DirId, u64, Result<Usage, StoreError>),
}

impl StoreCommand {
    /// Carries the command out on `store`: the one place where commands, calls and replies meet.
    pub fn run(&self, store: &mut impl Store) -> StoreReply {
        match self {
            Self::Commit(commit) => StoreReply::Committed(store.commit(commit)),
            Self::Load(dir) => StoreReply::Loaded(*dir, store.load(*dir)),
            Self::Read { dir, seq } => StoreReply::Read(*dir, *seq, store.read(*dir, *seq)),
            Self::Remove(dir) => StoreReply::Removed(*dir, store.remove(*dir)),
            Self::Quarantine { dir, seq } => StoreReply::Quarantined(*dir, *seq, store.quarantine(*dir, *seq)),
        }
    }
}

/// What is in a directory, as its records' headers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Stored seq.
    pub seq: u64,
    /// The first [`RECORD_HEAD`] bytes of the record.
    pub head: [u8; RECORD_HEAD],
    /// Length of the whole record in bytes.
    pub bytes: u32,
}

/// How many leading bytes of each record a directory's index repeats.
pub const RECORD_HEAD: usize = 24;

/// What a start found on disk.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Readable directories, oldest first, with the highest stored seq each; an empty directory counts `first − 1`.
    pub dirs: Vec<(DirId, u64)>,
    /// State record of the newest directory that has a valid one.
    pub state: Option<Vec<u8>>,
    /// Catalogue of the same directory.
    pub catalog: Option<Vec<u8>>,
    /// Directories that were set aside as damaged, at this start or before. What was left of one may be in `dirs`.
    pub set_aside: Vec<DirId>,
    /// Disk bytes in use now.
    pub usage: Usage,
}

/// What the spool takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all directories, by blocks, quarantined ones included.
    pub disk_bytes: u64,
    /// Bytes of the active directory alone.
    pub active_bytes: u64,
    /// Bytes the file system still has for us.
    pub free_bytes: u64,
    /// Refused bodies and set-aside directories kept for the owner.
    pub quarantined: u64,
}

/// Why the disk said no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space, or no inode, is left. Room must be made, then the same is tried again.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The disk is read-only, gone, or failed to read or write. Tried again later.
    #[error("the disk cannot be used: {0}")]
    Unavailable(String),
    /// The spool is another's: held by another agent, or written by another version. No waiting mends it.
    #[error("the spool is not ours: {0}")]
    Foreign(String),
    /// The directory's own data is damaged. Set aside, never tried again.
    #[error("the spool is damaged: {0}")]
    Damaged(String),
}

/// The disk, or what stands in for it. Driven by one thread; every call may block.
pub trait Store {
    /// Finds what is there, finishes interrupted removals, sets aside what cannot be read.
    ///
    /// # Errors
    /// Only if the spool's place itself cannot be used; damaged directories are set aside and named, not errors.
    fn recover(&mut self) -> Result<Recovered, StoreError>;

    /// Makes records, state and catalogue durable together.
    ///
    /// # Errors
    /// Any; the same commit may be tried again.
    fn commit(&mut self, commit: &Commit) -> Result<Usage, StoreError>;

    /// What is in a directory, ascending by seq; a record that is damaged or incomplete is left out.
    ///
    /// # Errors
    /// `Damaged` if nothing of it can be read.
    fn load(&mut self, dir: DirId) -> Result<Vec<IndexEntry>, StoreError>;

    /// One record; `None` if it is not there or does not bear its checksum.
    ///
    /// # Errors
    /// `Damaged` if nothing of the directory can be read.
    fn read(&mut self, dir: DirId, seq: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// Deletes a directory whole.
    ///
    /// # Errors
    /// `Unavailable`; what is left is finished at the next start.
    fn remove(&mut self, dir: DirId) -> Result<Usage, StoreError>;

    /// Keeps a copy of a refused record for the owner, outside the directories.
    ///
    /// # Errors
    /// Any; the record then stays where it is.
    fn quarantine(&mut self, dir: DirId, seq: u64) -> Result<Usage, StoreError>;
}
