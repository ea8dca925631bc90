"""The harness itself: machines of their own, wires that can be cut, and nothing left behind whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qnetpy.cluster import control, entry, harness, state, topology
from qnetpy.cluster.harness import ClusterError
from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

LISTEN = "import socket; s = socket.create_server(('', 7000)); print('ready', flush=True); c, _ = s.accept(); c.sendall(c.recv(99).upper())"
CALL = "import socket, sys; s = socket.create_connection((sys.argv[1], 7000), 5); s.sendall(b'hello'); print(s.recv(99).decode())"
EMPTY = "boot = []\nshutdown = []\n"


def outside(pids: list[int]) -> list[str]:
    """What of these processes and of every cluster's directory is still there."""
    left = [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]
    return left + [f"cluster {name}" for name in state.names()]


def everybody(cluster: kit.Cluster) -> list[int]:
    """All processes of a cluster, the supervisor and the inits among them."""
    status = cluster.status()
    supervisor, nodes = status["pid"], status["nodes"]
    assert isinstance(nodes, dict)
    found = cluster.processes()
    assert set(found) >= {supervisor, *(node["pid"] for node in nodes.values())}
    return found


def test_each_node_is_a_machine_of_its_own(cluster: kit.Cluster) -> None:
    for node in cluster.nodes:
        assert cluster.run(node, "hostname").stdout == f"{node}\n"
        assert cluster.run(node, "cat", "/etc/hostname").stdout == f"{node}\n"
        cluster.run(node, "sh", "-c", "echo $HOSTNAME >/tmp/who; mkdir -p /run/mine; test -d /net")
    assert [cluster.run(node, "cat", "/tmp/who").stdout for node in cluster.nodes] == [f"{node}\n" for node in cluster.nodes]
    assert not Path("/tmp/who").exists()
    assert cluster.run("n1", "sh", "-c", "ls /proc | grep -c '^[0-9]*$'").stdout in ("3\n", "4\n")
    assert "Read-only" in cluster.run("n1", "touch", "/usr/share/mine", check=False).stderr


def test_nodes_reach_each_other_by_name_and_are_cut_off_from_this_machine(cluster: kit.Cluster) -> None:
    with cluster.running("n2", "python3", "-c", LISTEN) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert cluster.run("n1", "python3", "-c", CALL, "n2").stdout == "HELLO\n"
    assert cluster.run("n1", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    assert cluster.run("n1", "cat", "/sys/class/net/eth0/address").stdout == "02:71:6e:00:00:01\n"


def test_exec_is_transparent(cluster: kit.Cluster) -> None:
    assert cluster.run("n1", "sh", "-c", "exit 7", check=False).returncode == 7
    assert cluster.run("n1", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert cluster.run("n1", "sort", input="b\na\n").stdout == "a\nb\n"
    missing = cluster.run("n1", "no-such-program", check=False)
    assert (missing.returncode, missing.stderr) == (127, "qnet cluster exec: no-such-program: no such program or directory on node n1\n")
    unknown = cluster.run("n9", "true", check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "qnet cluster: exec: no node 'n9'; known: n1, n2, n3\n")


def test_a_node_is_entered_as_any_request_has_it(cluster: kit.Cluster) -> None:
    """The quick way knows the bytes of request and answer itself, and nothing is imported for it that takes longer than all the rest."""
    quick = entry.quick(cluster.path, "n1")
    answer, fds = control.ask(cluster.path, {"do": "enter", "node": "n1"})
    assert quick is not None
    assert [kind for kind, _ in quick] == answer["kinds"]
    assert [os.fstat(fd).st_ino for _, fd in quick] == [os.fstat(fd).st_ino for fd in fds]
    assert not any(os.get_inheritable(fd) for _, fd in quick)
    for fd in (*fds, *(fd for _, fd in quick)):
        os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    for path, node in (cluster.path, "n9"), (cluster.path, 'n1"'), (f"{cluster.path}-none", "n1"):
        assert entry.quick(path, node) is None
    assert len(os.listdir("/proc/self/fd")) == before
    heavy = "json", "enum", "socket", "signal", "re", "collections"
    shown = f"import sys; sys.path.insert(0, sys.argv[1]); import qnetpy.cluster.entry; print([m for m in {heavy} if m in sys.modules])"
    words = [sys.executable, "-S", "-P", "-c", shown, str(Path(__file__).parents[2])]
    env = {**os.environ, "QNETPY_COMPILED": "off"}
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout == "[]\n"


def test_the_command_line_does_the_same(cluster: kit.Cluster) -> None:
    """`Cluster.run` enters a node without `qnet cluster exec`, whose words and messages are these."""

    def qnet(*words: str, input: str = "") -> tuple[int, str, str]:
        argv = [sys.executable, "-P", "-m", "qnetpy.cli.main", "cluster", "exec", "--name", cluster.name, *words]
        done = subprocess.run(argv, input=input, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert qnet("--cwd", "/etc", "n1", "--", "sh", "-c", "pwd; cat; exit 7", input="in\n") == (7, "/etc\nin\n", "")
    for words in ("n9", "true"), ("n1", "no-such-program"):
        ran = cluster.run(*words, check=False)
        assert qnet(*words) == (ran.returncode, ran.stdout, ran.stderr)


def test_a_command_ends_with_whoever_started_it(cluster: kit.Cluster) -> None:
    with cluster.running("n1", "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        inner = process.stdout.readline().decode().strip()
        assert "sleep" in cluster.run("n1", "cat", f"/proc/{inner}/cmdline").stdout
        process.kill()
    wait_for(lambda: cluster.run("n1", "test", "-d", f"/proc/{inner}", check=False).returncode == 1)


def test_a_carrier_can_be_taken_away_and_given_back(cluster: kit.Cluster) -> None:
    carrier = ("cat", "/sys/class/net/eth0/carrier")
    cluster.link_down("n3")
    try:
        assert cluster.run("n3", *carrier).stdout == "0\n"
        assert cluster.run("n2", *carrier).stdout == "1\n"
    finally:
        cluster.link_up("n3")
    assert cluster.run("n3", *carrier).stdout == "1\n"


def test_multicast_reaches_every_node(cluster: kit.Cluster) -> None:
    """zeroconf needs it."""
    join = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10); s.bind(('', 5354));"
    join += "s.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('224.0.0.251') + socket.inet_aton('{}'));"
    join += "print('ready', flush=True); print(s.recv(99).decode())"
    send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    send += "s.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton('{}')); s.sendto(b'all', ('224.0.0.251', 5354))"
    with (
        cluster.running("n2", "python3", "-c", join.format(cluster.address("n2"))) as second,
        cluster.running("n3", "python3", "-c", join.format(cluster.address("n3"))) as third,
    ):
        for listener in (second, third):
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"ready\n"
        cluster.run("n1", "python3", "-c", send.format(cluster.address("n1")))
        for listener in (second, third):
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"all\n"


def test_a_capture_holds_what_crossed_the_link(cluster: kit.Cluster, tmp_path: Path) -> None:
    file = tmp_path / "lan.pcap"
    with cluster.capture("lan", file), cluster.running("n2", "python3", "-c", LISTEN) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        cluster.run("n1", "python3", "-c", CALL, "n2")
    data = file.read_bytes()
    assert data[:4] == bytes.fromhex("4d3cb2a1")
    assert b"hello" in data
    assert b"HELLO" in data


def test_a_killed_node_dies_whole_and_starts_again_with_its_disk(start_cluster: Start) -> None:
    cluster = start_cluster(f"[nodes.a]\n{EMPTY}[nodes.b]\n{EMPTY}")
    cluster.run("b", "sh", "-c", "echo kept >/tmp/file; echo gone >/run/file")
    with cluster.running("b", "sh", "-c", "echo; exec sleep 60") as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        before = set(cluster.processes())
        cluster.kill("b")
        assert victim.wait(60) == 137
    refused = cluster.run("b", "true", check=False)
    assert (refused.returncode, refused.stderr) == (1, "qnet cluster: exec: node b is dead\n")

    cluster.start("b")

    assert cluster.run("b", "cat", "/tmp/file").stdout == "kept\n"
    assert cluster.run("b", "test", "-e", "/run/file", check=False).returncode == 1
    with cluster.running("b", "python3", "-c", LISTEN) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        # Its processes are found in its new namespaces, too.
        assert any(b"socket" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in set(cluster.processes()) - before)
        assert cluster.run("a", "python3", "-c", CALL, "b").stdout == "HELLO\n"


def test_the_project_is_seen_on_every_node_wherever_it_lies(tmp_path: Path) -> None:
    """Also below /tmp, which is each node's own, and after a restart, when the disk has the place for it already."""
    for package in ("qnetpy", "resmgr", "stack"):
        shutil.copytree(Path(__file__).parents[2] / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""if True:
        import qnetpy
        from qnetpy.testing.cluster import cluster
        assert qnetpy.__file__.startswith({str(tmp_path)!r})
        with cluster({f"[nodes.a]{chr(10)}{EMPTY}"!r}) as nodes:
            for _ in range(2):
                print(nodes.run("a", "ls", {str(tmp_path)!r}).stdout.split())
                nodes.kill("a")
                nodes.start("a")
    """
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("['qnetpy', 'resmgr', 'stack']\n" * 2, "")


def test_links_have_their_mtu_and_a_cable_joins_two(start_cluster: Start) -> None:
    cluster = start_cluster(
        f'[links.wide]\nmtu = 9000\n[links.cable]\nkind = "veth"\n[nodes.a]\n{EMPTY}[nodes.b]\n{EMPTY}[nodes.c]\nlinks = ["wide"]\n{EMPTY}'
    )
    assert [cluster.run("a", "cat", f"/sys/class/net/eth{n}/mtu").stdout for n in (0, 1)] == ["9000\n", "1500\n"]
    assert cluster.run("c", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    for _ in range(2):
        with cluster.running("b", "python3", "-c", LISTEN) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            assert cluster.run("a", "python3", "-c", CALL, cluster.address("b", 1)).stdout == "HELLO\n"
        cluster.kill("b")
        cluster.start("b")


def test_users_of_the_topology_exist_on_every_node(start_cluster: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a user namespace has one user")
    cluster = start_cluster(f'users = [{{name = "alice", uid = 4001}}]\n[nodes.a]\n{EMPTY}')
    assert cluster.run("a", "sh", "-c", "id -un; id -u; cd; pwd; touch mine", user="alice").stdout == "alice\n4001\n/home/alice\n"
    assert cluster.run("a", "stat", "-c", "%U", "/home/alice/mine").stdout == "alice\n"


def test_a_boot_command_that_fails_is_told_and_leaves_nothing(start_cluster: Start) -> None:
    before = list(state.names())
    with pytest.raises(ClusterError) as caught:
        start_cluster('[nodes.a]\nboot = [["sh", "-c", "echo no such luck; exit 3"]]\nshutdown = []\n')
    assert str(caught.value) == "node a did not start: sh -c echo no such luck; exit 3 ended with 3: no such luck"
    assert list(state.names()) == before


def test_shutdown_commands_run_when_the_cluster_goes_down(tmp_path: Path) -> None:
    text = f'[nodes.a]\nboot = []\nshutdown = [["sh", "-c", "echo bye >{tmp_path}/said"]]\n'
    with kit.cluster(text, writable=(tmp_path,)):
        assert not (tmp_path / "said").exists()
    assert (tmp_path / "said").read_text() == "bye\n"


@pytest.mark.parametrize("victim", ["supervisor", "guardian", "init"])
def test_kill_9_leaves_nothing_behind(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNET_CLUSTERS", str(tmp_path / "clusters"))
    plan = topology.plan(topology.parse(f"[nodes.a]\n{EMPTY}[nodes.b]\n{EMPTY}", "test"), "doomed", "test")
    guardian = harness.start(plan)
    cluster = kit.Cluster(plan)
    with cluster.running("a", "sh", "-c", "echo; exec sleep 60") as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        pids = everybody(cluster)
        status = cluster.status()
        supervisor, nodes = status["pid"], status["nodes"]
        assert isinstance(supervisor, int)
        assert isinstance(nodes, dict)
        os.kill({"supervisor": supervisor, "guardian": guardian.pid, "init": nodes["a"]["pid"]}[victim], signal.SIGKILL)
        assert sleeper.wait(10) == 137
    if victim == "init":
        wait_for(lambda: cluster.run("a", "true", check=False).stderr == "qnet cluster: exec: node a is dead\n")
        assert cluster.run("b", "hostname").stdout == "b\n"
        assert harness.stop("doomed")
    guardian.wait(10)
    harness.stop("doomed")
    wait_for(lambda: outside(pids) == [])
    assert not (tmp_path / "clusters").exists()


def test_the_cluster_ends_with_the_program_that_holds_its_leash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test runner that is killed takes its clusters with it."""
    monkeypatch.setenv("QNET_CLUSTERS", str(tmp_path / "clusters"))
    text = f"[nodes.a]\n{EMPTY}"
    code = f"from qnetpy.testing.cluster import cluster\nwith cluster({text!r}) as c:\n print(c.name, flush=True)\n input()\n"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        name = runner.stdout.readline().strip()
        plan = topology.plan(topology.parse(f"[nodes.a]\n{EMPTY}", "test"), name, "test")
        pids = everybody(kit.Cluster(plan))
        runner.kill()
    wait_for(lambda: outside(pids) == [])


def test_a_second_cluster_of_the_same_name_is_refused_and_a_stale_one_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNET_CLUSTERS", str(tmp_path))
    plan = topology.plan(topology.parse(f"[nodes.a]\n{EMPTY}", "test"), "twice", "test")
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "lock").touch()
    process = harness.start(plan, leash=True)
    try:
        with pytest.raises(ClusterError, match="is running already; try: qnet cluster down twice"):
            harness.start(plan)
    finally:
        harness.end(process, state.directory("twice"))
    assert list(state.names()) == []
