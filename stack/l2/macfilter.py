"""Filters by MAC address: `-p macfilter rule="block in on en0 src 02:00:00:00:00:07",rule="pass in on en0 dst ff:ff:ff:ff:ff:ff"`.

    (pass | block) (in | out) on IF [src MAC[/MASK]] [dst MAC[/MASK]]

As the rules of OpenBSD's brconfig(8): the first one that fits a frame counts; where none does, `default`. A mask is an address too: bits
that are set in it are compared. What is blocked is counted, `blocked_in` and `blocked_out` of the interface. The filter must see every
frame, so a forwarding engine carries nothing of the interfaces that it is on. That holds while rules change: the hooks of the new ones
come before those of the old ones go.

The rules are a value and the decision is pure; the module puts it at the height of filters, on the way in and on the way out. Requests
(`stack.core.specific`) change rules while frames go: `rule` and `delrule` TEXT, `flushrule` IF, `default` pass or block. They are in force
for the next batch, and still are after a restart (`stack.core.module.Keeping`). A rule may name an interface that is not there yet; the log
and the facts say so.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs

from stack.core.hooks import ORDER_FILTER, Point
from stack.core.ifnet import Interface
from stack.core.module import Context, Kind, Module
from stack.core.registry import Registration
from stack.core.specific import Row, Rows
from stack.frame import Frame
from stack.l2 import arguments as given
from stack.l2.arguments import refused
from stack.wire.ethernet import MAC_SIZE, mac_bytes

log = logging.getLogger(__name__)

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
        self._chains: dict[tuple[str, bool], list[Rule]] = {}
        for rule in self.rules:
            self._chains.setdefault((rule.interface, rule.incoming), []).append(rule)

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

    def _verdict(self, chain: list[Rule], key: bytes) -> bool:
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


@attrs.frozen
class KeptRules:
    """What the module has instead of its options after a restart. Rules as their texts."""

    rules: tuple[str, ...]
    default: bool


class MacFilterModule:
    """The hooks, and the requests of `stack.core.specific.SpecificModule`."""

    def __init__(self, context: Context, options: MacFilterOptions) -> None:
        """ModuleError for what is no rule, or too many of them."""
        kept = context.kept if isinstance(context.kept, KeptRules) else KeptRules(options.rule, options.default == "pass")
        self._stack = context.stack
        self._hooks: list[Registration] = []
        self.filter = MacFilter((), True)
        self._use([_rule(text) for text in kept.rules], kept.default)

    def _use(self, rules: Sequence[Rule], default: bool) -> None:
        """From now on."""
        if len(rules) > RULES_MAX:
            raise refused(f"macfilter: more than {RULES_MAX} rules", errno.ENOSPC)
        known = {rule.interface for rule in self.filter.rules}
        for name in dict.fromkeys(rule.interface for rule in rules):
            if name not in known and self._stack.interface(name) is None:
                log.warning("%s: macfilter: there is no interface %s; its rules hold when it comes", self._stack.name, name)
        self.filter = MacFilter(rules, default)
        before = self._hooks
        # Where no rule is, everything passes, unless the default says otherwise.
        into = None if not default else {rule.interface for rule in rules if rule.incoming}
        out_of = None if not default else {rule.interface for rule in rules if not rule.incoming}
        add = self._stack.add_hook
        self._hooks = [
            add(Point.IN, self._incoming, order=ORDER_FILTER, name="macfilter", everything=True, counts=True, interfaces=into),
            add(Point.OUT, self._outgoing, order=ORDER_FILTER, name="macfilter", counts=True, interfaces=out_of),
        ]
        # Only now: without any hook a forwarding engine would carry what is blocked.
        _revoke(before)

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        rules, default = list(self.filter.rules), self.filter.default
        if command == "rule":
            rules.append(_rule(given.text(arguments, "rule")))
        elif command == "delrule":
            text = " ".join(given.text(arguments, "rule").split())
            found = next((rule for rule in rules if rule.text == text), None)
            if found is None:
                raise refused(f"macfilter: there is no rule {text!r}", errno.ENOENT)
            rules.remove(found)
        elif command == "flushrule":
            name = given.text(arguments, "interface")
            rules = [rule for rule in rules if rule.interface != name]
        elif command == "default":
            value = given.text(arguments, "value")
            if value not in ("pass", "block"):
                raise refused(f"macfilter: the default is pass or block, not {value!r}")
            default = value == "pass"
        else:
            raise refused(f"macfilter: there is no request {command}; there are rule, delrule, flushrule, default")
        self._use(rules, default)

    def get_specific(self) -> Mapping[str, object]:
        return {"default": "pass" if self.filter.default else "block", "rules": Rows(self.filter.rules, self._row)}

    def _row(self, rule: Rule) -> Row:
        return {"rule": rule.text, "matched": rule.matched, "present": self._stack.interface(rule.interface) is not None}

    def keep(self) -> KeptRules:
        """`stack.core.module.Keeping`."""
        return KeptRules(tuple(rule.text for rule in self.filter.rules), self.filter.default)

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
        _revoke(self._hooks)


def _revoke(hooks: Iterable[Registration]) -> None:
    for hook in hooks:
        hook.revoke()


def _rule(text: str) -> Rule:
    try:
        return parse_rule(text)
    except ValueError as error:
        raise refused(f"macfilter: {error}") from None


def _attach(context: Context, options: MacFilterOptions) -> MacFilterModule:
    return MacFilterModule(context, options)


MODULE = Module("macfilter", Kind.PROTOCOL, MacFilterOptions, _attach)
