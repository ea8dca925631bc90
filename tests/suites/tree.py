"""Makes a directory tree with what copying programs should keep: links, holes, ACLs, attributes, odd names, times, modes.

python -P tree.py DIRECTORY
"""

from __future__ import annotations

import os
import random
import subprocess
import sys


def main(top: str) -> None:
    rng = random.Random(7)
    os.makedirs(top)
    os.chdir(top)
    files = []
    for number in range(12):
        directory = os.path.join(*(f"d{(number + depth) % 4}" for depth in range(1 + number % 4)))
        os.makedirs(directory, exist_ok=True)
        for name in (f"f{number}", f"with space {number}", f"näme{number}", f"line\nbreak{number}", f"{number}" * 100):
            path = os.path.join(directory, name)
            with open(path, "wb") as file:
                file.write(rng.randbytes(rng.choice((0, 1, 4096, 5000, 70_000))))
            os.chmod(path, rng.choice((0o600, 0o644, 0o755, 0o444, 0o4755, 0o2711)))
            files.append(path)
    for number, path in enumerate(rng.sample(files, 20)):
        os.link(path, f"hard{number}")
        os.symlink(path, f"soft{number}")
    os.symlink("nowhere/at/all", "dangling")
    with open("holes", "wb") as sparse:
        for place in range(5):
            sparse.seek(place * 1_000_000)
            sparse.write(b"x" * 5000)
        sparse.truncate(6_000_000)
    for number, path in enumerate(rng.sample(files, 15)):
        os.setxattr(path, f"user.name{number}", rng.randbytes(number * 20))
        subprocess.run(["setfacl", "-m", f"u:{1000 + number}:r-x,g:{number}:rw-", path], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", "d1"], check=True)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    os.mkdir("group")
    os.chmod("group", 0o2775)
    for number, path in enumerate(rng.sample(files, 20)):
        os.utime(path, ns=(10**18 + number, 10**18 + 123_456_789 * number))
        os.chown(path, number, number * 2, follow_symlinks=False)


if __name__ == "__main__":
    main(sys.argv[1])
