//! What talks to devices, and the words in which it speaks to the rest: reading, status, stamp.
//!
//! Pure and `no_std` by default; the feature `io` adds the drivers that open sockets. One folder a protocol, each with
//! its `README.md`, `sample.toml` and `testcases/`.
#![no_std]

extern crate alloc;
#[cfg(any(test, feature = "io"))]
extern crate std;

use alloc::vec::Vec;
use core::cmp::Ordering;

mod backoff;
mod endpoint;
pub mod fault;
pub mod modbus;
pub mod mqtt;
pub mod number;
pub mod point;
pub mod reading;
pub mod time;
pub mod units;
pub mod value;

/// Collects into a map or set one by one. `collect` sorts first, by a sort made anew for each type: 6 KB of code, which a
/// gateway stores and loads to order a dozen names once.
pub fn gather<C: Default + Extend<T>, T>(items: impl IntoIterator<Item = T>) -> C {
    let mut gathered = C::default();
    gathered.extend(items);
    gathered
}

/// Sorts; equal ones stay in the order they were in. The sort is built once, over places in the list, where `slice::sort` is
/// built anew for each type: 5 KB of code. It costs an allocation: not for what is sorted for each reading.
pub fn sort<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut places: Vec<usize> = (0..items.len()).collect();
    sort_places(&mut places, &|one, other| compare(&items[one], &items[other]));
    // Along each cycle of places: what belongs here comes here, what was here goes on.
    for start in 0..items.len() {
        let mut here = start;
        loop {
            let from = core::mem::replace(&mut places[here], here);
            if from == start {
                break;
            }
            items.swap(here, from);
            here = from;
        }
    }
}

#[inline(never)]
fn sort_places(places: &mut [usize], compare: &dyn Fn(usize, usize) -> Ordering) {
    places.sort_by(|one, other| compare(*one, *other));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_as_the_standard_library_does(mut items in proptest::collection::vec((0..20_u8, any::<u8>()), 0..200)) {
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            sort(&mut items, |one, other| one.0.cmp(&other.0));
            prop_assert_eq!(items, expected);
        }
    }
}
