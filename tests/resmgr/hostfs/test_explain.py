"""Rules in words, and what was refused."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest

from resmgr.access import Export, Policy, UserRule, Verb
from resmgr.attachments import Attachments
from resmgr.attachproto import EXPORTS, REQUEST
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.errors import ResmgrError
from resmgr.explain import decide
from resmgr.ids import CHID_ATTACH, PID_SYSTEM
from resmgr.iomsg import Connect, Target
from resmgr.refusals import LINES_AT_ONCE, ROWS_MAX, Refusals
from resmgr.system import System
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts

RULES = Policy(
    Accounts(lambda: 0.0),
    users=[UserRule("none", nodes=["evil"]), UserRule("table", nodes=["b"], users={1000: "daemon"}), UserRule(roles=["lab"], root="root")],
    exports=[
        Export("/srv", ["read"]),
        Export("/srv/private", []),
        Export("/rw", ["read", "write"], nodes=["b"], users=["daemon"], setuid=True),
    ],
)


def client(node: str, uid: int = 1000, *roles: str) -> ClientInfo:
    return ClientInfo(Nd(3), node, frozenset(roles), Credentials(uid, uid), 1)


@pytest.mark.parametrize(
    ("info", "path", "what", "verbs"),
    [
        (client("b"), b"/srv/x", "[[access.exports]] 1 (/srv) allows read", frozenset({Verb.READ})),
        (client("b"), b"/srv/private/x", "[[access.exports]] 2 (/srv/private) hides it", frozenset()),
        (client("b"), b"/rw", "[[access.exports]] 3 (/rw) allows read and write", frozenset({Verb.READ, Verb.WRITE})),
        (
            client("b", 7),
            b"/rw/x",
            "no export covers /rw/x for user 7 of node b; [[access.exports]] 3 (/rw) is for nodes b and users daemon",
            frozenset(),
        ),
        (client("d", 1, "lab"), b"/etc", "no export covers /etc for user 1 of node d with roles lab", frozenset()),
    ],
)
def test_the_export_that_decides(info: ClientInfo, path: bytes, what: str, verbs: frozenset[Verb]) -> None:
    decision = decide(RULES, info, path)
    assert (decision.what, decision.verbs) == (what, verbs)
    assert decision.setuid == (Verb.WRITE in verbs)


@pytest.mark.parametrize(
    ("info", "who"),
    [
        (client("evil"), "[[access.users]] 1 (none) refuses: Operation not permitted"),
        (client("b", 5), "[[access.users]] 2 (table): user 5 there is user 65534 here, groups 65534"),
        (client("d", 0, "lab"), "[[access.users]] 3 (identity, root is root): user 0 there is user 0 here, groups 0"),
        (client("d"), "no rule of [[access.users]] is for user 1000 of node d"),
        (ClientInfo(Nd(0), "", frozenset(), Credentials(1, 1), 1), "programs of this node are themselves"),
    ],
)
def test_the_rule_that_says_who(info: ClientInfo, who: str) -> None:
    assert decide(RULES, info, b"/srv").who == who


def test_what_is_no_path() -> None:
    for path in (b"srv", b"/srv/../x"):
        with pytest.raises(ValueError, match="export"):
            decide(RULES, client("b"), path)


def test_refusals_are_bounded_in_rows_and_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    found = Refusals(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for number in range(ROWS_MAX + 10):
            found.note(client("b"), b"/%d" % number, lambda: "why")
        assert len(caplog.records) == LINES_AT_ONCE
        now[0] = 5.0
        found.note(client("b"), b"/265", lambda: "not asked again")
        assert len(caplog.records) == LINES_AT_ONCE
        found.note(client("c"), b"/1\n", lambda: "new")
    assert caplog.messages[-1] == "refused to user 1000 of node c: '/1\\n': new"
    told = found.facts()
    rows = told["rows"]
    assert isinstance(rows, list)
    assert len(rows) == ROWS_MAX
    assert (told["count"], told["not_logged"]) == (ROWS_MAX + 12, ROWS_MAX)
    assert [(row["node"], row["path"], row["count"], row["seconds"]) for row in rows[:2]] == [("c", "/1\n", 1, 0.0), ("b", "/265", 2, 0.0)]


def test_what_is_not_exported_is_noted_with_the_rule(host: HostDirectory, caplog: pytest.LogCaptureFixture) -> None:
    host.fs.set_policy(host.policy((Export("/way/pub", ["read"]), Export("/way/pub/secret", []))))
    (host.root / "way/pub/secret").mkdir(parents=True)
    far = host.remote("b", 1000)
    for path, code in ((b"etc/passwd", errno.EACCES), (b"way/x", errno.EACCES), (b"way/pub/secret", errno.ENOENT), (b"etc", errno.EACCES)):
        with pytest.raises(ResmgrError, match=os.strerror(code)):
            far.lookup(path)
    with pytest.raises(ResmgrError, match="Permission denied"):
        far.name(Connect.MKDIR, b"y", far.lookup(b"way").handle)
    rows = host.fs.refusals.facts()["rows"]
    assert isinstance(rows, list)
    # What is hidden is told to nobody and noted nowhere; a handle on the way is known by its place.
    assert {(row["path"], row["count"]) for row in rows} == {("/etc", 2), ("/way/x", 1), ("/way/y", 1)}
    assert {row["why"] for row in rows} == {f"no export covers {path} for user 1000 of node b" for path in ("/etc", "/way/x", "/way/y")}
    assert caplog.messages.count("refused to user 1000 of node b: '/etc': no export covers /etc for user 1000 of node b") == 1


def test_a_node_is_told_what_is_exported_to_it() -> None:
    system = System(VirtualDispatch(1), "here")
    attachments = Attachments(system.kernel, system.paths, system.accounts, lambda: RULES, tuple)
    target = Target(0, PID_SYSTEM, CHID_ATTACH)

    def ask(info: ClientInfo, reply_len: int = 4096, first: int = 0) -> tuple[int, dict[str, object]]:
        asker = IoClient(system.kernel, info.credentials, target=target)
        asker.connection(target).info = info
        status, reply = asker.send(target, (REQUEST.pack(EXPORTS, 0, first),), reply_len)
        return status, json.loads(bytes(reply))

    status, told = ask(client("b"))
    exports = told["exports"]
    assert isinstance(exports, list)
    assert (status, told["user"], told["errno"]) == (2, 1, 0)
    # /srv/private is hidden: its name is not told.
    assert [(row["path"], row["verbs"], row["setuid"]) for row in exports] == [
        ("/srv", ["read"], False),
        ("/rw", ["read", "write"], True),
    ]
    assert ask(client("evil"))[1] == {"local": False, "user": None, "groups": [], "errno": errno.EPERM, "exports": exports[:1]}
    # As many as fit; the rest is asked for from there on.
    status, some = ask(client("b"), 200)
    assert status == 2
    assert some["exports"] == exports[:1]
    assert ask(client("b"), first=1)[1]["exports"] == exports[1:]
    attachments.destroy()
    system.close()
