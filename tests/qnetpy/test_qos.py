"""Choices of paths as people write them."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from qnetpy.link.transport.routes import EXCLUSIVE, LOADBALANCE, PREFERRED, REDUNDANT, THEIRS, policy_of, port_of, route
from qnetpy.parameters import QnetSettings
from qnetpy.qos import Choice, QosError, parse_choice, split
from qnetpy.routewatch import RouteWatch
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.carrier import WAITING
from resmgr.channel import PID_SYSTEM, Credentials, Message, Nd
from resmgr.dispatch import Buffer
from resmgr.testing.virtual import VirtualDispatch

CHOICES = [
    ("loadbalance", Choice(LOADBALANCE)),
    ("redundant", Choice(REDUNDANT)),
    ("preferred:en1", Choice(PREFERRED, "en1")),
    ("exclusive:wlp3s0.7", Choice(EXCLUSIVE, "wlp3s0.7")),
]


@pytest.mark.parametrize(("text", "choice"), CHOICES)
def test_text_and_back(text: str, choice: Choice) -> None:
    assert parse_choice(text) == choice
    assert str(choice) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no policy; there are: loadbalance, redundant"),
        ("best", "'best' is no policy"),
        ("preferred", "needs an interface: preferred:en0"),
        ("exclusive:", "needs an interface"),
        ("loadbalance:en0", "takes no interface"),
        ("redundant:", "takes no interface"),
        ("preferred:a/b", "no name of an interface"),
    ],
)
def test_what_says_nothing_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(QosError, match=why):
        parse_choice(text)
    with pytest.raises(QosError):
        QnetSettings(paths=text)
    with pytest.raises(QosError):
        QnetSettings(policies={"b": text})


def test_names() -> None:
    assert split("b") == ("b", None)
    assert split("b~redundant") == ("b", "redundant")
    assert split("b~") == ("b", "")


def test_routes_fit_the_upper_half_of_a_descriptor_and_are_never_zero() -> None:
    for policy in (LOADBALANCE, REDUNDANT, EXCLUSIVE, PREFERRED):
        for port in (0, 1, 255):
            number = route(policy, port)
            assert 0 < number < 1 << 16
            assert (policy_of(number), port_of(number)) == (policy, port)
            assert route(policy, port, theirs=True) == number | THEIRS


def test_a_route_without_a_path_waits_and_then_fails_once() -> None:
    dispatch = VirtualDispatch(1)
    stuck = True
    failed: list[float] = []
    watch = RouteWatch(dispatch, lambda number: stuck, 3.0, lambda: failed.append(dispatch.now()))
    begin = dispatch.now()
    assert watch.state(5) == WAITING
    dispatch.run_for(2.9)
    assert watch.state(5) == WAITING
    dispatch.run_for(0.2)
    assert watch.state(5) == errno.ENETDOWN
    assert failed == [begin + 3.0]
    stuck = False
    assert watch.state(5) == 0
    stuck = True
    assert watch.state(5) == WAITING


# Whole nodes


def two(settings: QnetSettings | None = None) -> tuple[World, SimNode, SimNode]:
    world = World(3, links=("lan", "san"), settings=settings)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    world.run(2.0)
    return world, a, b


def serve(node: SimNode) -> list[bytes]:
    """A server with chid 77 that answers with what it gets."""
    got: list[bytes] = []

    def message(message: Message) -> None:
        got.append(bytes(message.data))
        message.reply(0, message.data)

    node.system.kernel.channel(message, chid=77)
    return got


def send(node: SimNode, nd: int, data: bytes) -> list[tuple[int, bytes]]:
    """A message from *node*; the answers as they come."""
    answers: list[tuple[int, bytes]] = []

    def done(status: int, reply: Buffer) -> None:
        answers.append((status, bytes(reply)))

    node.system.kernel.connect(Nd(nd), PID_SYSTEM, 77, Credentials(0, 0)).submit((data,), 100_000, done)
    return answers


def frames(world: World) -> tuple[int, int]:
    return world.hubs["lan"].frames, world.hubs["san"].frames


@pytest.mark.parametrize("interface", ["en0", "en1"])
@pytest.mark.parametrize("policy", ["preferred", "exclusive"])
def test_question_and_answer_keep_to_the_interface_that_is_named(policy: str, interface: str) -> None:
    world, a, b = two()
    serve(b)
    nd = a.nd("b") | a.qnet.route_by(f"{policy}:{interface}") << 16
    before = frames(world)
    answers = [send(a, nd, bytes([number]) * 10_000) for number in range(50)]
    assert world.until(lambda: all(answers))
    used, idle = (after - first for after, first in zip(frames(world), before, strict=True))
    if interface == "en1":
        used, idle = idle, used
    assert used > 700
    assert idle < 30


def test_the_policy_of_the_configuration_holds_for_names_without_a_choice() -> None:
    world, a, b = two(QnetSettings(paths="exclusive:en1", policies={"x": "redundant"}))
    serve(b)
    before = frames(world)
    answers = [send(a, a.nd("b"), bytes(10_000)) for _ in range(50)]
    assert world.until(lambda: all(answers))
    assert frames(world)[0] - before[0] < 30
    assert frames(world)[1] - before[1] > 700
    assert str(a.qnet.choice("x")) == "redundant"


def test_a_message_that_insists_on_a_dead_interface_waits_and_then_fails_and_can_be_let_go() -> None:
    world, a, b = two()
    got = serve(b)
    nd = a.nd("b") | a.qnet.route_by("exclusive:en1") << 16
    assert world.until(partial(bool, send(a, nd, b"first")))
    b.cables["en1"].cut = True
    world.run(1.0)
    waits = send(a, nd, b"waits")
    connection = a.system.kernel.connect(Nd(nd), PID_SYSTEM, 77, Credentials(0, 0))
    ended: list[int] = []
    pending = connection.submit((b"let go",), 100, lambda status, reply: ended.append(status))
    world.run(1.0)
    assert not waits
    assert pending is not None
    pending.unblock()
    assert ended == [-errno.EINTR]
    assert world.until(partial(bool, waits), 3.0)
    assert waits == [(-errno.ENETDOWN, b"")]
    assert send(a, nd, b"refused") == [(-errno.ENETDOWN, b"")]
    assert world.until(partial(bool, send(a, a.nd("b"), b"the other way")))
    b.cables["en1"].cut = False
    world.run(2.0)
    again = send(a, nd, b"again")
    assert world.until(partial(bool, again))
    assert again == [(0, b"again")]
    assert len(got) == len(set(got))


def test_choices_that_mean_nothing_here_say_so() -> None:
    _, a, _ = two()
    with pytest.raises(OSError, match="no policy") as refused:
        a.qnet.route_by("best")
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="'en7' is no interface that Qnet uses here; there are: en0, en1") as refused:
        a.qnet.route_by("preferred:en7")
    assert refused.value.errno == errno.ENXIO
