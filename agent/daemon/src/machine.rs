//! Which machine this is: a card or a disk that was copied to another is noticed, and does not speak for the first.
//!
//! At the first start the state folder notes what tells this machine from another: the files of `agent.machine`, by
//! default the machine's id and, on boards that have one, the serial number of the board; a card copied block by block has
//! the first, but not the second. Only hashes are kept, as machine-id(5) asks. At each start after that every file
//! that is there now and was there then must say the same: one that is missing, as in a container, tells nothing.
//!
//! A machine id that the system makes anew at each boot (a read-only root; then /run/machine-id is there) is left out.
//!
//! What to do with a gateway that is now in another housing, or with a copy, is the owner's to say: `tributary enroll
//! --machine moved` or `copied`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tributary_protocols::gather;

use crate::config::AgentConfig;
use crate::enroll;

/// Below the state folder.
const FILE: &str = "machine.json";
/// Its presence says that the machine id is of this boot alone.
const TRANSIENT: &str = "/run/machine-id";
const MACHINE_ID: &str = "/etc/machine-id";
/// Longest file of a fact.
const LONGEST: u64 = 4_096;

/// What tells a machine from another, and whose state it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Site and id of the agent.
    pub agent: String,
    /// Files, and hashes of what is in them.
    facts: BTreeMap<PathBuf, String>,
}

/// This is another machine than the state was made on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the state in {dir} is of another machine: {file} differs. If this gateway's card was moved to another board, `tributary \
     enroll -c FILE --machine moved` goes on with it here; if this is a copy, give it an `id` of its own and use --machine copied"
)]
pub struct Stranger {
    /// The state folder.
    pub dir: String,
    /// What differs.
    pub file: String,
}

impl Machine {
    /// This one, as the files say now.
    #[must_use]
    pub fn this(agent: &AgentConfig) -> Self {
        let transient = Path::new(TRANSIENT).exists();
        let files = agent.machine.iter().filter(|file| !(transient && file.as_path() == Path::new(MACHINE_ID)));
        let facts = gather(files.filter_map(|file| Some((file.clone(), fact(file)?))));
        Self { agent: format!("{}/{}", agent.site, agent.id), facts }
    }

    /// The one that the state folder knows, if it knows one.
    #[must_use]
    pub fn known(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&read(&state_dir.join(FILE))?).ok()
    }

    /// Notes it in the state folder.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn note(&self, state_dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        enroll::replace(&state_dir.join(FILE), text.as_bytes(), 0o600, enroll::Places::owner_of(state_dir))
    }

    /// A file that says otherwise than on the other machine.
    fn differs(&self, other: &Self) -> Option<&Path> {
        let differs = |(file, fact): &(&PathBuf, &String)| other.facts.get(*file).is_some_and(|known| known != *fact);
        self.facts.iter().find(differs).map(|(file, _)| file.as_path())
    }
}

/// Whether the state is of this machine, as far as it says.
///
/// # Errors
/// It is of another.
pub fn check(agent: &AgentConfig) -> Result<(), Stranger> {
    let Some(known) = Machine::known(&agent.state_dir) else { return Ok(()) };
    match Machine::this(agent).differs(&known) {
        None => Ok(()),
        Some(file) => Err(Stranger { dir: agent.state_dir.display().to_string(), file: file.display().to_string() }),
    }
}

/// Notes this machine in a state folder that knows none. A disk that refuses is asked again at the next start.
pub fn remember(agent: &AgentConfig) {
    if Machine::known(&agent.state_dir).is_none()
        && let Err(error) = Machine::this(agent).note(&agent.state_dir)
    {
        tracing::warn!(%error, "which machine this is cannot be noted in the state folder");
    }
}

/// A hash of what the file says; `None` if it says nothing.
fn fact(file: &Path) -> Option<String> {
    let content = read(file)?;
    let text = content.trim_ascii();
    if text.is_empty() || text == b"uninitialized" {
        return None;
    }
    let hash = Sha256::new().chain_update(b"tributary machine\n").chain_update(text).finalize();
    Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read(file: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(file).ok()?.take(LONGEST).read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_noticed_and_a_missing_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let say = |id: &str, board: &str| {
            std::fs::write(path("id"), id).unwrap();
            std::fs::write(path("board"), board).unwrap();
        };
        let agent = AgentConfig {
            site: "s".into(),
            id: "a".into(),
            state_dir: folder.path().to_path_buf(),
            machine: vec![path("id"), path("board"), path("absent")],
            ..AgentConfig::default()
        };
        say("4d1c\n", "");
        assert_eq!(check(&agent), Ok(()));
        remember(&agent);
        assert_eq!(check(&agent), Ok(()));
        // A board that tells its number later tells nothing of then.
        say("4d1c", "100\0");
        assert_eq!(check(&agent), Ok(()));
        say("ffff", "100");
        let stranger = check(&agent).unwrap_err();
        assert_eq!(stranger.file, path("id").display().to_string());
        assert!(stranger.to_string().contains("--machine moved"));
        // Told that it is so, it goes on; a copy of the card on another board does not.
        Machine::this(&agent).note(&agent.state_dir).unwrap();
        assert_eq!(check(&agent), Ok(()));
        say("ffff", "200");
        assert_eq!(check(&agent).unwrap_err().file, path("board").display().to_string());
        // The id itself is not kept.
        let kept = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(!kept.contains("ffff") && kept.contains("\"s/a\""), "{kept}");
        std::fs::remove_file(path("id")).unwrap();
        std::fs::remove_file(path("board")).unwrap();
        assert_eq!(check(&agent), Ok(()));
    }
}
