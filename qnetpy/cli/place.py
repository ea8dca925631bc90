"""Where this node's daemon is. Reads at most one small file, and imports nothing that takes time: every command begins here."""

from __future__ import annotations

import os

RUN_DIR = "/run/qnet"
"""The same as in `qnetpy.config`, which is too heavy to import for this; a test compares. So is CONFIG_PATH."""
CONFIG_PATH = "/etc/qnet/qnet.toml"


def run_dir(config: str | None = None) -> str:
    """Where the daemon's socket and lock are. Reads only that one setting, so a mistake elsewhere in the file stops nobody."""
    chosen = os.environ.get("QNET_RUN_DIR")
    if chosen:
        return chosen
    try:
        with open(config or CONFIG_PATH, "rb") as file:
            data = file.read()
        plain = _plain_run_dir(data)
        if plain is not None:
            return plain
        import tomllib

        found = tomllib.loads(data.decode()).get("node", {}).get("run_dir", RUN_DIR)
        return found if isinstance(found, str) else RUN_DIR
    except (OSError, ValueError, AttributeError):
        return RUN_DIR


def _plain_run_dir(data: bytes) -> str | None:
    """The setting where it is written as people do, or is not there; None where only a parser can tell, which takes longer than everything
    else that happens before a remote program starts."""
    section, found = b"", []
    for line in map(bytes.strip, data.splitlines()):
        if line.startswith(b"["):
            section = line
        elif b"run_dir" in line and not line.startswith(b"#"):
            found.append((section, line))
    if not found:
        return RUN_DIR
    (section, line), *others = found
    key, _, value = (word.strip() for word in line.partition(b"="))
    inner = value[1:-1]
    if (
        others
        or section != b"[node]"
        or key != b"run_dir"
        or value[:1] + value[-1:] != b'""'
        or b'"' in inner
        or b"\\" in inner
        or b"#" in inner
    ):
        return None
    return inner.decode()


def socket_path(config: str | None = None) -> str:
    """The socket of this machine's daemon."""
    return os.path.join(run_dir(config), "socket")
