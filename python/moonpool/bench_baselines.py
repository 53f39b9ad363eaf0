"""What the sides of ./moonpool bench stand beside: Redis, iperf3, a plain socket and memcpy, each measured for one round at a time."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonpool.bench_options import MIB, Shape
from moonpool.bench_sides import cpu_seconds
from moonpool.commands import within_all
from moonpool.errors import UserError
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor

RUN_SECONDS = 60.0
READY_SECONDS = 20.0
REDIS_MEMORY = "1gb"


def run_tool(argv: list[str | Path], limit: float = RUN_SECONDS) -> str:
    """The standard output of a measuring tool, which is ended after `limit` seconds."""
    words = [str(word) for word in argv]
    limit = within_all(limit)
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not end within {limit:.0f} s") from None
    if done.returncode != 0:
        raise UserError(f"{words[0]}: exit status {done.returncode}", "", (done.stderr or done.stdout).decode("utf-8", "replace")[-2000:])
    return done.stdout.decode("utf-8", "replace")


def parse_redis_csv(text: str) -> dict[str, dict[str, float]]:
    """redis-benchmark --csv: per test ("SET", "GET") requests a second and latencies in microseconds."""
    found = {}
    for row in csv.DictReader(io.StringIO(text)):
        found[row["test"].split()[0]] = {
            "rps": float(row["rps"]),
            "p50_us": float(row["p50_latency_ms"]) * 1000,
            "p99_us": float(row["p99_latency_ms"]) * 1000,
        }
    return found


def parse_iperf(text: str) -> float:
    """Gigabytes a second that iperf3 -J says arrived."""
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 8e9


@dataclass
class Redis:
    """A Redis server of our own without persistence, measured by redis-benchmark."""

    port: int
    component: Component

    @classmethod
    def start(cls, supervisor: Supervisor, folder: Path) -> Redis:
        port = pick_free(1)[0]
        argv: list[str | Path] = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        argv += ["--maxmemory", REDIS_MEMORY, "--maxmemory-policy", "allkeys-lru", "--dir", folder]
        return cls(port, _started(supervisor, Component("redis", argv, folder / "redis.log"), port))

    def measure(self, shape: Shape, threads: int, budget: int) -> dict[str, dict[str, float]]:
        """One round of SET and GET of values of the shape's size, pipelined as deep as a call's batch (4 at most for large values)."""
        depth = shape.batch if shape.small else min(shape.batch, 4)
        count = max(2 * threads * depth, min(100_000, budget // shape.object_bytes))
        keys = max(1, min(count // 8, 512 * MIB // shape.object_bytes))
        argv: list[str | Path] = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(self.port), "-t", "set,get", "-d", str(shape.object_bytes)]
        argv += ["-n", str(count), "-c", str(threads), "-P", str(depth), "-r", str(keys), "--csv"]
        records = {}
        for test, numbers in parse_redis_csv(run_tool(argv)).items():
            rate = numbers["rps"] if shape.small else numbers["rps"] * shape.object_bytes / 1e9
            records[test] = {"rate": rate, "p50_us": numbers["p50_us"], "p99_us": numbers["p99_us"]}
        return records


@dataclass
class Iperf:
    """An iperf3 server of our own."""

    port: int
    component: Component

    @classmethod
    def start(cls, supervisor: Supervisor, folder: Path) -> Iperf:
        port = pick_free(1)[0]
        argv: list[str | Path] = ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port), "--forceflush"]
        return cls(port, _started(supervisor, Component("iperf3", argv, folder / "iperf3.log"), port))

    def measure(self, streams: int, budget: int) -> dict[str, float]:
        """One round: `budget` bytes over so many streams."""
        argv: list[str | Path] = ["iperf3", "-c", "127.0.0.1", "-p", str(self.port), "-n", str(budget), "-P", str(streams), "-J"]
        before = cpu_seconds(self.component.pid)
        rate = parse_iperf(run_tool(argv))
        return {"rate": rate, "cpu_server": cpu_seconds(self.component.pid) - before}


def plain(program: Path, what: str, bytes_each: int, threads: int, seconds: float, batch: int = 1, pieces: int = 1) -> dict[str, float]:
    """One round of bench/plain_baseline.cpp: `what` is memcpy, write, read or roundtrip; a memcpy goes through `batch` sources, in `pieces` pieces."""
    argv: list[str | Path] = [program, what, str(bytes_each), str(threads), str(seconds), str(batch), str(pieces)]
    answer: dict[str, Any] = json.loads(run_tool(argv))
    return {name: float(value) for name, value in answer.items()}


def _started(supervisor: Supervisor, component: Component, port: int) -> Component:
    supervisor.start(component)
    deadline = time.monotonic() + READY_SECONDS
    while not accepts("127.0.0.1", port):
        if not component.running:
            raise component.died()
        if time.monotonic() > deadline:
            raise UserError(f"{component.name} is not ready after {READY_SECONDS:.0f} s", f"see {component.log}")
        time.sleep(0.02)
    return component
