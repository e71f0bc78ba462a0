"""An agent under an emulator does what it is there for: smoke.py NATIVE_BINARIES RUNNER… BINARY

--version, check; a spool that the native agent filled without a broker and left by SIGKILL is opened and delivered; Modbus
TCP polls reach a database over TLS with certificates on both sides, acknowledged; SIGKILL, and it goes on; SIGTERM ends it
well; the spool it leaves is whole.
"""

import json
import subprocess
import sys

import line


def main(native, *agent):
    there = line.Line(native)
    state = there.folder / "state"
    state.mkdir()
    for ours, theirs in [(line.AGENT, "client")]:
        for ending in ["pem", "key"]:
            (there.folder / f"{theirs}.{ending}").write_text(there.pem(f"{ours}.{ending}"))
            (there.folder / f"{theirs}.{ending}").chmod(0o600)
    configuration = there.folder / "agent.toml"
    configuration.write_text(there.configuration(".", f'state_dir = "{state}"\n'))
    version = line.run(*agent, "--version").strip()
    line.run(*agent, "check", "-c", configuration)

    def status(*command):
        done = subprocess.run([*command, "status", "--json", "-c", configuration], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None

    there.start_device()
    first = there.start("native", there.native / "tributary", "run", "-c", configuration)
    held = line.until(
        "a backlog", 30, lambda: (said := status(there.native / "tributary")) and said["spool"]["records"] > 3 and said["spool"]["records"]
    )
    line.kill(first)
    there.start_broker()
    there.start_receiver()
    running = there.start("agent", *agent, "run", "-c", configuration)
    there.more_rows(60, 60)
    batches = there.ask("SELECT count(*) FROM batch")[0][0]
    if batches <= held:
        line.fail(f"{batches} batches at the centre, of which the native agent had left {held}")
    line.kill(running)
    running = there.start("agent", *agent, "run", "-c", configuration)
    there.more_rows(60, 60)
    line.stop(running, "the agent")
    line.run(*agent, "spool", "verify", "-c", configuration)
    line.until("the centre to have the last status", 20, lambda: there.ask("SELECT count(*) FROM agent WHERE state <> 'online'"))
    delivered = there.assert_truth()
    there.good = True
    print(f"smoke: {version}: {held} batches of another machine opened, {delivered} readings delivered over TLS, a SIGKILL between")


if len(sys.argv) < 3:
    sys.exit(__doc__)
main(*sys.argv[1:])
