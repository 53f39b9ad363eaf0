"""The tables of ./moonpool bench that one program of bench/ makes by itself: the allocator's churn and the wire against a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moonpool.bench_baselines import run_tool
from moonpool.bench_options import Options
from moonpool.bench_results import Cell

LIMIT_SECONDS = 300.0


def cells(table: str, options: Options, programs: dict[str, Path], progress: Callable[[int], Any]) -> Iterator[list[Cell]]:
    """Run the table's program once a round; each prints one JSON line a cell: shape, operation, side, unit and numbers."""
    rounds = options.rounds if table == "wire" else 1
    shown = progress(rounds)
    found: dict[tuple[str, str, str], Cell] = {}
    for number in range(rounds):
        shown.tell(f"round {number + 1}")
        argv: list[str | Path] = [programs["wire_pingpong"], "1", "--json"] if table == "wire" else [programs["allocator_churn"], *(["--quick"] if options.quick else [])]
        for line in run_tool(argv, LIMIT_SECONDS).splitlines():
            record = json.loads(line)
            shape, operation, side, unit = (str(record.pop(name)) for name in ("shape", "operation", "side", "unit"))
            cell = found.setdefault((shape, operation, side), Cell(table, "", shape, 1, operation, side, unit))
            cell.rounds.append({name: float(value) for name, value in record.items()})
        shown.step()
    yield list(found.values())
