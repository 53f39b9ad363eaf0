"""./moonpool bench cuda: whole prompts of real models between a GPU and the pool, beside what torch does by itself, in one run.

Prints and keeps (bench/out/cuda.json) four tables: rates of put, get and both at once; the latency of one block; the transfer engine between two
processes; rates and a matrix product's against MOONPOOL_CUDA_SMS. --update-docs puts them into docs/benchmarks.md. The numbers come from
bench_cuda_worker.py in the environment that cuda_host.py makes on the host's own torch; the pool's memory is lent by another process, so it is
shared memory. --dry does all of it with small tensors on the CPU, in an environment that has torch and the wheel, for trying.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
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
BEGIN, END = "<!-- cuda: begin (./moonpool bench cuda --update-docs) -->", "<!-- cuda: end -->"
WORKER = Path(__file__).with_name("bench_cuda_worker.py")
READY_SECONDS = 30.0
MEASURE_SECONDS = 900.0
TORCH_SIDES = ("one copy a piece", "index_select", "whole buffer")
LENDER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 0, "tcp", "", sys.argv[1]) == 0
print("lent", flush=True)
sys.stdin.read()
store.close()
"""


@dataclass(frozen=True)
class Model:
    """What one GPU holds of a model's KV cache, in bf16. `sides`: K and V, or the one latent of MLA."""

    name: str
    layers: int
    sides: int
    token_bytes: int  # of one side of one layer


MODELS = (
    Model("Llama-3-8B", 32, 2, 8 * 128 * 2),
    Model("Llama-3-70B TP8", 80, 2, 1 * 128 * 2),
    Model("Qwen2.5-7B", 28, 2, 4 * 128 * 2),
    Model("DeepSeek-V3 MLA", 61, 1, 576 * 2),
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
    exchanged: int  # bytes
    pieces: tuple[int, ...]

    @property
    def segment_bytes(self) -> int:
        """What the lender lends: what is got, and one prompt on its way in."""
        largest = max(shape.prompt_bytes for shape in (*self.prompts, self.block, self.sms_shape))
        return 2 * largest + largest // 4 + 64 * MIB


def make_plan(options: argparse.Namespace) -> Plan:
    if options.dry:
        shapes = tuple(shape_of(TRIAL, block, 64) for block in (8, 16))
        return Plan("cpu", shapes, shape_of(TRIAL, 16, 16), (1, 2), shapes[0], 2, 8, 0.05, 32, "cpu", 64 * KIB, (4 * KIB,))
    tokens = (1024, 16384) if options.quick else (1024, 4096, 16384, 65536)
    shapes = tuple(shape_of(model, block, count) for model in MODELS for block in (16, 64) for count in tokens)
    llama = MODELS[0]
    settings = (4, 16, 64) if options.quick else (1, 2, 4, 8, 16, 32, 64, 128)
    rounds = options.rounds or (2 if options.quick else 5)
    remote = options.device if len(cuda_tests.gpu_indices()) < 2 else next(name for name in ("cuda:0", "cuda:1") if name != options.device)
    pieces = (4 * KIB, 32 * KIB, MIB)
    return Plan(options.device, shapes, shape_of(llama, 16, 16), settings, shape_of(llama, 16, 4096), rounds, 200, 1.0, 8192, remote, 256 * MIB, pieces)


# --------------------------------------------------------------------------------------------------------------------------- running


class Run:
    """A master, a lender of memory, and workers one after the other; results as they come."""

    def __init__(self, python: Path, plan: Plan, folder: Path, supervisor: Supervisor) -> None:
        self._python, self._plan, self._folder = python, plan, folder
        self.facts: dict[str, str] = {}
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
        whole = {"measure": measure, "device": self._plan.device, "master": self._master, "status": self._status, **task}
        log = self._folder / f"{name}.log"
        with log.open("wb") as errors:
            argv = [str(self._python), "-P", str(WORKER), json.dumps(whole)]
            worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **variables}, text=True)
            assert worker.stdout is not None
            try:
                for line in worker.stdout:
                    said: dict[str, Any] = json.loads(line)
                    if "record" in said:
                        record = said.pop("record")
                        yield Cell("cuda", said["path"], said["shape"], 1, said["operation"], said["side"], said["unit"], [record])
                    elif "done" in said:
                        told(said["done"])
                    else:
                        self.facts |= {name: str(value) for name, value in said.items()}
                status = worker.wait(MEASURE_SECONDS)
            finally:
                worker.kill()
                worker.wait()
        if status != 0:
            raise UserError(f"the worker for {name} ended with {status}", f"its whole log is {log}", tail(log))


def measure(run: Run, plan: Plan, told: Callable[[str], None]) -> Iterator[Cell]:
    shapes = [asdict(shape) for shape in plan.prompts]
    yield from run.cells("prompts", "prompts", {}, told, shapes=shapes, rounds=plan.rounds)
    yield from run.cells("latency", "latency", {}, told, shapes=[asdict(plan.block)], calls=plan.calls)
    exchange = {"remote": plan.remote, "bytes": plan.exchanged, "pieces": plan.pieces, "rounds": plan.rounds}
    yield from run.cells("processes", "processes", {}, told, **exchange)
    for setting in plan.settings:
        task = {"shapes": [asdict(plan.sms_shape)], "setting": str(setting), "seconds": plan.seconds, "gemm": plan.gemm}
        yield from run.cells("sms", f"sms-{setting}", {"MOONPOOL_CUDA_SMS": str(setting)}, told, **task)


def add(results: Results, cell: Cell) -> None:
    """Takes a round in, to those of its contest."""
    if (known := results.find(*cell.key)) is not None:
        known.rounds += cell.rounds
    else:
        results.cells.append(cell)


# ---------------------------------------------------------------------------------------------------------------------------- tables


def _size(value: int) -> str:
    return f"{value / MIB:.4g} MiB" if value >= MIB else f"{value / KIB:.4g} KiB"


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
    return grid(head, rows, markdown)


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
        rows.append((shape, operation, with_range(ours), with_range(copy), times(ratio(ours, copy))))
    return grid(("memory", "work", "Moonpool GB/s", "one copy GB/s", "ratio"), rows, markdown)


def _sms(results: Results, markdown: bool) -> str:
    rows = []
    for cell in results.cells:
        if cell.path == "sms" and cell.rounds:
            last = cell.rounds[-1]
            share = last["gemm_beside"] / last["gemm_alone"] if last["gemm_alone"] else 0.0
            products = (f"{last['gemm_alone']:.0f}", f"{last['gemm_beside']:.0f}", f"{share:.0%}")
            rows.append((cell.shape, cell.operation, f"{last['rate']:.1f}", f"{last['rate_beside']:.1f}", *products))
    head = ("MOONPOOL_CUDA_SMS", "work", "GB/s alone", "GB/s beside the product", "product alone TFLOP/s", "beside TFLOP/s", "left")
    return grid(head, rows, markdown)


def tables(results: Results, markdown: bool) -> str:
    """All tables as text."""
    shapes = {name: Shape(**values) for name, values in results.settings.get("shapes", {}).items()}
    parts = [("Whole prompts between a GPU and the pool", _prompts(results, shapes, markdown)), ("One block at a time", _latency(results, markdown)),
             ("The transfer engine between the devices of two processes, beside one process's own copy of all between them", _processes(results, markdown)),
             ("How many multiprocessors a launch may take, alone and beside a bf16 matrix product", _sms(results, markdown))]  # fmt: skip
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
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
    parser.add_argument("--rounds", type=int, default=0, help="of each contest (5)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rounds and settings")
    parser.add_argument("--dry", action="store_true", help="no GPU: all of it with small tensors on the CPU, to see that it works")
    parser.add_argument("--python", type=Path, help="with --dry: the python3 that has torch and the wheel (.venv's)")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE", help="where the results go (bench/out/cuda.json)")
    parser.add_argument("--update-docs", action="store_true", help="measure nothing: put the tables of that file into docs/benchmarks.md")
    return parser.parse_args(arguments)


def _machine(facts: dict[str, str]) -> dict[str, str]:
    driver = (output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "").split("\n")[0]
    known = {"date": time.strftime("%Y-%m-%d"), "GPU": facts.get("gpu", "none, the CPU in its place"), "driver": driver, "torch": facts.get("torch", "")}
    return {name: value for name, value in known.items() if value} | {"CPU cores": str(os.cpu_count())}


def _python(options: argparse.Namespace) -> Path:
    if options.dry:
        return options.python or VENV_PYTHON
    if reason := cuda_tests.no_gpu():
        raise UserError(reason, "./moonpool bench cuda --dry tries the program without one")
    cuda_host.require_test_modules()
    return cuda_host.ensure_installed()


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
    results = Results(settings={"rounds": plan.rounds, "shapes": {shape.name: asdict(shape) for shape in plan.prompts}})
    steps, done = len(plan.prompts) + 2 + len(plan.settings), 0
    with Supervisor() as supervisor, board.row("bench cuda") as row:
        run = Run(python, plan, folder, supervisor)

        def told(what: str) -> None:
            nonlocal done
            done += 1
            row.update(f"{done}/{steps}  {what}")
            results.machine = _machine(run.facts)
            results.save(options.json)

        for cell in measure(run, plan, told):
            add(results, cell)
    results.save(options.json)
    print(f"\n{tables(results, markdown=False)}\n\nresults: {options.json}; into docs/benchmarks.md: ./moonpool bench cuda --update-docs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
