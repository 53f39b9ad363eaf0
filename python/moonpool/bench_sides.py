"""The two sides of ./moonpool bench: our module and Mooncake's, each in its own environment, each with a master and a storage process.

Both run the same worker program (bench_worker.py). A worker is driven over a Unix socket, one JSON line a request, and every request has a time
limit: a worker that does not answer in time is killed with its whole side, and the next use of that side starts it anew.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moonpool import packages
from moonpool.bench_options import MIB
from moonpool.commands import run, tail, within_all
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import CACHE, VENV, VENV_PYTHON
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor
from moonpool.provision import ensure_packages, uv_environment, uv_install

WORKER = Path(__file__).with_name("bench_worker.py")
BENCH_VENV = CACHE / "bench-venv"
BENCH_PYTHON = BENCH_VENV / "bin" / "python"
START_SECONDS = 30.0
PREPARE_SECONDS = 120.0
STOP_SECONDS = 3.0
TICKS = os.sysconf("SC_CLK_TCK")


class WorkerFailed(Exception):
    """A worker that answered with an error, died, or did not answer in time (`stalled`)."""

    def __init__(self, text: str, stalled: bool = False) -> None:
        super().__init__(text)
        self.stalled = stalled


def ensure_bench_tools() -> None:
    """Redis, iperf3 and the environment with the incumbent and matplotlib."""
    ensure_packages("benchmarks", packages.BENCH_PACKAGES)
    stamp = BENCH_VENV / "moonpool-bench.stamp"
    content = "\n".join(packages.BENCH_REQUIREMENTS)
    if BENCH_PYTHON.exists() and stamp.is_file() and stamp.read_text() == content:
        return
    with board.row("environment of the other side"):
        argv: list[str | Path] = [VENV / "bin" / "uv", "venv", "--clear", "--python", VENV_PYTHON, BENCH_VENV]
        run("make bench venv", argv, timeout=120, env=uv_environment())
        uv_install("python packages bench", list(packages.BENCH_REQUIREMENTS), python=BENCH_PYTHON)
        stamp.write_text(content)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, its ended threads included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class Worker:
    """One worker process and the connection to it. Owned by a Side."""

    def __init__(self, supervisor: Supervisor, name: str, python: Path, environment: Mapping[str, str], log: Path) -> None:
        self._supervisor = supervisor
        address = f"moonpool-bench-{uuid.uuid4().hex}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("\0" + address)
            listener.listen(1)
            listener.settimeout(START_SECONDS)
            self.component = supervisor.start(Component(name, [python, "-P", WORKER, address], log, environment))
            try:
                self._socket, _ = listener.accept()
                peer = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            except TimeoutError:
                raise WorkerFailed(f"{name} did not start within {START_SECONDS:.0f} s\n{tail(log)}") from None
        if peer[0] != self.component.pid:
            raise WorkerFailed(f"{name}: a stranger, process {peer[0]}, connected in its place")
        self._lines = self._socket.makefile("rb")

    @property
    def pid(self) -> int:
        return self.component.pid

    def ask(self, request: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """One request, answered within `limit` seconds; otherwise WorkerFailed."""
        limit = within_all(limit)
        self._socket.settimeout(limit)
        try:
            self._socket.sendall(json.dumps({"do": request, **arguments}).encode() + b"\n")
            line = self._lines.readline()
        except TimeoutError:
            raise WorkerFailed(f"no answer within {limit:.0f} s, killed", stalled=True) from None
        except OSError as error:
            raise WorkerFailed(f"{self.component.name} {error}; its log ends\n{tail(self.component.log, 5)}") from None
        if not line:
            raise WorkerFailed(f"{self.component.name} ended; its log ends\n{tail(self.component.log, 5)}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(str(answer["error"]))
        return dict(answer["ok"])

    def close(self) -> None:
        """End of input: the worker closes its store and goes; after STOP_SECONDS it is killed."""
        self._lines.close()
        self._socket.close()
        deadline = time.monotonic() + STOP_SECONDS
        while self.component.running and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        self._lines.close()
        self._socket.close()
        self.component.signal_group(signal.SIGKILL)
        self._supervisor.forget(self.component)


@dataclass
class Side:
    """A pool of one implementation. `start` is idempotent; after `kill` the next start makes all of it anew."""

    name: str
    python: Path
    supervisor: Supervisor
    folder: Path
    segment_bytes: int
    environment: Mapping[str, str] = field(default_factory=dict)
    master: Component | None = None
    address: str = ""
    storage: Worker | None = None
    clients: list[Worker] = field(default_factory=list)
    starts: int = 0

    @property
    def programs(self) -> Path:
        return self.python.parent

    def start(self) -> None:
        if self.storage is not None:
            return
        self.starts += 1
        rpc, admin = pick_free(2)
        self.address = f"127.0.0.1:{rpc}"
        argv: list[str | Path] = [self.programs / "mooncake_master", f"--port={rpc}", "--rpc_address=127.0.0.1", f"--metrics_port={admin}"]
        argv.append("--metrics_host=127.0.0.1")
        log = self.folder / f"{self.name}-master.log"
        self.master = self.supervisor.start(Component(f"{self.name} master", argv, log, self.environment))
        _wait(lambda: accepts("127.0.0.1", rpc), self.master)
        self.storage = self._worker("storage")
        self.storage.ask("setup", START_SECONDS, master=self.address, segment_bytes=self.segment_bytes, buffer_bytes=16 * MIB)
        self._touch()

    def _touch(self) -> None:
        """Fill the segment once, so that no measured put meets memory that was never touched."""
        client = self.open_client()
        size, threads = 16 * MIB, 1
        client.ask("prepare", PREPARE_SECONDS, threads=threads, batch=1, object_bytes=size, pieces=1, prefix="touch")
        client.ask("run", PREPARE_SECONDS, op="put", seconds=PREPARE_SECONDS / 2, most_bytes=int(self.segment_bytes * 0.85))
        client.ask("clear", PREPARE_SECONDS)
        self.close_client(client)

    def open_client(self) -> Worker:
        self.start()
        worker = self._worker("client")
        self.clients.append(worker)
        worker.ask("setup", START_SECONDS, master=self.address, segment_bytes=0, buffer_bytes=64 * MIB)
        return worker

    def close_client(self, client: Worker) -> None:
        self.clients.remove(client)
        client.close()

    def _worker(self, role: str) -> Worker:
        return Worker(self.supervisor, f"{self.name} {role}", self.python, self.environment, self.folder / f"{self.name}-{role}.log")

    def server_cpu(self) -> tuple[float, float]:
        """Seconds of the storage process and of the master so far."""
        assert self.storage is not None and self.master is not None
        return cpu_seconds(self.storage.pid), cpu_seconds(self.master.pid)

    def kill(self) -> None:
        for client in self.clients:
            client.kill()
        self.clients.clear()
        if self.storage is not None:
            self.storage.kill()
        if self.master is not None:
            self.supervisor.forget(self.master)
        self.storage = self.master = None


def _wait(ready: Callable[[], bool], component: Component) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if not component.running:
            raise component.died()
        if time.monotonic() > deadline:
            raise UserError(f"{component.name} is not ready after {START_SECONDS:.0f} s", f"see {component.log}")
        time.sleep(0.02)
