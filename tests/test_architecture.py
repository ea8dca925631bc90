"""The rules of docs/architecture.md that a machine can check: import direction, machines without I/O, quiet imports, file sizes, no shared
mutable state.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("resmgr", "stack", "qnetpy")
"""From the bottom up: a package may import itself and those before it."""
LINES_MAX = 600
FUNCTION_MAX = 90
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in MODULES}


@cache
def tree(path: Path) -> ast.Module:
    """Parsed once for all rules, which only look at it."""
    return ast.parse(path.read_text(), str(path))


def every_module(rule: Callable[[Path], None]) -> Callable[[], None]:
    """A test of *rule* for all modules, which says what it said of each that breaks it. As a test for each it takes ten times as long."""

    def test() -> None:
        broken = []
        for path in MODULES:
            try:
                rule(path)
            except AssertionError as error:
                broken.append(f"{dotted(path)}: {error}")
        assert not broken, "\n".join(broken)

    return test


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Absolute names of everything that *path* imports, at any depth of its code."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])


@every_module
def test_imports_point_down(path: Path) -> None:
    level = PACKAGES.index(path.relative_to(ROOT).parts[0])
    forbidden = {*PACKAGES[level + 1 :], "tests", "clusters"}
    wrong = [f"{path}:{line} imports {name}" for line, name in imported(path) if name.split(".")[0] in forbidden]
    assert not wrong


def imported_modules(path: Path, running: bool = False) -> Iterator[tuple[int, str]]:
    """Our modules that *path* imports; *running*: only those that importing it imports."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        )
        if not (running and later):
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in NAMES or node.module in NAMES:
                    yield node.lineno, whole if whole in NAMES else node.module


ARROWS = {
    "resmgr": {"resmgr.iofunc", "resmgr.transport"},
    "resmgr.iofunc": {"resmgr"},
    "resmgr.transport": {"resmgr"},
    "resmgr.names": {"resmgr", "resmgr.iofunc", "resmgr.nodes"},
    "resmgr.nodes": {"resmgr"},
    "resmgr.typed": {"resmgr"},
    "resmgr.hostfs": {"resmgr", "resmgr.iofunc"},
    "resmgr.procmgr": {"resmgr"},
    "resmgr.fuse": {"resmgr", "resmgr.iofunc"},
    "stack": {"resmgr", "stack.wire"},
    "stack.linux": {"resmgr", "stack", "stack.wire", "stack.filter.bpf"},
    "stack.wire": {"resmgr", "stack"},
    "stack.crypto": {"resmgr", "stack.crypto.providers"},
    "stack.crypto.providers": {"resmgr", "stack.crypto", "stack.crypto.pure"},
    "stack.crypto.pure": {"resmgr"},
    "stack.cryptodev": {"resmgr"},
    "stack.filter.bpf": {"resmgr", "stack"},
    "stack.core": {"resmgr", "resmgr.fuse", "stack", "stack.wire", "stack.linux", "stack.crypto", "stack.filter.bpf"},
    "stack.inet": {"resmgr", "stack", "stack.wire", "stack.core"},
    "stack.managers": {"resmgr", "resmgr.iofunc", "stack", "stack.wire", "stack.core", "stack.crypto", "stack.cryptodev"},
    "stack.ebpf": {"resmgr"},
    "stack.l2.forward": {
        "resmgr",
        "stack",
        "stack.wire",
        "stack.core",
        "stack.l2",
        "stack.ebpf",
        "stack.filter.bpf",
        "stack.linux",
    },
    "stack.drivers": {
        *("resmgr", "stack", "stack.wire", "stack.core", "stack.linux", "stack.filter.bpf", "stack.l2"),
        *("stack.drivers.af_packet", "stack.drivers.af_xdp", "stack.drivers.pcap_file", "stack.drivers.tun_device"),
        *("stack.drivers.udp_socket", "stack.drivers.vxlan_tunnel"),
    },
    "stack.drivers.af_xdp": {"resmgr", "stack", "stack.wire", "stack.core", "stack.linux", "stack.ebpf"},
    "stack.drivers.tun_device": {"resmgr", "stack", "stack.wire", "stack.core", "stack.filter.bpf"},
    "stack.drivers.pcap_file": {"resmgr", "stack", "stack.wire", "stack.core"},
    "stack.drivers.af_packet": {"resmgr", "stack", "stack.wire", "stack.core", "stack.linux", "stack.filter.bpf"},
    "stack.drivers.udp_socket": {"resmgr", "stack", "stack.wire", "stack.core", "stack.linux", "stack.filter.bpf"},
    "stack.drivers.vxlan_tunnel": {"resmgr", "stack", "stack.wire", "stack.core", "stack.linux", "stack.drivers.udp_socket"},
    "stack.l2.stp": {"resmgr", "stack.wire", "stack.core"},
    "stack.l2.lacp": {"resmgr", "stack.wire", "stack.core"},
    "stack.l2": {"resmgr", "stack", "stack.wire", "stack.core", "stack.l2.stp", "stack.l2.lacp", "stack.l2.forward"},
    "stack.drivers.wrap": {"resmgr", "stack", "stack.wire", "stack.core", "stack.drivers.pcap_file"},
    "qnetpy": {
        "resmgr",
        "resmgr.fuse",  # its table of options
        "resmgr.iofunc",
        "resmgr.names",
        "resmgr.procmgr",
        "stack",
        "stack.wire",
        "stack.linux",
        "stack.crypto",
        "qnetpy.link.transport",
    },
    "qnetpy.identity": {"resmgr"},
    "qnetpy.discovery": {"resmgr", "stack", "stack.core", "stack.wire", "stack.linux", "stack.filter.bpf", "qnetpy.link"},
    "qnetpy.reach": {"resmgr", "stack.wire", "stack.core", "qnetpy", "qnetpy.discovery", "qnetpy.identity"},
    "qnetpy.link": {"resmgr", "stack", "stack.crypto", "stack.filter.bpf", "qnetpy.identity", "qnetpy.link.noise", "qnetpy.link.transport"},
    "qnetpy.link.noise": {"resmgr"},
    "qnetpy.link.transport": {"resmgr", "qnetpy.link.congestion"},
    "qnetpy.link.congestion": set[str](),
    "qnetpy.enrol": {"resmgr", "stack.wire", "qnetpy.identity", "qnetpy.discovery"},
    "qnetpy.members": {"resmgr", "qnetpy", "qnetpy.identity", "qnetpy.enrol"},
    "qnetpy.netfs": {"resmgr", "resmgr.iofunc", "resmgr.fuse", "resmgr.nodes", "qnetpy"},
    "qnetpy.cluster": {"resmgr", "stack.wire", "stack.linux", "stack.drivers.af_packet", "qnetpy", "qnetpy.identity"},
    "qnetpy.processes": {"resmgr", "resmgr.procmgr", "qnetpy.cli"},
    "qnetpy.cli": {
        "stack",
        "stack.crypto",
        "stack.wire",
        "stack.managers",
        "resmgr",
        "resmgr.names",
        "resmgr.nodes",
        "resmgr.procmgr",
        "resmgr.typed",
        "qnetpy",
        "qnetpy.netfs",
        "qnetpy.identity",
        "qnetpy.cluster",
        "qnetpy.enrol",
        "qnetpy.members",
        "qnetpy.discovery",
    },
}
"""What the files of a folder may import besides each other. A new arrow is a decision: it is entered here."""
COMPOSE = {
    *("resmgr/system.py", "qnetpy/qnet.py", "qnetpy/linkscreen.py", "qnetpy/lsm.py", "qnetpy/facts.py", "qnetpy/embed.py"),
    *("qnetpy/prepared.py", "qnetpy/stuck.py"),
    *("qnetpy/parameters.py", "stack/core/manager.py", "stack/core/main.py"),
}
"""Files that put a node together, or show all of it."""


def folder(module: str) -> str:
    return module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]


@every_module
def test_folders_import_what_they_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name in COMPOSE or "testing" in path.with_suffix("").parts:
        return
    own = ".".join(path.relative_to(ROOT).parent.parts)
    allowed = {own} | ARROWS.get(own, set())
    wrong = [f"{name}:{line} imports {what}" for line, what in imported_modules(path) if folder(what) not in allowed]
    assert not wrong


def test_imports_have_no_cycles() -> None:
    """Those for annotations only, and those inside functions, may point back."""
    waits = {dotted(path): {name for _, name in imported_modules(path, running=True)} for path in MODULES}
    while ready := [name for name, needs in waits.items() if not needs & waits.keys()]:
        for name in ready:
            del waits[name]
    assert not waits, "modules in or above a cycle"


IO = {
    "trio",
    "asyncio",
    "socket",
    "select",
    "selectors",
    "time",
    "random",
    "secrets",
    "threading",
    "subprocess",
    "multiprocessing",
    "fcntl",
}
IMPURE = {
    "stack.core.main",  # the program
    "stack.core.runlock",  # the lock of the program
    "stack.core.underway",  # hands over what threads made
    "stack.core.manager",  # dispatch and stack put together
    "stack.core.sources",  # looks at the files of what was imported
    "resmgr.fuse.mount",  # makes mounts
    "resmgr.fuse.caller",  # signals the program that waits
    "resmgr.fuse.copies",  # watches mounts
    "resmgr.fuse.session",  # reads and writes /dev/fuse
    "resmgr.fuse.sitting",  # reads /proc
    "resmgr.fuse.waits",  # writes to /dev/fuse
    "resmgr.fuse.notifying",  # starts a process
    "resmgr.fuse.notifier",  # is that process
    "stack.crypto.providers.threads",  # has threads
    "stack.crypto.providers.afalg",  # has sockets
    "stack.crypto.parts",  # lets other threads run
}
"""Files among PURE that are the edge: what reads, writes or mounts."""
PURE = (
    *(
        "qnetpy.link",
        "qnetpy.nodes",
        "qnetpy.discovery.hint",
        "qnetpy.discovery.table",
        "qnetpy.discovery.solicitor",
        "qnetpy.discovery.standing",
        "qnetpy.discovery.static",
        "qnetpy.discovery.brake",
    ),
    "qnetpy.netfs.manager",
    *(
        "qnetpy.enrol.code",
        "qnetpy.enrol.wire",
        "qnetpy.enrol.pake",
        "qnetpy.enrol.possession",
        "qnetpy.enrol.invitation",
        "qnetpy.enrol.inviter",
        "qnetpy.enrol.joiner",
    ),
    *("qnetpy.identity.trust", "qnetpy.members.membership", "qnetpy.members.keyring", "qnetpy.members.office", "qnetpy.members.lifetime"),
    *("qnetpy.members.wire", "qnetpy.members.register"),
    *("qnetpy.reach.gossip", "qnetpy.reach.wanted"),
    *("stack.wire", "stack.frame", "stack.core", "stack.crypto", "stack.l2.stp", "stack.l2.lacp"),
    *("stack.managers.crypto", "stack.managers.cryptorequest", "stack.managers.accounts", "stack.cryptodev.protocol"),
    *(
        "resmgr.bucket",
        "resmgr.channel",
        "resmgr.carrier",
        "resmgr.message",
        "resmgr.peer",
        "resmgr.sending",
        "resmgr.serving",
        "resmgr.turns",
    ),
    *(
        "resmgr.iomsg",
        "resmgr.iorequest",
        "resmgr.handlelist",
        "resmgr.lockrequest",
        "resmgr.iofunc",
        "resmgr.pathspace",
        "resmgr.pathmgr",
        "resmgr.access",
    ),
    *("resmgr.mergeddir", "resmgr.fuse"),
    *("resmgr.names.manager", "resmgr.names.protocol", "resmgr.procmgr.message", "resmgr.transport.datagram"),
    *("resmgr.names.replica", "resmgr.names.replicawire", "resmgr.names.choice", "resmgr.names.globalnames"),
    *("resmgr.subscription", "resmgr.watches", "resmgr.nodes.protocol", "resmgr.nodes.board"),
)
"""Machines and formats: time and randomness are arguments, and what goes in and out is bytes."""


def acts(module: ast.Module) -> Iterator[str]:
    """Imports of what does I/O, and uses of `os` other than constants and conversions."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names=aliases):
                yield from (f"line {node.lineno}: {alias.name}" for alias in aliases if alias.name.split(".")[0] in IO)
            case ast.ImportFrom(module="os", names=aliases):
                yield from (f"line {node.lineno}: os.{alias.name}" for alias in aliases if not harmless(alias.name))
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] in IO:
                yield f"line {node.lineno}: {name}"
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if not harmless(name):
                yield f"line {node.lineno}: os.{name}"


def harmless(name: str) -> bool:
    return name.isupper() or name in ("fsencode", "fsdecode", "strerror", "stat_result")


@every_module
def test_machines_do_no_io(path: Path) -> None:
    name = dotted(path)
    if name not in IMPURE and "testing" not in name.split(".") and any(name == pure or name.startswith(f"{pure}.") for pure in PURE):
        assert not list(acts(tree(path)))


def test_the_check_for_io_sees_io() -> None:
    code = (
        "import os, time\nfrom random import random\nwhen = time.time()\ndef f():\n    import socket\n    return os.getpid(), os.O_RDWR\n"
    )
    assert len(list(acts(ast.parse(code)))) == 4


@every_module
def test_product_does_not_import_a_test_kit(path: Path) -> None:
    if "testing" in path.parts:
        return
    wrong = [
        f"{path}:{line} imports {name}" for line, name in imported(path) if "testing" in name.split(".") and name.split(".")[0] in PACKAGES
    ]
    assert not wrong


@every_module
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@every_module
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [one.name for one in functions if (one.end_lineno or 0) - one.lineno >= FUNCTION_MAX]


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter", "WeakValueDictionary"}
MUTATORS = {
    "append",
    "add",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
    "extend",
    "insert",
    "remove",
    "discard",
    "appendleft",
    "popleft",
}


def shared_state(module: ast.Module) -> Iterator[str]:
    """Module-level containers that the module's functions change, and `global` statements."""
    held: set[str] = set()
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        call = value.func if isinstance(value, ast.Call) else None
        name = call.id if isinstance(call, ast.Name) else call.attr if isinstance(call, ast.Attribute) else ""
        if isinstance(value, MUTABLE) or name in MUTABLE_CALLS:
            held.update(target.id for target in targets if isinstance(target, ast.Name))
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for inner in (inner for function in functions for inner in ast.walk(function)):
        match inner:
            case ast.Global(names=names):
                yield f"line {inner.lineno}: global {', '.join(names)}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in held and method in MUTATORS:
                yield f"line {inner.lineno}: {name}.{method}()"
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()) if name in held:
                yield f"line {inner.lineno}: {name}[...] is changed"


@every_module
def test_no_module_keeps_state(path: Path) -> None:
    assert not list(shared_state(tree(path)))


def test_the_check_for_state_sees_state() -> None:
    code = "seen = {}\ncount = 0\ndef f(x):\n    global count\n    count = 1\n    seen[x] = 1\n    seen.update(a=1)\n"
    assert len(list(shared_state(ast.parse(code)))) == 3


WATCH = """
import sys
events = []
WRITES = 0o1 | 0o2 | 0o100
def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.system", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename")):
        if event != "socket.gethostname":
            events.append(f"{event} {args}")
    elif event == "open" and isinstance(args[2], int) and args[2] & WRITES:
        events.append(f"open for writing {args[0]}")
import threading
sys.dont_write_bytecode = True
# What third parties do when they are imported is theirs: import them before watching.
import attrs, cattrs, trio, zeroconf, cryptography.x509, asyncio, ctypes.util, multiprocessing, ssl, concurrent.futures, subprocess, socket
sys.addaudithook(watch)
import importlib
for name in sys.argv[1:]:
    # Each alone, as far as ours go: forget the others first.
    for other in [m for m in sys.modules if m.split(".")[0] in ("qnetpy", "stack", "resmgr")]:
        del sys.modules[other]
    del events[:]
    before = threading.active_count()
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"{name}: cannot be imported alone: {error!r}")
    if threading.active_count() != before:
        print(f"{name}: starts a thread")
    for event in events:
        print(f"{name}: {event}")
"""


@pytest.mark.host
def test_every_module_can_be_imported_alone_and_does_nothing() -> None:
    names = [dotted(path) for path in MODULES if path.name != "__main__.py"]
    result = subprocess.run([sys.executable, "-c", WATCH, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def seconds(code: str) -> float:
    """Processor seconds of the quickest of five fresh interpreters that run *code*, without those of an empty one."""
    measure = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"
    runs = [
        subprocess.run([sys.executable, "-c", measure.format(code)], cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(5)
    ]
    return min(float(run.stdout) for run in runs)


@pytest.mark.host
def test_importing_is_quick() -> None:
    """Relative to what every user of the libraries pays, so that a slow machine does not fail it."""
    libraries = seconds("import attrs, cattrs, trio, cryptography.x509")
    assert seconds("import qnetpy, stack, resmgr") < libraries / 20


@pytest.mark.host
def test_the_command_line_loads_no_library_it_does_not_need() -> None:
    """`qnet on` must start quickly: its process is started for each remote command."""
    heavy = ("trio", "stack", "cryptography", "zeroconf", "asyncio", "cattrs", "attr")
    code = f"import sys, qnetpy.cli.main; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
