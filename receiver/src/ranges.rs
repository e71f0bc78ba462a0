//! A set of seqs as ranges: what an `Ack` carries, and what contiguity is reckoned from.
//!
//! An agent sends 1, 2, 3 … with few holes, so the set of all that ever arrived is one range, or a handful. It is kept
//! whole, from 1 on: then a gap is simply what is missing, and a batch that comes late closes its gap by being there.
//! Stored as text (`1-5,9`), so that a person may read it in the database.
//!
//! Limits: any `u64`; no seq is ever enumerated unless asked for, so a range of 2^64 costs 16 bytes. Inserting is
//! O(number of ranges).

use std::fmt;
use std::str::FromStr;

/// Disjoint, ascending, inclusive ranges that do not touch one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

/// A text that is not the one [`Ranges`] writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of ranges like 1-5,9")]
pub struct NotRanges(String);

impl Ranges {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds `first..=last`; nothing if `first > last`.
    pub fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // The ranges that overlap or touch the new one melt into it.
        let from = self.0.partition_point(|&(_, end)| end < first && first - end > 1);
        let to = self.0.partition_point(|&(start, _)| start <= last || start - last == 1);
        let melted = self.0.get(from..to).unwrap_or_default();
        let first = melted.first().map_or(first, |&(start, _)| start.min(first));
        let last = melted.last().map_or(last, |&(_, end)| end.max(last));
        self.0.splice(from..to, [(first, last)]);
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (first, last) in other.iter() {
            self.insert(first, last);
        }
    }

    /// Whether `seq` is in the set.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        let at = self.0.partition_point(|&(_, end)| end < seq);
        self.0.get(at).is_some_and(|&(start, _)| start <= seq)
    }

    /// The ranges in order, both ends inclusive.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The single seqs from `from` on. May be endless in practice: take what you need.
    pub fn seqs_from(&self, from: u64) -> impl Iterator<Item = u64> + '_ {
        self.iter().filter(move |&(_, last)| last >= from).flat_map(move |(first, last)| first.max(from)..=last)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (mut first, last) in self.iter() {
            let from = other.0.partition_point(|&(_, end)| end < first);
            let mut rest = true;
            for &(start, end) in other.0.iter().skip(from).take_while(|&&(start, _)| start <= last) {
                if start > first {
                    left.push((first, start - 1));
                }
                if end >= last {
                    rest = false;
                    break;
                }
                first = end + 1;
            }
            if rest {
                left.push((first, last));
            }
        }
        Self(left)
    }

    /// The highest seq such that every seq from 1 to it is in the set; 0 if 1 is not.
    #[must_use]
    pub fn up_to(&self) -> u64 {
        match self.0.first() {
            Some(&(0 | 1, last)) => last,
            _ => 0,
        }
    }

    /// The first and the last seq.
    #[must_use]
    pub fn ends(&self) -> Option<(u64, u64)> {
        Some((self.0.first()?.0, self.0.last()?.1))
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl FromStr for Ranges {
    type Err = NotRanges;

    fn from_str(text: &str) -> Result<Self, NotRanges> {
        let wrong = || NotRanges(text.to_owned());
        let mut ranges = Self::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
            if first > last {
                return Err(wrong());
            }
            ranges.insert(first, last);
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn seqs(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.seqs_from(0).collect()
    }

    /// Against a plain set of numbers, on 300 random histories.
    #[test]
    fn behaves_like_a_set() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut a, mut b) = (Ranges::new(), Ranges::new());
            let (mut set_a, mut set_b) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..random.usize(0..20) {
                let first = random.u64(0..40);
                let last = first + random.u64(0..5);
                a.insert(first, last);
                set_a.extend(first..=last);
                let seq = random.u64(0..45);
                b.insert(seq, seq);
                set_b.insert(seq);
            }
            assert_eq!(seqs(&a), set_a, "seed {seed}");
            assert!(a.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "seed {seed}: {a} has ranges that touch");
            assert_eq!(seqs(&a.without(&b)), &set_a - &set_b, "seed {seed}");
            assert!((0..50).all(|seq| a.contains(seq) == set_a.contains(&seq)), "seed {seed}");
            assert_eq!(a.to_string().parse(), Ok(a.clone()), "seed {seed}");
            a.extend(&b);
            assert_eq!(seqs(&a), &set_a | &set_b, "seed {seed}");
        }
    }

    #[test]
    fn stands_at_the_ends_of_u64() {
        let mut all = Ranges::new();
        all.insert(1, u64::MAX);
        all.insert(0, 0);
        assert_eq!(all.to_string(), "0-18446744073709551615");
        let mut middle = Ranges::new();
        middle.insert(5, 5);
        assert_eq!(all.without(&middle).to_string(), "0-4,6-18446744073709551615");
        assert!(middle.without(&all).is_empty());
        assert!("5-3".parse::<Ranges>().is_err() && "x".parse::<Ranges>().is_err());
    }
}
