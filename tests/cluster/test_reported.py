"""What users of other remote file systems reported, between two clients and a program of the server: each case by whoever can make the
change, seen by the other two. The numbers are those of sshfs's issues where no other is named; `tests/resmgr/fuse/test_mount_leases.py` has
some with one client."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for
from tests.cluster.asked import Program, asked
from tests.cluster.meshed import seen, serving

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
TOPOLOGY = serving("a", "b", "s", title="reported")
KNOWS = """
import hashlib, mmap, os
files, maps = {}, {}
def put(name, text):
    with open(name, "w") as file:
        file.write(text)
def add(name, text):
    with open(name, "a") as file:
        file.write(text)
def replace(name, text):
    put("." + name + ".swp", text)
    os.replace("." + name + ".swp", name)
def get(name):
    with open(name, newline="") as file:
        return file.read()
def sums(name):
    return [hashlib.md5(get(name).encode()).hexdigest() for _ in range(2)]
def opened(name, flags=os.O_RDWR | os.O_CREAT):
    files[name] = os.open(name, flags, 0o644)
def at(name, place, text):
    return os.pwrite(files[name], text.encode(), place)
def many(name, place, texts):
    return [os.pwrite(files[name], text.encode(), place) for text in texts][-1]
def stored(name, place, text):
    if name not in maps:
        maps[name] = mmap.mmap(files[name], 4096)
    maps[name][place : place + len(text)] = text.encode()
    maps[name].flush()
def closed(name):
    fd = files.pop(name)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
"""
GONE = {errno.EHOSTDOWN, errno.ESTALE, errno.EIO}


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    with seen(TOPOLOGY) as running:
        yield running


@contextmanager
def programs(nodes: kit.Cluster, folder: str, mount: str = "/net/s/tmp") -> Iterator[tuple[Program, Program, Program]]:
    """Of a, b and s, in a new directory of s."""
    nodes.run("s", "mkdir", f"/tmp/{folder}")
    with ExitStack() as stack:
        found = []
        for node, place in ("a", f"{mount}/{folder}"), ("b", f"/net/s/tmp/{folder}"), ("s", f"/tmp/{folder}"):
            found.append(stack.enter_context(asked(nodes, node, place, KNOWS)))
        a, b, s = found
        yield a, b, s


def test_sums_of_a_file_that_grows(nodes: kit.Cluster) -> None:
    """302, libfuse 945: sums taken after it grew elsewhere differ from each other, or are those of before."""
    with programs(nodes, "sums") as all_of_them:
        all_of_them[2].ask("put('text', 'some text\\n')")
        for number in range(12):
            writer = all_of_them[number % 3]
            before = {program.ask("sums('text')")[0] for program in all_of_them}
            writer.ask(f"add('text', 'more of it {number}\\n' * {1 + 400 * (number % 2)})")
            after = {one for program in all_of_them for one in program.ask("sums('text')")}
            assert (len(before), len(after)) == (1, 1)
            assert before != after


def test_times_and_last_lines_of_a_file_that_was_appended_to(nodes: kit.Cluster) -> None:
    """93: both are those of before, for ever. 72: what was there is gone."""
    with programs(nodes, "lines") as all_of_them:
        all_of_them[2].ask("put('file', 'x' * 2700)")
        for number in range(9):
            for program in all_of_them:
                program.ask("[os.stat('file').st_mtime_ns, get('file')]")
            all_of_them[number % 3].ask(f"add('file', '\\nrevision {number}')")
            made = all_of_them[2].ask("os.stat('file').st_mtime_ns")
            for program in all_of_them:
                assert program.ask("get('file')[2700:].split('\\n')[1:]") == [f"revision {one}" for one in range(number + 1)]
                program.soon(f"os.stat('file').st_mtime_ns == {made}")


def test_files_that_editors_save(nodes: kit.Cluster) -> None:
    """88: cut short, or with zeros at the end, until the next mount. winfsp's 123 and 143: twice as long, with as many zeros in front."""
    with programs(nodes, "saved") as all_of_them:
        for number in range(24):
            content = f"line {number}\n" * (300 + 37 * number if number % 3 else 20)
            how = ("put", "replace")[number // 3 % 2]
            all_of_them[number % 3 - number // 6 % 3].ask(f"{how}('text', {content!r})")
            for program in all_of_them:
                assert program.ask("get('text')") == content, f"{how} {number}: {program.node}"
                program.soon(f"os.stat('text').st_size == {len(content)}")


def test_directories_that_were_renamed_or_removed(nodes: kit.Cluster) -> None:
    """346: they are listed still, and cannot be entered; new ones are not seen."""
    with programs(nodes, "phantom") as all_of_them:
        for number in range(6):
            maker, remover = all_of_them[number % 3], all_of_them[(number + 1) % 3]
            for program in all_of_them:
                assert program.ask("os.listdir('.')") == []
            maker.ask("[os.mkdir('New folder'), os.rename('New folder', 'Project'), put('Project/inside', '')]")
            for program in all_of_them:
                program.soon("os.listdir('.') == ['Project'] and os.listdir('Project') == ['inside']")
                program.soon("not os.path.exists('New folder')")
            remover.ask("[os.unlink('Project/inside'), os.rmdir('Project')]")
            for program in all_of_them:
                program.soon("os.listdir('.') == [] and not os.path.exists('Project')")
            # What is not there any more is in nobody's way.
            maker.ask("[os.mkdir('Project'), os.rmdir('Project')]")


def test_writers_of_one_page(nodes: kit.Cluster) -> None:
    """Each has its own bytes of it, open all the time: nobody writes back what he has read of the others'."""
    with programs(nodes, "page") as all_of_them:
        all_of_them[2].ask("put('page', '.' * 4096)")
        for program in all_of_them:
            program.ask("opened('page')")
        for number in range(20):
            texts = [f"{program.node}{number:07d}{part:02d}" for program in all_of_them for part in range(3)]
            for index, program in enumerate(all_of_them):
                program.send(f"many('page', {100 * index}, {texts[3 * index : 3 * index + 3]!r})")
            for program in all_of_them:
                assert program.receive() == {"is": 10}
            for program in all_of_them:
                program.ask("os.fsync(files['page'])")
            for program in all_of_them:
                for index in range(3):
                    program.soon(f"os.pread(files['page'], 10, {100 * index}).decode() == {texts[3 * index + 2]!r}")
        assert all_of_them[2].ask("get('page').strip('.').count('.')") == 2 * 90


def test_appenders_at_once(nodes: kit.Cluster) -> None:
    """72, and NFS's: who appends where he thinks the end is overwrites what others appended meanwhile."""
    with programs(nodes, "appended") as all_of_them:
        for program in all_of_them:
            program.ask("opened('log', os.O_RDWR | os.O_CREAT | os.O_APPEND)")
        for number in range(10):
            lines = {program.node: [f"{program.node}{number:03d}{part:03d}\n" for part in range(20)] for program in all_of_them}
            for program in all_of_them:
                program.send(f"many('log', 0, {lines[program.node]!r})")
            for program in all_of_them:
                assert program.receive() == {"is": 8}
            found = all_of_them[2].ask("get('log')").split()[-60:]
            for name, own in lines.items():
                assert [line for line in found if line.startswith(name)] == [line.strip() for line in own]


def test_who_closes_or_syncs_is_told_what_did_not_arrive(nodes: kit.Cluster) -> None:
    """Taildrive's 12097: what was written is not there, and close said that all is well."""
    with programs(nodes, "arrived") as (a, b, s):
        for name in ("closed", "synced"):
            a.ask(f"[opened({name!r}), at({name!r}, 0, 'before'), os.fsync(files[{name!r}])]")
            assert b.ask(f"get({name!r})") == "before"
            assert a.ask(f"os.stat({name!r}).st_size") == 6
        nodes.link_down("a")
        try:
            a.ask("at('synced', 0, 'behind')")
            assert a.error("[at('closed', 0, 'behind'), os.close(files.pop('closed'))]") in GONE
            assert s.ask("get('closed')") == "before"
            wait_for(lambda: kit.states(nodes, "a").get("s") == "down", 15.0, "down")
        finally:
            nodes.link_up("a")
        nodes.run("a", "qnet", "nodes", "--wait", "s")
        told = a.error("os.fsync(files['synced'])")
        assert told in {0, *GONE}
        assert told or s.ask("get('synced')") == "behind"


CHANGES = {"replaced": "replace({0!r}, 'theirs')", "removed": "os.unlink({0!r})", "cut": "put({0!r}, 'cut')"}


def test_what_was_written_behind_when_the_way_was_lost(nodes: kit.Cluster) -> None:
    """3, 202, and 81146 of an editor: a file that was changed on the server meanwhile is overwritten with old data, or comes back."""
    nodes.run("a", "sh", "-c", "mkdir /tmp/hard; qnet mount -o hard s:/tmp /tmp/hard")
    with programs(nodes, "soft") as (soft, b, s), programs(nodes, "hard", "/tmp/hard") as (hard, b_hard, s_hard):
        sides = (soft, b, s), (hard, b_hard, s_hard)
        for writer, reader, _ in sides:
            for name in CHANGES:
                writer.ask(f"[opened({name!r}), many({name!r}, 0, ['before'] * 3), os.fsync(files[{name!r}])]")
                assert reader.ask(f"get({name!r})") == "before"
                # The kernel knows of it, so that it writes behind.
                assert writer.ask(f"os.stat({name!r}).st_size") == 6
        nodes.link_down("a")
        for writer, _, _ in sides:
            writer.send(f"[at(name, 6 * number, 'mine%02d' % number) for name in {list(CHANGES)} for number in range(8)]")
        for _, _, server in sides:
            for name, change in CHANGES.items():
                server.ask(change.format(name))
        wait_for(lambda: kit.states(nodes, "a").get("s") == "down", 15.0, "down")
        nodes.link_up("a")
        nodes.run("a", "qnet", "nodes", "--wait", "s")
        for writer, reader, server in sides:
            written = "is" in writer.receive()
            synced = {name: writer.error(f"closed({name!r})") for name in CHANGES}
            assert set(synced.values()) <= {0, *GONE}
            # What has no name any more is not there, and nobody is told that it is.
            assert synced["replaced"]
            assert synced["removed"]
            for program in server, reader, writer:
                assert program.ask("get('replaced')") == "theirs"
                program.soon("sorted(os.listdir('.')) == ['cut', 'replaced'] and not os.path.exists('removed')")
                check_cut(program.ask("get('cut')"), whole=written and not synced["cut"])


def check_cut(content: str, whole: bool) -> None:
    """As at home: what was written to a file that somebody cut stands where it was written; all of it, if fsync said so."""
    parts = [content[place : place + 6] for place in range(0, len(content), 6)]
    expected = [f"mine{number:02d}" for number in range(8)]
    assert parts[0] in ("cut", "cut\0\0\0", "mine00"), content
    assert all(part in ("\0" * 6, good) for part, good in zip(parts[1:], expected[1:], strict=False)), content
    assert not whole or parts == expected, content


def test_the_way_back_is_asked_for_by_nobody(nodes: kit.Cluster) -> None:
    """3: who asks while the server is away waits, is told so, then at once; when it is back he is served, whether others ask or not."""
    with programs(nodes, "away") as (a, _, s):
        s.ask("put('file', 'before')")
        assert a.ask("get('file')") == "before"
        nodes.link_down("a")
        assert a.error("get('other')") == errno.EHOSTDOWN
        s.ask("put('file', 'after')")
        for _ in range(20):
            assert a.error("get('file')") == errno.EHOSTDOWN
        nodes.link_up("a")
        wait_for(lambda: a.error("os.listdir('.')") == 0, 15.0, "served again")
        assert a.ask("get('file')") == "after"
