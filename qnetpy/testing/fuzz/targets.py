"""What is fuzzed: everything that takes bytes from a peer, a stranger, the kernel or a file. One function per door, bytes in.

A target returns; bytes that the product refuses in the way it promises (`BadMessage`, `SettingsError`, ...) are fine, any other exception
is a finding. Where a value comes out, it is packed again and must come out the same. `tests/fuzz/run.py` drives these with coverage, and
`test_corpus.py` replays the corpus in the ordinary tests.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import attrs

from qnetpy import config, controlformat, settings
from qnetpy.cluster import topology
from qnetpy.discovery.hint import pack_txt, parse_instance, parse_txt
from qnetpy.enrol import wire as enrolment_wire
from qnetpy.enrol.code import BadCode, parse_code
from qnetpy.identity.certificate import CertificateError, parse_certificate, parse_chain, parse_issuer, parse_pem_certificates, parse_root
from qnetpy.identity.keyfiles import StoreError, unpack_bundle
from qnetpy.identity.trust import parse_statement
from qnetpy.link import hello
from qnetpy.link.solicitation import parse_solicitation
from qnetpy.link.transport.items import decode
from qnetpy.link.wire import parse_handshake, sort_frames
from qnetpy.members import wire as members_wire
from qnetpy.members.register import parse_register
from qnetpy.members.store import unpack_statements
from qnetpy.qos import QosError, parse_choice
from qnetpy.reach import gossip
from qnetpy.settings import SettingsError
from qnetpy.testing.fuzz import layer2, machines, managers, names, rewriting, seam, soliciting
from qnetpy.testing.fuzz.cryptodev import cryptodev, cryptodev_formats
from resmgr import attachproto, copymsg, handlelist, iomsg, iorequest, lockrequest, message, roster
from resmgr.errors import BadMessage, ResmgrError
from resmgr.procmgr import message as spawn
from resmgr.procmgr import nodefacts
from resmgr.typed.fields import Max
from resmgr.typed.interface import Interface, OtherVersion, Request, VersionSkew
from stack.core.errors import OptionError
from stack.core.options import RESTARTS_MAX, CommonOptions, parse_options, take_common
from stack.drivers.packet import PacketOptions
from stack.drivers.pcap import PcapOptions
from stack.drivers.tap import TapOptions
from stack.drivers.veth import VethOptions
from stack.drivers.vxlan import VxlanOptions
from stack.drivers.wrap.fault import FaultOptions
from stack.drivers.wrap.rate import RateOptions
from stack.drivers.wrap.tracer import TracerOptions
from stack.frame import BadFrame
from stack.managers import protocol
from stack.managers.iopkt import module_name
from stack.wire import rtnetlink
from stack.wire.endpoint import split_host
from stack.wire.ethernet import ethertype_of, payload_offset

Target = Callable[[bytes], None]


def items(data: bytes) -> Iterator[bytes]:
    """*data* cut into items, each behind two bytes of length; the last may be short."""
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : end]
        at = end


class Hue(enum.Enum):
    RED = 1
    BLUE = 2


@attrs.frozen
class Told:
    names: list[str]
    hue: Hue


@attrs.frozen
class Tell(Request[Told]):
    number: int
    share: float
    told: Told | None
    data: Annotated[bytes, Max(64)]
    ready: tuple[bool, ...]


TELLING = Interface("fuzzed", 1, {1: Tell})


def typed_messages(data: bytes) -> None:
    """Requests and replies of an interface that has every kind of field; a part of the inputs gets a head that fits."""
    asked = Tell(0, 0.0, None, b"", ())
    for number, body in ((1, data), (1, TELLING.pack_request(asked)[:12] + data)):
        try:
            request = TELLING.unpack_request(body)
        except (BadMessage, OtherVersion, NotImplementedError):
            continue
        assert TELLING.pack_request(request) == body, number
    for body in (data, TELLING.pack_reply(asked, Told([], Hue.RED))[:12] + data):
        try:
            reply = TELLING.unpack_reply(asked, body)
        except (BadMessage, VersionSkew):
            continue
        assert TELLING.pack_reply(asked, reply) == body


def frames(data: bytes) -> None:
    """A batch of frames of our ethertype, sorted as the link machine does it."""
    batch = [memoryview(one) for one in items(data)]
    if not batch:
        return
    result = sort_frames(batch)
    found = sum(len(arrivals.numbers) for arrivals in result.data) + len(result.handshakes) + len(result.solicitations) + result.malformed
    assert found == len(batch)
    for frame in batch:
        try:
            assert ethertype_of(frame) >= 0
            assert payload_offset(frame) >= 14
        except BadFrame:
            pass


def handshake(data: bytes) -> None:
    """One handshake frame, and what is in its body once it is authentic."""
    frame, covered, macs = parse_handshake(data)
    assert frame.pack() == covered
    assert parse_handshake(covered + macs)[0] == frame


def offers(data: bytes) -> None:
    """Hello, Offer and Verdict: the plaintext of handshake messages."""
    for parse in (_hello, _offer, _verdict):
        try:
            parse(data)
        except BadMessage:
            pass


def _hello(data: bytes) -> None:
    value, rest = hello.parse_hello(data)
    assert hello.parse_hello(value.pack()) == (value, b"")
    assert len(rest) <= len(data)


def _offer(data: bytes) -> None:
    value = hello.parse_offer(data)
    assert hello.parse_offer(value.pack()) == value


def _verdict(data: bytes) -> None:
    assert hello.parse_verdict(hello.pack_verdict(*hello.parse_verdict(data))) == hello.parse_verdict(data)


def packet(data: bytes) -> None:
    """The plaintext of a DATA frame, as values."""
    assert decode(data).items


def messages(data: bytes) -> None:
    """Messages between kernels, each parser on the same bytes."""
    for parse in (
        message.parse_send,
        message.parse_reply,
        message.parse_read,
        message.parse_read_data,
        message.parse_write,
        message.parse_pulse,
        message.parse_bare,
        message.parse_hello,
    ):
        try:
            parse(data)
        except BadMessage:
            pass


def requests(data: bytes) -> None:
    """Requests to resource managers, and their answers."""
    for parse in (
        _connect,
        iorequest.parse_read,
        iorequest.parse_write,
        iorequest.parse_readdir,
        iorequest.parse_space,
        iorequest.parse_devctl,
        handlelist.parse_close,
        lockrequest.parse_lock,
        lockrequest.parse_delegation,
        handlelist.parse_identify,
        iorequest.parse_notify,
        iorequest.parse_copy,
        iorequest.parse_seek,
        _offered,
        _fetch,
        _take,
        _attribute,
        _drop,
        _tokens,
        _events,
        attachproto.parse_rows,
        roster.parse_question,
        _accounts,
        lambda view: iomsg.parse_dirents(view, True),
        lambda view: iomsg.parse_dirents(view, False),
    ):
        try:
            parse(data)
        except (BadMessage, ResmgrError):
            pass


def _connect(data: bytes) -> None:
    iorequest.parse_connect(data)


def _attribute(data: bytes) -> None:
    path, asked = iorequest.parse_xattr(data)
    again = asked.pack(0, path)
    assert iorequest.parse_xattr(again) == (path, asked)


def _offered(data: bytes) -> None:
    offered = copymsg.parse_offer(data)
    assert copymsg.parse_offer(copymsg.pack_offer(0, *offered)) == offered


def _fetch(data: bytes) -> None:
    fetch = copymsg.parse_fetch(data)
    assert copymsg.parse_fetch(copymsg.pack_fetch(0, fetch)) == fetch


def _accounts(data: bytes) -> None:
    entries = roster.parse_page(data)
    assert entries == roster.parse_page(b"".join(roster.pack_page(entries[at : at + 1], 0)[1] for at in range(len(entries))))


def _take(data: bytes) -> None:
    assert copymsg.pack_take(copymsg.parse_take(data)) == data


def _drop(data: bytes) -> None:
    inos = handlelist.parse_drop(data)
    assert handlelist.parse_drop(handlelist.pack_drop(inos)) == inos


def _tokens(data: bytes) -> None:
    assert handlelist.pack_tokens(handlelist.parse_tokens(data[1:], data[0] if data else 0)) == data[1:]


def _events(data: bytes) -> None:
    events = iomsg.parse_events(data)
    assert b"".join(iomsg.EVENT.pack(one.ino, one.kind, one.cookie, len(one.name)) + one.name for one in events) == data


def processes(data: bytes) -> None:
    """Messages to the process manager, and its answers."""
    for parse in (_spawn, spawn.parse_header, spawn.parse_stream, spawn.parse_spawned, spawn.parse_ended, _rows, nodefacts.parse):
        try:
            parse(data)
        except BadMessage:
            pass


def _spawn(data: bytes) -> None:
    value = spawn.parse_spawn(data)
    assert spawn.parse_spawn(spawn.pack_spawn(value)) == value


def _rows(data: bytes) -> None:
    rows = spawn.parse_rows(data)
    assert len(rows) <= len(data)


def certificates(data: bytes) -> None:
    """Certificates from a handshake, and the files of a node."""
    for parse in (parse_certificate, parse_root, parse_pem_certificates, unpack_bundle):
        try:
            parse(data)
        except (CertificateError, StoreError):
            pass


def statements(data: bytes) -> None:
    """Certificates of issuers and chains, what nodes tell each other about revocations and roots, and what is stored of it."""
    for parse in (parse_chain, parse_issuer, _statement, unpack_statements):
        try:
            parse(data)
        except BadMessage:
            pass
    try:
        parse_register(data)
    except ValueError:
        pass


def _statement(data: bytes) -> None:
    assert parse_statement(data).data == data


def membership(data: bytes) -> None:
    """Messages between daemons about membership, and their answers."""
    for parse in (_sync, _known, _tell, _renew, _renewed, members_wire.parse_leave):
        try:
            parse(data)
        except BadMessage:
            pass


def _sync(data: bytes) -> None:
    assert members_wire.pack_sync(members_wire.parse_sync(data)) == data


def _known(data: bytes) -> None:
    assert members_wire.pack_known(members_wire.parse_known(data)) == data


def _tell(data: bytes) -> None:
    told = members_wire.parse_tell(data)
    assert [one for message in members_wire.pack_tells(told) for one in members_wire.parse_tell(message)] == told


def _renew(data: bytes) -> None:
    assert members_wire.pack_renew(members_wire.parse_renew(data)) == data


def _renewed(data: bytes) -> None:
    assert members_wire.pack_renewed(members_wire.parse_renewed(data)) == data


def enrolment(data: bytes) -> None:
    """Frames of enrolment on a stream that comes in pieces, and their bodies."""
    for parse in (_joining_hello, _refused, _accept, _request, _grant, enrolment_wire.parse_denied):
        try:
            parse(data)
        except BadMessage:
            pass
    stream = enrolment_wire.Frames(grants=True)
    for place in range(0, len(data), 7):
        stream.feed(data[place : place + 7])
        assert stream.waiting <= enrolment_wire.GRANT_MAX + enrolment_wire.HEADER.size


def _joining_hello(data: bytes) -> None:
    value = enrolment_wire.parse_hello(data)
    assert value.version != enrolment_wire.VERSION or enrolment_wire.pack_hello(value) == data


def _refused(data: bytes) -> None:
    assert enrolment_wire.pack_refused(enrolment_wire.parse_refused(data)) == data


def _accept(data: bytes) -> None:
    assert enrolment_wire.pack_accept(enrolment_wire.parse_accept(data)) == data


def _request(data: bytes) -> None:
    assert enrolment_wire.pack_request(enrolment_wire.parse_request(data)) == data


def _grant(data: bytes) -> None:
    assert enrolment_wire.pack_grant(enrolment_wire.parse_grant(data)) == data


def endpoints(data: bytes) -> None:
    """Gossip of endpoints between daemons."""
    told = gossip.parse(data)
    assert gossip.parse(gossip.pack(told)) == told


def words(data: bytes) -> None:
    """What people type: a code, a policy for paths, a host with a port."""
    text = data.decode("latin-1")
    for parse in (parse_code, parse_choice, lambda typed: split_host(typed, 1)):
        try:
            parse(text)
        except (BadCode, QosError, ValueError):
            pass


def discovery(data: bytes) -> None:
    """What anybody can announce by mDNS."""
    try:
        parse_instance(data.decode("latin-1"))
    except BadMessage:
        pass
    place = parse_txt(data)
    assert parse_txt(pack_txt(place)) == place


def solicitation(data: bytes) -> None:
    """What anybody can send to the group of all nodes."""
    value = parse_solicitation(data)
    assert parse_solicitation(value.pack()) == value
    assert data.startswith(value.pack())


def links(data: bytes) -> None:
    """rtnetlink, from the kernel."""
    for told in rtnetlink.parse_messages(data):
        assert told is not None


def configuration(data: bytes) -> None:
    """The node's settings file, a topology file, and a control reply, as text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        config.check(settings.structure(config.Config, table))
    except SettingsError:
        pass
    try:
        topology.plan(topology.parse(text, "text"), "name", "text")
    except SettingsError:
        pass


def options(data: bytes) -> None:
    """Module options, which come over the network too."""
    text = data.decode("latin-1")
    for kind in (PacketOptions, TapOptions, PcapOptions, VethOptions, VxlanOptions, FaultOptions, RateOptions, TracerOptions):
        try:
            parse_options(kind, text, "module")
        except OptionError:
            pass
    try:
        common, own = take_common(text, "module")
        assert take_common(own, "module") == (CommonOptions(), own)
        assert 0 <= common.restart <= RESTARTS_MAX
    except OptionError:
        pass


def control_reply(data: bytes) -> None:
    """Answers of the daemon, and requests to and answers of io-pkt."""
    for parse in (controlformat.unpack_reply, protocol.unpack_reply):
        try:
            parse(data)
        except (ValueError, RecursionError):
            pass
    protocol.unpack_request(data)
    module_name(data.decode("latin-1"))


TARGETS: Mapping[str, Target] = {
    "frames": frames,
    "handshake": handshake,
    "offers": offers,
    "packet": packet,
    "messages": messages,
    "typed_messages": typed_messages,
    "requests": requests,
    "processes": processes,
    "certificates": certificates,
    "statements": statements,
    "membership": membership,
    "enrolment": enrolment,
    "endpoints": endpoints,
    "names": lambda data: names.replica(list(items(data))),
    "name_events": names.told,
    "words": words,
    "discovery": discovery,
    "solicitation": solicitation,
    "links": links,
    "configuration": configuration,
    "options": options,
    "control_reply": control_reply,
    "transport": lambda data: machines.transport(list(items(data))),
    "peer": lambda data: machines.peer(list(items(data))),
    "devices": lambda data: managers.devices(list(items(data))),
    "attaching": lambda data: managers.attaching(list(items(data))),
    "manager": lambda data: machines.manager(list(items(data))),
    "fuse": lambda data: machines.fuse(list(items(data))),
    "shaking": lambda data: machines.shaking(list(items(data))),
    "soliciting": lambda data: soliciting.soliciting(list(items(data))),
    "link": lambda data: machines.link(list(items(data))),
    "joining": lambda data: machines.joining(list(items(data))),
    "unfinished": seam.unfinished,
    "capture": seam.capture,
    "seam": lambda data: seam.seam(list(items(data))),
    "bpdus": lambda data: layer2.bpdus(list(items(data))),
    "slow": lambda data: layer2.slow(list(items(data))),
    "bridge": lambda data: layer2.bridge(list(items(data))),
    "runs": rewriting.runs,
    "flows": rewriting.flows,
    "tags": lambda data: rewriting.tags(list(items(data))),
    "forger": lambda data: rewriting.forger(list(items(data))),
    "cryptodev": lambda data: cryptodev(list(items(data))),
    "cryptodev_formats": cryptodev_formats,
}
"""By the name of the folder of their corpus."""
REFUSALS = (BadMessage, BadFrame)
"""What any target may raise for bytes it does not like."""


def run(name: str, data: bytes) -> None:
    """One input to one target; raises for a finding only."""
    try:
        TARGETS[name](data)
    except REFUSALS:
        pass
