"""./moonpool bench cuda: whole prompts of real models between a GPU and the pool, beside what torch does by itself, in one run.

Prints and keeps (bench/out/cuda.json) tables: what moves the memory by itself, by multiprocessors, size of pieces and checksums, and where the time
of one block goes (bench/cuda_link.cpp); the latency of one block through the store; the transfer engine between two processes; rates and a matrix
product's against MOONPOOL_CUDA_SMS; and, last, whole prompts: put, get and both at once. --seconds bounds all of it: the prompts, the most telling
ones first, get the time that is left, and the output names those that got none. --update-docs puts the tables into docs/benchmarks.md.

The numbers come from cuda_link and from bench_cuda_worker.py in the environment that cuda_host.py makes on the host's own torch; the pool's memory
is lent by another process, so it is shared memory. --dry does it with small tensors on the CPU, in an environment that has torch and the wheel, for
trying; --link names a cuda_link of a build with tests then.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moonpool import cuda_host, cuda_tests
from moonpool.bench_machine import available_bytes
from moonpool.bench_options import GIB, KIB, MIB
from moonpool.bench_results import Cell, Results, ratio
from moonpool.bench_tables import grid, times, with_range
from moonpool.commands import output, tail
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import IN_CHECKOUT, ROOT, RUNS, VENV_PYTHON
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor

OUT = ROOT / "bench" / "out" / "cuda.json"
PAGE = ROOT / "docs" / "benchmarks.md"
LINK = cuda_host.CUDA_BUILD / "bench" / "cuda_link"
BEGIN, END = "<!-- cuda: begin (./moonpool bench cuda --update-docs) -->", "<!-- cuda: end -->"
WORKER = Path(__file__).with_name("bench_cuda_worker.py")
READY_SECONDS = 30.0
MEASURE_SECONDS = 900.0  # of one program, before it is killed; with --seconds: as long as the rest of the time, and a little more
LEAST_SECONDS, OVER_SECONDS = 30.0, 20.0
TORCH_SIDES = ("one copy a piece", "index_select", "whole buffer")
ONE_GPU = "Both processes share one GPU: a copy stays within its memory (read and written there), and says nothing about NVLink."
TWO_GPUS = "Each process has a GPU of its own."
LENDER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 0, "tcp", "", sys.argv[1]) == 0
print("lent", flush=True)
sys.stdin.read()
store.close()
"""


def _size(value: int) -> str:
    if value >= GIB:
        return f"{value / GIB:.4g} GiB"
    return f"{value / MIB:.4g} MiB" if value >= MIB else f"{value / KIB:.4g} KiB"


@dataclass(frozen=True)
class Model:
    """What one GPU holds of a model's KV cache, in bf16. `sides`: K and V, or the one latent of MLA."""

    name: str
    layers: int
    sides: int
    token_bytes: int  # of one side of one layer


# In the order in which they are measured.
MODELS = (
    Model("Llama-3-8B", 32, 2, 8 * 128 * 2),
    Model("Llama-3-70B TP8", 80, 2, 1 * 128 * 2),
    Model("DeepSeek-V3 MLA", 61, 1, 576 * 2),
    Model("Qwen2.5-7B", 28, 2, 4 * 128 * 2),
)
TRIAL = Model("trial", 3, 2, 128)


@dataclass(frozen=True)
class Shape:
    """A prompt of one model in blocks of one size, as the worker takes it."""

    name: str
    layers: int
    sides: int
    piece_bytes: int
    blocks: int

    @property
    def prompt_bytes(self) -> int:
        return self.layers * self.sides * self.piece_bytes * self.blocks


def shape_of(model: Model, block_tokens: int, tokens: int) -> Shape:
    count = f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
    name = f"{model.name}, {block_tokens}, {count}"
    return Shape(name, model.layers, model.sides, model.token_bytes * block_tokens, max(1, tokens // block_tokens))


@dataclass(frozen=True)
class Exchange:
    """What the transfer engine moves in one call."""

    name: str
    bytes: int
    piece: int


def exchange_of(size: int, piece: int) -> Exchange:
    return Exchange(f"{_size(size)} as one piece" if piece == size else f"{_size(size)} in pieces of {_size(piece)}", size, piece)


@dataclass(frozen=True)
class Plan:
    """One run."""

    device: str
    prompts: tuple[Shape, ...]
    block: Shape  # whose latency is measured
    settings: tuple[int, ...]  # of MOONPOOL_CUDA_SMS
    sms_shape: Shape
    rounds: int
    calls: int
    seconds: float
    gemm: int
    remote: str  # the device of the other process of the transfer engine's table
    exchanges: tuple[Exchange, ...]
    link: tuple[str, ...]  # the program and its arguments; empty: left out
    budget: float | None  # seconds for all of it

    @property
    def segment_bytes(self) -> int:
        """What the lender lends: what is got, and one prompt on its way in."""
        largest = max(shape.prompt_bytes for shape in (*self.prompts, self.block, self.sms_shape))
        return 2 * largest + largest // 4 + 64 * MIB


def make_plan(options: argparse.Namespace) -> Plan:
    if options.dry:
        shapes = tuple(shape_of(TRIAL, block, 64) for block in (8, 16))
        exchanges = tuple(exchange_of(64 * KIB, piece) for piece in (64 * KIB, 4 * KIB))
        link: tuple[str, ...] = (str(options.link), "--fake") if options.link else ()
        return Plan("cpu", shapes, shape_of(TRIAL, 16, 16), (1, 2), shapes[0], 2, 8, 0.05, 32, "cpu", exchanges, link, options.seconds)
    tokens = (16384, 1024) if options.quick else (16384, 1024, 4096, 65536)
    shapes = tuple(shape_of(model, block, count) for count in tokens for block in (16, 64) for model in MODELS)
    llama = MODELS[0]
    rounds = options.rounds or (3 if options.seconds else 2 if options.quick else 5)
    remote = options.device if len(cuda_tests.gpu_indices()) < 2 else next(name for name in ("cuda:0", "cuda:1") if name != options.device)
    pieces = {256 * MIB: (256 * MIB, 4 * KIB, 32 * KIB, MIB), GIB: (GIB, 32 * KIB)}
    exchanges = tuple(exchange_of(size, piece) for size, of_it in pieces.items() for piece in of_it)
    number = options.device.partition(":")[2] or "0"
    link = (str(options.link or LINK), "--device", number, *(["--quick"] if options.quick else []))
    block, sms_shape = shape_of(llama, 16, 16), shape_of(llama, 16, 4096)
    return Plan(
        options.device, shapes, block, (1, 2, 4, 8, 16, 32, 64), sms_shape, rounds, 200, 1.0, 8192, remote, exchanges, link, options.seconds
    )


# --------------------------------------------------------------------------------------------------------------------------- running


class Run:
    """A master, a lender of memory, and workers one after the other; results as they come."""

    def __init__(self, python: Path, plan: Plan, folder: Path, supervisor: Supervisor, until: float | None) -> None:
        self._python, self._plan, self._folder = python, plan, folder
        self._until = until  # of time.time(); None: no bound
        self.facts: dict[str, str] = {}
        self.left_out: list[str] = []  # shapes for which there was no time
        self.failed: list[str] = []  # the first line of what each failed program said
        port, admin = pick_free(2)
        self._master, self._status = f"127.0.0.1:{port}", f"http://127.0.0.1:{admin}/status"
        argv: list[str | Path] = [python.parent / "mooncake_master", f"--port={port}", "--rpc_address=127.0.0.1", f"--metrics_port={admin}"]
        master = supervisor.start(Component("master", [*argv, "--metrics_host=127.0.0.1"], folder / "master.log"))
        self._wait(master, lambda: accepts("127.0.0.1", port))
        # A component's standard input is empty, which would end the lender at once: a shell holds it open.
        words = ["sh", "-c", 'sleep infinity | exec "$@"', "lender", str(python), "-P", "-c", LENDER, self._master, str(plan.segment_bytes)]
        lender = supervisor.start(Component("lender", words, folder / "lender.log"))
        self._wait(lender, lambda: "lent" in tail(lender.log))

    @staticmethod
    def _wait(component: Component, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            if not component.running:
                raise component.died()
            if time.monotonic() > deadline:
                raise UserError(f"the {component.name} is not ready after {READY_SECONDS:.0f} s", f"see {component.log}")
            time.sleep(0.02)

    def cells(self, measure: str, name: str, variables: dict[str, str], told: Callable[[str], None], **task: object) -> Iterator[Cell]:
        """What one worker says, line by line."""
        common = {"device": self._plan.device, "master": self._master, "status": self._status, "until": self._until}
        whole = {"measure": measure, **common, **task}
        yield from self.spoken(name, [str(self._python), "-P", str(WORKER), json.dumps(whole)], variables, told)

    def spoken(self, name: str, argv: Sequence[str], variables: dict[str, str], told: Callable[[str], None]) -> Iterator[Cell]:
        """What one program says, line by line. One that fails is said and kept in `failed`: the others' numbers are worth having without its."""
        try:
            yield from self._spoken(name, argv, variables, told)
        except (UserError, OSError) as error:
            self.failed.append(f"{name}: {str(error).splitlines()[0]}")
            told(f"{name} failed")
            print(error.render() if isinstance(error, UserError) else f"{name} failed: {error}", file=sys.stderr, flush=True)

    def _spoken(self, name: str, argv: Sequence[str], variables: dict[str, str], told: Callable[[str], None]) -> Iterator[Cell]:
        log = self._folder / f"{name}.log"
        limit = MEASURE_SECONDS if self._until is None else max(LEAST_SECONDS, self._until - time.time() + OVER_SECONDS)
        with log.open("wb") as errors:
            worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **variables}, text=True)
            assert worker.stdout is not None
            timer = threading.Timer(limit, worker.kill)
            timer.start()
            try:
                for line in worker.stdout:
                    said: dict[str, Any] = json.loads(line)
                    if "record" in said:
                        record = said.pop("record")
                        yield Cell("cuda", said["path"], said["shape"], 1, said["operation"], said["side"], said["unit"], [record])
                    elif "done" in said:
                        told(said["done"])
                    elif "left_out" in said:
                        self.left_out.append(said["left_out"])
                        told(f"no time for {said['left_out']}")
                    else:
                        self.facts |= {name: str(value) for name, value in said.items()}
                status = worker.wait()
            finally:
                timer.cancel()
                worker.kill()
                worker.wait()
        if status != 0:
            why = f" (it is killed after {limit:.0f} s)" if status == -signal.SIGKILL else ""
            raise UserError(f"the worker for {name} ended with {status}{why}", f"its whole log is {log}", tail(log))


def measure(run: Run, plan: Plan, told: Callable[[str], None]) -> Iterator[Cell]:
    """The short ones first: the prompts take what is left of the time."""
    if plan.link:
        yield from run.spoken("link", plan.link, {}, told)
    yield from run.cells("latency", "latency", {}, told, shapes=[asdict(plan.block)], calls=plan.calls)
    exchanges = [asdict(exchange) for exchange in plan.exchanges]
    yield from run.cells("processes", "processes", {}, told, remote=plan.remote, exchanges=exchanges, rounds=plan.rounds)
    for setting in plan.settings:
        task = {"shapes": [asdict(plan.sms_shape)], "setting": str(setting), "seconds": plan.seconds, "gemm": plan.gemm}
        yield from run.cells("sms", f"sms-{setting}", {"MOONPOOL_CUDA_SMS": str(setting)}, told, **task)
    shapes = [asdict(shape) for shape in plan.prompts]
    yield from run.cells("prompts", "prompts", {}, told, shapes=shapes, rounds=plan.rounds)


def add(results: Results, cell: Cell) -> None:
    """Takes a round in, to those of its contest."""
    if (known := results.find(*cell.key)) is not None:
        known.rounds += cell.rounds
    else:
        results.cells.append(cell)


# ---------------------------------------------------------------------------------------------------------------------------- tables


def _prompts(results: Results, shapes: dict[str, Shape], markdown: bool) -> str:
    rows = []
    for shape, operation in dict.fromkeys((cell.shape, cell.operation) for cell in results.cells if cell.path == "prompts"):
        ours, single, index, whole = (results.find("cuda", "prompts", shape, 1, operation, side) for side in ("moonpool", *TORCH_SIDES))
        known = shapes.get(shape)
        sizes = (_size(known.piece_bytes), _size(known.prompt_bytes)) if known else ("", "")
        compared = (with_range(whole), times(ratio(ours, whole)), with_range(single), times(ratio(ours, single)), with_range(index), times(ratio(ours, index)))
        rows.append((*shape.rsplit(", ", 2), *sizes, operation, with_range(ours), *compared))
    others = ("whole buffer GB/s", "ratio", "one copy a piece GB/s", "ratio", "index_select GB/s", "ratio")
    head = ("model", "block", "tokens", "piece", "prompt", "work", "Moonpool GB/s", *others)
    left_out = results.settings.get("left_out", [])
    untimed = f"\n\nLeft out, for want of time: {'; '.join(left_out)}." if left_out else ""
    return f"{grid(head, rows, markdown)}{_smallest(results)}{untimed}"


def _smallest(results: Results) -> str:
    """The worst of the shapes for each kind of work."""
    parts = []
    for operation in ("put", "get", "both"):
        found = []
        for ours in results.cells:
            if (ours.path, ours.operation, ours.side) == ("prompts", operation, "moonpool"):
                whole = results.find("cuda", "prompts", ours.shape, 1, operation, "whole buffer")
                if (value := ratio(ours, whole)) is not None:
                    found.append((value, ours.shape))
        if found:
            value, shape = min(found)
            parts.append(f"{operation} {times(value)} ({shape})")
    return f"\n\nThe smallest ratio to the whole buffer over all shapes: {'; '.join(parts)}." if parts else ""


def _of(results: Results, path: str) -> list[Cell]:
    return [cell for cell in results.cells if cell.path == path and cell.rounds]


def _median(cell: Cell | None, name: str, form: str = ".1f") -> str:
    spread = cell.spread(name) if cell else None
    return "" if spread is None else format(spread.median, form)


def _link_rows(results: Results) -> tuple[list[int], list[tuple[str, str]]]:
    """The numbers of multiprocessors, and the (pieces, work) measured with them."""
    cells = [cell for cell in _of(results, "link") if cell.side != "one copy"]
    return sorted({int(cell.rounds[0]["sms"]) for cell in cells}), list(dict.fromkeys((cell.shape, cell.operation) for cell in cells))


def _link_cell(results: Results, shape: str, operation: str, sms: int, checksums: bool) -> Cell | None:
    return results.find("cuda", "link", shape, 1, operation, f"{sms} SMs{', checksums' if checksums else ''}")


def _curve(results: Results, markdown: bool) -> str:
    settings, kinds = _link_rows(results)
    rows = []
    for shape, operation in kinds:
        whole = results.find("cuda", "link", "whole buffer", 1, operation, "one copy")
        cells = [_link_cell(results, shape, operation, sms, True) for sms in settings]
        best = max((cell.rate.median for cell in cells if cell and cell.rate), default=0.0)
        share = f"{best / whole.rate.median:.0%}" if whole and whole.rate else ""
        rows.append((shape, operation, *(_median(cell, "rate") for cell in cells), _median(whole, "rate"), share))
    return grid(("pieces", "work", *(f"{sms} SMs" for sms in settings), "one copy", "best of it"), rows, markdown)


def _checksums(results: Results, markdown: bool) -> str:
    settings, kinds = _link_rows(results)
    rows = []
    for shape, operation in kinds:
        entries = []
        for sms in settings:
            bare, hashed = (_link_cell(results, shape, operation, sms, checksums) for checksums in (False, True))
            kept = ratio(hashed, bare)
            entries.append("" if kept is None else f"{_median(bare, 'rate')} / {_median(hashed, 'rate')} {kept - 1:+.1%}")
        rows.append((shape, operation, *entries))
    return grid(("pieces", "work", *(f"{sms} SMs" for sms in settings)), rows, markdown)


def _parts(results: Results, markdown: bool) -> str:
    rows = []
    for cell in _of(results, "link latency"):
        if cell.side.endswith(", unordered"):
            continue
        unordered = results.find("cuda", cell.path, cell.shape, 1, cell.operation, f"{cell.side}, unordered")
        numbers = (_median(cell, "p50_us"), _median(cell, "p99_us"), _median(cell, "submit_us"), _median(cell, "wait_us"))
        without = (_median(unordered, "p50_us"), _median(unordered, "submit_us"), _median(unordered, "wait_us"))
        rows.append((cell.shape, cell.operation, cell.side, *numbers, *without))
    head = ("block", "work", "side", "p50 us", "p99 us", "submit us", "wait us", "unordered p50 us", "submit us", "wait us")
    return grid(head, rows, markdown)


def _memories(results: Results, markdown: bool) -> str:
    cells = _of(results, "link memory")
    sides = list(dict.fromkeys(cell.side for cell in cells))
    rows = []
    for shape, operation in dict.fromkeys((cell.shape, cell.operation) for cell in cells):
        found = [results.find("cuda", "link memory", shape, 1, operation, side) for side in sides]
        rows.append((shape, operation, *(_median(cell, "rate") for cell in found)))
    return grid(("host memory", "work", *sides), rows, markdown)


def _driver(results: Results, markdown: bool) -> str:
    rows = [(cell.shape, _median(cell, "p50_us", ".2f"), _median(cell, "p99_us", ".2f")) for cell in _of(results, "link driver")]
    return grid(("call", "p50 us", "p99 us"), rows, markdown)


def _host(results: Results, markdown: bool) -> str:
    rows = []
    for cell in _of(results, "link host"):
        rows.append((cell.shape, cell.operation, *(_median(cell, name) for name in ("ns_a_piece", "submit_us", "wait_us"))))
    return grid(("call", "work", "submit, ns a piece", "submit us", "wait us"), rows, markdown)


def _latency(results: Results, markdown: bool) -> str:
    rows = []
    for cell in results.cells:
        if cell.path == "latency" and (p50 := cell.spread("p50_us")) and (p99 := cell.spread("p99_us")):
            rows.append((cell.shape, cell.operation, cell.side, f"{p50.median:.1f}", f"{p99.median:.1f}"))
    return grid(("block", "work", "side", "p50 us", "p99 us"), rows, markdown)


def _processes(results: Results, markdown: bool) -> str:
    rows = []
    for shape, operation in dict.fromkeys((cell.shape, cell.operation) for cell in results.cells if cell.path == "processes"):
        ours, copy = (results.find("cuda", "processes", shape, 1, operation, side) for side in ("moonpool", "one copy"))
        micros = [f"{spread.median * 1e6:.0f}" if cell and (spread := cell.spread("seconds")) else "" for cell in (ours, copy)]
        rows.append((shape, operation, with_range(ours), with_range(copy), times(ratio(ours, copy)), *micros))
    head = ("memory", "work", "Moonpool GB/s", "one copy GB/s", "ratio", "Moonpool us a call", "one copy us")
    return f"{ONE_GPU if results.settings.get('one_gpu') else TWO_GPUS}\n\n{grid(head, rows, markdown)}"


def _sms(results: Results, operation: str, markdown: bool) -> str:
    rows = []
    for cell in _of(results, "sms"):
        if cell.operation == operation:
            last = cell.rounds[-1]
            share = last["gemm_beside"] / last["gemm_alone"] if last["gemm_alone"] else 0.0
            products = (f"{last['gemm_alone']:.0f}", f"{last['gemm_beside']:.0f}", f"{share - 1:+.1%}")
            rows.append((cell.shape, f"{last['rate']:.1f}", f"{last['rate_beside']:.1f}", *products))
    head = ("MOONPOOL_CUDA_SMS", f"{operation} GB/s alone", "beside the product", "product alone TFLOP/s", "beside TFLOP/s", "change")
    return grid(head, rows, markdown)


def tables(results: Results, markdown: bool) -> str:
    """All tables as text."""
    shapes = {name: Shape(**values) for name, values in results.settings.get("shapes", {}).items()}
    by_itself = [
        ("The copier by itself, with checksums: GB/s by the size of pieces and the multiprocessors of a launch", _curve),
        ("The copier's checksums: GB/s without / with, and what they change", _checksums),
        ("One block by the copier: submit() and the wait for its end; unordered: not after the default stream", _parts),
        ("What the host's memory is made of: GB/s of one copy, and of pieces with the default settings", _memories),
        ("Calls of the driver", _driver),
        ("What the host does for each piece", _host),
    ]
    parts = [(title, table(results, markdown)) for title, table in by_itself if _of(results, "link")]
    parts += [
        ("One block at a time through the store", _latency(results, markdown)),
        ("The transfer engine between the devices of two processes, beside one process's own copy between them", _processes(results, markdown)),
        ("Put by the multiprocessors that a launch may take, alone and beside a bf16 matrix product", _sms(results, "put", markdown)),
        ("Get by the multiprocessors that a launch may take, alone and beside a bf16 matrix product", _sms(results, "get", markdown)),
        ("Whole prompts between a GPU and the pool", _prompts(results, shapes, markdown)),
    ]
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    failed = results.settings.get("failed", [])
    if failed:
        parts.append(("Failed", "\n".join(f"- {line}" for line in failed)))
    titled = [f"{'### ' if markdown else '== '}{title}\n\n{text}" for title, text in parts]
    return "\n\n".join([f"Measured on: {machine}. Medians of the rounds, in brackets the outermost.", *titled])


def update_page(page: str, text: str) -> str:
    """The page with what lies between the markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE.name} has lost its markers", f"put the lines {BEGIN} and {END} where the tables belong")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


# ------------------------------------------------------------------------------------------------------------------------------ main


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./moonpool bench cuda", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda:0", help="the GPU (cuda:0)")
    parser.add_argument("--rounds", type=int, default=0, help="of each contest (5; 3 with --seconds)")
    parser.add_argument("--seconds", type=float, help="for measuring, after the build: prompts for which there is no time are left out")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rounds and settings")
    parser.add_argument("--dry", action="store_true", help="no GPU: all of it with small tensors on the CPU, to see that it works")
    parser.add_argument("--python", type=Path, help="with --dry: the python3 that has torch and the wheel (.venv's)")
    parser.add_argument("--link", type=Path, metavar="PROGRAM", help="a cuda_link that is built already; with --dry it runs with --fake")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE", help="where the results go (bench/out/cuda.json)")
    parser.add_argument("--update-docs", action="store_true", help="measure nothing: put the tables of that file into docs/benchmarks.md")
    return parser.parse_args(arguments)


def _machine(facts: dict[str, str]) -> dict[str, str]:
    driver = (output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "").split("\n")[0]
    known = {"date": time.strftime("%Y-%m-%d"), "GPU": facts.get("gpu", "none, the CPU in its place"), "driver": driver, "torch": facts.get("torch", "")}
    known["multiprocessors"] = facts.get("multiprocessors", "")
    return {name: value for name, value in known.items() if value} | {"CPU cores": str(os.cpu_count())}


def _python(options: argparse.Namespace) -> Path:
    if options.dry:
        return options.python or VENV_PYTHON
    if reason := cuda_tests.no_gpu():
        raise UserError(reason, "./moonpool bench cuda --dry tries the program without one")
    cuda_host.require_test_modules()
    python = cuda_host.ensure_installed()
    if options.link is None:
        cuda_host.build_targets([LINK.name])
    return python


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if not IN_CHECKOUT:
        raise UserError("bench runs in a checkout", "git clone, then ./moonpool bench cuda there")
    if options.update_docs:
        if not options.json.is_file():
            raise UserError(f"there are no results at {options.json}", "./moonpool bench cuda measures them")
        PAGE.write_text(update_page(PAGE.read_text(), tables(Results.load(options.json), markdown=True)))
        board.say(f"updated: {PAGE.relative_to(ROOT)}")
        return 0
    plan, python = make_plan(options), _python(options)
    needed = plan.segment_bytes + 2 * max(shape.prompt_bytes for shape in plan.prompts)
    if needed > available_bytes():
        raise UserError(f"this run needs {needed / GIB:.0f} GiB of host memory, and {available_bytes() / GIB:.0f} are available", "--quick needs less")
    folder = RUNS / time.strftime("bench-cuda-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {shape.name: asdict(shape) for shape in plan.prompts}
    results = Results(settings={"rounds": plan.rounds, "shapes": shapes, "one_gpu": plan.remote == plan.device})
    steps, done = len(plan.prompts) + len(plan.settings) + (3 if plan.link else 2), 0
    until = None if plan.budget is None else time.time() + plan.budget
    with Supervisor() as supervisor, board.row("bench cuda") as row:
        run = Run(python, plan, folder, supervisor, until)

        def told(what: str) -> None:
            nonlocal done
            done += 1
            row.update(f"{done}/{steps}  {what}")
            results.machine = _machine(run.facts)
            results.settings |= {"left_out": run.left_out, "failed": run.failed}
            results.save(options.json)

        for cell in measure(run, plan, told):
            add(results, cell)
    results.save(options.json)
    print(f"\n{tables(results, markdown=False)}\n\nresults: {options.json}; into docs/benchmarks.md: ./moonpool bench cuda --update-docs")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
