"""The engine table of ./moonpool bench: transfer_engine_bench of both sides, ours and theirs in turn, with the same flags."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moonpool.bench_options import GIB, KIB, Options
from moonpool.bench_results import Cell
from moonpool.bench_sides import START_SECONDS, cpu_seconds
from moonpool.commands import tail
from moonpool.errors import UserError
from moonpool.ports import pick_free
from moonpool.processes import Component, Supervisor

BLOCKS = (4 * KIB, 64 * KIB, 1024 * KIB)
THREADS = (1, 4)
BATCH = 32
SECONDS = 1
LIMIT_SECONDS = 30.0
BUFFER_BYTES = GIB
RATE = re.compile(r"([0-9.]+) GB/s")
# What a target prints once others can reach it: the address that it chose.
LISTENING = re.compile(r"(?:--segment_id=|listening on )(127\.0\.0\.1:\d+)")


def parse_rate(text: str) -> float | None:
    """GB/s as either program reports it."""
    found = RATE.findall(text)
    return float(found[-1]) if found else None


def listening_address(text: str) -> str | None:
    found = LISTENING.findall(text)
    return found[-1] if found else None


def _flags(mode: str, name: str) -> list[str]:
    return [f"--mode={mode}", "--metadata_server=P2PHANDSHAKE", f"--local_server_name={name}", "--protocol=tcp", f"--buffer_size={BUFFER_BYTES}"]


class Target:
    """One side's target process, kept for the whole table."""

    def __init__(self, side: str, program: Path, supervisor: Supervisor, folder: Path) -> None:
        self.side, self.program, self.folder = side, program, folder
        port = pick_free(1)[0]
        self.log = folder / f"engine-target-{side}.log"
        argv: list[str | Path] = [program, *_flags("target", f"127.0.0.1:{port}")]
        self.component = supervisor.start(Component(f"{side} engine target", argv, self.log))
        deadline = time.monotonic() + START_SECONDS
        while (address := listening_address(self.log.read_text(errors="replace"))) is None:
            if not self.component.running:
                raise self.component.died()
            if time.monotonic() > deadline:
                raise UserError(f"{self.component.name} named no address within {START_SECONDS:.0f} s", f"see {self.log}")
            time.sleep(0.05)
        self.address = address

    def measure(self, operation: str, block: int, threads: int) -> dict[str, float] | str:
        """One round: its record, or why there is none."""
        name = f"127.0.0.1:{pick_free(1)[0]}"
        argv = [str(self.program), *_flags("initiator", name), f"--segment_id={self.address}", f"--operation={operation}"]
        argv += [f"--block_size={block}", f"--batch_size={BATCH}", f"--threads={threads}", f"--duration={SECONDS}"]
        log = self.folder / f"engine-initiator-{self.side}.log"
        before, children = cpu_seconds(self.component.pid), os.times()
        with log.open("ab") as output:
            try:
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=LIMIT_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                return f"no end within {LIMIT_SECONDS:.0f} s, killed"
        rate = parse_rate(tail(log))
        if done.returncode != 0 or rate is None:
            return f"exit status {done.returncode}: {tail(log, 1)[-160:]}"
        after = os.times()
        client = after.children_user + after.children_system - children.children_user - children.children_system
        return {"rate": rate, "bytes": rate * 1e9 * SECONDS, "cpu_client": client, "cpu_storage": cpu_seconds(self.component.pid) - before}


def cells(options: Options, ours: Path, theirs: Path, folder: Path, progress: Callable[[int], Any]) -> Iterator[list[Cell]]:
    with Supervisor() as supervisor:
        targets = [
            Target("moonpool", ours / "transfer_engine_bench", supervisor, folder),
            Target("mooncake", theirs / "transfer_engine_bench", supervisor, folder),
        ]
        contests = [(block, threads, operation) for block in BLOCKS for threads in THREADS for operation in ("write", "read")]
        shown = progress(len(contests))
        for block, threads, operation in contests:
            shape = f"{block // KIB} KiB" if block < 1024 * KIB else "1 MiB"
            found = {target.side: Cell("engine", "", shape, threads, operation, target.side, "GB/s") for target in targets}
            for number in range(1 if options.quick else min(3, options.rounds)):
                for target in targets:
                    cell = found[target.side]
                    if cell.failure:
                        continue
                    shown.tell(f"{operation} of {shape}, {threads} threads, round {number + 1}: {target.side}")
                    record = target.measure(operation, block, threads)
                    if isinstance(record, str):
                        cell.failure = record
                    else:
                        cell.rounds.append(record)
            shown.step()
            yield list(found.values())


