//! What the buses have learnt of their devices, kept in a file across restarts: registers that are refused.
//!
//! One JSON file beside the spool, `buses.json`: an object of bus names. It is worth little, a bus learns it again within
//! a poll or two: so it is written whole beside the old one and put in its place, and one that cannot be read is passed
//! over with a word.
//!
//! Limits: [`LARGEST`] bytes; written when something changed, at most once in [`EVERY`].

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tributary_protocols::modbus::bus::Memory;

/// Most bytes of the file: some 10,000 blocks.
const LARGEST: u64 = 1024 * 1024;
/// Least time between two writes: the card wears out.
const EVERY: Duration = Duration::from_secs(10);

/// By the names of the buses.
pub type Memories = BTreeMap<String, Memory>;

/// Where it is kept.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("buses.json")
}

/// What was kept; nothing if that cannot be read.
#[must_use]
pub fn load(path: &Path) -> Memories {
    match read(path) {
        Ok(memories) => memories,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Memories::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what the buses had learnt cannot be read and is learnt anew");
            Memories::new()
        }
    }
}

fn read(path: &Path) -> io::Result<Memories> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("more than {LARGEST} bytes")));
    }
    serde_json::from_slice(&text).map_err(io::Error::other)
}

fn write(path: &Path, memories: &Memories) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(memories)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Keeps what is learnt until nobody learns any more. To be spawned.
pub async fn keep(path: PathBuf, mut memories: Memories, mut learnt: mpsc::UnboundedReceiver<(String, Memory)>) {
    while let Some((bus, memory)) = learnt.recv().await {
        let mut changed = note(&mut memories, bus, memory);
        // What else comes soon goes into the same write; at the end nothing comes any more and it is written at once.
        let more = async {
            while let Some((bus, memory)) = learnt.recv().await {
                changed |= note(&mut memories, bus, memory);
            }
        };
        let _ = tokio::time::timeout(EVERY, more).await;
        if !changed {
            continue;
        }
        let (to, now) = (path.clone(), memories.clone());
        let written = tokio::task::spawn_blocking(move || write(&to, &now)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(path = %path.display(), %error, "what the buses have learnt cannot be written");
        }
    }
}

/// Whether it is news.
fn note(memories: &mut Memories, bus: String, memory: Memory) -> bool {
    if memory.blocks.is_empty() {
        return memories.remove(&bus).is_some();
    }
    let news = memories.get(&bus) != Some(&memory);
    memories.insert(bus, memory);
    news
}

#[cfg(test)]
mod tests {
    use tributary_protocols::modbus::bus::{Refusal, RefusedBlock};
    use tributary_protocols::modbus::register::Table;

    use super::*;

    fn memory() -> Memory {
        let refused = vec![Refusal { address: 7, count: 2, cut: None }];
        Memory { blocks: vec![RefusedBlock { unit: 1, table: Table::Holding, address: 0, count: 20, refused }] }
    }

    #[tokio::test]
    async fn what_was_learnt_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        assert_eq!(load(&path), Memories::new());
        let (learn, learnt) = mpsc::unbounded_channel();
        let keeper = tokio::spawn(keep(path.clone(), Memories::new(), learnt));
        learn.send(("net".into(), memory())).unwrap();
        learn.send(("line".into(), Memory::default())).unwrap();
        drop(learn);
        keeper.await.unwrap();
        assert_eq!(load(&path), Memories::from([("net".into(), memory())]));
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        write(&path, &Memories::from([("net".into(), memory())])).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(load(&path), Memories::new(), "{cut} bytes");
        }
        std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
        assert_eq!(load(&path), Memories::new());
    }
}
