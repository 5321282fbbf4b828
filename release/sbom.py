#!/usr/bin/env python3
"""Writes what a release consists of: a CycloneDX bill of materials, or the licences of all parts.

    release/sbom.py bom BINARY        prints a CycloneDX 1.6 document
    release/sbom.py licences BINARY   prints the text of every licence, each once, with the crates under it

Both come from `cargo metadata`, so they list what Cargo.lock pins, for the processor that the binary is for. Crates that only
run while the program is built are in the bill with the scope `excluded`. glibc is part of a static program, and is
listed with the version of the machine that built it. Needs Python 3.11 and cargo.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import uuid

from elf import DEBIAN, machine_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
LICENCE_FILE = re.compile(r"(?i)^(licen[cs]e|copying|notice|unlicense|copyright)([-_.].*)?$")


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def of_rustc() -> dict:
    lines = output("rustc", "-vV").splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


class Crates:
    """The crates of one target: which are linked into the program, and which run only while it is built."""

    def __init__(self, target: str) -> None:
        graph = json.loads(output("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target))
        self.packages = {package["id"]: package for package in graph["packages"]}
        self.nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
        self.root = graph["resolve"]["root"]
        lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
        self.checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock}
        self.linked = self.reach([self.root], build=False)
        everything = self.reach([self.root], build=True)
        self.only_built_with = everything - self.linked

    def is_macro(self, identity: str) -> bool:
        return any("proc-macro" in target["kind"] for target in self.packages[identity]["targets"])

    def reach(self, start: list, build: bool) -> set:
        """All that `start` needs; with `build` also build scripts' crates, and macros with theirs. Never tests' crates."""
        found, waiting = set(start), list(start)
        while waiting:
            for need in self.needs(waiting.pop(), build):
                if need not in found:
                    found.add(need)
                    waiting.append(need)
        return found

    def needs(self, identity: str, build: bool) -> list:
        kinds = {None, "build"} if build else {None}
        return sorted(
            dependency["pkg"]
            for dependency in self.nodes[identity]["deps"]
            if any(kind["kind"] in kinds for kind in dependency["dep_kinds"])
            and (build or not self.is_macro(dependency["pkg"]))
        )

    def name(self, identity: str) -> tuple:
        package = self.packages[identity]
        return package["name"], package["version"]


def component(crates: Crates, identity: str) -> dict:
    package = crates.packages[identity]
    name, version = crates.name(identity)
    url = f"pkg:cargo/{name}@{version}"
    entry = {
        "type": "application" if identity == crates.root else "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
        "scope": "required" if identity in crates.linked else "excluded",
    }
    if package["description"]:
        entry["description"] = " ".join(package["description"].split())
    if package["license"]:
        # Some crates still write the slash that SPDX has replaced by OR.
        entry["licenses"] = [{"expression": re.sub(r"\s*/\s*|\s+OR\s+", " OR ", package["license"])}]
    checksum = crates.checksums.get((name, version))
    if checksum:
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return entry


def target_of(binary: bytes) -> str:
    return f"{machine_of(binary)}-unknown-linux-gnu"


def runtime_parts(target: str) -> list:
    """The C library and Rust's standard library, which the program contains besides crates."""
    compiler = of_rustc()
    rust = f"pkg:generic/rust-std@{compiler['release']}"
    parts = [{"type": "library", "bom-ref": rust, "name": "rust-std", "version": compiler["release"], "purl": rust,
              "licenses": [{"expression": "MIT OR Apache-2.0"}]}]
    # Debian has the C library of another processor in a package of its own.
    cross = "" if target == compiler["host"] else f"-{DEBIAN[target.split('-')[0]]}-cross"
    query = ["dpkg-query", "--show", "--showformat", "${Version}", f"libc6-dev{cross}"]
    try:
        version = output(*query)
        url = f"pkg:deb/debian/glibc@{version}"
    except (FileNotFoundError, subprocess.CalledProcessError):
        version = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
        url = f"pkg:generic/glibc@{version}"
    parts.append({"type": "library", "bom-ref": url, "name": "glibc", "version": version, "purl": url,
                  "licenses": [{"expression": "LGPL-2.1-or-later"}]})
    return [part | {"scope": "required"} for part in parts]


def bom(binary: pathlib.Path) -> None:
    content = binary.read_bytes()
    target = target_of(content)
    crates = Crates(target)
    digest = hashlib.sha256(content).hexdigest()
    program = component(crates, crates.root)
    program["hashes"] = [{"alg": "SHA-256", "content": digest}]
    del program["scope"]
    parts = runtime_parts(target)
    ref = {identity: "pkg:cargo/{}@{}".format(*crates.name(identity)) for identity in crates.packages}
    others = sorted((crates.linked | crates.only_built_with) - {crates.root}, key=crates.name)
    dependencies = [
        {"ref": ref[identity], "dependsOn": [ref[need] for need in sorted(crates.needs(identity, build=True), key=crates.name)]}
        for identity in [crates.root, *others]
    ]
    dependencies[0]["dependsOn"] += [part["bom-ref"] for part in parts]
    dependencies += [{"ref": part["bom-ref"]} for part in parts]
    now = time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same program has the same number.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
            "component": program,
            "properties": [{"name": "build:target", "value": target}],
        },
        "components": [component(crates, identity) for identity in others] + parts,
        "dependencies": dependencies,
    }
    print(json.dumps(document, indent=1))


def licences(binary: pathlib.Path) -> None:
    crates = Crates(target_of(binary.read_bytes()))
    texts = {}
    without = []
    for identity in sorted(crates.linked - {crates.root}, key=crates.name):
        package = crates.packages[identity]
        name = "{} {}".format(*crates.name(identity))
        folder = pathlib.Path(package["manifest_path"]).parent
        files = sorted(path for path in folder.iterdir() if path.is_file() and LICENCE_FILE.match(path.name))
        for path in files:
            text = path.read_text(errors="replace").replace("\r\n", "\n").strip()
            texts.setdefault(text, []).append(name)
        if not files:
            without.append(f"{name}: {package['license']}, by {', '.join(package['authors']) or 'its contributors'}")
    print("microgranite contains the following parts of others, under these licences.\n")
    print("Crates whose package holds no text of their licence:\n")
    print("\n".join(f"    {line}" for line in without))
    print("\nThe C library is glibc, under the LGPL 2.1 or later: the sources of microgranite and release/binary.sh link it anew.")
    for text, names in texts.items():
        print("\n" + "=" * 100)
        print("\n".join(f"    {name}" for name in dict.fromkeys(names)))
        print("=" * 100 + "\n")
        print(text)


def main() -> None:
    match sys.argv[1:]:
        case ["bom", binary]:
            bom(pathlib.Path(binary))
        case ["licences", binary]:
            licences(pathlib.Path(binary))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(64)


if __name__ == "__main__":
    main()
