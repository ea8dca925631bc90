"""Which Ethernet addresses stand: several sources of hints may name the same one, and it is withdrawn when the last of them does."""

from __future__ import annotations

from collections import Counter

from qnetpy.discovery.hint import Hint

Address = tuple[str, bytes]
_Key = tuple[str, bytes]


class Standing:
    """Addresses by what was said of them. Memory: the sources' own bounds."""

    def __init__(self) -> None:
        self._where: dict[_Key, Address] = {}
        """By interface and token."""
        self._said: Counter[Address] = Counter()

    def __len__(self) -> int:
        return len(self._said)

    def said(self, hint: Hint) -> Address | None:
        """A hint, new or changed. The address that it named before, if nobody else names it."""
        before = self._where.get((hint.interface, hint.token))
        address = (hint.interface, hint.mac)
        if before == address:
            return None
        left = self.gone(hint)
        if hint.mac:
            self._where[hint.interface, hint.token] = address
            self._said[address] += 1
        return left

    def gone(self, hint: Hint) -> Address | None:
        """It is withdrawn. The address that it named, if nobody else names it."""
        address = self._where.pop((hint.interface, hint.token), None)
        if address is None:
            return None
        self._said[address] -= 1
        if self._said[address]:
            return None
        del self._said[address]
        return address
