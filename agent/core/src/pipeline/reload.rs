//! A new configuration while running (SIGHUP): the old intake ends, the new one takes over what goes on.

use tributary_proto::pb;
use tributary_protocols::reading::StampedBy;
use tributary_protocols::time::{Mono, Wall};

use super::{Config, Life, Now, Pipeline};
use crate::batch::Batcher;
use crate::catalog::Catalog;
use crate::intake::{Books, Intake, Unbuildable};
use crate::model::Model;

impl Pipeline {
    /// Whether [`reload`](Self::reload) would take this model.
    ///
    /// # Errors
    /// The model passes a ceiling.
    pub fn fits(&self, model: &Model) -> Result<(), Unbuildable> {
        let (mut catalog, mut batcher) = (Catalog::new(self.spool.epoch()), Batcher::new(self.config.batch));
        Intake::new(model, &mut catalog, &mut batcher, Mono::ZERO, Wall(0)).map(drop)
    }

    /// Whether it can be done now: not while the spool has no room for the open batch, nor at the end.
    #[must_use]
    pub fn can_reload(&self) -> bool {
        self.life == Life::Running && self.spool.has_room()
    }

    /// Goes on under another configuration, from the next poll on: requests and [`PointKey`](crate::model::PointKey)s
    /// are those of `model` from now on. Everything taken in before is sealed under the old one; what both have goes on
    /// (`intake/inherit.rs`). `boot_id` and `seed` stay those of the start. To be called when it
    /// [can be](Self::can_reload), else nothing happens.
    ///
    /// # Errors
    /// The model passes a ceiling; then nothing has changed.
    pub fn reload(&mut self, now: Now, config: Config, model: &Model) -> Result<(), Unbuildable> {
        if !self.can_reload() {
            return Ok(());
        }
        self.close_draft();
        let (mut catalog, mut batcher) = (self.catalog.clone(), Batcher::new(config.batch));
        let mut intake = Intake::new(model, &mut catalog, &mut batcher, now.mono, now.wall)?;
        let synced = self.quality == pb::TimeQuality::Synced;
        let overrun = self.books().1.overrun;
        let books = Books { ledger: &mut self.ledger, losses: &mut self.losses, batcher: &mut self.batcher, overrun };
        self.intake.retire(&intake, now.mono, now.wall, synced, books);
        // The first may take the room; what is left behind with the old batcher would be gone.
        self.seal_all(now, StampedBy::Agent);
        self.seal_all(now, StampedBy::Source);
        self.tell_counters(now);
        let old = core::mem::take(&mut self.intake);
        intake.inherit(old, &mut catalog, &mut batcher, now.mono, now.wall);
        if catalog.close() {
            self.spool.hurry();
        }
        (self.intake, self.catalog, self.batcher) = (intake, catalog, batcher);
        self.spool.reload(config.spool);
        self.uplink.reload(config.uplink);
        self.config = Config { boot_id: self.config.boot_id, seed: self.config.seed, ..config };
        self.status_due = Some(now.mono);
        Ok(())
    }
}
