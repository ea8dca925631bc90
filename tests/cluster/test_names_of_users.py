"""Two nodes whose accounts have the same names and other numbers, and the mapping `names` between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for
from tests.cluster.meshed import needs_net

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
SERVES = 'exports = [{ path = "/tmp", verbs = ["read", "write"] }]'


def accounts(**numbers: int) -> str:
    """A shell command that gives a node accounts of its own beside root's."""
    users = "".join(f"{name}:x:{number}:{number}::/:/bin/sh\\n" for name, number in numbers.items())
    groups = "".join(f"{name}:x:{number}:\\n" for name, number in numbers.items()) + f"staff:x:{sum(numbers.values()) % 1000 + 100}:anna\\n"
    return (
        f"(grep ^root: /etc/passwd; printf '{users}') > /run/passwd; (grep ^root: /etc/group; printf '{groups}') > /run/group; "
        "mount --bind /run/passwd /etc/passwd; mount --bind /run/group /etc/group"
    )


THERE = {"anna": 4001, "bert": 4002, "carl": 4003}
HERE = {"carl": 7001, "anna": 7002, "bert": 4001}
"""bert has the number that anna has there; dora is here alone."""
TOPOLOGY = f"""
title = "users by name"
[nodes.a]
boot = [["sh", "-c", "{accounts(**THERE)}"], ["qnet", "up"]]
[nodes.b]
boot = [["sh", "-c", "{accounts(**HERE, dora=7009)}"], ["qnet", "up"]]
[nodes.b.config.access]
users = [{{ mapping = "names" }}]
{SERVES}
[nodes.c]
[nodes.c.config.access]
tell_accounts = false
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    needs_net()
    with kit.cluster(TOPOLOGY.replace("\\n", "\\\\n")) as running:
        for node in ("a", "c"):
            running.run(node, "qnet", "nodes", "--wait", "b")
        running.run("b", "chmod", "1777", "/tmp")
        yield running


def sh(nodes: kit.Cluster, node: str, script: str, user: str = "", check: bool = True) -> str:
    argv = ["sh", "-c", script] if not user else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "sh", "-c", script]
    result = nodes.run(node, *argv, check=check)
    return result.stdout + result.stderr


def test_what_is_made_belongs_to_who_has_the_name(nodes: kit.Cluster) -> None:
    sh(nodes, "a", "echo x > /net/b/tmp/annas; chmod 600 /net/b/tmp/annas; mkdir /net/b/tmp/dir", "anna")
    assert sh(nodes, "b", "stat -c '%U %G %u' /tmp/annas /tmp/dir").split() == ["anna", "anna", "7002"] * 2
    # Each node shows its own number.
    assert sh(nodes, "a", "stat -c '%U %G %u' /net/b/tmp/annas").split() == ["anna", "anna", "4001"]
    # bert has that number on b, and another one on a, and may not read it from either.
    assert "Permission denied" in sh(nodes, "a", "cat /net/b/tmp/annas", "bert", check=False)
    assert "Permission denied" in sh(nodes, "b", "cat /tmp/annas", "bert", check=False)


def test_owners_are_shown_and_given_by_name(nodes: kit.Cluster) -> None:
    sh(nodes, "b", "for user in anna bert carl dora root; do touch /tmp/of-$user; chown $user:$user /tmp/of-$user; done")
    shown = sh(nodes, "a", "cd /net/b/tmp; stat -c '%n %u' of-anna of-bert of-carl of-dora of-root", "carl").split()
    assert shown == ["of-anna", "4001", "of-bert", "4002", "of-carl", "4003", "of-dora", "65534", "of-root", "0"]
    sh(nodes, "b", "chown anna:staff /tmp/of-anna")
    wait_for(lambda: sh(nodes, "a", "stat -c %G /net/b/tmp/of-anna", "anna").split() == ["staff"], 5.0)
    sh(nodes, "a", "chgrp staff /net/b/tmp/annas", "anna")
    assert sh(nodes, "b", "stat -c %G /tmp/annas").split() == ["staff"]
    assert "Operation not permitted" in sh(nodes, "a", "chown bert /net/b/tmp/annas", "anna", check=False)
    assert "Invalid argument" in sh(nodes, "a", "chown 4999 /net/b/tmp/annas", "anna", check=False)
    # Names in ACLs are translated as owners are.
    sh(nodes, "a", "setfacl -m u:carl:r /net/b/tmp/annas", "anna")
    assert "user:carl:r--" in sh(nodes, "b", "getfacl -c /tmp/annas")
    assert sh(nodes, "a", "cat /net/b/tmp/annas", "carl").split() == ["x"]


def test_who_has_no_name_there_and_whose_node_tells_none_is_nobody(nodes: kit.Cluster) -> None:
    assert sh(nodes, "a", "touch /net/b/tmp/by-root; stat -c %u /net/b/tmp/by-root").split() == ["65534"]
    sh(nodes, "a", "setpriv --reuid=4321 --regid=4321 --clear-groups touch /net/b/tmp/by-4321")
    sh(nodes, "c", "setpriv --reuid=7002 --regid=7002 --clear-groups touch /net/b/tmp/by-c")
    assert sh(nodes, "b", "stat -c %u /tmp/by-root /tmp/by-4321 /tmp/by-c").split() == ["65534"] * 3


def test_a_new_user_begins_without_a_restart(nodes: kit.Cluster) -> None:
    for node, number in (("a", 4010), ("b", 7010)):
        sh(nodes, node, f"echo emma:x:{number}:{number}::/:/bin/sh >> /run/passwd; echo emma:x:{number}: >> /run/group")

    def made() -> bool:
        sh(nodes, "a", "rm -f /net/b/tmp/emmas; touch /net/b/tmp/emmas", "emma")
        return "emma" in sh(nodes, "b", "stat -c %U /tmp/emmas")

    # Asked for when she first comes, of lists that are not read at every question.
    wait_for(lambda: "user 7010 here" in sh(nodes, "b", "qnet access check --node a --user 4010 /tmp", check=False), 30.0)
    assert made()


def test_the_rule_is_explained(nodes: kit.Cluster) -> None:
    said = sh(nodes, "b", "qnet access check --node a --user 4001 /tmp", check=False)
    assert "(names): user 4001 there is user 7002 here" in said
