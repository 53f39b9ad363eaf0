"""./moonpool bench: measures Moonpool beside what a user could pick instead, prints the ratios, and leaves JSON and plots in bench/out/.

The tables are made by bench_store, bench_engine, bench_master and bench_programs; this module brings the machine to where they run, shows
progress, keeps what has been measured if a later table fails, and stops every process, whatever happens.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moonpool import bench_cuda, bench_docs, bench_engine, bench_master, bench_programs
from moonpool.bench_baselines import Iperf, Redis
from moonpool.bench_machine import describe_machine, require_memory
from moonpool.bench_options import Options, options_from, parser
from moonpool.bench_results import Cell, Results
from moonpool.bench_sides import BENCH_PYTHON, Side, ensure_bench_tools
from moonpool.bench_store import StoreTable
from moonpool.bench_tables import render, targets_table
from moonpool.building import build_preset, configure, ensure_build_tools, ensure_wheel
from moonpool.commands import run_status
from moonpool.console import Row, board, format_seconds
from moonpool.errors import UserError
from moonpool.paths import IN_CHECKOUT, ROOT, RUNS, VENV_PYTHON
from moonpool.processes import Supervisor

OUT = ROOT / "bench" / "out"
LATEST = OUT / "latest.json"
BUILD_SECONDS = 1800
# How our side is told to leave shared memory alone.
PATH_ENVIRONMENT = {"tcp": {"MOONPOOL_PATHS": "tcp"}, "best": {}}
PROGRAMS = {"store": ("plain_baseline",), "engine": (), "master": ("master_load",), "allocator": ("allocator_churn",), "wire": ("wire_pingpong",)}
BAR = 24


def built_programs(names: Sequence[str]) -> dict[str, Path]:
    """Build these targets, optimized, and find them in the build folder."""
    ensure_build_tools()
    build_preset("release", timeout=BUILD_SECONDS, targets=names)
    found = {path.name: path for path in configure("release").rglob("*") if path.name in names and path.is_file() and os.access(path, os.X_OK)}
    if missing := set(names) - found.keys():
        raise UserError(f"built, but not found in build/release: {', '.join(sorted(missing))}", "a benchmark's target has the name of its file")
    return found


class Progress:
    """A bar for a table of known length, with what is being measured and how long the rest will take."""

    def __init__(self, row: Row, steps: int) -> None:
        self._row, self._steps, self._done, self._what = row, max(1, steps), 0, ""
        self._started = time.monotonic()

    def step(self) -> None:
        self._done += 1
        self.tell(self._what)

    def tell(self, what: str) -> None:
        self._what = what
        full = BAR * self._done // self._steps
        left = ""
        if self._done:
            left = f", {format_seconds((time.monotonic() - self._started) / self._done * (self._steps - self._done))} left"
        self._row.update(f"[{'#' * full}{'-' * (BAR - full)}] {self._done}/{self._steps}{left}  {what}")


def store_cells(options: Options, path: str, programs: dict[str, Path], folder: Path, progress: Callable[[int], Progress]) -> Iterator[list[Cell]]:
    with Supervisor() as supervisor:
        sides = [
            Side("moonpool", VENV_PYTHON, supervisor, folder, options.segment_bytes, PATH_ENVIRONMENT[path]),
            Side("mooncake", BENCH_PYTHON, supervisor, folder, options.segment_bytes),
        ]
        redis, iperf = Redis.start(supervisor, folder), Iperf.start(supervisor, folder)
        shown = progress(len(options.shapes) * len(options.threads))
        table = StoreTable(options, sides, redis, iperf, programs["plain_baseline"], shown.tell)
        for cells in table.run(path):
            shown.step()
            yield cells


def measure(options: Options, results: Results, save: Callable[[], None]) -> list[str]:
    """Run the chosen tables, saving after every contest. Returns what could not be measured, as messages."""
    programs = built_programs(sorted({name for table in options.tables for name in PROGRAMS[table]})) if any(PROGRAMS[t] for t in options.tables) else {}
    folder = RUNS / time.strftime("bench-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for table in options.tables:
        for path in options.paths if table == "store" else ("",):
            name = f"bench {table} {path}".rstrip()
            try:
                with board.row(name) as row:
                    for cells in _cells_of(table, path, options, programs, folder, lambda steps, row=row: Progress(row, steps)):
                        results.merge(cells)
                        save()
                    row.update("")
            except UserError as error:
                problems.append(f"{name}: {error.message}")
                board.say(error.render())
    return problems


def _cells_of(
    table: str, path: str, options: Options, programs: dict[str, Path], folder: Path, progress: Callable[[int], Progress]
) -> Iterator[list[Cell]]:
    if table == "store":
        return store_cells(options, path, programs, folder, progress)
    if table == "engine":
        return bench_engine.cells(options, VENV_PYTHON.parent, BENCH_PYTHON.parent, folder, progress)
    if table == "master":
        return bench_master.cells(options, VENV_PYTHON.parent, programs["master_load"], folder, progress)
    return bench_programs.cells(table, options, programs, progress)


def draw_plots(json_file: Path, folder: Path) -> None:
    """A PNG per table, drawn by the environment that has matplotlib."""
    script = Path(__file__).with_name("bench_plots.py")
    if run_status("bench plots", [BENCH_PYTHON, "-P", script, json_file, folder], timeout=300) != 0:
        board.say("note: the plots could not be drawn; .cache/log/bench-plots.log says why")


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["gateway"] and IN_CHECKOUT:
        os.execv(sys.executable, [sys.executable, str(ROOT / "bench" / "gateway_compare.py"), *arguments[1:]])
    if arguments[:1] == ["cuda"]:
        return bench_cuda.main(arguments[1:])
    parsed = parser().parse_args(arguments)
    options = options_from(parsed)
    json_file = options.json or LATEST
    if not IN_CHECKOUT:
        raise UserError("bench runs in a checkout: it builds programs of its own", "git clone, then ./moonpool bench there")
    if parsed.list:
        for table in options.tables:
            board.say(f"{table}: {bench_docs.DESCRIPTIONS[table]}")
        return 0
    if parsed.markdown or parsed.update_docs:
        return bench_docs.main(json_file, update=parsed.update_docs, draw=draw_plots)
    ensure_build_tools()
    ensure_wheel()
    ensure_bench_tools()
    require_memory(options)
    results = Results.load(json_file) if options.merge and json_file.is_file() else Results()
    results.machine = describe_machine()
    results.settings = {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick, "segment_bytes": options.segment_bytes}
    problems = measure(options, results, lambda: results.save(json_file))
    results.save(json_file)
    draw_plots(json_file, json_file.parent)
    for text in (*(render(results, table, markdown=False) for table in options.tables), targets_table(results, markdown=False)):
        if text:
            print(f"\n{text}")
    print(f"\nresults: {json_file}; plots: {json_file.parent}/*.png; the same as Markdown: ./moonpool bench --markdown")
    for problem in problems:
        print(f"could not be measured: {problem}")
    return 1 if problems else 0
