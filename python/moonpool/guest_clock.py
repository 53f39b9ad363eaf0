"""How fast this machine's time-stamp counter (TSC) counts.

An emulated processor hands out the host's counter. A guest that measures its frequency while the host is busy finds a wrong one (a
quarter of the true one, once), and all of its time-outs end early. So the host measures it and tells: each reading of the counter stands
between two of the clock, and of some tries the closest is taken.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")
INTERVAL_SECONDS = 0.1
TRIES = 50


def tsc_khz() -> int | None:
    """None where it cannot be read (another processor, no executable memory)."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def reading() -> tuple[int, int]:
        """A moment in nanoseconds, and the counter then."""
        best: tuple[int, int, int] | None = None
        for _ in range(TRIES):
            before = time.monotonic_ns()
            count = read()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, count)
        assert best is not None
        return best[1], best[2]

    start = reading()
    time.sleep(INTERVAL_SECONDS)
    end = reading()
    return round((end[1] - start[1]) * 1_000_000 / (end[0] - start[0]))
