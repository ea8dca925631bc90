"""Programs and functions on several real nodes: the pages' programs as they stand there, code that comes through /net, a node that dies."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit
from tests import howto

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
ROOT = Path(__file__).parents[2]
PAGE = "programs-from-python.md"


def python(cluster: kit.Cluster, name: str, text: str, *words: str) -> str:
    """Write a program on a and run it, as alice. Nothing of it is on the other nodes."""
    script = f"mkdir -p /tmp/py && cd /tmp/py && printf %s {shlex.quote(text)} >{name} && exec python {name} {' '.join(words)}"
    return cluster.run("a", "sh", "-c", script, user="alice").stdout


def test_the_programs_of_the_page_run(three: kit.Cluster) -> None:
    files = howto.files(PAGE)
    assert python(three, "blocking.py", files["blocking.py"], "b") == "ran on b\nb'a\\nb\\n'\nstatus 0\n"
    assert python(three, "on_trio.py", files["on_trio.py"], "b") == "there and back\nb'a\\nb\\n'\nstatus 0\n"
    squares = files["squares.py"].replace('"n2", "n3"', '"b", "c"')
    assert squares != files["squares.py"]
    assert python(three, "squares.py", squares) == f"{[n * n for n in range(10)]}\n{2**100}\n"


def test_a_function_over_all_nodes_by_code_that_is_only_here(three: kit.Cluster) -> None:
    text = (ROOT / "examples" / "over_all_nodes.py").read_text().replace("PART = 10_000", "PART = 2000")
    # a, which needs no time to begin, would do it all.
    text = text.replace("NodeExecutor(image", "NodeExecutor(where=\"name ~ '[bc]'\", image")
    told = python(three, "over_all_nodes.py", text, "60000")
    assert told.startswith("6057 primes; parts: ")
    parts = dict(part.split() for part in told.partition("parts: ")[2].strip().split(", "))
    assert sum(map(int, parts.values())) == 30
    assert set(parts) <= {"b", "c"}
    assert three.run("b", "sh", "-c", "ls /tmp/py", check=False).returncode != 0


GOES = """
import errno, sys, threading, time
from qnetpy.processes import Popen
from qnetpy.processes.executor import BrokenWorker, NodeExecutor
from resmgr.errors import ResmgrError

def slowly(number):
    time.sleep(0.1)
    return number

if __name__ == "__main__":
    process = Popen(["sleep", "4242"], node="b")
    with NodeExecutor(["b", "c"], image="near", retries=1) as patient, NodeExecutor(["b"], image="near") as plain:
        assert plain.submit(slowly, 1).result() == 1
        lost = plain.submit(time.sleep, 4242)
        results = patient.map(slowly, range(30))
        assert [next(results), next(results)] == [0, 1]
        print("ready", flush=True)
        sys.stdin.readline()
        assert list(results) == list(range(2, 30))
        assert isinstance(lost.exception(), BrokenWorker), lost.exception()
        print(lost.exception())
    try:
        print(process.wait(10))
    except ResmgrError as error:
        print(errno.errorcode[error.errno])
"""


def test_a_node_that_goes_fails_what_ran_there_and_the_others_go_on(three: kit.Cluster) -> None:
    script = f"mkdir -p /tmp/py && cd /tmp/py && printf %s {shlex.quote(GOES)} >goes.py && exec python goes.py"
    with three.running("a", "sh", "-c", script, user="alice") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        three.run("b", "qnet", "down")
        said, _ = running.communicate(b"\n", 25)
    three.run("b", "qnet", "up")
    three.run("b", "qnet", "nodes", "--wait", "a,c")
    three.run("a", "qnet", "nodes", "--wait", "b,c")
    three.run("c", "qnet", "nodes", "--wait", "a,b")
    assert said.decode().splitlines() == ["the worker on b: host is down", "EHOSTDOWN"]
