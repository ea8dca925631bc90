"""/proc/crypto: which drivers a Linux kernel has for its ciphers, and which of them are offload hardware. A format only.

The kernel takes the driver of the highest priority. Hardware is what is asynchronous and not a wrapper that makes processor
instructions asynchronous (`cryptd(...)`, and drivers for internal use).
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

PATH = "/proc/crypto"


@attrs.frozen
class KernelDriver:
    """One block of the file. `name` is the cipher's, as in `gcm(aes)`."""

    name: str
    driver: str
    priority: int
    internal: bool
    asynchronous: bool

    @property
    def hardware(self) -> bool:
        return self.asynchronous and "cryptd(" not in self.driver and not self.driver.startswith("__")


def parse(text: str) -> Iterator[KernelDriver]:
    """Blocks that are not what they should be are passed over."""
    for block in text.split("\n\n"):
        fields = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in block.splitlines()) if colon}
        if "name" in fields and "driver" in fields and fields.get("priority", "").isdecimal():
            yield KernelDriver(
                fields["name"],
                fields["driver"],
                int(fields["priority"]),
                fields.get("internal") == "yes",
                fields.get("async") == "yes",
            )


def chosen(text: str) -> dict[str, KernelDriver]:
    """By cipher, the driver that the kernel takes."""
    found: dict[str, KernelDriver] = {}
    for one in parse(text):
        if not one.internal and (one.name not in found or one.priority > found[one.name].priority):
            found[one.name] = one
    return found
