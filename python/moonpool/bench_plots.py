"""Draws the results of ./moonpool bench, a PNG per table. Runs in the environment that has matplotlib: bench_plots.py RESULTS.json FOLDER."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"moonpool": "#1b6ca8", "mooncake": "#d1495b", "redis": "#edae49", "plain socket": "#8d99ae", "iperf3": "#6b705c", "memcpy": "#cbc5b1", "wire": "#1b6ca8"}
Cell = dict[str, Any]


def rates(cell: Cell) -> list[float]:
    return [record["rate"] for record in cell["rounds"] if "rate" in record]


def bars(axes: Any, groups: list[str], series: dict[str, dict[str, Cell]], unit: str) -> None:
    """Grouped bars at the medians, with the outermost rounds as whiskers; "failed" is written where there is no bar."""
    width = 0.8 / max(1, len(series))
    for number, (side, cells) in enumerate(series.items()):
        for place, group in enumerate(groups):
            at = place + (number - (len(series) - 1) / 2) * width
            cell = cells.get(group)
            values = rates(cell) if cell else []
            if values:
                middle = statistics.median(values)
                error = [[middle - min(values)], [max(values) - middle]]
                axes.bar(at, middle, width, color=COLOURS.get(side, "#555555"), yerr=error, error_kw={"lw": 0.7}, label=side if place == 0 else None)
            elif cell and cell["failure"]:
                axes.text(at, 0, "failed", rotation=90, ha="center", va="bottom", fontsize=6, color=COLOURS.get(side, "#555555"))
    axes.set_xticks(range(len(groups)), groups, fontsize=7)
    axes.set_ylabel(unit, fontsize=8)
    axes.grid(axis="y", lw=0.3)


def legend(figure: Any, axes: Any) -> None:
    found = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="upper right", ncols=6, fontsize=8)


def draw(cells: list[Cell], title: str, path: Path, panel: Any, group: Any) -> None:
    """One figure: a panel for each panel(cell), in it a group of bars for each group(cell)."""
    panels = list(dict.fromkeys(panel(cell) for cell in cells))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.5 * lines + 0.6), squeeze=False)
    flat = [axes for line in grid for axes in line]
    for axes, name in zip(flat, panels, strict=False):
        chosen = [cell for cell in cells if panel(cell) == name]
        series: dict[str, dict[str, Cell]] = {}
        for cell in chosen:
            series.setdefault(cell["side"], {})[group(cell)] = cell
        bars(axes, list(dict.fromkeys(group(cell) for cell in chosen)), series, chosen[0]["unit"])
        axes.set_title(name, fontsize=9)
    for axes in flat[len(panels) :]:
        axes.axis("off")
    legend(figure, flat)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(source: Path, folder: Path) -> None:
    cells: list[Cell] = json.loads(source.read_text())["cells"]
    by_table: dict[str, list[Cell]] = {}
    for cell in cells:
        by_table.setdefault(cell["table"], []).append(cell)
    for path in ("tcp", "best"):
        shown = [
            cell for cell in by_table.get("store", [])
            if cell["path"] == path and cell["side"] in COLOURS and (cell["side"] in ("moonpool", "mooncake") or comparable(cell, by_table["store"]))
        ]  # fmt: skip
        if shown:
            draw(shown, f"The store ({path})", folder / f"store-{path}.png", lambda c: f"{c['shape']}: {c['operation']}", lambda c: f"{c['threads']} threads")
    if engine := by_table.get("engine"):
        draw(engine, "transfer_engine_bench", folder / "engine.png", lambda c: c["operation"], lambda c: f"{c['shape']}\n{c['threads']} thr.")
    if master := [cell for cell in by_table.get("master", []) if cell["operation"] != "memory"]:
        draw(master, "The master", folder / "master.png", lambda c: f"{c['shape']} objects{', evicting' if c['path'] == 'evicting' else ''}", lambda c: c["operation"].replace(" x ", "\n"))
    if wire := by_table.get("wire"):
        draw(wire, "The wire", folder / "wire.png", lambda c: c["operation"], lambda c: c["shape"])


def comparable(cell: Cell, cells: list[Cell]) -> bool:
    """Whether this baseline counts in the unit of the sides that it stands beside."""
    same = ("path", "shape", "threads", "operation", "unit")
    return any(other["side"] == "moonpool" and all(other[name] == cell[name] for name in same) for other in cells)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
