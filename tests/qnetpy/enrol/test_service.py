"""The enrolment service on real sockets: the door opens and shuts, strangers are bounded, and the joining side finds its way through what
it meets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from qnetpy.enrol import client, listener
from qnetpy.enrol.client import Place, Seeker
from qnetpy.enrol.code import Code, make_code
from qnetpy.enrol.inviter import Exchange
from qnetpy.enrol.joiner import Failure
from qnetpy.enrol.service import EnrolmentService
from qnetpy.enrol.testing import PRIVATE, WALL
from qnetpy.enrol.wire import Grant, Kind, Refusal, Refused, frame
from qnetpy.identity.authority import issue_certificate, make_authority
from resmgr.errors import ResmgrError
from resmgr.runner import TrioDispatch, open_dispatch

BASE = bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666")
"""A point of the curve, so that there is something to compute."""
pytestmark = pytest.mark.host


class Desk:
    """`Issuing` over an authority of its own."""

    def __init__(self) -> None:
        self.authority = make_authority("garden", WALL)
        self.names: dict[str, bytes] = {}

    def check(self, roles: frozenset[str]) -> None:
        if "issuer" in roles:
            raise ValueError("not here")

    def taken(self, name: str) -> bool:
        return name in self.names

    def holder(self, static_key: bytes) -> str:
        return next((name for name, key in self.names.items() if key == static_key), "")

    def grant(self, name: str, static_key: bytes, roles: frozenset[str], validity: float) -> Grant:
        certificate = issue_certificate(self.authority, name, static_key, roles, WALL, validity)
        self.names[name] = static_key
        return Grant(self.authority.secret, certificate.chain, (self.authority.root.der,), ())


@asynccontextmanager
async def office() -> AsyncIterator[tuple[EnrolmentService, list[int | None], TrioDispatch]]:
    """A enrolment on loopback, and what it announced."""
    announced: list[int | None] = []
    async with open_dispatch() as dispatch:
        enrolment = EnrolmentService(dispatch, Desk(), os.urandom, 0, announced.append)
        try:
            yield enrolment, announced, dispatch
        finally:
            enrolment.close()


def opened(enrolment: EnrolmentService, uses: int = 1, ttl: float = 60.0) -> Code:
    return enrolment.invite("", frozenset(), uses, ttl, 86400.0).code


def seeker(code: Code, name: str = "n2", seconds: float = 5.0) -> Seeker:
    return Seeker(code, PRIVATE, name, os.urandom, time.monotonic, time.monotonic() + seconds)


async def seek(one: Seeker, *places: Place, store: Callable[[Grant], None] = lambda grant: None) -> Grant | None:
    return await trio.to_thread.run_sync(lambda: one.seek(list(places), store))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  # there is no event for a dispatch going on
            await trio.sleep(0.005)


async def test_the_door_is_open_while_somebody_may_come() -> None:
    async with office() as (enrolment, announced, _):
        assert enrolment.port == 0
        code = opened(enrolment, ttl=1.0)
        assert announced == [enrolment.port]
        stored: list[Grant] = []
        assert await seek(seeker(code), Place("127.0.0.1", enrolment.port), store=stored.append) is not None
        assert len(stored) == 1
        await until(lambda: enrolment.invitations.all()[0].joined == ["n2"] if enrolment.invitations.all() else True)
        await until(lambda: enrolment.port == 0)
        assert announced[-1] is None


async def test_who_cannot_store_it_does_not_say_that_it_joined() -> None:
    async with office() as (enrolment, _, _):
        code = opened(enrolment)

        def full(grant: Grant) -> None:
            raise ResmgrError(28, "disk full")

        with pytest.raises(ResmgrError):
            await seek(seeker(code), Place("127.0.0.1", enrolment.port), store=full)
        (one,) = enrolment.invitations.all()
        assert (one.joined, list(one.granted.values())) == ([], ["n2"])
        # The same key may come again.
        assert await seek(seeker(code), Place("127.0.0.1", enrolment.port)) is not None


async def test_connections_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qnetpy.enrol.inviter.SECONDS", 0.5)
    monkeypatch.setattr(listener, "LINGER", 0.05)
    async with office() as (enrolment, _, _):
        code = opened(enrolment)
        idle = [socket.create_connection(("127.0.0.1", enrolment.port)) for _ in range(8)]
        await until(lambda: enrolment.counters["connections_source"] == 8 - listener.CONNECTIONS_PER_SOURCE)
        await until(lambda: enrolment.counters["exchange_expired"] == listener.CONNECTIONS_PER_SOURCE)
        assert await seek(seeker(code), Place("127.0.0.1", enrolment.port)) is not None
        for sock in idle:
            sock.close()


@pytest.mark.parametrize("said", [False, True], ids=["silent", "begun"])
async def test_connections_that_are_held_open_keep_nobody_from_joining(said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for them to expire: the oldest that has shown no code makes room."""
    monkeypatch.setattr("qnetpy.enrol.invitation.HELLO_BURST", 100.0)  # as in the ten seconds for which they are held
    async with office() as (enrolment, _, _):
        code = opened(enrolment)
        hello = frame(Kind.HELLO, b"qnetjoin\x01" + code.public.encode() + b"A" + BASE)
        held: list[socket.socket] = []

        def hold() -> None:
            for number in range(listener.CONNECTIONS_MAX):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                held.append(sock)
                sock.settimeout(5.0)
                sock.bind((f"127.0.7.{2 + number // 4}", 0))
                sock.connect(("127.0.0.1", enrolment.port))
                if said:
                    sock.sendall(hello)
                    assert sock.recv(1) == bytes((Kind.CHALLENGE,))

        await trio.to_thread.run_sync(hold)
        assert await seek(seeker(code), Place("127.0.0.1", enrolment.port)) is not None
        assert enrolment.counters["connections_full"] == 1
        assert enrolment.counters["exchange_expired"] == 0
        for sock in held:
            sock.close()


async def test_a_flood_from_many_sources_leaves_memory_and_invitation_alone() -> None:
    async with office() as (enrolment, _, _):
        code = opened(enrolment)
        hello = frame(Kind.HELLO, b"qnetjoin\x01" + code.public.encode() + b"A" + bytes(32))

        def flood() -> None:
            for number in range(300):
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                    sock.settimeout(2.0)
                    sock.bind((f"127.0.{number % 250}.{2 + number // 250}", 0))
                    sock.connect(("127.0.0.1", enrolment.port))
                    sock.sendall(hello)

        await trio.to_thread.run_sync(flood)
        (one,) = enrolment.invitations.all()
        assert (one.state.value, one.left) == ("open", 3)
        assert enrolment.counters["rate_total"] + enrolment.counters["connections_full"] > 100
        with trio.fail_after(20):
            while await seek(seeker(code), Place("127.0.0.1", enrolment.port)) is None:  # noqa: ASYNC110  # there is no event for a budget
                await trio.sleep(0.2)


async def test_a_bug_in_the_key_exchange_ends_one_enrolment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with office() as (enrolment, _, _):
        code = opened(enrolment)
        with monkeypatch.context() as patch:

            def broken(*_: object) -> None:
                raise ZeroDivisionError

            patch.setattr("qnetpy.enrol.inviter._compute", broken)
            one = seeker(code)
            assert await seek(one, Place("127.0.0.1", enrolment.port)) is None
            assert [miss.outcome for miss in one.misses] == [Refused(Refusal.MALFORMED, 0)]
        assert "ZeroDivisionError" in caplog.text
        assert await seek(seeker(code), Place("127.0.0.1", enrolment.port)) is not None


async def test_the_joiner_passes_by_who_is_not_it_and_stops_at_impostors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        closed_port = closed.getsockname()[1]
        closed.close()
        async with office() as (enrolment, _, _), office() as (other, _, _):
            code = opened(enrolment)
            opened(other)
            one = seeker(code, seconds=8.0)
            places = [
                ("127.0.0.1", closed_port),
                ("127.0.0.1", silent.getsockname()[1]),
                ("127.0.0.1", other.port),
                ("::1", enrolment.port),
            ]
            assert await seek(one, *(Place(*place) for place in places)) is not None
            assert [type(miss.outcome) for miss in one.misses] == [type(None), Failure, Refused]


async def test_a_wrong_code_is_not_tried_elsewhere() -> None:
    async with office() as (enrolment, _, _):
        code = make_code(os.urandom, opened(enrolment).public)
        one = seeker(code)
        here = Place("127.0.0.1", enrolment.port)
        assert await seek(one, here, here, here) is None
        (miss,) = one.misses
        assert miss.outcome == Refused(Refusal.WRONG, 2)
        assert enrolment.invitations.all()[0].wrong == ["127.0.0.1"]


async def test_strangers_who_pretend_get_three_guesses_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with office() as (enrolment, _, _):
        code = make_code(os.urandom, opened(enrolment).public)

        # An end that takes every confirmation for right, and accepts with one that it cannot know.
        def accepts(self: Exchange, body: bytes, now: float) -> None:
            self.out.append(frame(Kind.ACCEPT, bytes(64)))

        monkeypatch.setattr(Exchange, "_confirm", accepts)
        one = seeker(code)
        here = Place("127.0.0.1", enrolment.port)
        assert await seek(one, *[here] * 9) is None
        assert [miss.outcome for miss in one.misses] == [Failure.IMPOSTOR] * client.GUESSES_MAX


async def test_what_cannot_be_invited_is_said() -> None:
    async with office() as (enrolment, _, _):
        for arguments, why in (
            (("N 2", frozenset[str](), 1, 60.0), "no name for a node"),
            (("", frozenset({"A"}), 1, 60.0), "roles are names"),
            (("n2", frozenset[str](), 2, 60.0), "one name is for one machine"),
            (("", frozenset[str](), 0, 60.0), "1 to 256"),
            (("", frozenset[str](), 1, 1e9), "24 hours"),
            (("", frozenset({"issuer"}), 1, 60.0), "not here"),
        ):
            with pytest.raises(ValueError, match=why):
                enrolment.invite(*arguments, 86400.0)
        for validity in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="more than nothing"):
                enrolment.invite("", frozenset(), 1, 60.0, validity)
        assert enrolment.port == 0


async def test_a_port_that_is_taken_is_an_error_and_no_invitation() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        async with open_dispatch() as dispatch:
            enrolment = EnrolmentService(dispatch, Desk(), os.urandom, taken.getsockname()[1], lambda port: None)
            with pytest.raises(OSError, match="in use"):
                opened(enrolment)
            assert not enrolment.invitations.open
            enrolment.close()


def test_addresses_as_people_type_them() -> None:
    assert client.resolve("127.0.0.1", 7) == [Place("127.0.0.1", 7)]
    assert client.resolve("127.0.0.1:9", 7) == [Place("127.0.0.1", 9)]
    assert client.resolve("[::1]:9", 7) == [Place("::1", 9)]
    assert client.resolve("::1", 7) == [Place("::1", 7)]
    assert client.resolve("fe80::1%lo", 7) == [Place("fe80::1%lo", 7)]
    assert str(Place("::1", 9)) == "[::1]:9"
    for text in ("127.0.0.1:abc", "[::1]x", "[::1", "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:", ""):
        with pytest.raises(ValueError):
            client.resolve(text, 7)
    with pytest.raises(ResmgrError, match=r"no\.such\.host\.invalid"):
        client.resolve("no.such.host.invalid", 7)
