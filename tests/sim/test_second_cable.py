"""A cable that begins to work while nodes see each other over another, or all at once after long: no announcement comes again, no carrier
changes, and it is used within seconds. Whole nodes in virtual time."""

from __future__ import annotations

import pytest

from qnetpy.link.calls import RETRY_KNOWN
from qnetpy.link.constants import RETRY_JITTER, RETRY_MAX
from qnetpy.link.paths import SEEK_AGAIN
from qnetpy.testing.world import World

pytestmark = pytest.mark.sim
REPEAT = RETRY_MAX * (1.0 + RETRY_JITTER) + 0.1
"""Seconds from one frame of a call to the next at most, and a little for what follows its answer."""
LAST_CHALLENGE = 1.6
"""Seconds from the last CHALLENGE of a try to open a path to the end of that."""
SEEK = 5.0 + LAST_CHALLENGE
"""Seconds from the last CHALLENGE of a try to open a path to the first of the next, at most: the rest of the try, and the pause."""
PROBE = 0.6
"""Seconds between the probes of a path that does not answer, and a little."""
AWAY = (20.0, 47.0, 71.5, 93.0, 151.0, 204.0)


def cables(seed: int, *bad: str, count: int = 2) -> World:
    """Two nodes that see each other over *count* cables of which those are bad from the start."""
    world = World(seed, links=[f"lan{number}" for number in range(count)])
    world.join("a", "b")
    for name in "ab":
        world.start(name)
    cut(world, True, *bad)
    assert world.until(world.settled)
    return world


def cut(world: World, state: bool, *interfaces: str) -> None:
    for node in world.live:
        for interface in interfaces:
            node.cables[interface].cut = state


def used(world: World) -> bool:
    """Each node reaches each other over every cable."""
    links = [(node, link) for node in world.live for link in node.qnet.machine.links.values()]
    return len(links) == 2 and all(
        {path.address[0] for number, path in link.paths.items() if link.transport.usable(number)} == set(node.cables)
        for node, link in links
    )


@pytest.mark.parametrize("away", AWAY)
def test_a_cable_that_never_worked_is_used_when_it_does(away: float) -> None:
    world = cables(1, "en1")
    world.run(away)
    assert not used(world)
    cut(world, False, "en1")
    begin = world.now
    assert world.until(lambda: used(world), 120.0)
    assert world.now - begin < RETRY_KNOWN + REPEAT


@pytest.mark.parametrize("away", AWAY)
def test_after_a_long_silence_of_all_cables_one_that_never_worked_is_used_as_soon_as_the_others(away: float) -> None:
    world = cables(2, "en1")
    world.run(1.0)
    cut(world, True, "en0")
    world.run(away)
    cut(world, False, "en0", "en1")
    assert world.until(world.settled, RETRY_KNOWN + REPEAT)
    begin = world.now
    assert world.until(lambda: used(world), 120.0)
    assert world.now - begin < REPEAT


@pytest.mark.parametrize("away", AWAY)
def test_a_cable_over_which_an_earlier_link_went_is_used_when_it_works_again(away: float) -> None:
    world = cables(3)
    assert world.until(lambda: used(world))
    cut(world, True, "en0", "en1")
    world.run(60.0)
    assert not any(node.qnet.machine.links for node in world.live)
    cut(world, False, "en0")
    assert world.until(world.settled)
    world.run(away)
    cut(world, False, "en1")
    begin = world.now
    assert world.until(lambda: used(world), 120.0)
    assert world.now - begin < SEEK


@pytest.mark.parametrize("away", AWAY)
def test_a_path_that_answers_again_is_a_sign_that_others_may(away: float) -> None:
    world = cables(5, count=3)
    assert world.until(lambda: used(world))
    cut(world, True, "en0", "en1", "en2")
    world.run(60.0)
    cut(world, False, "en0", "en1")
    assert world.until(world.settled)
    world.run(away)
    cut(world, True, "en1")
    world.run(5.0)
    cut(world, False, "en1", "en2")
    begin = world.now
    assert world.until(lambda: used(world), 120.0)
    assert world.now - begin < PROBE + LAST_CHALLENGE + SEEK_AGAIN, "a try that was under way ends first"


def test_a_cable_that_never_worked_costs_no_more_than_one_that_was_lost() -> None:
    """A call to each address takes 14 frames in 8 s, and then there is a pause."""
    world = cables(4, "en1")
    world.hubs["lan1"].severed = {("a", "b"), ("b", "a")}
    cut(world, False, "en1")
    world.run(30.0)
    frames = world.hubs["lan1"].frames
    world.run(130.0)
    assert 0 < world.hubs["lan1"].frames - frames < 2 * 14 * 11
    assert world.settled()
