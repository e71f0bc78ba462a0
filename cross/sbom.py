"""The software bill of materials of a binary, as CycloneDX 1.5 JSON on stdout: sbom.py PACKAGE TARGET

What `cargo tree` says is linked into PACKAGE for TARGET, with the licences of `cargo metadata` and the checksums of
Cargo.lock: no crate of builds, tests, other members or other targets is in it. The same tree gives the same bytes: SOURCE_DATE_EPOCH is its time, and its serial
number follows from its content. cargo-cyclonedx gives the same list, but takes minutes to compile wherever a package is
built; Python 3.11 has all that this needs.
"""

import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import uuid

root = pathlib.Path(__file__).resolve().parent.parent


def main(package, target):
    def cargo(*arguments):
        return subprocess.run(["cargo", *arguments], cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout

    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    # metadata has the features of the whole workspace; the tree those of this package alone.
    edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]
    tree = cargo("tree", "--locked", "--package", package, "--target", target, *edges)
    in_tree = {tuple(line.removesuffix(" (*)").split(" ")[:2]) for line in tree.splitlines()}
    packages = {found["id"]: found for found in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    locked = tomllib.loads((root / "Cargo.lock").read_text())["package"]
    checksums = {(found["name"], found["version"]): found.get("checksum") for found in locked}
    [top] = [found["id"] for found in metadata["packages"] if found["name"] == package]

    seen = {
        name for name, found in packages.items() if (found["name"], f"v{found['version']}") in in_tree
    }

    def linked(name):
        return sorted(
            dependency["pkg"]
            for dependency in nodes[name]["deps"]
            if dependency["pkg"] in seen and any(kind["kind"] is None for kind in dependency["dep_kinds"])
        )

    def reference(name):
        return f"pkg:cargo/{packages[name]['name']}@{packages[name]['version']}"

    def component(name):
        found = packages[name]
        entry = {
            "type": "application" if name == top else "library",
            "bom-ref": reference(name),
            "name": found["name"],
            "version": found["version"],
            "purl": reference(name),
        }
        if found["license"]:
            entry["licenses"] = [{"expression": found["license"].replace("/", " OR ")}]
        checksum = checksums.get((found["name"], found["version"]))
        if checksum:
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return entry

    parts = [component(name) for name in sorted(seen - {top}, key=reference)]
    graph = [
        {"ref": reference(name), "dependsOn": sorted(reference(other) for other in linked(name))}
        for name in sorted(seen, key=reference)
    ]
    digest = hashlib.sha256(json.dumps([component(top), parts, graph, target]).encode()).digest()
    stamp = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.UTC)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": component(top),
            "properties": [{"name": "target", "value": target}],
        },
        "components": parts,
        "dependencies": graph,
    }
    json.dump(bill, sys.stdout, indent=1)
    print()


if len(sys.argv) != 3:
    sys.exit(__doc__)
main(*sys.argv[1:])
