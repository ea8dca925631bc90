"""The table of endpoints under a flood of invented sources, and how runs of datagrams are cut."""

from __future__ import annotations

import socket

import pytest

from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.udp_socket.sender import Socket
from stack.drivers.udp_socket.table import HEARD_MAX, KEPT_MAX, USED_MAX, EndpointTable
from stack.wire.endpoint import SockAddr


@pytest.fixture
def sock() -> Socket:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        return Socket(plain, VirtualDispatch(1), 4, True, lambda reason, number: None)


def places(count: int, net: int = 10) -> list[SockAddr]:
    return [(f"{net}.{number >> 16}.{number >> 8 & 255}.{number & 255}", 9) for number in range(count)]


def test_a_station_is_a_locally_administered_address_of_one_station(sock: Socket) -> None:
    table: EndpointTable[Socket] = EndpointTable(bytes(16))
    stations = {table.hash(repr(place)) for place in places(3000)}
    assert len(stations) == 3000
    assert all(station[0] & 3 == 2 and len(station) == 6 for station in stations)
    other: EndpointTable[Socket] = EndpointTable(b"\1" * 16)
    assert other.hash("x") != table.hash("x")


def test_invented_sources_push_out_only_each_other(sock: Socket) -> None:
    table: EndpointTable[Socket] = EndpointTable(bytes(16))
    kept = table.keep(("192.0.2.1", 9), sock)
    used = table.heard(("192.0.2.2", 9), sock)
    assert kept is not None
    assert used is not None
    table.use(used)
    for place in places(10 * HEARD_MAX):
        assert table.heard(place, sock) is not None
    assert table.sizes() == (1, 1, HEARD_MAX)
    assert len(table.by_address) == len(table.by_station) == HEARD_MAX + 2
    assert table.by_station[used.station] is used
    assert table.by_station[kept.station] is kept


def test_an_endpoint_in_use_stays_while_fewer_than_the_cap_are_sent_to_in_between(sock: Socket) -> None:
    table: EndpointTable[Socket] = EndpointTable(bytes(16))
    live = table.heard(("192.0.2.2", 9), sock)
    assert live is not None
    for number, place in enumerate(places(3 * USED_MAX)):
        entry = table.heard(place, sock)
        assert entry is not None
        table.use(entry)
        if number % (USED_MAX - 1) == 0:
            table.use(live)
    assert table.by_station.get(live.station) is live
    assert table.sizes() == (0, USED_MAX, 0)
    for place in places(USED_MAX, 12):
        entry = table.heard(place, sock)
        assert entry is not None
        table.use(entry)
    assert live.station not in table.by_station


def test_a_forgotten_endpoint_comes_back_under_its_station(sock: Socket) -> None:
    table: EndpointTable[Socket] = EndpointTable(bytes(16))
    first = table.heard(("192.0.2.1", 9), sock)
    for place in places(HEARD_MAX):
        table.heard(place, sock)
    assert first is not None
    assert first.station not in table.by_station
    again = table.heard(("192.0.2.1", 9), sock)
    assert again is not None
    assert again.station == first.station


def test_keeping_is_counted_and_capped(sock: Socket) -> None:
    table: EndpointTable[Socket] = EndpointTable(bytes(16))
    for place in places(KEPT_MAX):
        assert table.keep(place, sock) is not None
    assert table.keep(("192.0.2.1", 9), sock) is None
    assert table.keep(places(1)[0], sock) is not None, "one more for an endpoint that is kept anyway"
    table.let_go(places(1)[0])
    assert table.keep(("192.0.2.1", 9), sock) is None
    table.let_go(places(1)[0])
    assert table.sizes() == (KEPT_MAX - 1, 1, 0)
    assert table.keep(("192.0.2.1", 9), sock) is not None
    table.let_go(("192.0.2.77", 9))
    table.let_go(places(1)[0])
    assert table.sizes() == (KEPT_MAX, 1, 0)


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([100] * 3, [3]),
        ([100, 100, 40, 40], [3, 1]),
        ([100, 200, 200], [1, 2]),
        ([0, 0, 5], [1, 1, 1]),
        ([100, 0], [1, 1]),
        ([1000] * 130, [64, 64, 2]),
        ([1400] * 100, [46, 46, 8]),
        ([9000] * 8, [7, 1]),
        ([65507] * 2, [1, 1]),
        ([1400] * 45 + [3] * 2, [46, 1]),
    ],
)
def test_runs(sizes: list[int], runs: list[int]) -> None:
    start, found = 0, []
    while start < len(sizes):
        stop = Socket._run(sizes, start)
        found.append(stop - start)
        start = stop
    assert found == runs
