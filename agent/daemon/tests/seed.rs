//! A gateway's first configuration: taken whole or not at all, once, with a text that says what to do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A boot partition and a folder for the configuration.
struct Gateway {
    folder: tempfile::TempDir,
}

impl Gateway {
    fn new(seed: &str) -> Self {
        let gateway = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(gateway.folder.path().join("boot")).unwrap();
        gateway.insert(seed);
        gateway
    }

    fn insert(&self, seed: &str) {
        fs::write(self.path("boot/tributary-seed.toml"), seed).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn seed(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary"));
        command.arg("seed").arg(self.path("boot/none.toml")).arg(self.path("boot/tributary-seed.toml"));
        command.arg("--to").arg(self.path("etc"));
        command
    }

    /// Starts the gateway: exit code, and the text on the boot partition.
    fn start(&self) -> (Option<i32>, String) {
        let code = self.seed().output().unwrap().status.code();
        (code, fs::read_to_string(self.path("boot/tributary-seed.txt")).unwrap_or_default().replace("\r\n", "\n"))
    }
}

/// The seed that the package ships.
fn shipped() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("systemd/seed.toml")).unwrap();
    // Where the package puts profiles, and where they are here.
    let profiles = format!("[agent]\nprofiles = [\"{}\"]\n", root.join("examples/profiles").display());
    text.replacen("[agent]\n", &profiles, 1)
}

#[test]
fn the_shipped_seed_is_taken_once_and_leaves_nothing_secret() {
    let gateway = Gateway::new(&(shipped() + "\"password\" = \"hunter2\"\n"));
    let (code, text) = gateway.start();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("tributary-seed.toml was taken") && text.contains("plant-1/gw-017"), "{text}");
    assert!(text.contains("STILL TO DO") && text.contains("tributary enroll"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let configuration = gateway.read("etc/agent.toml");
    assert!(configuration.contains("## These two are") && !configuration.contains("[seed]"), "{configuration}");
    assert!(gateway.read("etc/pki/ca.pem").contains("BEGIN CERTIFICATE"));
    assert_eq!(gateway.read("etc/pki/password"), "hunter2");
    assert_eq!((gateway.mode("etc/agent.toml"), gateway.mode("etc/pki")), (0o644, 0o700));
    assert_eq!((gateway.mode("etc/pki/ca.pem"), gateway.mode("etc/pki/password")), (0o644, 0o640));
    assert!(!gateway.path("boot/tributary-seed.toml").exists() && !gateway.path("etc/.seed").exists());

    // The pair is there: the same seed has nothing left to say; and nothing is read a second time.
    let (code, _) = gateway.start();
    assert_eq!(code, Some(0));
    gateway.insert(&(shipped() + "\"password\" = \"hunter2\"\n"));
    fs::write(gateway.path("etc/agent.toml"), "# changed by hand\n").unwrap();
    let (code, text) = gateway.start();
    assert_eq!(code, Some(0));
    assert!(text.contains("was taken before"), "{text}");
    assert_eq!(gateway.read("etc/agent.toml"), "# changed by hand\n");
}

#[test]
fn another_seed_replaces_the_configuration_and_keeps_the_old_one() {
    let gateway = Gateway::new(&shipped());
    assert_eq!(gateway.start().0, Some(0));
    fs::write(gateway.path("etc/pki/client.pem"), "-----BEGIN CERTIFICATE-----").unwrap();
    fs::write(gateway.path("etc/pki/client.key"), "-----BEGIN PRIVATE KEY-----").unwrap();
    fs::set_permissions(gateway.path("etc/pki/client.key"), fs::Permissions::from_mode(0o600)).unwrap();
    gateway.insert(&shipped().replace("gw-017", "gw-018"));
    let (code, text) = gateway.start();
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("STILL TO DO"), "{text}");
    assert!(gateway.read("etc/agent.toml").contains("gw-018"));
    assert!(gateway.read("etc/agent.toml.old").contains("gw-017"));
}

#[test]
fn a_faulty_seed_changes_nothing_and_says_where_the_fault_is() {
    let good = shipped();
    for (seed, said) in [
        (good.replace("unit_id = 1", "unit_id = 0"), "tributary-seed.toml:25:11"),
        (good.replace("eastron-sdm630", "eastron-sdm999"), "eastron-sdm999"),
        (good.replace("site = ", "sight = "), "unknown key `sight`"),
        (good.replace("\"ca.pem\" =", "\"cb.pem\" ="), "ca.pem does not exist"),
        (good.replace("-----BEGIN CERTIFICATE-----", ""), "holds no"),
        (good.replace("[uplink]", "[uplink"), "not TOML"),
        (String::new(), "the section [agent] is missing"),
        ("\0\u{7f}".into(), "not TOML"),
    ] {
        let gateway = Gateway::new(&seed);
        let (code, text) = gateway.start();
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("was NOT taken, and nothing was changed") && text.contains(said), "{said}:\n{text}");
        assert!(!text.contains("/.seed/"), "{text}");
        assert_eq!(gateway.read("boot/tributary-seed.toml"), seed);
        let left: Vec<_> =
            fs::read_dir(gateway.path("etc")).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty() || left == ["pki"], "{left:?}");
    }
}

#[test]
fn no_seed_is_no_fault() {
    let gateway = Gateway::new(&shipped());
    fs::remove_file(gateway.path("boot/tributary-seed.toml")).unwrap();
    assert_eq!(gateway.start(), (Some(0), String::new()));
}
