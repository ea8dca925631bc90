"""The port information machine (802.1D-2004 17.27): what a port has heard, from whom, and for how long it holds."""

from __future__ import annotations

import attrs

from stack.l2.stp.port import Info, Port
from stack.l2.stp.tree import Tree
from stack.wire.bpdu import Config, Role, Times

LOST_AFTER = 3
"""Hello times without a BPDU after which what it said is old."""
_MAX_AGE, _HELLO, _DELAY = (6.0, 40.0), (1.0, 10.0), (2.0, 30.0)
"""What times may be (table 17-1): a BPDU that says otherwise is read as if it said the nearest. A root that says zero would make ports
forward before the tree is told."""


def step(tree: Tree, port: Port) -> bool:
    """One transition, if one is due."""
    if not port.enabled:
        port.message = None
        if port.info is Info.DISABLED:
            return False
        port.info = Info.DISABLED
        port.proposing = port.proposed = port.agree = port.agreed = False
        port.age_timer = 0.0
        _reselect(port)
        return True
    if port.info is Info.DISABLED:
        port.info = Info.AGED
        _reselect(port)
        return True
    if port.selected and port.update:
        _take_over(tree, port)
        return True
    if port.info is Info.AGED:
        return False
    if port.message is not None and not port.update:
        _receive(tree, port)
        return True
    if port.info is Info.RECEIVED and tree.over(port.age_timer) and not port.update:
        port.info = Info.AGED
        _reselect(port)
        return True
    return False


def _reselect(port: Port) -> None:
    port.reselect = True
    port.selected = False


def _take_over(tree: Tree, port: Port) -> None:
    """The port is designated: what it says is what the bridge thinks."""
    port.proposing = port.proposed = False
    # The vector that was agreed to holds for a better one, not for a worse one.
    port.agreed = port.agreed and tree.better_or_same(port, Info.MINE)
    port.synced = port.synced and port.agreed
    port.priority = port.designated
    port.times = port.designated_times
    port.update = False
    port.info = Info.MINE
    port.new_info = True


def _receive(tree: Tree, port: Port) -> None:
    message, port.message = port.message, None
    if not isinstance(message, Config):
        if not port.settings.restricted_tcn:
            port.got_notice = True
        return
    vector, times = message.priority, _clamped(message.times)
    port.message_priority, port.message_times = vector, times
    designated = message.role is Role.DESIGNATED
    same = vector == port.priority and times == port.times
    if designated and not same and (vector <= port.priority or vector.sender == port.priority.sender):
        port.proposing = port.agreed = False
        _record_proposal(port, message)
        _record_flags(port, message)
        port.agree = port.agree and tree.better_or_same(port, Info.RECEIVED)
        _record_agreement(port, message)
        port.synced = port.synced and port.agreed
        port.priority, port.times = vector, times
        _record_age(tree, port)
        port.info = Info.RECEIVED
        _reselect(port)
    elif designated and same and port.info is Info.RECEIVED:
        _record_proposal(port, message)
        _record_flags(port, message)
        _record_agreement(port, message)
        _record_age(tree, port)
    elif designated:
        if message.rapid and message.learning:
            # Somebody forwards although we are the better one: he does not hear us.
            port.disputed = True
            port.agreed = False
    elif vector >= port.priority:
        _record_agreement(port, message)
        _record_flags(port, message)


def _clamped(times: Times) -> Times:
    return Times(
        times.message_age,
        min(max(times.max_age, _MAX_AGE[0]), _MAX_AGE[1]),
        min(max(times.hello, _HELLO[0]), _HELLO[1]),
        min(max(times.forward_delay, _DELAY[0]), _DELAY[1]),
    )


def _record_proposal(port: Port, message: Config) -> None:
    if message.proposal:
        port.proposed = True


def _record_agreement(port: Port, message: Config) -> None:
    if message.rapid and port.send_rstp and port.settings.point_to_point and message.agreement:
        port.agreed = True
        port.proposing = False
    else:
        port.agreed = False


def _record_flags(port: Port, message: Config) -> None:
    if message.acknowledge:
        port.got_acknowledgement = True
    if message.topology_change and not port.settings.restricted_tcn:
        port.got_change = True


def _record_age(tree: Tree, port: Port) -> None:
    """How long what was heard holds: not at all when it has come too far."""
    age = round(port.times.message_age + 1.0)
    port.age_timer = tree.now + LOST_AFTER * port.times.hello if age <= port.times.max_age else 0.0


def aged(times: Times, hello: float) -> Times:
    """*times* one bridge further."""
    return attrs.evolve(times, message_age=float(round(times.message_age + 1.0)), hello=hello)
