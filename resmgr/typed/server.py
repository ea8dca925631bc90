"""`TypedServer`: a class whose methods are the handlers of an interface's requests. How they are run: `resmgr.typed.aio`, `.client`.

    class Clock(TypedServer):
        interface = CLOCK

        @handler
        def read(self, request: Read, message: Message) -> Reading: ...

The annotations say which request a handler takes and what it answers; that each request has one handler, and that its answer is of the
reply class, is checked when the server is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar, get_type_hints

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, errno_of
from resmgr.typed.interface import Interface, OtherVersion, Request

F = TypeVar("F", bound=Callable[..., object])
MARK = "_typed_handler"


def handler(function: F) -> F:
    """Mark a method `(self, request, message) -> reply`, plain or async, as the handler of the class of its request."""
    setattr(function, MARK, True)
    return function


class TypedServer:
    """See the head of this file. Misuse when a request has no handler, or a handler does not fit."""

    interface: ClassVar[Interface]

    def __init__(self) -> None:
        self._handlers: dict[type[Any], Callable[[Any, object], object]] = {}
        for name in dir(type(self)):
            function = getattr(type(self), name)
            if not getattr(function, MARK, False):
                continue
            hints = get_type_hints(function)
            request = hints.get(next(iter(list(inspect.signature(function).parameters)[1:]), ""))
            if not isinstance(request, type) or request in self._handlers:
                raise Misuse(f"{type(self).__name__}.{name}: its request is not annotated, or has a handler already")
            reply = self.interface.reply_class(request)
            if hints.get("return") is not (type(None) if reply is None else reply):
                raise Misuse(f"{type(self).__name__}.{name} has to return {'None' if reply is None else reply.__name__}")
            self._handlers[request] = getattr(self, name)
        missing = [request.__name__ for request in self.interface.requests if request not in self._handlers]
        if missing:
            raise Misuse(f"{type(self).__name__} has no handler for {', '.join(missing)}")

    def is_async(self, request: Request[Any]) -> bool:
        return inspect.iscoroutinefunction(self._handlers[type(request)])

    def begin(self, data: Buffer) -> tuple[int, bytes, Request[Any] | None]:
        """errno or 0, the answer if it is one already (another version), or else the request."""
        try:
            return 0, b"", self.interface.unpack_request(data)
        except OtherVersion as other:
            return 0, other.answer, None
        except Exception as error:  # BadMessage, ENOSYS
            return errno_of(error), b"", None

    def call(self, request: Request[Any], message: object) -> object:
        """What the handler returns: a reply, or the awaitable of one."""
        return self._handlers[type(request)](request, message)

    def answer(self, data: Buffer, message: object) -> tuple[int, bytes, Exception | None]:
        """By a plain handler: errno or 0, the reply, and what the handler raised that it should not have."""
        code, reply, request = self.begin(data)
        if request is None:
            return code, reply, None
        try:
            result = self.call(request, message)
            if isinstance(result, Awaitable):
                raise Misuse("an async handler in a blocking program")
            return 0, self.interface.pack_reply(request, result), None
        except Exception as error:
            return errno_of(error), b"", None if isinstance(error, OSError) else error
