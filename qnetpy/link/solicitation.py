"""SOLICITATION: a node that looks for others on an Ethernet says that it is there. Format and keys; docs/protocol/discovery.md, "On an
Ethernet without IP", has the diagram and who sends one when.

It names nobody. Who has the cluster secret sees that a member sent it from that very station, and whether it comes from a boot that he
knows; to anybody else it is 36 random bytes. Time and order are not in it: a copy is as good as the frame, so it is only ever a hint.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

import attrs

from qnetpy.link.constants import MAC_SIZE, STAMP_SIZE, VERSION
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.stamp import stamp, stamp_key
from qnetpy.link.wire import SOLICITATION, BadVersion
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

HEADER = struct.Struct("!BBH")
"""Type, version, length of what follows."""
SALT_SIZE = 8
MARK_SIZE = 8
REST_SIZE = SALT_SIZE + MARK_SIZE + MAC_SIZE + STAMP_SIZE
SIZE = HEADER.size + REST_SIZE
_COVERED = HEADER.size + SALT_SIZE + MARK_SIZE


@attrs.frozen
class Solicitation:
    """One frame, its header parsed and nothing else."""

    salt: bytes = attrs.field(repr=bytes.hex)
    mark: bytes = attrs.field(repr=bytes.hex)
    """Of the sender's boot under that salt."""
    mac: bytes = attrs.field(repr=bytes.hex)
    """Over header, salt, mark and the station that sent it."""
    stamp: bytes = attrs.field(repr=bytes.hex)

    def pack(self) -> bytes:
        """Without Ethernet header."""
        return _covered(self.salt, self.mark) + self.mac + self.stamp


def parse_solicitation(data: Buffer) -> Solicitation:
    """A frame without Ethernet header; padding is cut. BadMessage, BadVersion."""
    data = bytes(data[:SIZE])
    if len(data) < HEADER.size:
        raise BadMessage("solicitation: header cut short")
    kind, version, length = HEADER.unpack_from(data)
    if kind != SOLICITATION:
        raise BadMessage("solicitation: type")
    if version != VERSION:
        raise BadVersion(f"solicitation: version {version}, ours is {VERSION}")
    if length != REST_SIZE or len(data) < SIZE:
        raise BadMessage("solicitation: length")
    mark, mac = HEADER.size + SALT_SIZE, _COVERED
    return Solicitation(data[HEADER.size : mark], data[mark:mac], data[mac : mac + MAC_SIZE], data[mac + MAC_SIZE :])


class Solicitations:
    """Makes and knows those of one cluster; *secret* is the cluster's."""

    def __init__(self, secret: bytes) -> None:
        self._mac = ClusterMac(secret)
        self._stamp_key = stamp_key(secret)
        self._mark_key = hashlib.blake2s(secret, person=b"qnetboot").digest()

    def make(self, salt: bytes, boot_id: bytes, station: bytes) -> Solicitation:
        """What a node of that boot sends from *station*. *salt*: SALT_SIZE random bytes, new ones for each."""
        mark = self._mark(salt, boot_id)
        mac = self._mac.make(_covered(salt, mark) + station)
        return Solicitation(salt, mark, mac, stamp(self._stamp_key, salt + mark + mac))

    def check(self, asked: Solicitation, station: bytes) -> bool:
        """Whether a member sent it from *station*, now or ever. The stamp is for packet filters and not looked at."""
        return self._mac.check(_covered(asked.salt, asked.mark) + station, asked.mac)

    def is_from(self, asked: Solicitation, boot_id: bytes) -> bool:
        """Whether that boot of a node sent it."""
        return hmac.compare_digest(self._mark(asked.salt, boot_id), asked.mark)

    def _mark(self, salt: bytes, boot_id: bytes) -> bytes:
        return hashlib.blake2s(salt + boot_id, digest_size=MARK_SIZE, key=self._mark_key).digest()


def _covered(salt: bytes, mark: bytes) -> bytes:
    return HEADER.pack(SOLICITATION, VERSION, REST_SIZE) + salt + mark
