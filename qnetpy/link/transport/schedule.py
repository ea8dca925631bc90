"""Which queue a path serves now, and in which order paths are asked: the policies at work on the lanes of an outbox."""

from __future__ import annotations

from qnetpy.link.transport.lane import Lane
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.path import Path
from qnetpy.link.transport.policy import candidates, has_room, rank, soonest, worth_it
from qnetpy.link.transport.routes import REDUNDANT, policy_of


class Schedule:
    """Of one transport. *paths* is the live table."""

    def __init__(self, outbox: Outbox, paths: dict[int, Path]) -> None:
        self.route = 0
        """Of messages without one of their own; 0: loadbalance."""
        self._outbox = outbox
        self._paths = paths
        self._turn = 0

    def order(self) -> list[int]:
        """The paths, who delivers soonest first."""
        return [path.ident for path in sorted(self._paths.values(), key=rank)]

    def stuck(self, route: int) -> bool:
        """Whether no path that messages of *route* may take answers now, although others do."""
        paths = self._paths.values()
        return any(path.open and not path.suspect for path in paths) and all(
            path.suspect for path in candidates(route or self.route, paths)
        )

    def lane(self, path: Path) -> tuple[Lane | None, list[Path]]:
        """From which queue *path* takes now, and over which other paths the same goes."""
        outbox = self._outbox
        plain = outbox.plain
        if not outbox.routed:
            if not plain.mask or not path.open:
                return None, []
            if len(self._paths) == 1 and not self.route:
                return plain, []
            takes, others = self._takes(path, self.route)
            return (plain, others) if takes else (None, [])
        if not path.open:
            return None, []
        lanes = [plain, *outbox.routed.values()]
        self._turn += 1
        turn = self._turn % len(lanes)
        for lane in sorted(lanes[turn:] + lanes[:turn], key=lambda lane: -lane.mask.bit_length()):
            if lane.mask:
                takes, others = self._takes(path, lane.route or self.route)
                if takes:
                    return lane, others
        if not any(lane.mask for lane in outbox.routed.values()):
            outbox.routed.clear()
        return None, []

    def _takes(self, path: Path, number: int) -> tuple[bool, list[Path]]:
        """Whether *path* should take data of that route now, and which other paths get the same."""
        among = candidates(number, self._paths.values())
        if path not in among:
            return False, []
        if policy_of(number) == REDUNDANT:
            return True, [other for other in among if other is not path]
        if len(among) == 1:
            return True, []
        better = soonest(among)
        better = better[: better.index(path)]
        if not better:
            return True, []
        if any(has_room(other) for other in better):
            return False, []
        waiting = self._outbox.backlog - sum(other.in_flight for other in among)
        return worth_it(path, better, waiting), []
