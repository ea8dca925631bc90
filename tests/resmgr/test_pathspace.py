"""The prefix tree, against a plain model as well."""

from __future__ import annotations

import random

import pytest

from resmgr.iomsg import Target
from resmgr.pathspace import Attach, Attached, PathSpace

FS, NET, NAME, OTHER = (Target(0, 1, chid) for chid in (16, 17, 18, 19))


def found(space: PathSpace, path: bytes, hidden: Attach = Attach.DEFAULT) -> list[tuple[Target, bytes]]:
    return [(attached.target, rest) for attached, rest in space.resolve(path, hidden)]


def test_the_longest_prefix_decides() -> None:
    space = PathSpace()
    assert found(space, b"etc/hosts") == []
    space.attach(b"/", FS)
    space.attach(b"/net", NET)
    space.attach(b"/dev/name/local", NAME)
    assert found(space, b"") == [(FS, b"")]
    assert found(space, b"etc/hosts") == [(FS, b"etc/hosts")]
    assert found(space, b"net") == [(NET, b"")]
    assert found(space, b"net/b/etc") == [(NET, b"b/etc")]
    assert found(space, b"network") == [(FS, b"network")]
    assert found(space, b"dev/name") == [(FS, b"dev/name")]
    assert found(space, b"dev/name/local/x") == [(NAME, b"x")]


def test_listing_of_what_is_attached() -> None:
    space = PathSpace()
    space.attach(b"/", FS)
    net = space.attach(b"/net", NET, Attach.TRANSIT)
    space.attach(b"/dev/name/local", NAME)
    space.attach(b"/dev/name/global", NAME)
    assert space.below(b"") == [b"dev", b"net"]
    assert space.below(b"", Attach.TRANSIT) == [b"dev"]
    assert space.below(b"dev") == [b"name"]
    assert space.below(b"dev/name") == [b"global", b"local"]
    assert space.below(b"dev/name/local") is None
    assert space.below(b"etc") is None
    assert space.detach(net)
    assert not space.detach(net)
    assert space.below(b"") == [b"dev"]
    assert space.detach_target(NAME) == 2
    assert space.below(b"") is None
    assert [attached.target for attached in space.attachments()] == [FS]


def test_union_order() -> None:
    space = PathSpace()
    space.attach(b"/bin", FS)
    space.attach(b"/bin", NET)
    space.attach(b"/bin", NAME, Attach.AFTER)
    space.attach(b"/bin", OTHER)
    assert [target for target, _ in found(space, b"bin/ls")] == [OTHER, NET, FS, NAME]


def test_exact_and_hidden() -> None:
    space = PathSpace()
    space.attach(b"/", FS)
    space.attach(b"/dev/ser1", NAME, Attach.EXACT)
    space.attach(b"/net", NET, Attach.TRANSIT)
    assert found(space, b"dev/ser1") == [(NAME, b"")]
    assert found(space, b"dev/ser1/x") == []
    assert found(space, b"net/c", Attach.TRANSIT) == [], "a hidden prefix is not answered by what lies below it"
    for bad in (b"/a/../b", b"/a/./b", b"/a\0"):
        with pytest.raises(ValueError):
            space.attach(bad, FS)


def test_against_a_list_of_prefixes() -> None:
    seed = 11
    rng = random.Random(seed)
    space = PathSpace()
    model: list[Attached] = []

    def path() -> tuple[bytes, ...]:
        return tuple(rng.choice([b"a", b"b", b"c"]) for _ in range(rng.randrange(5)))

    for step in range(2000):
        if rng.random() < 0.3 and model:
            gone = rng.choice(model)
            model.remove(gone)
            assert space.detach(gone)
        elif rng.random() < 0.5:
            model.append(space.attach(b"/".join(path()), Target(0, 1, step)))
        names = path()
        best = max((len(one.prefix) for one in model if names[: len(one.prefix)] == one.prefix), default=-1)
        wanted = sorted((one for one in model if len(one.prefix) == best and names[:best] == one.prefix), key=lambda one: -one.order)
        assert [one for one, _ in space.resolve(b"/".join(names))] == wanted, f"seed {seed}"
        assert all(rest == b"/".join(names[best:]) for _, rest in space.resolve(b"/".join(names)))
        below = {one.prefix[len(names)] for one in model if len(one.prefix) > len(names) and one.prefix[: len(names)] == names}
        assert space.below(b"/".join(names)) == (sorted(below) or None), f"seed {seed}"
