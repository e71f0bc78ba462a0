//! What `check` says of configurations, faulty ones above all.
//!
//! `tests/config/cases/NAME.toml` is a configuration, `NAME.txt` what a person reads of it. `UPDATE_GOLDEN=1` writes the
//! texts anew; the difference is then read by eye. Two hundred mutations of the sample follow, each of which must be
//! refused at a place or accepted, and none may panic.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tributary::config::{Occasion, Report, load_with};

fn check(file: &Path) -> (bool, Report) {
    let (config, report) = load_with(file, Occasion::Check, None);
    assert_eq!(
        config.is_some(),
        report.ok,
        "{}: a configuration comes back if and only if it has no errors",
        file.display()
    );
    assert_eq!(report.ok, report.errors.is_empty());
    (report.ok, report)
}

/// Relative, so that the expected texts are the same on every machine: tests run in the package's folder.
const CASES: &str = "tests/config/cases";

#[test]
fn every_case_says_what_is_expected() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(CASES)
        .expect("the cases are beside this test")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    names.sort();
    assert!(names.len() >= 25, "{} cases", names.len());
    let mut wrong = String::new();
    for file in names {
        let (ok, report) = check(&file);
        let found = format!("{}\n\n{}", if ok { "good" } else { "refused" }, report.render());
        let golden = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &found).expect("the golden file can be written");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            let _ = writeln!(wrong, "=== {}\n--- expected\n{expected}\n--- found\n{found}", file.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let says = |path: &Path| {
        let (ok, report) = check(path);
        assert!(!ok);
        assert_eq!(report.errors.len(), 1, "{report:?}");
        let error = report.errors.first().expect("one");
        assert_eq!(error.file, path.display().to_string());
        error.message.clone()
    };
    assert_eq!(says(&dir.path().join("absent.toml")), "the file does not exist");
    assert_eq!(says(dir.path()), "this is a folder, not a file");
    assert_eq!(says(Path::new("/dev/zero")), "this is not an ordinary file");
    let large = dir.path().join("large.toml");
    std::fs::write(&large, "# ten megabytes\n".repeat(655_360)).expect("room for 10 MB");
    assert!(says(&large).contains("the ceiling is 4194304"), "{}", says(&large));
    assert!(says(Path::new("nul\0byte")).contains("cannot be read"));
}

#[test]
fn secrets_must_not_be_open_to_everyone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    let pem = |name: &str, kind: &str, mode: u32| {
        std::fs::write(path(name), format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")).expect("written");
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).expect("set");
    };
    pem("ca.pem", "CERTIFICATE", 0o644);
    pem("client.pem", "CERTIFICATE", 0o644);
    pem("client.key", "PRIVATE KEY", 0o600);
    std::fs::write(path("password"), "secret\n").expect("written");
    std::fs::set_permissions(path("password"), std::fs::Permissions::from_mode(0o600)).expect("set");
    let text = "[agent]\nsite = \"s\"\nid = \"a\"\nstate_dir = \".\"\n[uplink]\nurl = \"mqtts://b\"\nca = \"ca.pem\"\ncert = \
                \"client.pem\"\nkey = \"client.key\"\nusername = \"u\"\npassword_file = \"password\"\n";
    let file = path("agent.toml");
    std::fs::write(&file, text).expect("written");
    let (config, report) = load_with(&file, Occasion::Run, None);
    assert!(report.ok, "{}", report.render());
    let config = config.expect("no errors");
    assert_eq!(config.uplink.key.as_ref().expect("given").path(), path("client.key"));

    pem("client.key", "PRIVATE KEY", 0o644);
    std::fs::set_permissions(path("password"), std::fs::Permissions::from_mode(0o602)).expect("set");
    let (_, report) = check(&file);
    let keys: Vec<_> = report.errors.iter().map(|error| (error.line, error.key.as_str())).collect();
    assert_eq!(keys, [(9, "uplink.key"), (11, "uplink.password_file")], "{}", report.render());
    // Who runs goes on without a connection: readings are kept.
    let (config, run) = load_with(&file, Occasion::Run, None);
    let keys: Vec<_> =
        run.warnings.iter().map(|warning| warning.key.as_str()).filter(|key| key.contains('.')).collect();
    assert!(config.is_some() && keys == ["uplink.key", "uplink.password_file"], "{}", run.render());
    assert!(!report.render().contains("secret\n"), "a password is never shown");

    // A credential is looked for in its folder, and missed only by who runs.
    let text = text.replace("\"client.key\"", "\"credential:my.key\"").replace("\"password\"", "\"credential:pw\"");
    std::fs::write(&file, text).expect("written");
    let (_, report) = load_with(&file, Occasion::Run, None);
    assert_eq!(report.errors.len(), 2, "{}", report.render());
    let (_, report) = load_with(&file, Occasion::Check, None);
    assert!(report.ok && report.warnings.len() == 3, "{}", report.render());
    let handed = tempfile::tempdir().expect("a folder");
    std::fs::copy(path("ca.pem"), handed.path().join("my.key")).expect("copied");
    std::fs::set_permissions(handed.path().join("my.key"), std::fs::Permissions::from_mode(0o400)).expect("set");
    let (_, report) = load_with(&file, Occasion::Check, Some(handed.path().to_path_buf()));
    assert_eq!(report.errors.len(), 2, "{}", report.render());
    assert!(
        report.errors.iter().any(|error| error.message.contains("holds no \"PRIVATE KEY-----\"")),
        "{}",
        report.render()
    );
}

#[test]
fn a_key_of_a_bus_must_not_be_open_to_everyone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    for (name, kind) in [("ca.pem", "CERTIFICATE"), ("c.pem", "CERTIFICATE"), ("c.key", "PRIVATE KEY")] {
        std::fs::write(path(name), format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")).expect("written");
    }
    let text = "[agent]\nsite = \"s\"\nid = \"a\"\nstate_dir = \".\"\n[uplink]\nurl = \"mqtt://127.0.0.1\"\n[[bus]]\n\
                name = \"plc\"\ntls = \"192.0.2.1\"\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\n";
    let file = path("agent.toml");
    std::fs::write(&file, text).expect("written");
    for (mode, errors) in [(0o644, 1), (0o600, 0)] {
        std::fs::set_permissions(path("c.key"), std::fs::Permissions::from_mode(mode)).expect("set");
        let (_, report) = check(&file);
        let keys: Vec<_> = report.errors.iter().map(|error| (error.line, error.key.as_str())).collect();
        assert_eq!(keys, [(12, "bus[0].key")][..errors], "{mode:o}: {}", report.render());
    }
}

#[test]
fn json_holds_six_fields_a_fault() {
    let (_, report) = check(&Path::new(CASES).join("unit-zero.toml"));
    let json = serde_json::to_value(&report).expect("a report is JSON");
    let keys = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["errors", "ok", "warnings"]);
    assert_eq!(keys(&json["errors"][0]), ["column", "file", "help", "key", "line", "message"]);
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"][0]["line"], 13);
    assert_eq!(json["errors"][0]["key"], "device[0].unit_id");
}

/// The kinds of damage.
const DAMAGE: [&str; 10] = ["typo", "type", "sign", "size", "nan", "doubled", "cut", "bit flip", "nesting", "swap"];

/// Changes one line, or one place, of `text`.
fn damage(text: &str, kind: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let settings: Vec<usize> =
        (0..lines.len()).filter(|&at| lines[at].contains(" = ") && !lines[at].starts_with("##")).collect();
    let at = settings[rng.usize(..settings.len())];
    let line = lines[at].trim_start_matches("# ").to_owned();
    let (key, value) = line.split_once(" = ").expect("a setting");
    let (key, value) = (key.to_owned(), value.to_owned());
    let letter = |rng: &mut fastrand::Rng| rng.lowercase();
    match DAMAGE[kind] {
        "typo" => {
            let mut key: Vec<char> = key.chars().collect();
            let place = rng.usize(..key.len());
            key[place] = letter(rng);
            lines[at] = format!("{} = {value}", key.into_iter().collect::<String>());
        }
        "type" => {
            let other = ["true", "-1", "1.5", "\"x\"", "[]", "{}", "1979-05-27", "[[1]]", "{ a = { b = 1 } }"];
            lines[at] = format!("{key} = {}", other[rng.usize(..other.len())]);
        }
        "sign" => lines[at] = format!("{key} = -{value}"),
        "size" => {
            let huge = [
                "18446744073709551616",
                "9223372036854775807",
                "\"99999999999GB\"",
                "1e999",
                "\"0s\"",
                "0",
                "-9223372036854775808",
            ];
            lines[at] = format!("{key} = {}", huge[rng.usize(..huge.len())]);
        }
        "nan" => lines[at] = format!("{key} = {}", ["nan", "inf", "-inf", "-0.0", "5e-324"][rng.usize(..5)]),
        "doubled" => lines.insert(at, line.clone()),
        "cut" => {
            let end = rng.usize(..text.len());
            return text.as_bytes()[..end].to_vec();
        }
        "bit flip" => {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..rng.usize(1..4) {
                let place = rng.usize(..bytes.len());
                bytes[place] ^= 1 << rng.u8(..8);
            }
            return bytes;
        }
        "nesting" => {
            let depth = rng.usize(2..5_000);
            lines[at] = match rng.u8(..4) {
                0 => format!("{key} = {}{}", "[".repeat(depth), "]".repeat(depth)),
                1 => format!("{key} = {}1{}", "{ a = ".repeat(depth), " }".repeat(depth)),
                2 => format!("{key}{} = 1", ".a".repeat(depth)),
                _ => format!("[{key}{}]", ".a".repeat(depth)),
            };
        }
        _ => {
            let other = settings[rng.usize(..settings.len())];
            lines.swap(at, other);
        }
    }
    (lines.join("\n") + "\n").into_bytes()
}

#[test]
fn two_hundred_mutations_are_refused_at_a_place_or_accepted() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x7269_6275);
    println!("seed {seed}");
    let sample = std::fs::read_to_string("sample.toml").expect("beside the package");
    let sample = sample.replace("# state_dir = \"/var/lib/tributary\"", "state_dir = \".\"");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("agent.toml");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..200 {
        let kind = round % DAMAGE.len();
        let bytes = damage(&sample, kind, &mut rng);
        std::fs::write(&file, &bytes).expect("written");
        let (ok, report) = check(&file);
        let what = || format!("round {round}, {}, seed {seed}:\n{}", DAMAGE[kind], report.render());
        if ok {
            accepted += 1;
            continue;
        }
        refused += 1;
        let lines = bytes.split(|byte| *byte == b'\n').count();
        let text = String::from_utf8_lossy(&bytes);
        for error in &report.errors {
            assert_eq!(error.file, file.display().to_string(), "{}", what());
            assert!((1..=lines).contains(&error.line), "{}", what());
            assert!(
                error.column >= 1
                    && error.column <= text.lines().nth(error.line - 1).map_or(1, |line| line.chars().count() + 1),
                "{}",
                what()
            );
            assert!(!error.message.is_empty(), "{}", what());
            let syntax = error.message.starts_with("not TOML: ") || error.message.starts_with("the file is not UTF-8");
            assert!(syntax || !error.key.is_empty(), "{}", what());
        }
        assert!(!report.render().is_empty());
    }
    println!("{refused} refused, {accepted} accepted");
    assert!(refused >= 100, "{refused} of 200 mutations were refused: the damage does not bite");
}

/// What the agent would find out when it connects is said before: whether the uplink's files can be used, and until when.
#[test]
fn certificates_are_looked_into() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("closes");
    };
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    write("ca.pem", &authority.self_signed(&key).expect("a certificate").pem());
    let issuer = Issuer::new(authority, key);
    let pair = |name: &str, from: i32, until: i32| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "gw-1");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        let key = KeyPair::generate().expect("a key");
        write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).expect("signs").pem());
        write(&format!("{name}.key"), &key.serialize_pem());
    };
    pair("good", 2020, 2900);
    pair("old", 2010, 2020);
    pair("early", 2800, 2900);
    pair("due", 1971, 2040);
    let whole = std::fs::read_to_string(dir.path().join("good.key")).expect("reads");
    write("half.key", &whole[..whole.len() / 2]);
    write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let says = |ca: &str, cert: &str, key: &str| {
        let file = dir.path().join("agent.toml");
        let text = format!(
            "[agent]\nsite = \"s\"\nid = \"gw-1\"\nstate_dir = \"state\"\n[uplink]\nurl = \"mqtts://broker:8883\"\nca = \"{ca}\"\n\
             cert = \"{cert}\"\nkey = \"{key}\"\n"
        );
        std::fs::write(&file, text).expect("writes");
        let (_, report) = check(&file);
        let errors = report.errors.iter().map(|said| format!("error {}: {}", said.key, said.message));
        let warnings = report.warnings.iter().map(|said| format!("warning {}: {}", said.key, said.message));
        errors.chain(warnings).filter(|said| said.contains("uplink.")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(says("ca.pem", "good.pem", "good.key"), "");
    for (ca, cert, key, expected) in [
        ("ca.pem", "good.pem", "old.key", ["error uplink.cert", "is not the certificate of the key"]),
        ("ca.pem", "old.pem", "old.key", ["warning uplink.cert", "expired on 2020-01-01"]),
        ("ca.pem", "early.pem", "early.key", ["warning uplink.cert", "not valid before 2800-01-01"]),
        ("ca.pem", "due.pem", "due.key", ["warning uplink.cert", "expires on 2040-01-01"]),
        ("ca.pem", "good.pem", "half.key", ["error uplink.key", "half written"]),
        ("garbage.pem", "good.pem", "good.key", ["error uplink.ca", ""]),
    ] {
        let said = says(ca, cert, key);
        assert_eq!(said.lines().count(), 1, "{ca} {cert} {key}: {said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{ca} {cert} {key}: {said}");
    }
}
