"""Many small files of another node: what programs see of attributes that were read ahead, between whole nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.meshed import seen, serving

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

TOPOLOGY = serving("n1", "n2", tables='[links.lan]\n[config.access.spawn]\nnodes = ["*"]\n')
MAKE = """
mkdir -p /tmp/t/d /tmp/t/closed
for n in $(seq 200); do echo $n > /tmp/t/d/f$n; echo $n > /tmp/t/closed/f$n; done
chmod 700 /tmp/t/closed
"""
LOOK = """
import json, os, sys, time
root = "/net/n2/tmp/t"
def sizes(names):
    return {name: os.stat(f"{root}/d/{name}").st_size for name in names}
def sizes_when(names, wanted):
    end = time.monotonic() + 1.0
    while set(sizes(names).values()) != {wanted} and time.monotonic() < end:
        time.sleep(0.01)
    return sizes(names)
begin = time.monotonic()
first = sizes(f"f{n}" for n in range(1, 101))
took = time.monotonic() - begin
print(json.dumps({"sizes": first, "took": took}), flush=True)
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except OSError as error:
        print(json.dumps(error.strerror), flush=True)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    """n1 and n2, for all tests that end neither."""
    with seen(TOPOLOGY) as running:
        yield running


def test_read_ahead_between_nodes(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("n2", "sh", "-c", MAKE)
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")

    with cluster.running("n1", "python3", "-c", LOOK) as program:

        def ask(what: str) -> object:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(what.encode() + b"\n")
            program.stdin.flush()
            return json.loads(program.stdout.readline())

        assert program.stdout is not None
        first = json.loads(program.stdout.readline())
        assert first["sizes"] == {f"f{n}": len(f"{n}\n") for n in range(1, 101)}

        # Open sees the newest at once, stat within a second.
        cluster.run("n2", "sh", "-c", "for n in $(seq 200); do echo longer $n > /tmp/t/d/f$n; done; rm /tmp/t/d/f150")
        assert ask('open(f"{root}/d/f120").read()') == "longer 120\n"
        assert ask('sizes_when(["f121", "f122", "f123"], 11)') == {f"f12{n}": 11 for n in (1, 2, 3)}
        assert ask('os.stat(f"{root}/d/f150").st_size') == "No such file or directory"
        # What this node does itself it sees at once.
        assert ask('(open(f"{root}/d/f124", "w").write("x"), sizes(["f124"]))[1]') == {"f124": 1}
        assert ask('(os.rename(f"{root}/d/f125", f"{root}/d/g"), os.path.exists(f"{root}/d/f125"), sizes(["g"]))[1:]') == [False, {"g": 11}]

        # A node that is down is down also for what was read ahead of it.
        ask('sizes(f"f{n}" for n in range(1, 20))')
        cluster.kill("n2")
        cluster.run("n1", "sh", "-c", "until qnet nodes --json | grep -q '\"down\"'; do sleep 0.05; done", seconds=10)
        assert ask('os.stat(f"{root}/d/f60").st_size') == "Host is down"


def test_other_users_are_not_shown_what_was_read_ahead_for_one(nodes: kit.Cluster) -> None:
    nodes.run("n2", "sh", "-c", MAKE)

    everyone = "cd /net/n2/tmp/t; for n in $(seq 100); do stat -c %s closed/f$n || exit 1; done >/dev/null"
    nodes.run("n1", "sh", "-c", everyone)
    found = nodes.run("n1", "stat", "/net/n2/tmp/t/closed/f180", user="nobody", check=False)

    assert found.returncode != 0
    assert "Permission denied" in found.stderr


def test_listing_net_leaves_no_made_up_attributes_behind(nodes: kit.Cluster) -> None:
    true = nodes.run("n2", "stat", "-c", "%a", "/").stdout

    found = nodes.run("n1", "sh", "-c", "ls -l /net; stat -c %a /net/n2").stdout

    assert " n2\n" in found
    assert true != "555\n", "what a listing of names of other nodes used to say"
    assert found.endswith("\n" + true)
