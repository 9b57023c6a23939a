"""Builds a recipe's image and keeps it under ~/.cache/bpfleet/vm/<digest>/. Needs root.

An image is a directory: disk.img (ext4, the root file system), vmlinuz, initrd.img, packages.txt. It is written beside
its place and renamed into it when it is whole, so that what is there is complete. Downloaded packages are kept in
~/.cache/bpfleet/vm/packages/<release>/ for the next recipe.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfleet.errors import HostUnfit
from tools.vm.command import PATH, run
from tools.vm.recipe import KEYRING, Recipe

BUILD_SECONDS = 1200.0
# program -> the Debian package that has it
_NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


@dataclass(frozen=True)
class Image:
    """A built image."""

    directory: Path
    recipe: Recipe

    @property
    def disk(self) -> Path:
        """The root file system; never written to."""
        return self.directory / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"


def cache() -> Path:
    """Where images are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpfleet/vm"


def ensure_packages(say: Callable[[str], None]) -> None:
    """Install what this machine lacks for building and booting images. Raises HostUnfit without root."""
    if os.geteuid() != 0:
        raise HostUnfit("virtual machines need root (debootstrap, network namespaces)", remedy="Run this as root")
    missing = sorted({package for program, package in _NEEDED.items() if shutil.which(program, path=PATH) is None})
    if not missing:
        return
    say(f"installing Debian packages: {' '.join(missing)}")
    remedy = f"Install them yourself: apt-get install {' '.join(missing)}"
    run(["apt-get", "update", "-qq"], seconds=BUILD_SECONDS, remedy=remedy)
    run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        seconds=BUILD_SECONDS,
        remedy=remedy,
    )


def ensure_image(recipe: Recipe, say: Callable[[str], None]) -> Image:
    """The recipe's image, built if it is not in the cache."""
    image = Image(cache() / recipe.digest, recipe)
    if image.directory.is_dir():
        return image
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f"{recipe.digest}.lock"):
        if not image.directory.is_dir():
            say(f"building the image of Debian {recipe.release} (two minutes or more)")
            with tempfile.TemporaryDirectory(prefix=f"{recipe.digest}.new.", dir=cache()) as work:
                _build(recipe, Path(work))
            say(f"built {image.directory}")
    return image


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build of an image at a time; a second one waits and finds it done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, work: Path) -> None:
    root, out = work / "root", work / "image"
    packages = cache() / "packages" / recipe.release
    packages.mkdir(parents=True, exist_ok=True)
    out.mkdir()
    _write(root, recipe.early)
    # In namespaces of its own: what debootstrap mounts and starts is gone with it, killed or not.
    apart = ["nice", "-n", "3", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
    run(
        [
            *apart,
            "debootstrap",
            "--variant=minbase",
            f"--keyring={KEYRING}",
            f"--cache-dir={packages}",
            f"--include={','.join(recipe.packages)}",
            recipe.release,
            str(root),
            recipe.mirror,
        ],
        seconds=BUILD_SECONDS,
        remedy=f"See whether {recipe.mirror} answers, then run the same again",
    )
    _write(root, recipe.files)
    for name, target in recipe.links.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    for pattern in recipe.removed:
        for path in root.glob(pattern.lstrip("/")):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (out / "packages.txt").write_text(run(["chroot", str(root), "dpkg-query", "-W"]))
    for name, kept in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copyfile(found, out / kept)
    disk = out / "disk.img"
    with disk.open("wb") as file:
        file.truncate(recipe.disk_bytes)
    run(["nice", "mkfs.ext4", "-q", "-d", str(root), "-L", "root", str(disk)], seconds=BUILD_SECONDS)
    out.rename(cache() / recipe.digest)


def _write(root: Path, files: Mapping[str, str]) -> None:
    """Files by absolute path below a root; scripts are executable."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
