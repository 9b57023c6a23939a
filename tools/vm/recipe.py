"""What an image is, as data. Its digest names the cached image: a change here makes a new one.

An image is a minimal Debian of one release with sshd, Python and libbpf as a user's host has them, and its kernel. What
differs from host to host comes at boot, as a tar archive on the second disk (see machine.py): host name, host keys,
authorized keys, address.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Dict, Tuple

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DISK_BYTES = 2 << 30  # sparse: it takes what is in it
SEED = "/usr/local/sbin/vm-seed"

_PACKAGES = (
    "systemd-sysv",
    "openssh-server",
    "python3-minimal",
    "libpython3-stdlib",
    "libbpf1",
    "iproute2",
    "iputils-ping",
    "kmod",
    "udev",
    "linux-image-cloud-amd64",
)

# What the packages find when they are installed.
_EARLY = {
    # Nothing has to be on the disk before the end: what is not whole is thrown away. And these files are kept.
    "/etc/dpkg/dpkg.cfg.d/vm": "force-unsafe-io\nforce-confold\npath-exclude=/usr/share/doc/*\n",
    # The whole of initramfs-tools' guesses is 30 MB to unpack without KVM; the disks and the network need these.
    "/etc/initramfs-tools/conf.d/vm": "MODULES=list\nCOMPRESS=gzip\n",
    "/etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\ncrc32c_generic\next4\n",
}

_FILES = {
    # Nothing has happened to /usr since the build: no ldconfig, no hwdb, no catalog to make again at boot.
    "/etc/.updated": "",
    "/var/.updated": "",
    # A machine without KVM on a busy computer is late with everything.
    "/etc/systemd/system.conf.d/vm.conf": "[Manager]\nDefaultTimeoutStartSec=600\nDefaultDeviceTimeoutSec=600\n",
    "/etc/fstab": "/dev/vda / ext4 rw 0 0\n",
    SEED: """#!/bin/sh -e
# Unpack what makes this machine different from the others, and take the address that came with it.
tar -C / -xf /dev/vdb
. /etc/vm-seed
hostname -F /etc/hostname
ip link set lo up
ip address add "$ADDRESS" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
""",
    "/etc/systemd/system/vm-seed.service": f"""[Unit]
Description=Host name, keys and address of this machine
After=local-fs.target
Before=network.target ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SEED}

[Install]
WantedBy=multi-user.target
""",
}

_LINKS = {
    "/etc/systemd/system/multi-user.target.wants/vm-seed.service": "/etc/systemd/system/vm-seed.service",
    "/etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
    # Nobody waits for these, and they take seconds each without KVM.
    **{
        f"/etc/systemd/system/{unit}": "/dev/null"
        for unit in (
            "apt-daily.timer",
            "apt-daily-upgrade.timer",
            "dpkg-db-backup.timer",
            "e2scrub_all.timer",
            "e2scrub_reap.service",
            "fstrim.timer",
            "getty@tty1.service",
            "serial-getty@ttyS0.service",
            "systemd-logind.service",
            "systemd-random-seed.service",
        )
    },
}

# Never in an image: keys come with the seed, the rest is space.
_REMOVED = ("/etc/ssh/ssh_host_*", "/var/cache/apt/archives/*.deb", "/var/lib/apt/lists/*", "/usr/share/doc/*")


@dataclass(frozen=True)
class Recipe:
    """One image. `release` is the Debian release, `kernel` the series that it brings, for people and for tests."""

    release: str
    kernel: Tuple[int, int]
    python: Tuple[int, int]
    packages: Tuple[str, ...]
    early: Dict[str, str]
    files: Dict[str, str]
    links: Dict[str, str]
    removed: Tuple[str, ...]
    mirror: str = MIRROR
    disk_bytes: int = DISK_BYTES

    @property
    def digest(self) -> str:
        """Sixteen hex digits over everything that is in the recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


RECIPES = {
    recipe.release: recipe
    for recipe in (
        Recipe("bookworm", (6, 1), (3, 11), _PACKAGES, _EARLY, _FILES, _LINKS, _REMOVED),
        Recipe("trixie", (6, 12), (3, 13), _PACKAGES, _EARLY, _FILES, _LINKS, _REMOVED),
    )
}
