//! Room on the disk: what the spool takes, what it keeps for its owner, and what it gives up when the disk is full.
//!
//! The ballast is space that was set aside while there was plenty. It is given up for what empties the spool.

use tributary_core::store::{Commit, Usage};
use tributary_protocols::sort;

use super::disk::{self, Fault};
use super::{KEPT, KEPT_REFUSED, SledStore};

impl SledStore {
    pub(super) fn usage(&mut self) -> Usage {
        if let Ok(free) = disk::free(&self.root) {
            self.free = free;
        }
        if !self.ballast && self.reserve.ballast > 0 && self.free > 2 * self.reserve.ballast {
            match disk::make_ballast(&self.root, self.reserve.ballast) {
                Ok(()) => self.ballast = true,
                Err(fault) => {
                    tracing::warn!(?fault, "spool: no ballast can be set aside");
                    self.reserve.ballast = 0;
                }
            }
        }
        let active = self.active.as_ref().and_then(|db| self.sizes.get(&db.id())).copied();
        Usage {
            disk_bytes: self.sizes.values().sum::<u64>() + self.kept.0,
            active_bytes: active.unwrap_or(0),
            free_bytes: self.free,
            quarantined: self.kept.1,
        }
    }

    /// Counts what is kept for the owner, and deletes the oldest of it above the ceilings.
    pub(super) fn trim_kept(&mut self, bytes: u64) -> Result<(), Fault> {
        let bad = disk::set_aside(&self.root)?;
        let mut refused: Vec<_> =
            disk::entries(&self.root.join("refused"))?.into_iter().map(|(_, path)| path).collect();
        sort(&mut refused, Ord::cmp);
        self.kept = (0, 0);
        for (paths, most) in [(bad, KEPT), (refused, KEPT_REFUSED)] {
            let (mut sum, mut count) = (0, 0);
            for path in paths.iter().rev() {
                let size = disk::blocks(path);
                if sum + size > bytes || count == most {
                    disk::delete(path)?;
                } else {
                    sum += size;
                    count += 1;
                }
            }
            self.kept = (self.kept.0 + sum, self.kept.1 + count as u64);
        }
        Ok(())
    }

    /// Gives up directories set aside; whether there were any.
    pub(super) fn drop_set_aside(&mut self) -> bool {
        let bad = disk::set_aside(&self.root).unwrap_or_default();
        let freed = bad.iter().filter(|path| disk::delete(path).is_ok()).count() > 0;
        if freed {
            tracing::warn!(directories = bad.len(), "spool: disk full, damaged directories given up");
            let _ = self.trim_kept(self.reserve.kept);
        }
        freed
    }

    /// Gives up the ballast; whether there was one.
    pub(super) fn drop_ballast(&mut self) -> bool {
        let freed = self.ballast && disk::delete(&self.root.join("ballast")).is_ok();
        if freed {
            self.ballast = false;
            tracing::warn!("spool: disk full, ballast given up");
        }
        freed
    }

    /// Whether this commit may not use the ballast. On a full disk it has to last for what empties the spool: reading,
    /// removing, state records that say what is settled, and what lets the last directory go. Other records come after them.
    pub(super) fn reserved(commit: &Commit) -> bool {
        !commit.records.is_empty() && !commit.frees
    }

    /// Without the ballast its space is kept free instead, until there is enough to set it aside again.
    pub(super) fn keep_free(&mut self) -> Result<(), Fault> {
        self.usage();
        if self.ballast || self.reserve.ballast == 0 || self.free > self.reserve.ballast {
            return Ok(());
        }
        Err(Fault::Full(format!("{} bytes are free, {} of them must stay so", self.free, self.reserve.ballast)))
    }

    /// Tries again on a full disk as long as something can be given up.
    pub(super) fn with_room<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        loop {
            match attempt(self) {
                Err(Fault::Full(_)) if self.drop_set_aside() || self.drop_ballast() => {}
                done => return done,
            }
        }
    }
}
