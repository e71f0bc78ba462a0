//! Foreign device maps → profiles. Nothing is guessed: what a map does not say must be said beside it.
//!
//! | file | takes |
//! |---|---|
//! | `write.rs` | a profile, and gives it as TOML or register table |

pub mod write;
