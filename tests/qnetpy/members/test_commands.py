"""What the daemon answers to requests of people, when they are nonsense."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from qnetpy.enrol.service import EnrolmentService
from qnetpy.members.commands import Issuing, verbs
from qnetpy.testing.members import enrolled
from qnetpy.testing.world import World

HUGE = 10**400
"""JSON has it, and no float is so large."""


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"days": HUGE}, "too long a time"),
        ({"days": -HUGE}, "too long a time"),
        ({"ttl": HUGE}, "too long a time"),
        ({"days": 1e308}, "not for ever"),
        ({"days": float("nan")}, "not for ever"),
        ({"days": 0}, "more than nothing"),
        ({"uses": HUGE}, "1 to 256"),
        ({"ttl": 10**9}, "24 hours"),
    ],
)
def test_an_invitation_with_a_number_out_of_all_measure_is_an_error_and_no_more(request_: Mapping[str, object], why: str) -> None:
    world = World(1)
    chance = random.Random(1).randbytes
    world.join("root")
    store = enrolled(world.authority, "root", world.dispatch.wall(), chance, roles=["issuer"])
    node = world.start("root", store=store)
    assert node.membership is not None
    ports: list[int | None] = []
    enrolment = EnrolmentService(node.view, Issuing(node.membership, node.view), chance, 0, ports.append)
    answers: list[Mapping[str, object]] = []
    verbs(node.membership, enrolment, node.view, False)["invite"](request_, answers.append)
    (answer,) = answers
    assert why in str(answer["error"])
    assert not enrolment.invitations.open
    assert ports == []
