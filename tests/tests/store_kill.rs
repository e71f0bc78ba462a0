//! A writer killed with SIGKILL at seeded moments, again and again on the same spool: every record whose commit was
//! acknowledged is there, and every start succeeds.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tributary_tests::store::audit;

/// What a writer said until it was killed.
#[derive(Default, Debug)]
struct Said {
    opened: Option<u64>,
    acked: u64,
    removed: Vec<u64>,
}

/// Lets a writer run until it has said `acks` lines, then for `steps` of a line or a millisecond each, and kills it.
fn write_and_kill(root: &std::path::Path, seed: u64, acks: usize, steps: u64) -> Said {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_store_writer"))
        .arg(root)
        .arg(seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let output = BufReader::new(writer.stdout.take().expect("is piped"));
    let (lines, said_lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let mut said = Said::default();
    let mut hear = |line: String| match line.split_once(' ') {
        Some(("opened", last)) => said.opened = last.parse().ok(),
        Some(("acked", seq)) => said.acked = seq.parse().expect("a number"),
        Some(("removed", first)) => said.removed.push(first.parse().expect("a number")),
        _ => panic!("not a line of the writer: {line}"),
    };
    // Lines, not a clock, say how far it is: the machine may be slow.
    for _ in 0..acks {
        match said_lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => hear(line),
            Err(error) => panic!("seed {seed}: the writer ended or hangs: {error}"),
        }
    }
    for _ in 0..steps {
        match said_lines.recv_timeout(Duration::from_millis(1)) {
            Ok(line) => hear(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("seed {seed}: the writer ended by itself"),
        }
    }
    writer.kill().expect("is killed");
    writer.wait().expect("is gone");
    said_lines.iter().for_each(&mut hear);
    reader.join().expect("the reader ends");
    said
}

#[test]
fn nothing_acknowledged_is_lost_to_a_kill() {
    let root = TempDir::new().expect("a directory");
    let (rounds, first) = (tributary_tests::count("TRIBUTARY_KILLS", 50), tributary_tests::seed(0));
    let (mut acked, mut removed_up_to) = (0, 0);
    for seed in first..first + rounds {
        let mut rng = Rng::with_seed(seed);
        // One round in four is killed while it starts.
        let (acks, steps) = if seed % 4 == 3 { (0, rng.u64(..30)) } else { (rng.usize(1..150), rng.u64(..8)) };
        let said = write_and_kill(root.path(), seed, acks, steps);
        acked = acked.max(said.acked);
        removed_up_to = said.removed.iter().copied().fold(removed_up_to, u64::max);
        if let Some(opened) = said.opened {
            assert!(opened <= acked.max(opened), "seed {seed}");
        }

        let last = audit(root.path(), acked).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        // What was not committed but is whole counts as committed from here on: the next round must keep it.
        acked = last;
    }
    println!("{rounds} kills: {acked} records acknowledged, none lost; directories up to {removed_up_to} removed");
    assert!(acked > 100, "the writer must get somewhere: {acked}");
}
