"""What the parts of the daemon know of each operation: resmgr.fuse.traits."""

from __future__ import annotations

import pytest

from resmgr.fuse import traits
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import OPERATIONS
from resmgr.fuse.traits import TRAITS, Trait


def test_whoever_adds_an_operation_says_what_it_means_to_the_others() -> None:
    assert set(OPERATIONS) <= set(TRAITS)


def test_each_trait_has_its_set() -> None:
    sets = {Trait[name]: value for name, value in vars(traits).items() if name in Trait.__members__}
    assert {**sets, Trait.XATTR: traits.XATTRS}.keys() == set(Trait)


@pytest.mark.parametrize("opcode", TRAITS)
def test_what_is_told_of_an_operation_does_not_contradict_itself(opcode: Opcode) -> None:
    told = TRAITS[opcode]
    assert Trait.BY_NODE not in told or Trait.ON_OPEN in told
    assert Trait.NOT_WAITED_FOR not in told or not told & (Trait.LOCKING | Trait.AFTER_WRITES)
    assert Trait.NO_DEADLINE not in told or Trait.LOCKING not in told
