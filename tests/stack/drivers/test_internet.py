"""The internet in memory: who reaches whom, what a router lets in, what a station is, and that a driver's promises are kept."""

from __future__ import annotations

from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.internet import LIFE, MTU_DEFAULT, Internet, InternetOptions, InternetPort, Router
from stack.frame import Frame
from stack.testing.driver import RecordingPort
from stack.wire.endpoint import PORT_DEFAULT, Endpoint, endpoint

TYPE = 0x88B5
Made = tuple[InternetPort, RecordingPort]


class Site:
    """An internet, and ports on it."""

    def __init__(self) -> None:
        self.dispatch = VirtualDispatch(1)
        self.internet = Internet(self.dispatch)

    def port(self, address: str, router: Router | None = None, mtu: int = MTU_DEFAULT) -> Made:
        random = self.dispatch.random(address).randbytes
        driver = InternetPort(self.internet, self.dispatch, InternetOptions(address, mtu=mtu), random, router)
        self.internet.plug(driver)
        port = RecordingPort()
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
        return driver, port

    def send(self, sender: InternetPort, to: Endpoint, data: bytes, ethertype: int = TYPE) -> None:
        station = sender.station(to)
        assert station is not None
        sender.transmit([station + sender.mac + ethertype.to_bytes(2, "big") + data])
        self.dispatch.run_for(0.01)


def sources(driver: InternetPort, port: RecordingPort) -> list[str]:
    return [str(driver.endpoint(bytes(frame[6:12]))) for frame in port.frames]


def test_a_datagram_arrives_under_the_receivers_own_station_of_the_sender() -> None:
    site = Site()
    (a, at_a), (b, at_b) = site.port("10.0.0.1"), site.port("10.0.0.2")
    site.send(a, b.local_endpoint, b"hello")
    assert sources(b, at_b) == [f"10.0.0.1:{PORT_DEFAULT}"]
    assert at_b.frames[0][:6] == b.mac
    assert at_b.frames[0][12:] == TYPE.to_bytes(2, "big") + b"hello"
    assert a.station(b.local_endpoint) != bytes(at_b.frames[0][6:12]), "each end numbers the stations for itself"
    b.transmit([bytes(at_b.frames[0][6:12]) + b.mac + TYPE.to_bytes(2, "big") + b"back"])
    site.dispatch.run_for(0.01)
    assert [bytes(frame[14:]) for frame in at_a.frames] == [b"back"]


def test_what_goes_nowhere_is_counted() -> None:
    site = Site()
    (a, at_a), (b, at_b) = site.port("10.0.0.1"), site.port("10.0.0.2", mtu=1200)
    site.send(a, endpoint("10.0.0.9", 7), b"nobody")
    assert site.internet.lost == {"nobody_there": 1}
    site.send(a, b.local_endpoint, b"other", ethertype=0x0800)
    site.send(a, b.local_endpoint, bytes(1201))
    a.transmit([bytes((2, 1, 1, 1, 1, 1)) + a.mac + TYPE.to_bytes(2, "big")])
    site.dispatch.run_for(0.01)
    assert at_b.frames == []
    assert at_a.drops == {"tx_not_carried": 1, "tx_no_endpoint": 1}
    assert at_b.drops == {"rx_too_long": 1}
    assert a.station(a.local_endpoint) is None
    assert a.station(endpoint("fd00::1", 7)) is None
    assert a.station(endpoint("224.0.0.1", 7)) is None


def test_a_router_lets_in_who_was_written_to_and_nobody_else() -> None:
    site = Site()
    router = site.internet.router("192.0.2.7")
    (a, at_a), (b, at_b), (c, _) = site.port("192.168.0.2", router), site.port("10.0.0.2"), site.port("10.0.0.3")
    site.send(b, a.local_endpoint, b"private addresses lead nowhere")
    site.send(a, b.local_endpoint, b"out")
    (outside,) = [b.endpoint(bytes(frame[6:12])) for frame in at_b.frames]
    assert outside is not None
    assert outside.address == "192.0.2.7"
    site.send(b, outside, b"in")
    site.send(c, outside, b"a stranger")
    assert [bytes(frame[14:]) for frame in at_a.frames] == [b"in"]
    site.dispatch.run_for(LIFE)
    site.send(b, outside, b"too late")
    assert len(at_a.frames) == 1
    site.send(a, b.local_endpoint, b"again")
    assert sources(b, at_b) == [str(outside)] * 2, "the same port as before"


def test_a_router_that_forgets_gives_other_ports() -> None:
    site = Site()
    router = site.internet.router("192.0.2.7")
    (a, at_a), (b, at_b) = site.port("192.168.0.2", router), site.port("10.0.0.2")
    site.send(a, b.local_endpoint, b"one")
    router.forget()
    before = b.endpoint(bytes(at_b.frames[0][6:12]))
    assert before is not None
    site.send(b, before, b"lost")
    site.send(a, b.local_endpoint, b"two")
    assert len(set(sources(b, at_b))) == 2
    assert at_a.frames == []


def test_frames_are_gone_when_deliver_returns_and_ports_when_they_are_detached() -> None:
    site = Site()
    (a, _), (b, at_b) = site.port("10.0.0.1"), site.port("10.0.0.2")
    kept: list[Frame] = []
    at_b.on_frames = kept.extend
    site.send(a, b.local_endpoint, b"secret")
    assert set(bytes(kept[0])) == {0xDB}
    b.detach()
    site.send(a, b.local_endpoint, b"nobody")
    assert site.internet.lost == {"nobody_there": 1}
    assert len(site.internet.ports) == 1
