//! One gateway with a device of every profile under `examples/profiles/`: `check` takes it, and its plan asks each of them.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_gateway_with_all_of_them_passes_check() {
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/profiles").canonicalize().unwrap();
    let files = fs::read_dir(&profiles).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
    let mut names: Vec<String> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let mut text = format!(
        "[agent]\nsite = \"works\"\nid = \"gw-1\"\nstate_dir = {state:?}\nprofiles = [{profiles:?}]\n\
         [uplink]\nurl = \"mqtt://127.0.0.1:1883\"\n"
    );
    for (index, name) in names.iter().enumerate() {
        let host = index + 1;
        write!(
            text,
            "[[bus]]\nname = \"{name}\"\ntcp = \"192.0.2.{host}:502\"\n\
             [[device]]\nname = \"{name}\"\nbus = \"{name}\"\nunit_id = 1\nprofile = \"{name}\"\n"
        )
        .unwrap();
    }
    let file = folder.path().join("all.toml");
    fs::write(&file, text).unwrap();
    let check =
        Command::new(env!("CARGO_BIN_EXE_tributary")).args(["check", "--plan", "-c"]).arg(&file).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(check.stdout).unwrap(), String::from_utf8(check.stderr).unwrap());
    assert_eq!(check.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert!(stdout.contains(&format!("good. {} devices, ", names.len())), "{stdout}");
    for name in names {
        assert!(stdout.contains(&format!("device \"{name}\", unit 1")), "{name} is not in\n{stdout}");
    }
}
