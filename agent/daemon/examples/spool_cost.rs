//! What the spool costs: memory, disk and bytes written, for records of one size at one rate with a backlog.
//!
//! `cargo run --release -p tributary --example spool_cost -- DIR [BYTES] [PER_SECOND] [SECONDS] [BACKLOG_DIRS] [DIR_KB]`
//!
//! Commits once a second, leaves a directory at DIR_KB of payload, keeps so many directories and reads each record of the
//! oldest before it is removed, as the uplink does. PER_SECOND 0 = as fast as it goes, 400 records a commit.

use std::time::{Duration, Instant};

use tributary::store::{Reserve, SledStore};
use tributary_core::store::{Commit, DirId, Store};

/// A figure of this process from a file under /proc/self.
fn figure(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "a measurement paces itself by the real clock")]
fn now() -> Instant {
    Instant::now()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("spool_cost DIR [BYTES] [PER_SECOND] [SECONDS] [BACKLOG_DIRS] [DIR_KB]")?;
    let mut number = |default: u64| args.next().map_or(Ok(default), |arg| arg.parse());
    let (bytes, rate, seconds, backlog) = (number(1_024)?, number(400)?, number(60)?, number(2)? as usize);
    let dir_bytes = number(2_048)? << 10;
    let (per_commit, paced) = if rate == 0 { (400, false) } else { (rate, true) };

    let bare = figure("status", "VmRSS");
    let mut store = SledStore::open(std::path::Path::new(&dir), Reserve::default())?;
    store.recover()?;
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut dirs, mut seq, mut payload, mut in_dir) = (Vec::<DirId>::new(), 0, 0, u64::MAX);
    let (start, mut slowest, mut highest) = (now(), Duration::ZERO, 0);
    for second in 0..seconds {
        let fresh = in_dir >= dir_bytes;
        if fresh {
            dirs.push(DirId { epoch: 1, first: seq + 1 });
            in_dir = 0;
        }
        let record = |rng: &mut fastrand::Rng| std::iter::repeat_with(|| rng.u8(..)).take(bytes as usize).collect();
        let records: Vec<(u64, Vec<u8>)> = (seq + 1..=seq + per_commit).map(|seq| (seq, record(&mut rng))).collect();
        seq += per_commit;
        payload += per_commit * bytes;
        in_dir += per_commit * bytes;
        let dir = *dirs.last().ok_or("a directory")?;
        let began = now();
        let commit =
            Commit { dir, records, state: vec![7; 2_000], catalog: fresh.then(|| vec![8; 8_000]), frees: false };
        let usage = store.commit(&commit)?;
        slowest = slowest.max(began.elapsed());
        highest = highest.max(usage.disk_bytes);
        if dirs.len() > backlog {
            let oldest = dirs.remove(0);
            for entry in store.load(oldest)? {
                store.read(oldest, entry.seq)?;
            }
            store.remove(oldest)?;
        }
        if paced {
            let next = start + Duration::from_secs(second + 1);
            std::thread::park_timeout(next.saturating_duration_since(now()));
        }
        if second % 30 == 29 || second + 1 == seconds {
            println!(
                "{:>4} s  payload {:>6} KB  written {:.2} x  disk {:>6} KB (most {} KB)  RSS {} + {} KB, peak + {} KB  slowest commit {} ms",
                start.elapsed().as_secs(),
                payload >> 10,
                figure("io", "write_bytes") as f64 / payload as f64,
                usage.disk_bytes >> 10,
                highest >> 10,
                bare,
                figure("status", "VmRSS") - bare,
                figure("status", "VmHWM") - bare,
                slowest.as_millis(),
            );
        }
    }
    Ok(())
}
