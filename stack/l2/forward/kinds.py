"""The engines that there are."""

from __future__ import annotations

from resmgr.dispatch import Dispatch
from stack.ebpf.constants import XdpMode
from stack.l2.forward.fastpath import Kinds
from stack.l2.forward.kernel import KernelCarrier
from stack.l2.forward.threads import ThreadCarrier

CAPABILITIES = ("NET_RAW", "NET_ADMIN", "BPF")
"""What the engines may need; `threads` does without the last."""


def kinds(dispatch: Dispatch, workers: int = 0) -> Kinds:
    """For `FastPath`. *workers*: as for `ThreadCarrier`. Nothing is opened before one is made."""
    return {
        "kernel": lambda: KernelCarrier(dispatch),
        "threads": lambda: ThreadCarrier(dispatch, workers),
        "kernel-native": lambda: KernelCarrier(dispatch, XdpMode.NATIVE),
        "kernel-generic": lambda: KernelCarrier(dispatch, XdpMode.GENERIC),
    }
