"""The engines that there are."""

from __future__ import annotations

from resmgr.dispatch import Dispatch
from stack.ebpf.constants import XdpMode
from stack.l2.forward.fastpath import Kinds
from stack.l2.forward.kernel import KernelCarrier
from stack.l2.forward.threads import ThreadCarrier


def kinds(dispatch: Dispatch) -> Kinds:
    """For `FastPath`, those that `auto` tries first. Nothing is opened before one is made."""
    return {
        "kernel": lambda: KernelCarrier(dispatch),
        "threads": lambda: ThreadCarrier(dispatch),
        "kernel-native": lambda: KernelCarrier(dispatch, XdpMode.NATIVE),
        "kernel-generic": lambda: KernelCarrier(dispatch, XdpMode.GENERIC),
    }
