//! The support archive: readable by any tar, complete also where much is broken, and without secrets.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

const SECRET: &str = "hunter2hunter2";

fn support(folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(["support", "-c"])
        .arg(folder.join("agent.toml"))
        .arg("-o")
        .arg(folder.join("support.tar"))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// All of the archive, by the tar of the system.
fn unpacked(folder: &Path) -> String {
    let output = Command::new("tar").arg("-xOf").arg(folder.join("support.tar")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_archive_tells_what_there_is_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let seed = fs::read_to_string(root.join("systemd/seed.toml")).unwrap();
    let (configuration, _) = seed.split_once("[seed]").unwrap();
    let profiles = format!("[agent]\nprofiles = [\"{}\"]\n", root.join("examples/profiles").display());
    let configuration = configuration.replacen("[agent]\n", &profiles, 1).replace(
        "key = \"pki/client.key\"\n",
        "key = \"pki/client.key\"\nusername = \"gw\"\npassword_file = \"pki/password\"\n",
    );
    fs::write(folder.path().join("agent.toml"), configuration).unwrap();
    fs::create_dir(folder.path().join("pki")).unwrap();
    for name in ["ca.pem", "client.pem", "client.key", "password"] {
        let kind = if name == "client.key" { "PRIVATE KEY" } else { "CERTIFICATE" };
        let path = folder.path().join("pki").join(name);
        fs::write(&path, format!("-----BEGIN {kind}-----\n{SECRET}\n-----END {kind}-----\n")).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let (code, said) = support(folder.path());
    assert_eq!(code, Some(0), "{said}");
    let text = unpacked(folder.path());
    for part in [
        "tributary 0.",
        "id = \"gw-017\"",
        "voltage_l1",
        "0600",
        "pki/client.key",
        "no agent is running",
        "bus \"meters\"",
        "there is no spool",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains(SECRET));
    let (code, said) = support(folder.path());
    assert_eq!(code, Some(1), "what is there is not overwritten: {said}");
}

#[test]
fn a_broken_configuration_is_in_it_without_what_looks_secret() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[uplink\nurl = \"mqtts://me:{SECRET}@broker:8883\"\npassword = \"{SECRET}\"\nkey = '''\n-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----'''\n"
    );
    fs::write(folder.path().join("agent.toml"), text).unwrap();
    let (code, said) = support(folder.path());
    assert_eq!(code, Some(0), "{said}");
    let text = unpacked(folder.path());
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains("not TOML") && text.contains("[removed]@broker:8883"), "{text}");
}
