"""What the benchmarks ran on, in the words of a reader; and whether it is large enough for them."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from moonpool.bench_options import GIB, Options
from moonpool.commands import output
from moonpool.errors import UserError


def available_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def describe_machine() -> dict[str, str]:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "CPU": f"{os.cpu_count()} cores, {cpu}",
        "memory": f"{int(total.split()[1]) / (1 << 20):.0f} GiB",
        "system": f"{system}, Linux {platform.release()}",
        "network": "loopback",
        "Redis": (output(["redis-server", "--version"]) or "").split("v=")[-1].split()[0],
        "iperf3": ((output(["iperf3", "--version"]) or "").split("\n")[0].split() or ["", ""])[1],
        "load when it began": f"{os.getloadavg()[0]:.1f}",
    }


def memory_needed(options: Options) -> int:
    """The most that any chosen table has in use at once."""
    needed = 0
    if "store" in options.tables:
        client = max(shape.object_bytes * shape.batch for shape in options.shapes) * max(options.threads)
        needed = 2 * (options.segment_bytes + client) + 2 * GIB
    if "master" in options.tables:
        # Key and entry at the master, the load generator's share, and what a growing table holds for a moment.
        needed = max(needed, max(options.objects) * 1000)
    return needed


def require_memory(options: Options) -> None:
    needed, available = memory_needed(options), available_bytes()
    if needed > available:
        raise UserError(
            f"this run needs about {needed / GIB:.0f} GiB of memory, and {available / GIB:.0f} GiB are available",
            "choose less: --threads 1,4, --shapes 4k,1m,16m, --objects 1000,1000000, or --quick",
        )
