"""Real programs of the installed wheel on free ports, ended by process id, and stores set up on them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
# A machine of emulated processors says how much slower it is (soft_roce_vm.py).
START_SECONDS = 15 * int(os.environ.get("MOONPOOL_TEST_SLOWNESS", "1"))
MIB = 1 << 20


# Below the kernel's ephemeral range, so that no outgoing connection takes a port between its choice and its use, and below the tooling's.
PORTS = range(10000, 20000)


def free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 1000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"1000 of the ports from {PORTS.start} to {PORTS.stop} are all taken")


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False


def accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """One process with its output in a file."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(env or {})})

    def ready(self, condition: Callable[[], object]) -> Program:
        def check() -> object:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log.read_text(errors='replace')[-3000:]}"
            return condition()

        try:
            wait_until(check, f"{self.process.args} is ready; its output: {self.log}")
        except BaseException:
            self.kill()
            raise
        return self

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)


class Master(Program):
    def __init__(self, folder: Path, *flags: str, env: dict[str, str] | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        self.admin_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        argv = [str(BIN / "mooncake_master"), "--port", str(self.port), "--rpc_address=127.0.0.1", f"-metrics_port={self.admin_port}"]
        super().__init__([*argv, "--metrics_host", "127.0.0.1", *flags], folder / f"master-{self.port}.log", env)
        self.ready(lambda: http_ok(f"http://127.0.0.1:{self.admin_port}/health"))


NODE = """
import signal, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 0, "tcp", "", sys.argv[1]) == 0
print(store.get_hostname(), flush=True)
signal.sigwait([signal.SIGTERM])
store.close()
"""


class Node(Program):
    """A process that lends `segment` bytes to the pool, so that data really crosses between processes."""

    def __init__(self, folder: Path, address: str, segment: int, env: dict[str, str] | None = None) -> None:
        super().__init__([sys.executable, "-c", NODE, address, str(segment)], folder / f"node-{len(list(folder.iterdir()))}.log", env)
        self.ready(lambda: self.log.read_text().endswith("\n"))
        self.hostname = self.log.read_text().split()[-1]


def set_up(address: str, segment: int = 64 * MIB, metadata: str = "P2PHANDSHAKE", **extra: object):
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", metadata, segment, 16 * MIB, "tcp", "", address, **extra) == 0
    return store


def run_python(code: str, timeout: float = 60, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, check=False
    )


def longest_pause(call: Callable[[], object], seconds: float) -> float:
    """How long another thread could not run at once while the call was made, which has to return within `seconds`."""
    thread = threading.Thread(target=call)
    start = time.monotonic()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        before = time.monotonic()
        time.sleep(0.005)
        longest = max(longest, time.monotonic() - before)
    assert time.monotonic() - start < seconds, "past its deadline"
    return longest


@contextlib.contextmanager
def stopped(program: Program) -> Iterator[None]:
    program.send(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send(signal.SIGCONT)
