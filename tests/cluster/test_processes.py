"""Processes across real nodes: lists, signals, programs on one node, on some, on all."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
DOWN_AFTER = 3.0
"""Seconds of silence after which a node is down."""
KILL_AFTER = 2.0
"""Seconds from the SIGHUP of a program whose client has gone to its SIGKILL."""


def test_processes_of_one_of_several_and_of_all_nodes(three: kit.Cluster) -> None:
    pid = three.run("a", "qnet", "on", "-d", "b", "--", "sleep", "4242", user="alice").stdout.strip()
    row = json.loads(three.run("a", "qnet", "pidin", "-n", "b", "--json", pid).stdout)
    assert [(one["node"], one["user"], one["arguments"]) for one in row] == [("b", "alice", ["sleep", "4242"])]
    listed = three.run("a", "qnet", "pidin", "-n", "a,b", "sleep", user="alice").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["NODE", "PID"], ["b", pid]]
    told = three.run("a", "qnet", "pidin", "--all", "--json", "sleep")
    assert json.loads(told.stdout) == row
    assert told.stderr == ""

    refused = three.run("c", "qnet", "pidin", "--all", "sleep", check=False)
    assert refused.returncode == 1
    assert "a does not let you see or end its processes; try: [access.spawn] in a's configuration" in refused.stderr

    # Root of one node is nobody on another: it may see, and end nothing that is not nobody's.
    refused = three.run("a", "qnet", "slay", "-n", "b", "sleep", check=False)
    assert (refused.returncode, refused.stderr) == (1, f"qnet slay: b: {pid} sleep (alice): not yours\n")
    assert three.run("a", "qnet", "slay", "--all", "sleep", user="alice").stdout == f"b: {pid} sleep (alice): SIGTERM\n"
    assert three.run("a", "qnet", "pidin", "-n", "b", "sleep", check=False).returncode == 1


def test_nodes_are_chosen_by_what_they_say_of_themselves(three: kit.Cluster) -> None:
    nodes = json.loads(three.run("a", "qnet", "sin", "net", "--json", check=False).stdout)
    assert [(one["node"], one["roles"]) for one in nodes] == [("a", []), ("b", ["build"]), ("c", [])]
    assert [one["node"] for one in json.loads(three.run("a", "qnet", "sin", "info", "--json", "--where", "roles=build").stdout)] == ["b"]
    assert "no node that is up fits" in three.run("a", "qnet", "pidin", "--where", "cpus >= 4000", check=False).stderr


def test_figures_of_another_node(three: kit.Cluster) -> None:
    lines = dict(line.split(" ", 1) for line in three.run("a", "cat", "/net/b/proc/qnetstats").stdout.splitlines())
    assert (lines["node"], lines["nd_up"], lines["nd_down"], lines["node.a"]) == ("b", "2", "0", "up")
    assert int(lines["rx_pkts"]) > 0
    assert int(lines["spawn_refused.not_granted"]) >= 0
    assert json.loads(three.run("a", "cat", "/net/b/proc/qnetstats.json").stdout)["node"] == "b"


def test_a_program_runs_there_with_the_files_of_here(three: kit.Cluster) -> None:
    three.run(
        "a", "sh", "-c", "mkdir -p /tmp/here && echo of-a >/tmp/here/file && printf '#!/bin/sh\\ncat file; hostname\\n' >/tmp/here/tool"
    )
    three.run("a", "chmod", "-R", "a+rX,a+x", "/tmp/here")

    # Root of a is nobody on b, and nobody on a again.
    script = "cd /tmp/here && qnet on -n b -- ./tool"
    assert three.run("a", "sh", "-c", script).stdout == "of-a\nb\n"
    told = three.run(
        "a", "qnet", "on", "-n", "b", "--cwd", "/tmp/here", "-e", "HOME=/nowhere", "--", "sh", "-c", "pwd; echo $HOME; cat /etc/hostname"
    )
    assert told.stdout == "/tmp/here\n/nowhere\na\n"
    # The other's own files are not there, its devices and processes are.
    assert three.run(
        "a", "qnet", "on", "-n", "b", "--", "sh", "-c", "echo x >/dev/null && test -d /proc/self && ls /net"
    ).stdout.split() == [
        "a",
        "b",
        "c",
    ]
    assert three.run("a", "qnet", "on", "-n", "b", "--", "no-such", check=False).returncode == 127
    assert three.run("a", "qnet", "on", "b", "--", "cat", "/tmp/here/file", check=False).returncode == 1
    assert "qnet /tmp" not in three.run("b", "cat", "/proc/mounts").stdout


def test_a_program_on_every_node_says_who_says_what(three: kit.Cluster) -> None:
    told = three.run("a", "qnet", "on", "--all", "--", "sh", "-c", "hostname; printf no-newline; test $(hostname) = a", check=False)
    assert sorted(told.stdout.splitlines()) == ["a: a", "a: no-newline", "b: b", "b: no-newline", "c: c", "c: no-newline"]
    assert (told.returncode, sorted(told.stderr.splitlines())) == (1, ["qnet on: b: exit status 1", "qnet on: c: exit status 1"])
    told = three.run("c", "qnet", "on", "--all", "hostname", check=False)
    assert (told.returncode, told.stdout) == (255, "c: c\n")
    assert "qnet on: a does not let you start programs; try: [access.spawn] in a's configuration; its log says why\n" in told.stderr
    told = three.run("a", "qnet", "on", "--all", "--where", "name ~ '[ab]'", "hostname")
    assert (sorted(told.stdout.splitlines()), told.stderr) == (["a: a", "b: b"], "")
    assert three.run("a", "qnet", "on", "--where", "roles=build", "--", "hostname").stdout == "b\n"
    assert three.run("a", "qnet", "on", "--least-loaded", "hostname").stdout in ("a\n", "b\n", "c\n")
    assert three.run("a", "qnet", "on", "--where", "roles=none", "hostname", check=False).returncode == 255


def test_what_is_read_here_goes_to_every_node(three: kit.Cluster) -> None:
    script = "head -c 3000000 /dev/urandom | tee /tmp/sent | qnet on a,b -- cksum; cksum </tmp/sent"
    *told, sent = three.run("a", "sh", "-c", script).stdout.splitlines()
    assert sorted(told) == [f"a: {sent}", f"b: {sent}"]
    # One that reads little holds up nobody.
    counted = three.run(
        "a", "sh", "-c", "seq 100000 | qnet on --where 'name ~ \"[ab]\"' --all -- sh -c 'test $(hostname) = a || wc -l'"
    ).stdout
    assert counted == "b: 100000\n"


def test_pipes_are_carried_by_the_daemons(three: kit.Cluster) -> None:
    def carried() -> int:
        lines = dict(line.split(" ", 1) for line in three.run("b", "cat", "/net/a/proc/qnetstats").stdout.splitlines())
        return int(lines["streams_carried"])

    before = carried()
    sums = three.run("a", "sh", "-c", "head -c 3000000 /dev/urandom | tee /tmp/sent | qnet on b -- cat | cksum; cksum </tmp/sent")
    assert len(set(sums.stdout.splitlines())) == 1
    assert carried() >= before + 2
    # Half-close, and an end on either side.
    assert three.run("a", "sh", "-c", "printf 'b\\na\\n' | qnet on b -- sh -c 'sort; echo more' | cat").stdout == "a\nb\nmore\n"
    assert three.run("a", "sh", "-c", "(qnet on b -- yes; echo $? >&2) | head -n1", seconds=20).stderr == "141\n"
    assert three.run("a", "sh", "-c", "(yes; echo $? >&2) | qnet on b -- head -n1 | cat", seconds=20).stderr == "141\n"


def test_what_is_mine_goes_along(three: kit.Cluster) -> None:
    there = "umask; ulimit -S -c; ulimit -S -n; cut -d' ' -f19 /proc/self/stat"
    script = f'umask 027; ulimit -S -c 0; ulimit -S -n 99; qnet on -p 5 b -- sh -c "{there}"'
    assert three.run("a", "sh", "-c", script).stdout.split() == ["0027", "0", "99", "5"]
    told = three.run("a", "qnet", "on", "-p", "-5", "b", "--", "true", check=False)
    assert (told.returncode, told.stderr.startswith("qnet on: b does not let you start programs")) == (255, True)


def test_the_audit_log_of_a_node_tells_who_did_what(three: kit.Cluster) -> None:
    three.run("a", "qnet", "on", "b", "--", "sh", "-c", "exit 7", user="alice", check=False)
    lines = [json.loads(line) for line in three.run("b", "cat", "/run/qnet/audit").stdout.splitlines()]
    allowed = [line for line in lines if line["event"] == "allowed"][-1]
    assert (allowed["node"], allowed["claimed_uid"], allowed["uid"], allowed["command"]) == ("a", 4001, 4001, ["sh", "-c", "exit 7"])
    assert allowed["fingerprint"].count(":") == 31
    (ended,) = (line for line in lines if line["event"] == "ended" and line["id"] == allowed["id"])
    assert ended["status"] == 7


RUN = """
from resmgr.client import Client
from resmgr.procmgr.client import node_descriptor, run
from resmgr.procmgr.message import Spawn
with Client("/run/qnet/socket") as client:
    nd = node_descriptor(client, "b")
    print(run(client, nd, Spawn((b"hostname",))))
    print(run(client, nd, Spawn((b"sh", b"-c", b"wc -c; sleep 0.1; echo e >&2; kill -9 $$")), bytes(300000)))
"""


def test_short_programs_and_long_ones(three: kit.Cluster) -> None:
    for script, said, errors, status in (
        ("qnet on b hostname", "b\n", "", 0),
        ("qnet on a hostname", "a\n", "", 0),
        ("qnet on -f b -- sh -c 'echo out; echo err >&2; exit 9' </dev/null", "out\n", "err\n", 9),
        ("qnet on b -- sh -c 'kill -9 $$'", "", "", 137),
        ("(echo x; sleep 0.1; echo y) | qnet on b -- sh -c 'read a; echo $a; sleep 0.1; cat; exit 3'", "x\ny\n", "", 3),
        ("qnet on b -- head -c 300000 /dev/zero | wc -c", "300000\n", "", 0),
        ("qnet on b -- sh -c '(sleep 0.1; echo later) & echo now; exit 4'", "now\nlater\n", "", 4),
        ("qnet on nobody true", "", "qnet on: no node nobody is up; try: qnet ls\n", 255),
    ):
        told = three.run("a", "sh", "-c", script, check=False)
        assert (told.stdout, told.stderr, told.returncode) == (said, errors, status), script
    told = three.run("c", "qnet", "on", "a", "true", check=False)
    assert (told.returncode, told.stderr.startswith("qnet on: a does not let you start programs; try: ")) == (255, True)
    assert three.run("a", sys.executable, "-c", RUN).stdout.splitlines() == [
        "Finished(ended=Ended(status=0, signal=None, core=False, stopped=False), output=b'b\\n', errors=b'')",
        "Finished(ended=Ended(status=None, signal=9, core=False, stopped=False), output=b'300000\\n', errors=b'e\\n')",
    ]


def test_a_program_with_the_files_of_here_ends_with_the_link(three: kit.Cluster) -> None:
    """Its whole group gets SIGHUP when the node is down, before anybody would be killed, and its mount namespace is gone with it."""
    script = "trap 'kill $!; exit 5' HUP; sleep 4343 & wait"
    with three.running("a", "qnet", "on", "-n", "b", "--", "sh", "-c", script, user="alice") as command:
        wait_for(lambda: len(having(three, "4343")) == 3, what="qnet on, sh and sleep")
        spaces = {pid: os.readlink(f"/proc/{pid}/ns/mnt") for pid in having(three, "4343")}
        own = {space for space in spaces.values() if list(spaces.values()).count(space) == 2}
        assert len(own) == 1, "sh and sleep have one of their own"
        there = {pid for pid, space in spaces.items() if space in own}
        three.link_down("b")
        try:
            took = wait_for(lambda: not there & set(three.processes()))
            assert command.wait(10) == 255
            assert took < DOWN_AFTER + KILL_AFTER
            assert command.stderr is not None
            assert b"b" in command.stderr.read()
        finally:
            three.link_up("b")
            three.run("b", "qnet", "nodes", "--wait", "a,c")
            three.run("a", "qnet", "nodes", "--wait", "b")
    assert not own & {space for pid in os.listdir("/proc") if (space := mount_space(pid))}
    assert three.run("a", "qnet", "on", "-n", "b", "--", "hostname").stdout == "b\n"


def having(three: kit.Cluster, word: str) -> list[int]:
    """Processes of the cluster in whose command line the word is, but for those that come from outside."""
    found = []
    for pid in three.processes():
        with suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
            line = file.read()
            if word in line and "qnetpy.cluster.entry" not in line:
                found.append(pid)
    return found


def mount_space(pid: str) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return ""
