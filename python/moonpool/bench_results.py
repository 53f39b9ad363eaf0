"""The results of ./moonpool bench: one Cell per table, path, shape, threads, operation and contestant, with one record per round."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """What several rounds say: the middle one, and the outermost."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Cell:
    """`rounds` hold plain numbers: rate (units a second), p50_us, p99_us, bytes, cpu_client, cpu_storage, cpu_master (seconds), as far as known."""

    table: str
    path: str
    shape: str
    threads: int
    operation: str
    side: str
    unit: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    @property
    def key(self) -> tuple[str, str, str, int, str, str]:
        return (self.table, self.path, self.shape, self.threads, self.operation, self.side)

    def spread(self, name: str) -> Spread | None:
        values = [record[name] for record in self.rounds if name in record]
        return Spread.of(values) if values else None

    @property
    def rate(self) -> Spread | None:
        return self.spread("rate")

    def cpu_per_gigabyte(self) -> float | None:
        """CPU seconds of client and storage for each 10^9 bytes moved, over all rounds (the clock of /proc is coarse)."""
        moved = sum(record.get("bytes", 0.0) for record in self.rounds)
        if not moved or not all("cpu_client" in record for record in self.rounds):
            return None
        return sum(record["cpu_client"] + record.get("cpu_storage", 0.0) for record in self.rounds) / moved * 1e9


@dataclass
class Results:
    """All cells of a file, in the order in which they were measured first, and what they were measured on."""

    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    def find(self, table: str, path: str, shape: str, threads: int, operation: str, side: str) -> Cell | None:
        wanted = (table, path, shape, threads, operation, side)
        return next((cell for cell in self.cells if cell.key == wanted), None)

    def merge(self, newer: Iterable[Cell]) -> None:
        """Take newer cells in, each in the place of an older one of the same key."""
        places = {cell.key: index for index, cell in enumerate(self.cells)}
        for cell in newer:
            if cell.key in places:
                self.cells[places[cell.key]] = cell
            else:
                places[cell.key] = len(self.cells)
                self.cells.append(cell)

    def of_table(self, table: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.table == table]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps({"machine": self.machine, "settings": self.settings, "cells": [asdict(cell) for cell in self.cells]}, indent=1))
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        read = json.loads(path.read_text())
        return cls(read["machine"], read["settings"], [Cell(**cell) for cell in read["cells"]])


def ratio(ours: Cell | None, theirs: Cell | None) -> float | None:
    """Ours through theirs, by the medians of the rates; None when either has none."""
    if ours is None or theirs is None or ours.rate is None or theirs.rate is None or theirs.rate.median == 0:
        return None
    return ours.rate.median / theirs.rate.median
