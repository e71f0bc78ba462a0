//! Only the right broker is spoken to: servers that show each kind of wrong certificate, or speak no TLS, or an old one,
//! are refused by the agent's own wire with a reason that names the remedy, and read no byte of the agent's; right ones
//! are connected to.
//!
//! Servers are rustls in this process, and `openssl s_server` for what rustls does not do: weak keys, SHA-1, old TLS.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ServerConfig, SupportedProtocolVersion};
use tributary::clock::SystemClock;
use tributary::config::{AgentConfig, FileRef, TlsVersion, UplinkConfig};
use tributary::mqtt::{Wire, WireEvent};
use tributary::tls::trust::Trust;
use tributary_protocols::time::Clock;
use tributary_tests::pki::{Authority, Issued, Wanted, self_signed};
use tributary_tests::process::{Process, eventually, free_port, listens, program};

const LOCAL: &[&str] = &["localhost", "127.0.0.1"];
const SAID: Duration = Duration::from_secs(20);

/// A server, and how many bytes of MQTT it was sent.
struct Server {
    port: u16,
    heard: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections, and lets `speak` do the rest; it gives the stream on which MQTT is spoken, if it comes to that.
async fn serve<S, F>(speak: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    F: Future<Output = Option<S>> + Send,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&heard);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Some(mut stream) = speak(stream).await else { continue };
            let mut packet = [0; 4_096];
            // CONNECT, then SUBSCRIBE with packet id 1.
            for answer in [&[0x20, 2, 0, 0][..], &[0x90, 4, 0, 1, 0, 1]] {
                match stream.read(&mut packet).await {
                    Ok(length) if length > 0 => counter.fetch_add(length, Ordering::SeqCst),
                    _ => break,
                };
                stream.write_all(answer).await.unwrap();
            }
            let _ = stream.read(&mut packet).await;
        }
    });
    Server { port, heard, task }
}

fn acceptor(
    shown: &Issued,
    versions: &[&'static SupportedProtocolVersion],
    clients: Option<&Authority>,
) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(shown.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    // Not `with_single_cert`, which looks whether they fit: some do not on purpose.
    let signer = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let pair = rustls::sign::CertifiedKey::new(chain, signer);
    let resolver = rustls::sign::SingleCertAndKey::from(pair);
    TlsAcceptor::from(Arc::new(builder.with_cert_resolver(Arc::new(resolver))))
}

/// A server of TLS.
async fn shows(shown: &Issued, versions: &[&'static SupportedProtocolVersion], clients: Option<&Authority>) -> Server {
    let acceptor = acceptor(shown, versions, clients);
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream).await.ok() }
    })
    .await
}

/// The agent's side: its files, and the wire.
struct Gateway {
    folder: TempDir,
    uplink: UplinkConfig,
}

impl Gateway {
    /// Which trusts `ca`.
    fn trusts(ca: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut gateway = Self { folder, uplink: UplinkConfig::default() };
        gateway.uplink.ca = Some(gateway.file("ca.pem", ca));
        gateway
    }

    fn file(&self, name: &str, text: &str) -> FileRef {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        FileRef::from(path.display().to_string())
    }

    fn with_client(mut self, client: &Issued) -> Self {
        self.uplink.cert = Some(self.file("client.pem", &client.chain));
        self.uplink.key = Some(self.file("client.key", &client.key));
        self
    }

    fn with_crl(mut self, crl: &str) -> Self {
        self.uplink.crl = Some(self.file("crl.pem", crl));
        self
    }

    fn with_1_2(mut self) -> Self {
        self.uplink.tls_min = TlsVersion::V1_2;
        self
    }

    /// What comes of an attempt to connect: the reason, if it is refused.
    async fn connects(&self, port: u16) -> Result<(), String> {
        tributary::field::install_crypto();
        let mut uplink = self.uplink.clone();
        uplink.url = format!("mqtts://localhost:{port}");
        let agent = AgentConfig { site: "plant-1".into(), id: "gw-1".into(), ..AgentConfig::default() };
        let (mut wire, mut events) = Wire::new(&agent, &uplink, uplink.endpoint().unwrap());
        let clock = SystemClock::new();
        let mut trust = Trust::new(&uplink).unwrap();
        let _ = trust.look(clock.mono(), clock.wall());
        wire.connect(b"will".to_vec(), Some(trust.config()));
        match tokio::time::timeout(SAID, next(&mut events)).await.expect("an answer within 20 s") {
            WireEvent::Connected => Ok(()),
            WireEvent::Disconnected(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// It is refused, with a reason that holds all of these words, and has read nothing.
    async fn refuses(&self, kind: &str, server: &Server, words: &[&str]) {
        let reason = self.connects(server.port).await.expect_err(kind);
        println!("{kind}: {reason}");
        for word in words {
            assert!(reason.contains(word), "{kind}: {reason:?} lacks {word:?}");
        }
        assert_eq!(server.heard.load(Ordering::SeqCst), 0, "{kind}: it was told something");
    }
}

async fn next(events: &mut mpsc::Receiver<(u64, WireEvent)>) -> WireEvent {
    events.recv().await.expect("the wire speaks").1
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[tokio::test]
async fn wrong_certificates_are_refused_and_read_nothing() {
    let ca = Authority::new("ca");
    let other = Authority::new("ca"); // the same name, another key
    let stranger = Authority::new("stranger");
    let middle = ca.below("middle");
    let good = Wanted::server(LOCAL);
    let gateway = Gateway::trusts(&ca.pem);
    let cases: [(&str, Issued, &[&str]); 11] = [
        ("expired", ca.issue(&Wanted { days: (-40, -3), ..good.clone() }), &["expired on 20", "renewed", "clock"]),
        ("not yet valid", ca.issue(&Wanted { days: (3, 40), ..good.clone() }), &["not valid before 20", "clock"]),
        (
            "another host",
            ca.issue(&Wanted::server(&["other.example"])),
            &["is for", "other.example", "not for localhost"],
        ),
        ("CN only", ca.issue(&Wanted { name: "localhost", hosts: &[], ..good.clone() }), &["subjectAltName", "CN"]),
        (
            "for clients",
            ca.issue(&Wanted { purpose: ExtendedKeyUsagePurpose::ClientAuth, ..good.clone() }),
            &["not for this purpose", "serverAuth"],
        ),
        ("another authority", stranger.issue(&good), &["signed by no authority in `ca`"]),
        ("another authority of the same name", other.issue(&good), &["its certificate"]),
        ("self-signed", self_signed(&good, false), &["signed by no authority in `ca`"]),
        ("self-signed as an authority", self_signed(&good, true), &["authority"]),
        ("signed by a host", ca.issue_by_leaf(&good, &good), &["a certificate of a host signs nothing"]),
        ("its chain is cut", Issued { chain: first(&middle.issue(&good).chain), ..middle.issue(&good) }, &["`ca`"]),
    ];
    for (kind, shown, words) in cases {
        gateway.refuses(kind, &shows(&shown, BOTH, None).await, words).await;
    }
    // A certificate that is right, and the key of another.
    let stolen = Issued { key: ca.issue(&good).key, ..ca.issue(&good) };
    gateway.refuses("without its key", &shows(&stolen, BOTH, None).await, &["signature"]).await;
}

/// The first certificate of a chain.
fn first(chain: &str) -> String {
    let end = "-----END CERTIFICATE-----\n";
    chain.split_inclusive(end).next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let ca = Authority::new("ca");
    let middle = ca.below("middle");
    let server = shows(&ca.issue(&Wanted::server(LOCAL)), BOTH, None).await;
    let gateway = Gateway::trusts(&ca.pem).with_crl(&ca.revoke(&[7]));
    gateway.refuses("revoked", &server, &["revoked", "`crl`"]).await;
    let gateway = Gateway::trusts(&ca.pem).with_crl(&ca.revoke(&[9]));
    assert_eq!(gateway.connects(server.port).await, Ok(()), "another one is revoked");

    let server = shows(&middle.issue(&Wanted::server(LOCAL)), BOTH, None).await;
    gateway.refuses("no list of the middle", &server, &["`crl` holds no list"]).await;
    let gateway = Gateway::trusts(&ca.pem).with_crl(&format!("{}{}", ca.revoke(&[]), middle.revoke(&[7])));
    gateway.refuses("revoked by the middle", &server, &["revoked"]).await;
    let gateway = Gateway::trusts(&ca.pem).with_crl(&Authority::new("ca").revoke(&[]));
    let server = shows(&ca.issue(&Wanted::server(LOCAL)), BOTH, None).await;
    gateway
        .refuses("a forged list", &server, &["crl: a list in it is not signed by the authority that it names"])
        .await;
}

#[tokio::test]
async fn what_is_no_tls_is_refused() {
    let ca = Authority::new("ca");
    let gateway = Gateway::trusts(&ca.pem);
    let garbage: [(&str, &[u8], &[&str]); 3] = [
        ("plain MQTT", &[0x20, 2, 0, 0], &["not TLS", "its port for TLS"]),
        ("garbage", &[0xff; 64], &["not TLS"]),
        ("text", b"HTTP/1.1 400 Bad Request\r\n\r\n", &["not TLS"]),
    ];
    for (kind, said, words) in garbage {
        let server = serve(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(said).await;
            // What comes is a ClientHello, and it is not answered; then the end.
            let _ = stream.read(&mut [0; 4_096]).await;
            None::<TcpStream>
        })
        .await;
        gateway.refuses(kind, &server, words).await;
    }
    // A broker without TLS closes at a ClientHello.
    let server = serve(|stream: TcpStream| async move {
        let _ = stream.readable().await;
        drop(stream);
        None::<TcpStream>
    })
    .await;
    gateway.refuses("it closes", &server, &["closed the connection", "TLS handshake", "its port for TLS"]).await;
    // TLS 1.2 needs to be asked for.
    let shown = ca.issue(&Wanted::server(LOCAL));
    let server = shows(&shown, &[&rustls::version::TLS12], None).await;
    gateway.refuses("TLS 1.2", &server, &["1.3", "tls_min"]).await;
    assert_eq!(Gateway::trusts(&ca.pem).with_1_2().connects(server.port).await, Ok(()));
}

#[tokio::test]
async fn the_right_broker_is_connected_to() {
    let ca = Authority::new("ca");
    let middle = ca.below("middle");
    let agents = Authority::new("agents");
    let client = agents.issue(&Wanted::client("gw-1"));
    for (kind, shown) in
        [("P-256", ca.issue(&Wanted::server(LOCAL))), ("by a middle", middle.issue(&Wanted::server(LOCAL)))]
    {
        let server = shows(&shown, BOTH, Some(&agents)).await;
        let connected = Gateway::trusts(&ca.pem).with_client(&client).connects(server.port).await;
        assert_eq!(connected, Ok(()), "{kind}");
        assert!(server.heard.load(Ordering::SeqCst) > 0, "{kind}");
    }
}

/// What a broker says of this agent's certificate is said on.
#[tokio::test]
async fn a_refused_agent_says_why() {
    let (ca, agents) = (Authority::new("ca"), Authority::new("agents"));
    let server = shows(&ca.issue(&Wanted::server(LOCAL)), BOTH, Some(&agents)).await;
    let gateway = |client: &Issued| Gateway::trusts(&ca.pem).with_client(client);
    let old = agents.issue(&Wanted { days: (-40, -3), ..Wanted::client("gw-1") });
    gateway(&old).refuses("expired", &server, &["this agent's certificate has expired", "tributary enroll"]).await;
    let strange = Authority::new("strangers").issue(&Wanted::client("gw-1"));
    gateway(&strange).refuses("strange", &server, &["this agent's certificate"]).await;
    Gateway::trusts(&ca.pem).refuses("none", &server, &["wants a certificate of this agent", "`cert` and `key`"]).await;
}

/// Files that cannot be used are no reason to do without them.
#[tokio::test]
async fn bad_files_connect_to_nobody() {
    use std::os::unix::fs::PermissionsExt;
    let ca = Authority::new("ca");
    let (one, two) = (ca.issue(&Wanted::client("gw-1")), ca.issue(&Wanted::client("gw-1")));
    let gateway = Gateway::trusts(&ca.pem).with_client(&one);
    let folder = gateway.folder.path().to_path_buf();
    let reason = |gateway: &Gateway| {
        let clock = SystemClock::new();
        let mut trust =
            Trust::new(&UplinkConfig { url: "mqtts://localhost".into(), ..gateway.uplink.clone() }).unwrap();
        let _ = trust.look(clock.mono(), clock.wall());
        trust.config().err().unwrap_or_default()
    };
    assert_eq!(reason(&gateway), "");
    let faults: [(&str, &str, &str, u32, &str); 6] = [
        ("client.key", &two.key, "mismatched", 0o600, "must be a pair"),
        ("client.key", &one.key[..100], "half written", 0o600, "half written"),
        ("client.key", "", "empty", 0o600, "holds no PEM"),
        ("client.key", &one.key, "open to everyone", 0o644, "open to everyone (mode 0644)"),
        ("client.pem", "no PEM", "text", 0o644, "holds no \"CERTIFICATE\""),
        ("ca.pem", &one.key, "a key", 0o644, "holds no \"CERTIFICATE\""),
    ];
    for (file, text, kind, mode, words) in faults {
        let path = folder.join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = reason(&gateway);
        assert!(said.contains(words) && said.contains(file), "{kind}: {said}");
        assert!(!said.contains(&one.key[30..60]), "{kind}: a key is never shown");
        std::fs::write(&path, before).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(reason(&gateway), "", "{kind}");
    }
    std::fs::remove_file(folder.join("client.pem")).unwrap();
    assert!(reason(&gateway).contains("client.pem"));
}

// ------------------------------------------------------------------------------------- what needs the command openssl

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new(program("openssl", "Debian's openssl"))
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `s_server` says then; before it no data can be sent.
const ESTABLISHED: &str = "CONNECTION ESTABLISHED";

/// `openssl s_server`, which says when a handshake has come to its end.
async fn s_server(folder: &Path, name: &str, arguments: &str) -> (Process, u16) {
    let port = free_port();
    let mut command = Command::new(program("openssl", "Debian's openssl"));
    command.args(["s_server", "-rev", "-naccept", "2", "-accept", &format!("127.0.0.1:{port}")]);
    command.args(arguments.split_whitespace()).current_dir(folder);
    let mut process = Process::start(name, folder, &command).unwrap();
    eventually("openssl s_server to listen", Duration::from_secs(60), async || {
        assert!(process.ended().is_none(), "{}", process.log());
        listens(port).then_some(()) // this is one of the two that it accepts
    })
    .await;
    (process, port)
}

#[tokio::test]
async fn live_weak_keys_and_old_tls_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at: PathBuf = folder.path().to_path_buf();
    std::fs::write(at.join("san"), "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n").unwrap();
    openssl(&at, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 30");
    let signed = |name: &str, bits: u32, digest: &str| {
        openssl(&at, &format!("req -newkey rsa:{bits} -nodes -keyout {name}.key -out {name}.csr -subj /CN=broker"));
        openssl(
            &at,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 {digest} -extfile san -out {name}.pem"
            ),
        );
    };
    signed("good", 2048, "-sha256");
    signed("weak", 1024, "-sha256");
    signed("sha1", 2048, "-sha1");
    let ca = std::fs::read_to_string(at.join("ca.pem")).unwrap();
    let cases: [(&str, &str, bool, &[&str]); 5] = [
        (
            "RSA-1024",
            "-cert weak.pem -key weak.key -cipher ALL:@SECLEVEL=0",
            true,
            &["too weak", "RSA below 2,048 bits"],
        ),
        ("SHA-1", "-cert sha1.pem -key sha1.key -cipher ALL:@SECLEVEL=0", true, &["SHA-1"]),
        ("TLS 1.0", "-cert good.pem -key good.key -tls1 -cipher ALL:@SECLEVEL=0", true, &["no version of TLS"]),
        ("TLS 1.1", "-cert good.pem -key good.key -tls1_1 -cipher ALL:@SECLEVEL=0", true, &["no version of TLS"]),
        ("RSA-2048", "-cert good.pem -key good.key", false, &[]),
    ];
    for (kind, arguments, is_wrong, words) in cases {
        let (server, port) = s_server(&at, &kind.replace(' ', "-"), arguments).await;
        let gateway = Gateway::trusts(&ca).with_1_2();
        if is_wrong {
            let reason = gateway.connects(port).await.expect_err(kind);
            println!("{kind}: {reason}");
            for word in words {
                assert!(reason.contains(word), "{kind}: {reason:?} lacks {word:?}");
            }
            assert!(!server.log().contains(ESTABLISHED), "{kind}: {}", server.log());
        } else {
            // It does not answer as a broker would, but the handshake is done.
            let attempt = tokio::time::timeout(Duration::from_secs(15), gateway.connects(port));
            let told = eventually(ESTABLISHED, SAID, async || server.log().contains(ESTABLISHED).then_some(()));
            tokio::select! {
                _ = attempt => panic!("{kind}: {}", server.log()),
                () = told => {}
            }
        }
    }
}
