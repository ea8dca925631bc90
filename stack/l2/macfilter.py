"""Filters by MAC address: `-p macfilter rule="block in on en0 src 02:00:00:00:00:07",rule="pass in on en0 dst ff:ff:ff:ff:ff:ff"`.

    (pass | block) (in | out) on IF [src MAC[/MASK]] [dst MAC[/MASK]]

As the rules of OpenBSD's brconfig(8): the first one that fits a frame counts; where none does, `default`. A mask is an address too: bits
that are set in it are compared. What is blocked is counted, `blocked_in` and `blocked_out` of the interface. The filter must see every
frame, so a forwarding engine carries nothing while it is there.

The rules are a value and the decision is pure; the module puts it at the height of filters, on the way in and on the way out.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Literal

import attrs

from stack.core.errors import ModuleError
from stack.core.hooks import ORDER_FILTER, Point
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.registry import Registration
from stack.frame import Frame
from stack.wire.ethernet import MAC_SIZE, mac_bytes

RULES_MAX = 1024
"""Each is looked at for each flow of a batch."""
_ALL = (1 << 48) - 1


@attrs.define(eq=False)
class Rule:
    """One rule; addresses and masks as numbers. `matched` counts flows of a batch that it decided on."""

    passes: bool
    incoming: bool
    interface: str
    source: tuple[int, int] | None
    """Address and mask."""
    destination: tuple[int, int] | None
    text: str
    matched: int = 0

    def fits(self, destination: int, source: int) -> bool:
        return all(
            wanted is None or (value ^ wanted[0]) & wanted[1] == 0
            for value, wanted in ((source, self.source), (destination, self.destination))
        )


def parse_rule(text: str) -> Rule:
    """ValueError in one sentence for what is no rule."""
    words = text.split()
    if len(words) < 4 or words[0] not in ("pass", "block") or words[1] not in ("in", "out") or words[2] != "on":
        raise ValueError(f"{text!r} is no rule: expected pass or block, in or out, on, an interface, then src MAC and dst MAC if wanted")
    found: dict[str, tuple[int, int]] = {}
    rest = words[4:]
    while rest:
        if rest[0] not in ("src", "dst") or len(rest) < 2 or rest[0] in found:
            raise ValueError(f"{text!r} is no rule: after the interface come src MAC and dst MAC, once each")
        found[rest[0]] = _address(rest[1])
        rest = rest[2:]
    return Rule(words[0] == "pass", words[1] == "in", words[3], found.get("src"), found.get("dst"), " ".join(words))


def _address(text: str) -> tuple[int, int]:
    address, slash, mask = text.partition("/")
    value = int.from_bytes(mac_bytes(address), "big")
    return value, int.from_bytes(mac_bytes(mask), "big") if slash else _ALL


class MacFilter:
    """What becomes of frames. *default*: whether a frame passes that no rule fits."""

    def __init__(self, rules: Sequence[Rule], default: bool = True) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._chains: dict[tuple[str, bool], tuple[Rule, ...]] = {}
        for rule in self.rules:
            key = (rule.interface, rule.incoming)
            self._chains[key] = (*self._chains.get(key, ()), rule)

    def passed(self, interface: str, incoming: bool, frames: list[Frame]) -> list[Frame]:
        """Those that pass, in order. A frame without two addresses does not, where there are rules."""
        chain = self._chains.get((interface, incoming))
        if chain is None:
            return frames if self.default else []
        verdicts: dict[bytes, bool] = {}
        left = []
        for frame in frames:
            key = bytes(frame[: 2 * MAC_SIZE])
            verdict = verdicts.get(key)
            if verdict is None:
                verdict = verdicts[key] = self._verdict(chain, key)
            if verdict:
                left.append(frame)
        return left

    def _verdict(self, chain: tuple[Rule, ...], key: bytes) -> bool:
        if len(key) < 2 * MAC_SIZE:
            return False
        destination, source = int.from_bytes(key[:MAC_SIZE], "big"), int.from_bytes(key[MAC_SIZE:], "big")
        for rule in chain:
            if rule.fits(destination, source):
                rule.matched += 1
                return rule.passes
        return self.default


@attrs.frozen
class MacFilterOptions:
    """Options of `-p macfilter`."""

    rule: tuple[str, ...] = ()
    default: Literal["pass", "block"] = "pass"


class MacFilterModule:
    """The hooks."""

    def __init__(self, context: Context, options: MacFilterOptions) -> None:
        """ModuleError for what is no rule, or too many of them."""
        if len(options.rule) > RULES_MAX:
            raise ModuleError(errno.EINVAL, f"macfilter: more than {RULES_MAX} rules")
        try:
            rules = [parse_rule(text) for text in options.rule]
        except ValueError as error:
            raise ModuleError(errno.EINVAL, f"macfilter: {error}") from None
        self.filter = MacFilter(rules, options.default == "pass")
        # Where no rule is, everything passes, unless the default says otherwise.
        into = None if not self.filter.default else {rule.interface for rule in rules if rule.incoming}
        out_of = None if not self.filter.default else {rule.interface for rule in rules if not rule.incoming}
        stack = context.stack
        self._hooks: list[Registration] = [
            stack.add_hook(Point.IN, self._incoming, order=ORDER_FILTER, name="macfilter", everything=True, counts=True, interfaces=into),
            stack.add_hook(Point.OUT, self._outgoing, order=ORDER_FILTER, name="macfilter", counts=True, interfaces=out_of),
        ]

    def _incoming(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        return self._filtered(interface, True, frames)

    def _outgoing(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        return self._filtered(interface, False, frames)

    def _filtered(self, interface: Interface, incoming: bool, frames: list[Frame]) -> list[Frame]:
        left = self.filter.passed(interface.name, incoming, frames)
        if len(left) < len(frames):
            interface.count("blocked_in" if incoming else "blocked_out", len(frames) - len(left))
        return left

    def detach(self) -> None:
        for hook in self._hooks:
            hook.revoke()


def _attach(context: Context, options: MacFilterOptions) -> MacFilterModule:
    return MacFilterModule(context, options)


MODULE = Module("macfilter", Kind.PROTOCOL, MacFilterOptions, _attach)
