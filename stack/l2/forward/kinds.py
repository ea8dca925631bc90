"""The engines that there are, best first."""

from __future__ import annotations

from resmgr.dispatch import Dispatch
from stack.l2.forward.fastpath import Kinds
from stack.l2.forward.kernel import KernelCarrier
from stack.l2.forward.threads import ThreadCarrier


def kinds(dispatch: Dispatch) -> Kinds:
    """For `fast_path`. Nothing is opened before one is made."""
    return {"kernel": lambda: KernelCarrier(dispatch), "threads": lambda: ThreadCarrier(dispatch)}
