"""Requests to a running io-pkt: who may ask what, what is done, and that what fails changes nothing."""

from __future__ import annotations

import errno
import json
import random
import sys
from collections.abc import Sequence

import attrs
import pytest

from resmgr.access import Grant, Policy, UserRule, Verb
from resmgr.channel import ND_LOCAL, PID_SYSTEM, ClientInfo, Credentials, Nd
from resmgr.dispatch import Buffer
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.l2.bridge_driver import BridgeDriver
from stack.l2.stations import Learned
from stack.managers.facts import facts
from stack.managers.iopkt import WAITING_EACH, IoPktManager, module_name
from stack.managers.protocol import CHID_STACK, REPLY_MAX, REQUEST_MAX, pack_request, unpack_reply, unpack_request
from stack.managers.questions import SLICE
from stack.managers.slices import pieces

ROOT = Credentials(0, 0, (), 1)
USER = Credentials(1000, 1000, (), 2)


@attrs.frozen
class Options:
    name: str = "ml0"
    fail: bool = False


class MemoryLink:
    """A driver for the requests to load; found by its dotted path."""

    def __init__(self, context: Context, options: Options) -> None:
        if options.fail:
            context.dispatch.call_at(1e9, self.detach)
            raise RuntimeError("no such luck")
        self.name, self.mac, self.mtu, self.up = options.name, bytes(6), 1500, True

    def start(self, port: object) -> None: ...

    def accept(self, ethertypes: object) -> None: ...

    def transmit(self, frames: object) -> None: ...

    def detach(self) -> None: ...

    def info(self) -> dict[str, str | int]:
        return {"driver": "memory"}


class Idle:
    def detach(self) -> None: ...


MODULE = Module("memlink", Kind.DRIVER, Options, MemoryLink)
PROTOCOL = Module("idle", Kind.PROTOCOL, Options, lambda context, options: Idle())
HERE = "memlink_of_the_test"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file under a dotted path that a request may name."""
    from types import ModuleType

    for name in (HERE, f"{HERE}.it"):
        module = ModuleType(name)
        module.__dict__.update(MODULE=MODULE, PROTOCOL=PROTOCOL)
        monkeypatch.setitem(sys.modules, name, module)


class Answer:
    """A client's half of a message."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: object) -> None:
        self.got.append((status, b"".join(parts)))

    def pull(self, offset: int, length: int, done: object) -> None:
        raise AssertionError("requests come whole")

    def push(self, offset: int, data: object) -> None:
        raise AssertionError("answers go in one piece")


def client(who: Credentials = ROOT, nd: int = 0, node: str = "", roles: tuple[str, ...] = ()) -> ClientInfo:
    return ClientInfo(Nd(nd), node, frozenset(roles), who, 1)


def fill(bridge: BridgeDriver, number: int) -> None:
    """Static stations, of a member that is not there."""
    bridge.bridge.stations.maximum = number
    for station in range(number):
        assert bridge.bridge.stations.learn(b"\2\0" + station.to_bytes(4, "big"), 1, 0.0) is Learned.NEWS


class Rig:
    """A stack with its manager, and clients that ask as anybody."""

    def __init__(self, group: int | None = None) -> None:
        self.dispatch = VirtualDispatch(1)
        self.system = System(self.dispatch, "here")
        self.stack = Stack(self.system, random.Random(1).randbytes)
        self.manager = IoPktManager(self.stack, owner=500, group=group)

    def raw(self, data: bytes, info: ClientInfo, msglen: int | None = None) -> tuple[int, bytes]:
        answer = Answer()
        self.system.kernel.deliver(self.manager.channel, info, data, len(data) if msglen is None else msglen, 1 << 20, 10, answer)
        self.dispatch.run_for(0.1)
        (got,) = answer.got
        return got

    def ask(self, verb: str, by: ClientInfo | None = None, /, **arguments: object) -> dict[str, object]:
        status, data = self.raw(pack_request(verb, **arguments), by or client())
        assert status == 0, errno.errorcode.get(-status)
        return unpack_reply(data)

    def names(self) -> list[str]:
        return [one.module.name for one in self.stack.loaded]


def listed(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


def told(rig: Rig) -> object:
    return json.loads("".join(pieces(facts(rig.stack))))


def test_load_and_unload() -> None:
    rig = Rig()
    made = rig.ask("mount", module=f"{HERE}.it", options="name=ml3,restart=2", wrap=[["fault", "drop=5%"]])
    assert (made["name"], made["kind"], made["interface"], made["number"]) == ("memlink", "driver", "ml3", 1)
    assert (made["options"], made["wrappers"]) == ("name=ml3", [["fault", "drop=5%"]])
    assert rig.ask("mount", module=f"{HERE}.it:PROTOCOL")["kind"] == "protocol"
    assert rig.names() == ["memlink", "idle"]
    assert rig.ask("umount", what="/dev/io-net/ml3")["name"] == "memlink"
    assert rig.ask("umount", what="lsm-idle.so")["name"] == "idle"
    assert (rig.names(), rig.stack.interfaces) == ([], ())


@pytest.mark.parametrize("what", [f"{HERE}.it", f"{HERE}.it:MODULE", "memlink"])
def test_what_was_mounted_by_a_path_is_unmounted_by_it(what: str) -> None:
    rig = Rig()
    rig.ask("mount", module=f"{HERE}.it", options="restart=3")
    rig.ask("mount", module=f"{HERE}.it:PROTOCOL", options="restart=3")
    assert rig.ask("umount", what=what)["name"] == "memlink"
    assert rig.ask("umount", what=what)["errno"] == errno.ENXIO
    (idle,) = rig.stack.loaded
    idle.guard.run("anything", lambda: 1 // 0)
    rig.dispatch.run_for(0.1)
    assert rig.ask("umount", what=f"{HERE}.it:PROTOCOL")["number"] == 3
    assert rig.names() == []


def test_a_module_that_waits_to_come_back_is_given_up_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, made = Rig(), [Idle()]
    module = Module("once", Kind.PROTOCOL, Options, lambda context, options: made.pop())
    monkeypatch.setattr(sys.modules[f"{HERE}.it"], "ONCE", module, raising=False)
    rig.ask("mount", module=f"{HERE}.it:ONCE", options="restart=3")
    rig.stack.loaded[0].guard.run("anything", lambda: 1 // 0)
    rig.dispatch.run_for(0.1)
    assert rig.stack.restarter.absent() == {"once #1": "pop from empty list"}
    assert rig.ask("umount", what=f"{HERE}.it:ONCE") == {"name": "once", "number": 1, "interface": None, "waiting": "pop from empty list"}
    assert rig.stack.restarter.absent() == {}


def test_a_module_that_is_there_goes_before_one_that_waits_to_come_back() -> None:
    rig = Rig()
    refuse = [""]

    def attach(context: Context, options: Options) -> Idle:
        if refuse[0]:
            raise ModuleError(errno.ENODEV, refuse[0])
        return Idle()

    module = Module("twice", Kind.PROTOCOL, Options, attach)
    first, _ = rig.stack.load(module, "restart=3"), rig.stack.load(module)
    refuse[0] = "gone"
    first.guard.run("anything", lambda: 1 // 0)
    rig.dispatch.run_for(0.1)
    assert rig.stack.restarter.absent() == {"twice #1": "gone"}
    told = rig.ask("umount", what="twice")
    assert told["errno"] == errno.EINVAL
    assert told["error"] == "twice names 2 modules: say which, #2, #1 (waiting)"
    assert rig.ask("umount", what="#2")["number"] == 2
    assert rig.stack.restarter.absent() == {"twice #1": "gone"}
    assert rig.ask("umount", what="twice") == {"name": "twice", "number": 1, "interface": None, "waiting": "gone"}
    assert rig.stack.restarter.absent() == {}


def test_the_interface_is_named_by_destroy_and_by_number() -> None:
    rig = Rig()
    for number in range(3):
        rig.ask("mount", module=f"{HERE}.it", options=f"name=ml{number}")
    assert rig.ask("umount", what="memlink") == {
        "error": "memlink is loaded 3 times: say which, #1 (ml0), #2 (ml1), #3 (ml2)",
        "errno": errno.EINVAL,
    }
    rig.ask("destroy", interface="ml1")
    rig.ask("umount", what="#3")
    rig.ask("umount", what="memlink")
    assert rig.names() == []


@pytest.mark.parametrize(
    ("verb", "arguments", "number", "sentence"),
    [
        ("mount", {"module": "nosuch"}, errno.ENXIO, "there is no module called nosuch"),
        ("mount", {"module": "/lib/dll/devnp-nosuch.so"}, errno.ENXIO, "there is no driver called nosuch"),
        ("mount", {"module": "lsm-nosuch.so"}, errno.ENXIO, "there is no protocol called nosuch"),
        ("mount", {"module": f"{HERE}.it", "options": "nam=x"}, errno.EINVAL, "memlink: there is no option nam; did you mean name?"),
        ("mount", {"module": f"{HERE}.it", "options": "fail"}, errno.EIO, "mount raised RuntimeError: no such luck; the log says more"),
        ("mount", {"module": f"{HERE}.it", "options": "name=ml0"}, errno.EEXIST, "io-pkt0 has an interface ml0 already"),
        ("mount", {"module": f"{HERE}.it", "kind": "protocol"}, errno.ENXIO, f"{HERE}.it is a driver, not a protocol"),
        ("mount", {"module": f"{HERE}.it", "kind": "x"}, errno.EINVAL, "'x' is no kind of module"),
        ("mount", {"module": f"{HERE}.it", "wrap": [["nosuch", ""]]}, errno.ENXIO, "there is no wrapper called nosuch"),
        ("mount", {"module": f"{HERE}.it", "wrap": [[1, ""]]}, errno.EINVAL, "a wrapper is a name and options"),
        ("mount", {"module": f"{HERE}.it", "wrap": "fault"}, errno.EINVAL, "wrappers are a list of at most 16"),
        ("mount", {"module": f"{HERE}.it:PROTOCOL", "wrap": [["fault", ""]]}, errno.EINVAL, "idle is no driver"),
        ("mount", {"module": "fault"}, errno.EINVAL, "fault needs a driver to be wrapped around"),
        ("mount", {}, errno.EINVAL, "the request needs 'module'"),
        ("mount", {"module": 7}, errno.EINVAL, "the request needs 'module'"),
        ("umount", {"what": "en9"}, errno.ENXIO, "io-pkt0 has no module or interface en9; loaded: memlink"),
        ("umount", {"what": "#9"}, errno.ENXIO, "io-pkt0 has no module or interface #9; loaded: memlink"),
        ("destroy", {"interface": "memlink"}, errno.ENXIO, "io-pkt0 has no interface memlink; there is: ml0"),
        ("interface", {"interface": "ml0", "mtu": 9000}, errno.EINVAL, "ml0: an MTU of 9000 is not between 68 and 1500"),
        ("interface", {"interface": "ml0", "mtu": 1000, "up": "no"}, errno.EINVAL, "'no' is not true or false"),
        ("interface", {"interface": "ml0", "mtu": True}, errno.EINVAL, "True is no MTU"),
        ("use-crypto", {"name": "rot13"}, errno.ENXIO, "there is no crypto provider rot13; there are openssl"),
        ("use-crypto", {"name": 7}, errno.EINVAL, "the request needs 'name'"),
        ("interface", {"interface": "ml0", "up": 1}, errno.EINVAL, "1 is not true or false"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(verb: str, arguments: dict[str, object], number: int, sentence: str) -> None:
    rig = Rig()
    rig.ask("mount", module=f"{HERE}.it", options="name=ml0")
    before = told(rig)
    answer = rig.ask(verb, **arguments)
    assert answer["errno"] == number
    assert str(answer["error"]).startswith(sentence)
    assert told(rig) == before


@pytest.mark.parametrize("verb", ["mount", "umount", "destroy", "interface", "use-crypto"])
def test_only_root_the_owner_and_the_group_change_anything(verb: str) -> None:
    rig = Rig(group=70)
    rig.ask("mount", module=f"{HERE}.it", options="name=ml0")
    arguments: dict[str, object] = {"module": f"{HERE}.it:PROTOCOL", "what": "ml0", "interface": "ml0", "up": False, "name": "openssl"}
    before = told(rig)
    refused = rig.ask(verb, client(USER), **arguments)
    assert refused["errno"] == errno.EACCES
    assert "user 1000 may not change io-pkt0" in str(refused["error"])
    assert told(rig) == before
    assert rig.ask("facts", client(USER))["name"] == "io-pkt0"
    for who in (ROOT, Credentials(500, 5), Credentials(1000, 70), Credentials(1000, 1000, (4, 70))):
        assert "error" not in Rig(group=70).ask("mount", client(who), module=f"{HERE}.it")


def test_other_nodes_need_the_verb_and_a_user_who_may() -> None:
    rig = Rig()
    far = client(ROOT, nd=2, node="far", roles=("ops",))
    for verb in ("facts", "mount"):
        refused = rig.ask(verb, far, module=f"{HERE}.it")
        assert (refused["error"], refused["errno"]) == ("node far may not administer this one ([access] administer)", errno.EACCES)
    rules = [UserRule("identity", root="root")]
    rig.system.set_policy(Policy(rig.system.accounts, grants=[Grant(Verb.ADMINISTER, roles=("ops",))]))
    assert "user 65534 may not change" in str(rig.ask("mount", far, module=f"{HERE}.it")["error"]), "root is nobody unless a rule says so"
    assert rig.ask("facts", far)["name"] == "io-pkt0"
    rig.system.set_policy(Policy(rig.system.accounts, users=rules, grants=[Grant(Verb.ADMINISTER, roles=("ops",))]))
    assert rig.ask("mount", far, module=f"{HERE}.it")["name"] == "memlink"
    assert "error" in rig.ask("mount", client(ROOT, nd=3, node="other"), module=f"{HERE}.it")


@pytest.mark.parametrize(
    ("data", "msglen", "code", "why"),
    [
        (b"", None, errno.EINVAL, "a request is a table in JSON"),
        (b"[]", None, errno.EINVAL, "a request is a table in JSON"),
        (b'{"do": 1}', None, errno.EINVAL, "a request is a table in JSON"),
        (b"[" * 5000, None, errno.EINVAL, "a request is a table in JSON"),
        (b'{"do": "nosuch"}', None, errno.ENOSYS, "io-pkt0 knows no request 'nosuch'; it knows crypto, destroy, facts"),
        (b'{"do": "facts"}' + b" " * REQUEST_MAX, None, errno.EMSGSIZE, f"a request has at most {REQUEST_MAX} bytes"),
        (b'{"do": "facts"}', 100, errno.EMSGSIZE, f"a request has at most {REQUEST_MAX} bytes"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(data: bytes, msglen: int | None, code: int, why: str) -> None:
    status, answer = Rig().raw(data, client(), msglen)
    told = unpack_reply(answer)
    assert (status, told["errno"]) == (0, code)
    assert str(told["error"]).startswith(why)


def test_too_many_changes_are_refused_with_a_sentence() -> None:
    rig = Rig()
    answers = [Answer() for _ in range(WAITING_EACH + 1)]
    data = pack_request("interface", interface="en9", up=True)
    for answer in answers:
        rig.system.kernel.deliver(rig.manager.channel, client(), data, len(data), 1000, 10, answer)
    told = unpack_reply(answers[-1].got[0][1])
    assert (told["errno"], told["error"]) == (errno.EAGAIN, "too many requests wait: ask again when one is answered")
    rig.dispatch.run_for(0.1)
    assert [unpack_reply(answer.got[0][1])["errno"] for answer in answers[:-1]] == [errno.ENXIO] * WAITING_EACH


def test_an_answer_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stack: object) -> dict[str, object]:
        raise KeyError("no")

    monkeypatch.setattr("stack.managers.iopkt.facts", fail)
    assert Rig().ask("facts") == {"error": "the answer could not be made (KeyError), as the log says", "errno": errno.EIO}


@pytest.mark.parametrize("seed", range(200))
def test_random_requests_raise_nothing(seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig()
    values: list[object] = [None, 0, True, "", "ml0", "#1", f"{HERE}.it", [["fault", "x"]], [[]], {}, 1e9, "driver", "name=ml1", "\0"]
    for _ in range(20):
        keys = ("module", "kind", "options", "wrap", "what", "interface", "up", "mtu")
        arguments = {key: rng.choice(values) for key in keys if rng.random() < 0.7}
        rig.ask(rng.choice(("mount", "umount", "destroy", "interface", "facts")), **arguments)
    data = bytearray(pack_request("mount", module=f"{HERE}.it", options="name=ml7"))
    data[rng.randrange(len(data))] = rng.randrange(256)
    rig.raw(bytes(data), client())


def test_a_request_of_a_client_whose_channel_is_gone_is_not_done() -> None:
    rig = Rig()
    answer = Answer()
    data = pack_request("mount", module=f"{HERE}.it")
    rig.system.kernel.deliver(rig.manager.channel, client(), data, len(data), 1000, 10, answer)
    rig.manager.close()
    rig.dispatch.run_for(0.1)
    assert [status for status, _ in answer.got] == [-errno.ESRCH]
    assert rig.names() == []


def test_who_only_asks_does_not_keep_root_out() -> None:
    rig = Rig()
    rig.stack.load("bridge", "name=bridge0")
    kernel, manager = rig.system.kernel, rig.manager

    def send(data: bytes, who: Credentials) -> Answer:
        answer = Answer()
        kernel.deliver(manager.channel, client(who), data, len(data), 1 << 20, 10, answer)
        return answer

    bridge = rig.stack.interfaces[0].driver
    assert isinstance(bridge, BridgeDriver)
    fill(bridge, 8000)
    asked = [send(pack_request("specific", interface="bridge0"), USER) for _ in range(100)]
    changes = [send(pack_request("mount", module=f"{HERE}.it", options=f"name=ml{number}"), ROOT) for number in range(WAITING_EACH)]
    question = send(pack_request("facts"), ROOT)
    rig.dispatch.run_until(lambda: bool(question.got))
    assert sum(bool(answer.got) for answer in asked) <= 100 - WAITING_EACH + 1, "root did not take its turn"
    rig.dispatch.run_for(1.0)
    refused = [unpack_reply(answer.got[0][1]).get("errno") for answer in asked]
    assert (refused.count(None), refused.count(errno.EAGAIN)) == (WAITING_EACH, 100 - WAITING_EACH)
    assert {answer.got[0][0] for answer in changes} == {0}
    assert len(rig.names()) == 1 + WAITING_EACH
    assert rig.ask("facts")["requests_refused"] == {"changes": 0, "questions": 100 - WAITING_EACH, "unread": 0}


def test_a_long_table_is_written_in_slices() -> None:
    rig = Rig()
    rig.stack.load("bridge", "name=bridge0")
    bridge = rig.stack.interfaces[0].driver
    assert isinstance(bridge, BridgeDriver)
    fill(bridge, 8000)
    answer, data, turns = Answer(), pack_request("specific", interface="bridge0"), 0
    rig.system.kernel.deliver(rig.manager.channel, client(USER), data, len(data), 1 << 20, 10, answer)

    def ended() -> bool:
        nonlocal turns
        turns += 1
        if turns == 3:
            rig.stack.unload(rig.stack.loaded[0])  # under it; it tells what was there
        return bool(answer.got)

    assert rig.dispatch.run_until(ended)
    size = len(answer.got[0][1])
    assert turns >= size // (SLICE * 2)
    assert len(listed(unpack_reply(answer.got[0][1])["addresses"])) == 8000


def test_an_answer_that_is_too_long_is_refused_and_never_cut() -> None:
    rig = Rig()
    rig.stack.load("bridge", "name=bridge0")
    bridge = rig.stack.interfaces[0].driver
    assert isinstance(bridge, BridgeDriver)
    fill(bridge, 20_000)
    answer = Answer()
    data = pack_request("specific", interface="bridge0")
    rig.system.kernel.deliver(rig.manager.channel, client(), data, len(data), REPLY_MAX, 10, answer)
    assert rig.dispatch.run_until(lambda: bool(answer.got))
    told = unpack_reply(answer.got[0][1])
    assert (told["errno"], told["error"]) == (
        errno.EMSGSIZE,
        f"the answer has more than {REPLY_MAX} bytes; a change that was asked for is done",
    )
    assert rig.ask("facts")["name"] == "io-pkt0"


def test_so_is_what_a_change_tells_and_its_clients_next_change_waits_for_it() -> None:
    rig = Rig()
    rig.stack.load("bridge", "name=bridge0")
    bridge = rig.stack.interfaces[0].driver
    assert isinstance(bridge, BridgeDriver)
    fill(bridge, 8000)
    order: list[str] = []
    turns = 0

    class Named(Answer):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def answer(self, status: int, parts: Sequence[Buffer], descriptors: object) -> None:
            super().answer(status, parts, descriptors)
            order.append(self.name)

    def send(data: bytes, scoid: int, name: str) -> Answer:
        answer = Named(name)
        info = attrs.evolve(client(), scoid=scoid)
        rig.system.kernel.deliver(rig.manager.channel, info, data, len(data), 1 << 20, 10, answer)
        return answer

    told = send(pack_request("specific", interface="bridge0", command="timeout", arguments={"value": 77}), 1, "told")
    send(pack_request("interface", interface="bridge0", up=False), 1, "own next")
    send(pack_request("interface", interface="bridge0", mtu=1000), 2, "other's")

    def ended() -> bool:
        nonlocal turns
        turns += 1
        return len(order) == 3

    assert rig.dispatch.run_until(ended)
    assert order == ["other's", "told", "own next"]
    assert turns >= len(told.got[0][1]) // (SLICE * 2)
    answer = unpack_reply(told.got[0][1])
    assert (len(listed(answer["addresses"])), answer["timeout"]) == (8000, 77)
    rig.stack.close()


def test_a_client_that_gives_up_while_its_answer_is_written() -> None:
    rig = Rig()
    rig.stack.load("bridge", "name=bridge0")
    bridge = rig.stack.interfaces[0].driver
    assert isinstance(bridge, BridgeDriver)
    fill(bridge, 8000)
    answers: list[int] = []
    connection = rig.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_STACK, USER)
    pending = connection.submit((pack_request("specific", interface="bridge0"),), 1 << 20, lambda status, _: answers.append(status))
    assert pending is not None
    pending.unblock()
    assert rig.ask("facts")["name"] == "io-pkt0"
    assert answers == [-errno.EINTR]


def test_names_as_qnx_users_write_them() -> None:
    assert module_name("/lib/dll/devnp-abc100.so") == ("abc100", Kind.DRIVER)
    assert module_name("devn-rtl.so") == ("rtl", Kind.DRIVER)
    assert module_name("lsm-qnet.so") == ("qnet", Kind.PROTOCOL)
    assert module_name("packet") == ("packet", None)
    assert module_name("a.b:C") == ("a.b:C", None)


def test_facts_can_be_said_in_json_and_name_everything() -> None:
    rig = Rig()
    rig.ask("mount", module=f"{HERE}.it", options="name=ml0,restart=3")
    rig.stack.register_ethertype(0x88B5, lambda interface, frames: None)
    found = rig.ask("facts")
    assert found["ethertypes"] == [{"ethertype": 0x88B5, "frames": 0, "module": ""}]
    (module,) = listed(found["modules"])
    assert (module["restarts"], module["dispatch"]) == (
        {"most": 3, "done": 0, "total": 0},
        {"descriptors": 0, "timers": 0, "tasks": 0},
    )
    (interface,) = listed(found["interfaces"])
    assert (interface["name"], interface["number"], interface["drops"]) == ("ml0", 1, {})


@pytest.mark.parametrize("length", range(len(pack_request("facts"))))
def test_a_request_cut_short_is_none(length: int) -> None:
    assert unpack_request(pack_request("facts")[:length]) is None


def test_an_answer_that_is_none() -> None:
    for data in (b"[]", b"x", b""):
        with pytest.raises(ValueError):
            unpack_reply(data)
