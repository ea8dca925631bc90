"""Who may run what as whom: patterns of commands, rules, and what on the way to a program its user could change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resmgr.access import MappedUser
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.procmgr.message import SPAWN_ROOT, Spawn
from resmgr.procmgr.rules import CommandPattern, Refusal, SpawnRule, SpawnRules, changeable

ALICE, BOB = MappedUser(1000, 1000, (1000, 50)), MappedUser(1001, 1001)
ROOT = os.geteuid() == 0


@pytest.mark.parametrize(
    ("pattern", "command", "fits"),
    [
        ("/usr/bin/rsync", "/usr/bin/rsync --server -a", True),
        ("/usr/bin/rsync", "/usr/bin/rsync", True),
        ("/usr/bin/rsync", "rsync", False),
        ("/usr/bin/rsync", "/usr/bin/rsyncx", False),
        ("/usr/bin/rsync", "/usr/bin/../bin/rsync", False),
        ("/usr/bin/rsync", "/usr//bin/rsync", False),
        ("/usr/bin/rsync", "/usr/bin/rsync/", False),
        ("/usr/bin/git-*", "/usr/bin/git-shell -c x", True),
        ("/usr/bin/*", "/usr/bin/sub/tool", False),
        ("/opt/**", "/opt/a/b/c", True),
        ("/opt/**", "/opt/a/../../bin/sh", False),
        ("/usr/bin/[gx]zip", "/usr/bin/gzip", True),
        ("/usr/bin/[!gx]zip", "/usr/bin/gzip", False),
        ("/usr/bin/[!a]zip", "/usr/bin/bzip", True),
        ("/usr[!a]bin", "/usr/bin", False),
        ("/usr/bin/?zip", "/usr/bin/bzip", True),
        ("/usr/bin/a.b", "/usr/bin/axb", False),
        ("/bin/systemctl restart app-*", "/bin/systemctl restart app-1", True),
        ("/bin/systemctl restart app-*", "/bin/systemctl stop app-1", False),
        ("/bin/systemctl restart app-*", "/bin/systemctl restart app-1 --now", False),
        ("/bin/systemctl restart app-*", "/bin/systemctl restart", False),
        ("/bin/systemctl restart ...", "/bin/systemctl restart", True),
        ("/bin/systemctl restart ...", "/bin/systemctl restart a b", True),
        ("/bin/systemctl restart ...", "/bin/systemctl stop a", False),
        ("/bin/cat /srv/data/*", "/bin/cat /srv/data/x", True),
        ("/bin/cat /srv/data/*", "/bin/cat /srv/data/x/y", False),
        ("/bin/cat /srv/data/**", "/bin/cat /srv/data/../../etc/shadow", False),
        ("/bin/cat /srv/../x", "/bin/cat /srv/../x", True),
        ("'/opt/my tool' x", "'/opt/my tool' x", True),
        ("/bin/x ''", "/bin/x ''", True),
    ],
)
def test_patterns(pattern: str, command: str, fits: bool) -> None:
    import shlex

    assert CommandPattern.parse(pattern).fits(tuple(map(os.fsencode, shlex.split(command)))) is fits


@pytest.mark.parametrize("text", ["", "rsync", "/usr/../bin/x", "/usr//bin/x", "'unclosed", "/", "./x"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError):
        CommandPattern.parse(text)


def info(node: str = "n2", *roles: str) -> ClientInfo:
    return ClientInfo(Nd(1), node, frozenset(roles), Credentials(1000, 1000), 1)


def test_one_rule_that_allows_it_is_enough_and_the_best_reason_is_told() -> None:
    make = SpawnRule(frozenset({"n2"}), commands=(CommandPattern.parse("/usr/bin/make"),), nice=5)
    root = SpawnRule(roles=frozenset({"admin"}), users=frozenset({0, 1000}))
    rules = SpawnRules((make, root))
    spawn = Spawn((b"/usr/bin/make",), nice=5)
    assert rules.decide(info(), ALICE, spawn) is make
    assert rules.decide(info(), ALICE, spawn._replace(nice=4)) is Refusal.PRIORITY_NOT_ALLOWED
    assert rules.decide(info(), ALICE, Spawn((b"/bin/sh",))) is Refusal.COMMAND_NOT_ALLOWED
    assert rules.decide(info("n2", "admin"), ALICE, Spawn((b"/bin/sh",))) is root
    assert rules.decide(info("n3", "admin"), BOB, spawn) is Refusal.USER_NOT_ALLOWED
    assert rules.decide(info("n3"), ALICE, spawn) is Refusal.NO_RULE
    assert rules.decide(info(), MappedUser(0, 0), spawn) is Refusal.USER_NOT_ALLOWED
    # What the other node brings, it can call as it likes.
    assert rules.decide(info(), ALICE, spawn._replace(flags=SPAWN_ROOT)) is Refusal.COMMAND_NOT_ALLOWED
    assert rules.decide(info("n3", "admin"), ALICE, spawn._replace(flags=SPAWN_ROOT)) is root
    assert SpawnRules().decide(info("n9"), ALICE, Spawn((b"sh",))) == SpawnRule()
    assert SpawnRules(()).decide(info(), ALICE, spawn) is Refusal.NO_RULE


@pytest.mark.host
@pytest.mark.skipif(not ROOT, reason="files of several users need root")
def test_what_a_user_could_change_on_the_way_to_a_program() -> None:
    """In a directory of the tests' own, below one that is sticky: whoever writes there cannot replace what others have."""
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        top.chmod(0o755)
        tool = top / "tool"
        tool.touch(mode=0o755)
        path = os.fsencode(tool)
        assert changeable(path, ALICE) == b""
        os.chown(tool, 1000, 0)
        assert changeable(path, ALICE) == path
        assert changeable(path, BOB) == b""
        assert changeable(path, MappedUser(0, 0)) == b""
        os.chown(tool, 0, 50)
        tool.chmod(0o775)
        assert changeable(path, ALICE) == path
        assert changeable(path, BOB) == b""
        tool.chmod(0o757)
        assert changeable(path, BOB) == path
        tool.chmod(0o755)

        # A link that leads to a shell, in a directory of the user's, behind a link of root's.
        own = top / "own"
        own.mkdir()
        (own / "tool").symlink_to("/bin/sh")
        (top / "link").symlink_to("own/tool")
        link = os.fsencode(top / "link")
        assert changeable(link, ALICE) == b""
        os.chown(own, 1000, 1000)
        assert changeable(link, ALICE) == os.fsencode(own)
        assert changeable(link, BOB) == b""
        os.chown(own, 0, 0)
        own.chmod(0o1777)
        assert changeable(link, ALICE) == b""
        os.lchown(own / "tool", 1000, 1000)
        assert changeable(link, ALICE) == os.fsencode(own / "tool")

        (top / "up").symlink_to("own/../tool")
        assert changeable(os.fsencode(top / "up"), ALICE) == b""
        (top / "loop").symlink_to("loop")
        with pytest.raises(OSError, match="Too many levels"):
            changeable(os.fsencode(top / "loop"), ALICE)
        with pytest.raises(FileNotFoundError):
            changeable(os.fsencode(top / "none"), ALICE)
