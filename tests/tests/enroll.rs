//! `tributary enroll` as an installer types it, with the command `openssl` as the authority: the key stays on the device,
//! what is wrong is refused and changes nothing, a kill at any step leaves a pair that loads, and a card that was copied to
//! another machine does not speak for the first.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use tributary::clock::SystemClock;
use tributary::config::{FileRef, UplinkConfig};
use tributary::tls::trust::Trust;
use tributary_protocols::time::Clock;
use tributary_tests::process::{Process, binary, eventually, program};

/// Far longer than a start or an end takes.
const PATIENCE: Duration = Duration::from_secs(60);
const BAD_CONFIGURATION: i32 = 78;

/// A gateway, and an authority beside it.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.path("state")).unwrap();
        bench.identity("gw-1", "one");
        fs::write(bench.path("ext"), "extendedKeyUsage=clientAuth\n").unwrap();
        fs::write(bench.path("server-ext"), "extendedKeyUsage=serverAuth\n").unwrap();
        for ca in ["ca", "other"] {
            bench.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {ca}.key -out {ca}.pem -subj /CN={ca} -days 30"
            ));
        }
        bench
    }

    /// The configuration of that agent, on a machine that says so.
    fn identity(&self, id: &str, machine: &str) {
        fs::write(self.path("machine-id"), machine).unwrap();
        let text = format!(
            "[agent]\nsite = \"plant-1\"\nid = \"{id}\"\nstate_dir = \"state\"\nmachine = [\"machine-id\"]\n[uplink]\nurl = \
             \"mqtts://localhost\"\nca = \"ca.pem\"\ncert = \"client.pem\"\nkey = \"client.key\"\n"
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, arguments: &str) -> String {
        let mut command = Command::new(program("openssl", "Debian's openssl"));
        let output = command.args(arguments.split_whitespace()).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut run = Command::new(binary("tributary"));
        run.arg(command).arg("-c").arg("agent.toml").args(arguments).current_dir(self.folder.path());
        run
    }

    fn enroll(&self, arguments: &[&str]) -> Output {
        self.command("enroll", arguments).output().unwrap()
    }

    /// Runs the agent until it says that it does, or ends by itself; its exit code, and what it said.
    async fn run(&self) -> (Option<i32>, String) {
        let mut agent = Process::start("agent", self.folder.path(), &self.command("run", &[])).unwrap();
        eventually("the agent to run or to end", PATIENCE, async || {
            (agent.log().contains("the agent runs") || agent.ended().is_some()).then_some(())
        })
        .await;
        agent.terminate();
        let code = agent.end(PATIENCE).await.code();
        (code, agent.log())
    }

    /// Which makes a certificate of the request that waits.
    fn sign(&self, ca: &str, ext: &str, name: &str, more: &str) {
        self.openssl(&format!(
            "x509 -req -in client.key.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -extfile {ext} -out {name} {more}"
        ));
    }

    /// Whether an agent has a pair in force, as it would read it now; its serial number.
    fn loads(&self) -> Result<String, String> {
        let place = |name: &str| Some(FileRef::from(self.path(name).display().to_string()));
        let uplink = UplinkConfig {
            url: "mqtts://localhost".into(),
            ca: place("ca.pem"),
            cert: place("client.pem"),
            key: place("client.key"),
            ..UplinkConfig::default()
        };
        let mut trust = Trust::new(&uplink).unwrap();
        let clock = SystemClock::new();
        let _ = trust.look(clock.mono(), clock.wall());
        trust.config()?;
        Ok(trust.status(clock.wall()).subject.unwrap_or_default())
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn live_a_key_is_made_here_and_its_certificate_taken() {
    let bench = Bench::new();
    assert!(
        said(&bench.command("check", &[]).output().unwrap()).contains("tributary enroll"),
        "check names the remedy"
    );

    // The request: what an independent implementation reads of it, and the key that stays.
    let asked = bench.enroll(&[]);
    assert!(asked.status.success(), "{}", said(&asked));
    let request = String::from_utf8(asked.stdout.clone()).unwrap();
    assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"), "{request}");
    let text = bench.openssl("req -in client.key.csr -noout -verify -text");
    for words in ["Subject: CN = gw-1", "prime256v1", "DNS:gw-1", "TLS Web Client Authentication", "ecdsa-with-SHA256"]
    {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(bench.mode("client.key.new"), 0o600);
    assert!(read(&bench.path("client.key.new")).starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(!said(&asked).contains("PRIVATE KEY"));
    assert_eq!(bench.enroll(&[]).stdout, asked.stdout, "asked again, the same request");
    let checked = said(&bench.command("check", &[]).output().unwrap());
    assert!(!bench.path("client.key").exists() && checked.contains("client.key does not exist"), "{checked}");

    // What is not the answer to it.
    bench.sign("ca", "ext", "good.pem", "-days 9");
    bench.sign("other", "ext", "stranger.pem", "-days 9");
    bench.sign("ca", "server-ext", "server.pem", "-days 9");
    bench.openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout x.key -out x.csr -subj /CN=gw-1");
    bench.openssl("x509 -req -in x.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile ext -out foreign.pem");
    bench.openssl("x509 -req -in client.key.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile ext -out named.pem -subj /CN=gw-2");
    bench.openssl("x509 -in good.pem -outform der -out der.pem");
    let wrong = [
        ("foreign.pem", "not of the key in"),
        ("named.pem", "names \"gw-2\", and this agent is \"gw-1\""),
        ("stranger.pem", "--issuer FILE"),
        ("server.pem", "not for this purpose"),
        ("der.pem", "must be PEM"),
        ("absent.pem", "absent.pem"),
    ];
    for (file, words) in wrong {
        let refused = bench.enroll(&["--certificate", file]);
        assert!(!refused.status.success() && said(&refused).contains(words), "{file}: {}", said(&refused));
        assert!(!bench.path("client.pem").exists() && !bench.path("client.key").exists(), "{file}");
    }

    // The answer, and the same again.
    for _ in 0..2 {
        let taken = bench.enroll(&["--certificate", "good.pem"]);
        assert!(taken.status.success() && said(&taken).contains("CN=gw-1 is in force until"), "{}", said(&taken));
        assert_eq!(bench.loads(), Ok("CN=gw-1".into()));
        assert_eq!(bench.mode("client.key"), 0o600);
        assert!(!bench.path("client.key.new").exists() && !bench.path("client.pem.new").exists());
    }
    assert!(bench.command("check", &[]).output().unwrap().status.success());

    // The next one: the old pair stays until the answer is good. Another authority is named.
    let old = (read(&bench.path("client.key")), read(&bench.path("client.pem")));
    assert_ne!(bench.enroll(&[]).stdout, asked.stdout, "a new key");
    assert!(!bench.enroll(&["--certificate", "good.pem"]).status.success(), "of the key before");
    assert_eq!((read(&bench.path("client.key")), read(&bench.path("client.pem"))), old);
    bench.sign("other", "ext", "next.pem", "-days 9");
    assert!(bench.enroll(&["--certificate", "next.pem", "--issuer", "other.pem"]).status.success());
    assert_eq!(bench.loads(), Ok("CN=gw-1".into()));
    assert_ne!(read(&bench.path("client.key")), old.0);
}

/// SIGKILL as it makes its n-th rename: there is a pair, old or new, and the command again ends with the new one.
#[test]
fn live_a_kill_at_any_step_leaves_a_pair() {
    let bench = Bench::new();
    assert!(bench.enroll(&[]).status.success());
    bench.sign("ca", "ext", "first.pem", "-days 9");
    assert!(bench.enroll(&["--certificate", "first.pem"]).status.success());
    let mut killed = 0;
    for step in 1..=4 {
        let old = read(&bench.path("client.key"));
        assert!(bench.enroll(&[]).status.success());
        bench.sign("ca", "ext", "next.pem", "-days 9");
        let mut command = Command::new(program("strace", "Debian's strace"));
        let inject = format!("inject=rename,renameat,renameat2:signal=KILL:when={step}");
        command.args(["-f", "-q", "-o", "/dev/null", "-e", &inject, "--"]).arg(binary("tributary"));
        command.args(["enroll", "-c", "agent.toml", "--certificate", "next.pem"]).current_dir(bench.folder.path());
        killed += usize::from(!command.output().unwrap().status.success());
        assert_eq!(bench.loads(), Ok("CN=gw-1".into()), "killed at rename {step}");
        let again = bench.enroll(&["--certificate", "next.pem"]);
        assert!(again.status.success(), "killed at rename {step}: {}", said(&again));
        assert_eq!(bench.loads(), Ok("CN=gw-1".into()));
        assert_ne!(read(&bench.path("client.key")), old, "killed at rename {step}");
        assert_eq!(read(&bench.path("client.pem")), read(&bench.path("next.pem")), "killed at rename {step}");
    }
    assert_eq!(killed, 3, "it makes three renames");
}

/// A card in another machine is noticed before anything is sent; one command says what it is.
#[tokio::test]
async fn live_a_copied_card_does_not_speak_for_the_first() {
    let bench = Bench::new();
    assert!(bench.enroll(&[]).status.success());
    bench.sign("ca", "ext", "first.pem", "-days 9");
    assert!(bench.enroll(&["--certificate", "first.pem"]).status.success());
    let (_, log) = bench.run().await;
    assert!(log.contains("the agent runs") && bench.path("state/machine.json").exists(), "{log}");
    let (_, log) = bench.run().await;
    assert!(log.contains("the agent runs"), "the same machine: {log}");

    bench.identity("gw-1", "two");
    let (code, log) = bench.run().await;
    assert_eq!(code, Some(BAD_CONFIGURATION), "{log}");
    assert!(
        log.contains("of another machine") && log.contains("--machine moved") && !log.contains("the agent runs"),
        "{log}"
    );
    // The board was replaced.
    let moved = bench.enroll(&["--machine", "moved"]);
    assert!(moved.status.success() && said(&moved).contains("this machine's from now on"), "{}", said(&moved));
    let (_, log) = bench.run().await;
    assert!(log.contains("the agent runs"), "{log}");

    // The card was copied: not under the same id, and not with the same key or readings.
    bench.identity("gw-1", "three");
    let copied = bench.enroll(&["--machine", "copied"]);
    assert!(!copied.status.success() && said(&copied).contains("needs an `id` of its own"), "{}", said(&copied));
    bench.identity("gw-2", "three");
    let old = read(&bench.path("client.key"));
    let copied = bench.enroll(&["--machine", "copied"]);
    assert!(copied.status.success() && said(&copied).contains("BEGIN CERTIFICATE REQUEST"), "{}", said(&copied));
    assert!(!bench.path("client.key").exists() && !bench.path("client.pem").exists());
    assert_ne!(read(&bench.path("client.key.new")), old);
    assert!(bench.path("state/spool-copied-1").is_dir() && !bench.path("state/spool").exists());
    bench.sign("ca", "ext", "second.pem", "-days 9");
    assert!(bench.enroll(&["--certificate", "second.pem"]).status.success());
    let (_, log) = bench.run().await;
    assert!(log.contains("the agent runs"), "{log}");
}
