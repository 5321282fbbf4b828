#!/usr/bin/env python3
"""Prints which processor a program is for, and refuses one that is not static.

    release/elf.py BINARY             x86_64 or aarch64
    release/elf.py BINARY --debian    the same in Debian's words: amd64 or arm64; images use these as well
"""

import pathlib
import sys

MACHINES = {"x86_64": 62, "aarch64": 183}  # ELF's e_machine
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


def machine_of(binary: bytes) -> str:
    """The processor of an ELF file that needs no other file to run."""
    if binary[:5] != b"\x7fELF\x02":
        sys.exit("the program is not a 64-bit ELF file")
    number = int.from_bytes(binary[18:20], "little")
    start, size, count = (int.from_bytes(binary[a:b], "little") for a, b in [(32, 40), (54, 56), (56, 58)])
    kinds = {int.from_bytes(binary[at : at + 4], "little") for at in range(start, start + size * count, size)}
    if 3 in kinds:  # PT_INTERP: it asks for a dynamic linker
        sys.exit("the program is dynamically linked, so it does not run on every Linux: build it with release/binary.sh")
    for name, of_name in MACHINES.items():
        if number == of_name:
            return name
    sys.exit(f"nothing is released for ELF machine {number}")


def main() -> None:
    match sys.argv[1:]:
        case [binary]:
            print(machine_of(pathlib.Path(binary).read_bytes()))
        case [binary, "--debian"]:
            print(DEBIAN[machine_of(pathlib.Path(binary).read_bytes())])
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(64)


if __name__ == "__main__":
    main()
