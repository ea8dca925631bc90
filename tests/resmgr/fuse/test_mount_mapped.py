"""Real mounts: files that were opened past the page cache because a READ of them hangs, mapped into memory and run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.fuse.formats import Init
from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

MAPPER = """
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
try:
    with mmap.mmap(fd, int(sys.argv[2]), getattr(mmap, sys.argv[3]), mmap.PROT_READ) as memory:
        print(len(memory), set(memory[:]))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
READER = """
import os, sys
try:
    os.pread(os.open(sys.argv[1], os.O_RDONLY), 4096, 20000)
except OSError:
    pass  # the READ was let go
"""


def events(mount: Served) -> dict[str, int]:
    statistics = mount.order("statistics")
    assert isinstance(statistics, dict)
    told: dict[str, int] = statistics["events"]
    return told


@pytest.mark.parametrize("way", ["MAP_PRIVATE", "MAP_SHARED", "exec"])
@pytest.mark.parametrize("kernel", ["6.6", "before"])
def test_beside_a_read_that_hangs_it_is_as_it_is_now_or_an_error(serve: Callable[..., Served], way: str, kernel: str) -> None:
    mount = serve(prefetch=0, attr_valid=60.0, without=0 if kernel == "6.6" else int(Init.DIRECT_IO_ALLOW_MMAP))
    path = mount.path / "f"
    path.write_bytes(Path("/bin/echo").read_bytes() if way == "exec" else b"1" * 100_000)
    path.chmod(0o755)
    mount.fault(operation="read", hang=True, times=1)
    reader = subprocess.Popen([sys.executable, "-c", READER, path])
    until(lambda: bool(mount.order("status")))
    if way == "exec":
        mount.order("touch", path="f")
        command = ["sh", "-c", f"echo open; exec {path} done"]
    else:
        mount.order("write", path="f", data="2" * 100_000)
        command = [sys.executable, "-c", MAPPER, str(path), "100000", way]
    mapper = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert mapper.stdout is not None
    assert mapper.stdout.readline() == b"open\n"
    until(lambda: events(mount).get("bypassed", 0) > 0)
    # It is open; whoever maps it, or looks at its size, waits for the pages that the READ fills.
    with pytest.raises(subprocess.TimeoutExpired):
        mapper.wait(0.1)
    mount.order("release")
    said, _ = mapper.communicate(timeout=30)
    reader.wait(30)
    refused = (way, kernel) == ("MAP_SHARED", "before")
    assert said == (b"ENODEV\n" if refused else b"done\n" if way == "exec" else b"100000 {50}\n")
