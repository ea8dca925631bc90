"""Joiner and inviter together: the way it should go, wrong codes, somebody between them, replays, hostile bytes, lost answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnetpy.enrol.code import Code, make_code
from qnetpy.enrol.invitation import Invitation
from qnetpy.enrol.inviter import BYTES_MAX, SECONDS, Step
from qnetpy.enrol.joiner import Failure, Joiner, sentence
from qnetpy.enrol.possession import Question, prove
from qnetpy.enrol.testing import KEY, PRIVATE, WALL, Inn, compute, converse
from qnetpy.enrol.wire import Denial, Denied, Grant, Kind, Refusal, Refused, frame
from qnetpy.identity.certificate import parse_chain, parse_root, verify


def joiner(code: Code, name: str = "n2", key: bytes = PRIVATE, seed: int = 9) -> Joiner:
    return Joiner(code, key, name, random.Random(seed).randbytes)


def another(code: Code) -> Code:
    """A wrong code with the same public part."""
    return make_code(random.Random(code.text).randbytes, code.public)


def test_a_machine_joins() -> None:
    inn = Inn()
    exchange = inn.exchange()
    outcome = converse(joiner(inn.invite()), exchange)

    assert isinstance(outcome, Grant)
    certificate = parse_chain(outcome.chain)
    verify(certificate, [parse_root(root) for root in outcome.roots], WALL, "n2")
    assert certificate.static_key == KEY
    assert certificate.roles == {"member"}
    assert outcome.secret == inn.authority.secret
    assert outcome.statements == (b"statement",)
    assert inn.heard == [("granted", "10.0.0.2", "n2"), ("joined", "10.0.0.2", "n2")]
    assert exchange.ended


def test_nothing_secret_is_readable_on_the_wire() -> None:
    inn = Inn()
    seen: list[bytes] = []

    def watch(data: bytes) -> bytes:
        seen.append(data)
        return data

    code = inn.invite()
    assert isinstance(converse(joiner(code), inn.exchange(), watch, watch), Grant)
    wire = b"".join(seen)
    for secret in (inn.authority.secret, KEY, PRIVATE, inn.authority.root.der[20:60], b"n2", code.password[3:]):
        assert secret not in wire


def test_wrong_codes_cost_tries_and_the_third_kills() -> None:
    inn = Inn()
    code = inn.invite()
    outcomes = [converse(joiner(another(code), seed=number), inn.exchange(f"10.0.0.{number}")) for number in range(4)]

    assert outcomes == [Refused(Refusal.WRONG, 2), Refused(Refusal.WRONG, 1), Refused(Refusal.KILLED, 0), Refused(Refusal.KILLED, 0)]
    assert converse(joiner(code), inn.exchange("10.0.0.99")) == Refused(Refusal.KILLED, 0)
    assert inn.heard == [("wrong", f"10.0.0.{number}", "") for number in range(3)]
    assert inn.issued == 0


def test_many_guesses_at_once_are_no_more_than_three() -> None:
    """All exchanges begin before the first confirmation arrives."""
    inn = Inn()
    code = inn.invite()
    guessers = [(joiner(another(code), seed=number), inn.exchange(f"10.0.{number}.1")) for number in range(9)]
    for guesser, exchange in guessers:
        exchange.receive(guesser.out.pop(), 0.0)
        compute(exchange)
        guesser.receive(exchange.out.pop(0))
    good = joiner(code), inn.exchange("10.1.1.1")
    good[1].receive(good[0].out.pop(), 0.0)
    compute(good[1])
    good[0].receive(good[1].out.pop(0))
    for guesser, exchange in guessers:
        converse(guesser, exchange)

    assert [isinstance(guesser.outcome, Refused) for guesser, _ in guessers] == [True] * 9
    assert len([what for what, _, _ in inn.heard if what == "wrong"]) == 9
    assert converse(*good) == Refused(Refusal.KILLED, 0), "the right code in an exchange that began while the invitation was alive"


def test_an_exchange_that_is_not_confirmed_is_no_try() -> None:
    inn = Inn()
    code = inn.invite()
    for number in range(9):
        guesser, exchange = joiner(another(code)), inn.exchange(f"10.0.0.{number}")
        exchange.receive(guesser.out.pop(), 0.0)
        compute(exchange)
        assert [out[0] for out in exchange.out] == [Kind.CHALLENGE], "nothing to check a guess against"
        exchange.closed()
    assert isinstance(converse(joiner(code), inn.exchange("10.1.1.1")), Grant)
    assert inn.counters["broken_off"] == 9


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.CONFIRM, Kind.REQUEST, Kind.CHALLENGE, Kind.ACCEPT, Kind.GRANT])
def test_a_byte_changed_on_the_way_is_noticed(kind: Kind) -> None:
    for place in (4, 12, 20, -1):
        inn = Inn()
        changed = False

        def change(data: bytes, place: int = place) -> bytes:
            nonlocal changed
            if data[0] != kind:
                return data
            changed = True
            out = bytearray(data)
            out[place] ^= 0x01
            return bytes(out)

        outcome = converse(joiner(inn.invite()), inn.exchange(), change, change)
        assert changed
        assert not isinstance(outcome, Grant), (kind, place)
        assert not [what for what, _, _ in inn.heard if what == "joined"]


def test_somebody_between_them_gets_one_guess_at_each_end_and_no_more() -> None:
    """He plays the inviter to the joiner and the joiner to the inviter, with a guess of his own."""
    inn = Inn()
    code = inn.invite()
    impostor = Inn(seed=2)
    guess = another(code)
    assert impostor.invitations.add(_invitation(guess), 0.0)
    victim = joiner(code)

    assert converse(victim, impostor.exchange()) == Refused(Refusal.WRONG, 2)
    assert victim.guessed
    assert impostor.issued == 0
    assert impostor.heard == [("wrong", "10.0.0.2", "")]
    assert converse(joiner(guess), inn.exchange()) == Refused(Refusal.WRONG, 2)


def _invitation(code: Code) -> Invitation:
    return Invitation(code, "", frozenset(), 1, 600.0, 86400.0)


def test_an_end_that_accepts_without_knowing_the_code_is_found_out() -> None:
    inn = Inn()
    victim = joiner(inn.invite())
    liar = inn.exchange()
    liar.receive(victim.out.pop(), 0.0)
    compute(liar)
    victim.receive(liar.out.pop())
    victim.out.clear()
    victim.receive(frame(Kind.ACCEPT, bytes(64)))
    assert victim.outcome is Failure.IMPOSTOR
    assert not victim.out, "the request was not sent"


def test_a_recorded_enrolment_is_worth_nothing() -> None:
    inn = Inn()
    said: list[bytes] = []
    code = inn.invite(uses=2)

    def record(data: bytes) -> bytes:
        said.append(data)
        return data

    assert isinstance(converse(joiner(code), inn.exchange(), record), Grant)
    replay = inn.exchange("10.0.0.66")
    for data in said:
        replay.receive(data, 0.0)
        compute(replay)
    assert inn.issued == 1
    assert replay.ended


def test_the_same_machine_may_ask_again_when_the_answer_was_lost() -> None:
    inn = Inn()
    code = inn.invite()
    lost = joiner(code)
    converse(lost, inn.exchange(), down=lambda data: b"" if data[0] == Kind.GRANT else data)
    assert lost.outcome is None
    assert inn.issued == 1

    assert isinstance(converse(joiner(code, seed=10), inn.exchange()), Grant)
    other = converse(joiner(code, "n3", bytes(31) + b"\1", seed=11), inn.exchange())
    assert isinstance(other, Denied)
    assert other.reason is Denial.CANNOT_ISSUE


def test_a_machine_that_has_used_a_code_gets_no_other_name_by_it() -> None:
    """Not even one that is taken, which nobody would look at: its certificate would be noted under that name."""
    inn = Inn(names=frozenset({"victim"}))
    code = inn.invite(uses=2)
    assert isinstance(converse(joiner(code), inn.exchange()), Grant)
    for name in ("victim", "n3"):
        outcome = converse(joiner(code, name, seed=10), inn.exchange())
        assert isinstance(outcome, Denied)
        assert "--name n2" in outcome.detail
    assert inn.issued == 1, "something was made, signed and noted"
    assert isinstance(converse(joiner(code, seed=11), inn.exchange()), Grant), "as itself it may come again"


class Thief(Joiner):
    """Asks for a certificate for somebody else's public key, with the best proof it can make."""

    def __init__(self, code: Code, name: str, key: bytes) -> None:
        super().__init__(code, bytes(31) + b"\1", name, random.Random(9).randbytes)
        self._public = key


@pytest.mark.parametrize("key", [KEY, bytes(32), b"\1" + bytes(31)], ids=["of another node", "of order 4", "of order 1"])
def test_nobody_gets_a_certificate_for_a_key_that_it_does_not_have(key: bytes) -> None:
    inn = Inn()
    code = inn.invite()
    outcome = converse(Thief(code, "x", key), inn.exchange())
    assert isinstance(outcome, Denied)
    assert "not shown that the key is its own" in outcome.detail
    assert inn.issued == 0
    assert [what for what, _, _ in inn.heard] == ["denied"]
    assert isinstance(converse(joiner(code), inn.exchange()), Grant), "the code is not used up"


def test_a_proof_is_worth_nothing_in_another_exchange() -> None:
    """An inviter that is a thief hands on the proof of a machine that joins with it."""
    question = Question(random.Random(1).randbytes)
    proof = prove(PRIVATE, question.public, b"one" * 10)
    assert question.answered(proof, KEY, b"one" * 10)
    assert not question.answered(proof, KEY, b"two" * 10)
    assert not Question(random.Random(2).randbytes).answered(proof, KEY, b"one" * 10)


def test_a_key_of_a_node_gets_no_second_name() -> None:
    """Revoking one would revoke the other."""
    inn = Inn()
    inn.keys[KEY] = "victim"
    code = inn.invite()
    outcome = converse(joiner(code, "x"), inn.exchange())
    assert isinstance(outcome, Denied)
    assert "that of node victim" in outcome.detail
    assert inn.issued == 0
    assert isinstance(converse(joiner(code, "victim", seed=10), inn.exchange()), Grant)


def test_who_comes_again_does_not_take_a_name_that_is_another_machines_by_now() -> None:
    inn = Inn()
    code = inn.invite()
    assert isinstance(converse(joiner(code), inn.exchange()), Grant)
    inn.keys = {bytes(32): "n2"}
    inn.names = frozenset({"n2"})
    outcome = converse(joiner(code, seed=10), inn.exchange())
    assert isinstance(outcome, Denied)
    assert outcome.reason is Denial.NAME_TAKEN
    assert inn.issued == 1


def test_a_name_that_is_taken_is_said_and_the_code_is_still_good() -> None:
    inn = Inn(names=frozenset({"n2"}))
    code = inn.invite()
    outcome = converse(joiner(code), inn.exchange())

    assert isinstance(outcome, Denied)
    assert outcome.reason is Denial.NAME_TAKEN
    assert "--name" in outcome.detail
    assert isinstance(converse(joiner(code, "n3"), inn.exchange()), Grant)
    nameless = converse(joiner(inn.invite(), ""), inn.exchange())
    assert isinstance(nameless, Denied)
    assert nameless.reason is Denial.BAD_NAME


def test_the_invitation_decides_the_name() -> None:
    inn = Inn()
    outcome = converse(joiner(inn.invite("printer")), inn.exchange())
    assert isinstance(outcome, Grant)
    assert parse_chain(outcome.chain).name == "printer"


def test_time_bytes_and_order_are_bounded() -> None:
    inn = Inn()
    slow = inn.exchange()
    slow.timeout(SECONDS - 0.01)
    assert not slow.ended
    slow.timeout(SECONDS)
    assert slow.ended
    long = inn.exchange()
    long.receive(bytes(BYTES_MAX + 1), 0.0)
    assert long.out == [frame(Kind.REFUSED, bytes((Refusal.MALFORMED, 0)))]
    for kind in set(Kind) - {Kind.HELLO}:
        early = inn.exchange()
        early.receive(frame(kind, b""), 0.0)
        assert early.ended
    old = inn.exchange()
    old.receive(frame(Kind.HELLO, b"qnetjoin\x07"), 0.0)
    assert old.out == [frame(Kind.REFUSED, bytes((Refusal.VERSION, 0)))]


def test_two_hellos_are_one_too_many() -> None:
    inn = Inn()
    one = joiner(inn.invite())
    exchange = inn.exchange()
    hello = one.out.pop()
    exchange.receive(hello + hello, 0.0)
    assert exchange.step is Step.ENDED
    compute(exchange)
    assert not [out for out in exchange.out if out[0] == Kind.CHALLENGE]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_hostile_bytes_to_the_inviter(data: bytes) -> None:
    exchange = Inn().exchange()
    exchange.receive(data, 0.0)
    compute(exchange)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), kind=st.sampled_from(Kind))
def test_hostile_bytes_to_the_joiner(data: bytes, kind: Kind) -> None:
    victim = joiner(make_code(random.Random(1).randbytes))
    victim.receive(frame(kind, data))
    victim.receive(data)
    assert not isinstance(victim.outcome, Grant)


def test_every_refusal_has_its_sentence() -> None:
    texts = {sentence(Refused(reason, 1)) for reason in Refusal}
    assert len(texts) == len(Refusal)
    assert "1 more try " in sentence(Refused(Refusal.WRONG, 1))
