//! The Unix socket of the running agent: its status, live values, and questions to its buses.
//!
//! A client says in one line of JSON what it wants and gets lines of JSON back:
//!
//! ```text
//! {"ask":"status"}                                          one status, then the end of the stream
//! {"ask":"read","bus":B,"unit":U,"pdu":HEX,"timeout_ms":T}  {"pdu":HEX} or {"error":…}, then the end
//! {"ask":"watch"}                                           each reading as it comes, until one side ends it
//! ```
//! One that says nothing for [`SILENT`], or ends its side, gets the status: what `socat - UNIX:…` did before still works.
//!
//! A bus has one owner: whoever wants to read something on it while the agent runs asks here, and the question is put
//! between the polls. What the owner of the state is asked for comes over a channel ([`Wish`]): no copy is kept and no
//! lock is held. Watching costs nothing while nobody does; a watcher that is too slow is told how much it missed.
//!
//! Limits: [`CLIENTS`] connections at a time, a request of [`LINE`] bytes, [`PATIENCE`] for each but a watcher; a path of
//! 107 bytes (checked with the configuration). The socket has mode 0600, the folder around it decides who may reach it at
//! all, and the kernel says who a client is (`SO_PEERCRED`): nobody but root and the agent's own user is answered.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as ClientStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;
use tributary_protocols::modbus::driver;
use tributary_protocols::modbus::frame::Pdu;
use tributary_protocols::reading::{Outcome, Poll, Sample};
use tributary_protocols::value::Value;

use crate::status::Status;

/// Most connections served at a time; more wait.
const CLIENTS: usize = 8;
/// How long the owner may take to answer, and a client to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a question to a device may wait for its turn and its answer: the longest time-out, and some polls.
const DEVICE_PATIENCE: Duration = Duration::from_secs(90);
/// A client that says nothing for so long wants the status.
const SILENT: Duration = Duration::from_millis(300);
/// How long nobody is let in after the system has refused to.
const REFUSED: Duration = Duration::from_millis(100);
/// Longest request in bytes.
const LINE: u64 = 1_024;
/// Largest status a client takes: 10,000 devices of some 200 bytes, and room.
const LARGEST: u64 = 16 * 1024 * 1024;
/// Readings that may wait for a watcher.
pub const WATCHED: usize = 4_096;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the agent is.
    Status,
    /// A question to a device, put between the polls of its bus.
    Read {
        /// The bus, by name.
        bus: String,
        /// 1 to 255.
        unit: u8,
        /// Function and what belongs to it, in hex. Only functions that read are passed on.
        pdu: String,
        /// How long the answer may take; as configured if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Readings as they come.
    Watch,
}

/// What comes of a [`Request::Read`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The answer's PDU in hex, an exception's included.
    Pdu(String),
    /// Why there is none.
    Error(String),
}

/// One reading, or a poll's worth of them, for a watcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Watched {
    /// A due poll of a bus came to its end.
    Poll {
        /// Which planned request, counted as in the configuration's model.
        request: u32,
        /// Its stamp, ms since 1970.
        at: i64,
        /// Status, and the value if it has one, of each point; one entry for all if there are no values.
        samples: Vec<(u8, Option<WatchedValue>)>,
    },
    /// A message of a broker brought a reading.
    Message {
        /// The broker's place among the configuration's.
        broker: u32,
        /// The rule that matched.
        rule: u32,
        /// The point's name.
        point: String,
        /// Its stamp, ms since 1970.
        at: i64,
        /// Status, and the value if it has one.
        sample: (u8, Option<WatchedValue>),
    },
    /// So many were left out, for this watcher is too slow.
    Missed(u64),
}

/// A value as it travels: bits, or a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WatchedValue {
    /// As [`Value::Bits`](tributary_protocols::value::Value::Bits).
    Bits(u64),
    /// A text.
    Text(String),
}

/// A sample as it is shown.
#[must_use]
pub fn watched(sample: &Sample) -> (u8, Option<WatchedValue>) {
    let value = match &sample.value {
        Value::None => None,
        Value::Bits(bits) => Some(WatchedValue::Bits(*bits)),
        Value::Text(text) => Some(WatchedValue::Text(text.to_string())),
    };
    (sample.status.code(), value)
}

impl From<&Poll> for Watched {
    fn from(poll: &Poll) -> Self {
        let samples = match &poll.outcome {
            Outcome::Samples(samples) => samples.iter().map(watched).collect(),
            Outcome::All(status) => vec![(status.code(), None)],
        };
        Self::Poll { request: poll.request, at: poll.at.as_millis(), samples }
    }
}

/// What the owner of the state is asked for.
#[derive(Debug)]
pub enum Wish {
    /// A fresh status.
    Status(oneshot::Sender<Status>),
    /// Where the bus of that name takes questions.
    Bus(String, oneshot::Sender<Option<mpsc::Sender<driver::Ask>>>),
    /// Readings from now on.
    Watch(oneshot::Sender<broadcast::Receiver<Arc<Watched>>>),
}

/// Takes the socket at `path`. A socket left behind by an agent that is gone is replaced; one that answers is not.
/// Must be called within a tokio runtime.
///
/// # Errors
/// `AddrInUse` if an agent answers there or something else than a socket is in the way; else those of the file system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let message = format!("{} is in the way and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Ok(_) => {
            if ClientStream::connect(path).is_ok() {
                let message = format!("another agent answers at {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
            }
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers every connection by what it asks of `owner`, until `owner` is gone. To be spawned; ends by being dropped.
pub async fn serve(listener: UnixListener, owner: mpsc::Sender<Wish>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    while !owner.is_closed() {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if may_ask(&stream) => stream,
                Ok(_) => continue,
                // A client that is gone already; or out of descriptors, and then it still waits: asked again at once,
                // it would be refused at once, for ever.
                Err(_) => {
                    #[allow(clippy::disallowed_methods, reason = "until others have given a descriptor back")]
                    tokio::time::sleep(REFUSED).await;
                    continue;
                }
            },
            () = owner.closed() => return,
        };
        let owner = owner.clone();
        tokio::spawn(async move {
            // Who goes away in the middle of it is gone.
            let _ = answer(stream, owner).await;
            drop(place);
        });
    }
}

/// Whether the client runs as root or as we do.
fn may_ask(client: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    client.peer_cred().is_ok_and(|client| client.uid() == 0 || client.uid() == own)
}

async fn answer(stream: UnixStream, owner: mpsc::Sender<Wish>) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut line = String::new();
    let mut from = tokio::io::BufReader::new(from.take(LINE));
    let said = timeout(SILENT, from.read_line(&mut line)).await;
    let request = match said {
        Ok(Ok(1..)) => serde_json::from_str(&line).map_err(|error| format!("no such request: {error}")),
        _ => Ok(Request::Status),
    };
    let mut send = async |text: Vec<u8>| -> io::Result<()> {
        timeout(PATIENCE, async {
            to.write_all(&text).await?;
            to.write_all(b"\n").await
        })
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    };
    match request {
        Ok(Request::Status) => {
            if let Some(status) = wish(&owner, Wish::Status).await {
                send(serde_json::to_vec(&status)?).await?;
            }
        }
        Ok(Request::Read { bus, unit, pdu, timeout_ms }) => {
            let reply = read(&owner, bus, unit, &pdu, timeout_ms).await;
            send(serde_json::to_vec(&reply.map_or_else(Reply::Error, Reply::Pdu))?).await?;
        }
        Ok(Request::Watch) => {
            let Some(mut readings) = wish(&owner, Wish::Watch).await else { return Ok(()) };
            drop(owner);
            loop {
                let watched = match readings.recv().await {
                    Ok(watched) => watched,
                    Err(broadcast::error::RecvError::Lagged(missed)) => Arc::new(Watched::Missed(missed)),
                    Err(broadcast::error::RecvError::Closed) => break,
                };
                send(serde_json::to_vec(&*watched)?).await?;
            }
        }
        Err(error) => send(serde_json::to_vec(&Reply::Error(error))?).await?,
    }
    to.shutdown().await
}

/// Asks the owner.
async fn wish<T>(owner: &mpsc::Sender<Wish>, of: impl FnOnce(oneshot::Sender<T>) -> Wish) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        owner.send(of(reply)).await.ok()?;
        answer.await.ok()
    };
    timeout(PATIENCE, asked).await.ok()?
}

async fn read(
    owner: &mpsc::Sender<Wish>,
    bus: String,
    unit: u8,
    pdu: &str,
    timeout_ms: Option<u64>,
) -> Result<String, String> {
    let pdu = from_hex(pdu).ok_or_else(|| format!("{pdu:?} is no PDU: an even number of hex digits"))?;
    // Of function 43 only 14 reads: 13 is CANopen's general reference, which writes too.
    if !matches!(pdu.as_slice(), [1..=4 | 17, ..] | [43, 14, ..]) {
        return Err("only functions 1 to 4, 17 and 43/14 are passed on: those that read".into());
    }
    let pdu: Pdu = pdu.as_slice().try_into().map_err(|_| "a PDU has at most 253 bytes".to_owned())?;
    let asks = wish(owner, |reply| Wish::Bus(bus.clone(), reply)).await.flatten();
    let asks = asks.ok_or_else(|| format!("the agent has no bus {bus:?}"))?;
    let (reply, answer) = oneshot::channel();
    let ask = driver::Ask { unit, pdu: Box::new(pdu), timeout: timeout_ms.map(Duration::from_millis), reply };
    asks.send(ask).await.map_err(|_| "the agent is stopping".to_owned())?;
    match timeout(DEVICE_PATIENCE, answer).await {
        Ok(Ok(Ok(pdu))) => Ok(to_hex(&pdu)),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(_)) => Err("the agent is stopping".into()),
        Err(_) => Err("the bus had no time for it".into()),
    }
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hex digits as bytes.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Why the agent gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent is running: nothing answers at {path}")]
    NotRunning {
        /// The socket.
        path: String,
    },
    /// The socket is there, but not for us.
    #[error("the agent cannot be asked at {path}: {source}")]
    Refused {
        /// The socket.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// It answered with something else, or not at all.
    #[error("the agent at {path} gave no answer: {reason}")]
    NoAnswer {
        /// The socket.
        path: String,
        /// What came.
        reason: String,
    },
}

/// A connection to the agent that listens at `path`, with `request` sent.
fn connect(path: &Path, request: &Request) -> Result<ClientStream, AskError> {
    let name = || path.display().to_string();
    let mut stream = ClientStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning { path: name() },
        _ => AskError::Refused { path: name(), source },
    })?;
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    // One that is stopping may have closed it already: what it says, or does not say, tells.
    let _ = stream.write_all(&line);
    Ok(stream)
}

/// Asks the agent that listens at `path` and waits, at most `patience`, for all that it says.
fn ask<T: serde::de::DeserializeOwned>(path: &Path, request: &Request, patience: Duration) -> Result<T, AskError> {
    let mut stream = connect(path, request)?;
    let mut text = Vec::new();
    let read =
        stream.set_read_timeout(Some(patience)).and_then(|()| (&mut stream).take(LARGEST).read_to_end(&mut text));
    let reason = match read {
        Ok(0) => "it closed the connection".to_owned(),
        Ok(_) => match serde_json::from_slice(&text) {
            Ok(answer) => return Ok(answer),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    Err(AskError::NoAnswer { path: path.display().to_string(), reason })
}

/// How the agent is.
///
/// # Errors
/// See [`AskError`].
pub fn status(path: &Path) -> Result<Status, AskError> {
    ask(path, &Request::Status, 2 * PATIENCE)
}

/// Puts a question to a device between the polls of its bus: function and what belongs to it, and the answer's.
///
/// # Errors
/// See [`AskError`]; the inner one is the agent's or the bus's.
pub fn question(
    path: &Path,
    bus: &str,
    unit: u8,
    pdu: &[u8],
    timeout: Option<Duration>,
) -> Result<Result<Vec<u8>, String>, AskError> {
    let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let request = Request::Read { bus: bus.to_owned(), unit, pdu: to_hex(pdu), timeout_ms };
    let reply = ask::<Reply>(path, &request, DEVICE_PATIENCE + PATIENCE)?;
    Ok(match reply {
        Reply::Pdu(hex) => from_hex(&hex).ok_or_else(|| format!("{hex:?} is no PDU")),
        Reply::Error(error) => Err(error),
    })
}

/// Readings as they come, until the agent ends.
///
/// # Errors
/// See [`AskError`].
pub fn watch(path: &Path) -> Result<impl Iterator<Item = Watched> + Send + use<>, AskError> {
    let stream = connect(path, &Request::Watch)?;
    let lines = BufReader::new(stream).lines();
    Ok(lines.map_while(Result::ok).map_while(|line| serde_json::from_str(&line).ok()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn sample() -> Status {
        Status { agent: "gw-017".into(), ..Status::default() }
    }

    fn say(path: &Path, line: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    }

    #[tokio::test]
    async fn a_question_goes_to_its_bus_and_only_if_it_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let (owner, mut wishes) = mpsc::channel::<Wish>(1);
        let _server = tokio::spawn(serve(bind(&path).unwrap(), owner));
        let (bus, mut asked) = mpsc::channel::<driver::Ask>(1);
        tokio::spawn(async move {
            while let Some(Wish::Bus(name, reply)) = wishes.recv().await {
                reply.send((name == "net").then(|| bus.clone())).unwrap();
            }
        });
        let at = path.clone();
        let client = tokio::task::spawn_blocking(move || question(&at, "net", 7, &[3, 0, 5, 0, 1], None));
        let ask = asked.recv().await.unwrap();
        assert_eq!((ask.unit, ask.pdu.as_slice(), ask.timeout), (7, [3, 0, 5, 0, 1].as_slice(), None));
        ask.reply.send(Ok(vec![3, 2, 1, 2])).unwrap();
        assert_eq!(client.await.unwrap().unwrap(), Ok(vec![3, 2, 1, 2]));
        for (line, error) in [
            (r#"{"ask":"read","bus":"other","unit":7,"pdu":"0300050001"}"#, "no bus"),
            (r#"{"ask":"read","bus":"net","unit":7,"pdu":"0600050001"}"#, "only functions"),
            (r#"{"ask":"read","bus":"net","unit":7,"pdu":"2b0d00"}"#, "only functions"),
            (r#"{"ask":"read","bus":"net","unit":7,"pdu":"03x"}"#, "hex"),
            (r#"{"ask":"reboot"}"#, "no such request"),
            ("hello", "no such request"),
        ] {
            let at = path.clone();
            let line = format!("{line}\n");
            let said = tokio::task::spawn_blocking(move || say(&at, &line)).await.unwrap();
            assert!(said.contains(error) && said.starts_with("{\"error\":"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_watcher_gets_what_comes_and_is_told_what_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let (owner, mut wishes) = mpsc::channel::<Wish>(1);
        let _server = tokio::spawn(serve(bind(&path).unwrap(), owner));
        let (readings, _) = broadcast::channel(2);
        let client = tokio::task::spawn_blocking(move || watch(&path).unwrap().collect::<Vec<_>>());
        let Some(Wish::Watch(reply)) = wishes.recv().await else { panic!("readings are wanted") };
        let receiver = readings.subscribe();
        let poll =
            |request| Watched::Poll { request, at: 5, samples: vec![(0, Some(WatchedValue::Bits(7))), (16, None)] };
        for request in 0..3 {
            let _ = readings.send(Arc::new(poll(request)));
        }
        reply.send(receiver).unwrap();
        drop(readings);
        assert_eq!(client.await.unwrap(), [Watched::Missed(1), poll(1), poll(2)]);
    }

    #[tokio::test]
    async fn an_agent_answers_each_that_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        assert!(matches!(status(&path), Err(AskError::NotRunning { .. })));
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (owner, mut asks) = mpsc::channel::<Wish>(1);
        let server = tokio::spawn(serve(listener, owner));
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let path = path.clone();
                tokio::task::spawn_blocking(move || status(&path))
            })
            .collect();
        for _ in 0..20 {
            let Some(Wish::Status(reply)) = asks.recv().await else { panic!("a status is wanted") };
            reply.send(sample()).unwrap();
        }
        for client in clients {
            assert_eq!(client.await.unwrap().unwrap(), sample());
        }
        assert_eq!(bind(&path).expect_err("one agent a socket").kind(), io::ErrorKind::AddrInUse);
        drop(asks);
        server.await.unwrap();
        bind(&path).expect("a socket left behind is replaced");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).expect_err("in the way").kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn an_agent_that_is_going_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sock");
        let (owner, mut asks) = mpsc::channel::<Wish>(1);
        let server = tokio::spawn(serve(bind(&path).unwrap(), owner));
        let client = tokio::task::spawn_blocking(move || status(&path));
        drop(asks.recv().await.unwrap());
        assert!(matches!(client.await.unwrap(), Err(AskError::NoAnswer { .. })));
        drop(asks);
        server.await.unwrap();
    }
}
