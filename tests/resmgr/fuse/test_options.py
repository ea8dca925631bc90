"""The table of mount options: what people write becomes what it says, and the page says what the table has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from qnetpy.netfs.mount import NET_OPTIONS, options_page
from resmgr.fuse.options import OPTIONS, FuseOptions, OptionError, Permissions, options_text, parse_options
from resmgr.testing.fusemount import Served


def test_words_values_and_sizes() -> None:
    made = parse_options(" ro,attr_valid=5,max_write=64K,permissions=server,,noallow_other,write_behind=1m,noexec")
    assert made == FuseOptions(
        read_only=True,
        attr_valid=5.0,
        max_write=65536,
        permissions=Permissions.SERVER,
        allow_other=False,
        write_behind=1 << 20,
        executable=False,
    )
    assert parse_options("ro,rw") == FuseOptions()
    assert parse_options("", NET_OPTIONS) is not None
    assert parse_options("rw", NET_OPTIONS) == NET_OPTIONS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("attr_valid", "attr_valid needs a value: attr_valid=1"),
        ("attr_valid=x", "attr_valid: a number expected, not 'x'"),
        ("attr_valid=-1", "attr_valid: 0 to 86400 expected, not -1"),
        ("attr_valid=nan", "attr_valid: 0 to 86400 expected, not nan"),
        ("max_write=1.5", "max_write: a whole number expected, not '1.5'"),
        ("max_write=2M", "max_write: 4K to 1M expected, not 2M"),
        ("max_write=", "max_write: a whole number expected, not ''"),
        ("permissions=kernel", "permissions: one of kernel+server, server expected, not 'kernel'"),
        ("read_only=1", "read_only takes no value: write ro or rw"),
        ("readonly", "there is no mount option 'readonly'; did you mean 'read_only'?"),
        ("source=x", "there is no mount option 'source'"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(text)
    assert str(caught.value) == why


def test_what_differs_is_written_as_it_is_read() -> None:
    assert options_text(FuseOptions()) == ""
    other = attrs.evolve(NET_OPTIONS, read_only=True, attr_valid=0.25, prefetch=3, max_readahead=4 << 20, handles_max=7, write_behind=0)
    text = options_text(other, NET_OPTIONS)
    assert text == "ro,attr_valid=0.25,prefetch=3,write_behind=0,handles_max=7"
    assert parse_options(text, NET_OPTIONS) == other
    for row in OPTIONS:
        assert getattr(parse_options(row.shown(row.default)), row.name) == row.default
        assert row.doc.endswith((".", ")."))


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "mount-options.md"
    assert page.read_text() == options_page()


@pytest.mark.priv
def test_read_only_and_noexec_are_the_kernels(serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    program = tmp_path / "tree" / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    mount = serve(tmp_path / "tree", read_only=True, executable=False)
    with pytest.raises(OSError, match="Read-only file system"):
        (mount.path / "new").write_bytes(b"")
    assert (mount.path / "program").read_text() == "#!/bin/sh\n"
    with pytest.raises(PermissionError):
        subprocess.run([mount.path / "program"], check=False)
