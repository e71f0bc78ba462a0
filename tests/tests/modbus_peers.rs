//! Modbus with programs that Tributary did not write: mbpoll and pymodbus read what `simulate` serves, the agent reads
//! pymodbus, over TCP and over a line of two pseudo-terminals (socat); tshark looks for malformed frames.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tributary_tests::process::{Process, binary, eventually, free_port, listens, program, python};

const PATIENCE: Duration = Duration::from_secs(30);

/// What is served: values that stand still, so that all see the same.
const POINTS: &str = r#"
[[device.point]]
name = "float"
table = "holding"
address = 0
type = "f32"
[[device.point]]
name = "swapped"
table = "holding"
address = 2
type = "i32"
order = "CDAB"
[[device.point]]
name = "word"
table = "holding"
address = 4
type = "u16"
[[device.point]]
name = "tenths"
table = "input"
address = 5
type = "i16"
scale = 0.1
[[device.point]]
name = "coil"
table = "coil"
address = 2
type = "bool"
[[device.point]]
name = "contact"
table = "discrete"
address = 9
type = "bool"
"#;
const VALUES: &str = "time,point,value\n0,plc/float,3.25\n0,plc/swapped,-123456\n0,plc/word,4711\n0,plc/tenths,-12.5\n\
                      0,plc/coil,1\n0,plc/contact,1\n";

/// The time-out where nothing but a busy machine keeps an answer back.
const LONG: &str = "10s";

fn configuration(folder: &Path, name: &str, bus: &str, period: &str, timeout: &str) -> PathBuf {
    let state = folder.join(format!("{name}-state"));
    fs::create_dir_all(&state).unwrap();
    let text = format!(
        "[agent]\nsite = \"s\"\nid = \"{name}\"\nstate_dir = {state:?}\n[uplink]\nurl = \"mqtt://127.0.0.1:9\"\n\
         [[bus]]\nname = \"line\"\n{bus}\ntimeout = \"{timeout}\"\n[[device]]\nname = \"plc\"\nbus = \"line\"\nunit_id = 3\n\
         addressing = \"zero\"\nperiod = \"{period}\"\n{POINTS}"
    );
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    file
}

fn tributary() -> Command {
    let mut command = Command::new(binary("tributary"));
    command.env("NO_COLOR", "1");
    command
}

/// `simulate` over TCP, with its port.
async fn served(folder: &Path, more: &[&str]) -> (Process, u16) {
    let port = free_port();
    let file = configuration(folder, "served", &format!("tcp = \"127.0.0.1:{port}\""), "10s", LONG);
    fs::write(folder.join("values.csv"), VALUES).unwrap();
    let mut command = tributary();
    command.args(["simulate", "--listen", &format!("127.0.0.1:{port}"), "-c"]).arg(file).args(more);
    command.arg("--replay").arg(folder.join("values.csv"));
    let process = Process::start("simulate", folder, &command).unwrap();
    eventually("simulate", PATIENCE, async || listens(port).then_some(())).await;
    (process, port)
}

/// Two pseudo-terminals that are one line, as `a` and `b` in the folder. They know no parity.
async fn line(folder: &Path) -> (Process, PathBuf, PathBuf) {
    let (a, b) = (folder.join("a"), folder.join("b"));
    let end = |path: &Path| format!("pty,raw,echo=0,link={}", path.display());
    let mut command = Command::new(program("socat", "socat"));
    command.args([end(&a), end(&b)]);
    let process = Process::start("socat", folder, &command).unwrap();
    eventually("the line", PATIENCE, async || (a.exists() && b.exists()).then_some(())).await;
    (process, a, b)
}

/// `simulate` at one end of a serial line.
async fn served_serial(folder: &Path, device: &Path, more: &[&str]) -> Process {
    let bus = format!("serial = {:?}\nbaud = 38400\nparity = \"none\"", folder.join("elsewhere"));
    let file = configuration(folder, "served", &bus, "10s", LONG);
    fs::write(folder.join("values.csv"), VALUES).unwrap();
    let mut command = tributary();
    command.args(["simulate", "-c"]).arg(file).arg("--serial").arg(device).args(more);
    command.arg("--replay").arg(folder.join("values.csv"));
    let process = Process::start("simulate", folder, &command).unwrap();
    eventually("simulate", PATIENCE, async || process.log().contains("unit   3").then_some(())).await;
    process
}

async fn output(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(std::mem::replace(command, Command::new("true")));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(PATIENCE, output).await.unwrap_or_else(|_| panic!("{shown} does not end")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// What mbpoll reads: the values behind `[N]:`.
async fn mbpoll(link: &[&str], what: &[&str], at: &str) -> Vec<String> {
    let mut command = Command::new(program("mbpoll", "mbpoll"));
    command.args(link).args(["-a", "3", "-0", "-1", "-o", "5"]).args(what).arg(at);
    let said = output(&mut command).await;
    let value = |line: &str| Some(line.trim().strip_prefix('[')?.split_once("]:")?.1.trim().to_owned());
    said.lines().filter_map(value).collect()
}

async fn mbpoll_agrees(link: &[&str], at: &str) {
    assert_eq!(mbpoll(link, &["-r", "0", "-t", "4:float", "-B"], at).await, ["3.25"]);
    assert_eq!(mbpoll(link, &["-r", "2", "-t", "4:int"], at).await, ["-123456"]);
    assert_eq!(mbpoll(link, &["-r", "4", "-t", "4"], at).await, ["4711"]);
    let tenths = mbpoll(link, &["-r", "5", "-t", "3:hex"], at).await;
    assert_eq!(tenths, ["0xFF83"], "-125");
    assert_eq!(mbpoll(link, &["-r", "2", "-t", "0"], at).await, ["1"]);
    assert_eq!(mbpoll(link, &["-r", "9", "-t", "1"], at).await, ["1"]);
}

fn pymodbus_agrees(said: &str) {
    let found: Value = serde_json::from_str(said).unwrap();
    assert_eq!(found["float"], 3.25, "{found}");
    assert_eq!(found["swapped"], -123_456, "{found}");
    assert_eq!(found["holding"][4], 4711, "{found}");
    assert_eq!(found["input"][0], 0xFF83, "{found}");
    assert_eq!((&found["coil"], &found["discrete"]), (&true.into(), &true.into()), "{found}");
    assert_eq!(found["refused"], true, "{found}");
}

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

#[tokio::test]
async fn live_mbpoll_and_pymodbus_read_what_is_served_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let (_simulate, port) = served(folder.path(), &[]).await;
    mbpoll_agrees(&["-m", "tcp", "-p", &port.to_string()], "127.0.0.1").await;
    pymodbus_agrees(
        &output(Command::new(python()).arg(peer("modbus_client.py")).args(["tcp", &port.to_string()])).await,
    );
}

#[tokio::test]
async fn live_mbpoll_and_pymodbus_read_what_is_served_on_a_serial_line() {
    let folder = tempfile::tempdir().unwrap();
    let (_socat, a, b) = line(folder.path()).await;
    let _simulate = served_serial(folder.path(), &a, &[]).await;
    let b = b.display().to_string();
    mbpoll_agrees(&["-m", "rtu", "-b", "38400", "-P", "none"], &b).await;
    pymodbus_agrees(&output(Command::new(python()).arg(peer("modbus_client.py")).args(["rtu", &b, "38400"])).await);
}

/// Readings: point, value, status.
type Seen = Vec<(String, Option<String>, String)>;

/// Lines of `watch --json` of an agent, as they come.
struct Watch {
    _process: Process,
    file: PathBuf,
}

impl Watch {
    async fn start(folder: &Path, config: &Path) -> Self {
        let socket = config.with_extension("");
        let socket = PathBuf::from(format!("{}-state", socket.display())).join("status.sock");
        eventually("the agent", PATIENCE, async || socket.exists().then_some(())).await;
        let mut command = tributary();
        command.args(["watch", "--json", "-c"]).arg(config);
        let process = Process::start("watch", folder, &command).unwrap();
        Self { _process: process, file: folder.join("watch.log") }
    }

    /// All readings so far.
    fn seen(&self) -> Seen {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |value: &Value| value.as_str().map(str::to_owned);
        lines
            .map(|line| (text(&line["point"]).unwrap(), text(&line["value"]), text(&line["status"]).unwrap()))
            .collect()
    }
}

fn is_right(point: &str, value: &str) -> bool {
    let right = match point {
        "float" => "3.25",
        "swapped" => "-123456",
        "word" => "4711",
        "tenths" => "-12.5",
        _ => "true",
    };
    value == right
}

#[tokio::test]
async fn live_the_agent_reads_a_pymodbus_slave_on_a_serial_line() {
    let folder = tempfile::tempdir().unwrap();
    let (_socat, a, b) = line(folder.path()).await;
    let mut slave = Command::new(python());
    slave.arg(peer("modbus_slave.py")).arg(&a).arg("38400");
    let slave = Process::start("slave", folder.path(), &slave).unwrap();
    eventually("the slave", PATIENCE, async || slave.log().contains("ready").then_some(())).await;
    let mut points = String::new();
    for address in 0..40 {
        writeln!(
            points,
            "[[device.point]]\nname = \"{address}\"\ntable = \"holding\"\naddress = {address}\ntype = \"u16\""
        )
        .unwrap();
    }
    let bus = format!("serial = {b:?}\nbaud = 38400\nparity = \"none\"");
    let config = configuration(folder.path(), "agent", &bus, "200ms", LONG);
    let text = fs::read_to_string(&config).unwrap().replace(POINTS, &points);
    fs::write(&config, text).unwrap();
    let mut run = tributary();
    run.args(["run", "-c"]).arg(&config);
    let _agent = Process::start("agent", folder.path(), &run).unwrap();
    let watch = Watch::start(folder.path(), &config).await;
    let with_value = |seen: &Seen| seen.iter().filter(|(_, value, _)| value.is_some()).count();
    let seen =
        eventually("five polls", PATIENCE, async || Some(watch.seen()).filter(|seen| with_value(seen) >= 200)).await;
    for (point, value, status) in seen {
        let address: u32 = point.parse().unwrap();
        let right = ((address * 31 + 7) % 65_536).to_string();
        match value {
            Some(value) => assert_eq!((value, status.as_str()), (right, "GOOD"), "{point}"),
            // A slave that stands still for longer than a period costs a poll.
            None => assert_eq!(status, "COMM_FAIL", "{point}"),
        }
    }
}

#[tokio::test]
async fn live_noise_and_an_unplugged_adapter_give_no_wrong_value() {
    let folder = tempfile::tempdir().unwrap();
    let (mut socat, a, b) = line(folder.path()).await;
    let faults = ["--fault", "corrupt:3", "--fault", "noise:5", "--fault", "double:2", "--fault", "truncate:2"];
    let mut simulate = served_serial(folder.path(), &a, &faults).await;
    let bus = format!("serial = {b:?}\nbaud = 38400\nparity = \"none\"");
    // What noise has eaten is waited for in vain: not for long.
    let config = configuration(folder.path(), "agent", &bus, "100ms", "300ms");
    let mut run = tributary();
    run.args(["run", "-c"]).arg(&config);
    let _agent = Process::start("agent", folder.path(), &run).unwrap();
    let watch = Watch::start(folder.path(), &config).await;
    let count = |what: &str| watch.seen().iter().filter(|(_, _, status)| status == what).count();
    eventually("values through noise", PATIENCE, async || (count("GOOD") >= 120).then_some(())).await;
    // The adapter is unplugged, and comes back as another node under the same name.
    socat.kill();
    simulate.kill();
    for end in [&a, &b] {
        let _ = fs::remove_file(end);
    }
    // Noise had some fail before: five polls more are its work no longer.
    let failed = count("COMM_FAIL");
    eventually("failures", PATIENCE, async || (count("COMM_FAIL") >= failed + 30).then_some(())).await;
    let before = count("GOOD");
    let (_socat, a, _) = line(folder.path()).await;
    let _simulate = served_serial(folder.path(), &a, &faults).await;
    eventually("values again", PATIENCE, async || (count("GOOD") >= before + 30).then_some(())).await;
    for (point, value, status) in watch.seen() {
        match value {
            Some(value) => assert!(is_right(&point, &value), "{point} = {value}"),
            None => assert!(["COMM_FAIL", "OUT_OF_SERVICE"].contains(&status.as_str()), "{point}: {status}"),
        }
    }
}

/// Bytes that passed, with their direction: `true` from the agent.
type Passed = Arc<Mutex<Vec<(bool, Vec<u8>)>>>;

/// Passes one connection on to `port`, and keeps what passed.
async fn recorder(port: u16) -> (u16, Passed) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (own, passed) = (listener.local_addr().unwrap().port(), Passed::default());
    let kept = Arc::clone(&passed);
    tokio::spawn(async move {
        while let Ok((agent, _)) = listener.accept().await {
            let Ok(device) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let ((from_agent, to_agent), (from_device, to_device)) = (agent.into_split(), device.into_split());
            tokio::spawn(pass(from_agent, to_device, Arc::clone(&kept), true));
            tokio::spawn(pass(from_device, to_agent, Arc::clone(&kept), false));
        }
    });
    (own, passed)
}

async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, kept: Passed, asks: bool) {
    let mut bytes = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        kept.lock().unwrap().push((asks, bytes[..count].to_vec()));
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn live_tshark_finds_no_malformed_frame() {
    for (flag, key, dissector) in [(None, "tcp", "mbtcp"), (Some("--rtu-over-tcp"), "rtu_over_tcp", "mbrtu")] {
        let folder = tempfile::tempdir().unwrap();
        let more: Vec<&str> = flag.into_iter().collect();
        let (_simulate, port) = served(folder.path(), &more).await;
        let (own, passed) = recorder(port).await;
        let config = configuration(folder.path(), "agent", &format!("{key} = \"127.0.0.1:{own}\""), "200ms", LONG);
        let mut run = tributary();
        run.args(["run", "-c"]).arg(&config);
        let mut agent = Process::start("agent", folder.path(), &run).unwrap();
        let questions = || passed.lock().unwrap().iter().filter(|(asks, _)| *asks).count();
        eventually("sixty questions", PATIENCE, async || (questions() >= 60).then_some(())).await;
        agent.kill();
        let (mut dump, mut asked) = (String::new(), 0);
        for (asks, bytes) in passed.lock().unwrap().iter() {
            asked += usize::from(*asks);
            dump.push_str(if *asks { "I\n0000" } else { "O\n0000" });
            for byte in bytes {
                write!(dump, " {byte:02x}").unwrap();
            }
            dump.push('\n');
        }
        let (text, capture) = (folder.path().join("dump.txt"), folder.path().join("dump.pcap"));
        fs::write(&text, dump).unwrap();
        let mut convert = Command::new(program("text2pcap", "wireshark-common"));
        output(convert.args(["-q", "-D", "-T", "40000,502"]).arg(&text).arg(&capture)).await;
        let shark = |filter: &str, field: &str| {
            let mut command = Command::new(program("tshark", "tshark"));
            command.args(["-n", "-r"]).arg(&capture).args(["-d", &format!("tcp.port==502,{dissector}")]);
            // Unless told to, tshark takes any CRC for a good one.
            command.args(["-o", "mbrtu.crc_verification:TRUE", "-Y", filter, "-T", "fields", "-e", field]);
            command
        };
        let wrong = output(&mut shark(
            "_ws.malformed || _ws.expert.group==\"Malformed\" || _ws.expert.group==\"Checksum\"",
            "frame.number",
        ))
        .await;
        assert_eq!(wrong.trim(), "", "{dissector}");
        let port = if dissector == "mbtcp" { "mbtcp" } else { "mbrtu" };
        let known =
            output(&mut shark(&format!("{port} && tcp.dstport==502 && modbus.func_code"), "modbus.func_code")).await;
        assert_eq!(known.lines().count(), asked, "{dissector}: every question is one");
    }
}
