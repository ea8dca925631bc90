"""Who may run what as whom: patterns of commands, rules, and what on the way to a program its user could change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resmgr.access import MappedUser
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.procmgr.message import SPAWN_ROOT, Spawn
from resmgr.procmgr.rules import (
    CommandPattern,
    Reach,
    Refusal,
    SpawnRule,
    SpawnRules,
    changeable,
    directory_pattern,
    variable_pattern,
)

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


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"environment": (b"LANG=en_GB.UTF-8", b"LANGUAGE=en_GB:en", b"LC_ALL=C", b"TERM=xterm-256color", b"COLORTERM=truecolor")}, None),
        # These reach no program, whoever sends them.
        ({"environment": (b"PATH=/tmp", b"HOME=/tmp", b"LD_PRELOAD=/tmp/x.so", b"BASH_ENV=/tmp/x", b"a-b=1")}, None),
        ({"environment": (b"BUILD_ID=/tmp/anything",)}, None),
        ({"directory": b"/srv/data"}, None),
        ({"environment": (b"PYTHONPATH=/tmp/ali",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"LANG=C", b"PAGER=sh")}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"GIT_SSH_COMMAND=x",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"LANG=/tmp/x",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"TERM=../../tmp/x",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"LC_ALL=%n",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"LC_ALL=C\n",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"LANGUAGE=x/y",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"environment": (b"XBUILD_ID=1",)}, Refusal.ENVIRONMENT_NOT_ALLOWED),
        ({"directory": b"/tmp/ali/rr"}, Refusal.DIRECTORY_NOT_ALLOWED),
        ({"directory": b"/srv/../tmp"}, Refusal.DIRECTORY_NOT_ALLOWED),
        ({"directory": b"/srv/data/x"}, Refusal.DIRECTORY_NOT_ALLOWED),
        ({"terminal": b"/dev/tty1"}, Refusal.TERMINAL_NOT_ALLOWED),
    ],
)
def test_what_goes_with_a_list_of_commands(more: dict[str, object], refusal: Refusal | None) -> None:
    rule = SpawnRule(
        commands=(CommandPattern.parse("/usr/bin/git status"),),
        environment=(variable_pattern("BUILD_*"),),
        directories=(directory_pattern("/srv/*"),),
    )
    spawn = Spawn((b"/usr/bin/git", b"status"))._replace(**more)  # type: ignore[arg-type]  # fields of Spawn
    assert rule.refuse(ALICE, spawn) is refusal
    # Who may start anything may start it anyhow.
    assert SpawnRule().refuse(ALICE, spawn) is None


def test_what_is_no_directory_and_no_variable() -> None:
    for text in ("srv", "/srv/../x", "/srv//x", ""):
        with pytest.raises(ValueError):
            directory_pattern(text)
    for text in ("", "A=1"):
        with pytest.raises(ValueError):
            variable_pattern(text)


def test_the_reach_of_a_client() -> None:
    some = SpawnRule(frozenset({"n2"}), users=frozenset({1000}), commands=(CommandPattern.parse("/usr/bin/true"),))
    every = SpawnRule(roles=frozenset({"admin"}))
    rules = SpawnRules((some, every))
    assert rules.reach(info(), ALICE) is Reach.STARTED
    assert rules.reach(info(), BOB) is Refusal.USER_NOT_ALLOWED
    assert rules.reach(info("n3"), ALICE) is Refusal.NO_RULE
    assert rules.reach(info("n2", "admin"), ALICE) is Reach.ALL
    assert rules.reach(info("n3", "admin"), BOB) is Reach.ALL
    assert rules.reach(info("n3", "admin"), MappedUser(0, 0)) is Refusal.USER_NOT_ALLOWED


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
