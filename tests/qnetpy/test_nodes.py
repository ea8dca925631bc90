import pytest

from qnetpy.nodes import TRANSITIONS, NodeState, NodeTable
from resmgr.errors import Misuse


def test_a_new_name_is_known_and_gets_a_descriptor_for_good() -> None:
    table = NodeTable()
    first, second = table.add("n1", 1.0), table.add("n2", 1.0)

    assert first is not None
    assert second is not None
    assert (first.state, first.since) == (NodeState.KNOWN, 1.0)
    assert first.nd != second.nd != 0
    assert table.add("n1", 9.0) is first
    assert table.by_nd(second.nd) is second


def test_only_reachable_nodes_are_listed_sorted() -> None:
    table = NodeTable()
    for name, path in {
        "b": [NodeState.CONNECTING, NodeState.UP],
        "a": [NodeState.UP, NodeState.SUSPECT],
        "c": [NodeState.UP, NodeState.DOWN],
        "d": [NodeState.CONNECTING],
    }.items():
        node = table.add(name, 0.0)
        assert node is not None
        for state in path:
            table.enter(node, state, 1.0, "test")

    assert [node.name for node in table.listed()] == ["a", "b"]


def test_every_state_can_be_left_and_down_is_always_reachable_from_up() -> None:
    assert set(TRANSITIONS) == set(NodeState)
    assert all(TRANSITIONS.values())


def test_a_wrong_transition_is_the_callers_mistake() -> None:
    table = NodeTable()
    node = table.add("n", 0.0)
    assert node is not None
    with pytest.raises(Misuse, match="known to suspect"):
        table.enter(node, NodeState.SUSPECT, 1.0)


def test_a_return_counts_a_start_and_a_wobble_does_not() -> None:
    table = NodeTable()
    node = table.add("n", 0.0)
    assert node is not None
    for state in (NodeState.UP, NodeState.SUSPECT, NodeState.UP, NodeState.DOWN, NodeState.UP):
        assert table.enter(node, state, 1.0)
    assert not table.enter(node, NodeState.UP, 2.0)

    assert node.starts == 2
