"""Options of a mount: what the kernel is told, and how it is answered.

`FuseOptions` is the one table of them: each field that has a *doc* is an option that people write (`-o ro,attr_valid=5`), with the field's
name, type, default and explanation. The command line, the configuration and docs/reference/mount-options.md are read from it.

A truth value is written as its name, or `no` and its name, or by words of its own (`ro`, `rw`); a choice as `name=value`, or by the value
alone where it has `bare`. Numbers are plain; sizes may end with K or M.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterator, Mapping
from typing import TypeVar

import attrs

T = TypeVar("T")


class Permissions(enum.Enum):
    """Who checks permissions (docs/decisions/fuse-permissions.md)."""

    KERNEL_AND_SERVER = "kernel+server"
    """The kernel checks the modes and owners it was told (mount option default_permissions), and the server checks again."""
    SERVER = "server"
    """Only the server checks: for trees whose owners are other people's numbers."""


class Failure(enum.Enum):
    """What a request does that meets a node that is down (docs/protocol/failures.md)."""

    SOFT = "soft"
    """It ends with EHOSTDOWN."""
    HARD = "hard"
    """It waits for the node; signals end it."""


@attrs.frozen
class Part:
    """What of the mounted manager's tree is the mount's root directory: `names` lead there, none for all of it. `links`: the path under
    which this machine sees the node that serves it, for absolute symbolic links of that node; empty: they are shown as they are."""

    names: tuple[bytes, ...] = ()
    links: bytes = b""


WHOLE = Part()


def option(
    doc: str,
    default: T,
    *,
    least: float | None = None,
    most: float | None = None,
    size: bool = False,
    words: tuple[str, str] | None = None,
    bare: bool = False,
) -> T:
    """An option that people write. *least* and *most* bound numbers; *size*: bytes; *words*: a truth value's, for true and false; *bare*:
    the values of a choice are words by themselves."""
    told = {"doc": doc, "least": least, "most": most, "size": size, "words": words, "bare": bare}
    return attrs.field(default=default, metadata=told)


@attrs.frozen
class FuseOptions:
    """Times in seconds, sizes in bytes."""

    read_only: bool = option("Nothing can be changed through this mount; the kernel says EROFS.", False, words=("ro", "rw"))
    executable: bool = option("Programs on it can be run.", True, words=("exec", "noexec"))
    xattr: bool = option(
        "Extended attributes and ACLs are there. Without them the kernel does not ask for them, which `ls -l` has it do twice a file.",
        True,
    )
    attr_valid: float = option("How long the kernel may answer stat from memory.", 1.0, least=0, most=86400)
    entry_valid: float = option("How long the kernel may believe that a name leads where it led.", 1.0, least=0, most=86400)
    negative_valid: float = option("The same for names that do not exist.", 0.1, least=0, most=86400)
    lease: float = option(
        "How long the kernel may believe names and attributes in directories whose changes their server tells "
        "(docs/protocol/coherence.md); 0: no server is asked to tell.",
        60.0,
        least=0,
        most=86400,
    )
    delegations: int = option(
        "Files, read more than once or locked, of which a server is asked to let nobody open them for more before it has asked here: to "
        "open them again, or lock them, costs no message (docs/protocol/delegation.md); 0: none.",
        64,
        least=0,
        most=256,
    )
    prefetch: int = option("First bytes asked for with a read-only open; 0: none.", 64 * 1024, least=0, most=128 * 1024, size=True)
    attributes_ahead: int = option(
        "Bytes of entries with attributes read ahead of one directory in which names are looked up one after another; 0: none.",
        256 * 1024,
        least=0,
        most=512 * 1024,
        size=True,
    )
    open_ahead: int = option(
        "Files opened ahead of a program that reads one file of a directory after another (docs/decisions/fuse-open-ahead.md); 0: none.",
        16,
        least=0,
        most=32,
    )
    max_write: int = option("Largest read or write in one request.", 1024 * 1024, least=4096, most=1024 * 1024, size=True)
    write_behind: int = option(
        "Bytes of one file that may be on the way to its server after the program was told that they are written; 0: each write(2) waits "
        "for its server.",
        8 * 1024 * 1024,
        least=0,
        most=64 * 1024 * 1024,
        size=True,
    )
    removals: int = option(
        "Removals of files that may be on the way to their servers after the program was told that they are done, where nothing speaks "
        "against that (docs/decisions/fuse-removals.md); 0: each unlink(2) waits for its server.",
        256,
        least=0,
        most=4096,
    )
    max_readahead: int = option(
        "Bytes that the kernel reads ahead of a program, in READs of at most max_write.",
        4 * 1024 * 1024,
        least=0,
        most=16 * 1024 * 1024,
        size=True,
    )
    max_background: int = option(
        "Requests that nobody waits for (read-ahead, asynchronous direct I/O) that the kernel has under way at once.",
        64,
        least=1,
        most=65535,
    )
    permissions: Permissions = option(
        "Who checks permissions: `server`, or the kernel too, by the owners and modes it is shown (docs/decisions/fuse-permissions.md).",
        Permissions.KERNEL_AND_SERVER,
    )
    allow_other: bool = option("Every user of this machine may use it, each with their own rights on the far side.", True)
    transform_links: bool = option(
        "Absolute symbolic links of other nodes are shown with the path of that node's root in front (docs/decisions/fuse-links.md).", True
    )
    devices_as_files: bool = option(
        "Devices and FIFOs are shown as regular files of size 0, so that opening them reaches the far device, not a local one with its "
        "number.",
        True,
    )
    interrupt_delay: float = option(
        "A signal has to wait this long before the server is asked to unblock: quick operations end with their result instead of EINTR.",
        0.05,
        least=0,
        most=60,
    )
    interrupt_patience: float = option(
        "A server that was asked to unblock and did not answer in this time is not waited for any more.", 1.0, least=0, most=3600
    )
    stream_patience: float = option(
        "The same for reads and writes of a device or FIFO: what a read brings is taken from there, so an answer thrown away is data lost; "
        "and who does not hear how much he wrote writes it again.",
        10.0,
        least=0,
        most=3600,
    )
    failure: Failure = option(
        "What becomes of a request whose node is down: `soft`, EHOSTDOWN at once; `hard`, it waits for the node, and signals end it "
        "(docs/protocol/failures.md).",
        Failure.SOFT,
        bare=True,
    )
    deadline: float = option(
        "No request on files and directories takes longer; so long it waits for a node that is down, also with `soft`. 0: no limit.",
        0.0,
        least=0,
        most=86400,
    )
    handles_max: int = option(
        "Directory handles kept in all; beyond it the oldest are closed and got again when needed. Bounds descriptors on the servers.",
        4096,
        least=1,
        most=65536,
    )
    owner: tuple[int, int] | None = None
    """User and group that everything is shown to belong to; None: as the servers tell."""
    source: str = "resmgr"
    subtype: str = "resmgr"


class OptionError(ValueError):
    """One line: which option, what is wrong, what would be right."""


@attrs.frozen
class Option:
    """A row of the table. `words` are those that stand alone, with the value that each means."""

    name: str
    kind: str
    """`truth`, `choice`, `whole`, `number`: what stands behind the equals sign."""
    default: object
    doc: str
    words: Mapping[str, object]
    values: Mapping[str, object]
    """Of a choice."""
    least: float | None
    most: float | None
    size: bool

    def shown(self, value: object) -> str:
        """How *value* is written."""
        for word, meant in self.words.items():
            if meant == value:
                return word
        for word, meant in self.values.items():
            if meant == value:
                return f"{self.name}={word}"
        if isinstance(value, int) and self.size and value:
            for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
                if value % unit == 0:
                    return f"{self.name}={value // unit}{letter}"
        return f"{self.name}={value:g}" if isinstance(value, float) else f"{self.name}={value}"

    def _number(self, value: float | None) -> str:
        return "any" if value is None else self.shown(int(value)).removeprefix(self.name + "=")

    def parse(self, text: str) -> object:
        """The value that *text* behind the equals sign means."""
        if self.values:
            if text not in self.values:
                raise OptionError(f"{self.name}: one of {', '.join(self.values)} expected, not {text!r}")
            return self.values[text]
        if self.kind == "truth":
            raise OptionError(f"{self.name} takes no value: write {' or '.join(self.words)}")
        factor = 1
        digits = text
        if self.size and text[-1:].upper() in ("K", "M"):
            factor = 1 << 10 if text[-1:].upper() == "K" else 1 << 20
            digits = text[:-1]
        try:
            value: float = int(digits) * factor if self.kind == "whole" else float(digits)
        except ValueError:
            raise OptionError(f"{self.name}: a {'whole number' if self.kind == 'whole' else 'number'} expected, not {text!r}") from None
        if not (self.least is None or value >= self.least) or not (self.most is None or value <= self.most):
            raise OptionError(f"{self.name}: {self._number(self.least)} to {self._number(self.most)} expected, not {text}")
        return value


def _rows() -> Iterator[Option]:
    for field in attrs.fields(FuseOptions):
        told = field.metadata
        if "doc" not in told:
            continue
        default = field.default
        words: dict[str, object] = {}
        values: dict[str, object] = {}
        if isinstance(default, bool):
            kind = "truth"
            yes, no = told["words"] or (field.name, f"no{field.name}")
            words = {yes: True, no: False}
        elif isinstance(default, enum.Enum):
            kind = "choice"
            values = {str(member.value): member for member in type(default)}
            if told["bare"]:
                words = dict(values)
        else:
            kind = "whole" if isinstance(default, int) else "number"
        yield Option(field.name, kind, default, told["doc"], words, values, told["least"], told["most"], told["size"])


OPTIONS: tuple[Option, ...] = tuple(_rows())


def parse_options(text: str, base: FuseOptions | None = None) -> FuseOptions:
    """*base* with what *text* says, options separated by commas. Later ones win. `OptionError` for what is no option or no value of it."""
    changed: dict[str, object] = {}
    by_name = {row.name: row for row in OPTIONS}
    by_word = {word: (row, value) for row in OPTIONS for word, value in row.words.items()}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals and name in by_word:
            row, meant = by_word[name]
            changed[row.name] = meant
        elif name in by_name and (equals or name not in by_word):
            if not equals:
                raise OptionError(f"{name} needs a value: {by_name[name].shown(by_name[name].default)}")
            changed[name] = by_name[name].parse(value)
        else:
            near = difflib.get_close_matches(name, (*by_name, *by_word), 1)
            raise OptionError(f"there is no mount option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return attrs.evolve(FuseOptions() if base is None else base, **changed)  # type: ignore[arg-type]  # each value is its own field's


def options_text(options: FuseOptions, base: FuseOptions | None = None) -> str:
    """What of *options* is not as in *base*, as `parse_options` reads it."""
    start = FuseOptions() if base is None else base
    return ",".join(row.shown(getattr(options, row.name)) for row in OPTIONS if getattr(options, row.name) != getattr(start, row.name))


def reference_page(base: FuseOptions | None = None) -> str:
    """The table for docs/reference/mount-options.md. *base*: the defaults of the mounts it is about."""
    start = FuseOptions() if base is None else base
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for row in OPTIONS:
        written = ", ".join(f"`{word}`" for word in row.words) or f"`{row.name}=`"
        if row.values:
            choices = [*row.words] or [f"{row.name}={value}" for value in row.values]
            written = ", ".join(f"`{choice}`" for choice in choices)
        lines.append(f"| {written} | `{row.shown(getattr(start, row.name)).removeprefix(row.name + '=')}` | {row.doc} |")
    return "\n".join(lines) + "\n"
