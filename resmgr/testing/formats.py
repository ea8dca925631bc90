"""What every format must do with bytes that are wrong: raise BadMessage, and nothing else. For tests of parsers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from resmgr.errors import BadMessage

T = TypeVar("T")


def refuses_cuts(parse: Callable[[bytes], object], data: bytes, whole: Callable[[int], bool] = lambda length: False) -> None:
    """AssertionError unless *parse* refuses *data* cut at every length. *whole*: lengths at which it is a shorter message, and parsed."""
    for length in range(len(data)):
        if whole(length):
            parse(data[:length])
            continue
        try:
            found = parse(data[:length])
        except BadMessage:
            continue
        raise AssertionError(f"{length} of {len(data)} bytes were taken for {found!r}")


def survives_changes(parse: Callable[[bytes], T], data: bytes, seed: int, times: int = 1000) -> list[T]:
    """What *data* with one to four changed bytes is taken for, where it is not refused. Any error but BadMessage leaves."""
    chance = random.Random(seed)
    found = []
    for _ in range(times):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            found.append(parse(bytes(changed)))
        except BadMessage:
            pass
    return found
