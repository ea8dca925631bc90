"""What a process of this machine gives up and asks for at its start: user and capabilities (`io-pkt -U`), scheduling (`-P`). Linux only.

Rights are given up before any module is loaded and before any thread is started: a capability belongs to a thread, and threads that are
there would keep theirs. What is kept is kept in the effective and permitted sets only, so programs that this process starts do not get it,
and what is not kept leaves the bounding set, so they cannot get it back.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import struct
from collections.abc import Iterable

import attrs

from resmgr.errors import ResmgrError

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE"),
    *("NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT"),
    *("SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
    *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
    *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
"""Names of capabilities(7), without CAP_, by number."""

_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522
_HEADER = struct.Struct("Ii")
_DATA = struct.Struct("IIIIII")
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91, "armv7l": 185, "i686": 185, "ppc64le": 184, "s390x": 185}


@attrs.frozen
class User:
    """Whom a process becomes: numbers of this machine."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def parse_user(text: str) -> User:
    """`uid:gid[,gid...]`, numbers or names; the group may be left out for a user that has an account. ValueError with a sentence."""
    user, colon, groups = text.partition(":")
    try:
        account = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        account = None
    if account is None and not user.isdecimal():
        raise ValueError(f"there is no user {user!r} on this machine")
    if not colon:
        if account is None:
            raise ValueError(f"user {user} has no account: its group is needed, {user}:GID")
        return User(account.pw_uid, account.pw_gid, tuple(os.getgrouplist(account.pw_name, account.pw_gid)))
    numbers = [parse_group(one) for one in groups.split(",")]
    return User(int(user) if account is None else account.pw_uid, numbers[0], tuple(numbers))


def parse_group(text: str) -> int:
    """A group's number or name. ValueError with a sentence."""
    if text.isdecimal() and int(text) < 1 << 32:
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {text!r} on this machine") from None


def parse_capability(text: str) -> str:
    """`net_raw`, `CAP_NET_RAW`. ValueError with a sentence."""
    name = text.upper().removeprefix("CAP_")
    if name not in CAPABILITIES:
        raise ValueError(f"there is no capability {text!r}; see capabilities(7)")
    return name


def become(user: User, keep: Iterable[str]) -> None:
    """Be *user* from now on, with the capabilities *keep*, for good. One thread only. ResmgrError in one sentence."""
    number = 0
    for one in keep:
        number |= 1 << CAPABILITIES.index(one)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        for capability in range(len(CAPABILITIES)):
            if not number >> capability & 1:
                _checked(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), (errno.EINVAL,))  # EINVAL: one that this kernel does not know
        _checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        _capset(libc, number)
    except OSError as error:
        raise ResmgrError(
            error.errno or errno.EPERM, f"cannot become user {user.uid} with group {user.gid}: {error.strerror}; -U needs root"
        ) from error


def unreadable(user: User, keep: Iterable[str], paths: Iterable[str]) -> str:
    """The first of *paths* that *user* with the capabilities *keep* cannot read, as a process tells that becomes him; empty if there is
    none. One thread only. ResmgrError as for `become`."""
    end, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, _tried(user, keep, paths))
        finally:
            os._exit(0)
    os.close(told)
    with open(end, "rb") as answer:
        code, _, text = os.fsdecode(answer.read()).partition(" ")
    os.waitpid(child, 0)
    if code.isdecimal():
        raise ResmgrError(int(code), text)
    return text


def _tried(user: User, keep: Iterable[str], paths: Iterable[str]) -> bytes:
    try:
        become(user, keep)
    except ResmgrError as error:
        return os.fsencode(f"{error.errno} {error.strerror}")
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return os.fsencode(f"- {path}")
    return b""


def _capset(libc: ctypes.CDLL, number: int) -> None:
    """The effective and the permitted set of this thread; the inheritable one becomes empty."""
    call = _SYS_CAPSET.get(os.uname().machine)
    if call is None:
        raise OSError(errno.ENOSYS, f"capabilities cannot be set on {os.uname().machine}")
    low, high = number & 0xFFFFFFFF, number >> 32
    _checked(libc.syscall(call, _HEADER.pack(_VERSION_3, 0), _DATA.pack(low, low, 0, high, high, 0)))


def _checked(result: int, harmless: tuple[int, ...] = ()) -> None:
    if result < 0 and ctypes.get_errno() not in harmless:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@attrs.frozen
class Scheduling:
    """How the kernel schedules the dispatch: `rr` and `fifo` with a real-time priority, `nice` with a nice value."""

    policy: str
    value: int


def parse_scheduling(text: str) -> Scheduling:
    """`rr:21`, `fifo:21`, `nice:-5`; a bare number is `rr`, as QNX's default is. ValueError with a sentence."""
    policy, colon, number = text.partition(":")
    if not colon:
        policy, number = "rr", text
    low, high = (-20, 19) if policy == "nice" else (1, 99)
    if policy not in ("rr", "fifo", "nice"):
        raise ValueError(f"{policy!r} is no policy: rr:N, fifo:N or nice:N")
    try:
        value = int(number)
    except ValueError:
        raise ValueError(f"{number!r} is not a number") from None
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    return Scheduling(policy, value)


def schedule(how: Scheduling) -> None:
    """This thread, from now on. Threads and programs that it starts later are scheduled as usual. ResmgrError in one sentence."""
    try:
        if how.policy == "nice":
            os.setpriority(os.PRIO_PROCESS, 0, how.value)
        else:
            policy = os.SCHED_RR if how.policy == "rr" else os.SCHED_FIFO
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(how.value))
    except OSError as error:
        raise ResmgrError(
            error.errno or errno.EPERM, f"cannot be scheduled as {how.policy}:{how.value}: {error.strerror}; -P needs CAP_SYS_NICE"
        ) from error
