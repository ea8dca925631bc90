"""The program that a `NodeExecutor` starts on a node: calls functions that come in on standard input, and says on standard output what came
out.

Its text is sent to a bare Python there (`BOOTSTRAP`), with that of `qnetpy.processes.values`, whose `encode` it finds in its globals; so
nothing of ours has to be installed, and this file imports only the standard library.

Frames, both ways: length u32, kind u8, that many bytes. In: one SETTINGS, then any number of TASKs, pickled by who started this program and
could have started any other. Out: READY, then for each TASK a RESULT or an ERROR: plain values, or pickles if SETTINGS says that these are
believed. What functions print goes to standard error. The end of input ends the program.
"""

from __future__ import annotations

import io
import os
import pickle
import runpy
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from qnetpy.processes.values import encode

SETTINGS, TASK, READY, RESULT, ERROR = range(1, 6)
FRAME = struct.Struct("!IB")
BOOTSTRAP = (
    "import os; r = os.fdopen(os.dup(0), 'rb'); g = {'__name__': 'qnet_worker'}; "
    "[exec(compile(r.read(int(r.readline())), 'qnet-worker', 'exec'), g) for _ in range(2)]; g['serve'](r)"
)

Task = tuple[Callable[..., object], list[tuple[tuple[object, ...], dict[str, object]]]]
"""A function and the arguments of each of its calls."""


class _Unpickler(pickle.Unpickler):
    """Runs the caller's main program, as something that is not main, when something of it is wanted."""

    def __init__(self, data: bytes, main: tuple[str, str]) -> None:
        super().__init__(io.BytesIO(data))
        self._main = main

    def find_class(self, module: str, name: str) -> object:
        if module == "__main__":
            _load_main(*self._main)
        return super().find_class(module, name)


def _load_main(name: str, file: str) -> None:
    """As `multiprocessing` does it when it spawns, under the same name."""
    if "__mp_main__" in sys.modules:
        return
    main = types.ModuleType("__mp_main__")
    if name:
        found = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
    else:
        found = runpy.run_path(file, run_name="__mp_main__")
    main.__dict__.update(found)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def serve(source: BinaryIO) -> None:
    """Until the end of input."""
    # Frames have descriptors of their own: whatever uses standard input and output does not come between them.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    kind, data = _read(source)
    settings = pickle.loads(data)
    sys.path[:0] = [entry for entry in settings["path"] if entry not in sys.path]
    if settings["near"]:
        sys.dont_write_bytecode = True
    main, trust = settings["main"], settings["trust"]
    try:
        if settings["initializer"] is not None:
            function, calls = _Unpickler(settings["initializer"], main).load()
            for args, kwargs in calls:
                function(*args, **kwargs)
        _write(target, READY, encode((sys.version_info[:3], os.getpid())))
    except Exception as error:
        _write(target, ERROR, _told(error, trust))
    while True:
        kind, data = _read(source)
        if kind != TASK:
            return
        _write(target, *_run(data, main, trust))


def _run(data: bytes, main: tuple[str, str], trust: bool) -> tuple[int, bytes]:
    try:
        try:
            function, calls = _Unpickler(data, main).load()
        except (ImportError, AttributeError, FileNotFoundError) as error:
            raise ImportError(
                f"{error} on {os.uname().nodename}: the function or what it is given cannot be imported there; "
                "install it there, or give NodeExecutor image='near'"
            ) from error
        results = [function(*args, **kwargs) for args, kwargs in calls]
        if trust:
            return RESULT, pickle.dumps(results, 5)
        try:
            return RESULT, encode(results)
        except ValueError as error:
            raise TypeError(f"the result cannot come back: {error}; return plain values, or give NodeExecutor trust=True") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return ERROR, _told(error, trust)


def _told(error: BaseException, trust: bool) -> bytes:
    """class, arguments if they are plain, text, traceback; and the exception itself, pickled, if that is believed."""
    text = "".join(traceback.format_exception(error))
    try:
        encode(error.args)
        args: tuple[object, ...] | None = error.args
    except ValueError:
        args = None
    whole = b""
    if trust:
        try:
            whole = pickle.dumps(error, 5)
            pickle.loads(whole)
        except Exception:
            whole = b""
    kind = type(error)
    return encode((kind.__module__, kind.__qualname__, args, str(error), text, whole))


def _read(source: BinaryIO) -> tuple[int, bytes]:
    head = source.read(FRAME.size)
    if len(head) < FRAME.size:
        return 0, b""
    length, kind = FRAME.unpack(head)
    data = source.read(length)
    return (kind, data) if len(data) == length else (0, b"")


def _write(target: BinaryIO, kind: int, data: bytes) -> None:
    target.write(FRAME.pack(len(data), kind))
    target.write(data)
    target.flush()
