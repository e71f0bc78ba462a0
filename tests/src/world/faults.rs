//! The kinds of trouble a world has, drawn from its seed.

use fastrand::Rng;

use super::strange::Strange;

/// What may go wrong in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Devices fall silent or answer with exceptions.
    pub devices: bool,
    /// Connections break, are refused, hang half open.
    pub link: bool,
    /// The broker forgets and doubles messages.
    pub broker: bool,
    /// Acks are lost, late, doubled.
    pub acks: bool,
    /// The receiver restarts, slows agents down.
    pub centre: bool,
    /// The receiver refuses batches for good.
    pub refuse: bool,
    /// The receiver does not know the schema for a while.
    pub too_new: bool,
    /// The agent is killed.
    pub crash: bool,
    /// The agent is stopped cleanly and started again.
    pub stop: bool,
    /// With another plan.
    pub replan: bool,
    /// The disk is away or full for a while.
    pub disk: bool,
    /// The quota is small: batches are evicted.
    pub quota: bool,
    /// At the quota polling stops instead.
    pub stop_polling: bool,
    /// Records are damaged, directories are gone.
    pub damage: bool,
    /// The clock drifts, steps, starts in 1970.
    pub clock: bool,
    /// The spool is rolled back to an image of itself.
    pub rollback: bool,
    /// `uplink.ack = "broker"`: no receiver answers, and the PUBACK of a batch frees it.
    pub by_broker: bool,
    /// What else is out of the ordinary.
    pub strange: Strange,
}

impl Faults {
    /// Those of a seed: the first seeds have none, then one kind after the other alone, then any mixture.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut faults = Self::default();
        let all: [&mut bool; 16] = [
            &mut faults.devices,
            &mut faults.link,
            &mut faults.broker,
            &mut faults.acks,
            &mut faults.centre,
            &mut faults.refuse,
            &mut faults.too_new,
            &mut faults.crash,
            &mut faults.stop,
            &mut faults.replan,
            &mut faults.disk,
            &mut faults.quota,
            &mut faults.stop_polling,
            &mut faults.damage,
            &mut faults.clock,
            &mut faults.rollback,
        ];
        let count = all.len() as u64;
        let mut rng = Rng::with_seed(seed ^ 0xfa17);
        let often = [2, 4, 8][rng.usize(..3)];
        for (n, fault) in (0..).zip(all) {
            *fault = match seed {
                0..=3 => false,
                seed if seed < 4 + 2 * count => (seed - 4) / 2 == n,
                _ => rng.u32(..often) == 0,
            };
        }
        faults.strange = Strange::of(seed);
        faults.stop |= faults.replan;
        faults.quota |= faults.stop_polling;
        faults
    }

    /// Those of a seed where the broker acknowledges. What only a centre can answer or notice has no place there: this is
    /// what the mode gives up.
    #[must_use]
    pub fn by_broker(seed: u64) -> Self {
        let mut faults = Self { by_broker: true, centre: false, refuse: false, too_new: false, ..Self::of(seed) };
        // A spool that is set back, or has lost its newest part, gives numbers again; nobody is there to say FORKED.
        faults.rollback = false;
        faults.damage &= !faults.crash;
        let odd = faults.strange;
        faults.strange = Strange {
            oldest_first: odd.oldest_first,
            backlog_rate: odd.backlog_rate,
            suspend: odd.suspend,
            ..Strange::default()
        };
        faults
    }
}
