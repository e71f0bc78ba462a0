//! The mark beside a database: which commit was the last to end.
//!
//! ```text
//! generation u64 BE · last seq u64 BE · left u8 · crc32c u32 BE
//! ```
//!
//! `left` says that no commit follows, and that the mark is durable.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Fault, at};
use super::parts;

/// The last commit that ended, as noted beside the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) generation: u64,
    pub(super) last: u64,
    /// No commit followed, and the mark is durable.
    pub(super) left: bool,
}

/// Bytes of a mark.
const MARK: usize = 8 + 8 + 1 + 4;

impl Mark {
    /// Where the mark of a directory is.
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("mark")
    }

    pub(super) fn encode(self) -> [u8; MARK] {
        let mut bytes = [0; MARK];
        bytes[..8].copy_from_slice(&self.generation.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.last.to_be_bytes());
        bytes[16] = u8::from(self.left);
        let crc = parts::crc32c(&bytes[..17]);
        bytes[17..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// The mark of a directory; `None` if there is none, or it is damaged.
    ///
    /// # Errors
    /// Of the disk.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Fault> {
        let path = Self::path(dir);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(Self::parse(&at(bytes, "read", &path)?)),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; MARK] = bytes.try_into().ok()?;
        let number = |from: usize| bytes[from..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let mark = Self { generation: number(0)?, last: number(8)?, left: bytes[16] == 1 };
        (mark.encode() == bytes).then_some(mark)
    }
}

/// Whether a commit into the directory has ever ended.
pub(super) fn begun(path: &Path) -> Result<bool, Fault> {
    let mark = Mark::path(path);
    at(mark.try_exists(), "look at", &mark)
}

/// The last seq of a directory that was left; `None` if it was not, or its database is gone.
pub(super) fn left(path: &Path) -> Option<u64> {
    let mark = Mark::read(path).ok()?.filter(|mark| mark.left)?;
    fs::metadata(path.join("db")).is_ok_and(|meta| meta.len() > 0).then_some(mark.last)
}
