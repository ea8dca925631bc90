"""What a node says of itself to who looks for a place to run something: the answer to FACTS. `read` is blocking, for a worker thread."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

FACTS = struct.Struct("!IIIQQQHHH")
"""processors that programs may use, processes, load in thousandths, memory, free memory, seconds since the start, lengths of system,
release and machine."""
FACTS_MAX = 4096


class NodeFacts(NamedTuple):
    """Memory in bytes; `free` is what programs can still have without swapping; `load` the average of the last minute."""

    cpus: int
    processes: int
    load: float
    memory: int
    free: int
    uptime: int
    os: str
    release: str
    arch: str


def read(proc: str = "/proc") -> NodeFacts:
    """Of this machine. The load is at least the number of programs that want to run at this moment: what was just started counts."""
    with open(f"{proc}/loadavg", encoding="ascii") as file:
        average, _, _, counts, *_ = file.read().split()
    with open(f"{proc}/meminfo", encoding="ascii") as file:
        memory = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in file if line.endswith(" kB\n")}
    with open(f"{proc}/uptime", encoding="ascii") as file:
        uptime = int(float(file.read().split()[0]))
    # Whoever reads this runs, too.
    running = int(counts.partition("/")[0]) - 1
    processes = sum(name.isdecimal() for name in os.listdir(proc))
    system = os.uname()
    return NodeFacts(
        len(os.sched_getaffinity(0)),
        processes,
        max(float(average), float(running)),
        memory["MemTotal"],
        memory["MemAvailable"],
        uptime,
        system.sysname.lower(),
        system.release,
        system.machine,
    )


def pack(facts: NodeFacts) -> bytes:
    texts = [text.encode(errors="replace") for text in (facts.os, facts.release, facts.arch)]
    numbers = facts.cpus, facts.processes, round(facts.load * 1000), facts.memory, facts.free, facts.uptime
    return FACTS.pack(*numbers, *map(len, texts)) + b"".join(texts)


def parse(view: Buffer) -> NodeFacts:
    """BadMessage for what is none, or holds what a terminal would obey."""
    try:
        cpus, processes, load, memory, free, uptime, *lengths = FACTS.unpack_from(view)
    except struct.error:
        raise BadMessage("facts cut short") from None
    data = bytes(view[FACTS.size :])
    if sum(lengths) != len(data) or len(view) > FACTS_MAX or not cpus:
        raise BadMessage("facts have another length than they say, or no processor")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise BadMessage("facts are no text") from None
    if not text.isprintable():
        raise BadMessage("facts are no text")
    first, second = lengths[0], lengths[0] + lengths[1]
    return NodeFacts(cpus, processes, load / 1000, memory, free, uptime, text[:first], text[first:second], text[second:])
