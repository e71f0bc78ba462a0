"""Compares Cargo.lock with a checkout of the RustSec advisory database: advisories.py CARGO_LOCK DENY_TOML DATABASE

DATABASE is the folder of a checkout, or one that holds it packed, as a .tar.gz. Fails on an advisory that deny.toml does not
waive, and on a waiver that nothing needs any more. For machines without cargo-deny; Python 3.11 has all it needs.
"""

import pathlib
import re
import sys
import tarfile
import tempfile
import tomllib


def version(text):
    """(major, minor, patch), then whether it is a release, then its pre-release name: orders as cargo does."""
    numbers, _, pre = text.split("+")[0].partition("-")
    parts = [int(part) for part in numbers.split(".")]
    return tuple(parts + [0] * (3 - len(parts))), pre == "", pre


def matches(requirement, found):
    for part in requirement.split(","):
        operator, wanted = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*(\S+)\s*", part).groups()
        if "*" in wanted:
            continue
        least = version(wanted)
        if operator in (None, "^", "~"):
            (major, minor, patch), _, _ = least
            if operator == "~":
                beyond = (major, minor + 1, 0)
            elif major:
                beyond = (major + 1, 0, 0)
            else:
                beyond = (0, minor + 1, 0) if minor else (0, 0, patch + 1)
            if not least <= found < (beyond, False, ""):
                return False
        elif not {
            ">=": found >= least, "<=": found <= least, ">": found > least, "<": found < least, "=": found == least,
        }[operator]:
            return False
    return True


def main(lock, deny, database):
    packages = tomllib.loads(pathlib.Path(lock).read_text())["package"]
    waivers = {waiver["id"] for waiver in tomllib.loads(pathlib.Path(deny).read_text())["advisories"]["ignore"]}
    crates = pathlib.Path(database) / "crates"
    packed = sorted(pathlib.Path(database).glob("*.tar.gz"))
    scratch = tempfile.TemporaryDirectory()
    if not crates.is_dir() and packed:
        with tarfile.open(packed[0]) as archive:
            archive.extractall(scratch.name, filter="data")
        crates = pathlib.Path(scratch.name) / "crates"
    if not crates.is_dir():
        sys.exit(f"{crates} is not there: give a checkout of the RustSec advisory database, or the folder of a packed one")
    found = {}
    newest = ""
    for path in sorted(crates.glob("*/*.md")):
        text = path.read_text()
        advisory = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.S).group(1))
        newest = max(newest, str(advisory["advisory"]["date"]))
        if advisory["advisory"].get("withdrawn"):
            continue
        fine = advisory.get("versions", {})
        fine = fine.get("patched", []) + fine.get("unaffected", [])
        for package in packages:
            if package["name"] == path.parent.name:
                if not any(matches(requirement, version(package["version"])) for requirement in fine):
                    title = re.search(r"^# (.*)", text, re.M).group(1)
                    found[advisory["advisory"]["id"]] = f"{package['name']} {package['version']}: {title}"
    print(f"{len(packages)} packages, newest advisory of {newest}")
    for name in sorted(found.keys() & waivers):
        print(f"waived  {name} {found[name]}")
    for name in sorted(found.keys() - waivers):
        print(f"OPEN    {name} {found[name]}: update it, or waive it in deny.toml with a reason and a date")
    for name in sorted(waivers - found.keys()):
        print(f"IDLE    {name}: nothing needs this waiver any more; take it out of deny.toml")
    sys.exit(found.keys() != waivers)


if len(sys.argv) != 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
