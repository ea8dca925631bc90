"""Which names lead to file systems that may not answer."""

from __future__ import annotations

import os

from resmgr.hostfs.mountpoints import MountPoints, names_at_risk

MOUNTS = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:5 / /proc rw - proc proc rw
31 22 0:40 / /home/bob/far\040away\134 rw shared:2 master:3 - nfs4 server:/x rw
32 22 0:41 / /run/user/1000/doc rw - fuse.portal portal rw
33 22 0:42 / /mnt/pool rw - fuseblk /dev/sdb rw
34 22 0:43 / / rw - fuse.sshfs x rw
35 22 0:44 / /boot/efi rw shared:9 - autofs systemd-1 rw
36 cut short
37 22 0:45 / /tmp/- rw - - - -
"""


def test_names_at_risk() -> None:
    assert names_at_risk(MOUNTS) == {
        b"proc": os.makedev(0, 5),
        b"far away\\": os.makedev(0, 40),
        b"doc": os.makedev(0, 41),
        b"pool": os.makedev(0, 42),
        b"efi": os.makedev(0, 44),
    }
    assert names_at_risk(b"") == {}


def test_the_list_of_this_machine_is_read_once_and_closed_twice() -> None:
    points = MountPoints()
    names = points.look()
    assert points.look() is names
    points.close()
    points.close()
    assert points.look() is names
