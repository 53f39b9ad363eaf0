"""A soak: millions of operations against a master and a node of their own, and no process may grow.

Every round puts, looks up, gets and removes a batch of small objects, replaces some, misses some, and now and then sets up and closes another
store. Resident memory of client, node and master is read after a warm-up of a tenth of the work and at the end.

    python bench/soak.py [--operations 10000000] [--allow-mib 32] [--threads 2]

Run it with the interpreter in whose environment the wheel is installed. Ends with 1 when a process has grown by more than allowed.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mooncake.store import MooncakeDistributedStore

BIN = Path(sys.executable).parent
MIB = 1 << 20
BATCH = 64
OPERATIONS_PER_ROUND = 8 * BATCH
CYCLES = 20  # of setup and close of a further store, over the whole run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has gone")


def set_up(address: str) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    end = time.monotonic() + 20
    while store.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", address) != 0:
        if time.monotonic() > end:
            raise SystemExit(f"no store could be set up at {address}")
    return store


def one_round(store: MooncakeDistributedStore, name: str, value: bytes) -> None:
    keys = [f"{name}-{i}" for i in range(BATCH)]
    assert store.put_batch(keys, [value] * BATCH) == 0
    assert store.batch_is_exist(keys) == [1] * BATCH
    assert store.get_batch(keys) == [value] * BATCH
    assert store.upsert_batch(keys, [value[1:]] * BATCH) == 0
    assert store.get_batch([f"{name}-none-{i}" for i in range(BATCH)]) == [b""] * BATCH
    assert all(bytes(handle) == value[1:] for handle in store.batch_get_buffer(keys))
    assert store.batch_remove(keys, force=True) == [0] * BATCH
    assert store.batch_is_exist(keys) == [0] * BATCH


def work(store: MooncakeDistributedStore, thread: int, rounds: int, first: int) -> None:
    value = os.urandom(2000)
    for i in range(first, first + rounds):
        one_round(store, f"soak-{thread}-{i}", value)


def in_threads(store: MooncakeDistributedStore, threads: int, rounds: int, first: int) -> None:
    failures: list[BaseException] = []

    def guarded(thread: int) -> None:
        try:
            work(store, thread, rounds // threads + 1, first)
        except BaseException as failure:  # noqa: BLE001: raised again below
            failures.append(failure)

    workers = [threading.Thread(target=guarded, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def soak(arguments: argparse.Namespace, address: str, processes: dict[str, int]) -> bool:
    store = set_up(address)
    rounds = max(CYCLES, arguments.operations // OPERATIONS_PER_ROUND)
    start = time.monotonic()
    in_threads(store, arguments.threads, rounds // 10, 0)
    before = {name: resident_mib(pid) for name, pid in processes.items()}
    for cycle in range(CYCLES):
        in_threads(store, arguments.threads, rounds // CYCLES, (cycle + 1) * rounds)
        other = set_up(address)
        one_round(other, f"cycle-{cycle}", b"x" * 1000)
        assert other.close() == 0
    seconds = time.monotonic() - start
    after = {name: resident_mib(pid) for name, pid in processes.items()}
    assert store.close() == 0
    print(f"{rounds * OPERATIONS_PER_ROUND * 11 // 10:,} operations in {seconds:.0f} s")
    fine = True
    for name in processes:
        grown = after[name] - before[name]
        fine = fine and grown <= arguments.allow_mib
        print(f"{name}: {before[name]:.1f} MiB after the warm-up, {after[name]:.1f} MiB at the end ({grown:+.1f})")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=10_000_000)
    parser.add_argument("--allow-mib", type=float, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    port = free_port()
    address = f"127.0.0.1:{port}"
    os.environ["MOONPOOL_LOG_LEVEL"] = "warning"  # the children's
    master = subprocess.Popen([BIN / "mooncake_master", "--port", str(port), "--metrics_port", str(free_port())], stdout=subprocess.DEVNULL)
    node = subprocess.Popen(
        [BIN / "mooncake_client", "--host", "127.0.0.1", "--port", str(free_port()), "--master_server_address", address,
         "--metadata_server", "P2PHANDSHAKE", "--global_segment_size", "64 MB"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return 0 if soak(arguments, address, {"client": os.getpid(), "node": node.pid, "master": master.pid}) else 1
    finally:
        for process in (node, master):
            process.terminate()
        for process in (node, master):
            process.wait(20)


if __name__ == "__main__":
    raise SystemExit(main())
