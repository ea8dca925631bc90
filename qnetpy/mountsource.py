"""What is mounted, as people write it: nothing for all of /net, `NODE:/DIRECTORY` for a part of it.

`B:/srv` is the directory /srv of node B, `B~preferred:eth1:/srv` the same over chosen paths: what stands before `:/` is the name below
/net. `B:` is `B:/`.
"""

from __future__ import annotations


def parse_source(text: str) -> tuple[bytes, ...]:
    """Names that lead there from /net. ValueError for what is no source."""
    if text in ("", "net", "/net", "qnet"):
        return ()
    node, colon, path = text.partition(":/") if ":/" in text else (text.removesuffix(":"), text[-1:], "")
    if colon not in (":", ":/") or not node or "/" in node:
        raise ValueError(f"{text!r}: NODE:/DIRECTORY expected, or nothing for all of /net")
    names = [name for name in path.split("/") if name]
    if "\0" in text or any(name in (".", "..") for name in (node, *names)):
        raise ValueError(f"{text!r} has a dot component or a NUL")
    return tuple(name.encode(errors="surrogateescape") for name in (node, *names))


def source_text(names: tuple[bytes, ...]) -> str:
    """How people write it; empty for all of /net."""
    if not names:
        return ""
    node, *rest = (name.decode(errors="surrogateescape") for name in names)
    return f"{node}:/{'/'.join(rest)}"
