"""All nodes' global names, as one node knows them. Pure: `GlobalNames` runs it.

    attach, withdraw --> own records --> what each peer is to be told --> transmit(now) --> answered(peer, status, now)
    peer_up, peer_down, receive(peer, data, now) --> records of each peer --> changed(kind, record)

What is known of a peer came from it, on the link of now, and goes with the link: there is no memory of a peer beyond that, so nothing to
merge and nothing that could be left. What a peer is to be told is a set of serial numbers, not a log: whether one is told as PUT or DROP is
decided when it is sent, so what is lost or refused is told again as it is then, and what waits never grows beyond the records that
there are. One message is under way to a peer at a time, which makes their order.

Guarantees, caps, and who is believed: docs/protocol/names.md.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import attrs

from resmgr.bucket import TokenBucket
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.names import replicawire as wire
from resmgr.names.protocol import NameChange, Record, Scope, is_name

NAMES_PER_NODE = 1024
"""Global names of one node. Stops a lying member from filling the table of all."""
NAMES_MAX = 16384
"""Global names of all nodes together."""
SEND_RATE = 20.0
SEND_BURST = 50.0
"""Messages to one node, a second and at once: a program that attaches and detaches without end costs others no more."""
TAKE_RATE = 40.0
TAKE_BURST = 200.0
"""Messages taken from one node. Above what an honest one sends; stops a member from taking a core of ours with names that come and go."""
TELL_RATE = 1000.0
TELL_BURST = 4096.0
"""Records told to one node, a second and at once; the burst is more than all that a node has."""
HEAR_RATE = 2000.0
HEAR_BURST = 8192.0
"""Records heard from one node. Above what an honest one tells; each costs every node that hears it, however few messages it is in."""
AGAIN_MIN = 0.1
AGAIN_MAX = 5.0
"""Seconds before what was refused is told again: the first time, and at most."""
LOAD_STEP = 25
"""By how much, in hundredths, a load must differ from what was told to be told alone."""
DEAF_AGAIN = 30.0
"""Seconds before a node that does not take names, as one of another version, is told again."""
REPEATED = frozenset({errno.EAGAIN, errno.ENOSPC, errno.EINTR, errno.ENETDOWN})
"""Answers after which the same is told again soon."""
TOLD_MAX = 4 * NAMES_PER_NODE
"""Records that a node was told of, and may not know to be gone. Stops one that refuses all from making us remember all that ever was."""

Changed = Callable[[NameChange, Record], None]


@attrs.define(eq=False)
class Peer:
    """A node that is up."""

    name: str
    nd: int
    believed: bool
    suspect: bool = False
    # What it is told.
    due: dict[int, None] = attrs.Factory(dict)
    told: set[int] = attrs.Factory(set)
    """Serials that it was told of as PUT, whether that arrived or not."""
    under_way: list[int] | None = None
    told_load: int = 0
    told_generation: int = -1
    """What it has confirmed; -1: nothing yet."""
    sent_generation: int = -1
    refused: int = 0
    """The errno with which it answered last, 0 if it took what it was told."""
    again: float = AGAIN_MIN
    not_before: float = 0.0
    sending: TokenBucket = attrs.Factory(lambda: TokenBucket(SEND_RATE, SEND_BURST))
    telling: TokenBucket = attrs.Factory(lambda: TokenBucket(TELL_RATE, TELL_BURST))
    # What it says.
    records: dict[int, Record] = attrs.Factory(dict)
    generation: int = -1
    load: int = 0
    taking: TokenBucket = attrs.Factory(lambda: TokenBucket(TAKE_RATE, TAKE_BURST))
    hearing: TokenBucket = attrs.Factory(lambda: TokenBucket(HEAR_RATE, HEAR_BURST))


class Named:
    """The owners of one name, oldest first as this node heard of them. `turn`: round robin's place."""

    __slots__ = ("owners", "turn")

    def __init__(self) -> None:
        self.owners: dict[tuple[str, int], Record] = {}
        self.turn = 0


class Replica:
    """See the head of this file. *changed* is told each record that appears or is withdrawn, in order, when the table says so already."""

    def __init__(self, changed: Changed, counters: Counter[str]) -> None:
        self._changed = changed
        self.counters = counters
        self.peers: dict[str, Peer] = {}
        self.own: dict[int, Record] = {}
        self.generation = 0
        """How often own records changed."""
        self.load = 0
        """This node's, in hundredths of a processor."""
        self._next_serial = 1
        self._names: dict[bytes, Named] = {}
        self._held = 0
        """Records of peers, believed or not."""

    # The table

    def find(self, name: bytes) -> Named | None:
        return self._names.get(name)

    def names(self) -> Iterator[bytes]:
        yield from self._names

    def records(self) -> Iterator[Record]:
        """All that count."""
        for named in self._names.values():
            yield from named.owners.values()

    def __len__(self) -> int:
        return len(self.own) + self._held

    def _show(self, record: Record) -> None:
        named = self._names.get(record.name)
        if named is None:
            named = self._names[record.name] = Named()
        named.owners[record.node, record.serial] = record
        self._changed(NameChange.APPEARED, record)

    def _hide(self, record: Record) -> None:
        named = self._names[record.name]
        del named.owners[record.node, record.serial]
        if not named.owners:
            del self._names[record.name]
        self._changed(NameChange.WITHDRAWN, record)

    # Own records

    def attach(self, name: bytes, pid: int, chid: int, uid: int, gid: int) -> Record | int:
        """A server of this node has a name from now on. The record, or an errno: EINVAL, EEXIST if this channel has that name, EAGAIN."""
        if not is_name(name, Scope.GLOBAL):
            return errno.EINVAL
        named = self._names.get(name)
        if named is not None and any((one.pid, one.chid) == (pid, chid) and not one.node for one in named.owners.values()):
            return errno.EEXIST
        if len(self.own) >= NAMES_PER_NODE:
            return errno.EAGAIN
        record = Record(Scope.GLOBAL, name, "", 0, pid, chid, uid, gid, self._next_serial)
        self._next_serial += 1
        self.own[record.serial] = record
        self._show(record)
        self._own_changed(record.serial)
        return record

    def withdraw(self, serial: int) -> None:
        """An own record is gone. An unknown one is ignored."""
        record = self.own.pop(serial, None)
        if record is not None:
            self._hide(record)
            self._own_changed(serial)

    def _own_changed(self, serial: int) -> None:
        self.generation += 1
        for peer in self.peers.values():
            if serial in self.own or serial in peer.told:
                peer.due[serial] = None
            else:
                peer.due.pop(serial, None)

    # Peers

    def peer_up(self, name: str, nd: int, believed: bool, now: float) -> None:
        """There is a link with that node, which had none."""
        self.peer_down(name)
        peer = self.peers[name] = Peer(name, nd, believed)
        peer.due = dict.fromkeys(self.own)

    def peer_down(self, name: str) -> None:
        """The link is gone, and all that its node said."""
        peer = self.peers.pop(name, None)
        if peer is None:
            return
        self._held -= len(peer.records)
        if peer.believed:
            for record in peer.records.values():
                self._hide(record)

    def peer_suspect(self, name: str, suspect: bool) -> None:
        if name in self.peers:
            self.peers[name].suspect = suspect

    def believe(self, name: str, believed: bool) -> None:
        """The rules changed: that node's names count, or do not."""
        peer = self.peers.get(name)
        if peer is None or peer.believed == believed:
            return
        peer.believed = believed
        for record in peer.records.values():
            if believed:
                self._show(record)
            else:
                self._hide(record)

    def load_of(self, node: str) -> int:
        """The load of an owner's node, as it told it."""
        return self.peers[node].load if node else self.load

    # Telling

    def set_load(self, load: int) -> None:
        self.load = max(0, min(load, wire.LOAD_MAX))

    def _is_due(self, peer: Peer) -> bool:
        return bool(peer.due) or (bool(self.own) and abs(peer.told_load - self.load) >= LOAD_STEP)

    def transmit(self, now: float) -> list[tuple[str, bytes]]:
        """The messages to send now, at most one to each node. Each is to be `answered`."""
        messages = []
        for peer in self.peers.values():
            if peer.under_way is None and self._is_due(peer) and now >= peer.not_before:
                records = min(len(peer.due), wire.ENTRIES_MAX)
                if not peer.sending.take(now):
                    peer.not_before = peer.sending.ready_at()
                elif not peer.telling.take(now, records):
                    peer.not_before = peer.telling.ready_at(records)
                else:
                    messages.append((peer.name, self._message(peer)))
        return messages

    def _message(self, peer: Peer) -> bytes:
        entries: list[wire.Entry] = []
        sent: list[int] = []
        room = wire.MESSAGE_MAX - wire.HEAD.size
        for serial in peer.due:
            record = self.own.get(serial)
            entry: wire.Entry
            if record is None:
                entry = wire.Drop(serial)
            else:
                entry = wire.Put(serial, record.name, record.pid, record.chid, record.uid, record.gid)
            room -= wire.size(entry)
            if room < 0 or len(entries) == wire.ENTRIES_MAX:
                break
            entries.append(entry)
            sent.append(serial)
        for serial in sent:
            del peer.due[serial]
            if serial in self.own:
                peer.told.add(serial)
        peer.under_way = sent
        peer.told_load = self.load
        peer.sent_generation = self.generation if not peer.due else peer.told_generation
        return wire.pack(self.generation, self.load, entries)

    def answered(self, name: str, status: int, now: float) -> None:
        """The message to that node was answered with *status* (0, or -errno). Of a link that is gone: nothing."""
        peer = self.peers.get(name)
        if peer is None or peer.under_way is None:
            return
        sent, peer.under_way = peer.under_way, None
        peer.refused = -min(status, 0)
        if status >= 0:
            peer.again = AGAIN_MIN
            peer.told_generation = peer.sent_generation
            # Who was told that it is gone need not be remembered to have known it.
            peer.told.difference_update(serial for serial in sent if serial not in self.own and serial not in peer.due)
            return
        due = {serial: None for serial in sent if serial in self.own or serial in peer.told}
        peer.due = due | peer.due
        peer.told_load = 0
        if -status in REPEATED and len(peer.told) <= TOLD_MAX:
            self.counters["names_told_again"] += 1
            peer.not_before = now + peer.again
            peer.again = min(2 * peer.again, AGAIN_MAX)
        else:
            self.counters["names_not_taken"] += 1
            peer.not_before = now + DEAF_AGAIN
            if len(peer.told) > TOLD_MAX:
                # It took none of it, or its table is its own trouble.
                peer.told = set()
                peer.due = dict.fromkeys(self.own)

    def next_timeout(self) -> float | None:
        """When `transmit` has something that it has not now."""
        return min(
            (peer.not_before for peer in self.peers.values() if peer.under_way is None and self._is_due(peer)),
            default=None,
        )

    # Hearing

    def receive(self, name: str, data: Buffer, now: float) -> int:
        """A message of that node. 0, or the errno to answer with."""
        peer = self.peers.get(name)
        if peer is None:
            return errno.EPERM
        if not peer.taking.take(now):
            self.counters["names_too_often"] += 1
            return errno.EAGAIN
        try:
            told = wire.parse(data)
        except BadMessage:
            self.counters["names_malformed"] += 1
            return errno.EBADMSG
        if not peer.hearing.take(now, len(told.entries)):
            self.counters["names_too_many"] += 1
            return errno.EAGAIN
        if told.generation < peer.generation:
            self.counters["names_malformed"] += 1
            return errno.EBADMSG
        peer.generation = told.generation
        peer.load = told.load
        return self._apply(peer, told.entries)

    def _apply(self, peer: Peer, entries: Iterable[wire.Entry]) -> int:
        answer = 0
        for entry in entries:
            known = peer.records.get(entry.serial)
            if isinstance(entry, wire.Drop):
                if known is not None:
                    self._forget(peer, known)
                continue
            record = Record(Scope.GLOBAL, entry.name, peer.name, peer.nd, entry.pid, entry.chid, entry.uid, entry.gid, entry.serial)
            if known == record:
                continue
            if known is not None:
                # A number is one record's for good; who says otherwise lies, about itself.
                self._forget(peer, known)
            if len(peer.records) >= NAMES_PER_NODE or len(self) >= NAMES_MAX:
                self.counters["names_over_cap"] += 1
                answer = errno.ENOSPC
                continue
            peer.records[entry.serial] = record
            self._held += 1
            if peer.believed:
                self._show(record)
        return answer

    def _forget(self, peer: Peer, record: Record) -> None:
        del peer.records[record.serial]
        self._held -= 1
        if peer.believed:
            self._hide(record)
