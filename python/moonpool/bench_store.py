"""The store table of ./moonpool bench: put, exist, get and mixed work on both sides, interleaved part by part, with the baselines beside them.

For each shape and number of threads both sides open a fresh client process. A round measures, for each operation in turn, ours, theirs, then what
stands beside it; so that what else the machine does meets all alike. Bytes are verified between the timed parts. A side that fails or stalls in a
cell is reported with its codes, left out of that cell from then on, and started anew for the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moonpool.bench_baselines import Iperf, Redis, plain
from moonpool.bench_options import MIB, OPERATIONS, Options, Shape
from moonpool.bench_results import Cell
from moonpool.bench_sides import PREPARE_SECONDS, Side, Worker, WorkerFailed
from moonpool.errors import UserError

PUT_SHARE = 0.6  # of the segment, for the puts of one round: neither side has to evict
MIXED_SHARE = 0.2
TOOL_BYTES = 512 * MIB  # one round of redis-benchmark or iperf3
# Which plain exchange an operation is compared with.
PLAIN_OF = {"put": "write", "get": "read"}


@dataclass
class Contest:
    """One shape and number of threads: the cells that its rounds fill, and which sides still take part."""

    path: str
    shape: Shape
    threads: int
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    clients: dict[str, Worker] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)

    def cell(self, operation: str, side: str, unit: str = "") -> Cell:
        unit = unit or ("keys/s" if operation == "exist" else "objects/s" if self.shape.small else "GB/s")
        key = (operation, side)
        if key not in self.cells:
            self.cells[key] = Cell("store", self.path, self.shape.name, self.threads, operation, side, unit)
        return self.cells[key]


def rate_of(shape: Shape, operation: str, answer: dict[str, float]) -> float:
    """Keys or small objects a second; of large objects gigabytes a second."""
    moved = answer["objects"] if operation == "exist" or shape.small else answer["bytes"] / 1e9
    return moved / answer["seconds"]


class StoreTable:
    """Owns nothing: sides, servers and the plain program are given. `tell` is called before each timed part."""

    def __init__(self, options: Options, sides: list[Side], redis: Redis, iperf: Iperf, baseline: Path, tell: Callable[[str], None]) -> None:
        self.options, self.sides, self.redis, self.iperf, self.baseline, self.tell = options, sides, redis, iperf, baseline, tell
        self.prefixes = (f"bench{number}" for number in itertools.count())

    def contests(self) -> list[tuple[Shape, int]]:
        return [(shape, threads) for shape in self.options.shapes for threads in self.options.threads]

    def run(self, path: str) -> Iterator[list[Cell]]:
        """The cells of one contest after the other."""
        for shape, threads in self.contests():
            contest = Contest(path, shape, threads)
            try:
                for side in self.sides:
                    self._try(contest, side, "put", lambda side=side: self._open(contest, side))
                for number in range(self.options.rounds):
                    self._round(contest, number)
            finally:
                for side in self.sides:
                    if client := contest.clients.pop(side.name, None):
                        side.close_client(client)
            yield list(contest.cells.values())

    def _open(self, contest: Contest, side: Side) -> None:
        client = side.open_client()
        contest.clients[side.name] = client
        shape = contest.shape
        client.ask(
            "prepare", PREPARE_SECONDS, threads=contest.threads, batch=shape.batch, object_bytes=shape.object_bytes, pieces=shape.pieces,
            prefix=next(self.prefixes),
        )  # fmt: skip
        # Connections are made and code paths are warm before the first measured part.
        warm = client.ask("run", self.options.limit, op="put", seconds=0.05, most_bytes=self._bytes(side, PUT_SHARE))
        if failure := warm.get("failure"):
            raise WorkerFailed(f"{failure} (its first calls)")
        client.ask("clear", PREPARE_SECONDS)

    def _bytes(self, side: Side, share: float) -> int:
        return int(side.segment_bytes * share)

    def _try(self, contest: Contest, side: Side, operation: str, action: Callable[[], None]) -> None:
        """Do something with a side; if it fails, the cell says how, and the side is out of this contest."""
        if side.name in contest.out:
            return
        try:
            action()
        except WorkerFailed as error:
            self._drop(contest, side, operation, str(error))

    def _drop(self, contest: Contest, side: Side, operation: str, why: str) -> None:
        contest.out.add(side.name)
        contest.clients.pop(side.name, None)
        contest.cell(operation, side.name).failure = why
        later = OPERATIONS[OPERATIONS.index(operation) + 1 :]
        for other in later:
            contest.cell(other, side.name).failure = f"not measured: {operation} had failed"
        side.kill()

    def _round(self, contest: Contest, number: int) -> None:
        for operation in OPERATIONS:
            for side in self.sides:
                self.tell(f"{contest.shape.name}, {contest.threads} threads, round {number + 1}: {operation} on {side.name}")
                self._try(contest, side, operation, lambda side=side, operation=operation: self._part(contest, side, operation))
            self._beside(contest, operation, number)
        for side in self.sides:
            self._try(contest, side, "mixed", lambda side=side: contest.clients[side.name].ask("clear", PREPARE_SECONDS) and None)

    def _part(self, contest: Contest, side: Side, operation: str) -> None:
        """One timed part of one side, and the check of its bytes."""
        client = contest.clients[side.name]
        storage, master = side.server_cpu()
        share = MIXED_SHARE if operation == "mixed" else PUT_SHARE
        answer = client.ask("run", self.options.limit, op=operation, seconds=self.options.seconds, most_bytes=self._bytes(side, share))
        storage_after, master_after = side.server_cpu()
        if failure := answer.get("failure"):
            self._drop(contest, side, operation, str(failure))
            return
        record = {name: float(answer[name]) for name in ("p50_us", "p99_us", "cpu_client", "seconds")}
        record |= {"rate": rate_of(contest.shape, operation, answer), "cpu_storage": storage_after - storage, "cpu_master": master_after - master}
        if operation != "exist":
            record["bytes"] = float(answer["bytes"])
            check = client.ask("verify" if operation == "put" else "intact", PREPARE_SECONDS)
            if check["wrong"]:
                self._drop(contest, side, operation, f"WRONG BYTES: {check['wrong']} of {check['compared']} objects differ from what was put")
                return
        contest.cell(operation, side.name).rounds.append(record)

    def _beside(self, contest: Contest, operation: str, number: int) -> None:
        """What stands beside this operation, in the same round. Redis is measured in every round, SET and GET together, with the puts."""
        shape, threads, seconds = contest.shape, contest.threads, self.options.seconds
        try:
            if operation == "exist":
                self._plain(contest, operation, "roundtrip", "plain socket", 1024, min(seconds, 0.2))
                return
            if operation not in PLAIN_OF:
                return
            self._plain(contest, operation, PLAIN_OF[operation], "plain socket", shape.object_bytes, min(seconds, 0.3))
            self._plain(contest, operation, "memcpy", "memcpy", shape.object_bytes, min(seconds, 0.2))
            if not shape.small:
                for streams in (1, 4):
                    cell = contest.cell(operation, "iperf3" if streams == 1 else "iperf3 -P 4", "GB/s")
                    cell.rounds.append(self.iperf.measure(streams, TOOL_BYTES))
            if operation == "put":
                self.tell(f"{shape.name}, {threads} threads, round {number + 1}: redis-benchmark")
                found = self.redis.measure(shape, threads, TOOL_BYTES)
                for name, test in (("put", "SET"), ("get", "GET")):
                    contest.cell(name, "redis").rounds.append(found[test])
        except UserError as error:
            contest.cell(operation, "baselines").failure = error.message

    def _plain(self, contest: Contest, operation: str, what: str, name: str, size: int, seconds: float) -> None:
        unit = "round trips/s" if what == "roundtrip" else "GB/s"
        shape = contest.shape
        record = plain(self.baseline, what, size, contest.threads, seconds, *((shape.batch, shape.pieces) if what == "memcpy" else ()))
        if what == "roundtrip":
            record.pop("bytes")
        contest.cell(operation, name, unit).rounds.append(record)
