"""The commands as people type them: what they print, and errors of one line without a traceback."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qnetpy.cli import daemon, main
from qnetpy.config import CONFIG_PATH, Config

pytestmark = pytest.mark.host


def qnet(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qnetpy.cli.main", *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def refused(*arguments: str, status: int = 1) -> str:
    result = qnet(*arguments)
    assert result.returncode == status, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def test_every_command_has_its_file_and_its_help() -> None:
    listed = qnet("--help").stdout
    folder = Path(main.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef add_arguments(" in path.read_text()}
    assert files == set(main.COMMANDS)
    for name in main.COMMANDS:
        assert f"\n  {name} " in listed
        assert qnet(name, "--help").stdout.startswith(f"usage: qnet {name} ")


def test_wrong_usage_is_one_line() -> None:
    assert refused("confg", status=2) == "qnet: no command 'confg'; try: qnet config"
    assert refused("cert", status=2) == "qnet cert: the following arguments are required: VERB; try: qnet cert --help"


def test_a_cluster_is_made_and_a_node_joins_it(tmp_path: Path) -> None:
    root, other, file = tmp_path / "root", tmp_path / "other", tmp_path / "n2.qnet"

    assert qnet("init", "office", "--node", "n1", "--dir", str(root)).returncode == 0
    assert qnet("cert", "issue", "n2", "--role", "printer", "--days", "10", "--dir", str(root), "-o", str(file)).returncode == 0
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert qnet("cert", "install", str(file), "--dir", str(other)).returncode == 0

    shown = json.loads(qnet("cert", "show", "--json", "--dir", str(other)).stdout)
    assert (shown["node"], shown["cluster"], shown["roles"]) == ("n2", "office", ["printer"])
    assert 9.9 < shown["days_left"] < 10.1
    own = json.loads(qnet("cert", "show", "--json", "--dir", str(root)).stdout)
    assert own["node"] == "n1"


def test_identity_errors_say_where(tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    assert qnet("init", "office", "--node", "n1", "--dir", there).returncode == 0

    assert "there is a cluster authority already" in refused("init", "other", "--node", "n1", "--dir", there)
    assert "'Ofc!' cannot be the name of a cluster" in refused("init", "Ofc!", "--dir", there, status=2)
    assert refused("cert", "issue", "n2", "--dir", str(tmp_path / "nowhere")).endswith("; try: qnet init CLUSTER")
    assert "'N 2' is no name for a node" in refused("cert", "issue", "N 2", "--dir", there)
    (tmp_path / "x.qnet").write_text("nonsense")
    assert "not a node bundle" in refused("cert", "install", str(tmp_path / "x.qnet"), "--dir", str(tmp_path / "new"))
    assert refused("cert", "show", "/etc/hostname") == "qnet cert: show: /etc/hostname: no certificate in PEM form"
    assert refused("cert", "show", str(tmp_path / "nothing")) == f"qnet cert: {tmp_path}/nothing: no such file or directory"


def test_an_identity_is_not_lost_by_accident(tmp_path: Path) -> None:
    """Keys of a node exist once: whoever becomes another node has to say that the old ones may go."""
    office, home, file = tmp_path / "office", tmp_path / "home", tmp_path / "n2.qnet"
    assert qnet("init", "office", "--node", "n1", "--dir", str(office)).returncode == 0
    assert qnet("cert", "issue", "n2", "--dir", str(office), "-o", str(file)).returncode == 0
    assert qnet("cert", "install", str(file), "--dir", str(home)).returncode == 0
    key = (home / "node.key").read_bytes()

    for words in (("init", "mine", "--node", "n2"), ("init", "office", "--node", "n2")):
        assert refused(*words, "--dir", str(home)) == (
            f"qnet init: this machine is node n2 of cluster office already ({home}); try: --no-node, or --replace to give that up"
        )
        assert not (home / "authority").exists()
    other = tmp_path / "n3.qnet"
    assert qnet("cert", "issue", "n3", "--dir", str(office), "-o", str(other)).returncode == 0
    assert refused("cert", "install", str(other), "--dir", str(home)).endswith(
        "already (" + str(home) + "); try: --replace, to give that up"
    )
    assert (home / "node.key").read_bytes() == key
    (home / "node.crt").write_text("broken")
    assert "holds keys already, and they are broken" in refused("cert", "install", str(file), "--dir", str(home))

    assert qnet("cert", "install", str(other), "--replace", "--dir", str(home)).returncode == 0
    assert json.loads(qnet("cert", "show", "--json", "--dir", str(home)).stdout)["node"] == "n3"
    renewed = tmp_path / "again.qnet"
    assert qnet("cert", "issue", "n3", "--dir", str(office), "-o", str(renewed)).returncode == 0
    assert qnet("cert", "install", str(renewed), "--dir", str(home)).returncode == 0, "renewing needs no option"


def test_a_mistyped_option_is_told_with_the_one_that_was_meant() -> None:
    assert refused("status", "--jsn", status=2) == "qnet status: there is no option --jsn; did you mean --json?"
    assert refused("status", "--zzz", status=2) == "qnet status: there is no option --zzz; try: qnet status --help"
    assert refused("ls", "--timeout", "abc", status=2) == "qnet ls: argument --timeout: not a number: 'abc'; try: qnet ls --help"


def test_what_lies_in_the_current_directory_is_not_imported(tmp_path: Path) -> None:
    """`qnet up` and `qnet cluster up` are typed by root, anywhere."""
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "__init__.py").write_text("raise SystemExit('imported')")
    argv = daemon.command_line(Config(), None, ["lo"], "")
    started = subprocess.run([*argv, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (started.returncode, started.stderr) == (0, "")
    assert started.stdout.startswith("usage: io-pkt")


def test_configuration_is_checked_and_shown(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(qnet("config", "--example").stdout)
    bad.write_text("[qnet]\ninterface = ['eth0']\n")

    assert qnet("config", str(good)).stdout == qnet("config", str(good)).stdout
    assert json.loads(qnet("config", "--json", str(good)).stdout)["qnet"]["ethertype"] == 0x88B5
    assert refused("config", str(bad), status=2) == (
        f"qnet config: {bad}: qnet.interface: unknown key; did you mean 'interfaces'?; try: qnet config --example"
    )


def test_output_that_nobody_reads_is_no_error() -> None:
    command = f"{sys.executable} -m qnetpy.cli.main config --example | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("cluster", "up", "/nowhere"), "qnet cluster: /nowhere: no such file or directory"),
        (("cluster", "status", "--name", "nosuch"), "qnet cluster: status: cluster 'nosuch' is not running"),
        (("cluster", "exec", "--name", "nosuch", "n1"), "qnet cluster: exec: no command given; try: qnet cluster exec n1 -- ls /net"),
    ],
)
def test_cluster_errors_are_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = qnet(*arguments)
    assert result.returncode in (1, 2)
    assert result.stderr.strip().startswith(line)
    assert result.stderr.count("\n") == 1


def test_the_defaults_of_light_commands_are_those_of_the_configuration() -> None:
    assert (Config().node.run_dir, CONFIG_PATH) == (daemon.RUN_DIR, daemon.CONFIG_PATH)


def test_the_run_directory_comes_from_the_environment_the_file_or_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "qnet.toml"
    file.write_text('[node]\nrun_dir = "/run/other"\n[qnet]\nnonsense = 1\n')

    assert daemon.run_dir(str(tmp_path / "missing")) == "/run/qnet"
    assert daemon.socket_path(str(file)) == "/run/other/socket"
    file.write_text("not toml")
    assert daemon.run_dir(str(file)) == "/run/qnet"
    monkeypatch.setenv("QNET_RUN_DIR", "/run/mine")
    assert daemon.run_dir(str(file)) == "/run/mine"


def test_every_command_is_in_the_reference() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "commands.md").read_text()
    for name in main.COMMANDS:
        assert f"`qnet {name} " in page or f"`qnet {name}`" in page, name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[node]\n",
        '[node]\nrun_dir = "/run/x"\n',
        '[node]\n  run_dir="/run/x"   \n[qnet]\n',
        '[node]\n# run_dir = "/run/y"\n',
        '[node]\nrun_dir = "/run/x" # "/run/y"\n',
        "[node]\nrun_dir = '/run/x'\n",
        '[node]\nrun_dir = "/run\\u002fx"\n',
        '[node]\n"run_dir" = "/run/x"\n',
        'node = {run_dir = "/run/x"}\n',
        'node.run_dir = "/run/x"\n',
        '[other]\nrun_dir = "/run/y"\n',
        "[node]\nrun_dir = 5\n",
        '[node]\nrun_dir_other = "/run/y"\n',
        '[other]\nrun_dir = "/run/y"\n[node]\nrun_dir = "/run/x"\n',
    ],
)
def test_the_run_directory_is_what_a_parser_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delenv("QNET_RUN_DIR", raising=False)
    file = tmp_path / "qnet.toml"
    file.write_text(text)
    found = tomllib.loads(text).get("node", {}).get("run_dir", daemon.RUN_DIR)
    assert daemon.run_dir(str(file)) == (found if isinstance(found, str) else daemon.RUN_DIR)
