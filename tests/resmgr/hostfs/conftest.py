"""A served temporary directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.access import Policy
from resmgr.channel import Kernel
from resmgr.hostfs.manager import HostFs
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostDirectory]:
    dispatch = VirtualDispatch(1)
    kernel = Kernel(dispatch, "test")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        # pytest's own directories are 0700; the mapped users of these tests have to pass.
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o755)
    fs = HostFs(kernel, Policy(Accounts(dispatch.now)), root=str(root))
    yield HostDirectory(root, dispatch, kernel, fs)
    fs.destroy()


@pytest.fixture
def again(host: HostDirectory) -> Iterator[HostDirectory]:
    """The same directory served by another daemon of the node, later."""
    kernel = Kernel(host.dispatch, "test")
    fs = HostFs(kernel, host.fs.policy, root=str(host.root))
    fs.reopening.key = host.fs.reopening.key
    yield HostDirectory(host.root, host.dispatch, kernel, fs)
    fs.destroy()
