"""Who is whom, what is exported, and the mounts of it, between real nodes: one cluster for all."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for
from tests.cluster.meshed import seen

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
ANNA, BERT, CARL = 4001, 4002, 4003
TOPOLOGY = f"""
title = "shared files"
users = [{{ name = "anna", uid = {ANNA} }}, {{ name = "bert", uid = {BERT} }}, {{ name = "carl", uid = {CARL} }}]
[nodes.a]
[[nodes.c.config.qnet.mounts]]
point = "/tmp/of-b"
source = "b:/tmp"
options = "ro"
[[nodes.c.config.qnet.mounts]]
point = "/proc/no/such/place"
[nodes.c]
[nodes.b.config.access]
users = [
    {{ mapping = "table", nodes = ["a"], users = {{ {ANNA} = "bert", {BERT} = "anna" }}, groups = {{ {ANNA} = "bert" }} }},
    {{ mapping = "all:carl", nodes = ["c"] }},
]
exports = [
    {{ path = "/tmp", verbs = ["read", "write"] }},
    {{ path = "/tmp/hidden", verbs = [], nodes = ["c"] }},
    {{ path = "/tmp/annas", verbs = ["read"], users = ["anna"] }},
    {{ path = "/proc", verbs = ["read"] }},
]
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    with seen(TOPOLOGY) as running:
        running.run("b", "sh", "-c", "chmod 1777 /tmp; mkdir -p /tmp/hidden /tmp/annas; echo secret > /tmp/hidden/s")
        yield running


def sh(nodes: kit.Cluster, node: str, script: str, user: str = "", check: bool = True) -> str:
    """Standard output and error of a shell script on a node."""
    argv = ["sh", "-c", script] if not user else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "sh", "-c", script]
    result = nodes.run(node, *argv, check=check)
    return result.stdout + result.stderr


def test_each_node_sees_its_own_names(nodes: kit.Cluster) -> None:
    sh(nodes, "a", "echo x > /net/b/tmp/by-anna; mkdir /net/b/tmp/dir-of-anna; ln -s x /net/b/tmp/link-of-anna", "anna")
    listed = sh(nodes, "a", "ls -ld /net/b/tmp/*anna", "anna")
    assert [line.split()[2:4] for line in listed.splitlines()] == [["anna", "anna"]] * 3
    there = sh(nodes, "b", "ls -ld /tmp/*anna")
    assert [line.split()[2:4] for line in there.splitlines()] == [["bert", "bert"]] * 3
    # For bert of a, who is anna there: the same owner, his own rights.
    assert sh(nodes, "a", "stat -c '%U' /net/b/tmp/by-anna", "bert").split() == ["anna"]
    assert "Permission denied" in sh(nodes, "a", "echo y >> /net/b/tmp/by-anna", "bert", check=False)
    assert sh(nodes, "a", "stat -c '%U %G' /net/b/tmp", "anna").split() == ["root", "root"]
    # chown goes the same way: to oneself is nothing, to others the kernel there refuses, to who is nobody there is no number.
    assert sh(nodes, "a", "chown anna /net/b/tmp/by-anna && echo done", "anna") == "done\n"
    assert "Operation not permitted" in sh(nodes, "a", "chown bert /net/b/tmp/by-anna", "anna", check=False)
    assert "Invalid argument" in sh(nodes, "a", "chown carl /net/b/tmp/by-anna", "anna", check=False)
    # Root is nobody, and sees it.
    assert sh(nodes, "a", "touch /net/b/tmp/by-root; stat -c '%u' /net/b/tmp/by-root").split() == ["65534"]
    assert sh(nodes, "b", "stat -c '%u' /tmp/by-root").split() == ["65534"]


def test_where_everybody_is_one_user_files_are_ones_own(nodes: kit.Cluster) -> None:
    assert sh(nodes, "c", "touch /net/b/tmp/shared; stat -c '%U %G' /net/b/tmp/shared", "anna").split() == ["anna", "anna"]
    assert sh(nodes, "b", "stat -c '%U' /tmp/shared").split() == ["carl"]


def test_set_id_bits_are_refused(nodes: kit.Cluster) -> None:
    sh(nodes, "a", "cp /bin/true /net/b/tmp/program", "anna")
    assert "Operation not permitted" in sh(nodes, "a", "chmod u+s /net/b/tmp/program", "anna", check=False)
    assert sh(nodes, "a", "chmod g+s /net/b/tmp/dir-of-anna && echo done", "anna") == "done\n"


def test_what_is_hidden_and_what_is_not_exported(nodes: kit.Cluster) -> None:
    assert "hidden" in sh(nodes, "a", "ls /net/b/tmp")
    assert sh(nodes, "a", "cat /net/b/tmp/hidden/s", "anna") == "secret\n"
    assert "hidden" not in sh(nodes, "c", "ls -a /net/b/tmp")
    for script in (
        "cat /net/b/tmp/hidden/s",
        "cat /net/b/tmp/annas/../hidden/s",
        "mkdir /net/b/tmp/hidden",
        "mv /net/b/tmp/shared /net/b/tmp/hidden",
        "ln /net/b/tmp/shared /net/b/tmp/hidden/x",
        "ln -s hidden/s /net/b/tmp/way; cat /net/b/tmp/way",
    ):
        assert "No such file or directory" in sh(nodes, "c", script, "carl", check=False), script
    assert "Permission denied" in sh(nodes, "a", "cat /net/b/etc/passwd", check=False)
    assert sh(nodes, "a", "ls /net/b").split() == ["dev", "proc", "tmp"]
    refused = sh(nodes, "b", "qnet exports --refused")
    assert "/etc  a     0           " in refused
    assert "no export covers /etc for user 0 of node a" in refused
    assert "requests for what is not exported; qnet exports --refused" in sh(nodes, "b", "qnet status")
    # For one user only.
    assert "Read-only file system" in sh(nodes, "a", "touch /net/b/tmp/annas/x", "bert", check=False)


def test_rules_are_told(nodes: kit.Cluster) -> None:
    told = sh(nodes, "a", "qnet exports b", "anna")
    assert "nothing" not in told.partition("\n\n")[0]
    assert f"on b this user is user {BERT}" in told
    assert "/tmp" in told.partition("ON b")[2]
    there = json.loads(sh(nodes, "c", "qnet exports --json b"))["there"]
    # The name of what is hidden is not told.
    assert [row["path"] for row in there["exports"]] == ["/tmp", "/proc"]
    assert "table" in sh(nodes, "b", "qnet exports a")
    assert "all:carl" not in sh(nodes, "b", "qnet exports a")
    checked = sh(nodes, "b", f"qnet access check --node a --user {ANNA} /tmp/by-anna")
    assert "may:    read, write" in checked
    assert f"[[access.users]] 1 (table): user {ANNA} there is user {BERT} here" in checked
    assert "[[access.exports]] 1 (/tmp) allows read and write" in checked
    assert "lets bert read, write" in checked
    assert "nothing: it does not exist for them" in sh(nodes, "b", "qnet access check --node c --user anna /tmp/hidden/s", check=False)
    assert "nothing: permission denied" in sh(nodes, "b", "qnet access check --node a /etc/shadow", check=False)
    assert "only root" in sh(nodes, "b", "qnet access check --node a /etc/shadow", "anna", check=False)


def test_mounts_with_options_of_their_own(nodes: kit.Cluster) -> None:
    assert sh(nodes, "b", "mkdir -p /tmp/tree/sub; echo one > /tmp/tree/f; ln -s /tmp/tree/f /tmp/tree/abs; chmod -R a+w /tmp/tree") == ""
    assert sh(nodes, "a", "mkdir /tmp/m; qnet mount -o ro,attr_valid=5 b:/tmp/tree /tmp/m") == ""
    assert "rw" not in sh(nodes, "a", "grep ' /tmp/m ' /proc/mounts").split()[3].split(",")
    assert sh(nodes, "a", "cat /tmp/m/f; ls /tmp/m/sub/..; readlink /tmp/m/abs; cat /tmp/m/abs", "anna").split() == [
        "one",
        *("abs", "f", "sub"),
        "/net/b/tmp/tree/f",
        "one",
    ]
    assert "Read-only file system" in sh(nodes, "a", "touch /tmp/m/f", "anna", check=False)
    # The same directory by /net has other options; two users of one mount have their own rights.
    assert sh(
        nodes, "a", "echo two > /net/b/tmp/tree/f; chmod 600 /net/b/tmp/tree/sub; mkdir /net/b/tmp/tree/new", "anna", check=False
    ) == ("chmod: changing permissions of '/net/b/tmp/tree/sub': Operation not permitted\n")
    assert sh(nodes, "a", "stat -c %U /tmp/m/new", "bert").split() == ["anna"]
    assert "only root and the daemon's user" in sh(nodes, "a", "qnet mount -t qnet /tmp/whole", "bert", check=False)
    assert sh(nodes, "a", "qnet mount -t qnet -o noexec /tmp/whole; ls /tmp/whole").split() == ["a", "b", "c"]
    listed = sh(nodes, "a", "qnet mount -t qnet")
    rows = {line.split()[0]: line.split()[1:] for line in listed.splitlines()[1:]}
    assert rows == {"/net": ["/net", "-"], "/tmp/m": ["b:/tmp/tree", "ro,attr_valid=5"], "/tmp/whole": ["/net", "noexec"]}
    assert "/tmp/whole" in sh(nodes, "a", "qnet mount")
    for command, why in (
        ("qnet mount b:/tmp /tmp/m", "/tmp/m is a mount of this node already"),
        ("qnet mount -o or b:/tmp /tmp/x", "there is no mount option 'or'"),
        ("qnet mount b/tmp /tmp/x", "'b/tmp': NODE:/DIRECTORY expected"),
        ("qnet mount b:/../tmp /tmp/x", "has a dot component"),
        ("qnet umount -t qnet /tmp/x", "/tmp/x is no mount of this node"),
        ("qnet mount -t qnet /proc/no/such", "No such file or directory"),
    ):
        assert why in sh(nodes, "a", command, check=False)
    # By qnet, also while it is in use, and by anybody else.
    assert (
        sh(nodes, "a", "cd /tmp/m/sub; qnet umount /tmp/m; umount /tmp/whole; grep -cE ' /tmp/(m|whole) ' /proc/mounts", check=False)
        == "0\n"
    )
    wait_for(lambda: len(json.loads(sh(nodes, "a", "qnet mount -t qnet --json"))["mounts"]) == 1, 5.0)


ATTRIBUTES = """
import os, sys, time
for name in sys.argv[1:]:
    begun = time.monotonic()
    for each in os.listxattr(name):
        print(name, each, os.getxattr(name, each).decode().replace(chr(10), "|"))
    assert time.monotonic() - begun < 0.5
"""


def test_names_of_net_tell_of_their_nodes(nodes: kit.Cluster) -> None:
    def told(node: str, *names: str, user: str = "carl") -> dict[tuple[str, str], str]:
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "python3", "-c", ATTRIBUTES, *names]
        lines = [line.split(" ", 2) for line in nodes.run(node, *argv).stdout.splitlines()]
        return {(name, attribute.removeprefix("user.qnet.")): value for name, attribute, value in lines}

    found = told("a", "/net", "/net/b", "/net/a")
    assert found["/net/b", "state"] == "up"
    assert float(found["/net/b", "rtt"]) < 1
    assert found["/net/b", "address"] in found["/net/b", "paths"]
    assert {"boot", "since", "suites", "version"} <= {attribute for name, attribute in found if name == "/net/b"}
    assert found["/net/a", "state"] == "up"
    assert ("/net/a", "rtt") not in found
    assert found["/net", "node.b"].startswith("state=up since=")
    # Through a mount of one's own, too; not of what is below, nor of others' names.
    sh(nodes, "a", "chmod 666 /dev/fuse; mkdir -p /tmp/own-attributes; chown anna /tmp/own-attributes")
    own = sh(nodes, "a", "qnet mount --own /tmp/own-attributes -- getfattr -d --absolute-names /tmp/own-attributes/b", "anna")
    assert 'user.qnet.state="up"' in own
    assert told("a", "/net/b/tmp") == {}
    refused = sh(nodes, "a", "setfattr -n user.qnet.state -v down /net/b", check=False)
    assert "Operation not permitted" in refused


def test_mounts_of_one_s_own_within_each_other_and_in_a_namespace_of_one_s_own(nodes: kit.Cluster) -> None:
    sh(nodes, "a", "chmod 666 /dev/fuse; mkdir -p /tmp/one /tmp/two; chown anna /tmp/one /tmp/two")
    two = "qnet mount --own /tmp/two -- sh -c 'echo of-two > /tmp/two/b/tmp/two; cat /tmp/one/two; touch /tmp/one/none'"
    found = sh(nodes, "a", f'qnet mount -o ro --own /tmp/one b:/tmp -- sh -c "{two}"', "anna", check=False)
    assert found.splitlines() == ["of-two", "touch: cannot touch '/tmp/one/none': Read-only file system"]
    # Where he is root by name only, and the real root has no number.
    inside = "id -u; echo inside > /tmp/one/inside; stat -c %u /tmp/one/inside"
    assert sh(nodes, "a", f"unshare -Urm qnet mount --own /tmp/one b:/tmp -- sh -c '{inside}'", "anna").split() == ["0", "0"]
    assert sh(nodes, "b", "stat -c %U /tmp/inside").split() == ["bert"], "whom b takes anna of a for"
    assert "only root and the daemon's user" in sh(nodes, "a", "unshare -Urm qnet mount b:/tmp /tmp/two", "anna", check=False)
    assert "options come before" in sh(nodes, "a", "qnet mount --own /tmp/one b:/tmp -o ro -- true", "anna", check=False)


def test_mounts_of_the_configuration_and_of_fstab(nodes: kit.Cluster) -> None:
    assert sh(nodes, "c", "cat /tmp/of-b/by-anna", "carl").split() == ["x"]
    assert "Read-only file system" in sh(nodes, "c", "touch /tmp/of-b/by-anna", "carl", check=False)
    assert "[[qnet.mounts]] /proc/no/such/place: " in sh(nodes, "c", "cat /run/qnet/log")
    # What is hidden by /net is hidden here.
    assert "hidden" not in sh(nodes, "c", "ls /tmp/of-b")
    script = "mkdir -p /tmp/f; python3 -m qnetpy.cli.fstab b:/tmp /tmp/f -s -o noauto,nofail,x-systemd.automount,ro && stat -fc %T /tmp/f"
    assert sh(nodes, "a", script).split()[-1] in ("fuse", "fuseblk", "UNKNOWN")
    sh(nodes, "a", "umount /tmp/f")
    wait_for(lambda: sh(nodes, "a", "qnet mount -t qnet | wc -l").split() == ["2"], 5.0)


def test_a_part_that_leads_on_to_a_third_node(nodes: kit.Cluster) -> None:
    """A mount of another node's /net, and of a node that is gone and comes back."""
    sh(nodes, "a", "mkdir -p /tmp/on; qnet mount c:/net /tmp/on")
    assert sh(nodes, "a", "cat /tmp/on/b/tmp/by-anna", "anna").split() == ["x"]
    assert "Too many levels" in sh(nodes, "a", "ls /tmp/on/a", "anna", check=False)
    sh(nodes, "a", "qnet umount /tmp/on; qnet mount b:/tmp /tmp/on")
    assert "by-anna" in sh(nodes, "a", "ls /tmp/on", "anna")
    sh(nodes, "b", "qnet down; qnet up")
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    assert sh(nodes, "a", "cat /tmp/on/by-anna; qnet umount /tmp/on", "") == "x\n"


def test_the_far_proc(nodes: kit.Cluster) -> None:
    assert sh(nodes, "a", "head -1 /net/b/proc/1/status; cat /net/b/proc/qnetstats | head -1", "anna").splitlines()[1] == "node b"
    daemon = sh(nodes, "b", "cat /run/qnet/lock").strip()
    listed = sh(nodes, "a", "ls /net/b/proc", "anna").split()
    assert {"1", "meminfo", "qnetstats", "qnetstats.json"} <= set(listed)
    assert daemon not in listed
    for path in (f"{daemon}/maps", f"{daemon}/fd", "self/maps", "thread-self/environ"):
        assert "No such file or directory" in sh(nodes, "a", f"ls /net/b/proc/{path}", "anna", check=False)
    assert "Permission denied" in sh(nodes, "a", "ls -l /net/b/proc/1/fd", "anna", check=False)
    assert "Read-only" in sh(nodes, "a", "echo 1 > /net/b/proc/sys/vm/drop_caches", check=False)


def test_a_mount_of_ones_own_needs_no_rights(nodes: kit.Cluster) -> None:
    sh(nodes, "a", "mkdir -p /tmp/own", "anna")
    # As udev makes it; containers often have one for root only.
    place = "mkdir /tmp/d; mount -t tmpfs d /tmp/d; mknod /tmp/d/fuse c 10 229; chmod 666 /tmp/d/fuse; mount --bind /tmp/d/fuse /dev/fuse"
    sh(nodes, "a", place)
    script = (
        "qnet mount --own /tmp/own -o ro b:/tmp -- sh -c 'cat /tmp/own/by-anna; id -un; touch /tmp/own/new; exit 7'; echo $?; ls /tmp/own"
    )
    assert sh(nodes, "a", script, "anna").split("\n") == [
        *("x", "anna", "7"),
        "touch: cannot touch '/tmp/own/new': Read-only file system",
        "",
    ]
    # All of /net, whatever the daemon has mounted; who he is there is known by the socket.
    script = (
        "qnet mount --own /tmp/own -- sh -c 'ls /tmp/own; echo mine > /tmp/own/b/tmp/own-of-anna; stat -c %U /tmp/own/b/tmp/own-of-anna'"
    )
    assert sh(nodes, "a", script, "anna").split() == ["a", "b", "c", "anna"]
    assert sh(nodes, "b", "stat -c %U /tmp/own-of-anna").split() == ["bert"]
    assert "Permission denied" in sh(
        nodes, "a", "qnet mount --own /tmp/own -- sh -c 'echo x > /tmp/own/b/tmp/own-of-anna'", "bert", check=False
    )
    assert "NODE:/DIRECTORY expected" in sh(nodes, "a", "qnet mount --own /tmp/own b:srv -- true", "anna", check=False)
    for words, status, why in (
        ("qnet mount --own /tmp/own -- no-such-command", 127, "no-such-command: not started in /tmp/own: no such file or directory"),
        ("qnet mount --own /tmp/own -- /etc/hostname", 126, "/etc/hostname: not started in /tmp/own: permission denied"),
        ("prlimit --nproc=2 qnet mount --own /tmp/own -- true", 126, "true: not started in /tmp/own: no room for a process or thread"),
    ):
        said = sh(nodes, "a", f"{words}; echo $?", "anna").splitlines()
        assert (said[0], why in said[-1]) == (str(status), True), said


def test_absolute_links_are_copied_within_a_node_as_they_are(nodes: kit.Cluster) -> None:
    sh(nodes, "b", "ln -s /tmp/target /tmp/absolute; ln -s / /tmp/root; echo there > /tmp/target")
    sh(nodes, "a", "cd /net/b/tmp; mkdir copies; cp -a absolute root copies", "anna")
    assert sh(nodes, "b", "readlink /tmp/copies/absolute /tmp/copies/root").split() == ["/tmp/target", "/"]
    assert sh(nodes, "a", "readlink /net/b/tmp/copies/absolute; cat /net/b/tmp/copies/absolute").split() == ["/net/b/tmp/target", "there"]
    # What only begins alike is another's, and so is what is this machine's own.
    sh(nodes, "a", "ln -s /net/bee/x /net/b/tmp/copies/other; ln -s /usr /net/b/tmp/copies/usr", "anna")
    assert sh(nodes, "b", "readlink /tmp/copies/other /tmp/copies/usr").split() == ["/net/bee/x", "/usr"]
