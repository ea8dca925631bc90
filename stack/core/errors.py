"""Errors about modules that people see: one sentence, and an errno for whoever asked over a message."""

from __future__ import annotations

import errno

from resmgr.errors import ResmgrError


class ModuleError(ResmgrError):
    """A module cannot be loaded, attached or unloaded for a reason that lies in the world. `str` is one sentence.

    errno as in QNX: ENXIO no such module, EINVAL wrong options, else what the system said (EPERM, ENODEV).
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)

    def __str__(self) -> str:
        return str(self.strerror)


class OptionError(ModuleError):
    """Options do not parse or do not fit the module (EINVAL)."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EINVAL, text)


def refusal(sentence: str, error: BaseException) -> ModuleError:
    """What a driver raised when it was asked for something, for who asked: *sentence* says what does not happen."""
    if isinstance(error, OSError):
        return ModuleError(error.errno or errno.EIO, f"{sentence}: {error.strerror}")
    return ModuleError(errno.EIO, f"{sentence}: its driver failed, as the log says")
