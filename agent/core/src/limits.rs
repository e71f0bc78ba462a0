//! Every ceiling of the pipeline, with its arithmetic. A configured size is checked against these when it is loaded.

/// Largest body in bytes; AWS IoT Core takes 128 KB in all (contract rule 18).
pub const MAX_BODY: usize = 120 * 1024;
/// Largest record in the spool: a body and its head.
pub const MAX_RECORD: usize = MAX_BODY + crate::store::RECORD_HEAD;
/// Most values one ring holds: 4,096 × 8 B + 4,096 × 1 B = 36 KB a group at the most, and only what is used is touched.
/// One row must fit: a Modbus request gives at most 2,000 bits, a window group points × statistics.
pub const RING_CELLS: usize = 4_096;
/// Most rows one ring holds: 25 s of a 100 ms poll.
pub const RING_ROWS: usize = 256;
/// Most readings of points on their own clock in the open batch: 4,096 × 24 B = 96 KB.
pub const EVENT_READINGS: usize = 4_096;
/// So many of them seal the batch: what is left has room for the largest poll, 2,000 bits, so that none is pushed out
/// while the spool has room.
pub const EVENT_READINGS_LARGE: usize = EVENT_READINGS - 2_000;
/// Sealed batches that may wait for a commit: four commits' worth, 256 KB.
pub const MAX_PENDING: usize = 256 * 1024;
/// Bytes of texts in the open batch before it is sealed, and the longest text that travels at all: 24 KB.
pub const MAX_TEXTS: usize = 24 * 1024;
