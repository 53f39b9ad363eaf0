"""The master table of ./moonpool bench: a fresh master for each number of objects, evicting and not, under bench/master_load.cpp."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moonpool.bench_baselines import run_tool
from moonpool.bench_options import Options
from moonpool.bench_results import Cell
from moonpool.errors import UserError
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor

CONNECTIONS = 4
LIMIT_SECONDS = 900.0
READY_SECONDS = 20.0


def spoken(count: int) -> str:
    for size, word in ((1_000_000, " million"), (1_000, " thousand")):
        if count >= size and count % size == 0:
            return f"{count // size}{word}"
    return str(count)


def cells(options: Options, programs: Path, load: Path, folder: Path, progress: Callable[[int], Any]) -> Iterator[list[Cell]]:
    runs = [(count, evicting) for count in options.objects for evicting in (False, True)]
    shown = progress(len(runs))
    for count, evicting in runs:
        shown.tell(f"{spoken(count)} objects{', evicting' if evicting else ''}")
        with Supervisor() as supervisor:
            found = _measure(options, programs, load, folder, supervisor, count, evicting)
        shown.step()
        yield found


def _measure(options: Options, programs: Path, load: Path, folder: Path, supervisor: Supervisor, count: int, evicting: bool) -> list[Cell]:
    port, admin = pick_free(2)
    argv: list[str | Path] = [programs / "mooncake_master", f"--port={port}", "--rpc_address=127.0.0.1", f"--metrics_port={admin}"]
    argv += ["--metrics_host=127.0.0.1", "--recovery_window_ms=0"]
    master = supervisor.start(Component("master", argv, folder / "load-master.log"))
    deadline = time.monotonic() + READY_SECONDS
    while not accepts("127.0.0.1", port):
        if not master.running:
            raise master.died()
        if time.monotonic() > deadline:
            raise UserError(f"the master is not ready after {READY_SECONDS:.0f} s", f"see {master.log}")
        time.sleep(0.02)
    argv = [load, f"--master=127.0.0.1:{port}", f"--pid={master.pid}", f"--objects={count}", f"--connections={CONNECTIONS}"]
    argv += [f"--seconds={max(0.5, 2 * options.seconds)}", *(["--evicting"] if evicting else [])]
    found = []
    for line in run_tool(argv, LIMIT_SECONDS).splitlines():
        record = json.loads(line)
        operation = str(record.pop("operation"))
        if operation == "memory" and evicting:
            continue
        cell = Cell("master", "evicting" if evicting else "", spoken(count), CONNECTIONS, operation, "moonpool", "keys/s")
        cell.rounds.append({name: float(value) for name, value in record.items()})
        found.append(cell)
    return found
