"""The speeds that Moonpool set out to reach, as ratios between cells of one run, and what came of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moonpool.bench_results import Results, ratio


@dataclass(frozen=True)
class Target:
    """Our rate through `against`'s has to be `least` at these threads (empty: at all). With `p50_us`, our p50 has to be that or less."""

    path: str
    shape: str
    operations: tuple[str, ...]
    against: str
    least: float = 0.0
    threads: tuple[int, ...] = ()
    p50_us: float = 0.0


SMALL = ("put", "get")
TARGETS = (
    Target("tcp", "4 KiB", SMALL, "mooncake", 5, (1,)),
    Target("tcp", "4 KiB", SMALL, "mooncake", 12, (4,)),
    Target("best", "4 KiB", SMALL, "redis", 1),
    Target("tcp", "4 KiB", SMALL, "redis", 1),
    Target("best", "1 MiB", SMALL, "redis", 1),
    Target("tcp", "1 MiB", SMALL, "redis", 1),
    Target("tcp", "4 KiB", ("exist",), "mooncake", 3),
    Target("tcp", "4 KiB", ("exist",), "", threads=(1,), p50_us=35),
    Target("tcp", "16 MiB", SMALL, "iperf3", 0.85),
    Target("tcp", "vLLM block", SMALL, "iperf3", 0.8),
    Target("best", "vLLM block", SMALL, "memcpy", 0.7),
)


@dataclass(frozen=True)
class Verdict:
    work: str
    than: str
    wanted: str
    measured: str
    reached: bool
    short_by: str = ""


def judge(target: Target, results: Results) -> Iterator[Verdict]:
    """A verdict for each cell of ours that the target is about and that was measured together with what it is compared to."""
    for cell in results.of_table("store"):
        about = (cell.path, cell.shape, cell.side) == (target.path, target.shape, "moonpool") and cell.operation in target.operations
        if not about or (target.threads and cell.threads not in target.threads):
            continue
        work = f"{cell.shape} {cell.operation}, {cell.threads} thread{'s' if cell.threads > 1 else ''}, {cell.path}"
        if target.p50_us:
            p50 = cell.spread("p50_us")
            if p50 is not None:
                reached = p50.median <= target.p50_us
                yield Verdict(work, "p50 of a call", f"<= {target.p50_us:.0f} us", f"{p50.median:.0f} us", reached, f"{p50.median / target.p50_us:.1f}x")
            continue
        value = ratio(cell, results.find("store", cell.path, cell.shape, cell.threads, cell.operation, target.against))
        if value is not None:
            yield Verdict(work, target.against, f">= {target.least:g}x", f"{value:.2f}x", value >= target.least, f"{target.least / value:.1f}x" if value else "")
