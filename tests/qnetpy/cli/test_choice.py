"""What commands say of a choice of paths that means nothing."""

from __future__ import annotations

import errno

import pytest

from qnetpy.cli import choice
from qnetpy.cli.output import CommandError
from resmgr.errors import ResmgrError


@pytest.mark.parametrize("node", ["b", "b~redundant", "b~preferred:en1"])
def test_what_means_something_passes(node: str) -> None:
    choice.check(node)
    choice.explain(node, ResmgrError(errno.ENOENT))


@pytest.mark.parametrize(("node", "why"), [("b~best", "no policy; there are: loadbalance"), ("b~preferred", "needs an interface")])
def test_what_means_nothing_is_told_before_anybody_is_asked(node: str, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        choice.check(node)


@pytest.mark.parametrize(("code", "why"), [(errno.ENXIO, "no interface en1 on this node"), (errno.ENETDOWN, "b does not answer over that")])
def test_errors_about_the_choice_are_explained(code: int, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        choice.explain("b~exclusive:en1", ResmgrError(code))
