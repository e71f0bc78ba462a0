//! Filters: what a reading is worth, and whether it is sent. They stand between decode and window.
//!
//! Three kinds, in this order. A [`Mark`](mark::Mark) lowers the status of a sentinel or of a value out of range, a
//! [`Counter`](counter::Counter) that of what is no count; they come before the window, so a statistic never counts what
//! was marked. A [`Deadband`](deadband::Deadband) says whether
//! the reading itself is sent; it comes after the window and decides nothing else (contract rule 15). Neither makes a
//! reading, and neither makes one vanish: what is withheld is counted as filtered by whoever asked (rule 9).
//!
//! Filters compute on the real value and leave the raw one as it came (rule 14). A new filter is one file here.

pub mod counter;
pub mod deadband;
pub mod mark;

/// What a filter says of one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It is not sent, and counts as filtered.
    Withhold,
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::collections::BTreeMap;
    use alloc::string::String;
    use alloc::vec::Vec;

    use tributary_protocols::value::{PointType, Scale};

    use crate::model::{Deadband, Point};

    /// A point of that type with nothing configured.
    pub(crate) fn point(ty: PointType) -> Point {
        Point {
            device: 0,
            name: String::new(),
            ty,
            unit: String::new(),
            scale: Scale::default(),
            description: String::new(),
            source: String::new(),
            counter: false,
            counter_modulus: 0,
            max_rate: None,
            scale_from: None,
            labels: BTreeMap::new(),
            extra: BTreeMap::new(),
            valid: None,
            bad: Vec::new(),
            deadband: Deadband::None,
            heartbeat: None,
            window: None,
            raw: true,
        }
    }
}
