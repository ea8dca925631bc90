"""`NodeExecutor` against a real process manager; over several nodes it is in tests/cluster/test_executor.py."""

from __future__ import annotations

import builtins
import math
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, wait
from fractions import Fraction
from pathlib import Path

import pytest

from qnetpy.processes import executor as pool
from qnetpy.processes.executor import BrokenWorker, NodeExecutor, RemoteError, RemoteTraceback
from tests.qnetpy.processes.test_popen import beside

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.procmgr.process.GRACE", 0.1)


def executor(workers: int = 1, **options: object) -> NodeExecutor:
    return NodeExecutor(["n1"], workers_per_node=workers, python=[sys.executable], **options)  # type: ignore[arg-type]  # keywords


async def test_functions_run_in_other_processes_and_results_come_in_order(tmp_path: Path) -> None:
    def blocking() -> None:
        with executor(2) as there:
            assert list(there.map(math.factorial, range(20), chunksize=3)) == [math.factorial(n) for n in range(20)]
            assert list(there.map(pow, [2, 3], [5, 4])) == [32, 81]
            assert there.submit(os.getpid).result() != os.getpid()
            assert there.submit(int, "ff", base=16).result() == 255
            assert there.submit(divmod, 7, 2).result() == (3, 1)
            # What a function prints does not come between the answers.
            assert there.submit(print, "said", end="").result() is None
            assert there.submit(os.write, 1, b"x").result() == 1
        with pytest.raises(RuntimeError, match="after shutdown"):
            there.submit(pow, 2, 2)

    await beside(tmp_path, blocking)


async def test_failures_of_functions_are_told_with_their_traceback(tmp_path: Path) -> None:
    def blocking() -> None:
        with executor() as there:
            failed = there.submit(int, "x").exception()
            assert type(failed) is ValueError
            assert "invalid literal" in str(failed)
            assert isinstance(failed.__cause__, RemoteTraceback)
            assert "Traceback" in str(failed.__cause__)
            assert str(failed.__cause__).startswith("on n1\n")
            failed = there.submit(struct.unpack, "I", b"").exception()
            assert isinstance(failed, RemoteError)
            assert failed.kind == "struct.error"
            assert isinstance(there.submit(sys.exit, 3).exception(), RemoteError)
            with pytest.raises(TypeError, match="return plain values, or give NodeExecutor trust=True"):
                there.submit(Fraction, 1, 2).result()
            with pytest.raises(TypeError, match="a function must be one that can be imported by its name"):
                there.submit(lambda: 0)
            elsewhere = pickle.dumps((math.factorial, [((3,), {})])).replace(b"math", b"nath")
            with pytest.raises(ImportError, match="cannot be imported there; install it there, or give NodeExecutor image='near'"):
                there._put(elsewhere, single=True).result()

    await beside(tmp_path, blocking)


async def test_what_comes_back_runs_no_code_here_unless_that_is_wanted(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def blocking() -> None:
        # A worker that was taken over answers with a pickle that does something.
        hostile = pickle.dumps([Touch(marker)])
        script = (
            "import sys, struct; from qnetpy.processes.values import encode\n"
            "def frame(kind, data): sys.stdout.buffer.write(struct.pack('!IB', len(data), kind) + data); sys.stdout.buffer.flush()\n"
            f"frame(3, encode(None)); frame(4, {hostile!r}); sys.stdin.buffer.read()"
        )
        fake = ["env", f"PYTHONPATH={os.getcwd()}", sys.executable, "-c", script]
        with NodeExecutor(["n1"], python=fake) as there, pytest.raises(BrokenWorker, match="no plain value"):
            there.submit(pow, 2, 2).result()
        assert not marker.exists()
        with executor(trust=True) as there:
            assert there.submit(Fraction, 1, 2).result() == Fraction(1, 2)
            assert isinstance(there.submit(struct.unpack, "I", b"").exception(), struct.error)

    await beside(tmp_path, blocking)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return builtins.open, (str(self.path), "w")


async def test_a_worker_that_dies_fails_its_task_and_is_replaced(tmp_path: Path) -> None:
    def blocking() -> None:
        with executor() as there:
            with pytest.raises(BrokenWorker, match="the worker on n1 was killed by SIGKILL"):
                there.submit(signal.raise_signal, signal.SIGKILL).result()
            with pytest.raises(BrokenWorker, match="ended with status 3"):
                there.submit(os._exit, 3).result()
            assert there.submit(pow, 2, 3).result() == 8
        with executor(retries=2) as there:
            tried = there.submit(os._exit, 4)
            assert isinstance(tried.exception(), BrokenWorker)

    await beside(tmp_path, blocking)


async def test_no_worker_is_told_to_all_who_wait_or_come(tmp_path: Path) -> None:
    def blocking() -> None:
        with NodeExecutor(["n1"], python=["no-such-python"]) as there:
            with pytest.raises(BrokenExecutor, match="no worker: the worker on n1 ended with status 127"):
                there.submit(pow, 2, 3).result()
            with pytest.raises(BrokenExecutor):
                there.submit(pow, 2, 3)
        with NodeExecutor(["n2"]) as there, pytest.raises(BrokenExecutor, match="n2"):
            there.submit(pow, 2, 3).result()
        with executor(initializer=int, initargs=("x",)) as there, pytest.raises(BrokenExecutor, match="invalid literal"):
            there.submit(pow, 2, 3).result()
        with executor(initializer=os.putenv, initargs=("A", "1")) as there:
            assert there.submit(os.system, 'test "$A" = 1').result() == 0

    await beside(tmp_path, blocking)


async def test_the_queue_is_bounded_and_can_be_cancelled(tmp_path: Path) -> None:
    def blocking() -> None:
        with executor(queue_size=2) as there:
            first = there.submit(time.sleep, 0.4)
            while not first.running():
                time.sleep(0.001)
            waiting = [there.submit(pow, 2, n) for n in range(2)]
            late: list[Future[int]] = []
            thread = threading.Thread(target=lambda: late.append(there.submit(pow, 2, 5)))
            thread.start()
            assert not late
            assert waiting[0].cancel()
            thread.join(10)
            assert [waiting[1].result(), late[0].result()] == [2, 32]
            with pytest.raises(CancelledError):
                waiting[0].result()
            taken = []

            def numbers() -> Iterator[int]:
                for number in range(1000):
                    taken.append(number)
                    yield number

            results = there.map(math.factorial, numbers(), buffersize=3)
            assert next(results) == 1
            assert len(taken) <= 4
            del results
            first = there.submit(time.sleep, 0.2)
            while not first.running():
                time.sleep(0.001)
            last = there.submit(pow, 2, 2)
            there.shutdown(wait=False, cancel_futures=True)
            assert last.cancelled()
        assert wait([first]).done == {first}

    await beside(tmp_path, blocking)


def test_what_means_nothing_is_refused_at_once() -> None:
    for options in ({"workers_per_node": 0}, {"where": "cpus > 1"}):
        with pytest.raises(ValueError, match=r"at least 1|not both"):
            NodeExecutor(["n1"], **options)
    with pytest.raises(ValueError, match="no nodes"):
        NodeExecutor([])
    assert pool.RESULT_MAX < 1 << 32
