"""Who waits for another node is shown, to whom it may concern, and can be freed: `qnet top`, `qnet abort`, `qnet status`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qnetpy.testing.cluster import wait_for
from tests.cluster.daemons import Two
from tests.cluster.victims import PATH

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
MANAGER = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom tests.cluster.victims import manager; manager(1)"
WAIT = """
import os, sys
try: os.read(os.open(sys.stdin.readline().strip(), os.O_RDONLY), 1)
except OSError as error: print(error.errno, flush=True)
"""


def waiting(two: Two, user: str | None = None) -> list[dict[str, Any]]:
    shown = json.loads(two.cluster.run("a", "qnet", "top", "--once", "--json", user=user).stdout)
    requests: list[dict[str, Any]] = shown["requests"]
    return [one for one in requests if one["operation"] in ("open", "read") and one["path"].endswith(PATH + "/silent")]


def test_a_mount_of_a_part_that_waits_for_its_node(two: Two) -> None:
    """A hard mount that nobody has looked at yet: whom it waits for is told while the node is silent, and when it is down."""
    cluster = two.cluster

    def told() -> tuple[str, str] | None:
        shown = json.loads(cluster.run("a", "qnet", "top", "--once", "--json").stdout)["requests"]
        return next(((one["node"], one["state"]) for one in shown if one["mount"] == "/tmp/hard"), None)

    cluster.run("a", "sh", "-c", "mkdir /tmp/hard && qnet mount -o hard b:/tmp /tmp/hard")
    os.kill(two.daemons["b"].pid, signal.SIGSTOP)
    try:
        with cluster.running("a", "ls", "/tmp/hard") as program:
            seen = {told()}

            def is_down() -> bool:
                seen.add(told())
                return ("b", "down") in seen

            # Suspect before that, for two seconds: who is slow to look misses it.
            wait_for(is_down, 60.0, "down")
            assert {one[0] for one in seen if one is not None} == {"b"}
            assert cluster.run("a", "qnet", "abort", "--node", "b").stdout == "1 ended\n"
            assert b"Host is down" in program.communicate(timeout=30)[1]
    finally:
        os.kill(two.daemons["b"].pid, signal.SIGCONT)
        cluster.run("a", "qnet", "umount", "/tmp/hard")
    cluster.run("a", "qnet", "nodes", "--wait", "b")


def test_who_waits_is_shown_and_freed(two: Two) -> None:
    cluster = two.cluster
    path = f"/net/b{PATH}/silent"
    with (
        cluster.running("b", "python3", "-c", MANAGER) as manager,
        cluster.running("a", "python3", "-c", WAIT) as roots,
        cluster.running("a", "python3", "-c", WAIT, user="alice") as hers,
    ):
        assert manager.stdout is not None
        assert json.loads(manager.stdout.readline())["what"] == "ready"
        for program in roots, hers:
            assert program.stdin is not None
            program.stdin.write(path.encode() + b"\n")
            program.stdin.flush()
        wait_for(lambda: len(waiting(two)) == 2, what="two programs that wait")
        (own,) = waiting(two, user="alice")
        assert own in [one | {"seconds": own["seconds"]} for one in waiting(two)]
        assert (own["node"], own["state"], own["uid"], own["command"]) == ("b", "up", 4001, "python3")
        assert own["mount"] + own["path"] == path
        other = next(one for one in waiting(two) if one["id"] != own["id"])

        refused = cluster.run("a", "qnet", "abort", other["id"], user="alice", check=False)
        assert (refused.returncode, refused.stdout) == (1, "nothing waited\n")
        assert "no request of yours" in refused.stderr
        assert cluster.run("a", "qnet", "abort", "--pid", str(other["pid"]), user="alice", check=False).returncode == 1
        assert len(waiting(two)) == 2

        assert " for b, the oldest " in cluster.run("a", "qnet", "status").stdout
        lines = cluster.run("a", "qnet", "top", "--once").stdout.splitlines()
        assert any(line.split()[:1] == ["b"] and " up " in line for line in lines)
        assert any("alice" in line and line.endswith(path) for line in lines)

        assert cluster.run("a", "qnet", "abort", own["id"], user="alice").stdout == "1 ended\n"
        assert hers.communicate(timeout=30)[0] == b"112\n", "EHOSTDOWN"
        assert cluster.run("a", "qnet", "abort", "--pid", str(other["pid"])).stdout == "1 ended\n"
        assert roots.communicate(timeout=30)[0] == b"112\n"
    assert waiting(two) == []
    assert cluster.run("a", "qnet", "abort", "--node", "b", check=False).stdout == "nothing waited\n"
