"""System calls on files and what they return, to be compared between two file systems. Run in a directory:

    python -m tests.posix.cases DIRECTORY UID

Each case runs in a new subdirectory as that user (and group of the same number), and gives a value without times, numbers of inodes or
anything else that differs from run to run; an error is the name of its errno. Written as one JSON object.
"""

# ruff: noqa: B023 -- `of` calls what it is given at once

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

CASES: dict[str, Callable[[], object]] = {}
_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
OTHER = 4321
"""Somebody who is neither of the users that run the cases."""


def case(function: Callable[[], object]) -> Callable[[], object]:
    CASES[function.__name__] = function
    return function


def of(call: Callable[[], object]) -> object:
    """What *call* returns, or the name of its errno."""
    try:
        result = call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return result.hex() if isinstance(result, bytes) else result


def c_call(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def link_open(fd: int, name: str) -> object:
    """linkat of /proc/self/fd, followed."""
    return of(lambda: c_call("linkat", AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, name.encode(), 0x400))


def write(name: str | bytes, data: bytes = b"", mode: int = 0o666) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)


def read(name: str | bytes) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def mode_of(name: str | bytes) -> str:
    return oct(os.lstat(name).st_mode)


# ---- extended attributes and ACLs


@case
def xattr_life() -> object:
    write("f")
    steps = [of(lambda: os.getxattr("f", "user.a")), of(lambda: os.setxattr("f", "user.a", b"one"))]
    steps += [
        of(lambda: os.setxattr("f", "user.a", b"two", os.XATTR_CREATE)),
        of(lambda: os.setxattr("f", "user.b", b"", os.XATTR_REPLACE)),
    ]
    steps += [of(lambda: os.setxattr("f", "user.a", b"three", os.XATTR_REPLACE)), of(lambda: os.setxattr("f", "user.empty", b""))]
    steps += [sorted(os.listxattr("f")), of(lambda: os.getxattr("f", "user.a")), of(lambda: os.getxattr("f", "user.empty"))]
    steps += [of(lambda: os.removexattr("f", "user.a")), of(lambda: os.removexattr("f", "user.a")), os.listxattr("f")]
    return steps


@case
def xattr_sizes() -> object:
    write("f")
    buffer = ctypes.create_string_buffer(64)
    os.setxattr("f", "user.v", b"x" * 40)
    get = [of(lambda: c_call("getxattr", b"f", b"user.v", buffer, size)) for size in (0, 39, 40, 64)]
    listed = [of(lambda: c_call("listxattr", b"f", buffer, size)) for size in (0, 3, 7, 64)]
    large = [of(lambda: os.setxattr("f", "user.v", bytes(65537))), of(lambda: os.setxattr("f", "user." + "n" * 251, b""))]
    return [get, listed, large, of(lambda: os.setxattr("f", "user." + "n" * 250, b"longest")), of(lambda: os.setxattr("f", "user.", b""))]


@case
def xattr_long_value() -> object:
    write("f")
    stored = of(lambda: os.setxattr("f", "user.long", b"v" * 20000))
    return [stored, of(lambda: len(os.getxattr("f", "user.long")))]


@case
def xattr_of_what() -> object:
    os.mkdir("d")
    os.symlink("nowhere", "l")
    write("f")
    os.symlink("f", "to-f")
    on = [of(lambda: os.setxattr("d", "user.d", b"1")), of(lambda: os.getxattr("d", "user.d"))]
    on += [of(lambda: os.setxattr("l", "user.l", b"1", follow_symlinks=False)), of(lambda: os.setxattr("l", "user.l", b"1"))]
    on += [
        of(lambda: os.setxattr("to-f", "user.f", b"1")),
        of(lambda: os.listxattr("f")),
        of(lambda: os.listxattr("to-f", follow_symlinks=False)),
    ]
    os.mkfifo("p")
    return [*on, of(lambda: os.setxattr("p", "user.p", b"1"))]


@case
def xattr_open_and_unlinked() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.setxattr(fd, "user.a", b"1")
    os.unlink("f")
    found = [of(lambda: os.getxattr(fd, "user.a")), of(lambda: os.setxattr(fd, "user.b", b"2")), of(lambda: sorted(os.listxattr(fd)))]
    os.close(fd)
    return found


@case
def xattr_spaces() -> object:
    write("f")
    names = ("trusted.t", "security.capability", "security.other", "system.nothing", "nothing.at-all", "noprefix")
    return [of(lambda: os.setxattr("f", name, b"1")) for name in names] + [of(lambda: os.getxattr("f", name)) for name in names]


@case
def xattr_needs_rights() -> object:
    write("f", mode=0o400)
    found = [of(lambda: os.setxattr("f", "user.a", b"1")), of(lambda: os.getxattr("f", "user.a"))]
    os.chmod("f", 0)
    return [*found, of(lambda: os.getxattr("f", "user.a")), of(lambda: os.listxattr("f"))]


def acl(*entries: tuple[int, int, int]) -> bytes:
    """tag, permissions, id: USER_OBJ 1, USER 2, GROUP_OBJ 4, GROUP 8, MASK 16, OTHER 32."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, permissions, who) for tag, permissions, who in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 7, NOBODY), (2, 6, OTHER), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))


@case
def acl_and_mode() -> object:
    write("f", mode=0o600)
    steps = [of(lambda: os.getxattr("f", "system.posix_acl_access")), of(lambda: os.setxattr("f", "system.posix_acl_access", ACL))]
    steps += [mode_of("f"), of(lambda: os.getxattr("f", "system.posix_acl_access"))]
    os.chmod("f", 0o640)
    steps += [mode_of("f"), of(lambda: os.getxattr("f", "system.posix_acl_access"))]
    return [*steps, of(lambda: os.removexattr("f", "system.posix_acl_access")), mode_of("f")]


@case
def acl_is_checked() -> object:
    write("f", mode=0o600)
    bad = [of(lambda: os.setxattr("f", "system.posix_acl_access", value)) for value in (b"", b"x", ACL[:-3], acl((1, 7, NOBODY)))]
    return [*bad, of(lambda: os.setxattr("f", "system.posix_acl_default", ACL)), mode_of("f")]


@case
def acl_minimal_is_a_mode() -> object:
    write("f", mode=0o600)
    stored = of(lambda: os.setxattr("f", "system.posix_acl_access", acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY))))
    return [stored, mode_of("f"), of(lambda: os.getxattr("f", "system.posix_acl_access"))]


@case
def acl_default_is_inherited() -> object:
    os.umask(0o077)
    os.mkdir("d")
    os.setxattr("d", "system.posix_acl_default", ACL)
    write("d/f", mode=0o666)
    os.mkdir("d/sub", 0o777)
    os.mknod("d/n", 0o666 | stat.S_IFREG)
    os.symlink("f", "d/l")
    found = [
        [name, mode_of(name), of(lambda: os.getxattr(name, "system.posix_acl_access", follow_symlinks=False))]
        for name in ("d/f", "d/sub", "d/n")
    ]
    return [found, of(lambda: os.getxattr("d/sub", "system.posix_acl_default")), mode_of("d/l")]


@case
def umask_without_acl() -> object:
    os.umask(0o027)
    write("f", mode=0o666)
    os.mkdir("d", 0o777)
    os.mknod("n", 0o666 | stat.S_IFREG)
    return [mode_of(name) for name in ("f", "d", "n")]


# ---- holes, space, copies


@case
def holes() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x" * 4096, 256 * 1024)
    where = [of(lambda: os.lseek(fd, at, how)) for at in (0, 256 * 1024, 300 * 1024) for how in (os.SEEK_DATA, os.SEEK_HOLE)]
    end = [
        of(lambda: os.lseek(fd, 1 << 20, os.SEEK_DATA)),
        of(lambda: os.lseek(fd, 1 << 21, os.SEEK_HOLE)),
        of(lambda: os.lseek(fd, -1, os.SEEK_DATA)),
    ]
    os.close(fd)
    return [where, end]


@case
def position_after_seeking_data() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abcdefgh")
    os.lseek(fd, 3, os.SEEK_DATA)
    found = os.read(fd, 2)
    os.close(fd)
    return found.hex()


KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


def fallocate(fd: int, mode: int, offset: int, length: int) -> object:
    return of(lambda: c_call("fallocate", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


@case
def space() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"a" * 16384)
    steps: list[object] = [fallocate(fd, 0, 0, 32768), os.fstat(fd).st_size, fallocate(fd, KEEP_SIZE, 0, 65536), os.fstat(fd).st_size]
    steps += [fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 4096), os.pread(fd, 3, 4095).hex(), os.lseek(fd, 0, os.SEEK_HOLE)]
    steps += [fallocate(fd, PUNCH_HOLE, 0, 4096), fallocate(fd, 0, 0, 0), fallocate(fd, 0, -1, 5), fallocate(fd, 0x800, 0, 5)]
    os.close(fd)
    ro = os.open("f", os.O_RDONLY)
    steps.append(fallocate(ro, 0, 0, 5))
    os.close(ro)
    return steps


@case
def copies_of_ranges() -> object:
    write("a", bytes(range(256)) * 1024)
    a, b = os.open("a", os.O_RDWR), os.open("b", os.O_RDWR | os.O_CREAT)
    steps = [of(lambda: os.copy_file_range(a, b, 100_000, 5, 7)), os.fstat(b).st_size, os.pread(b, 4, 7).hex()]
    steps += [of(lambda: os.copy_file_range(a, b, 1000)), os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)]
    steps += [of(lambda: os.copy_file_range(a, b, 10, 1 << 20, 0)), of(lambda: os.copy_file_range(a, a, 100, 0, 50))]
    steps += [of(lambda: os.copy_file_range(a, a, 100, 0, 200_000)), os.pread(a, 4, 200_000).hex()]
    c = os.open("b", os.O_WRONLY | os.O_APPEND)
    steps += [of(lambda: os.copy_file_range(a, c, 10, 0)), of(lambda: os.copy_file_range(c, a, 10, 0, 0))]
    for fd in (a, b, c):
        os.close(fd)
    return steps


@case
def copy_of_what_was_just_written() -> object:
    a, b = os.open("a", os.O_RDWR | os.O_CREAT), os.open("b", os.O_RDWR | os.O_CREAT)
    os.write(b, b"-" * 300_000)
    for _ in range(8):
        os.write(a, b"0123456789" * 10_000)
    copied = 0
    while copied < 800_000:
        copied += os.copy_file_range(a, b, 800_000 - copied, copied, copied)
    found = [os.fstat(b).st_size, os.pread(b, 10, 799_990).hex(), read("b") == read("a")]
    os.close(a)
    os.close(b)
    return found


# ---- making, linking, removing


@case
def tmpfile() -> object:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"no name")
    steps: list[object] = [os.listdir("."), os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode), os.pread(fd, 20, 0).hex()]
    steps.append(link_open(fd, "named"))
    steps += [os.listdir("."), os.fstat(fd).st_nlink, read("named").hex()]
    steps.append(link_open(fd, "named"))
    os.write(fd, b" until now")
    os.close(fd)
    return [*steps, read("named").hex()]


@case
def tmpfile_never_named() -> object:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    steps = [link_open(fd, "n"), of(lambda: os.open(".", os.O_TMPFILE | os.O_RDONLY))]
    os.close(fd)
    write("f")
    return [*steps, of(lambda: os.open("f", os.O_TMPFILE | os.O_RDWR)), sorted(os.listdir("."))]


@case
def unlinked_and_open() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"here")
    os.unlink("f")
    steps: list[object] = [os.fstat(fd).st_nlink, os.fstat(fd).st_size, os.pread(fd, 9, 0).hex(), of(lambda: os.write(fd, b" still"))]
    steps += [of(lambda: os.ftruncate(fd, 6)), os.fstat(fd).st_size, of(lambda: os.fchmod(fd, 0o640)), oct(os.fstat(fd).st_mode)]
    steps += [link_open(fd, "again"), of(lambda: os.fsync(fd)), of(lambda: os.utime(fd, (5, 6)))]
    steps.append(of(lambda: os.truncate(f"/proc/self/fd/{fd}", 2)))
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    steps += [os.read(again, 9).hex(), os.listdir(".")]
    os.close(again)
    os.close(fd)
    return steps


@case
def links() -> object:
    write("a", b"x")
    os.link("a", "b")
    os.mkdir("d")
    steps: list[object] = [
        os.stat("a").st_nlink,
        os.stat("a").st_ino == os.stat("b").st_ino,
        of(lambda: os.link("a", "b")),
        of(lambda: os.link("d", "e")),
    ]
    os.symlink("a", "l")
    os.link("l", "l2", follow_symlinks=False)
    steps += [os.readlink("l2"), os.lstat("l").st_nlink, of(lambda: os.link("none", "x")), of(lambda: os.link("a", "d/none/x"))]
    os.unlink("a")
    return [*steps, os.stat("b").st_nlink, read("b").hex(), os.stat("d").st_nlink >= 1]


@case
def exclusive() -> object:
    os.symlink("nowhere", "l")
    os.mkdir("d")
    made = of(lambda: os.close(os.open("f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
    return [made] + [of(lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))) for name in ("f", "l", "d", "none/x")]


@case
def open_flags() -> object:
    write("f", b"data")
    os.mkdir("d")
    os.symlink("f", "l")
    os.symlink("loop", "loop")
    tries = [
        ("d", os.O_WRONLY),
        ("d", os.O_CREAT),
        ("f", os.O_DIRECTORY),
        ("l", os.O_NOFOLLOW),
        ("loop", 0),
        ("f/x", 0),
        ("none", 0),
        ("d", os.O_TRUNC),
    ]
    steps = [of(lambda: os.close(os.open(name, flags))) for name, flags in tries]
    os.close(os.open("f", os.O_RDONLY | os.O_PATH))
    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    return [*steps, os.stat("f").st_size]


@case
def names() -> object:
    longest = b"n" * 255
    odd = [b"\xff\xfe", b"new\nline", b" ", b"\\", b"\x7f\x01", "é".encode(), longest]
    for name in odd:
        write(name, name)
    held = sorted(os.listdir(b".")) == sorted(odd) and all(read(name) == name for name in odd)
    return [
        held,
        of(lambda: write(b"n" * 256)),
        of(lambda: os.stat("n" * 256)),
        of(lambda: os.mkdir("n" * 256)),
        of(lambda: os.stat("x/" * 2050)),
    ]


@case
def beyond_path_max() -> object:
    top = os.getcwd()
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    write("f", b"deep")
    found = [read("f").hex(), of(lambda: len(os.getcwd()) > 4096), os.listdir("."), os.stat("..").st_nlink > 0]
    os.unlink("f")
    for _ in range(25):
        os.chdir("..")
        os.rmdir("d" * 200)
    return [*found, os.getcwd() == top]


def renameat2(old: str, new: str, flags: int) -> object:
    return of(lambda: c_call("renameat2", AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags))


@case
def renames_with_flags() -> object:
    write("a", b"a")
    write("b", b"b")
    os.mkdir("d")
    write("d/x", b"x")
    steps = [
        renameat2("a", "b", 1),
        renameat2("a", "new", 1),
        renameat2("new", "b", 2),
        read("b").hex(),
        read("new").hex(),
        renameat2("b", "none", 2),
    ]
    steps += [
        renameat2("b", "d", 2),
        os.path.isdir("b"),
        read("d").hex(),
        read("b/x").hex(),
        renameat2("b", "d", 3),
        renameat2("b", "d", 8),
    ]
    return [*steps, sorted(os.listdir("."))]


@case
def rename_whiteout() -> object:
    write("a", b"a")
    return [renameat2("a", "b", 4), read("b").hex(), sorted(os.listdir(".")), renameat2("b", "a", 6)]


@case
def renames() -> object:
    os.makedirs("d/sub")
    os.mkdir("empty")
    write("f", b"f")
    write("g", b"g")
    pairs = [
        ("d", "d/sub/x"),
        ("f", "empty"),
        ("empty", "f"),
        ("empty", "d"),
        ("none", "x"),
        ("f", "none/x"),
        ("f", "f"),
        ("d/sub", "empty"),
        ("f", "g/x"),
    ]
    steps = [of(lambda: os.rename(old, new)) for old, new in pairs]
    fd = os.open("g", os.O_RDONLY)
    os.rename("f", "g")
    steps += [os.read(fd, 5).hex(), read("g").hex(), os.fstat(fd).st_nlink]
    os.link("g", "h")
    steps += [of(lambda: os.rename("g", "h")), sorted(os.listdir("."))]
    os.close(fd)
    return steps


@case
def removals() -> object:
    os.makedirs("d/sub")
    write("f")
    os.symlink("d", "l")
    names_ = [
        ("rmdir", "d"),
        ("rmdir", "f"),
        ("unlink", "d"),
        ("rmdir", "l"),
        ("unlink", "none"),
        ("rmdir", "d/sub/."),
        ("rmdir", "d/sub/.."),
    ]
    steps = [of(lambda: getattr(os, call)(name)) for call, name in names_]
    here = os.open("d/sub", os.O_RDONLY)
    os.rmdir("d/sub")
    steps += [
        of(lambda: os.listdir(here)),
        of(lambda: os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here))),
        os.fstat(here).st_nlink,
    ]
    os.close(here)
    return [*steps, of(lambda: os.rmdir("d")), of(lambda: os.unlink("l")), os.listdir(".")]


@case
def symbolic_links() -> object:
    os.symlink("x" * 4095, "long")
    os.symlink("target", "l")
    os.symlink("/absolute/one", "abs")
    return [
        of(lambda: os.symlink("x" * 4096, "l3")),
        of(lambda: os.symlink("", "l4")),
        os.lstat("l").st_size,
        os.readlink("abs"),
        os.lstat("abs").st_size,
    ] + [
        len(os.readlink("long")),
        of(lambda: os.readlink(".")),
        of(lambda: os.open("l", os.O_CREAT | os.O_EXCL)),
        of(lambda: os.symlink("a", "l")),
        mode_of("l"),
    ]


@case
def special_files() -> object:
    os.mkfifo("p", 0o600)
    made = [
        of(lambda: os.mknod("c", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
        of(lambda: os.mknod("s", stat.S_IFSOCK | 0o600)),
        of(lambda: os.mkfifo("p")),
    ]
    return [made, sorted(os.listdir("."))]


@case
def local_socket() -> object:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        steps = [of(lambda: server.bind("s")), of(lambda: server.listen()), of(lambda: client.connect("s")), of(lambda: server.bind("s"))]
    return [*steps, stat.S_ISSOCK(os.stat("s").st_mode)]


# ---- attributes


@case
def modes() -> object:
    write("f", mode=0o644)
    os.mkdir("d")
    steps: list[object] = []
    for bits in (0, 0o7777, 0o4755, 0o2755, 0o1644, 0o111):
        os.chmod("f", bits)
        steps.append(mode_of("f"))
    os.chmod("d", 0o1777)
    os.symlink("f", "l")
    steps += [
        mode_of("d"),
        of(lambda: os.chmod("none", 0)),
        of(lambda: c_call("fchmodat", AT_FDCWD, b"l", 0o600, 0x100)),
        mode_of("l"),
        mode_of("f"),
    ]
    return steps


@case
def owners() -> object:
    write("f", mode=0o6755)
    steps = [
        of(lambda: os.chown("f", -1, -1)),
        mode_of("f"),
        of(lambda: os.chown("f", OTHER, -1)),
        of(lambda: os.chown("f", -1, OTHER)),
        mode_of("f"),
    ]
    os.symlink("f", "l")
    steps += [of(lambda: os.lchown("l", os.getuid(), os.getgid())), of(lambda: os.chown("none", 0, 0))]
    return [*steps, os.stat("f").st_uid, os.stat("f").st_gid]


@case
def set_uid_is_lost() -> object:
    found = []
    for change in ("write", "truncate", "chown", "O_TRUNC"):
        write(change, b"x", 0o755)
        os.chmod(change, 0o6755)
        if change == "write":
            fd = os.open(change, os.O_WRONLY)
            os.write(fd, b"y")
            os.close(fd)
        elif change == "truncate":
            os.truncate(change, 0)
        elif change == "chown":
            os.chown(change, os.getuid(), os.getgid())
        else:
            os.close(os.open(change, os.O_WRONLY | os.O_TRUNC))
        found.append([change, mode_of(change)])
    return found


@case
def set_gid_directory() -> object:
    os.mkdir("d")
    os.chmod("d", 0o2777)
    write("d/f")
    os.mkdir("d/sub")
    found = [[mode_of(name), os.stat(name).st_gid == os.stat("d").st_gid] for name in ("d/f", "d/sub")]
    write("d/x", mode=0o2775)
    os.chmod("d/x", 0o2775)
    return [found, mode_of("d/x")]


@case
def times() -> object:
    write("f")
    ns = (1_234_567_890_123_456_789, 987_654_321_000_000_001)
    os.utime("f", ns=ns)
    status = os.stat("f")
    steps: list[object] = [status.st_atime_ns, status.st_mtime_ns]
    os.utime("f", ns=(-1_500_000_000, 4_000_000_000_000_000_007))
    status = os.stat("f")
    steps += [status.st_atime_ns, status.st_mtime_ns]
    os.utime("f")
    steps += [abs(time.time() - os.stat("f").st_mtime) < 60, of(lambda: os.utime("none"))]
    os.symlink("f", "l")
    os.utime("l", ns=(5, 7), follow_symlinks=False)
    steps += [os.lstat("l").st_mtime_ns, os.stat("f").st_mtime_ns > 7]
    omit = (ctypes.c_long * 4)(0, (1 << 30) - 2, 9, 11)
    c_call("utimensat", AT_FDCWD, b"f", omit, 0)
    steps += [os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns > 11]
    bad = (ctypes.c_long * 4)(0, 1_000_000_000, 0, 0)
    return [*steps, of(lambda: c_call("utimensat", AT_FDCWD, b"f", bad, 0))]


class Statx(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("skip", ctypes.c_ubyte * 76),
        ("sec", ctypes.c_int64),
        ("nsec", ctypes.c_uint32),
        ("rest", ctypes.c_ubyte * 164),
    ]


def born(name: bytes) -> tuple[bool, int]:
    found = Statx()
    c_call("statx", AT_FDCWD, name, 0x100, 0xFFF, ctypes.byref(found))
    return bool(found.mask & 0x800), found.sec * 1_000_000_000 + found.nsec


@case
def birth_time() -> object:
    write("f")
    os.mkdir("d")
    os.symlink("f", "l")
    known, when = born(b"f")
    steps: list[object] = [known, abs(when / 1e9 - time.time()) < 60, born(b"d")[0], born(b"l")[0]]
    os.utime("f", (5, 5))
    write("f", b"more")
    return [*steps, born(b"f")[1] == when]


@case
def times_of_a_directory() -> object:
    os.mkdir("d")
    moved = []
    changes: tuple[Callable[[], object], ...] = (
        lambda: write("d/f"),
        lambda: os.rename("d/f", "d/g"),
        lambda: os.unlink("d/g"),
        lambda: os.mkdir("d/s"),
        lambda: os.rmdir("d/s"),
    )
    for change in changes:
        os.utime("d", (5, 5))
        change()
        moved.append(os.stat("d").st_mtime > 5)
    return moved


@case
def rights_are_asked() -> object:
    write("f", b"x", 0o600)
    found = []
    for bits in (0, 0o100, 0o200, 0o400, 0o700):
        os.chmod("f", bits)
        found.append(
            [os.access("f", how) for how in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)] + [of(lambda: os.close(os.open("f", os.O_RDONLY)))]
        )
    os.mkdir("d")
    write("d/in")
    os.chmod("d", 0o600)
    found.append([of(lambda: os.stat("d/in").st_size), of(lambda: os.listdir("d")), of(lambda: write("d/new"))])
    os.chmod("d", 0o700)
    return found


# ---- data


@case
def appends() -> object:
    write("f", b"0123")
    fd = os.open("f", os.O_WRONLY | os.O_APPEND)
    other = os.open("f", os.O_RDWR)
    os.write(fd, b"a")
    os.pwrite(other, b"more", 5)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"b")
    found = [os.lseek(fd, 0, os.SEEK_CUR), read("f").hex()]
    os.close(fd)
    os.close(other)
    return found


@case
def sizes() -> object:
    write("f", b"abc")
    os.truncate("f", 10)
    steps: list[object] = [
        read("f").hex(),
        of(lambda: os.truncate("f", -1)),
        of(lambda: os.truncate(".", 0)),
        of(lambda: os.truncate("none", 0)),
    ]
    fd = os.open("f", os.O_RDWR)
    os.lseek(fd, 20, os.SEEK_SET)
    os.write(fd, b"z")
    steps += [
        os.fstat(fd).st_size,
        os.pread(fd, 30, 8).hex(),
        os.pread(fd, 5, 100).hex(),
        of(lambda: os.pread(fd, 1, -1)),
        of(lambda: os.lseek(fd, -1, 0)),
    ]
    steps += [
        of(lambda: os.ftruncate(fd, 1 << 40)),
        os.fstat(fd).st_size,
        of(lambda: os.pwrite(fd, b"far", (1 << 40) + 5)),
        os.fstat(fd).st_size,
    ]
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    steps += [of(lambda: os.write(fd, b"x")), of(lambda: os.ftruncate(fd, 0))]
    os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    steps += [of(lambda: os.read(fd, 1)), of(lambda: os.pread(fd, 1, 0))]
    os.close(fd)
    return steps


@case
def mapped_shared() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 10_000)
    with mmap.mmap(fd, 10_000) as memory:
        memory[5000:5005] = b"hello"
        memory.flush()
        seen = os.pread(fd, 5, 5000)
        os.pwrite(fd, b"J", 5000)
        back = memory[5000:5005]
    os.close(fd)
    return [seen.hex(), back.hex(), read("f")[4999:5006].hex()]


@case
def mapped_private() -> object:
    write("f", b"unchanged" * 1000)
    fd = os.open("f", os.O_RDONLY)
    with mmap.mmap(fd, 9000, access=mmap.ACCESS_COPY) as memory:
        memory[0:4] = b"mine"
        found = [memory[0:9].hex(), os.pread(fd, 9, 0).hex()]
    os.close(fd)
    return found


@case
def direct() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as page:
        page[:8192] = b"D" * 8192
        wrote = of(lambda: os.pwritev(fd, [page], 4096))
        page[:8192] = bytes(8192)
        got = of(lambda: os.preadv(fd, [page], 0))
        found = page[4090:4100].hex()
    os.close(fd)
    return [wrote, got, found, os.stat("f").st_size]


@case
def many_vectors() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    wrote = os.pwritev(fd, [bytes([n]) * 1000 for n in range(200)], 10)
    parts = [bytearray(7777) for _ in range(30)]
    got = os.preadv(fd, parts, 0)
    os.close(fd)
    return [wrote, got, bytes(parts[0])[:20].hex(), bytes(parts[20])[:4].hex()]


@case
def locks() -> object:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
    child = os.fork()
    if child == 0:
        try:
            own = os.open("f", os.O_RDWR)
            results = [of(lambda: fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, at)) for at in (0, 15)]
            os._exit(results == ["EAGAIN", None])
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    whole = os.open("f", os.O_RDONLY)
    steps = [
        os.waitstatus_to_exitcode(status),
        of(lambda: fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)),
        of(lambda: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)),
    ]
    os.close(whole)
    os.close(fd)
    return steps


# ---- directories


class Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("len", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    ]


@case
def positions_in_a_directory() -> object:
    """Each position leads to what was read there, whatever is made and removed meanwhile."""
    for number in range(600):
        write(f"file{number:04}")
    _libc.opendir.restype = ctypes.c_void_p
    _libc.readdir.restype = ctypes.POINTER(Dirent)
    _libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(_libc.opendir(b"."))
    read_at: list[tuple[int, bytes]] = []
    while True:
        position = _libc.telldir(stream)
        found = _libc.readdir(stream)
        if not found:
            break
        read_at.append((position, bytes(found.contents.name)))
    for number in range(0, 600, 3):
        os.unlink(f"file{number:04}")
    for number in range(50):
        write(f"new{number}")
    wrong = 0
    for position, name in read_at[::7]:
        if name.startswith(b"file") and int(name[4:]) % 3 == 0:
            continue
        _libc.seekdir(stream, ctypes.c_long(position))
        found = _libc.readdir(stream)
        wrong += not found or bytes(found.contents.name) != name
    _libc.rewinddir(stream)
    names_ = []
    while found := _libc.readdir(stream):
        names_.append(bytes(found.contents.name))
    _libc.closedir(stream)
    return [len(read_at), len({name for _, name in read_at}), wrong, len(names_), len(set(names_))]


@case
def listing_while_it_is_emptied() -> object:
    for number in range(500):
        write(f"f{number}")
    seen = []
    with os.scandir(".") as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.name)
    return [len(seen), os.listdir(".")]


@case
def sticky_directory() -> object:
    """Only meaningful for somebody who is not root: names of others in a sticky directory stay."""
    os.mkdir("d")
    os.chmod("d", 0o1777)
    write("d/mine")
    return [
        of(lambda: os.rename("d/mine", "d/moved")),
        of(lambda: os.unlink("d/moved")),
        of(lambda: os.unlink("../shared/of-root")),
        of(lambda: os.rename("../shared/of-root", "x")),
    ]


@case
def others_files() -> object:
    """../shared is root's: sticky, open to all; of-root is 0644, all is 0666."""
    there = "../shared/"
    steps = [
        of(lambda: os.chmod(there + "all", 0o600)),
        of(lambda: os.utime(there + "all", (1, 1))),
        of(lambda: os.utime(there + "of-root")),
        of(lambda: os.truncate(there + "of-root", 0)),
    ]
    steps += [
        of(lambda: os.setxattr(there + "of-root", "user.x", b"1")),
        of(lambda: os.setxattr(there + "all", "system.posix_acl_access", ACL)),
        of(lambda: os.link(there + "of-root", "l")),
    ]
    return [*steps, of(lambda: os.chown(there + "all", os.getuid(), os.getgid()))]


def run(name: str) -> object:
    """Run one case in a process of its own: umask and working directory are its."""
    os.mkdir(name)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(name)
        os.umask(0o022)
        try:
            result: object = CASES[name]()
        except BaseException as error:  # whatever it is, the other side can be compared with it
            result = f"{type(error).__name__}: {error}"
        os.write(sending, json.dumps(result).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        result = json.loads(pipe.read() or b'"died"')
    os.waitpid(child, 0)
    return result


def main(directory: str, uid: int, chosen: list[str]) -> None:
    os.chdir(directory)
    os.umask(0)
    shared = Path(f"shared-{uid}")
    shared.mkdir()
    shared.chmod(0o1777)
    for name, mode in (("of-root", 0o644), ("all", 0o666)):
        (shared / name).write_bytes(b"root's")
        (shared / name).chmod(mode)
    os.mkdir(f"as-{uid}")
    os.chown(f"as-{uid}", uid, uid)
    os.chdir(f"as-{uid}")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The cases see ../shared from one further down.
    os.symlink(f"../{shared}", "shared")
    print(json.dumps({name: run(name) for name in chosen or CASES}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
