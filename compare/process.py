"""A process's memory, processor time, and energy where the machine meters it, as the system reports them."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Resident bytes: private (`anonymous`), of mapped files, and the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}


def cpu_seconds(pid):
    """Processor time of all its threads, in the program and in the kernel."""
    # The name may contain spaces and parentheses; the fields are counted from its end.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds():
    """Processor time used on all processors by all processes, including other virtual machines on the same host."""
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft_interrupts + stolen) / TICKS


def joules():
    """Energy used by the processor packages since some point, or None if RAPL cannot be read."""
    try:
        counters = [zone / "energy_uj" for zone in Path("/sys/class/powercap").glob("intel-rapl:?")]
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except PermissionError:
        return None
