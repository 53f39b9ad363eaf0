"""The kernel of the guest in which real verbs run (soft_roce_vm.py): Debian's own, with an initramfs of a few modules.

The kernel package is downloaded and unpacked below .cache, never installed. What is made of it is kept, under a name that says of what:
the kernel's version, the modules and the init script.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moonpool import packages
from moonpool.commands import output, run, run_status
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import CACHE
from moonpool.provision import ensure_packages, refresh_package_lists

FOLDER = CACHE / "guest"
INIT = Path(__file__).with_name("guest_init.sh")
BUSYBOX = Path("/bin/busybox")
XZ_MAGIC = b"\xfd7zXZ\x00"
METAPACKAGE = "linux-image-amd64"
DOWNLOAD_SECONDS = 600

# What the guest needs, in this order; what these depend on is found and loaded before them.
MODULES = (
    "virtio_pci", "9p", "9pnet_virtio", "overlay", "veth", "virtio_net", "crc32c_generic", "crc32_generic", "rdma_rxe", "ib_uverbs", "rdma_cm", "rdma_ucm"
)  # fmt: skip
# Soft-iWARP is not in every kernel of Debian's.
OPTIONAL_MODULES = ("siw",)
# The parts of the package in which they lie.
UNPACKED = ("boot/vmlinuz*", "lib/modules/*/modules.*") + tuple(
    f"lib/modules/*/kernel/{folder}/*"
    for folder in ("arch", "crypto", "lib", "net", "fs/9p", "fs/configfs", "fs/fscache", "fs/netfs", "fs/overlayfs", "drivers/infiniband", "drivers/net", "drivers/virtio")
)


@dataclass(frozen=True)
class Kernel:
    """What QEMU boots."""

    image: Path
    initramfs: Path


def _depends() -> str | None:
    """The package with the newest kernel: what the metapackage depends on."""
    listing = output(["apt-cache", "depends", METAPACKAGE]) or ""
    found = re.search(r"Depends: (linux-image-\S+)", listing)
    return found.group(1) if found else None


def _kernel_package() -> str:
    name = _depends()
    if name is None:
        refresh_package_lists()
        name = _depends()
    if name is None:
        raise UserError(f"no Debian kernel to run in the guest: apt-cache knows no {METAPACKAGE}", "check that this machine reaches a Debian mirror")
    return name


def _unpacked(package: str) -> Path:
    """The folder with the parts of the kernel package that we need."""
    folder = FOLDER / package
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with board.row(f"download {package} for the guest"):
        if run_status("download the kernel", ["apt-get", "download", "-q", package], timeout=DOWNLOAD_SECONDS, cwd=folder) != 0:
            refresh_package_lists()
            run("download the kernel", ["apt-get", "download", "-q", package], timeout=DOWNLOAD_SECONDS, cwd=folder)
        archive = next(folder.glob("*.deb"))
        patterns = " ".join(f"'./{pattern}'" for pattern in UNPACKED)
        unpack = f"dpkg-deb --fsys-tarfile '{archive}' | tar -x --wildcards -C '{folder}' {patterns}"
        run("unpack the kernel", ["bash", "-c", f"set -o pipefail; {unpack}"], timeout=300)
        archive.unlink()
        (folder / "complete").touch()
    return folder


def _module_files(base: Path, version: str) -> list[Path]:
    """The modules' files, each after what it depends on."""
    run("depmod", ["depmod", "-b", base, version], timeout=60)
    files: list[Path] = []
    for name in (*MODULES, *OPTIONAL_MODULES):
        listing = output(["modprobe", "-d", str(base), "-S", version, "--show-depends", "--ignore-install", name])
        if listing is None:
            if name in OPTIONAL_MODULES:
                continue
            raise UserError(f"kernel {version} has no module {name}", f"the guest needs it; the kernel's files are in {base}")
        files += [Path(line.split()[1]) for line in listing.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(files))


def _plain(file: Path) -> bytes:
    """A module's bytes; newer kernels' are compressed."""
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def _make_initramfs(files: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        tree = Path(name)
        for folder in ("bin", "modules"):
            (tree / folder).mkdir()
        shutil.copy(BUSYBOX, tree / "bin" / "busybox")
        shutil.copy(INIT, tree / "init")
        (tree / "init").chmod(0o755)
        names = [file.name.removesuffix(".xz") for file in files]
        for file, plain_name in zip(files, names, strict=True):
            (tree / "modules" / plain_name).write_bytes(_plain(file))
        (tree / "modules" / "order").write_text("\n".join(names) + "\n")
        part = target.with_suffix(f".{os.getpid()}")
        run("make the initramfs", ["bash", "-c", f"set -o pipefail; find . | cpio -o -H newc -R 0:0 | gzip -1 > '{part}'"], timeout=120, cwd=tree)
        part.rename(target)


def _uncompressed(image: Path) -> Path:
    """The kernel as an ELF file, which QEMU starts by its PVH entry: unpacking it outside takes a second, in the guest several."""
    target = image.with_name(image.name.replace("vmlinuz", "vmlinux"))
    if not target.is_file():
        packed = image.read_bytes()
        start = packed.find(XZ_MAGIC)
        if start < 0:
            return image
        part = target.with_suffix(f".{os.getpid()}")
        part.write_bytes(lzma.LZMADecompressor().decompress(packed[start:]))
        part.rename(target)
    return target


def ensure_kernel() -> Kernel:
    """Kernel and initramfs, made when they are not there yet."""
    if platform.machine() != "x86_64":
        raise UserError(f"the guest for RDMA tests is made of Debian's amd64 kernel; this machine is {platform.machine()}")
    ensure_packages("RDMA tests", packages.RDMA_PACKAGES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    base = _unpacked(_kernel_package())
    image = next((base / "boot").glob("vmlinuz-*"))
    version = image.name.removeprefix("vmlinuz-")
    made_of = hashlib.sha256("\n".join((version, *MODULES, *OPTIONAL_MODULES)).encode() + INIT.read_bytes()).hexdigest()[:16]
    initramfs = FOLDER / f"initramfs-{version}-{made_of}.gz"
    if not initramfs.is_file():
        with board.row("make the guest's initramfs"):
            _make_initramfs(_module_files(base, version), initramfs)
    return Kernel(_uncompressed(image), initramfs)
