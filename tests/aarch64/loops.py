#!/usr/bin/env python3
"""What the inner loops of the ARM kernels reach in LLVM's models of processors.

usage: loops.py BINARY [PROCESSOR…]

Disassembles BINARY, a release build of the tests of this folder, finds the innermost loops with products of int8, and gives
each to `llvm-mca-19` (Debian's package llvm-19). Prints products per cycle and their share of the most that the processor
can start by the same model: four registers of the loop's own instruction with nothing else. Models, not measurements.
"""

import re
import subprocess
import sys

PROCESSORS = ["neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2", "ampere1", "cortex-a72"]

# Products of one instruction, and a loop of nothing but that instruction.
PRODUCTS = {"sdot": 16, "usdot": 16, "usmmla": 32, "smull": 8, "smull2": 8}
ALONE = {
    "sdot": "sdot v{0}.4s, v30.16b, v31.4b[0]",
    "usdot": "usdot v{0}.4s, v30.16b, v31.4b[0]",
    "usmmla": "usmmla v{0}.4s, v30.16b, v31.16b",
    "smull": "smull v{0}.8h, v30.8b, v31.8b",
}
NEEDS = {"usdot": "neoverse-n2 neoverse-v1 neoverse-v2 ampere1", "usmmla": "neoverse-n2 neoverse-v1 neoverse-v2 ampere1"}


def cycles(assembly: list[str], processor: str, rounds: int = 200) -> float:
    """Cycles of one round of a loop in llvm-mca's model."""
    command = ["llvm-mca-19", "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", "-mattr=+i8mm,+dotprod"]
    command += [f"-iterations={rounds}", "-resource-pressure=false", "-instruction-info=false"]
    result = subprocess.run(command, input="\n".join(assembly), capture_output=True, text=True)
    total = re.search(r"Total Cycles:\s+(\d+)", result.stdout)
    if total is None:
        sys.exit(f"llvm-mca understood nothing: {result.stderr.strip()[:300]}")
    return int(total[1]) / rounds


def functions(binary: str) -> dict[str, list[tuple[int, str]]]:
    """Address and instruction of every function of the kernels."""
    command = ["aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", binary]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    current = None
    for line in listing.splitlines():
        if head := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
            name = re.search(r"kernels::(neon\w*(?:::\w+)*)", head[2])
            current = found.setdefault(f"{name[1]}@{head[1]}", []) if name else None
        elif current is not None and (code := re.match(r"^ *([0-9a-f]+):\t(.*)$", line)):
            current.append((int(code[1], 16), code[2].split("//")[0].strip()))
    return found


def inner_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The loops of a function that contain no other loop."""
    index = {address: i for i, (address, _) in enumerate(code)}
    spans = []
    for i, (address, text) in enumerate(code):
        jump = re.match(r"^(?:b\.?\w*|cbn?z|tbn?z)\s.*?([0-9a-f]+) <", text)
        if jump and (target := int(jump[1], 16)) <= address and target in index:
            spans.append((index[target], i))
    innermost = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[text for _, text in code[first : last + 1]] for first, last in innermost]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    processors = sys.argv[2:] or PROCESSORS
    most = {}
    for mnemonic, text in ALONE.items():
        for processor in processors:
            if processor in NEEDS.get(mnemonic, processor):
                rate = cycles([text.format(i) for i in range(24)], processor)
                most[mnemonic, processor] = 24 * PRODUCTS[mnemonic] / rate
    for name, code in sorted(functions(sys.argv[1]).items()):
        for body in inner_loops(code):
            kinds = [text.split()[0] for text in body]
            products = sum(PRODUCTS.get(kind, 0) for kind in kinds)
            main_kind = next((kind for kind in ALONE if kinds.count(kind) >= 4), None)
            if main_kind is None:
                continue
            spills = sum("[sp" in text for text in body)
            print(f"{name}: {kinds.count(main_kind)} {main_kind} of {len(body)} instructions, {spills} on the stack")
            assembly = [re.sub(r"[0-9a-f]+ <.*$", ".", text) for text in body if not text.startswith("bl\t")]
            for processor in processors:
                if (main_kind, processor) in most:
                    rate = products / cycles(assembly, processor)
                    share = rate / most[main_kind, processor]
                    print(f"    {processor:12} {rate:6.1f} products per cycle, {share:4.0%} of {most[main_kind, processor]:.0f}")


if __name__ == "__main__":
    main()
