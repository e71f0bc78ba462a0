"""The installer's guide (cross/README.md), followed step by step on a system that is booted: boot.py NATIVE_BINARIES ROOT PACKAGE.deb

ROOT is a Debian root with systemd, which is changed; systemd-nspawn boots it, with this machine's loopback. Installed with apt,
seeded from the boot partition, enrolled at a test CA, until the first Ack. Then what only a real systemd shows: STATUS=, reload,
the watchdog, a restart after SIGKILL, a second boot.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import line


class Machine:
    """A root, booted and shut down."""

    def __init__(self, root):
        self.root = pathlib.Path(root)

    def boot(self, there):
        # The hierarchy of control groups that this machine has at all.
        self.nspawn = there.start("console", "systemd-nspawn", "--directory", self.root, "--register=no", "--keep-unit", "--boot",
                                  "--machine=gateway", env=dict(os.environ, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1"))
        self.leader = line.until("the container", 30, self.init)
        line.until("systemd to be up", 90, lambda: self.do("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"))

    def init(self):
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        for child in children:
            for below in [child, *pathlib.Path(f"/proc/{child}/task/{child}/children").read_text().split()]:
                try:
                    if pathlib.Path(f"/proc/{below}/comm").read_text().strip() == "systemd":
                        return below
                except FileNotFoundError:
                    pass
        return None

    def shut_down(self):
        os.kill(int(self.leader), signal.SIGRTMIN + 4)
        self.nspawn.wait(90)

    def do(self, *command, check=True):
        done = subprocess.run(["nsenter", "--target", self.leader, "--all", "--", *command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=120,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
                                   "HOME": "/root", "SYSTEMD_PAGER": "cat"})
        print(f"$ {' '.join(command)}\n{done.stdout}", flush=True)
        if check and done.returncode != 0:
            line.fail(f"{' '.join(command)} ended with {done.returncode}")
        return done.stdout

    def pid(self):
        return self.do("systemctl", "show", "--property=MainPID", "--value", "tributary").strip()

    def path(self, name):
        return self.root / name.lstrip("/")


def polled(status):
    """Whether readings were admitted, by a status as JSON."""
    status = status.replace(" ", "")
    return '"admitted":' in status and '"admitted":0' not in status


def said(text, *parts):
    for part in parts:
        if part not in text:
            line.fail(f"it does not say {part!r}:\n{text}")


def main(native, root, package):
    there = line.Line(native)
    there.start_device()
    there.start_broker()
    there.start_receiver()
    gateway = Machine(root)
    gateway.boot(there)
    configuration = "/etc/tributary/agent.toml"

    print("== 1. The package")
    gateway.path("/srv/tributary.deb").write_bytes(pathlib.Path(package).read_bytes())
    gateway.do("apt-get", "install", "--yes", "/srv/tributary.deb")
    said(gateway.do("systemctl", "status", "tributary", check=False), "ConditionPathExists=/etc/tributary/agent.toml was not met")

    print("== 2. The seed")
    boot = gateway.path("/boot")
    example = gateway.path("/usr/share/doc/tributary/examples/seed.toml").read_text()
    said(example, "[seed]", "pki/client.pem")
    seed = there.configuration("pki", 'runtime_dir = "/run/tributary"\n')
    # The first try has a fault, as first tries have.
    (boot / "tributary-seed.toml").write_text(seed.replace("unit_id = 1", "unit_id = 1000") + f'\n[seed]\n"ca.pem" = """\n{there.pem("ca.pem")}"""\n')
    gateway.shut_down()
    gateway.boot(there)
    text = line.until("the text beside the seed", 30, lambda: (boot / "tributary-seed.txt").exists() and (boot / "tributary-seed.txt").read_text())
    print(text)
    said(text, "was NOT taken, and nothing was changed", "unit_id")
    (boot / "tributary-seed.toml").write_text(seed + f'\n[seed]\n"ca.pem" = """\n{there.pem("ca.pem")}"""\n')
    gateway.shut_down()

    print("== 3. Start the gateway")
    gateway.boot(there)
    text = line.until("that the seed was taken", 30, lambda: "was taken." in (boot / "tributary-seed.txt").read_text()
                      and (boot / "tributary-seed.txt").read_text())
    print(text)
    said(text, "STILL TO DO: this gateway has no certificate yet")
    said(gateway.do("journalctl", "--unit=tributary-seed", "--no-pager"), "was taken")
    (boot / "tributary-seed.toml").exists() and line.fail("the seed is still there")
    line.until("polls", 60, lambda: polled(gateway.do("tributary", "status", "--json", "-c", configuration, check=False)))

    print("== 4. The certificate")
    asked = gateway.do("tributary", "enroll", "-c", configuration)
    begin, end = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"
    (there.folder / "request.csr").write_text(asked[asked.index(begin):asked.index(end)] + end + "\n")
    there.sign(line.AGENT, "request.csr")
    gateway.path("/srv/answer.pem").write_text(there.pem(f"{line.AGENT}.pem"))
    gateway.do("tributary", "enroll", "-c", configuration, "--certificate", "/srv/answer.pem")

    print("== 5. The first Ack")
    line.until("the first Ack", 60, lambda: "connected and acknowledged" in gateway.do("tributary", "status", "-c", configuration))
    there.more_rows(20, 60)
    said(gateway.do("tributary", "watch", "--once", "-c", configuration), "tank/level")
    line.until("what systemd is told", 5,
               lambda: "1 of 1 devices answer; the centre acknowledges" in gateway.do("systemctl", "status", "tributary"))
    said(gateway.do("systemctl", "status", "tributary"), "active (running)")
    # What is in its memory, the key among it, is never written down.
    limits = gateway.do("cat", f"/proc/{gateway.pid()}/limits")
    said(next(row for row in limits.splitlines() if row.startswith("Max core file size")), " 0 ")

    print("== 6. The archive")
    gateway.do("tributary", "support", "-c", configuration, "--output", "/srv/tributary-support.tar", check=False)

    print("== what only systemd shows")
    text = gateway.path(configuration).read_text()
    gateway.path(configuration).write_text(text.replace('period = "200ms"', 'period = "100ms"'))
    gateway.do("systemctl", "reload", "tributary")
    there.more_rows(30, 60)
    pid = gateway.pid()
    gateway.path(configuration).write_text(text.replace("unit_id = 1", "unit_id = 1000"))
    gateway.do("systemctl", "reload", "tributary", check=False)
    line.until("that the reload is refused", 30, lambda: "refused" in gateway.do("systemctl", "status", "tributary", check=False))
    gateway.path(configuration).write_text(text)
    gateway.do("sh", "-c", f"kill -KILL {pid}")
    line.until("systemd to start it again", 60, lambda: gateway.pid() not in ("0", pid))
    there.more_rows(20, 60)
    # It is alive but does nothing: the watchdog ends it.
    pid = gateway.pid()
    gateway.do("sh", "-c", f"kill -STOP {pid}")
    line.until("the watchdog", 150, lambda: time.sleep(2) or gateway.pid() not in ("0", pid))
    said(gateway.do("journalctl", "--unit=tributary", "--no-pager", "--lines=30"), "atchdog")
    there.more_rows(20, 60)
    gateway.shut_down()
    gateway.boot(there)
    there.more_rows(20, 90)
    gateway.do("systemctl", "stop", "tributary")
    line.until("that the centre knows it is offline", 30, lambda: there.ask("SELECT 1 FROM agent WHERE state = 'offline'"))
    delivered = there.assert_truth()
    gateway.shut_down()
    there.good = True
    print(f"boot: the guide was followed: a refused seed, a good one, enrolment, first Ack; reload, SIGKILL, watchdog, second boot: "
          f"{delivered} readings delivered, none lost unsaid")


if len(sys.argv) != 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
