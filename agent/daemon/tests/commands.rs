//! The commands as a shell sees them: exit codes, stdout and stderr.

use std::path::Path;
use std::process::{Command, Output};

fn tributary(arguments: &[&str]) -> Output {
    // RUST_LOG and the like must change nothing: the file alone decides.
    Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(arguments)
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .expect("the binary was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const GOOD: &str = "tests/config/cases/profile-good.toml";
const BAD: &str = "tests/config/cases/unit-zero.toml";

#[test]
fn check_says_good_and_ends_with_0() {
    let output = tributary(&["check", "-c", GOOD]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("good. 1 device, 2 points, 2 requests on 1 bus"), "{}", text(&output.stdout));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn check_names_faults_on_stderr_and_ends_with_78() {
    let output = tributary(&["check", "-c", BAD]);
    assert_eq!(output.status.code(), Some(78));
    assert!(output.stdout.is_empty());
    let error = text(&output.stderr);
    assert!(error.contains(" --> tests/config/cases/unit-zero.toml:13:11\n"), "{error}");
    assert!(error.ends_with("unit-zero.toml: 1 error\n"), "{error}");
}

#[test]
fn check_json_prints_one_object_either_way() {
    for (file, code, errors) in [(GOOD, 0, 0), (BAD, 78, 1), ("absent.toml", 78, 1)] {
        let output = tributary(&["check", "-c", file, "--json"]);
        assert_eq!(output.status.code(), Some(code), "{file}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
        assert_eq!(json["ok"], code == 0, "{file}");
        assert_eq!(json["errors"].as_array().map(Vec::len), Some(errors), "{file}");
        assert!(json["warnings"].is_array(), "{file}");
        assert!(output.stderr.is_empty(), "{file}: {}", text(&output.stderr));
    }
}

#[test]
fn check_plan_lists_requests_and_load() {
    let output = tributary(&["check", "-c", GOOD, "--plan"]);
    assert_eq!(output.status.code(), Some(0));
    let plan = text(&output.stdout);
    for part in [
        "bus \"net\" at 192.0.2.10:502: 2 requests\n",
        // Two requests a second; 12 + 9 + 4 bytes each.
        "2.00 requests/s, 50 Modbus bytes/s, 290 bytes/s with TCP/IP headers\n",
        "device \"feeder\", unit 7, answers in 5.0 ms (assumed)\n",
        "every 1000 ms: holding 0..=1 on the wire, 2 registers, 1 point; 12 + 13 bytes, 5.0 ms\n",
        "every 1000 ms: input 10..=11 on the wire, 2 registers, 1 point; 12 + 13 bytes, 5.0 ms\n",
        "1.0 % of the bus, 10.0 ms a round; 2000 ms if every answer comes just before its time-out\n",
        "172800 readings and 0 summaries a day\n",
    ] {
        assert!(plan.contains(part), "{part:?} is not in\n{plan}");
    }
    // With --json stdout stays one object, which has the plan.
    let output = tributary(&["check", "-c", GOOD, "--plan", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert!(json["plan"][0]["utilisation"].is_f64() && json["plan"][0]["requests"][0]["time_ms"].is_f64(), "{json}");
}

#[test]
fn run_and_status_refuse_a_bad_configuration_with_78() {
    for command in ["run", "status"] {
        let output = tributary(&[command, "-c", BAD]);
        assert_eq!(output.status.code(), Some(78), "{command}");
        assert!(text(&output.stderr).contains("error: 0 is broadcast"), "{command}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn status_without_an_agent_ends_with_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("agent.toml");
    std::fs::write(
        &file,
        "[agent]\nsite = \"s\"\nid = \"a\"\nstate_dir = \".\"\n[uplink]\nurl = \"mqtt://127.0.0.1\"\n",
    )
    .expect("written");
    let output = tributary(&["status", "--json", "-c", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = text(&output.stderr);
    assert!(error.starts_with("error: no agent is running: nothing answers at "), "{error}");
}

#[test]
fn status_asks_the_running_agent() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("agent.toml");
    std::fs::write(
        &file,
        "[agent]\nsite = \"s\"\nid = \"a\"\nstate_dir = \".\"\n[uplink]\nurl = \"mqtt://127.0.0.1\"\n",
    )
    .expect("written");
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("status.sock")).expect("bound");
    let agent = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().expect("a client comes");
            // Closing with a question unread would reset the connection.
            let mut question = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut question).expect("it asks");
            let status = r#"{ "state": "online", "site": "s", "agent": "a", "ledger": { "admitted": 3, "held": 3 } }"#;
            std::io::Write::write_all(&mut stream, status.as_bytes()).expect("the client listens");
        }
    });
    let output = tributary(&["status", "--json", "-c", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["state"], &json["ledger"]["held"]), (&"online".into(), &3.into()));
    let output = tributary(&["status", "-c", &file.display().to_string()]);
    assert!(text(&output.stdout).contains("3 admitted = 0 delivered + 3 held + 0 filtered + 0 lost\n"));
    agent.join().expect("both were answered");
}

#[test]
fn version_and_wrong_arguments() {
    let output = tributary(&["--version"]);
    assert_eq!(text(&output.stdout), format!("tributary {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(tributary(&["check"]).status.code(), Some(2), "-c is missing");
    assert_eq!(tributary(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn the_examples_are_good() {
    let folder = Path::new("../../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the examples are there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("Cargo.toml") {
            let output = tributary(&["check", "--plan", "-c", &path.display().to_string()]);
            assert_eq!(output.status.code(), Some(0), "{}: {}", path.display(), text(&output.stderr));
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
}
