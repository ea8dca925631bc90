"""The sessions that the tutorials show, typed on two machines as they stand there: what is said must be what the page says. And the
program of howto/remote-execution.md, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
DOCS = Path(__file__).parents[2] / "docs"
MACHINES = """
users = [{ name = "alice", uid = 4001 }]
[nodes.n1]
boot = []
certificate = "none"
[nodes.n2]
boot = []
certificate = "none"
"""
PROMPT = re.compile(r"(n\d)([#$]) (.*)")
SHOWN_CODE = "k7p-3mt-9xq"
VARIES = [(re.compile(r"process \d+"), "process N"), (re.compile(r"\s+"), " ")]


@attrs.frozen
class Step:
    """A line that is typed on *node*, by root or by a user, and what the page shows below it."""

    node: str
    root: bool
    command: str
    shown: str


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if name == language]


def steps(text: str) -> list[Step]:
    """Of all blocks that begin with a prompt."""
    found: list[Step] = []
    for block in blocks(text, ""):
        for line in block.splitlines():
            typed = PROMPT.fullmatch(line)
            if typed is not None:
                found.append(Step(typed[1], typed[2] == "#", typed[3], ""))
            else:
                found[-1] = attrs.evolve(found[-1], shown=f"{found[-1].shown}{line}\n")
    return found


def settings(text: str) -> str:
    """The configuration that the page shows."""
    (block,) = blocks(text, "toml")
    return block


def same(said: str) -> str:
    for pattern, replacement in VARIES:
        said = pattern.sub(replacement, said)
    return said.strip()


class Reader:
    """Does what the page says, and remembers the code that it was given."""

    def __init__(self, cluster: kit.Cluster) -> None:
        self.cluster = cluster
        self.code = SHOWN_CODE
        self.inviting: subprocess.Popen[bytes] | None = None

    def type(self, step: Step) -> str:
        command = step.command.replace(SHOWN_CODE, self.code)
        return self.cluster.run(step.node, "sh", "-c", command, user=None if step.root else "alice").stdout.replace(self.code, SHOWN_CODE)

    def invite(self, step: Step) -> Iterator[str]:
        """The lines that an invitation shows, while it waits."""
        with self.cluster.running(step.node, "sh", "-c", step.command) as process:
            assert process.stdout is not None
            first = process.stdout.readline().decode()
            self.code = first.split()[-1]
            rest = b"".join(process.stdout.readline() for _ in range(step.shown.count("\n") - 1)).decode()
            yield (first + rest).replace(self.code, SHOWN_CODE)
            yield process.communicate(timeout=30)[0].decode()


def test_the_sessions_of_the_tutorial(start_cluster: Start) -> None:
    text = (DOCS / "tutorial" / "first-cluster.md").read_text()
    todo = steps(text)
    assert len(todo) >= 8
    cluster = start_cluster(MACHINES)
    reader = Reader(cluster)
    waiting: Iterator[str] | None = None
    for step in todo:
        if step.command == "ls /net":
            for node, other in (("n1", "n2"), ("n2", "n1")):
                cluster.run(node, "qnet", "nodes", "--wait", other)
        if step.command.startswith("echo"):
            (made,) = re.findall(r"`n2# (install [^`]*)`", text)
            # A node of the harness has no /srv of its own.
            cluster.run("n2", "sh", "-c", f"mount -t tmpfs -o mode=0755 none /srv && {made}")
            cluster.run("n2", "sh", "-c", "cat >/etc/qnet/qnet.toml", input=settings(text))
            cluster.run("n2", "sh", "-c", "qnet down && qnet up")
            cluster.run("n1", "qnet", "nodes", "--wait", "n2")
        if step.command == "qnet invite":
            waiting = reader.invite(step)
            said = next(waiting)
        else:
            said = reader.type(step)
        if step.shown or step.command == "ls /net":
            assert same(said) == same(step.shown), step.command
    assert waiting is not None
    assert "node n2 joined" in next(waiting)


def test_the_program_that_starts_another_on_another_node(start_cluster: Start) -> None:
    cluster = start_cluster("three")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    (program,) = blocks((DOCS / "howto" / "remote-execution.md").read_text(), "python")
    said = cluster.run("n1", sys.executable, "-c", f"{program}\nprint(output, ends[0].status)", user="alice").stdout
    assert said == "[b'a\\nb\\n'] 0\n"


NODES = """
users = [{ name = "alice", uid = 4001 }]
[links.lan]
%s
[nodes.n1]
[nodes.n2]
"""
PROGRAM = re.compile(r"# (\w+\.py), on (n\d)\n")


def test_the_sessions_of_the_tutorial_of_resource_managers(start_cluster: Start) -> None:
    text = (DOCS / "tutorial" / "resource-manager.md").read_text()
    todo = steps(text)
    assert len(todo) >= 15
    cluster = start_cluster(NODES % settings(text).replace("[[access", "[[config.access"))
    for block in blocks(text, "python"):
        named = PROGRAM.match(block)
        assert named is not None
        cluster.run(named[2], "sh", "-c", f"mkdir -p /tmp/here && cat >/tmp/here/{named[1]}", input=block)
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    with ExitStack() as stack:
        for step in todo:
            command = re.sub(r"\bpython3\b", sys.executable, step.command)
            user = None if step.root else "alice"
            if command.endswith(" &"):
                served = re.search(r"/dev/\S+", step.command) or re.search(r"(\w+)\.py", step.command)
                assert served is not None
                path = served[0] if served[0].startswith("/") else f"/dev/{served[1]}"
                script = f"cd /tmp/here && exec {command[:-2]}"
                stack.enter_context(cluster.running(step.node, "sh", "-c", script, user=user))
                wait = f"until qnet ls -m --json | grep -q '\"{path}\"'; do sleep 0.02; done"
                cluster.run(step.node, "sh", "-c", wait, seconds=20)
            else:
                said = cluster.run(step.node, "sh", "-c", f"cd /tmp/here\n{command}", user=user).stdout
                assert same(said) == same(step.shown), step.command
