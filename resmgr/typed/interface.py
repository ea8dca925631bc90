"""`Interface`: which requests a server takes, and the head of their messages.

    magic 2 = "qm" | form 1 = 1 | 0 1 | interface 4 | version 2 | type 2 | the fields (`resmgr.typed.fields`)

`interface` is the CRC-32 of the interface's name and of the layout of all its requests and replies (names and types of the fields, in their
order), so programs whose classes differ do not take one field for another though both say the same version. `type` is the number of the
request; its reply has the same head with bit 15 of the type. Type 0x7FFF asks what the server understands (`resmgr.typed.description`).

A server that speaks another version, other fields, or another interface, answers with type 0xFFFF, its own version, and its interface's
name: the client raises `VersionSkew`, which says what both speak. A message without such a head gets EBADMSG, a number without a request
ENOSYS.
"""

from __future__ import annotations

import errno
import inspect
import zlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, get_args, get_origin

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse, ResmgrError
from resmgr.typed.description import Described, Fields, pack_description
from resmgr.typed.fields import Codec, codec_of, fields_of, unpack_class
from resmgr.typed.head import DESCRIBE, FORM, HEAD, MAGIC, NAME_MAX, OTHER, REPLY_BIT, REQUEST_MAX, TYPE_MAX, parse_head

R = TypeVar("R")


class Request(Generic[R]):
    """Base of request classes: `class Read(Request[Reading])` is answered with a Reading, `Request[None]` with nothing."""

    __slots__ = ()


class VersionSkew(ResmgrError):
    """Client and server do not speak the same version of an interface, or mean other fields by it. `ours`, `theirs`: versions; `interface`:
    what the server speaks."""

    def __init__(self, name: str, ours: int, interface: str, theirs: int) -> None:
        if (name, ours) == (interface, theirs):
            told = f"the server's fields of {name!r} version {ours} are not this program's: a class was changed, give it a new version"
        else:
            told = f"the server speaks {interface!r} version {theirs}, this program {name!r} version {ours}: bring both to one version"
        super().__init__(errno.EPROTONOSUPPORT, told)
        self.ours = ours
        self.theirs = theirs
        self.interface = interface


class OtherVersion(Exception):
    """A request of another version or interface (server's side). `answer`: what to reply."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


@attrs.frozen
class _Kind:
    number: int
    request: type[Any]
    reply: type[Any] | None
    request_codec: Codec
    reply_codec: Codec | None

    @property
    def layout(self) -> str:
        return f"{self.request_codec.layout} -> {'nothing' if self.reply_codec is None else self.reply_codec.layout}"


class Interface:
    """A name, a version, and the requests by number (1 to TYPE_MAX). Misuse for what cannot be packed.

    Give it a new version whenever a class changes: two programs understand each other only with equal versions and equal classes.
    """

    def __init__(self, name: str, version: int, requests: Mapping[int, type[Request[Any]]]) -> None:
        if not name or len(name.encode()) > NAME_MAX or not 0 < version < 1 << 16:
            raise Misuse(f"an interface has a name of up to {NAME_MAX} bytes and a version from 1 to 65535")
        self.name = name
        self.version = version
        self._by_class: dict[type[Any], _Kind] = {}
        self._by_number: dict[int, _Kind] = {}
        for number, request in requests.items():
            if not 0 < number <= TYPE_MAX or request in self._by_class:
                raise Misuse(f"{request.__name__}: each request has one number from 1 to {TYPE_MAX}")
            reply = _reply_of(request)
            kind = _Kind(number, request, reply, codec_of(request), None if reply is None else codec_of(reply))
            self._by_class[request] = self._by_number[number] = kind
        layout = [f"{number}: {kind.layout}" for number, kind in sorted(self._by_number.items())]
        self.id = zlib.crc32("\n".join((name, *layout)).encode())
        if "\0" in name:
            raise Misuse("the name of an interface holds no NUL")
        self._description = pack_description(self.described())

    @property
    def requests(self) -> list[type[Any]]:
        return list(self._by_class)

    def reply_class(self, request: type[Any]) -> type[Any] | None:
        """What *request* is answered with; None for nothing. Misuse for a class that is not of this interface."""
        return self._kind(request).reply

    def pack_request(self, request: Request[R]) -> bytes:
        """The message. ValueError, naming the field, when a value does not fit."""
        kind = self._kind(type(request))
        out = bytearray(self._head(kind.number))
        kind.request_codec.pack(request, out)
        if len(out) > REQUEST_MAX:
            raise ValueError(f"{type(request).__name__}: {len(out)} bytes, at most {REQUEST_MAX}")
        return bytes(out)

    def unpack_request(self, view: Buffer) -> Request[Any]:
        """What a client sent. BadMessage; OtherVersion; NotImplementedError for a number that this version does not have."""
        interface, version, number = parse_head(view)
        if number == DESCRIBE:
            raise OtherVersion(self._head(OTHER) + self.name.encode() + self._description)
        if interface != self.id or version != self.version:
            raise OtherVersion(self._head(OTHER) + self.name.encode())
        kind = self._by_number.get(number)
        if kind is None:
            raise NotImplementedError
        request: Request[Any] = unpack_class(kind.request, memoryview(view)[HEAD.size :])
        return request

    def pack_reply(self, request: Request[R], reply: R) -> bytes:
        """The answer to *request*. ValueError when it is of another class, or does not fit."""
        kind = self._kind(type(request))
        out = bytearray(self._head(kind.number | REPLY_BIT))
        if kind.reply_codec is not None:
            kind.reply_codec.pack(reply, out)
        elif reply is not None:
            raise ValueError(f"{kind.request.__name__} is answered with None")
        return bytes(out)

    def unpack_reply(self, request: Request[R], view: Buffer) -> R:
        """The server's answer. VersionSkew; BadMessage."""
        kind = self._kind(type(request))
        interface, version, number = parse_head(view)
        if number == OTHER:
            raise VersionSkew(self.name, self.version, bytes(view[HEAD.size : HEAD.size + NAME_MAX]).decode(errors="replace"), version)
        if interface != self.id or version != self.version or number != kind.number | REPLY_BIT:
            raise BadMessage("a reply to something else")
        body = memoryview(view)[HEAD.size :]
        if kind.reply is None:
            if len(body):
                raise BadMessage("a reply where there is none")
            nothing: Any = None  # R is None here
            return nothing  # type: ignore[no-any-return]  # as above
        reply: R = unpack_class(kind.reply, body)
        return reply

    def describe(self) -> str:
        """A page about it, in Markdown: every request and reply with its fields."""
        lines = [f"# {self.name}, version {self.version}", ""]
        for one in self.described():
            lines += [f"## {one.number}: {one.name}", ""]
            if one.about:
                lines += [one.about, ""]
            lines += ["| | field | |", "|---|---|---|"]
            lines += [f"| request | {name} | {kind} |" for name, kind in one.fields]
            lines += [f"| {one.reply} | {name} | {kind} |" for name, kind in one.reply_fields]
            lines.append("")
        return "\n".join(lines)

    def described(self) -> list[Described]:
        """What a server tells whoever asks."""
        told = []
        for kind in self._by_number.values():
            reply = None if kind.reply is None else kind.reply.__name__
            told.append(
                Described(kind.number, kind.request.__name__, _about(kind.request), _named(kind.request), reply, _named(kind.reply))
            )
        return told

    def _kind(self, request: type[Any]) -> _Kind:
        kind = self._by_class.get(request)
        if kind is None:
            raise Misuse(f"{request.__name__} is no request of {self.name!r}")
        return kind

    def _head(self, number: int) -> bytes:
        return HEAD.pack(MAGIC, FORM, 0, self.id, self.version, number)


def _about(kind: type[Any]) -> str:
    told = inspect.cleandoc(kind.__doc__ or "").strip()
    return "" if told.startswith("Method generated") else told


def _named(kind: type[Any] | None) -> Fields:
    return () if kind is None else tuple((name, codec.name) for name, codec in fields_of(kind))


def _reply_of(request: type[Any]) -> type[Any] | None:
    for base in getattr(request, "__orig_bases__", ()):
        if get_origin(base) is Request:
            (reply,) = get_args(base)
            if reply is type(None) or reply is None:
                return None
            if isinstance(reply, type):
                return reply
    raise Misuse(f"{request.__name__} has to be a Request[its reply class] or Request[None]")
