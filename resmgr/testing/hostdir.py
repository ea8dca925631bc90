"""A served directory for tests: dispatch, kernel and `HostFs`, and clients of it, local and as if from other nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from resmgr.access import Export, Grant, Policy, UserRule
from resmgr.channel import ClientInfo, Credentials, Kernel, Nd
from resmgr.hostfs.manager import HostFs
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts


@attrs.define
class HostDirectory:
    """One served directory."""

    root: Path
    dispatch: VirtualDispatch
    kernel: Kernel
    fs: HostFs

    def client(self, uid: int = 0, gid: int | None = None, groups: tuple[int, ...] = ()) -> IoClient:
        """A local client."""
        credentials = Credentials(uid, uid if gid is None else gid, groups)
        return IoClient(self.kernel, credentials, target=self.fs.target, run=self._run)

    def remote(self, node: str, uid: int = 0, *, roles: frozenset[str] = frozenset(), gid: int = 0) -> IoClient:
        """A client of another node, as the network module would present it: its messages are delivered with its node's name."""
        client = self.client(uid, gid)
        connection = client.connection(self.fs.target)
        connection.info = ClientInfo(Nd(7), node, roles, Credentials(uid, gid), connection.coid)
        return client

    def policy(
        self,
        exports: tuple[Export, ...] = (),
        users: tuple[UserRule, ...] = (UserRule("identity", root="root"),),
        grants: tuple[Grant, ...] = (),
    ) -> Policy:
        return Policy(Accounts(self.dispatch.now), users=users, exports=exports, grants=grants)

    def _run(self, goal: Callable[[], bool]) -> None:
        self.dispatch.run_until(goal)
