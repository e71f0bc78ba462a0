"""A line from a simulated device to a database, for agents that cannot be started as a child on this machine's own system:
under an emulator, or in another root. Everything but the agent is native; everything listens on loopback, on free ports,
and ends with the program that started it.

    device (tributary simulate) ── Modbus TCP ─▶ AGENT ── MQTT, TLS both ways ─▶ mosquitto ─▶ receiver ─▶ SQLite
"""

import atexit
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

SITE, AGENT = "plant-1", "gw-field"

DEVICES = """
[[bus]]
name = "net"
tcp = "127.0.0.1:{device}"

[[device]]
name = "tank"
bus = "net"
unit_id = 1
addressing = "zero"
order = "ABCD"
period = "200ms"

[[device.point]]
name = "level"
table = "holding"
address = 0
type = "f32"

[[device.point]]
name = "count"
table = "holding"
address = 2
type = "u16"
"""


def fail(message):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {message}")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(what, seconds, fact):
    """Waits until `fact` gives something, by looking; says what was waited for in vain."""
    end = time.monotonic() + seconds
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() > end:
            fail(f"waited {seconds} s in vain for {what}")
        time.sleep(0.1)


def run(*command, seconds=60, **options):
    """Runs it to its end; its output, or the end of this program with what it said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, **options)
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


class Line:
    """Device, broker, receiver and database, with a folder and certificates of their own."""

    def __init__(self, native):
        self.native = pathlib.Path(native)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tributary-field-"))
        self.children = []
        self.good = False
        atexit.register(self.end)
        self.device_port, self.broker_port = free_port(), free_port()
        self.database = self.folder / "centre.db"
        self.certificates()

    def end(self):
        for child in self.children:
            if child.poll() is None:
                kill(child)
        if not self.good:
            for log in sorted(self.folder.glob("*.log")):
                print(f"---- end of {log.name}:\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name, *command, **options):
        """A child with a log; it dies with this program."""
        log = open(self.folder / f"{name}.log", "a")
        child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)], stdout=log, stderr=log, **options)
        self.children.append(child)
        return child

    def pem(self, name):
        return (self.folder / name).read_text()

    def certificates(self):
        """A CA, and pairs of broker, receiver and agent by it."""
        def openssl(*arguments):
            run("openssl", *arguments, cwd=self.folder)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *key, "-days", "30", "-subj", "/CN=Field CA", "-keyout", "ca.key", "-out", "ca.pem")
        for name, usage in [("broker", "serverAuth"), ("receiver", "clientAuth"), (AGENT, "clientAuth")]:
            extensions = f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n"
            (self.folder / f"{name}.ext").write_text(extensions)
            openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            self.sign(name)
        for path in self.folder.glob("*.key"):
            path.chmod(0o600)

    def sign(self, name, request=None):
        """The CA's certificate for a request; by its extensions file."""
        run("openssl", "x509", "-req", "-in", request or f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext", "-out", f"{name}.pem", cwd=self.folder)

    def configuration(self, pki, state, extra=""):
        return (
            f'[agent]\nsite = "{SITE}"\nid = "{AGENT}"\n{state}time_sync = "trust"\n'
            f'[uplink]\nurl = "mqtts://127.0.0.1:{self.broker_port}"\nreconnect_max = "1s"\n'
            f'ca = "{pki}/ca.pem"\ncert = "{pki}/client.pem"\nkey = "{pki}/client.key"\n'
            '[batch]\nmax_age = "500ms"\n[spool]\ncommit = "500ms"\n'
            + DEVICES.format(device=self.device_port) + extra
        )

    def start_device(self):
        path = self.folder / "device.toml"
        text = self.configuration(".", f'state_dir = "{self.folder}"\n')
        lines = [line for line in text.splitlines() if not line.startswith(("ca =", "cert =", "key ="))]
        path.write_text("\n".join(lines).replace("mqtts://", "mqtt://"))
        self.start("device", self.native / "tributary", "simulate", "-c", path, "--listen", f"127.0.0.1:{self.device_port}")
        until("the device to listen", 10, lambda: self.listens(self.device_port))

    def start_broker(self):
        """mosquitto that lets nobody in without a certificate."""
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.broker_port} 127.0.0.1\ncafile {self.folder}/ca.pem\ncertfile {self.folder}/broker.pem\n"
            f"keyfile {self.folder}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n"
            "allow_anonymous true\nuser root\n"
        )
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") or fail("no mosquitto: run tests/run once")
        self.broker = self.start("broker", program, "-c", self.folder / "mosquitto.conf")
        until("the broker to listen", 10, lambda: self.listens(self.broker_port))

    def stop_broker(self):
        self.broker.kill()
        self.broker.wait()

    def start_receiver(self):
        (self.folder / "receiver.toml").write_text('ca = "ca.pem"\ncert = "receiver.pem"\nkey = "receiver.key"\n')
        self.start("receiver", self.native / "tributary-receiver", "run", "-c", "receiver.toml", "--broker",
                   f"mqtts://localhost:{self.broker_port}", "--store", f"sqlite:{self.database}", cwd=self.folder)

    @staticmethod
    def listens(port):
        with socket.socket() as found:
            return found.connect_ex(("127.0.0.1", port)) == 0

    def ask(self, question):
        if not self.database.exists():
            return []
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10) as database:
            try:
                return database.execute(question).fetchall()
            except sqlite3.OperationalError:
                return []

    def rows(self):
        """Values at the centre."""
        found = self.ask("SELECT count(*) FROM reading WHERE status = 0")
        return found[0][0] if found else 0

    def more_rows(self, count, seconds):
        wanted = self.rows() + count
        until(f"{count} more values at the centre", seconds, lambda: self.rows() >= wanted)

    def assert_truth(self):
        """Nothing twice, and nothing lost but what an end without warning costs, which is named."""
        twice = self.ask("SELECT device, point, at_ms, count(*) FROM reading GROUP BY 1, 2, 3 HAVING count(*) > 1")
        if twice:
            fail(f"at the centre twice: {twice[:5]}")
        [(admitted, delivered, held, filtered, lost, reasons)] = self.ask(
            "SELECT admitted, delivered, held, filtered, lost, lost_by_reason FROM agent"
        )
        if admitted != delivered + held + filtered + lost:
            fail(f"the law: {admitted} admitted, {delivered} delivered, {held} held, {filtered} filtered, {lost} lost")
        if {reason.split("=")[0] for reason in reasons.split(",") if reason} - {"agent_down"}:
            fail(f"lost by {reasons}")
        return delivered


def stop(child, name, seconds=60):
    """SIGTERM; it must end well."""
    os.kill(child.pid, signal.SIGTERM)
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        fail(f"{name} did not end within {seconds} s of SIGTERM")
    if code != 0:
        fail(f"{name} ended with {code}")


def kill(child):
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
