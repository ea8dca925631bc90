"""IP packets reach the module that registered for their protocol, from our own stacks and from the kernel's."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import attrs
import pytest
import trio

from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.commandline import Load
from stack.core.errors import OptionError
from stack.core.ifnet import Interface
from stack.core.manager import open_manager
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.drivers.hub import Hub
from stack.frame import Frame
from stack.testing.namespace import Veth

MAC = bytes.fromhex("020000000001")
PROTOCOL = 106
"""Qnet's, in QNX."""


@attrs.frozen
class NoOptions:
    pass


class Listener:
    """A protocol above IP, as others write it."""

    def __init__(self, context: Context, number: int = PROTOCOL) -> None:
        self.packets: list[tuple[str, bytes]] = []
        self.do: Callable[[], None] = lambda: None
        self._registration = context.stack.register_ip_protocol(number, self._receive)

    def _receive(self, interface: Interface, packets: list[Frame]) -> None:
        self.do()
        self.packets += [(interface.name, bytes(packet)) for packet in packets]

    def detach(self) -> None:
        self._registration.revoke()


LISTENER = Module("listener", Kind.PROTOCOL, NoOptions, lambda context, _: Listener(context))


def ipv4(to: str, payload: bytes, protocol: int = PROTOCOL, fragment: int = 0) -> bytes:
    header = bytearray(bytes.fromhex("4500000000000000400000000a000001") + socket.inet_aton(to))
    header[2:4] = (20 + len(payload)).to_bytes(2, "big")
    header[6:8] = fragment.to_bytes(2, "big")
    header[9] = protocol
    header[10:12] = (0xFFFF - int.from_bytes(header, "big") % 0xFFFF).to_bytes(2, "big")
    return bytes(header) + payload


def ether(packet: bytes, kind: int = 0x0800, tag: bytes = b"") -> bytes:
    return (MAC + MAC + tag + kind.to_bytes(2, "big") + packet).ljust(60, b"\0")


def rig(options: str = "address=10.0.0.9") -> tuple[Stack, Interface, Listener]:
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    stack.load(Hub(dispatch).module(), f"mac={MAC.hex(':')}")
    stack.load("ip", options)
    listener = stack.load(LISTENER).attached
    assert isinstance(listener, Listener)
    (interface,) = stack.interfaces
    return stack, interface, listener


def test_packets_are_sorted_by_protocol_and_cut_to_their_length() -> None:
    stack, interface, listener = rig()
    ours = ipv4("10.0.0.9", b"ours")
    group = ipv4("224.0.0.1", b"group")
    interface.deliver(
        [
            ether(ours),
            ether(ipv4("10.0.0.8", b"other host")),
            ether(ipv4("10.0.0.9", b"udp", 17)),
            ether(ipv4("10.0.0.9", b"part", fragment=0x2000)),
            ether(b"\x45" + bytes(30)),
            ether(group, tag=b"\x81\0\xa0\0"),
        ]
    )
    assert listener.packets == [("en0", ours), ("en0", group)]
    assert interface.drops == {"ip_other_host": 1, "ip_no_protocol": 1, "ip_fragment": 1, "ip_bad": 1}
    assert stack.ip_protocols() == [(PROTOCOL, 2, "listener")]


def test_addresses_of_the_interface_are_ours_while_it_has_them() -> None:
    _, interface, listener = rig("")
    packet = ether(ipv4("10.0.0.9", b"x"))
    interface.deliver([packet])
    assert listener.packets == []
    interface.set_addresses(("10.0.0.9", "fd00::1"))
    interface.deliver([packet])
    assert len(listener.packets) == 1
    interface.set_addresses(())
    interface.deliver([packet])
    assert len(listener.packets) == 1


def test_a_protocol_that_raises_is_isolated_and_one_has_one_owner() -> None:
    stack, interface, listener = rig()

    def boom() -> None:
        raise RuntimeError("boom")

    listener.do = boom
    interface.deliver([ether(ipv4("10.0.0.9", b"x"))])
    assert stack.failures() == {f"handler of IP protocol {PROTOCOL}": 1}
    assert interface.drops == {"handler_failed": 1}
    with pytest.raises(Misuse, match="IP protocol 106 is registered already"):
        stack.load(LISTENER)
    with pytest.raises(Misuse, match="cannot be registered"):
        stack.register_ip_protocol(256, lambda interface, packets: None)
    with pytest.raises(OptionError, match="expected an IP address"):
        stack.load("ip", "address=x")
    stack.unload(stack.loaded[-1])
    assert stack.ip_protocols() == []
    stack.close()


@pytest.mark.priv
async def test_the_kernels_packets_of_both_versions(veth: Veth) -> None:
    for namespace, name, end in ((veth.a, "va", 1), (veth.b, "vb", 2)):
        namespace.ip("address", "add", f"10.7.0.{end}/24", "dev", name)
        namespace.ip("-6", "address", "add", f"fd07::{end}/64", "dev", name, "nodad")
    with veth.b.entered():
        four = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
        six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, PROTOCOL)
    with veth.a.entered(), four, six:
        async with open_manager([Load(Kind.DRIVER, "packet", "ifname=va"), Load(Kind.PROTOCOL, "ip")]) as manager:
            made: list[Listener] = []
            manager.dispatch.enter(lambda: made.append(_listener(manager.stack)))
            (listener,) = made
            with trio.fail_after(20):
                while len({packet[0] >> 4 for _, packet in listener.packets}) < 2:
                    for sock, to in ((four, "10.7.0.1"), (six, "fd07::1")):
                        try:
                            sock.sendto(b"over the kernel", (to, 0))
                        except OSError:
                            pass  # the address is not ready yet
                    await trio.sleep(0.01)
            assert {packet[-15:] for _, packet in listener.packets} == {b"over the kernel"}
            (interface,) = manager.stack.interfaces
            assert set(interface.drops) <= {"ip_no_protocol", "ip_other_host"}, "neighbour discovery is for nobody here"


def _listener(stack: Stack) -> Listener:
    attached = stack.load(LISTENER).attached
    assert isinstance(attached, Listener)
    return attached
