"""Which paths carry messages. Acknowledgements, pings and probes go on every path; this is about data only.

A policy is asked once per transmission of a path and answers from the states of all paths. A path that is suspect carries data only when
every path is. `loadbalance` needs no schedule: each path takes from the common queue what its own window allows. A link has one path at a
time so far (`qnetpy.link.link`), so there is nothing to choose between yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qnetpy.link.transport.path import Path

Policy = Callable[[Path, Mapping[int, Path]], bool]


def first(path: Path, paths: Mapping[int, Path]) -> bool:
    """The usable path that was added first."""
    for candidate in paths.values():
        if not candidate.suspect:
            return candidate is path
    return True


def loadbalance(path: Path, paths: Mapping[int, Path]) -> bool:
    """Every usable path."""
    return not path.suspect or all(candidate.suspect for candidate in paths.values())


POLICIES: dict[str, Policy] = {"first": first, "loadbalance": loadbalance}


def policy(name: str) -> Policy:
    """The policy called *name*. Raises ValueError that lists the names."""
    found = POLICIES.get(name)
    if found is None:
        raise ValueError(f"unknown path policy {name!r}; there are: {', '.join(POLICIES)}")
    return found
