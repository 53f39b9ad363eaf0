"""The results of ./moonpool bench in docs/benchmarks.md: everything between two marker lines is written by --update-docs, the rest by people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moonpool.bench_options import TABLES
from moonpool.bench_results import Results
from moonpool.bench_tables import render, targets_table
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "plots"
BEGIN, END = "<!-- measured: begin (./moonpool bench --update-docs) -->", "<!-- measured: end -->"
DESCRIPTIONS = {
    "store": "put, exist, get and mixed work through the Python module, beside Mooncake, Redis, iperf3, a plain socket and memcpy",
    "engine": "transfer_engine_bench of both sides",
    "master": "the master under its load generator: exist, get, put, evicting and not, memory per object",
    "allocator": "space lost to fragmentation in a full segment, under a mix of sizes",
    "wire": "our frames against a plain socket loop in one process",
}


def markdown(results: Results, plots: Path | None = None) -> str:
    """All tables; where a plot of a table lies in `plots`, it is shown below it."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    rounds = sorted({len(cell.rounds) for cell in results.of_table("store") if cell.rounds and not cell.failure}) or [0]
    counted = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
    parts = [f"Measured on: {machine}. The store's cells: {counted} rounds; medians, in brackets the outermost rounds."]
    parts.append(targets_table(results, markdown=True))
    for table in TABLES:
        parts.append(render(results, table, markdown=True))
        if plots is not None:
            parts += [f"![{path.stem}](plots/{path.name})" for path in sorted(plots.glob(f"{table}*.png"))]
    return "\n\n".join(filter(None, parts))


def replace_between(page: str, text: str) -> str:
    """The page with what lies between the markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE.name} has lost its markers", f"put the lines {BEGIN} and {END} where the tables belong")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def remove_plots(folder: Path) -> None:
    """Those of the tables. Others in the folder (the gateway's policies) are not drawn by this command, and stay."""
    for path in [path for table in TABLES for path in folder.glob(f"{table}*.png")]:
        path.unlink()


def main(json_file: Path, *, update: bool, draw: Callable[[Path, Path], None]) -> int:
    if not json_file.is_file():
        raise UserError(f"there are no results at {json_file}", "./moonpool bench measures them")
    results = Results.load(json_file)
    if not update:
        print(markdown(results))
        return 0
    remove_plots(PLOTS)
    draw(json_file, PLOTS)
    PAGE.write_text(replace_between(PAGE.read_text(), markdown(results, PLOTS)))
    board.say(f"updated: {PAGE.relative_to(ROOT)}, {PLOTS.relative_to(ROOT)}/")
    return 0
