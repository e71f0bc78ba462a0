"""A package in a system of its own: package.py NATIVE_BINARIES ROOT OLDER.deb NEWER.deb

ROOT is a fresh Debian root (debootstrap), which is changed. Installed there with dpkg, configured by a seed file as an
installer would, started by its unit's own command line, user and environment. It polls a device and delivers to a
receiver; then the broker goes away and it is killed with a backlog. The package is upgraded and downgraded, dpkg killed at
a system call of its own again and again, and the backlog stays as it was; the agent delivers it. remove keeps the data,
purge deletes it.
"""

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys

import line

KILLS = [int(number) for number in os.environ.get("TRIBUTARY_DPKG_KILLS", "3,25,70").split(",") if number]


class System:
    """A root, and how programs are started in it."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "HOME": "/"}

    def command(self, *command, user=None):
        # /proc as every system has it, in a mount namespace that ends with the command.
        identity = [] if user is None else [f"--userspec={user}"]
        mounted = 'mount -t proc proc "$0/proc" && exec chroot "$@"'
        return ["unshare", "--mount", "sh", "-c", mounted, str(self.root), *identity, str(self.root), *command]

    def run(self, *command, user=None, seconds=300):
        return line.run(*self.command(*command, user=user), env=self.clean, seconds=seconds)

    def path(self, name):
        return self.root / name.lstrip("/")

    def unit(self, name):
        """The unit's settings; the last of each, and ExecStart as words."""
        found = {}
        for text in self.path(f"/usr/lib/systemd/system/{name}").read_text().splitlines():
            if "=" in text and not text.startswith("#"):
                key, value = text.split("=", 1)
                found[key] = value
        return found, shlex.split(found["ExecStart"])

    def ids(self, user):
        for text in self.path("/etc/passwd").read_text().splitlines():
            name, _, uid, gid, *_ = text.split(":")
            if name == user:
                return int(uid), int(gid)
        line.fail(f"the package made no user {user}")


def main(native, root, older, newer):
    there = line.Line(native)
    system = System(root)
    for name, deb in [("older.deb", older), ("newer.deb", newer)]:
        system.path(f"/{name}").write_bytes(pathlib.Path(deb).read_bytes())
    there.start_device()
    there.start_broker()
    there.start_receiver()

    # Installed.
    system.run("dpkg", "--install", "/older.deb")
    settings, command = system.unit("tributary.service")
    user = settings["User"]
    uid, gid = system.ids(user)
    version = system.run(command[0], "--version").strip()
    pki = system.path("/etc/tributary/pki").stat()
    if (pki.st_mode & 0o777) != 0o750 or pki.st_gid != gid:
        line.fail(f"/etc/tributary/pki has mode {pki.st_mode:o} and owner {pki.st_uid}")
    for path in ["/usr/share/tributary/profiles/eastron-sdm630.toml", "/usr/share/tributary/schema/config.schema.json",
                 "/usr/share/doc/tributary/sbom.cdx.json.gz", "/usr/share/man/man1/tributary.1.gz",
                 "/usr/share/bash-completion/completions/tributary", "/usr/lib/udev/rules.d/60-tributary-serial.rules"]:
        system.path(path).exists() or line.fail(f"the package has no {path}")

    # Configured, as by an installer.
    boot = system.path("/boot/tributary-seed.toml")
    boot.parent.mkdir(exist_ok=True)
    seed = there.configuration("pki", 'runtime_dir = "/run/tributary"\n') + "\n[seed]\n"
    seed += f'"ca.pem" = """\n{there.pem("ca.pem")}"""\n'
    boot.write_text(seed)
    _, seed_command = system.unit("tributary-seed.service")
    system.run(*seed_command)
    told = system.path("/boot/tributary-seed.txt").read_text()
    if "was taken" not in told or "STILL TO DO" not in told or boot.exists():
        line.fail(f"the seed was not taken: {told}")

    def enrol():
        """The key is made there; only its request and the CA's answer travel."""
        said = system.run(command[0], "enroll", "-c", command[-1])
        begin, end = "-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"
        request = said[said.index(begin):said.index(end)] + end + "\n"
        (there.folder / "request.csr").write_text(request)
        there.sign(line.AGENT, "request.csr")
        system.path("/tmp/answer.pem").write_text(there.pem(f"{line.AGENT}.pem"))
        system.run(command[0], "enroll", "-c", command[-1], "--certificate", "/tmp/answer.pem")

    enrol()
    key = system.path("/etc/tributary/pki/client.key").stat()
    if (key.st_mode & 0o777) != 0o600 or key.st_uid != uid:
        line.fail(f"the key has mode {key.st_mode:o} and owner {key.st_uid}")

    # What systemd does before it starts the service: folders of its own, a socket to say READY to.
    def folder(path, mode):
        made = system.path(path)
        made.mkdir(parents=True, exist_ok=True)
        os.chmod(made, mode)
        os.chown(made, uid, gid)

    folder(f"/var/lib/{settings['StateDirectory']}", int(settings["StateDirectoryMode"], 8))
    folder(f"/run/{settings['RuntimeDirectory']}", int(settings["RuntimeDirectoryMode"], 8))
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(system.path("/run/notify")))
    os.chmod(system.path("/run/notify"), 0o777)
    notify.settimeout(60)

    def start():
        environment = dict(system.clean, NOTIFY_SOCKET="/run/notify")
        environment.update(pair.split("=", 1) for pair in shlex.split(settings.get("Environment", "")))
        child = there.start("agent", *system.command(*command, user=f"{uid}:{gid}"), env=environment)
        said = b""
        while b"READY=1" not in said:
            said = notify.recv(4096)
        if b"STATUS=" not in said or b" of 0 devices" in said:
            raise SystemExit(f"systemd is told {said!r}")
        return child

    def status():
        return json.loads(system.run(command[0], "status", "--json", "-c", command[-1]))

    agent = start()
    there.more_rows(30, 60)
    line.kill(agent)
    agent = start()
    there.more_rows(30, 60)
    # A new pair while it runs: it goes over to it by itself.
    enrol()
    line.until("the agent to come back with its new pair", 60, lambda: status()["uplink"]["reconnects"] > 0)
    there.more_rows(30, 60)
    there.stop_broker()
    line.until("a backlog", 60, lambda: status()["spool"]["records"] > 8)
    line.kill(agent)

    def backlog():
        return system.run(command[0], "spool", "export", "-c", command[-1])

    before = backlog()
    waiting = before.count("\n") - 1
    if waiting < 10:
        line.fail(f"only {waiting} readings wait")

    def unharmed(what):
        if backlog() != before:
            line.fail(f"{what}: the backlog is another one")

    # Upgraded and downgraded, with dpkg killed in the middle of it: the backlog is not touched, and the next try does it.
    system.run("dpkg", "--install", "/newer.deb")
    unharmed("upgrade")
    kills = 0
    for number in KILLS:
        for deb in ["/older.deb", "/newer.deb"]:
            killer = ["strace", "--follow-forks", "--output=/dev/null", "--trace=rename,renameat,renameat2,unlink,link",
                      f"--inject=rename,renameat,renameat2,unlink,link:signal=KILL:when={number}"]
            done = subprocess.run([*killer, *system.command("dpkg", "--install", deb)], env=system.clean,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
            kills += done.returncode != 0
            if system.path("/usr/bin/tributary").exists():
                unharmed(f"dpkg killed at call {number}")
            system.run("dpkg", "--install", deb)
            unharmed(f"dpkg killed at call {number}, and tried again")
    system.run("dpkg", "--install", "--force-downgrade", "/older.deb")
    unharmed("downgrade")

    there.start_broker()
    agent = start()
    sent = there.rows()
    line.until("the backlog at the centre", 60, lambda: there.rows() > sent + waiting // 2)
    there.more_rows(30, 60)
    line.stop(agent, "the agent")
    line.until("the centre to have the last status", 20, lambda: there.ask("SELECT count(*) FROM agent WHERE state <> 'online'"))
    delivered = there.assert_truth()

    # Removed: data and configuration stay. Purged: nothing does.
    system.run("dpkg", "--remove", "tributary")
    for path, stays in [("/usr/bin/tributary", False), ("/var/lib/tributary/spool", True), ("/etc/tributary/pki/client.key", True)]:
        if system.path(path).exists() != stays:
            line.fail(f"after remove {path} is {'gone' if stays else 'still there'}")
    system.run("dpkg", "--install", "/older.deb")
    system.run("dpkg", "--purge", "tributary")
    for path in ["/var/lib/tributary", "/etc/tributary", "/usr/share/tributary"]:
        if system.path(path).exists():
            line.fail(f"after purge {path} is still there")
    there.good = True
    print(f"package: {version}: installed, seeded, enrolled twice, {delivered} readings delivered, {waiting} waiting ones kept over upgrade, "
          f"downgrade and {kills} killed dpkg runs; remove keeps, purge deletes")


arguments = sys.argv[1:]
if len(arguments) != 4:
    sys.exit(__doc__)
main(*arguments)
