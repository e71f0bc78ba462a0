-- The receiver's tables in SQLite. Every epoch and seq is the 64 bits of the contract's number as a signed one; every
-- ..._ms and received_at is ms since 1970 UTC. What the receiver alone uses has a comment of its own.

CREATE TABLE IF NOT EXISTS agent (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT '',
  last_seq INTEGER NOT NULL DEFAULT 0, first_retained_seq INTEGER NOT NULL DEFAULT 0, contiguous_seq INTEGER NOT NULL DEFAULT 0,
  admitted INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0,
  filtered INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0, lost_by_reason TEXT NOT NULL DEFAULT '',
  at_ms INTEGER NOT NULL DEFAULT 0, by_status INTEGER NOT NULL DEFAULT 0, boot_id BLOB NOT NULL DEFAULT x'',
  version TEXT NOT NULL DEFAULT '', catalog_rev INTEGER NOT NULL DEFAULT 0, config_sha256 TEXT NOT NULL DEFAULT '',
  time_quality INTEGER NOT NULL DEFAULT 0, backlog_bytes INTEGER NOT NULL DEFAULT 0, backlog_oldest_ms INTEGER NOT NULL DEFAULT 0,
  received_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (site, agent)) WITHOUT ROWID;

-- The facts that contiguous_seq and the gaps follow from, as lists of ranges: 1-5,9
CREATE TABLE IF NOT EXISTS contiguity (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, first_retained_seq INTEGER NOT NULL,
  contiguous_seq INTEGER NOT NULL, highest_seq INTEGER NOT NULL, committed TEXT NOT NULL, refused TEXT NOT NULL,
  lost TEXT NOT NULL, forked TEXT NOT NULL,
  PRIMARY KEY (site, agent, epoch)) WITHOUT ROWID;

-- The ledger. original_*: this batch is a settled duplicate of that one, which has the readings.
CREATE TABLE IF NOT EXISTS batch (
  id INTEGER PRIMARY KEY, site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
  body_hash BLOB NOT NULL, readings INTEGER NOT NULL, received_at INTEGER NOT NULL, body BLOB NOT NULL,
  zstd INTEGER NOT NULL, catalog_rev INTEGER NOT NULL, lane INTEGER NOT NULL, time_quality INTEGER NOT NULL,
  time_error_ms INTEGER NOT NULL, original_epoch INTEGER, original_seq INTEGER,
  UNIQUE (site, agent, epoch, seq));
CREATE INDEX IF NOT EXISTS batch_body ON batch (site, agent, body_hash);

CREATE TABLE IF NOT EXISTS reading_row (
  batch INTEGER NOT NULL, idx INTEGER NOT NULL, point INTEGER NOT NULL, at_ms INTEGER NOT NULL, status INTEGER NOT NULL,
  value_num REAL, value_int INTEGER, value_text TEXT,
  PRIMARY KEY (batch, idx)) WITHOUT ROWID;

-- rev: the revision that last described the point
CREATE TABLE IF NOT EXISTS point (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, id INTEGER NOT NULL, device TEXT NOT NULL,
  point TEXT NOT NULL, statistic TEXT NOT NULL, path TEXT NOT NULL, unit TEXT NOT NULL, type TEXT NOT NULL,
  exponent INTEGER NOT NULL, factor REAL, bias REAL, description TEXT NOT NULL,
  first_rev INTEGER NOT NULL, rev INTEGER NOT NULL,
  PRIMARY KEY (site, agent, epoch, id)) WITHOUT ROWID;

CREATE VIEW IF NOT EXISTS reading AS
  SELECT b.site, b.agent, b.epoch, b.seq, r.idx, p.device, p.point, p.statistic, r.at_ms, r.status,
         r.value_num, r.value_int, r.value_text
  FROM reading_row r JOIN batch b ON b.id = r.batch
  LEFT JOIN point p ON p.site = b.site AND p.agent = b.agent AND p.epoch = b.epoch AND p.id = r.point;

-- The newest revision of each epoch, as it came.
CREATE TABLE IF NOT EXISTS catalog (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, rev INTEGER NOT NULL, received_at INTEGER NOT NULL,
  message BLOB NOT NULL,
  PRIMARY KEY (site, agent, epoch));

CREATE TABLE IF NOT EXISTS loss (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL,
  loss_epoch INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, device TEXT, point TEXT,
  from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL, readings INTEGER NOT NULL);

CREATE TABLE IF NOT EXISTS event (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, idx INTEGER NOT NULL,
  device TEXT, point TEXT, at_ms INTEGER NOT NULL, code TEXT NOT NULL, state INTEGER NOT NULL, severity INTEGER NOT NULL,
  text TEXT NOT NULL, value_num REAL, value_int INTEGER, value_text TEXT, occurrence INTEGER NOT NULL,
  PRIMARY KEY (site, agent, epoch, seq, idx)) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS gap (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
  PRIMARY KEY (site, agent, epoch, first_seq)) WITHOUT ROWID;

-- body: the whole message as it came. epoch and seq are 0 where they cannot be read.
CREATE TABLE IF NOT EXISTS quarantine (
  site TEXT NOT NULL, agent TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL,
  received_at INTEGER NOT NULL, body BLOB NOT NULL, detail TEXT NOT NULL, message_hash BLOB NOT NULL,
  UNIQUE (site, agent, epoch, seq, message_hash));
