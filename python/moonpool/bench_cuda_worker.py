"""One process of ./moonpool bench cuda: moves whole prompts of a paged KV cache, and prints a JSON line for each number that it measured.

Runs where torch and the wheel are installed, and imports nothing else. What to measure comes as JSON on the command line (bench_cuda.py). On a CPU
(device "cpu") all of it runs too, for trying; its numbers mean nothing then.

Every contestant moves the same bytes between the same blocks and the same kind of host memory (pinned); each is run once before it is timed. What a
get brought is compared bit for bit, once for each contest.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mooncake.engine import TransferEngine
from mooncake.store import MooncakeDistributedStore

CALL_BLOCKS = 4096  # of one put or get: a connector hands over a prompt's blocks in one call
MOST_SINGLE_COPIES = 32768  # of the contestant with one copy a piece, whose rate does not depend on their number
SINGLE_COPIES_ROUNDS = 1  # counted ones, since it is slow and the other contestants are what is compared closely
COPY_BYTES_AT_ONCE = 64 << 20
PIN_SECONDS = 120.0

Job = Callable[[], None]


class Device:
    """A GPU, or the CPU in its place."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.on_gpu = self.device.type == "cuda"
        if not self.on_gpu:
            torch.set_num_threads(1)  # what is tried there is small

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def stream(self) -> Any:
        """A context in which work goes to a stream of its own."""
        return torch.cuda.stream(torch.cuda.Stream(self.device)) if self.on_gpu else contextlib.nullcontext()

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.on_gpu)

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self.device)


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


# ----------------------------------------------------------------------------------------------------------------------- contestants


class Prompt:
    """The paged cache of one model with a prompt in it: blocks 0 to n-1, in a random order, are put; blocks n to 2n-1 are got into."""

    def __init__(self, device: Device, layers: int, sides: int, piece_bytes: int, blocks: int) -> None:
        self.device, self.sides, self.piece_bytes, self.blocks = device, sides, piece_bytes, blocks
        self.layers = [device.empty(sides, 2 * blocks, piece_bytes) for _ in range(layers)]
        for layer in self.layers:
            layer.random_(0, 256)
        order = torch.randperm(blocks)
        self.source, self.target = order.tolist(), (order.flip(0) + blocks).tolist()
        self.source_index, self.target_index = (torch.tensor(table, device=device.device) for table in (self.source, self.target))

    @property
    def block_bytes(self) -> int:
        return len(self.layers) * self.sides * self.piece_bytes

    @property
    def bytes(self) -> int:
        return self.block_bytes * self.blocks

    def addresses(self, block: int) -> list[int]:
        size = self.piece_bytes
        return [layer.data_ptr() + (side * 2 * self.blocks + block) * size for layer in self.layers for side in range(self.sides)]

    def clear_target(self) -> None:
        for layer in self.layers:
            layer[:, self.blocks :].zero_()

    def arrived(self) -> bool:
        """Whether the blocks got are those put, bit for bit."""
        return all(torch.equal(layer[:, self.source_index], layer[:, self.target_index]) for layer in self.layers)


class Pool:
    """Ours: blocks as objects, their pieces by address."""

    name = "moonpool"

    def __init__(self, store: MooncakeDistributedStore, prompt: Prompt) -> None:
        self._store, self._prompt = store, prompt
        for layer in prompt.layers:
            check(store.register_buffer(layer.data_ptr(), layer.numel()) == 0, "register_buffer")
        self._sizes = [prompt.piece_bytes] * (len(prompt.layers) * prompt.sides)
        self._rounds = 0
        self._source, self._target = ([prompt.addresses(block) for block in table] for table in (prompt.source, prompt.target))
        self._got = self._keys()
        self._write(self._got)

    def _keys(self) -> list[str]:
        self._rounds += 1
        return [f"r{self._rounds}b{number}" for number in range(self._prompt.blocks)]

    def _write(self, keys: list[str]) -> None:
        for start in range(0, len(keys), CALL_BLOCKS):
            part = slice(start, start + CALL_BLOCKS)
            codes = self._store.batch_put_from_multi_buffers(keys[part], self._source[part], [self._sizes] * len(keys[part]))
            check(not any(codes), f"put answered {codes[:4]}")

    def _read(self) -> None:
        for start in range(0, len(self._got), CALL_BLOCKS):
            part = slice(start, start + CALL_BLOCKS)
            counts = self._store.batch_get_into_multi_buffers(self._got[part], self._target[part], [self._sizes] * len(self._got[part]))
            check(set(counts) == {self._prompt.block_bytes}, f"get answered {counts[:4]}")

    def job(self, operation: str) -> Job:
        keys = [] if operation == "get" else self._keys()
        if operation == "put":
            return lambda: self._write(keys)
        if operation == "get":
            return self._read
        return lambda: at_once(lambda: self._write(keys), self._read)

    def between(self) -> None:
        """Not timed: the pool gets rid of all but what is read."""
        self._store.batch_remove([f"r{self._rounds}b{number}" for number in range(self._prompt.blocks)] if self._rounds > 1 else [], True)

    def close(self) -> None:
        check(self._store.remove_all(force=True) >= 0, "remove_all")
        for layer in self._prompt.layers:
            check(self._store.unregister_buffer(layer.data_ptr()) == 0, "unregister_buffer")


class Copies:
    """A contestant of torch's: jobs that put and get on the current stream, through pinned memory."""

    def __init__(self, prompt: Prompt, host: torch.Tensor) -> None:
        self.prompt, self.out, self.back = prompt, host[: prompt.bytes], host[prompt.bytes : 2 * prompt.bytes]
        self.bytes = prompt.bytes

    def put(self) -> None:
        raise NotImplementedError

    def get(self) -> None:
        raise NotImplementedError

    def between(self) -> None:
        """Nothing is kept from one round to the next."""

    def job(self, operation: str) -> Job:
        device = self.prompt.device
        streams = {name: device.stream() for name in (("put", "get") if operation == "both" else (operation,))}

        def run() -> None:
            for name, stream in streams.items():
                with stream:
                    self.put() if name == "put" else self.get()
            device.synchronize()

        return run


class SingleCopies(Copies):
    """One asynchronous copy a piece."""

    name = "one copy a piece"

    def __init__(self, prompt: Prompt, host: torch.Tensor) -> None:
        super().__init__(prompt, host)
        pieces = len(prompt.layers) * prompt.sides
        blocks = max(1, min(prompt.blocks, MOST_SINGLE_COPIES // pieces))
        self.bytes = blocks * prompt.block_bytes
        self._out, self._in = [], []
        at = 0
        for source, target in zip(prompt.source[:blocks], prompt.target[:blocks], strict=True):
            for layer in prompt.layers:
                for side in range(prompt.sides):
                    self._out.append((self.out[at : at + prompt.piece_bytes], layer[side, source]))
                    self._in.append((layer[side, target], self.back[at : at + prompt.piece_bytes]))
                    at += prompt.piece_bytes

    def put(self) -> None:
        for to, source in self._out:
            to.copy_(source, non_blocking=True)

    def get(self) -> None:
        for to, source in self._in:
            to.copy_(source, non_blocking=True)


class IndexSelect(Copies):
    """A gather on the device to fresh memory, then one copy, layer by layer; and back."""

    name = "index_select"

    def _host(self, memory: torch.Tensor, layer: int) -> torch.Tensor:
        size = self.prompt.bytes // len(self.prompt.layers)
        return memory[layer * size : (layer + 1) * size].view(self.prompt.sides, self.prompt.blocks, self.prompt.piece_bytes)

    def put(self) -> None:
        for number, layer in enumerate(self.prompt.layers):
            self._host(self.out, number).copy_(layer.index_select(1, self.prompt.source_index), non_blocking=True)

    def get(self) -> None:
        for number, layer in enumerate(self.prompt.layers):
            arrived = self._host(self.back, number).to(self.prompt.device.device, non_blocking=True)
            layer.index_copy_(1, self.prompt.target_index, arrived)


class WholeBuffer(Copies):
    """The link's own rate: the same number of bytes in few large copies of contiguous memory."""

    name = "whole buffer"

    def __init__(self, prompt: Prompt, host: torch.Tensor) -> None:
        super().__init__(prompt, host)
        self._size = min(prompt.bytes, max(COPY_BYTES_AT_ONCE, prompt.layers[0].numel()))
        self._whole, self._other = prompt.device.empty(self._size), prompt.device.empty(self._size)
        self.bytes = prompt.bytes // self._size * self._size

    def put(self) -> None:
        for start in range(0, self.bytes, self._size):
            self.out[start : start + self._size].copy_(self._whole, non_blocking=True)

    def get(self) -> None:
        for start in range(0, self.bytes, self._size):
            self._other.copy_(self.back[start : start + self._size], non_blocking=True)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"wrong: {what}")


def at_once(*jobs: Job) -> None:
    """Each on a thread of its own; an exception of one comes out of here."""
    errors: list[BaseException] = []

    def guarded(job: Job) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 (handed on)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def timed(device: Device, job: Job) -> float:
    device.synchronize()
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def wait_until_pinned(device: Device, pool: Pool, status_page: str) -> None:
    """The lender's memory is pinned in the background from the first use on; what is measured is how things are afterwards."""
    deadline = time.monotonic() + PIN_SECONDS
    while device.on_gpu:
        timed(device, pool.job("put"))
        pool.between()
        with urllib.request.urlopen(status_page, timeout=5) as answer:
            nodes = json.load(answer)["nodes"]
        if any(node["device_bytes"]["in_place"] for node in nodes):
            return
        check(time.monotonic() < deadline, f"nothing went in place within {PIN_SECONDS:.0f} s: see the log of this worker")


# -------------------------------------------------------------------------------------------------------------------------- measures


class Budget:
    """Which shapes still fit into the time. The next one is taken to need what the last one did, and more as it has more bytes."""

    def __init__(self, until: float | None) -> None:
        self._until = until  # of time.time(); None: all fit
        self._seconds, self._bytes = 0.0, 0

    def fits(self, size: int) -> bool:
        expected = self._seconds * max(1.0, size / self._bytes) if self._bytes else 0.0
        return self._until is None or time.time() + expected <= self._until

    def spent(self, seconds: float, size: int) -> None:
        self._seconds, self._bytes = seconds, size


def whole_prompts(device: Device, store: MooncakeDistributedStore, task: dict[str, Any]) -> None:
    """Rates of put, get and both at once, of every contestant, their rounds interleaved; of the shapes for which there is time."""
    host = device.pinned(0)
    budget = Budget(task["until"])
    for shape in task["shapes"]:
        size = shape["layers"] * shape["sides"] * shape["piece_bytes"] * shape["blocks"]
        if not budget.fits(size):
            tell(left_out=shape["name"])
            continue
        started = time.monotonic()
        if host.numel() < 2 * size:
            host = device.pinned(2 * size)
        prompt = Prompt(device, shape["layers"], shape["sides"], shape["piece_bytes"], shape["blocks"])
        pool = Pool(store, prompt)
        contestants = [pool, *(kind(prompt, host) for kind in (SingleCopies, IndexSelect, WholeBuffer))]
        wait_until_pinned(device, pool, task["status"])
        prompt.clear_target()
        pool.job("get")()
        check(prompt.arrived(), f"bytes of {shape['name']} after a get")
        for operation in ("put", "get", "both"):
            for round_number in range(-1, task["rounds"]):  # the first is not counted
                for contestant in contestants:
                    if isinstance(contestant, SingleCopies) and round_number >= SINGLE_COPIES_ROUNDS:
                        continue
                    seconds = timed(device, contestant.job(operation))
                    contestant.between()
                    moved = (prompt.bytes if isinstance(contestant, Pool) else contestant.bytes) * (2 if operation == "both" else 1)
                    if round_number >= 0:
                        record = {"rate": moved / seconds / 1e9, "bytes": moved}
                        tell(path="prompts", shape=shape["name"], operation=operation, side=contestant.name, unit="GB/s", record=record)
        pool.close()
        budget.spent(time.monotonic() - started, size)
        tell(done=shape["name"])
        del prompt, pool, contestants


def latency(device: Device, store: MooncakeDistributedStore, task: dict[str, Any]) -> None:
    """Of one block at a time."""
    shape = task["shapes"][0]
    prompt = Prompt(device, shape["layers"], shape["sides"], shape["piece_bytes"], 1)
    host = device.pinned(2 * prompt.bytes)
    pool = Pool(store, prompt)
    wait_until_pinned(device, pool, task["status"])
    for operation in ("put", "get"):
        for contestant in (pool, SingleCopies(prompt, host), IndexSelect(prompt, host), WholeBuffer(prompt, host)):
            times: list[float] = []
            for _ in range(task["calls"] + task["calls"] // 4):
                times.append(timed(device, contestant.job(operation)) * 1e6)
                contestant.between()
            times = sorted(times[task["calls"] // 4 :])
            record = {"rate": 1e6 / statistics.median(times), "p50_us": statistics.median(times), "p99_us": times[int(len(times) * 0.99)]}
            tell(path="latency", shape=shape["name"], operation=operation, side=contestant.name, unit="blocks/s", record=record)
    pool.close()
    tell(done="latency")


class Gemm:
    """A matrix product over and over on a stream of its own, which nothing of the store's waits for. Some are always queued behind the one that
    runs, so that the device does not wait for this thread, which shares the interpreter with those that call the store."""

    AT_A_TIME = 4
    QUEUED = 3  # times AT_A_TIME

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._size = device, size
        self._a, self._b = (torch.randn(size, size, device=device.device, dtype=torch.bfloat16) for _ in range(2))
        self._out = torch.empty_like(self._a)

    def teraflops(self, going: Callable[[], bool]) -> float:
        """The rate while it goes on."""
        products, queued = 0, collections.deque[Any]()
        with self._device.stream():
            started = time.perf_counter()
            while going() or not products:
                for _ in range(self.AT_A_TIME):
                    torch.matmul(self._a, self._b, out=self._out)
                products += self.AT_A_TIME
                if self._device.on_gpu:
                    queued.append(torch.cuda.current_stream(self._device.device).record_event())
                if len(queued) == self.QUEUED:
                    queued.popleft().synchronize()
            for event in queued:
                event.synchronize()
            seconds = time.perf_counter() - started
        return 2 * self._size**3 * products / seconds / 1e12

    def alone(self, seconds: float) -> float:
        """Taken as beside() does, with nothing beside it."""

        def idle() -> float:
            time.sleep(seconds)
            return 0.0

        return self.beside(idle)[1]

    def beside(self, work: Callable[[], float]) -> tuple[float, float]:
        """What the work answers, and this product's rate in the same time."""
        ended, rates = threading.Event(), [0.0]

        def products() -> None:
            rates[0] = self.teraflops(lambda: not ended.is_set())

        def worked() -> None:
            try:
                answers.append(work())
            finally:
                ended.set()

        answers: list[float] = []
        at_once(products, worked)
        return answers[0], rates[0]


def multiprocessors(device: Device, store: MooncakeDistributedStore, task: dict[str, Any]) -> None:
    """Rates alone and beside a matrix product, and the product's, with the setting that this process was started with. The product is warm before
    it is measured: a cold GPU's clock is lower."""
    shape = task["shapes"][0]
    prompt = Prompt(device, shape["layers"], shape["sides"], shape["piece_bytes"], shape["blocks"])
    pool = Pool(store, prompt)
    wait_until_pinned(device, pool, task["status"])

    def rate(operation: str) -> float:
        moved, spent = 0, 0.0
        while spent < task["seconds"]:
            job = pool.job(operation)
            started = time.perf_counter()  # no synchronize(): that would wait for the matrix product
            job()
            spent += time.perf_counter() - started
            moved += prompt.bytes
            pool.between()
        return moved / spent / 1e9

    gemm = Gemm(device, task["gemm"])
    gemm.alone(task["seconds"] / 2)
    for operation in ("put", "get"):
        record = {"setting": float(task["setting"]), "rate": rate(operation), "gemm_alone": gemm.alone(task["seconds"])}
        record["rate_beside"], record["gemm_beside"] = gemm.beside(functools.partial(rate, operation))
        tell(path="sms", shape=task["setting"], operation=operation, side="moonpool", unit="GB/s", record=record)
    pool.close()
    tell(done=f"{task['setting']} multiprocessors")


def serve(device: Device, task: dict[str, Any]) -> None:
    """The other process of between_processes(): registers memory, says where it is, and stays until its input ends."""
    engine, memory = TransferEngine(), device.empty(task["bytes"])
    memory.fill_(1)
    device.synchronize()
    check(engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "initialize")
    check(engine.register_memory(memory.data_ptr(), memory.numel()) == 0, "register_memory")
    print(engine.get_rpc_port(), memory.data_ptr(), flush=True)
    sys.stdin.read()


def between_processes(device: Device, task: dict[str, Any]) -> None:
    """The transfer engine from this process's device to another process's, beside one process's own copy between the two devices."""
    exchanges = task["exchanges"]
    most = max(exchange["bytes"] for exchange in exchanges)
    argv = [sys.executable, "-P", __file__, json.dumps({"measure": "serve", "device": task["remote"], "bytes": most})]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            port, remote = map(int, other.stdout.readline().split())
            engine, memory = TransferEngine(), device.empty(most)
            memory.random_(0, 256)
            beside = torch.empty(most, dtype=torch.uint8, device=task["remote"])
            check(engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "initialize")
            check(engine.register_memory(memory.data_ptr(), most) == 0, "register_memory")
            for exchange in exchanges:
                exchange_once(device, task["rounds"], exchange, (engine, f"127.0.0.1:{port}", remote), (memory, beside))
        finally:
            other.kill()
    tell(done="between processes")


def exchange_once(
    device: Device, rounds: int, exchange: dict[str, Any], other: tuple[TransferEngine, str, int], memory: Sequence[torch.Tensor]
) -> None:
    """One size in pieces of one size, by the engine to the other process's memory and by a plain copy to this process's second memory."""
    engine, name, remote = other
    size, piece = exchange["bytes"], exchange["piece"]
    starts = range(0, size // piece * piece, piece)
    here, beside = (one[:size] for one in memory)
    local, there = [here.data_ptr() + at for at in starts], [remote + at for at in starts]
    lengths = [piece] * len(starts)
    jobs = {
        ("moonpool", "write"): lambda: engine.batch_transfer_sync_write(name, local, there, lengths),
        ("moonpool", "read"): lambda: engine.batch_transfer_sync_read(name, local, there, lengths),
        ("one copy", "write"): lambda: finished(device, beside.copy_(here, non_blocking=True)),
        ("one copy", "read"): lambda: finished(device, here.copy_(beside, non_blocking=True)),
    }
    for round_number in range(-1, rounds):
        for (side, operation), job in jobs.items():
            device.synchronize()
            started = time.perf_counter()
            code = job()
            seconds = time.perf_counter() - started
            check(code == 0, f"a transfer answered {code}")
            if round_number >= 0:
                record = {"rate": len(starts) * piece / seconds / 1e9, "bytes": len(starts) * piece, "seconds": seconds}
                tell(path="processes", shape=exchange["name"], operation=operation, side=side, unit="GB/s", record=record)


def finished(device: Device, _result: torch.Tensor) -> int:
    device.synchronize()
    return 0


MEASURES = {"prompts": whole_prompts, "latency": latency, "sms": multiprocessors}


def main() -> None:
    task = json.loads(sys.argv[1])
    device = Device(task["device"])
    if task["measure"] == "serve":
        serve(device, task)
        return
    if device.on_gpu:
        tell(gpu=torch.cuda.get_device_name(device.device), torch=torch.__version__)
    if task["measure"] == "processes":
        between_processes(device, task)
        return
    store = MooncakeDistributedStore()
    check(store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", task["master"]) == 0, "setup")
    MEASURES[task["measure"]](device, store, task)
    store.close()


if __name__ == "__main__":
    main()
