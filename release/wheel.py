#!/usr/bin/env python3
"""Makes a Python wheel that carries the static binary: `pip install` puts the program on the PATH.

    release/wheel.py STAGE OUT      STAGE as release/stage.sh makes it; prints the path of the wheel

Its tag names the processor that the binary is for.

The same files and the same SOURCE_DATE_EPOCH give the same bytes. Needs Python 3.11 and nothing else.
"""

import base64
import hashlib
import os
import pathlib
import stat
import sys
import time
import tomllib
import zipfile

from elf import machine_of

ROOT = pathlib.Path(__file__).resolve().parent.parent

# manylinux_2_17 promises that the program runs with glibc 2.17 or newer, musllinux_1_1 with musl 1.1 or newer. A static
# program needs neither, so both hold, and the wheel installs on every Linux that a published pip knows. manylinux2014
# is the older name of manylinux_2_17.
PLATFORMS = ["manylinux_2_17", "manylinux2014", "musllinux_1_1"]
# A folder in the wheel whose files pip installs where programs are, with their mode.
SCRIPTS = "{name}-{version}.data/scripts"


def metadata(package: dict) -> str:
    readme = (ROOT / "README.md").read_text()
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {package['name']}",
        f"Version: {package['version']}",
        f"Summary: {package['description']}",
        f"License-Expression: {package['license']}",
        "License-File: LICENSE",
        "License-File: THIRD-PARTY.txt",
        "Classifier: Operating System :: POSIX :: Linux",
        "Classifier: Programming Language :: Rust",
        "Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Requires-Python: >=3.7",
        "Description-Content-Type: text/markdown",
        "",
        readme,
    ]
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(64)
    stage, out = map(pathlib.Path, sys.argv[1:])
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    name, version = package["name"], package["version"]
    program = (stage / name).read_bytes()
    machine = machine_of(program)
    platforms = [f"{platform}_{machine}" for platform in PLATFORMS]
    info = f"{name}-{version}.dist-info"
    tags = "".join(f"Tag: py3-none-{platform}\n" for platform in platforms)
    files = {
        f"{SCRIPTS.format(name=name, version=version)}/{name}": program,
        f"{info}/METADATA": metadata(package).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: {name} release/wheel.py\nRoot-Is-Purelib: false\n{tags}".encode(),
        f"{info}/licenses/LICENSE": (stage / "LICENSE").read_bytes(),
        f"{info}/licenses/THIRD-PARTY.txt": (stage / "THIRD-PARTY.txt").read_bytes(),
        f"{info}/sboms/{name}.cdx.json": (stage / "sbom.cdx.json").read_bytes(),
    }
    record = f"{info}/RECORD"
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    files[record] = "".join([*lines, f"{record},,\n"]).encode()

    # The earliest time that a zip file can hold is 1980.
    when = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), 315532800))[:6]
    wheel = out / f"{name}-{version}-py3-none-{'.'.join(platforms)}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, when)
            mode = 0o755 if path.split("/")[1] == "scripts" else 0o644
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compresslevel=9)
    print(wheel)


if __name__ == "__main__":
    main()
