//! The receiver's clock: the one place where it is read.

/// ms since 1970 UTC; 0 before.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "received_at is the wall clock of the centre")]
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
