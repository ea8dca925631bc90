"""Devices, FIFOs and terminals of another node, used by programs that know nothing of it: one cluster for the whole file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.meshed import seen
from tests.cluster.test_managers import Program, program

pytestmark = [pytest.mark.cluster, pytest.mark.priv]

TOPOLOGY = """
title = "devices"
users = [{ name = "alice", uid = 4001 }]
[links.lan]
[config.access.spawn]
nodes = ["*"]
[[config.access.users]]
mapping = "identity"
root = "root"
[[config.access.exports]]
path = "/"
verbs = ["read"]
[[config.access.exports]]
path = "/dev"
verbs = ["read", "write"]
[[config.access.exports]]
path = "/dev/pts"
verbs = ["read", "write"]
devices = ["terminals"]
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
"""

IN_C = """
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
static int broken;
static void pipe_broke(int number) { broken = number == SIGPIPE; }
int main(int count, char **arguments) {
    char data[64];
    struct termios settings;
    struct winsize window = {5, 6, 0, 0};
    int fd = open(arguments[1], O_RDWR | O_NONBLOCK), length;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    setvbuf(stdout, 0, _IOLBF, 0);
    printf("%d %d", isatty(fd), read(fd, data, sizeof data) == -1 && errno == EAGAIN);
    tcgetattr(fd, &settings);
    cfmakeraw(&settings);
    printf(" %d %d", tcsetattr(fd, TCSADRAIN, &settings), ioctl(fd, TIOCSWINSZ, &window));
    printf(" %d\\n", poll(&wait, 1, 0));
    if (poll(&wait, 1, 10000) != 1) return 2;
    length = read(fd, data, sizeof data);
    printf("%.*s\\n", length, data);
    fcntl(fd, F_SETFL, 0);
    length = read(fd, data, sizeof data);
    printf("%.*s\\n", length, data);
    signal(SIGPIPE, pipe_broke);
    fd = open(arguments[2], O_WRONLY);
    printf("%d\\n", (int)write(fd, "hello", 5));
    fgets(data, sizeof data, stdin);
    printf("%d", (int)write(fd, "hello", 5));
    printf(" %d %d\\n", errno == EPIPE, broken);
    return 0;
}
"""


@pytest.fixture(scope="module")
def two() -> Iterator[kit.Cluster]:
    with seen(TOPOLOGY) as running:
        running.run("n1", "sh", "-c", "cat >/tmp/c.c && cc -o /tmp/c /tmp/c.c", input=IN_C, seconds=30)
        yield running


def pair(there: Program) -> str:
    """A new pseudo terminal of the program's node, `m` in it; the slave's name."""
    assert there.ask("globals().update(zip(('m', 's'), os.openpty()))") == "None"
    return there.ask("os.ttyname(s)")


def test_a_program_in_c(two: kit.Cluster) -> None:
    with program(two, "n2") as there:
        name = pair(there)
        two.run("n2", "sh", "-c", "rm -f /tmp/fifo; mkfifo /tmp/fifo")
        with two.running("n1", "/tmp/c", f"/net/n2{name}", "/net/n2/tmp/fifo") as running:
            assert running.stdin is not None
            assert running.stdout is not None
            assert running.stdout.readline() == b"1 1 0 0 0\n"
            assert there.ask("os.get_terminal_size(m)") == "os.terminal_size(columns=6, lines=5)"
            assert there.ask("os.write(m, b'polled')") == "6"
            assert running.stdout.readline() == b"polled\n"
            assert there.ask("time.sleep(0.05) or os.write(m, b'waited')") == "6"
            assert running.stdout.readline() == b"waited\n"
            # It waits for a reader, who is a program of n2 itself.
            assert there.ask("globals().update(f=os.open('/tmp/fifo', os.O_RDONLY))") == "None"
            assert running.stdout.readline() == b"5\n"
            assert there.ask("os.read(f, 9)") == "b'hello'"
            assert there.ask("os.close(f)") == "None"
            running.stdin.write(b"\n")
            running.stdin.flush()
            assert running.stdout.readline() == b"-1 1 1\n"
            assert running.wait(10) == 0


def test_shells(two: kit.Cluster) -> None:
    def sh(script: str, node: str = "n1", user: str | None = None) -> list[str]:
        return two.run(node, "sh", "-c", script, user=user).stdout.split()

    assert sh("head -c 100000 /net/n2/dev/urandom | wc -c; echo x >/net/n2/dev/null; cat /net/n2/dev/null") == ["100000"]
    # Two nodes and one FIFO: who is first waits.
    two.run("n2", "sh", "-c", "rm -f /tmp/q; mkfifo -m 666 /tmp/q")
    with two.running("n2", "cat", "/tmp/q") as reader:
        sh("echo from n1 >/net/n2/tmp/q", user="alice")
        assert reader.communicate(timeout=10)[0] == b"from n1\n"
    with two.running("n1", "cat", "/net/n2/tmp/q") as reader:
        sh("seq 20000 >/net/n2/tmp/q")
        assert len(reader.communicate(timeout=10)[0].split()) == 20000
    # Not served: disks, memory, the log of the kernel; and a terminal of /dev itself.
    refused = two.run("n1", "sh", "-c", "for name in mem kmsg ptmx; do cat /net/n2/dev/$name; done", check=False)
    assert refused.stderr.count("Permission denied") + refused.stderr.count("No such file") == 3


def test_a_program_at_a_terminal_of_another_node(two: kit.Cluster) -> None:
    with program(two, "n1") as here:
        name = pair(here)
        assert here.ask("__import__('termios').tcsetwinsize(m, (30, 100))") == "None"
        script = "trap 'echo caught' INT; tty; stty size; read line; echo \"<$line>\"; sleep 5 & wait; echo over"
        with two.running("n2", "qnet", "on", "-t", f"/net/n1{name}", "n2", "--", "sh", "-c", script) as running:
            said = ""
            while "\n" not in said or len(said.split()) < 3:
                said += eval(here.ask("os.read(m, 100)")).decode()
            assert said.split()[0].startswith("/dev/pts/")
            assert said.split()[1:] == ["30", "100"]
            assert here.ask("os.write(m, b'typed\\r')") == "6"
            while "<typed>" not in said:
                said += eval(here.ask("os.read(m, 100)")).decode()
            assert here.ask("os.write(m, b'\\x03')") == "1"
            while "over" not in said:
                said += eval(here.ask("os.read(m, 100)")).decode()
            assert "caught" in said, "Ctrl-C is typed at n1 and is a signal on n2"
            assert running.wait(10) == 0
        assert here.ask("bool(__import__('termios').tcgetattr(m)[3] & 8)") == "True", "its echo is as before"
        # A program of n2 that opens it itself.
        script = 'stty -echo; stty size; read line; echo "<$line>"; stty echo'
        with two.running("n2", "sh", "-c", f"exec </net/n1{name} >/net/n1{name}; {script}") as running:
            assert eval(here.ask("os.read(m, 100)")).split() == [b"30", b"100"]
            assert here.ask("os.write(m, b'asked\\n')") == "6"
            assert eval(here.ask("os.read(m, 100)")).split() == [b"<asked>"]
            assert running.wait(10) == 0
    refused = two.run("n1", "qnet", "on", "-t", "/net/n2/dev/null", "n2", "--", "true", check=False)
    assert (refused.returncode, refused.stderr) == (255, "qnet on: /net/n2/dev/null is not a terminal\n")
