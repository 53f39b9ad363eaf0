"""The tables of ./moonpool bench as text for a terminal, or as Markdown for docs/benchmarks.md. Pure functions of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moonpool.bench_options import OPERATIONS, PATHS, SHAPES
from moonpool.bench_results import Cell, Results, ratio
from moonpool.bench_targets import TARGETS, Verdict, judge

Row = Sequence[str]
FAILURE_WIDTH = 110


def amount(value: float, unit: str) -> str:
    """A rate in three significant digits: thousands and millions of things, or GB/s."""
    if unit == "GB/s":
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"
    for limit, word in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.2f}{word}" if scaled < 10 else f"{scaled:.0f}{word}"
    return f"{value:.0f}"


def with_range(cell: Cell | None) -> str:
    """The median, and the outermost rounds behind it; "failed" where there is no number."""
    if cell is None:
        return ""
    if cell.rate is None:
        return "failed" if cell.failure else ""
    spread = cell.rate
    text = amount(spread.median, cell.unit)
    if len(cell.rounds) > 1:
        text += f" ({amount(spread.least, cell.unit)}-{amount(spread.most, cell.unit)})"
    return text + (" then failed" if cell.failure else "")


def times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def microseconds(cell: Cell | None) -> str:
    """Median over the rounds of p50 and p99."""
    if cell is None or (p50 := cell.spread("p50_us")) is None or (p99 := cell.spread("p99_us")) is None:
        return ""
    return f"{_short(p50.median)} / {_short(p99.median)}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def seconds_per_gigabyte(cell: Cell | None) -> str:
    value = cell.cpu_per_gigabyte() if cell else None
    return "" if value is None else f"{value:.2f}"


def grid(head: Row, rows: Sequence[Row], markdown: bool) -> str:
    """A table: aligned columns, or Markdown."""
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join(lines)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def _title(text: str, markdown: bool) -> str:
    return f"### {text}" if markdown else f"== {text}"


def _gap(markdown: bool) -> str:
    """Between a title and its table."""
    return "\n\n" if markdown else "\n"


def _failures(cells: Sequence[Cell], markdown: bool) -> str:
    """One line for every cell that failed of itself; what merely follows from it is left out."""
    lines = []
    for cell in cells:
        if cell.failure and not cell.failure.startswith("not measured"):
            where = ", ".join(filter(None, (cell.path, cell.shape, f"{cell.threads} threads", cell.operation, cell.side)))
            lines.append(f"- {where}: {cell.failure.splitlines()[0][:FAILURE_WIDTH]}")
    return ("\n\nFailed:\n\n" if markdown else "\nfailed:\n") + "\n".join(lines) if lines else ""


# ------------------------------------------------------------------------------------------------------------------------ the store


def _contests(cells: Sequence[Cell]) -> list[tuple[str, int, str]]:
    found = {(cell.shape, cell.threads, cell.operation) for cell in cells}
    shapes = [shape.name for shape in SHAPES]
    return sorted(found, key=lambda key: (shapes.index(key[0]), OPERATIONS.index(key[2]), key[1]))


def _store(results: Results, markdown: bool) -> str:
    parts = []
    for path in PATHS:
        cells = [cell for cell in results.of_table("store") if cell.path == path]
        if not cells:
            continue
        rates, costs = [], []
        for shape, threads, operation in _contests(cells):
            side: Callable[[str], Cell | None] = lambda name, key=(shape, threads, operation): results.find("store", path, *key, name)  # noqa: E731
            ours, theirs, redis = side("moonpool"), side("mooncake"), side("redis")
            label = (shape, operation, str(threads))
            unit = ours.unit if ours else ""
            limits = [with_range(side(name)) for name in ("plain socket", "iperf3", "iperf3 -P 4", "memcpy")]
            rates.append((*label, unit, with_range(ours), with_range(theirs), times(ratio(ours, theirs)), with_range(redis), times(ratio(ours, redis)), *limits))
            cpu = [seconds_per_gigabyte(cell) for cell in (ours, theirs, side("plain socket") if operation != "exist" else None)]
            costs.append((*label, microseconds(ours), microseconds(theirs), microseconds(redis), microseconds(side("plain socket")), *cpu))
        what = {"tcp": "TCP alone", "best": "our best path"}[path]
        parts.append(_title(f"The store, {what}: throughput", markdown))
        head = ("shape", "work", "threads", "unit", "Moonpool", "Mooncake", "ratio", "Redis", "ratio", "plain socket", "iperf3 GB/s", "iperf3 -P 4 GB/s", "memcpy GB/s")
        parts.append(grid(head, rates, markdown) + _failures(cells, markdown))
        parts.append(_title(f"The store, {what}: p50 / p99 of a call in us, and CPU seconds of client and storage per GB", markdown))
        head = ("shape", "work", "threads", "Moonpool us", "Mooncake us", "Redis us", "socket us", "Moonpool s/GB", "Mooncake s/GB", "socket s/GB")
        parts.append(grid(head, costs, markdown))
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------------------------------------- the other tables


def _engine(results: Results, markdown: bool) -> str:
    cells = results.of_table("engine")
    rows = []
    for shape, threads, operation in dict.fromkeys((cell.shape, cell.threads, cell.operation) for cell in cells):
        ours, theirs = (results.find("engine", "", shape, threads, operation, side) for side in ("moonpool", "mooncake"))
        cpu = (seconds_per_gigabyte(ours), seconds_per_gigabyte(theirs))
        rows.append((shape, operation, str(threads), with_range(ours), with_range(theirs), times(ratio(ours, theirs)), *cpu))
    head = ("block", "work", "threads", "Moonpool GB/s", "Mooncake GB/s", "ratio", "Moonpool s/GB", "Mooncake s/GB")
    return _title("transfer_engine_bench, TCP, 32 blocks a batch", markdown) + _gap(markdown) + grid(head, rows, markdown) + _failures(cells, markdown)


def _number(cell: Cell, name: str, form: str) -> str:
    spread = cell.spread(name)
    return "" if spread is None else format(spread.median, form)


def _master(results: Results, markdown: bool) -> str:
    rows, memory = [], []
    for cell in results.of_table("master"):
        if cell.operation == "memory":
            memory.append((cell.shape, _number(cell, "bytes_per_object", ".0f"), _number(cell, "key_bytes", ".0f"), _number(cell, "rss_gib", ".2f")))
            continue
        evicting = "yes" if cell.path == "evicting" else "no"
        cpu = (_number(cell, "cpu_master_per_million", ".2f"), _number(cell, "cpu_load_per_million", ".2f"))
        rows.append((cell.shape, evicting, cell.operation, str(cell.threads), with_range(cell), microseconds(cell), *cpu, _number(cell, "failed", ".0f")))
    head = ("objects", "evicting", "work", "connections", "keys/s", "p50 / p99 us", "master CPU s/M keys", "generator CPU s/M keys", "failed keys")
    parts = [_title("The master under its load generator", markdown) + _gap(markdown) + grid(head, rows, markdown)]
    if memory:
        parts.append(grid(("objects", "bytes an object beyond its key", "key bytes", "master RSS GiB"), memory, markdown))
    return "\n\n".join(parts) + _failures(results.of_table("master"), markdown)


def _allocator(results: Results, markdown: bool) -> str:
    rows = []
    for cell in results.of_table("allocator"):
        shares = (_number(cell, "lost_first", ".2%"), _number(cell, "lost_mean", ".2%"), _number(cell, "lost_worst", ".2%"))
        rows.append((cell.shape, *shares, _number(cell, "allocate_ns", ".0f"), _number(cell, "free_ns", ".0f")))
    head = ("sizes", "lost at the first failure", "mean in churn", "worst in churn", "allocate ns", "free ns")
    return _title("The allocator, full and churning: share of the segment that is free when an allocation fails", markdown) + _gap(markdown) + grid(head, rows, markdown)


def _wire(results: Results, markdown: bool) -> str:
    rows = []
    for shape, operation in dict.fromkeys((cell.shape, cell.operation) for cell in results.of_table("wire")):
        wire, plain = (results.find("wire", "", shape, 1, operation, side) for side in ("wire", "plain socket"))
        rows.append((shape, operation, with_range(wire), with_range(plain), times(ratio(wire, plain)), microseconds(wire), microseconds(plain)))
    head = ("payload", "work", "wire", "plain socket", "ratio", "wire us", "socket us")
    return _title("The wire against a plain socket, one process", markdown) + _gap(markdown) + grid(head, rows, markdown)


_RENDERERS = {"store": _store, "engine": _engine, "master": _master, "allocator": _allocator, "wire": _wire}


def render(results: Results, table: str, markdown: bool) -> str:
    """One table of the results; empty when nothing of it was measured."""
    return _RENDERERS[table](results, markdown) if results.of_table(table) else ""


def targets_table(results: Results, markdown: bool) -> str:
    """What was wanted, and what came out of it."""
    verdicts: list[Verdict] = [verdict for target in TARGETS for verdict in judge(target, results)]
    if not verdicts:
        return ""
    rows = [
        (verdict.work, verdict.than, verdict.wanted, verdict.measured, "yes" if verdict.reached else f"no, by {verdict.short_by}") for verdict in verdicts
    ]
    return _title("What was wanted", markdown) + _gap(markdown) + grid(("work", "against", "wanted", "measured", "reached"), rows, markdown)
