"""Two network namespaces joined by a veth pair: two hosts on one machine. Needs root.

`inside` moves the calling thread into a namespace; sockets and processes that it makes there belong to that host.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    namespace: str
    address: str


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other, and nothing else."""
    number = os.getpid() % 65536
    hosts = (Host(f"moonpool-{number}-a", "10.77.0.1"), Host(f"moonpool-{number}-b", "10.77.0.2"))
    links = (f"mpa{number}", f"mpb{number}")
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for host, link in zip(hosts, links, strict=True):
            _ip("link", "set", link, "netns", host.namespace)
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", link)
            _ip("-n", host.namespace, "link", "set", link, "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False, capture_output=True, timeout=20)


def _enter(descriptor: int, name: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {name}")


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Be on this host until the block ends."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(f"/var/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        _enter(away, host.namespace)
        yield
    finally:
        _enter(home, "home")
        os.close(away)
        os.close(home)


def listeners(host: Host) -> list[tuple[str, int, int]]:
    """(address, port, pid) of every TCP listener on this host."""
    listing = subprocess.run(["ip", "netns", "exec", host.namespace, "ss", "-Hltnp"], check=True, capture_output=True, text=True, timeout=20).stdout
    found = []
    for line in listing.splitlines():
        fields = line.split()
        address, _, port = fields[3].rpartition(":")
        pids = [int(word.split("=")[1]) for word in fields[-1].split(",") if word.startswith("pid=")]
        found += [(address, int(port), pid) for pid in pids]
    return found
