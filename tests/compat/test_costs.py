"""What the Python layer itself costs: per call and per key without any network, to import, and to set a large segment up.

The figures are printed (pytest -s). The bounds are several times what is measured on an idle machine, so that only a real regression fails:
a copy per key, a heavy import, memory touched while the caller waits.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy
import pytest
from compat_programs import MIB, set_up
from mooncake.store import MooncakeDistributedStore
from moonpool.measuring import in_bounds

KEYS = 256
SHORT_REPEATS = 9  # of what takes a tenth of a second or less


def nanoseconds(call: Callable[[], object], repeat: int = 200, rounds: int = 9) -> float:
    """Of one call, in the best of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(repeat):
            call()
        best = min(best, (time.perf_counter_ns() - start) / repeat)
    return best


def names(count: int) -> list[str]:
    return [f"model@tp_rank:0@group:0@{i:032x}" for i in range(count)]


def test_a_call_costs_under_two_microseconds_and_a_key_under_fifty_nanoseconds() -> None:
    """On a store before setup: arguments are read, nothing is asked, results are built."""
    store = MooncakeDistributedStore()
    store.put("k", b"x")  # says once that it is not set up
    keys, addresses, sizes = names(KEYS), [1 << 40] * KEYS, [4096] * KEYS
    calls = {
        "is_exist": lambda: store.is_exist("k"),
        "get": lambda: store.get("k"),
        "put": lambda: store.put("k", b"x"),
        "batch_is_exist": lambda: store.batch_is_exist([]),
        "batch_put_from": lambda: store.batch_put_from([], [], []),
    }
    batches = {
        "batch_is_exist": lambda: store.batch_is_exist(keys),
        "batch_put_from": lambda: store.batch_put_from(keys, addresses, sizes),
        "batch_get_into": lambda: store.batch_get_into(keys, addresses, sizes),
    }
    per_call = {name: in_bounds(name, lambda call=call: nanoseconds(call), 2000, "ns") for name, call in calls.items()}

    def of_a_key(name: str) -> float:
        return (nanoseconds(batches[name]) - per_call.get(name, 0)) / KEYS

    per_key = {name: in_bounds(f"a key of {name}", lambda name=name: of_a_key(name), 150, "ns") for name in batches}
    print("\nper call:", {name: f"{cost:.0f} ns" for name, cost in per_call.items()})
    print("per key:", {name: f"{cost:.1f} ns" for name, cost in per_key.items()})


def test_addresses_and_sizes_of_many_pieces_are_read_quickly() -> None:
    store = MooncakeDistributedStore()
    store.put("k", b"x")
    blocks, pieces = 24, 30
    keys = names(blocks)
    addresses = [[(1 << 40) + 98304 * (b * pieces + p) for p in range(pieces)] for b in range(blocks)]
    sizes = [[98304] * pieces for _ in range(blocks)]

    def of_a_number() -> float:
        return nanoseconds(lambda: store.batch_put_from_multi_buffers(keys, addresses, sizes)) / (2 * blocks * pieces)

    print(f"\n24 blocks of 30 pieces: {in_bounds('a number', of_a_number, 60, 'ns'):.1f} ns a number")


def test_the_import_is_light() -> None:
    """Measured as processor time: what other programs do meanwhile is not the import's."""
    code = "import time; start = time.process_time(); import mooncake.store; print(time.process_time() - start)"

    def once() -> float:
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    print(f"\nimport mooncake.store: {in_bounds('import mooncake.store', once, 0.05, repeats=SHORT_REPEATS) * 1000:.1f} ms")
    listed = subprocess.run(
        [sys.executable, "-c", "import sys; before = set(sys.modules); import mooncake.store; print(*(set(sys.modules) - before))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"numpy", "torch", "asyncio", "inspect", "subprocess", "ssl"} & set(listed.stdout.split())


def test_setting_up_four_gibibytes_does_not_wait_for_its_memory(master) -> None:
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    if available < 6 * MIB:  # in KiB
        pytest.skip("needs 6 GiB of free memory")

    def once() -> float:
        start = time.perf_counter()
        store = set_up(master.address, segment=4 << 30)
        seconds = time.perf_counter() - start
        store.close()
        return seconds

    best = in_bounds("setup with a segment of 4 GiB", once, 0.1, repeats=SHORT_REPEATS)
    print(f"\nsetup with a segment of 4 GiB: {best * 1000:.0f} ms")


def test_other_threads_run_python_while_bytes_move(store) -> None:
    source = numpy.zeros(16 * MIB, dtype=numpy.uint8)
    at = source.ctypes.data
    moving = threading.Event()
    ended = threading.Event()

    def move() -> None:
        moving.set()
        for i in range(24):
            assert store.put_from(f"k{i}", at, source.nbytes) == 0
            assert store.get_into(f"k{i}", at, source.nbytes) == source.nbytes
            assert store.remove(f"k{i}", True) == 0
        ended.set()

    thread = threading.Thread(target=move)
    thread.start()
    moving.wait(10)
    counted = 0
    longest = 0.0
    before = time.perf_counter()
    while not ended.is_set() and thread.is_alive():
        counted += 1
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    thread.join(30)
    assert ended.is_set()
    print(f"\n{counted} turns of another thread while 768 MiB moved, the longest pause {longest * 1000:.0f} ms")
    assert counted > 1000
