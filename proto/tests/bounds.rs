//! What a lie may cost: batches that claim, or inflate to, far more than they are must be refused without allocating it.
//!
//! Measured from outside, as growth of the process's peak address space: that counts memory that was asked for, touched
//! or not. One test in a binary of its own, because the figure is the whole process's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that panics fails, which is what it is for")]

use std::fs;
use std::path::Path;

use prost::Message;
use tributary_proto::catalog::Catalog;
use tributary_proto::{decode, pb};

/// Largest address space this process ever had, in KB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs `work` and says by how many KB the peak grew.
fn growth(work: impl FnOnce()) -> u64 {
    let before = peak();
    work();
    peak() - before
}

fn read(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap()
}

#[test]
fn claims_are_refused_without_allocating_them() {
    let catalog = Catalog::new(&pb::Content::decode(read("plant.catalog.bin").as_slice()).unwrap());
    let refused =
        |bytes: &[u8]| decode::open(bytes).and_then(|envelope| decode::decode(&envelope, &catalog)).expect_err("a lie");
    refused(&read("invalid/crc.bin")); // whatever a first use maps

    // The smallest of these claims is 1.2 million rows, 11 MB when believed.
    for name in ["rows-huge", "rows-overflow", "rows-together"] {
        let bytes = read(&format!("invalid/{name}.bin"));
        let grown = growth(|| assert_eq!(refused(&bytes).rule(), decode::Rule::Number(8), "{name}"));
        assert!(grown < 4 << 10, "{name} took {grown} KB");
    }

    // Two bytes of body each; parsed blindly, a frame, loss, event or column becomes some hundred bytes of memory.
    let column_flood = {
        let columns = [0x2A, 0].repeat(2 << 20);
        let mut frame = vec![0x08, 1, 0x18, 1]; // group 1, one row
        frame.extend(columns);
        let mut body = vec![0x0A];
        prost::encoding::encode_varint(frame.len() as u64, &mut body);
        body.extend(frame);
        body
    };
    let floods = [
        ("frames", [0x0A, 0].repeat(2 << 20)),
        ("losses", [0x22, 0].repeat(2 << 20)),
        ("events", [0x2A, 0].repeat(2 << 20)),
        ("columns", column_flood),
    ];
    for (name, flood) in floods {
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(flood.len()));
        zstd_safe::compress(&mut frame, &flood, 3).unwrap();
        let envelope = pb::Envelope {
            epoch: 1,
            seq: 1,
            first_retained_seq: 1,
            schema: 1,
            body_crc32c: tributary_proto::crc32c(&frame),
            body: Some(pb::envelope::Body::PlainZstd(frame)),
            ..Default::default()
        };
        let grown = growth(|| assert!(decode::decode(&envelope, &catalog).is_err(), "{name}"));
        assert!(grown < 32 << 10, "{name} took {grown} KB");
    }

    // 64 MiB of zeros: at most the ceiling of 16 MiB, twice while it grows, and zstd's window.
    let bomb = read("invalid/zstd-bomb.bin");
    let grown = growth(|| assert_eq!(refused(&bomb).rule(), decode::Rule::Number(4)));
    assert!(grown < 48 << 10, "zstd-bomb took {grown} KB");
}
