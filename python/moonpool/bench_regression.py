"""The last step of ./moonpool test: under half a minute of ratios between our module and the plain baselines of the same run.

It prints figures for people to compare over time and never fails on a slow one: on shared cores the noise is larger than most changes. It fails when it
cannot run, when a call fails, or when a byte is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moonpool.bench_baselines import plain
from moonpool.bench_options import KIB, MIB, Shape
from moonpool.bench_results import Spread
from moonpool.bench_sides import PREPARE_SECONDS, Side, Worker
from moonpool.bench_store import rate_of
from moonpool.errors import UserError
from moonpool.paths import RUNS, VENV_PYTHON
from moonpool.processes import Supervisor

ROUNDS = 3
SECONDS = 0.3
CALL_LIMIT = 20.0
SEGMENT = 768 * MIB
THREADS = 2
SHAPES = (Shape("4 KiB", 4 * KIB, 32), Shape("1 MiB", MIB, 8), Shape("vLLM block", 30 * 96 * KIB, 24, 30))


@dataclass(frozen=True)
class Comparison:
    """One line: ours through a baseline, over the rounds."""

    name: str
    than: str
    ours: Spread
    baseline: Spread
    unit: str

    def line(self) -> str:
        middle = self.ours.median / self.baseline.median
        least, most = self.ours.least / self.baseline.most, self.ours.most / self.baseline.least
        return f"{self.name:<34} {middle:6.2f} of {self.than:<13} ({least:.2f}-{most:.2f})   {self.ours.median:.3g} {self.unit}"


def compare(folder: Path, baseline: Path) -> Iterator[Comparison]:
    with Supervisor() as supervisor:
        side = Side("moonpool", VENV_PYTHON, supervisor, folder, SEGMENT)
        for shape in SHAPES:
            client = side.open_client()
            client.ask(
                "prepare", PREPARE_SECONDS, threads=THREADS, batch=shape.batch, object_bytes=shape.object_bytes, pieces=shape.pieces, prefix=shape.name
            )
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for operation, exchange in (("put", "write"), ("get", "read")):
                    found.setdefault(operation, []).append(_part(client, shape, operation))
                    found.setdefault(exchange, []).append(plain(baseline, exchange, shape.object_bytes, THREADS, SECONDS / 2)["rate"])
                found.setdefault("memcpy", []).append(plain(baseline, "memcpy", shape.object_bytes, THREADS, SECONDS / 2, shape.batch, shape.pieces)["rate"])
                if shape.small:
                    found.setdefault("exist", []).append(_part(client, shape, "exist") / shape.batch)
                    found.setdefault("roundtrip", []).append(plain(baseline, "roundtrip", KIB, THREADS, SECONDS / 2)["rate"])
                client.ask("clear", PREPARE_SECONDS)
            side.close_client(client)
            yield from _compared(shape, {name: Spread.of(values) for name, values in found.items()})


def _part(client: Worker, shape: Shape, operation: str) -> float:
    """GB/s of one timed part (keys a second of a look-up), its bytes checked afterwards."""
    answer = client.ask("run", CALL_LIMIT, op=operation, seconds=SECONDS, most_bytes=SEGMENT // 2)
    if failure := answer.get("failure"):
        raise UserError(f"{operation} of {shape.name} failed: {failure}", "a benchmark may be slow, its calls may not fail")
    if operation == "exist":
        return rate_of(shape, operation, answer)
    check = client.ask("verify" if operation == "put" else "intact", PREPARE_SECONDS)
    if check["wrong"]:
        raise UserError(f"{operation} of {shape.name}: {check['wrong']} of {check['compared']} objects have wrong bytes")
    return float(answer["bytes"]) / float(answer["seconds"]) / 1e9


def _compared(shape: Shape, found: dict[str, Spread]) -> Iterator[Comparison]:
    for operation, exchange in (("put", "write"), ("get", "read")):
        for than, baseline in (("a plain socket", found[exchange]), ("memcpy", found["memcpy"])):
            yield Comparison(f"{operation} of {shape.name}, {THREADS} threads", than, found[operation], baseline, "GB/s")
    if "exist" in found:
        yield Comparison(f"exist x {shape.batch}, {THREADS} threads", "round trips/s", found["exist"], found["roundtrip"], "calls/s")


def report(baseline: Path) -> list[str]:
    """The lines to print. UserError or WorkerFailed when it cannot run."""
    folder = RUNS / time.strftime("regression-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    return [comparison.line() for comparison in compare(folder, baseline)]
