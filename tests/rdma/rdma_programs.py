"""What the RDMA scenarios share: NICs and their counters and cables, owners and users of memory, and traffic that goes on meanwhile.

Owners and users are on the two ends of the same cables, so that their bytes really go over them. The environment says which NICs are
whose (soft_roce_vm.py); on a host with a device of its own, all are everybody's, and no cable is taken down.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from compat_programs import MIB, Master, Program, wait_until

CLASS = Path("/sys/class/infiniband")
USER_NICS = os.environ.get("MOONPOOL_TEST_RDMA_USER", "")
OWNER_NICS = os.environ.get("MOONPOOL_TEST_RDMA_OWNER", "")
MAY_CUT = os.environ.get("MOONPOOL_TEST_RDMA_CUT") == "1"
# Emulated processors on a busy machine are slow. A call that has nothing to wait for ends long before this.
GENEROUS_SECONDS = 120
PATIENT = {
    "MOONPOOL_OPERATION_TIMEOUT_MS": "60000",
    "MOONPOOL_TRANSFER_TIMEOUT_MS": "60000",
    "MOONPOOL_SETUP_TIMEOUT_MS": "60000",
    # A software NIC waits for a processor before it answers: 0.27 s, seven times, instead of 67 ms.
    "MOONPOOL_RDMA_ACK_TIMEOUT": "16",
    "MOONPOOL_RDMA_RETRIES": "7",
}
SEGMENT = 64 * MIB
LOCAL_BUFFER = 16 * MIB


def devices() -> list[str]:
    return sorted(path.name for path in CLASS.iterdir()) if CLASS.is_dir() else []


def names(nics: str) -> list[str]:
    """The NICs that a device_name stands for."""
    return nics.split(",") if nics else devices()


# ------------------------------------------------------------------------------------------------------------------------------- NICs


def _counter(nic: str, *candidates: str) -> int:
    for candidate in candidates:
        file = CLASS / nic / "ports" / "1" / candidate
        if file.is_file():
            return int(file.read_text())
    raise AssertionError(f"{nic} has none of the counters {candidates}")


def sent(nic: str) -> int:
    """Packets that this NIC has sent; answers to reads of its peer and acknowledgements are among them."""
    return _counter(nic, "hw_counters/sent_pkts", "counters/port_xmit_packets")


def received(nic: str) -> int:
    return _counter(nic, "hw_counters/rcvd_pkts", "counters/port_rcv_packets")


def interface(nic: str) -> str:
    return (CLASS / nic / "ports" / "1" / "gid_attrs" / "ndevs" / "0").read_text().strip()


def is_up(nic: str) -> bool:
    return "ACTIVE" in (CLASS / nic / "ports" / "1" / "state").read_text()


def set_link(nic: str, state: str) -> None:
    subprocess.run(["ip", "link", "set", interface(nic), state], check=True, timeout=GENEROUS_SECONDS)


@contextlib.contextmanager
def cable_down(*nics: str) -> Iterator[None]:
    """The cables of these NICs carry nothing; afterwards they do again."""
    interfaces = [interface(nic) for nic in nics]
    try:
        for nic in nics:
            set_link(nic, "down")
            wait_until(lambda nic=nic: not is_up(nic), f"{nic} is down", GENEROUS_SECONDS)
        yield
    finally:
        for nic, name in zip(nics, interfaces, strict=True):
            subprocess.run(["ip", "link", "set", name, "up"], check=True, timeout=GENEROUS_SECONDS)
            wait_until(lambda nic=nic: is_up(nic), f"{nic} is up again", GENEROUS_SECONDS)


# ------------------------------------------------------------------------------------------------------------------------ processes

OWNER = """
import signal, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
code = store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 0, "rdma", sys.argv[3], sys.argv[1])
print("setup", code, store.get_hostname() if code == 0 else "", flush=True)
if code == 0:
    signal.sigwait([signal.SIGTERM])
    store.close()
"""

# Puts objects of its own for ever, each of which it reads back.
USER = """
import os, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "rdma", sys.argv[2], sys.argv[1]) == 0
value = os.urandom(int(sys.argv[3]))
print("ready", flush=True)
number = 0
while True:
    key = f"{os.getpid()} {number}"
    assert store.put(key, value) == 0
    assert store.get(key) == value
    assert store.remove(key, force=True) == 0
    number += 1
    print(key, flush=True)
"""


class Owner(Program):
    """A process that lends memory to the pool, over its ends of the cables."""

    def __init__(self, folder: Path, master: Master, segment: int = SEGMENT, nics: str = OWNER_NICS, **env: str) -> None:
        log = folder / f"owner-{len(list(folder.iterdir()))}.log"
        super().__init__([sys.executable, "-c", OWNER, master.address, str(segment), nics], log, {"MOONPOOL_PATHS": "rdma,tcp", **PATIENT, **env})
        self.ready(lambda: "setup" in log.read_text() and log.read_text().endswith("\n"))
        line = next(line for line in log.read_text().splitlines() if line.startswith("setup"))
        assert line.split()[1] == "0", log.read_text()
        self.hostname = line.split()[2]


class User(Program):
    """A process that puts and gets without end."""

    def __init__(self, folder: Path, master: Master, size: int, **env: str) -> None:
        log = folder / f"user-{len(list(folder.iterdir()))}.log"
        super().__init__([sys.executable, "-c", USER, master.address, USER_NICS, str(size)], log, {"MOONPOOL_PATHS": "rdma", **PATIENT, **env})
        self.ready(lambda: "ready\n" in log.read_text())


def open_store(master: Master, nics: str = USER_NICS, segment: int = 0, local_buffer: int = LOCAL_BUFFER):
    """A store of this process, set up as the environment says."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", segment, local_buffer, "rdma", nics, master.address) == 0
    return store


def told_paths(master: Master, store) -> dict[str, dict[str, object]]:
    """What the master's /status says of the data that this store has moved, by path; over all peers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{master.admin_port}/status", timeout=GENEROUS_SECONDS) as answer:
        nodes = json.load(answer)["nodes"]
    paths = [path for node in nodes if node["name"] == store.get_hostname() for path in node["paths"]]
    return {str(path["path"]): path for path in paths}


# -------------------------------------------------------------------------------------------------------------------------- traffic


class Traffic:
    """Puts and gets of one size, without a pause, on a thread of its own, until stopped. What fails or comes back wrong is kept."""

    def __init__(self, store, size: int) -> None:
        self._store = store
        self._value = os.urandom(size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self.done = 0
        self.wrong: list[str] = []

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set() and not self.wrong:
            key = f"traffic {number}"
            number += 1
            if (code := self._store.put(key, self._value)) != 0:
                self.wrong.append(f"put {key}: {code}")
            elif (found := self._store.get(key)) != self._value:
                self.wrong.append(f"get {key}: {len(found)} bytes of {len(self._value)}" + (", other ones" if found else ""))
            elif (code := self._store.remove(key, force=True)) != 0:
                self.wrong.append(f"remove {key}: {code}")
            self.done += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(GENEROUS_SECONDS)
        assert not self._thread.is_alive(), "a put or get does not end"

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Let it flow until this holds."""
        wait_until(lambda: self.wrong or condition(), what, GENEROUS_SECONDS)
        assert not self.wrong, self.wrong

    def goes_on(self, objects: int = 3) -> None:
        """So many more objects come through."""
        start = self.done
        self.until(lambda: self.done >= start + objects, f"{objects} more objects went through")


class Errors:
    """What is written to standard error, by line."""

    def __init__(self, capfd) -> None:
        self._capfd = capfd

    def lines(self, *words: str) -> list[str]:
        """The lines since the last call that have all of these words, in whatever case."""
        return [line for line in self._capfd.readouterr().err.splitlines() if all(word.lower() in line.lower() for word in words)]


def seconds_of(call: Callable[[], object]) -> tuple[object, float]:
    start = time.monotonic()
    return call(), time.monotonic() - start
