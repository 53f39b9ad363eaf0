"""What one call of the store costs each process: allocations, locks, sends, receives, waits, context switches and CPU time, counted.

A master, a node that lends memory and a client run with bench/count_calls.cpp preloaded; each operation is repeated and the counters' growth is
divided by the calls. Prints a Markdown table. Counts hardly depend on the machine's load, except receives and waits, of which spinning makes many.

    cmake --build build/release --target count_calls
    python bench/operation_costs.py build/release/bench/libcount_calls.so [--calls 400]

Run it with the interpreter in whose environment the wheel is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent
NAMES = ("allocations", "locks", "sends", "receives", "waits")
BATCH = 32
START_SECONDS = 20.0

NODE = """
import sys, time
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 1 << 30, 1 << 20, "tcp", "", sys.argv[1]) == 0
print("up", flush=True)
sys.stdin.read()
store.close()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Counted:
    """One process's counters and what /proc knows of it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.file = pid, folder / str(pid)

    def read(self) -> dict[str, float]:
        values = memoryview(self.file.read_bytes()).cast("Q")
        counted: dict[str, float] = dict(zip(NAMES, values, strict=True))
        switches = 0
        for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
            switches += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        counted["switches"] = switches
        counted["cpu_us"] = (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")
        return counted


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"the master does not listen on port {port} after {START_SECONDS:.0f} s") from None
            time.sleep(0.02)


def client(master: str, pids: list[int], folder: Path, calls: int) -> None:
    """In a process of its own, with the counters loaded."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    if store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 1 << 20, "tcp", "", master) != 0:
        raise SystemExit("setup failed")
    processes = {"client": Counted(os.getpid(), folder), "master": Counted(pids[0], folder), "node": Counted(pids[1], folder)}
    fill_once(store)
    until_idle(processes["node"])
    for size, number in ((4 << 10, calls), (1 << 20, max(8, calls // 40))):
        measure(store, processes, size, min(number, (700 << 20) // (size * BATCH)))
    store.close()


def fill_once(store: object) -> None:
    """Every page of the node is touched then, and mapped by the client: a pool that has been in use."""
    memory = mmap.mmap(-1, 16 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    store.register_buffer(address, len(memory))  # type: ignore[attr-defined]
    names = [f"fill-{number}" for number in range(60)]
    for name in names:
        store.put_from(name, address, len(memory))  # type: ignore[attr-defined]
    store.batch_remove(names, True)  # type: ignore[attr-defined]


def until_idle(process: Counted) -> None:
    """A node touches its memory ahead in the background; that is no call's cost."""
    deadline = time.monotonic() + START_SECONDS
    before = -1.0
    while time.monotonic() < deadline and (now := process.read()["cpu_us"]) != before:
        before = now
        time.sleep(0.3)


def measure(store: object, processes: dict[str, Counted], size: int, calls: int) -> None:
    memory = mmap.mmap(-1, BATCH * size)
    memory[:] = os.urandom(BATCH * size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    store.register_buffer(address, BATCH * size)  # type: ignore[attr-defined]
    pointers, sizes = [address + i * size for i in range(BATCH)], [size] * BATCH
    keys = [[f"model@tp_rank:0@pp_rank:0@group:0@{size}-{call:08x}-{i:08x}" for i in range(BATCH)] for call in range(calls)]
    warm = [f"warm-{size}-{i}" for i in range(BATCH)]
    store.batch_put_from(warm, pointers, sizes)  # type: ignore[attr-defined]
    operations: dict[str, Callable[[list[str]], list[int]]] = {
        "put": lambda names: store.batch_put_from(names, pointers, sizes),  # type: ignore[attr-defined]
        "exist": lambda names: store.batch_is_exist(names),  # type: ignore[attr-defined]
        "get": lambda names: store.batch_get_into(names, pointers, sizes),  # type: ignore[attr-defined]
    }
    for name, call in operations.items():
        before = {process: counted.read() for process, counted in processes.items()}
        for names in keys:
            if min(call(names)) < 0:
                raise SystemExit(f"{name} failed")
        for process, counted in processes.items():
            after = counted.read()
            row = [f"{(after[column] - before[process][column]) / calls:.1f}" for column in (*NAMES, "switches", "cpu_us")]
            print("| " + " | ".join((os.environ["COUNT_CALLS_PATH"], f"{name} {BATCH} x {size >> 10} KiB", process, *row)) + " |", flush=True)
    store.batch_remove([key for names in keys for key in names] + warm, True)  # type: ignore[attr-defined]


def run(library: Path, path: str, calls: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LD_PRELOAD": str(library.resolve()), "COUNT_CALLS_FOLDER": folder, "COUNT_CALLS_PATH": path or "best"}
        environment["MOONPOOL_PATHS"] = path
        port = free_port()
        started: list[subprocess.Popen[bytes]] = []
        try:
            program = BIN / "mooncake_master"
            argv = [str(program), "--rpc_port", str(port), "--metrics_port", "0", "--rpc_address", "127.0.0.1"]
            started.append(subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for(port)
            master = f"127.0.0.1:{port}"
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([sys.executable, "-c", NODE, master], env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL))
            if started[1].stdout is None or started[1].stdout.readline() != b"up\n":
                raise SystemExit("the node did not start")
            pids = [str(process.pid) for process in started]
            argv = [sys.executable, __file__, str(library), "--calls", str(calls), "--as-client", master, *pids]
            subprocess.run(argv, env=environment, check=True, timeout=300)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("library", type=Path)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--as-client", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_client:
        master, *pids = options.as_client
        client(master, [int(pid) for pid in pids], Path(os.environ["COUNT_CALLS_FOLDER"]), options.calls)
        return
    print("| path | call | process | " + " | ".join((*NAMES, "context switches", "CPU us")) + " |")
    print("|" + " --- |" * (len(NAMES) + 5), flush=True)
    for path in ("", "tcp"):
        run(options.library, path, options.calls)


if __name__ == "__main__":
    main()
