-- The receiver's tables in PostgreSQL. Every epoch and seq is the 64 bits of the contract's number as a signed one; every
-- ..._ms and received_at is ms since 1970 UTC. What the receiver alone uses has a comment of its own.

CREATE TABLE IF NOT EXISTS agent (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL DEFAULT 0, state text NOT NULL DEFAULT '',
  last_seq bigint NOT NULL DEFAULT 0, first_retained_seq bigint NOT NULL DEFAULT 0, contiguous_seq bigint NOT NULL DEFAULT 0,
  admitted bigint NOT NULL DEFAULT 0, delivered bigint NOT NULL DEFAULT 0, held bigint NOT NULL DEFAULT 0,
  filtered bigint NOT NULL DEFAULT 0, lost bigint NOT NULL DEFAULT 0, lost_by_reason text NOT NULL DEFAULT '',
  at_ms bigint NOT NULL DEFAULT 0, by_status boolean NOT NULL DEFAULT false, boot_id bytea NOT NULL DEFAULT '',
  version text NOT NULL DEFAULT '', catalog_rev bigint NOT NULL DEFAULT 0, config_sha256 text NOT NULL DEFAULT '',
  time_quality integer NOT NULL DEFAULT 0, backlog_bytes bigint NOT NULL DEFAULT 0, backlog_oldest_ms bigint NOT NULL DEFAULT 0,
  received_at bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (site, agent));

-- The facts that contiguous_seq and the gaps follow from, as lists of ranges: 1-5,9
CREATE TABLE IF NOT EXISTS contiguity (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, first_retained_seq bigint NOT NULL,
  contiguous_seq bigint NOT NULL, highest_seq bigint NOT NULL, committed text NOT NULL, refused text NOT NULL,
  lost text NOT NULL, forked text NOT NULL,
  PRIMARY KEY (site, agent, epoch));

-- The ledger. original_*: this batch is a settled duplicate of that one, which has the readings.
CREATE TABLE IF NOT EXISTS batch (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL,
  body_hash bytea NOT NULL, readings bigint NOT NULL, received_at bigint NOT NULL, body bytea NOT NULL,
  zstd boolean NOT NULL, catalog_rev bigint NOT NULL, lane integer NOT NULL, time_quality integer NOT NULL,
  time_error_ms bigint NOT NULL, original_epoch bigint, original_seq bigint,
  UNIQUE (site, agent, epoch, seq));
CREATE INDEX IF NOT EXISTS batch_body ON batch (site, agent, body_hash);

-- No primary key: the ledger proves that no batch is written twice, and a B-tree over readings would halve the rate.
CREATE TABLE IF NOT EXISTS reading_row (
  batch bigint NOT NULL, point bigint NOT NULL, at_ms bigint NOT NULL, idx integer NOT NULL, status smallint NOT NULL,
  value_num double precision, value_int bigint, value_text text);
CREATE INDEX IF NOT EXISTS reading_row_batch ON reading_row USING brin (batch);
CREATE INDEX IF NOT EXISTS reading_row_at ON reading_row USING brin (at_ms);

-- rev: the revision that last described the point
CREATE TABLE IF NOT EXISTS point (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, id bigint NOT NULL, device text NOT NULL,
  point text NOT NULL, statistic text NOT NULL, path text NOT NULL, unit text NOT NULL, type text NOT NULL,
  exponent integer NOT NULL, factor double precision NOT NULL, bias double precision NOT NULL, description text NOT NULL,
  first_rev bigint NOT NULL, rev bigint NOT NULL,
  PRIMARY KEY (site, agent, epoch, id));

CREATE VIEW reading AS
  SELECT b.site, b.agent, b.epoch, b.seq, r.idx, p.device, p.point, p.statistic, r.at_ms, r.status,
         r.value_num, r.value_int, r.value_text
  FROM reading_row r JOIN batch b ON b.id = r.batch
  LEFT JOIN point p ON p.site = b.site AND p.agent = b.agent AND p.epoch = b.epoch AND p.id = r.point;

-- The newest revision of each epoch, as it came.
CREATE TABLE IF NOT EXISTS catalog (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, rev bigint NOT NULL, received_at bigint NOT NULL,
  message bytea NOT NULL,
  PRIMARY KEY (site, agent, epoch));

CREATE TABLE IF NOT EXISTS loss (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, reason text NOT NULL,
  loss_epoch bigint NOT NULL, first_seq bigint NOT NULL, last_seq bigint NOT NULL, device text, point text,
  from_ms bigint NOT NULL, to_ms bigint NOT NULL, readings bigint NOT NULL);

CREATE TABLE IF NOT EXISTS event (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, idx bigint NOT NULL,
  device text, point text, at_ms bigint NOT NULL, code text NOT NULL, state integer NOT NULL, severity bigint NOT NULL,
  text text NOT NULL, value_num double precision, value_int bigint, value_text text, occurrence bigint NOT NULL,
  PRIMARY KEY (site, agent, epoch, seq, idx));

CREATE TABLE IF NOT EXISTS gap (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, first_seq bigint NOT NULL, last_seq bigint NOT NULL,
  PRIMARY KEY (site, agent, epoch, first_seq));

-- body: the whole message as it came. epoch and seq are 0 where they cannot be read.
CREATE TABLE IF NOT EXISTS quarantine (
  site text NOT NULL, agent text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, reason text NOT NULL,
  received_at bigint NOT NULL, body bytea NOT NULL, detail text NOT NULL, message_hash bytea NOT NULL,
  UNIQUE (site, agent, epoch, seq, message_hash));
