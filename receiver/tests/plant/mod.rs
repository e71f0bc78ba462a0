//! A plant on paper: messages as an agent sends them. The catalogue is that of the golden vectors: point 1 is
//! press/temperature, INT with exponent −1; group 1 is points 1 to 4.

#![allow(dead_code, reason = "each test takes what it needs")]

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use tributary_proto::encode::{Body, Encoder, Header, Values, envelope};
use tributary_proto::{catalog, pb};
use tributary_receiver::topic::AgentKey;

/// 2023-11-14, when the golden vectors were read.
pub(crate) const START_MS: i64 = 1_700_000_000_000;

/// The epoch of the golden vectors.
pub(crate) const EPOCH: u64 = 7_130_316_800_001_398_101;

/// The golden vectors.
pub(crate) const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/golden");

pub(crate) fn agent(name: &str) -> AgentKey {
    AgentKey::new("plant-1", name).expect("a topic level")
}

pub(crate) fn golden(file: &str) -> Vec<u8> {
    std::fs::read(format!("{GOLDEN}/{file}")).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The golden catalogue as revision `rev` of `epoch`.
pub(crate) fn catalog(epoch: u64, rev: u32) -> Bytes {
    catalog_of(epoch, rev, &golden("plant.catalog.bin"))
}

/// `content`, serialized, as revision `rev` of `epoch`.
pub(crate) fn catalog_of(epoch: u64, rev: u32, content: &[u8]) -> Bytes {
    catalog::catalog_message(epoch, rev, content, Sha256::digest(content).into()).encode_to_vec().into()
}

/// A body and how many readings it has.
#[derive(Clone)]
pub(crate) struct Load(pub(crate) Body, pub(crate) u32);

/// `values` of point 1, one a second from `START_MS + at`.
pub(crate) fn temperatures(at: i64, values: &[i64]) -> Load {
    load(at, values, Vec::new(), Vec::new())
}

pub(crate) fn load(at: i64, values: &[i64], losses: Vec<pb::Loss>, events: Vec<pb::Event>) -> Load {
    let mut encoder = Encoder::new();
    let stamps: Vec<i64> = (0..).zip(values).map(|(n, _)| START_MS + at + 1_000 * n).collect();
    let rows = u32::try_from(values.len()).expect("few");
    let frame = pb::Frame {
        point: 1,
        rows,
        time: Some(encoder.time(&stamps)),
        columns: vec![encoder.column(&vec![0; values.len()], Values::Int(values))],
        ..Default::default()
    };
    let frames = if rows == 0 { Vec::new() } else { vec![frame] };
    Load(encoder.body(&pb::Batch { frames, losses, events, ..Default::default() }), rows)
}

/// The message of `load` as batch `seq`.
pub(crate) fn batch(epoch: u64, seq: u64, first_retained_seq: u64, load: &Load) -> Bytes {
    let lane = pb::Lane::Live;
    let header = Header { epoch, seq, first_retained_seq, lane, catalog_rev: 1, readings: load.1 };
    envelope(&header, &load.0).into()
}

/// A golden or hostile envelope under another name.
pub(crate) fn renamed(message: &[u8], epoch: u64, seq: u64, first_retained_seq: u64) -> Bytes {
    let envelope = pb::Envelope::decode(message).expect("an envelope");
    pb::Envelope { epoch, seq, first_retained_seq, ..envelope }.encode_to_vec().into()
}

/// A status, as published.
pub(crate) fn status(state: pb::agent_status::State, epoch: u64, at_ms: i64, admitted: u64) -> pb::AgentStatus {
    let ledger = pb::Ledger { admitted, delivered: admitted, ..Default::default() };
    let boot_id = vec![7; 16];
    let (first_retained_seq, last_seq) = (1, 3);
    pb::AgentStatus {
        state: state.into(),
        epoch,
        at_ms,
        ledger: Some(ledger),
        boot_id,
        first_retained_seq,
        last_seq,
        ..Default::default()
    }
}
