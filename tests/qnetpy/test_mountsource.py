"""What people write for what is mounted, and what mount(8) says."""

from __future__ import annotations

import pytest

from qnetpy.cli import fstab
from qnetpy.mountsource import parse_source, source_text


@pytest.mark.parametrize(
    ("text", "names", "written"),
    [
        ("", (), ""),
        ("/net", (), ""),
        ("qnet", (), ""),
        ("b:/srv/x", (b"b", b"srv", b"x"), "b:/srv/x"),
        ("b:", (b"b",), "b:/"),
        ("b:/", (b"b",), "b:/"),
        ("b:/srv//x/", (b"b", b"srv", b"x"), "b:/srv/x"),
        ("b~preferred:eth1:/srv", (b"b~preferred:eth1", b"srv"), "b~preferred:eth1:/srv"),
        ("b:/caf\udce9", (b"b", b"caf\xe9"), "b:/caf\udce9"),
    ],
)
def test_sources(text: str, names: tuple[bytes, ...], written: str) -> None:
    assert parse_source(text) == names
    assert source_text(names) == written


@pytest.mark.parametrize("text", ["b", "b/srv", ":/srv", "/b:/srv", "b:srv", "b:/../x", "..:/x", "b:/x/./y", "b:/x\0y", "/srv"])
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|dot component"):
        parse_source(text)


def test_what_mount_says_becomes_what_we_ask() -> None:
    line = [
        "b:/srv",
        "/mnt",
        "-s",
        "-n",
        "-o",
        "rw,nofail,_netdev,x-systemd.requires=qnet.service",
        "-o",
        "attr_valid=3,nosuid",
        "-t",
        "qnet",
    ]
    assert fstab.parse(line) == ("b:/srv", "/mnt", "rw,attr_valid=3", False)
    assert fstab.parse(["b:/", "/mnt", "-fv"]) == ("b:/", "/mnt", "", True)
    for wrong in ([], ["b:/srv"], ["a", "b", "c"], ["a", "b", "-o"], ["a", "b", "-q"], ["a", "b", "--help"]):
        with pytest.raises(ValueError, match="usage"):
            fstab.parse(wrong)


def test_exit_statuses_are_those_of_mount(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNET_RUN_DIR", "/nowhere/at/all")
    assert fstab.main(["b:/srv"]) == 1
    assert fstab.main(["b:/srv", "/mnt"]) == 32
    assert fstab.main(["b:/srv", "/mnt", "-f"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"mount.qnet: {fstab.USAGE}", "mount.qnet: this node is not up; try: qnet up"]
