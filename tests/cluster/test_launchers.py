"""Real launchers over `qnet rsh` as howto/launchers.md says: what they would do over ssh, they do over Qnet."""

from __future__ import annotations

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]


def sh(cluster: kit.Cluster, script: str, node: str = "a") -> str:
    return cluster.run(node, "sh", "-ec", script, user="alice").stdout


def test_rsync_copies_there_and_back(three: kit.Cluster) -> None:
    sh(three, "mkdir -p /tmp/tree/sub && head -c 2000000 /dev/urandom >/tmp/tree/big && echo 'a  b' >'/tmp/tree/sub/two words'")
    sh(three, "rsync -a -e 'qnet rsh' /tmp/tree/ alice@b:/tmp/copy/ && RSYNC_RSH=qnet-rsh rsync -a b:/tmp/copy/ /tmp/back/")
    assert sh(three, "diff -r /tmp/tree /tmp/back && echo same") == "same\n"
    assert sh(three, "cat '/tmp/copy/sub/two words'", "b") == "a  b\n"


def test_git_clones_and_pushes(three: kit.Cluster) -> None:
    sh(three, "git init -q --bare /tmp/project", "b")
    told = sh(
        three,
        "export GIT_SSH_COMMAND='qnet rsh' GIT_TRACE_PACKET=/tmp/packets; git clone -q b:/tmp/project /tmp/project 2>/dev/null;"
        "cd /tmp/project;"
        "git -c user.name=x -c user.email=x@x commit -q --allow-empty -m one; git push -q origin HEAD:refs/heads/main;"
        "git ls-remote origin refs/heads/main",
    )
    assert told.split()[1] == "refs/heads/main"
    # -G said that this is like OpenSSH, so the variable that asks for the newer protocol went along.
    assert "version 2" in sh(three, "cat /tmp/packets")


def test_execnet_finds_a_program_that_is_called_ssh(three: kit.Cluster) -> None:
    told = sh(
        three,
        """mkdir -p /tmp/as-ssh; ln -s "$(command -v qnet-rsh)" /tmp/as-ssh/ssh; export PATH=/tmp/as-ssh:$PATH
        python -c 'import execnet, sys
g = execnet.makegateway("ssh=b//python=" + sys.executable)
print(g.remote_exec("import socket; channel.send(socket.gethostname())").receive())
g.exit()'""",
    )
    assert told == "b\n"


def test_the_words_are_one_command_of_a_shell(three: kit.Cluster) -> None:
    told = sh(
        three,
        """set +e; echo in | qnet rsh -n b cat; echo in | qnet rsh b cat '&&' echo '$HOME'; qnet rsh b exit 3; echo $?
        qnet rsh b 'kill -9 $$'; echo $?; qnet rsh nowhere true 2>&1; echo $?; qnet rsh bob@b true 2>/dev/null; echo $?""",
    )
    said = "qnet rsh: no node nowhere is up; try: qnet ls"
    assert told.splitlines() == ["in", "/home/alice", "3", "137", said, "255", "255"]
