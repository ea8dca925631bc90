"""`--where 'cpus>=4 and free>2G'`: a condition on what nodes say of themselves. Pure; parsed before any node is asked.

    condition   = both {"or" both}
    both        = single {("and" | ",") single}
    single      = "not" single | "(" condition ")" | FACT COMPARISON VALUE
    COMPARISON  = "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~"

Numbers may end in K, M, G or T, powers of 1024. `~` compares texts with a pattern (`name ~ 'web*'`). `roles` is a set: `=` and `~` hold
when one role fits, `!=` when none does.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from qnetpy.cli.output import CommandError

Value = float | str | frozenset[str]
Facts = Mapping[str, Value]
Condition = Callable[[Facts], bool]

NUMBERS = ("cpus", "load", "memory", "free", "processes", "uptime")
TEXTS = ("name", "arch", "os", "release")
SET = "roles"
NESTED_MAX = 50
"""Brackets and `not` within each other."""
_TOKEN = re.compile(r"""\s*(?:(?P<mark>[()<>]=?|[=!]=|[=~,])|'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<word>[^\s()<>=!~,'"]+))""")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)\Z", re.IGNORECASE)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def condition(text: str) -> Condition:
    """CommandError (status 2) for what is none."""
    parser = _Parser(_tokens(text))
    found = parser.condition()
    if parser.left:
        raise _wrong(f"there is no meaning in {parser.left[0][1]!r} here")
    return found


def _wrong(why: str) -> CommandError:
    return CommandError(f"--where: {why}", "--where 'cpus >= 4 and free > 2G'", 2)


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text): kind is mark, word or quoted."""
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(f"{text[at:].strip()[:20]!r} is not understood")
        kind = str(match.lastgroup)
        tokens.append((kind if kind in ("mark", "word") else "quoted", match[kind]))
        at = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.left = tokens
        self._depth = 0

    def _take(self, *wanted: tuple[str, str]) -> bool:
        if self.left and self.left[0] in wanted:
            self.left.pop(0)
            return True
        return False

    def _next(self, what: str) -> tuple[str, str]:
        if not self.left:
            raise _wrong(f"{what} is missing at the end")
        return self.left.pop(0)

    def condition(self) -> Condition:
        parts = [self._both()]
        while self._take(("word", "or")):
            parts.append(self._both())
        return lambda facts: any(part(facts) for part in parts)

    def _both(self) -> Condition:
        parts = [self._single()]
        while self._take(("word", "and"), ("mark", ",")):
            parts.append(self._single())
        return lambda facts: all(part(facts) for part in parts)

    def _single(self) -> Condition:
        self._depth += 1
        if self._depth > NESTED_MAX:
            raise _wrong(f"more than {NESTED_MAX} brackets within each other")
        try:
            return self._alone()
        finally:
            self._depth -= 1

    def _alone(self) -> Condition:
        if self._take(("word", "not")):
            inner = self._single()
            return lambda facts: not inner(facts)
        if self._take(("mark", "(")):
            inner = self.condition()
            if not self._take(("mark", ")")):
                raise _wrong("a bracket is not closed")
            return inner
        kind, name = self._next("a fact")
        name = {"role": SET}.get(name, name)
        if kind != "word" or name not in (*NUMBERS, *TEXTS, SET):
            raise _wrong(f"no node says {name!r} of itself, only {', '.join((*NUMBERS, *TEXTS, SET))}")
        kind, mark = self._next(f"what to compare {name} with")
        if kind != "mark" or mark in "(),":
            raise _wrong(f"a comparison has to follow {name}, not {mark!r}")
        kind, value = self._next("a value")
        if kind == "mark":
            raise _wrong(f"a value has to follow {name} {mark}, not {value!r}")
        return _comparison(name, mark, value)


def _comparison(name: str, mark: str, value: str) -> Condition:
    if name in NUMBERS:
        match = _NUMBER.match(value)
        if match is None or mark == "~":
            raise _wrong(f"{name} is a number: {name} >= 4")
        number = float(match[1]) * 1024.0 ** " KMGT".index(match[2].upper() or " ")
        return lambda facts: _COMPARE[mark](_number(facts[name]), number)
    if mark in ("<", "<=", ">", ">="):
        raise _wrong(f"{name} is a text, which is neither more nor less than another")
    fits: Callable[[str], bool] = (lambda one: fnmatchcase(one, value)) if mark == "~" else (lambda one: one == value)

    def compare(facts: Facts) -> bool:
        found = facts[name]
        one = any(map(fits, found)) if isinstance(found, frozenset) else fits(str(found))
        return one != (mark == "!=")

    return compare


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value
