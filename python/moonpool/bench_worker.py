"""The process that does what ./moonpool bench measures: the same code with whichever `mooncake` its Python has.

It lends memory (a storage process) or puts, looks up and gets (a client). The bench connects it to a Unix socket, whose name is the only
argument, and sends one JSON object a line; each is answered by one line, {"ok": ...} or {"error": ...}. Standard output and error belong to the
library that is measured. Nothing of the moonpool package is imported: the other side's environment does not have it.

Each client thread owns one region of registered memory with one batch of objects in it. Puts read from it and gets write into it, so a get that is
right changes nothing; verification zeroes the region first and compares the slots' checksums. Keys and pointer lists are made before the clock
starts. Time is taken around each call; the rate is what all threads moved between their common start and the last one's end.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import random
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

PATTERN_BYTES = 1 << 20
GET_SHARE = 0.7  # of the mixed work
CODES_KEPT = 6


class Region:
    """One thread's registered memory: `batch` slots of one object each."""

    def __init__(self, index: int, batch: int, object_bytes: int, pieces: int) -> None:
        self.index, self.batch, self.object_bytes, self.pieces = index, batch, object_bytes, pieces
        self.memory = mmap.mmap(-1, batch * object_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.fill()
        self.checksums = self.current_checksums()
        self.pointers = [self.address + slot * object_bytes for slot in range(batch)]
        self.sizes = [object_bytes] * batch
        piece = object_bytes // pieces
        self.piece_pointers = [[start + number * piece for number in range(pieces)] for start in self.pointers]
        self.piece_sizes = [[piece] * pieces for _ in range(batch)]

    def fill(self) -> None:
        """Other bytes in every slot of every region, always the same ones."""
        pattern = random.Random(self.index).randbytes(PATTERN_BYTES)
        pattern += pattern
        for slot in range(self.batch):
            shift = 4099 * (slot + 1) % PATTERN_BYTES
            for start in range(0, self.object_bytes, PATTERN_BYTES):
                size = min(PATTERN_BYTES, self.object_bytes - start)
                at = slot * self.object_bytes + start
                self.memory[at : at + size] = pattern[shift : shift + size]

    def current_checksums(self) -> list[int]:
        view = memoryview(self.memory)
        return [zlib.crc32(view[slot * self.object_bytes : (slot + 1) * self.object_bytes]) for slot in range(self.batch)]

    def zero(self) -> None:
        ctypes.memset(self.address, 0, self.batch * self.object_bytes)


class Call:
    """One batch of keys, put once and then looked up."""

    def __init__(self, store: Any, region: Region, keys: list[str]) -> None:
        self.keys = keys
        if region.pieces > 1:
            self.put = lambda: store.batch_put_from_multi_buffers(keys, region.piece_pointers, region.piece_sizes)
            self.get = lambda: store.batch_get_into_multi_buffers(keys, region.piece_pointers, region.piece_sizes)
        else:
            self.put = lambda: store.batch_put_from(keys, region.pointers, region.sizes)
            self.get = lambda: store.batch_get_into(keys, region.pointers, region.sizes)
        self.exist = lambda: store.batch_is_exist(keys)


class ThreadResult:
    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.times: list[float] = []
        self.objects = 0
        self.codes: Counter[str] = Counter()
        self.error = ""


class Client:
    """The measured calls. `prepare` sets the shape; `run` is one timed part."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.regions: list[Region] = []
        self.done: list[list[Call]] = []  # per thread: complete batches in the pool
        self.calls_made = 0
        self.prefix = ""

    def prepare(self, threads: int, batch: int, object_bytes: int, pieces: int, prefix: str) -> dict[str, Any]:
        self.prefix = prefix
        self.regions = [Region(index, batch, object_bytes, pieces) for index in range(threads)]
        self.done = [[] for _ in range(threads)]
        for region in self.regions:
            if code := self.store.register_buffer(region.address, batch * object_bytes):
                raise RuntimeError(f"register_buffer of {batch * object_bytes} bytes: {code}")
        return {}

    def _new_calls(self, thread: int, count: int) -> list[Call]:
        region = self.regions[thread]
        first = self.calls_made
        self.calls_made += count
        stem = f"{self.prefix}@tp_rank:0@pp_rank:0@group:0@{thread:04x}"
        return [
            Call(self.store, region, [f"{stem}{number:016x}{slot:08x}" for slot in range(region.batch)]) for number in range(first, first + count)
        ]

    def run(self, op: str, seconds: float, most_bytes: int) -> dict[str, Any]:
        """`most_bytes` bounds what is put, over all threads; a thread that has used its share up ends early."""
        threads = len(self.regions)
        region = self.regions[0]
        most_puts = max(1, most_bytes // (threads * region.batch * region.object_bytes)) if op in ("put", "mixed") else 0
        fresh = [self._new_calls(thread, most_puts) for thread in range(threads)]
        if op != "put" and not all(self.done):
            return {"failure": "nothing in the pool to look up: the puts before had failed"}
        work = [self._plan(op, thread, fresh[thread]) for thread in range(threads)]
        results = [ThreadResult() for _ in range(threads)]
        cpu = [0.0, 0.0]

        def note_start() -> None:
            cpu[0] = time.process_time()

        barrier = threading.Barrier(threads, action=note_start)
        runners = [threading.Thread(target=_run_thread, args=(work[index], seconds, barrier, results[index])) for index in range(threads)]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        cpu[1] = time.process_time()
        return self._summary(results, cpu[1] - cpu[0])

    def _plan(self, op: str, thread: int, fresh: list[Call]) -> Callable[[int], tuple[Callable[[], list[int]], int, Callable[[], None]] | None]:
        """Step number -> the call, what each of its answers has to be, and what to do when all were right. None: nothing left."""
        region, done = self.regions[thread], self.done[thread]
        known = list(done)
        chance = random.Random(thread)
        waiting = iter(fresh)

        def nothing() -> None:
            return None

        def put() -> tuple[Callable[[], list[int]], int, Callable[[], None]] | None:
            call = next(waiting, None)
            return None if call is None else (call.put, 0, lambda: done.append(call))

        def step(number: int) -> tuple[Callable[[], list[int]], int, Callable[[], None]] | None:
            if op == "put" or (op == "mixed" and chance.random() >= GET_SHARE):
                return put()
            call = known[number % len(known)]
            return (call.exist, 1, nothing) if op == "exist" else (call.get, region.object_bytes, nothing)

        return step

    def _summary(self, results: list[ThreadResult], cpu: float) -> dict[str, Any]:
        times = sorted(value for result in results for value in result.times)
        codes: Counter[str] = sum((result.codes for result in results), Counter())
        errors = [result.error for result in results if result.error]
        seconds = max(result.end for result in results) - min(result.start for result in results)
        objects = sum(result.objects for result in results)
        summary: dict[str, Any] = {
            "seconds": seconds,
            "calls": len(times),
            "objects": objects,
            "bytes": objects * self.regions[0].object_bytes,
            "longest_s": times[-1] if times else 0.0,
            "cpu_client": cpu,
        }
        if times:
            summary |= {"p50_us": times[len(times) // 2] * 1e6, "p99_us": times[min(len(times) - 1, len(times) * 99 // 100)] * 1e6}
        if codes or errors:
            counted = ", ".join(f"{code} x {count}" for code, count in codes.most_common(CODES_KEPT))
            slowest = f"the slowest call took {summary['longest_s']:.1f} s" if summary["longest_s"] > 1 else ""
            summary["failure"] = "; ".join(filter(None, (f"codes {counted}" if counted else "", slowest, *errors[:1])))
        return summary

    def verify(self) -> dict[str, Any]:
        """Get the newest and the oldest batch of each thread into zeroed memory and compare. Outside every timed part."""
        wrong = compared = 0
        for region, done in zip(self.regions, self.done, strict=True):
            for call in {id(call): call for call in (*done[:1], *done[-1:])}.values():
                region.zero()
                answers = call.get()
                right = [a == region.object_bytes and b == c for a, b, c in zip(answers, region.current_checksums(), region.checksums, strict=True)]
                compared += len(right)
                wrong += right.count(False)
            region.fill()
        return {"compared": compared, "wrong": wrong}

    def intact(self) -> dict[str, Any]:
        """Whether the timed gets left the right bytes: the regions were right before, so they have to be now."""
        wrong = sum(a != b for region in self.regions for a, b in zip(region.current_checksums(), region.checksums, strict=True))
        return {"compared": sum(region.batch for region in self.regions), "wrong": wrong}

    def clear(self) -> dict[str, Any]:
        removed = self.store.remove_all(True)
        if removed < 0:
            raise RuntimeError(f"remove_all: {removed}")
        for done in self.done:
            done.clear()
        return {"removed": removed}


def _run_thread(step: Callable[[int], Any], seconds: float, barrier: threading.Barrier, result: ThreadResult) -> None:
    now = time.perf_counter
    number = 0
    following = step(0)
    barrier.wait()
    result.start = ended = now()
    try:
        while following is not None and ended - result.start < seconds:
            call, wanted, succeeded = following
            started = now()
            answers = call()
            ended = now()
            result.times.append(ended - started)
            right = answers.count(wanted)
            result.objects += right
            if right == len(answers) and right:
                succeeded()
            else:
                result.codes.update(str(answer) for answer in answers if answer != wanted)
                if not answers:
                    result.codes["empty answer"] += 1
            number += 1
            following = step(number)
    except Exception as error:  # noqa: BLE001 - whatever the measured library raises is a result
        result.error = repr(error)
        ended = now()
    result.end = ended


class Worker:
    """The requests, by name."""

    def __init__(self) -> None:
        self.store: Any = None
        self.client: Client | None = None

    def setup(self, master: str, segment_bytes: int, buffer_bytes: int) -> dict[str, Any]:
        from mooncake.store import MooncakeDistributedStore

        self.store = MooncakeDistributedStore()
        started = time.perf_counter()
        code = self.store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, buffer_bytes, "tcp", "", master)
        if code != 0:
            raise RuntimeError(f"setup: {code}")
        self.client = Client(self.store)
        return {"setup_s": time.perf_counter() - started}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.pop("do")
        if name == "setup":
            return self.setup(**request)
        if self.client is None or name not in ("prepare", "run", "verify", "intact", "clear"):
            raise RuntimeError(f"no such request now: {name}")
        answer: dict[str, Any] = getattr(self.client, name)(**request)
        return answer


def main(name: str) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("\0" + name)
    worker = Worker()
    with connection.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            try:
                answer = {"ok": worker.answer(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - told to the bench, which decides
                answer = {"error": repr(error)}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    if worker.store is not None:
        worker.store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
