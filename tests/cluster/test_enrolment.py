"""Machines become nodes by a code, on real networks: mDNS, an address, IPv6 only; and what happens to their membership later."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest

from qnetpy.enrol.invitation import WRONG_PAUSE
from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, states, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
BARE = 'boot = []\ncertificate = "none"\n'
LIFE = 12.0
"""Seconds of a certificate that is renewed while a test waits: after eight."""
THREE = f"[nodes.n1]\n{BARE}[nodes.n2]\n{BARE}[nodes.n3]\n{BARE}"


def founded(start_cluster: Start, topology: str = THREE) -> kit.Cluster:
    """n1 has made a cluster and is up."""
    cluster = start_cluster(topology)
    cluster.run("n1", "qnet", "init", "home")
    cluster.run("n1", "qnet", "up")
    return cluster


def invited(cluster: kit.Cluster, *options: str, node: str = "n1") -> str:
    return str(facts(cluster, node, "invite", *options)["code"])


def joined(cluster: kit.Cluster, node: str, *options: str, by: str = "n1", up: bool = True) -> None:
    cluster.run(node, "qnet", "join", invited(cluster, *options, node=by))
    if up:
        cluster.run(node, "qnet", "up")


def refused(cluster: kit.Cluster, node: str, *argv: str, status: int, input: str | None = None) -> str:
    result = cluster.run(node, *argv, check=False, input=input)
    assert result.returncode == status, result
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def test_a_code_read_aloud_is_all_it_takes(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    with cluster.running("n1", "qnet", "invite", "--role", "printer") as inviting:
        assert inviting.stdout is not None
        line = inviting.stdout.readline().decode()
        found = re.fullmatch(r"code: (\w{3}-\w{3}-\w{3})\n", line)
        assert found is not None, line
        begin = time.monotonic()
        said = cluster.run("n2", "qnet", "join", found[1].upper().replace("-", " ")).stdout
        took = time.monotonic() - begin
        assert said == "this machine is node n2 of cluster home; start it with: qnet up\n"
        assert took < 5.0
        assert inviting.wait(10) == 0
        rest = inviting.stdout.read().decode()
    assert "node n2 has its certificate\nnode n2 joined; start it there with: qnet up\n" in rest
    cluster.run("n2", "qnet", "up")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")
    assert cluster.run("n2", "cat", "/net/n1/etc/hostname").stdout == "n1\n"
    assert facts(cluster, "n2")["roles"] == ["printer"]
    modes = cluster.run("n2", "sh", "-c", "stat -c '%a %n' /etc/qnet/*").stdout
    assert "600 /etc/qnet/node.key" in modes
    assert "600 /etc/qnet/cluster.secret" in modes
    checked = "openssl verify -CAfile /etc/qnet/roots.crt -untrusted /etc/qnet/node.crt /etc/qnet/node.crt"
    assert cluster.run("n2", "sh", "-c", checked).stdout.endswith(": OK\n")
    assert "CN = qnet issuer n1" in cluster.run("n2", "openssl", "x509", "-in", "/etc/qnet/node.crt", "-noout", "-text").stdout
    assert "used this code" in refused(cluster, "n3", "qnet", "join", found[1], status=4)


def test_an_address_a_file_and_a_pipe(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    code = invited(cluster, "--uses", "2", "--ttl", "1m")
    told = json.loads(cluster.run("n2", "qnet", "join", "--json", "-", cluster.address("n1"), input=f"{code}\n").stdout)
    assert (told["node"], told["cluster"]) == ("n2", "home")
    cluster.run("n3", "sh", "-c", f"echo {code} >/tmp/code; qnet join @/tmp/code {cluster.address('n1')}:18815 --name third")
    assert facts(cluster, "n3", "cert", "show")["node"] == "third"
    cluster.run("n2", "qnet", "up")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    assert "used" in cluster.run("n1", "qnet", "invite", "--list").stdout


def test_ipv6_link_local_is_enough(start_cluster: Start) -> None:
    cluster = founded(start_cluster, f"ipv6 = true\n{THREE}")
    for node in ("n1", "n2"):
        cluster.run(node, "ip", "-4", "addr", "flush", "dev", "eth0")
    # Duplicate address detection takes a second or two after the interface came up.
    wait_for(lambda: "tentative" not in cluster.run("n2", "ip", "-6", "addr", "show", "dev", "eth0").stdout, 10.0)
    wait_for(lambda: "tentative" not in cluster.run("n1", "ip", "-6", "addr", "show", "dev", "eth0").stdout, 10.0)
    assert "inet " not in cluster.run("n2", "ip", "addr", "show", "dev", "eth0").stdout
    joined(cluster, "n2")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")
    assert "fe80::" in cluster.run("n1", "grep", "joined", "/run/qnet/log").stdout


def test_wrong_codes_are_seen_by_both_and_the_third_ends_it(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    code = invited(cluster)
    address = cluster.address("n1")

    slip = code[:-1] + ("0" if code[-1] != "0" else "1")
    assert "typing error" in refused(cluster, "n2", "qnet", "join", slip, address, status=2)
    assert "no such invitation" in refused(cluster, "n2", "qnet", "join", _code("zzz"), address, status=4)
    assert "the code is wrong; 2 more" in refused(cluster, "n2", "qnet", "join", _code(code[:3], 2), address, status=3)
    assert "the code is wrong; 1 more" in after_the_pause(cluster, "n2", _code(code[:3], 1), address)
    assert "three wrong tries" in after_the_pause(cluster, "n2", _code(code[:3], 9), address)
    assert "three wrong tries" in refused(cluster, "n3", "qnet", "join", code, address, status=4)
    log = cluster.run("n1", "cat", "/run/qnet/log").stdout
    assert f"wrong code for invitation {code[:3]} from {cluster.address('n2')}; 2 tries left" in log
    assert "was ended by wrong tries" in log
    assert code[4:] not in log, "a code is never logged"
    assert not cluster.run("n3", "ls", "/etc/qnet", check=False).stdout.count("node.key")


def after_the_pause(cluster: kit.Cluster, node: str, code: str, address: str) -> str:
    """What *node* is told that tries *code* as soon as it is heard again: a wrong try costs it a pause."""
    said: list[str] = []

    def heard() -> bool:
        said.append(cluster.run(node, "qnet", "join", code, address, check=False).stderr)
        return "wait and try again" not in said[-1]

    wait_for(heard, 5 * WRONG_PAUSE, "the source is heard again")
    return said[-1]


def _code(public: str, seed: int = 1) -> str:
    import random

    from qnetpy.enrol.code import make_code

    return make_code(random.Random(seed).randbytes, public).spoken()


def test_what_cannot_be_is_said(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    assert "nobody on this LAN invites" in refused(cluster, "n2", "qnet", "join", _code("abc"), "--timeout", "1.5", status=5)
    assert "refused" in refused(cluster, "n2", "qnet", "join", _code("abc"), cluster.address("n1"), status=5)
    assert "there is a node n1 already" in refused(cluster, "n1", "qnet", "invite", "--name", "n1", status=1)
    assert "1 to 256 machines" in refused(cluster, "n1", "qnet", "invite", "--uses", "0", status=1)
    joined(cluster, "n2")
    assert "does not issue certificates" in refused(cluster, "n2", "qnet", "invite", status=1)
    assert "qnet down first" in refused(cluster, "n2", "qnet", "join", _code("abc"), status=1)
    assert "there is a node n2 already" in refused(cluster, "n3", "qnet", "join", invited(cluster), "--name", "n2", status=4)
    assert "only root" in refused(cluster, "n1", "setpriv", "--reuid", "65534", "--clear-groups", "qnet", "invite", status=1)
    assert "this node is not up" in refused(cluster, "n3", "qnet", "invite", status=1)


def test_a_node_is_revoked_under_load_and_one_hears_of_it_later(start_cluster: Start) -> None:
    cluster = founded(start_cluster, THREE + f"[nodes.n4]\n{BARE}")
    for node in ("n2", "n3", "n4"):
        joined(cluster, node)
    for node in ("n1", "n2"):
        cluster.run(node, "qnet", "nodes", "--wait", ",".join(sorted({"n1", "n2", "n3", "n4"} - {node})))
    cluster.run("n4", "qnet", "down")
    load = "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null; while cat /net/n2/tmp/big >/dev/null; do :; done; echo ended"
    cluster.run("n2", "sh", "-c", "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null; chmod 644 /tmp/big")
    with cluster.running("n3", "sh", "-c", load) as reading:
        wait_for(lambda: "cat" in cluster.run("n3", "sh", "-c", "cat /proc/[0-9]*/comm").stdout, 10.0)
        cluster.run("n1", "qnet", "revoke", "n3")
        said = time.monotonic()
        wait_for(lambda: {states(cluster, node)["n3"] for node in ("n1", "n2")} == {"down"}, 8.0)
        for node in ("n1", "n2"):
            asked = time.monotonic()
            (down,) = [one["seconds"] for one in facts(cluster, node, "nodes")["nodes"] if one["name"] == "n3"]
            assert asked - down < said + 2.0, "two seconds after the command ended, at the latest"
        out, _ = reading.communicate(timeout=15)
        assert out.decode().endswith("ended\n"), "the program that read gets an error, and does not hang"
    cluster.run("n4", "qnet", "up")
    cluster.run("n4", "qnet", "nodes", "--wait", "n1,n2")
    # It hears of it from the others, maybe after it met n3; from then on n3 is refused, however often it comes.
    wait_for(lambda: facts(cluster, "n4")["handshake"].get("refused", 0) > 0, 10.0, "n3 is refused by n4")
    assert states(cluster, "n4").get("n3", "never") in ("down", "never", "connecting")
    assert "n3" in cluster.run("n4", "qnet", "revoke").stdout
    assert "refuses this node" in cluster.run("n3", "qnet", "status").stdout
    assert cluster.run("n3", "ls", "/net").stdout == "n3\n"
    # The machine may come back, with another key.
    cluster.run("n3", "qnet", "leave", "--force")
    joined(cluster, "n3")
    cluster.run("n3", "qnet", "nodes", "--wait", "n1,n2,n4")


def test_another_issuer_takes_over_while_the_root_key_is_away(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    joined(cluster, "n2", "--role", "issuer")
    wait_for(lambda: cluster.run("n2", "qnet", "status", "--json").stdout.count('"issues": true') == 1, 15.0)
    cluster.run("n1", "qnet", "down")
    cluster.run("n1", "mv", "/etc/qnet/authority", "/tmp/safe")
    assert "made where the root key is" in refused(cluster, "n2", "qnet", "invite", "--role", "issuer", status=1)
    joined(cluster, "n3", by="n2")
    cluster.run("n3", "qnet", "nodes", "--wait", "n2")
    assert "CN = qnet issuer n2" in cluster.run("n3", "openssl", "x509", "-in", "/etc/qnet/node.crt", "-noout", "-text").stdout
    cluster.run("n1", "qnet", "up")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2,n3")
    assert "takes the root key" in refused(cluster, "n1", "qnet", "revoke", "n2", status=1)
    cluster.run("n1", "mv", "/tmp/safe", "/etc/qnet/authority")
    cluster.run("n1", "qnet", "revoke", "n2")
    wait_for(lambda: states(cluster, "n3")["n2"] == "down", 5.0)
    assert states(cluster, "n1") == {"n2": "down", "n3": "up"}, "whom a revoked issuer enrolled stays"


def test_a_short_life_is_prolonged_again_and_again(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    joined(cluster, "n2", "--days", str(LIFE / 86400))
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")
    shown = "openssl x509 -in /etc/qnet/node.crt -noout -serial -enddate"
    seen = {cluster.run("n2", "sh", "-c", shown).stdout}

    def certificates() -> int:
        seen.add(cluster.run("n2", "sh", "-c", shown).stdout)
        return len(seen)

    wait_for(lambda: certificates() == 2, LIFE, "the first is followed by another")
    wait_for(lambda: certificates() == 3, LIFE, "and that one too, after the end of the first")
    assert states(cluster, "n1") == {"n2": "up"}
    assert facts(cluster, "n1")["failures"] == {}
    cluster.run("n2", "openssl", "x509", "-in", "/etc/qnet/node.crt", "-noout", "-checkend", "0")
    # Nobody who may issue is there any more: it ends, and says what to do.
    cluster.run("n1", "qnet", "down")
    wait_for(lambda: "qnet join CODE --replace" in cluster.run("n2", "qnet", "status").stdout, 20.0)
    wait_for(lambda: "EXPIRED" in cluster.run("n2", "qnet", "status").stdout, 2.0)
    cluster.run("n1", "qnet", "up")
    cluster.run("n2", "qnet", "down")
    cluster.run("n2", "qnet", "join", invited(cluster, "--name", "n2"), "--replace")
    cluster.run("n2", "qnet", "up")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")


def test_another_root_under_traffic(start_cluster: Start) -> None:
    cluster = founded(start_cluster, f"[config.qnet.timers]\nrekey = 1.5\n{THREE}")
    for node in ("n2", "n3"):
        joined(cluster, node)
    cluster.run("n2", "qnet", "nodes", "--wait", "n1,n3")
    before = cluster.run("n3", "sh", "-c", "openssl x509 -in /etc/qnet/roots.crt -noout -fingerprint").stdout
    traffic = "i=0; while [ ! -e /tmp/stop ]; do cat /net/n3/etc/hostname >/dev/null || exit 1; i=$((i+1)); done; echo $i"
    with cluster.running("n2", "sh", "-c", traffic) as reading:
        cluster.run("n1", "qnet", "root", "rotate")

        def one_root() -> bool:
            return all(cluster.run(node, "grep", "-c", "BEGIN", "/etc/qnet/roots.crt").stdout == "1\n" for node in cluster.nodes) and (
                cluster.run("n3", "sh", "-c", "openssl x509 -in /etc/qnet/roots.crt -noout -fingerprint").stdout != before
            )

        wait_for(one_root, 30.0)
        made = facts(cluster, "n2")["handshake"]["established"]
        wait_for(lambda: facts(cluster, "n2")["handshake"]["established"] >= made + 4, 20.0, "two more handshakes with each node")
        cluster.run("n2", "touch", "/tmp/stop")
        out, err = reading.communicate(timeout=15)
        assert reading.returncode == 0, err
        assert int(out) > 50
    for node in cluster.nodes:
        assert set(states(cluster, node).values()) == {"up"}
        checked = "openssl verify -CAfile /etc/qnet/roots.crt -untrusted /etc/qnet/node.crt /etc/qnet/node.crt"
        assert cluster.run(node, "sh", "-c", checked).stdout.endswith(": OK\n")
        assert " down" not in cluster.run(node, "cat", "/run/qnet/log").stdout
    cluster.run("n3", "qnet", "leave")
    joined(cluster, "n3")
    cluster.run("n3", "qnet", "nodes", "--wait", "n1,n2")


def test_a_node_leaves_by_itself(start_cluster: Start) -> None:
    cluster = founded(start_cluster)
    joined(cluster, "n2")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")
    assert "the cluster's root key is on this machine" in refused(cluster, "n1", "qnet", "leave", status=1)
    assert cluster.run("n2", "qnet", "leave").stdout == "node n2 left the cluster\n"
    assert cluster.run("n2", "sh", "-c", "ls /etc/qnet").stdout == "qnet.toml\n"
    assert states(cluster, "n1") == {"n2": "down"}
    assert "this machine is no node" in refused(cluster, "n2", "qnet", "leave", status=1)
    joined(cluster, "n2")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1")
