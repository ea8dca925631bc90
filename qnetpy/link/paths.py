"""The paths of links: opened, validated, closed, and what interfaces that change mean to them. docs/protocol/link.md, "Paths".

    known address without a path -> CHALLENGE under a new number -> answered: path   (we open)
    CHALLENGE under a number of the peer's -> answered, and our own -> path          (the peer opens)

An address becomes known by a handshake there, or because the peer opens a path from it. Both ends then know it; the one with the smaller
name opens at once and the other only if nothing came. If both open, the smaller name's number stays. A path whose interface or peer is
silent is kept and probed, so it returns by itself under its number; numbers are used up only by addresses that change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from qnetpy.link.calls import Calls
from qnetpy.link.ethernet import is_individual
from qnetpy.link.link import Link, LinkPath, max_payload
from qnetpy.link.pathindex import PathIndex
from qnetpy.link.ports import Port, Ports
from qnetpy.link.transport.constants import KIND_CHALLENGE, TOKEN_SIZE
from qnetpy.link.transport.events import Challenged, Event, PathFound, PathLost, PathRefused, PathTold, PathValid
from qnetpy.link.transport.items import PathState, read_challenge
from qnetpy.link.wire import Address
from resmgr.errors import BadMessage

PATHS_MAX: Final = 16
"""Paths of one link: stops a member with many addresses from making us probe without end."""
SEEK_AGAIN: Final = 1.0
SEEK_MAX: Final = 5.0
"""Seconds until a path to an address that did not answer is tried again: at first, and at most while no more than SEEK_FEW do not."""
SEEK_FEW: Final = 3
"""Addresses of one node that may be tried so often: each try takes a number, and so many are tried 48 times in 130 s, after which new
keys are due anyway. The wait grows with their number."""
SEEK_SECOND: Final = 0.25
"""The node with the greater name waits so much longer before it opens a path."""


class Paths:
    """Functions of a `LinkMachine` about the paths of its links. *changed* hears of what people may want to know."""

    def __init__(
        self,
        ports: Ports,
        calls: Calls,
        index: PathIndex,
        counters: Counter[str],
        random: Callable[[int], bytes],
        changed: Callable[[Link, Address, str], None],
    ) -> None:
        self._ports = ports
        self._calls = calls
        self._index = index
        self._counters = counters
        self._random = random
        self._changed = changed

    def first(self, link: Link, address: Address, mtu: int, now: float) -> None:
        """The path on which the handshake came: number 0, valid. It is challenged all the same, which tells ports and addresses."""
        self._add(link, 0, address, min(mtu, self._ports.mtu(address[0])), link.smaller, now, valid=True)

    def _add(self, link: Link, number: int, address: Address, mtu: int, ours: bool, now: float, *, valid: bool) -> None:
        port = self._ports[address[0]]
        link.transport.add_path(number, max_payload(mtu), now, valid=valid, port=port.number, up=port.up)
        prefix = self._ports.prefix(address)
        path = link.paths[number] = LinkPath(number, address, prefix, mtu, ours, link.transport.path(number), now)
        self._index.add(path)
        self._challenge(link, path, now)

    def _challenge(self, link: Link, path: LinkPath, now: float) -> None:
        port = self._ports.get(path.address[0])
        if port is not None:
            station = port.station if port.shared else b""
            link.transport.challenge(path.number, self._random(TOKEN_SIZE), station, now)

    def _remove(self, link: Link, path: LinkPath, why: str, now: float, tell: PathState | None = PathState.CLOSED) -> None:
        del link.paths[path.number]
        self._index.remove(path)
        link.silent.discard(path.number)
        link.transport.remove_path(path.number, now, tell)
        if path.asked:
            self._changed(link, path.address, why)

    # Where the node is

    def met(self, link: Link, address: Address, now: float) -> None:
        """A handshake with the node went to *address*, and `Calls.met` has heard of it. Whoever carried the frames may have chosen that, so
        it takes nothing from the node that was authenticated there: a path has to show it."""
        path = link.at(address)
        if self._calls.owner(address) != link.name:
            if path is not None:
                self._shown(link, path, now)
            elif self._ports.usable(address) and len(link.paths) < PATHS_MAX:
                self.open(link, address, now)
        self.wanted(link, now)

    def _shown(self, link: Link, path: LinkPath, now: float) -> None:
        """Something more is known of a path. If our CHALLENGE was answered there, its address is the node's; if it was another's, only when
        the node names it as its own and the other does not answer there."""
        address = path.address
        if not path.asked:
            return
        owner, port = self._calls.owner(address), self._ports.get(address[0])
        if owner not in ("", link.name):
            named = path.named == address[1] or (port is not None and not port.shared)
            if not named or self._index.answers(owner, address):
                # Not yet named is no claim: that comes behind the answer.
                self._counters["claimed_station"] += bool(named or path.named)
                return
        self._calls.learned(address, link.name, now)

    # Opening

    def wanted(self, link: Link, now: float, *, again: bool = False) -> None:
        """The node may be reached at more addresses: look soon. *again*: also where nobody answered before."""
        if again:
            link.tried.clear()
        self._later(link, now if link.smaller else now + SEEK_SECOND)

    def _later(self, link: Link, when: float) -> None:
        if link.seek_at is None or when < link.seek_at:
            link.seek_at = when

    def seek(self, link: Link, now: float) -> None:
        """Open a path to every known address of the node that has none and is due."""
        link.seek_at = None
        for address in self._calls.addresses(link.name):
            if link.at(address) is not None or not self._ports.usable(address):
                continue
            when, _ = link.tried.get(address, (now, 0.0))
            if when <= now and len(link.paths) < PATHS_MAX:
                self.open(link, address, now)
            elif link.seek_at is None or when < link.seek_at:
                link.seek_at = max(when, now + SEEK_AGAIN)

    def open(self, link: Link, address: Address, now: float) -> None:
        """Open a path to *address*."""
        number = link.number()
        if number is None:
            self._counters["paths_used_up"] += 1
            link.seek_at = now + SEEK_AGAIN
            return
        self._add(link, number, address, self._ports.mtu(address[0]), True, now, valid=False)

    def accept(self, link: Link, number: int, source: Address, packets: list[tuple[int, bytes]], now: float) -> bool:
        """Authentic packets under a number that is no path: whether they begin one of the peer's."""
        session = link.sessions.current
        packet = packets[0][1]
        if not packet or packet[0] != KIND_CHALLENGE:
            return self._refused("unknown_path", packets)
        if number % 2 == link.parity or session is None or session.sealed_on(number):
            return self._refused("path_number", packets)
        try:
            station = read_challenge(packet, 0)[0].station
        except BadMessage:
            return self._refused("unknown_path", packets)
        port = self._ports.get(source[0])
        if port is None or not port.up or not is_individual(source[1]):
            return self._refused("no_such_path", packets)
        if station and station != source[1]:
            return self._refused("spoofed_path", packets)
        before = link.at(source)
        if before is not None:
            if before.ours and link.smaller and before.number not in link.silent:
                return self._refused("crossed_path", packets)
            if not before.state.valid:
                self._remove(link, before, "replaced", now)
            elif any(path.follows == before.number for path in link.paths.values()):
                return self._refused("crossed_path", packets)
        if len(link.paths) >= PATHS_MAX:
            return self._refused("too_many_paths", packets)
        self._add(link, number, source, port.mtu, False, now, valid=False)
        if before is not None and before.state.valid:
            # A path that works goes when the other is shown to: the peer may have meant another station, and somebody else brought it here.
            link.paths[number].follows = before.number
        return True

    def event(self, link: Link, event: Event, now: float) -> None:
        """What the transport tells of a path."""
        match event:
            case PathValid():
                self.valid(link, event.path, now)
            case PathRefused():
                self.refused(link, event.path, now)
            case PathLost():
                self.lost(link, event.path)
            case PathFound():
                self.found(link, event.path, now)
            case Challenged():
                self.challenged(link, event.path, event.station, now)
            case PathTold():
                self.told(link, event.path, event.state, now)
            case _:
                pass

    def moved(self, link: Link, number: int, source: Address, now: float) -> None:
        """Authentic packets of a path that does not answer came from another station than the one that it leads to. Where stations are
        endpoints, a translator between may have given the peer another: try that."""
        path = link.paths[number]
        port = self._ports.get(source[0])
        if port is None or port.shared or not port.up or path.address[0] != source[0] or path.address == source:
            return
        if link.at(source) is not None or len(link.paths) >= PATHS_MAX or any(other.follows == number for other in link.paths.values()):
            return
        self._counters["other_endpoint"] += 1
        self.open(link, source, now)
        opened = link.at(source)
        if opened is not None:
            opened.follows = number

    def from_there(self, path: LinkPath, sources: list[Address], packets: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Those of the packets on a path without proof that come from its address. A peer that merely sees what we send to somebody else's
        address could answer it, and would be taken to be there. Where each end numbers the stations for itself, all."""
        port = self._ports.get(path.address[0])
        if port is None or not port.shared:
            return packets
        kept = [packet for packet, source in zip(packets, sources, strict=True) if source == path.address]
        if len(kept) < len(packets):
            self._counters["spoofed_path"] += len(packets) - len(kept)
        return kept

    def _refused(self, counter: str, packets: list[tuple[int, bytes]]) -> bool:
        self._counters[counter] += len(packets)
        return False

    # What the transport says

    def valid(self, link: Link, number: int, now: float) -> None:
        """Our CHALLENGE was answered."""
        path = link.paths.get(number)
        if path is not None:
            link.tried.pop(path.address, None)
            before = link.paths.get(path.follows)
            if before is not None:
                if before.address == path.address:
                    self._remove(link, before, "replaced", now)
                else:
                    self._remove(link, before, "is gone: the node has another endpoint", now)
                    self._calls.gone(before.address, link.name, now)
            fresh, path.asked = not path.asked, True
            self._shown(link, path, now)
            if fresh:
                self._changed(link, path.address, "is there")

    def refused(self, link: Link, number: int, now: float) -> None:
        """It was not, and the path is not one, unless the handshake showed it."""
        path = link.paths.get(number)
        if path is not None and not path.state.valid:
            _, pause = link.tried.get(path.address, (0.0, SEEK_AGAIN / 2))
            pause = min(2 * pause, SEEK_MAX * max(1.0, len(link.tried) / SEEK_FEW))
            self._remove(link, path, "does not answer", now)
            self._again(link, path.address, now, pause)

    def found(self, link: Link, number: int, now: float) -> None:
        """A path answers again: what was not told on it before is told now."""
        path = link.paths.get(number)
        if path is not None:
            link.silent.discard(number)
            if not path.asked:
                self._challenge(link, path, now)
            self._changed(link, path.address, "answers again")
            # What was mended may have been in the way to other addresses too.
            self.wanted(link, now, again=True)

    def lost(self, link: Link, number: int) -> None:
        path = link.paths.get(number)
        if path is not None:
            link.silent.add(number)
            self._changed(link, path.address, "does not answer")

    @staticmethod
    def _asked_anew(link: Link, number: int) -> None:
        """One end said that it cannot use the path, or can again: until it answers, it is one that does not. Meanwhile a translator may
        have forgotten it."""
        if not link.transport.usable(number):
            link.silent.add(number)

    def _again(self, link: Link, address: Address, now: float, pause: float) -> None:
        """Try *address* again after *pause*, if it is one where the node was met: only those are remembered."""
        known = self._calls.addresses(link.name)
        link.tried = {other: entry for other, entry in link.tried.items() if other in known}
        if address in known:
            link.tried[address] = now + pause, pause
            self._later(link, now + pause)

    def challenged(self, link: Link, number: int, station: bytes, now: float) -> None:
        """The peer told its address on a path. If it is not the one from which it came, open a path there as well. It is a claim: the
        address is the peer's when our CHALLENGE was answered there, and never while it is another node's."""
        path = link.paths.get(number)
        if path is None or not station:
            return
        path.named = station
        if station == path.address[1] and path.asked and self._calls.owner(path.address) != link.name:
            self._shown(link, path, now)
        if station == path.address[1] or path.claimed:
            return
        path.claimed = True
        self._counters["other_station"] += 1
        address = (path.address[0], station)
        port = self._ports.get(path.address[0])
        if not path.asked:
            # All that has shown it to be there is a handshake, which somebody may have brought there.
            self._calls.gone(path.address, link.name, now)
        if port is None or not port.up or not is_individual(station) or station == port.station or link.at(address) is not None:
            return
        if self._calls.owner(address) not in ("", link.name):
            self._counters["claimed_station"] += 1
        elif len(link.paths) < PATHS_MAX:
            self.open(link, address, now)

    def told(self, link: Link, number: int, state: PathState, now: float) -> None:
        """The peer said how a path is at its end."""
        path = link.paths.get(number)
        if path is None:
            return
        self._asked_anew(link, number)
        if state is PathState.GONE:
            self._remove(link, path, "is gone: the node has another address", now, None)
            self._calls.gone(path.address, link.name, now)
        elif state is PathState.CLOSED:
            self._remove(link, path, "was closed by the node", now, None)
            if any(other.follows == number and other.address != path.address for other in link.paths.values()):
                self._calls.gone(path.address, link.name, now)
            else:
                self._again(link, path.address, now, SEEK_AGAIN)
        elif path.asked:
            self._changed(link, path.address, "is down at the node's end" if state is PathState.DOWN else "is up again at the node's end")

    # Interfaces

    def interface(self, link: Link, name: str, before: Port | None, port: Port, now: float) -> None:
        """An interface of ours is there, or changed."""
        for path in [path for path in link.paths.values() if path.address[0] == name]:
            if path.prefix != self._ports.prefix(path.address):
                self._remove(link, path, "has another address of ours", now, PathState.GONE)
                link.tried.pop(path.address, None)
                if port.up:
                    self.open(link, path.address, now)
                continue
            if path.mtu != port.mtu:
                path.mtu = port.mtu
                link.transport.resize_path(path.number, max_payload(port.mtu), now)
            link.transport.path_up(path.number, port.up, now)
            self._asked_anew(link, path.number)
        if port.up and (before is None or not before.up):
            self.wanted(link, now, again=True)

    def interface_gone(self, link: Link, name: str, now: float) -> None:
        """An interface of ours is not there any more. Its paths wait for it, in case it comes back."""
        for path in link.paths.values():
            if path.address[0] == name:
                link.transport.path_up(path.number, False, now)
                self._asked_anew(link, path.number)
